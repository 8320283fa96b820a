/** The closed list of keys and signature algorithms: P-256, P-384 and RSA of 2048 bits or more, with SHA-256, SHA-384 or SHA-512. */
import { verify as cryptoVerify, type KeyObject } from 'node:crypto';
import { DerError, DerReader, der, derOid, derUnsignedInteger, sequence, TAG } from './der.ts';
import { OID, oidNames } from './oids.ts';

export type KeyKind = 'p256' | 'p384' | 'rsa';
export type SignatureAlgorithm =
  | 'ecdsaSha256'
  | 'ecdsaSha384'
  | 'ecdsaSha512'
  | 'rsaSha256'
  | 'rsaSha384'
  | 'rsaSha512';

const HASH: Readonly<Record<SignatureAlgorithm, 'sha256' | 'sha384' | 'sha512'>> = {
  ecdsaSha256: 'sha256',
  ecdsaSha384: 'sha384',
  ecdsaSha512: 'sha512',
  rsaSha256: 'sha256',
  rsaSha384: 'sha384',
  rsaSha512: 'sha512',
};

const MIN_RSA_BITS = 2048;
/** Above this a single verification costs an attacker nothing and us milliseconds. */
const MAX_RSA_BITS = 8192;

/** AlgorithmIdentifiers, DER: parameters absent with ECDSA (RFC 5758, section 3.2), NULL with RSA (RFC 4055, section 5). */
export const SIGNATURE_IDENTIFIERS = Object.fromEntries(
  (Object.keys(HASH) as SignatureAlgorithm[]).map((algorithm) => [
    algorithm,
    algorithm.startsWith('rsa') ? sequence(derOid(OID[algorithm]), der(TAG.null)) : sequence(derOid(OID[algorithm])),
  ]),
) as Readonly<Record<SignatureAlgorithm, Buffer>>;

/** Reads an AlgorithmIdentifier of a signature; undefined is a well-formed one that is not on the list. */
export function readSignatureAlgorithm(reader: DerReader): SignatureAlgorithm | undefined {
  const identifier = reader.enter(TAG.sequence);
  const name = oidNames.get(identifier.oid());
  const parameters = readParameters(identifier);
  identifier.end();
  switch (name) {
    case 'ecdsaSha256':
    case 'ecdsaSha384':
    case 'ecdsaSha512':
      return parameters === undefined ? name : undefined;
    case 'rsaSha256':
    case 'rsaSha384':
    case 'rsaSha512':
      // RFC 4055, section 5: NULL is written, absent is accepted
      return parameters === undefined || parameters === TAG.null ? name : undefined;
    default:
      return undefined;
  }
}

/** The tag of an AlgorithmIdentifier's parameters; undefined if there are none. NULL has no content (X.690, section 8.8.2). */
function readParameters(identifier: DerReader): number | undefined {
  if (identifier.atEnd) return undefined;
  if (identifier.peek() !== TAG.null) return identifier.skip();
  if (identifier.content(TAG.null).length > 0) throw new DerError('a NULL with content');
  return TAG.null;
}

/** Reads a SubjectPublicKeyInfo; undefined is a well-formed one whose key is not on the list. */
export function readKeyKind(reader: DerReader): KeyKind | undefined {
  const info = reader.enter(TAG.sequence);
  const identifier = info.enter(TAG.sequence);
  const algorithm = oidNames.get(identifier.oid());
  let curve: string | undefined;
  let parameters: number | undefined;
  if (algorithm === 'ecPublicKey' && identifier.peek() === TAG.oid) curve = oidNames.get(identifier.oid());
  else parameters = readParameters(identifier);
  identifier.end();
  const key = info.bitStringBytes();
  info.end();
  // RFC 5480, section 2.2: uncompressed only; a compressed point has no place in certificates we take
  if (curve === 'p256') return key.length === 65 && key[0] === 4 ? 'p256' : undefined;
  if (curve === 'p384') return key.length === 97 && key[0] === 4 ? 'p384' : undefined;
  // RFC 4055, section 1.2: NULL; absent is accepted, as of signatures
  if (algorithm !== 'rsaEncryption' || (parameters !== undefined && parameters !== TAG.null)) return undefined;
  return isStrongRsaKey(info, key) ? 'rsa' : undefined;
}

/** RFC 8017, A.1.1: SEQUENCE { modulus, publicExponent }. */
function isStrongRsaKey(info: DerReader, key: Buffer): boolean {
  const keyReader = info.within(key);
  const rsa = keyReader.enter(TAG.sequence);
  keyReader.end();
  const modulus = rsa.unsignedInteger();
  const exponent = rsa.unsignedInteger();
  rsa.end();
  const magnitude = modulus[0] === 0 ? modulus.subarray(1) : modulus;
  const bits = magnitude.length === 0 ? 0 : magnitude.length * 8 - Math.clz32(magnitude[0]!) + 24;
  if (bits < MIN_RSA_BITS || bits > MAX_RSA_BITS) return false;
  if (exponent.length > 4) return false;
  const e = exponent.readUIntBE(0, exponent.length);
  return e >= 3 && (e & 1) === 1 && (magnitude[magnitude.length - 1]! & 1) === 1;
}

/** False also when the algorithm does not belong to the key. Never throws on a bad signature. */
export function verifySignature(
  algorithm: SignatureAlgorithm,
  kind: KeyKind,
  key: KeyObject,
  data: Buffer,
  signature: Buffer,
): boolean {
  const wantsRsa = algorithm.startsWith('rsa');
  if (wantsRsa !== (kind === 'rsa')) return false;
  try {
    return cryptoVerify(HASH[algorithm], data, key, signature);
  } catch {
    return false;
  }
}

/** ECDSA-Sig-Value (RFC 3279, section 2.2.3), DER, from r‖s, each as long as the other. */
export function ecdsaSignatureDer(rs: Buffer): Buffer {
  const half = rs.length / 2;
  return sequence(derUnsignedInteger(rs.subarray(0, half)), derUnsignedInteger(rs.subarray(half)));
}

/**
 * The reverse, for what RFC 7518, section 3.4 has: r‖s, each of `half` octets. Of a signature that was made here. To let node:crypto
 * write it (`dsaEncoding: 'ieee-p1363'`) costs more than twice the signature.
 * @throws DerError for what is no signature
 */
export function ecdsaSignatureRaw(signature: Buffer, half: number): Buffer {
  const reader = new DerReader(signature, 0, signature.length, 0).enter(TAG.sequence);
  const raw = Buffer.alloc(2 * half);
  for (const end of [half, 2 * half]) {
    const number = reader.unsignedInteger();
    const magnitude = number[0] === 0 ? number.subarray(1) : number;
    magnitude.copy(raw, end - magnitude.length);
  }
  return raw;
}
