/** Key pairs and public keys: making them, importing them from untrusted bytes, writing them. */
import { createPrivateKey, createPublicKey, generateKeyPairSync, type KeyObject } from 'node:crypto';
import { CountersignError, err, ok, type Result } from '../base/errors.ts';
import type { ReasonCode } from '../base/registry/reason-codes.ts';
import { type KeyKind, readKeyKind } from './algorithms.ts';
import { readDer } from './der.ts';
import { decodePem } from './pem.ts';

const MAX_SPKI_BYTES = 2048;

/** A fresh P-256 private key. */
export function generateKey(): KeyObject {
  return generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey;
}

/** PKCS#8, DER: what the Workload API hands out. The bytes are the secret. */
export function privateKeyDer(key: KeyObject): Buffer {
  return key.export({ type: 'pkcs8', format: 'der' });
}

/** PKCS#8, PEM: what key files and node:tls take. The text is the secret. */
export function privateKeyPem(key: KeyObject): string {
  return key.export({ type: 'pkcs8', format: 'pem' }) as string;
}

/** @throws CountersignError bad-input, without a word of the content. */
export function privateKeyFromPem(text: string): KeyObject {
  const [bytes] = decodePem(text, 'PRIVATE KEY');
  return privateKeyFromDer(bytes!);
}

/** PKCS#8. @throws CountersignError bad-input, without a word of the content. */
export function privateKeyFromDer(bytes: Buffer): KeyObject {
  try {
    return createPrivateKey({ key: bytes, format: 'der', type: 'pkcs8' });
  } catch {
    throw new CountersignError('bad-input', 'not a PKCS#8 private key');
  }
}

/** SubjectPublicKeyInfo, DER, of a private or public key. */
export function publicKeyDer(key: KeyObject): Buffer {
  const publicKey = key.type === 'private' ? createPublicKey(key) : key;
  return publicKey.export({ type: 'spki', format: 'der' });
}

export interface ImportedKey {
  readonly key: KeyObject;
  readonly kind: KeyKind;
}

/** A public key of an allowed kind from untrusted SubjectPublicKeyInfo DER. CERT_MALFORMED or CERT_WEAK_KEY. */
export function parsePublicKey(spki: Buffer): Result<ImportedKey, ReasonCode> {
  const kind = readDer(spki, MAX_SPKI_BYTES, readKeyKind);
  if (!kind.ok) return err('CERT_MALFORMED');
  if (kind.value === undefined) return err('CERT_WEAK_KEY');
  const key = importPublicKey(spki);
  return key === undefined ? err('CERT_MALFORMED') : ok({ key, kind: kind.value });
}

/**
 * The KeyObject of a SubjectPublicKeyInfo whose kind was read before; undefined if OpenSSL refuses it (a point that is not on its curve).
 * PEM text goes to OpenSSL's PEM reader, which costs a third of what the generic decoder behind `format: 'der'` does
 * (19 against 50 µs for P-256, and 40 µs less on the first verification).
 */
export function importPublicKey(spki: Buffer): KeyObject | undefined {
  try {
    return createPublicKey(`-----BEGIN PUBLIC KEY-----\n${spki.toString('base64')}\n-----END PUBLIC KEY-----\n`);
  } catch {
    return undefined;
  }
}
