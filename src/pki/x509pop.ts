/**
 * x509pop: a node shows a certificate that somebody else gave it, and that it holds the key. What both sides say to each other;
 * whom to believe is the server's to judge. As SPIRE's attestor of this name does it, the signature is over nonces of both sides;
 * ours covers the node's name and its request for an SVID besides, so that it is good for nothing else.
 */
import { constants, createHash, type KeyObject, randomBytes, sign, verify } from 'node:crypto';
import { z } from 'zod';
import type { SpiffeId } from '../model/ids.ts';
import type { KeyKind } from './algorithms.ts';
import { MAX_CERTIFICATE_BYTES } from './certificate.ts';

export const X509POP = 'x509pop' as const;
const NONCE_BYTES = 32;
const MAX_CERTIFICATES = 5;
/** ECDSA P-384 in DER has 104 at most, RSA 8192 has 1,024. */
const MAX_SIGNATURE_BYTES = 1024;
const CONTEXT = 'countersign x509pop v1\n';

const payloadSchema = z.strictObject({
  /** Leaf first, DER. */
  certificates: z
    .array(z.base64().max(Math.ceil(MAX_CERTIFICATE_BYTES / 3) * 4))
    .min(1)
    .max(MAX_CERTIFICATES),
});

export function encodePayload(chain: readonly Buffer[]): Buffer {
  return Buffer.from(JSON.stringify({ certificates: chain.map((der) => der.toString('base64')) }));
}

/** undefined: it is none. */
export function parsePayload(payload: Buffer): Buffer[] | undefined {
  if (payload.length > MAX_CERTIFICATES * 2 * MAX_CERTIFICATE_BYTES) return undefined;
  try {
    const { certificates } = payloadSchema.parse(JSON.parse(payload.toString('utf8')));
    return certificates.map((text) => Buffer.from(text, 'base64'));
  } catch {
    return undefined;
  }
}

export function createNonce(): Buffer {
  return randomBytes(NONCE_BYTES);
}

/** What is being proven, besides the nonces. */
export interface Claim {
  readonly node: SpiffeId;
  /** PKCS#10, DER. */
  readonly csr: Buffer;
}

/** The answer to a challenge: a nonce of the node's own and the signature. undefined: the challenge is none. */
export function answerChallenge(challenge: Buffer, claim: Claim, key: KeyObject): Buffer | undefined {
  if (challenge.length !== NONCE_BYTES) return undefined;
  const nonce = createNonce();
  const bytes = signedBytes(challenge, nonce, claim);
  return Buffer.concat([nonce, sign(hashOf(key), bytes, withPadding(key))]);
}

/** Did the holder of this key answer this challenge with this claim? */
export function verifyAnswer(challenge: Buffer, answer: Buffer, claim: Claim, key: KeyObject, kind: KeyKind): boolean {
  if (answer.length <= NONCE_BYTES || answer.length > NONCE_BYTES + MAX_SIGNATURE_BYTES) return false;
  const isRsa = kind === 'rsa';
  if (isRsa !== (key.asymmetricKeyType === 'rsa')) return false;
  const bytes = signedBytes(challenge, answer.subarray(0, NONCE_BYTES), claim);
  try {
    return verify(hashOf(key), bytes, withPadding(key), answer.subarray(NONCE_BYTES));
  } catch {
    return false;
  }
}

function signedBytes(challenge: Buffer, nonce: Buffer, { node, csr }: Claim): Buffer {
  const request = createHash('sha256').update(csr).digest();
  return Buffer.concat([Buffer.from(CONTEXT), challenge, nonce, request, Buffer.from(node)]);
}

const hashOf = (key: KeyObject) => (key.asymmetricKeyDetails?.namedCurve === 'secp384r1' ? 'sha384' : 'sha256');

/** RSA: PSS with a salt as long as the hash (RFC 8017, section 9.1). */
function withPadding(key: KeyObject) {
  if (key.asymmetricKeyType !== 'rsa') return key;
  return { key, padding: constants.RSA_PKCS1_PSS_PADDING, saltLength: constants.RSA_PSS_SALTLEN_DIGEST };
}
