/** The keys an authority may have, and what each of them signs with. */
import { createPublicKey, generateKeyPair, type KeyObject } from 'node:crypto';
import { promisify } from 'node:util';
import { CountersignError } from '../../src/base/errors.ts';
import { SIGNATURE_IDENTIFIERS, type SignatureAlgorithm } from '../../src/pki/algorithms.ts';

export const KEY_TYPES = ['ec-p256', 'ec-p384', 'rsa-3072', 'rsa-4096'] as const;
export type KeyType = (typeof KEY_TYPES)[number];

interface Signing {
  readonly hash: 'sha256' | 'sha384';
  /** In certificates and CRLs. */
  readonly algorithm: SignatureAlgorithm;
  /** AlgorithmIdentifier of `algorithm`, DER. */
  readonly identifier: Buffer;
  /** In JWTs (RFC 7518, section 3.1). */
  readonly jws: 'ES256' | 'ES384' | 'RS256';
}

export const SIGNING: Readonly<Record<KeyType, Signing>> = {
  'ec-p256': signing('sha256', 'ecdsaSha256', 'ES256'),
  'ec-p384': signing('sha384', 'ecdsaSha384', 'ES384'),
  'rsa-3072': signing('sha256', 'rsaSha256', 'RS256'),
  'rsa-4096': signing('sha256', 'rsaSha256', 'RS256'),
};

function signing(hash: Signing['hash'], algorithm: SignatureAlgorithm, jws: Signing['jws']): Signing {
  return { hash, algorithm, identifier: SIGNATURE_IDENTIFIERS[algorithm], jws };
}

const generatePair = promisify(generateKeyPair);

/** A private key, made outside of the event loop: RSA takes seconds. */
export async function generatePrivateKey(type: KeyType): Promise<KeyObject> {
  switch (type) {
    case 'ec-p256':
      return (await generatePair('ec', { namedCurve: 'P-256' })).privateKey;
    case 'ec-p384':
      return (await generatePair('ec', { namedCurve: 'P-384' })).privateKey;
    case 'rsa-3072':
      return (await generatePair('rsa', { modulusLength: 3072 })).privateKey;
    case 'rsa-4096':
      return (await generatePair('rsa', { modulusLength: 4096 })).privateKey;
  }
}

/** @throws CountersignError bad-input for a key of any other type. */
export function keyTypeOf(key: KeyObject): KeyType {
  const { namedCurve, modulusLength } = key.asymmetricKeyDetails ?? {};
  if (key.asymmetricKeyType === 'ec' && namedCurve === 'prime256v1') return 'ec-p256';
  if (key.asymmetricKeyType === 'ec' && namedCurve === 'secp384r1') return 'ec-p384';
  if (key.asymmetricKeyType === 'rsa' && modulusLength === 3072) return 'rsa-3072';
  if (key.asymmetricKeyType === 'rsa' && modulusLength === 4096) return 'rsa-4096';
  throw new CountersignError('bad-input', `a key of an authority is one of ${KEY_TYPES.join(', ')}; this one is not`);
}

/** Type of a public key. @param spki SubjectPublicKeyInfo, DER. @throws CountersignError as keyTypeOf. */
export function keyTypeOfSpki(spki: Buffer): KeyType {
  return keyTypeOf(createPublicKey({ key: spki, format: 'der', type: 'spki' }));
}
