/** An X.509 certificate as read from untrusted DER (RFC 5280, section 4.1). Reading proves nothing: verify.ts does. */
import { hash, type KeyObject } from 'node:crypto';
import { CountersignError, err, ok, type Result } from '../base/errors.ts';
import type { ReasonCode } from '../base/registry/reason-codes.ts';
import { type KeyKind, readKeyKind, readSignatureAlgorithm, type SignatureAlgorithm } from './algorithms.ts';
import { contextConstructed, DerError, DerReader, readDer, readTime, TAG } from './der.ts';
import { type Extensions, readExtensions } from './extensions.ts';
import { importPublicKey } from './keys.ts';

/** What a certificate of ours needs is below 1 KiB; RSA 4096 chains stay below 3. */
export const MAX_CERTIFICATE_BYTES = 8192;
/** RFC 5280, section 4.1.2.2. */
const MAX_SERIAL_BYTES = 20;
const MAX_NAME_ATTRIBUTES = 32;

/** Immutable; all buffers are views of `der`, which is a copy of what was parsed. */
export interface Certificate extends Readonly<Omit<Extensions, 'nodeBinding' | 'nodeIncarnation'>> {
  readonly der: Buffer;
  /** SHA-256 of `der`, lower-case hex. */
  readonly digest: string;
  /** Lower-case hex, no leading zeros beyond one byte, as in RevocationSubject. */
  readonly serial: string;
  readonly notBeforeMs: number;
  /** The last ms at which it is valid. */
  readonly notAfterMs: number;
  /** Name, DER. */
  readonly issuerDer: Buffer;
  readonly subjectDer: Buffer;
  readonly subjectIsEmpty: boolean;
  /** TBSCertificate, DER: what is signed. */
  readonly tbs: Buffer;
  readonly signature: Buffer;
  /** undefined: none that is allowed. */
  readonly signatureAlgorithm: SignatureAlgorithm | undefined;
  /** SubjectPublicKeyInfo, DER. */
  readonly spki: Buffer;
  /** undefined: none that is allowed. */
  readonly keyKind: KeyKind | undefined;
  /** Built on first use. Throws CountersignError for a key that verify.ts refuses (see publicKeyOf); never after verification. */
  readonly publicKey: KeyObject;
  /** SPIFFE ID of the node that an X.509-SVID is bound to. */
  readonly nodeBinding: Extensions['nodeBinding'];
  readonly nodeIncarnation: Extensions['nodeIncarnation'];
}

/** CERT_MALFORMED whatever is wrong: trailing bytes, BER, a v1 certificate, a doubled extension, a date that does not exist. */
export function parseCertificate(der: Buffer): Result<Certificate, ReasonCode> {
  if (der.length > MAX_CERTIFICATE_BYTES) return err('CERT_MALFORMED');
  // a copy: what was parsed must not change under whoever caches it
  const copy = lastingCopy(der);
  const parsed = readDer(copy, MAX_CERTIFICATE_BYTES, (reader) => readCertificate(copy, reader));
  return parsed.ok ? ok(parsed.value) : err('CERT_MALFORMED');
}

/** Facts of a TBSCertificate alone, for linting what is about to be signed. The error is a sentence. */
export function parseTbsCertificate(tbs: Buffer): Result<TbsFields, string> {
  return readDer(tbs, MAX_CERTIFICATE_BYTES, readTbs);
}

/** For what is kept long: Buffer.from() takes small copies out of 64 KiB that live as long as any of them does. */
export function lastingCopy(bytes: Buffer): Buffer {
  const copy = Buffer.allocUnsafeSlow(bytes.length);
  bytes.copy(copy);
  return copy;
}

/** SHA-256 of a certificate's DER, lower-case hex. */
export function certificateDigest(der: Uint8Array): string {
  return hash('sha256', der, 'hex');
}

/** The key to verify with, or undefined if it is not of an allowed kind or not a point of its curve. */
export function publicKeyOf(certificate: Certificate): KeyObject | undefined {
  if (certificate.keyKind === undefined) return undefined;
  const memory = memoryOf(certificate);
  memory.key ??= importPublicKey(certificate.spki);
  return memory.key;
}

/**
 * Its DER for who keeps no more of it: one copy, however many keep it, which does not keep the certificate with its key alive, as `der` does
 * for whoever remembers certificates by it.
 */
export function lastingDer(certificate: Certificate): Buffer {
  const memory = memoryOf(certificate);
  memory.lastingDer ??= lastingCopy(certificate.der);
  return memory.lastingDer;
}

/** That `issuer`'s key signed `subject`: true for ever, as both are immutable. Trust in the issuer is not part of it. */
export function rememberSigner(subject: Certificate, issuer: Certificate): void {
  const { signers } = memoryOf(subject);
  if (signers.push(issuer.digest) > MAX_SIGNERS) signers.shift();
}

export function hasSigner(subject: Certificate, issuer: Certificate): boolean {
  return memoryOf(subject).signers.includes(issuer.digest);
}

/** What was worked out of a certificate, kept in it, so that it is forgotten with it. */
interface Memory {
  key: KeyObject | undefined;
  lastingDer: Buffer | undefined;
  /** Digests of the certificates whose keys are known to have signed it. */
  readonly signers: string[];
}

const MEMORY = Symbol('memory');
/** An authority may be signed anew with its old key; more than a few at a time there are not. */
const MAX_SIGNERS = 4;

function memoryOf(certificate: Certificate): Memory {
  return (certificate as Certificate & { readonly [MEMORY]: Memory })[MEMORY];
}

export interface TbsFields extends Readonly<Extensions> {
  readonly serial: string;
  readonly serialBytes: number;
  readonly signatureAlgorithm: SignatureAlgorithm | undefined;
  /** AlgorithmIdentifier, DER. */
  readonly signatureAlgorithmDer: Buffer;
  readonly issuerDer: Buffer;
  readonly subjectDer: Buffer;
  readonly subjectIsEmpty: boolean;
  readonly notBeforeMs: number;
  readonly notAfterMs: number;
  readonly spki: Buffer;
  readonly keyKind: KeyKind | undefined;
}

function readCertificate(der: Buffer, reader: DerReader): Certificate {
  const outer = reader.enter(TAG.sequence);
  const tbs = outer.whole(TAG.sequence);
  const algorithmDer = outer.whole(TAG.sequence);
  const signature = outer.bitStringBytes();
  outer.end();
  const fields = readTbs(outer.within(tbs));
  // RFC 5280, section 4.1.1.2: both identifiers are the same
  if (!algorithmDer.equals(fields.signatureAlgorithmDer)) throw new DerError('two signature algorithms');
  const certificate = {
    ...fields,
    der,
    digest: certificateDigest(der),
    tbs,
    signature,
    [MEMORY]: { key: undefined, lastingDer: undefined, signers: [] },
  };
  return Object.defineProperty(certificate, 'publicKey', KEY_OF) as typeof certificate & Pick<Certificate, 'publicKey'>;
}

/** One getter for all: with one of its own for each, V8 keeps all fields in a table that is ten times as large. */
const KEY_OF = {
  enumerable: true,
  get(this: Certificate): KeyObject {
    const key = publicKeyOf(this);
    if (key === undefined)
      throw new CountersignError('unsupported', 'the key of this certificate is not an allowed one');
    return key;
  },
};

function readTbs(reader: DerReader): TbsFields {
  const tbs = reader.enter(TAG.sequence);
  // section 4.1.2.1: extensions make it v3, and every X.509-SVID has some
  const version = tbs.enter(contextConstructed(0));
  if (version.smallInteger() !== 2) throw new DerError('not version 3');
  version.end();
  const { serial, serialBytes } = readSerial(tbs);
  const signatureAlgorithmDer = tbs.whole(TAG.sequence);
  const issuerDer = readName(tbs);
  if (issuerDer.length === 2) throw new DerError('an empty issuer');
  const validity = tbs.enter(TAG.sequence);
  const notBeforeMs = readTime(validity);
  const notAfterMs = readTime(validity);
  validity.end();
  const subjectDer = readName(tbs);
  const spki = tbs.whole(TAG.sequence);
  // unique identifiers [1] and [2] are not used by conforming CAs (section 4.1.2.8) and not taken
  const explicit = tbs.enter(contextConstructed(3));
  const extensions = readExtensions(explicit);
  explicit.end();
  tbs.end();
  // One spread, and first: after another one V8 keeps the fields in a table that is ten times as large.
  return {
    ...extensions,
    serial,
    serialBytes,
    signatureAlgorithmDer,
    signatureAlgorithm: readSignatureAlgorithm(tbs.within(signatureAlgorithmDer)),
    issuerDer,
    subjectDer,
    subjectIsEmpty: subjectDer.length === 2,
    notBeforeMs,
    notAfterMs,
    spki,
    keyKind: readKeyKind(tbs.within(spki)),
  };
}

function readSerial(tbs: DerReader): { serial: string; serialBytes: number } {
  const bytes = tbs.unsignedInteger();
  if (bytes.length > MAX_SERIAL_BYTES) throw new DerError('a serial number that is too long');
  const magnitude = bytes.length > 1 && bytes[0] === 0 ? bytes.subarray(1) : bytes;
  const serial = magnitude.toString('hex');
  if (serial === '00') throw new DerError('serial number zero');
  return { serial, serialBytes: bytes.length };
}

/** RDNSequence (section 4.1.2.4): its shape is checked, its strings are compared as bytes only. */
function readName(tbs: DerReader): Buffer {
  const start = tbs.position;
  const whole = tbs.whole(TAG.sequence);
  const names = new DerReader(tbs.buffer, start, tbs.position, 0).enter(TAG.sequence);
  for (let count = 0; !names.atEnd; ) {
    const set = names.enter(TAG.set);
    do {
      if (++count > MAX_NAME_ATTRIBUTES) throw new DerError('a name that is too long');
      const attribute = set.enter(TAG.sequence);
      attribute.oid();
      attribute.skip();
      attribute.end();
    } while (!set.atEnd);
  }
  return whole;
}
