/** Certification requests (PKCS#10, RFC 2986): a key and the proof that its holder asked. Nothing else in one is ever used. */
import { createPublicKey, type KeyObject, sign } from 'node:crypto';
import { CountersignError, err, ok, type Result } from '../base/errors.ts';
import type { ReasonCode } from '../base/registry/reason-codes.ts';
import {
  type KeyKind,
  readKeyKind,
  readSignatureAlgorithm,
  SIGNATURE_IDENTIFIERS,
  type SignatureAlgorithm,
  verifySignature,
} from './algorithms.ts';
import { contextConstructed, DerError, type DerReader, der, derBitString, readDer, sequence, TAG } from './der.ts';
import { importPublicKey, publicKeyDer } from './keys.ts';

const MAX_CSR_BYTES = 8192;
const VERSION_0 = Buffer.from([TAG.integer, 1, 0]);
const EMPTY_NAME = sequence();
const NO_ATTRIBUTES = der(contextConstructed(0));

/** DER, with an empty subject and no attributes, signed with SHA-256. @throws CountersignError unless the key is of P-256. */
export function createCsr(privateKey: KeyObject): Buffer {
  if (privateKey.asymmetricKeyDetails?.namedCurve !== 'prime256v1') {
    throw new CountersignError('bad-input', 'a certification request needs a P-256 private key');
  }
  const info = sequence(VERSION_0, EMPTY_NAME, publicKeyDer(createPublicKey(privateKey)), NO_ATTRIBUTES);
  return sequence(info, SIGNATURE_IDENTIFIERS.ecdsaSha256, derBitString(sign('sha256', info, privateKey)));
}

/** A request as read, its key imported; verifyParsedCsr says whether its key's holder signed it. */
export interface ParsedCsr {
  /** SubjectPublicKeyInfo, DER. A copy. */
  readonly spki: Buffer;
  readonly key: KeyObject;
  readonly kind: KeyKind;
  readonly algorithm: SignatureAlgorithm;
  readonly info: Buffer;
  readonly signature: Buffer;
}

/** ISSUE_CSR_INVALID or CERT_WEAK_KEY. Apart from verifyParsedCsr, because each is faster over many requests than both in turns. */
export function parseCsr(csr: Buffer): Result<ParsedCsr, ReasonCode> {
  const read = readDer(csr, MAX_CSR_BYTES, readCsr);
  if (!read.ok) return err('ISSUE_CSR_INVALID');
  const { info, spki, kind, algorithm, signature } = read.value;
  if (algorithm === undefined || kind === undefined) return err('CERT_WEAK_KEY');
  const key = importPublicKey(spki);
  if (key === undefined) return err('ISSUE_CSR_INVALID');
  return ok({ spki: Buffer.from(spki), key, kind, algorithm, info, signature });
}

export function verifyParsedCsr({ algorithm, kind, key, info, signature }: ParsedCsr): boolean {
  return verifySignature(algorithm, kind, key, info, signature);
}

/** The SubjectPublicKeyInfo (DER) of a request that its key's holder signed; ISSUE_CSR_INVALID or CERT_WEAK_KEY. */
export function verifyCsr(csr: Buffer): Result<Buffer, ReasonCode> {
  const parsed = parseCsr(csr);
  if (!parsed.ok) return parsed;
  return verifyParsedCsr(parsed.value) ? ok(parsed.value.spki) : err('ISSUE_CSR_INVALID');
}

function readCsr(reader: DerReader) {
  const outer = reader.enter(TAG.sequence);
  const info = outer.whole(TAG.sequence);
  const algorithm = readSignatureAlgorithm(outer);
  const signature = outer.bitStringBytes();
  outer.end();
  const fields = outer.within(info).enter(TAG.sequence);
  if (fields.smallInteger() !== 0) throw new DerError('not version 0');
  fields.whole(TAG.sequence);
  const spki = fields.whole(TAG.sequence);
  fields.whole(contextConstructed(0));
  fields.end();
  return { info, spki, kind: readKeyKind(outer.within(spki)), algorithm, signature };
}
