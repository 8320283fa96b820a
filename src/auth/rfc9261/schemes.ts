/** Signature schemes an authenticator may use (RFC 8446, section 4.2.3): what they are called in node:crypto and which keys fit. */
import { constants, type KeyObject, type SignKeyObjectInput } from 'node:crypto';

export interface SignatureScheme {
  readonly code: number;
  readonly hash: 'sha256' | 'sha384' | 'sha512';
  fits(key: KeyObject): boolean;
  /** The key as crypto.sign and crypto.verify want it. */
  input(key: KeyObject): KeyObject | SignKeyObjectInput;
}

/** RSA moduli below this are refused (NIST SP 800-131A, revision 2). */
const MIN_RSA_BITS = 2048;

type KeyKind = 'prime256v1' | 'secp384r1' | 'rsa' | 'other';
const kinds = new WeakMap<KeyObject, KeyKind>();

/** Remembered: to ask a KeyObject for its details is slow, and they do not change. */
function kindOf(key: KeyObject): KeyKind {
  let kind = kinds.get(key);
  if (kind === undefined) {
    kind = readKind(key);
    kinds.set(key, kind);
  }
  return kind;
}

function readKind(key: KeyObject): KeyKind {
  const details = key.asymmetricKeyDetails;
  if (key.asymmetricKeyType === 'rsa') return (details?.modulusLength ?? 0) >= MIN_RSA_BITS ? 'rsa' : 'other';
  const curve = key.asymmetricKeyType === 'ec' ? details?.namedCurve : undefined;
  return curve === 'prime256v1' || curve === 'secp384r1' ? curve : 'other';
}

function ecdsa(code: number, hash: 'sha256' | 'sha384', curve: KeyKind): SignatureScheme {
  // The bare KeyObject: DER is the default encoding, and an object around it costs 20 to 30 us for each operation.
  return { code, hash, fits: (key) => kindOf(key) === curve, input: (key) => key };
}

function rsaPss(code: number, hash: SignatureScheme['hash']): SignatureScheme {
  // RFC 8446, section 4.2.3: the salt is as long as the digest.
  const options = { padding: constants.RSA_PKCS1_PSS_PADDING, saltLength: constants.RSA_PSS_SALTLEN_DIGEST };
  return { code, hash, fits: (key) => kindOf(key) === 'rsa', input: (key) => ({ key, ...options }) };
}

/** In order of preference; also what a request offers. */
export const SIGNATURE_SCHEMES: readonly SignatureScheme[] = [
  ecdsa(0x0403, 'sha256', 'prime256v1'), // ecdsa_secp256r1_sha256
  ecdsa(0x0503, 'sha384', 'secp384r1'), // ecdsa_secp384r1_sha384
  rsaPss(0x0804, 'sha256'), // rsa_pss_rsae_sha256
  rsaPss(0x0805, 'sha384'), // rsa_pss_rsae_sha384
  rsaPss(0x0806, 'sha512'), // rsa_pss_rsae_sha512
];
