/** Who signs a certificate: a key, and the certificate of the authority that it is the key of. */
import { CountersignError } from '../src/base/errors.ts';
import type { Certificate } from '../src/pki/certificate.ts';
import type { SigningKey } from './keys/key-manager.ts';

/** An authority's certificate as issuing needs it: read once, so that names and key identifier are certain. Times are Unix ms. */
export interface Issuer {
  /** Name, DER. */
  readonly subjectDer: Buffer;
  readonly subjectKeyId: Buffer;
  readonly notBeforeMs: number;
  readonly notAfterMs: number;
  /** How many authorities may stand below it; undefined: any number. */
  readonly pathLength: number | undefined;
}

export interface Signer {
  readonly key: SigningKey;
  /** undefined: the certificate signs itself. */
  readonly issuer: Issuer | undefined;
}

/** @throws CountersignError bad-input: the key is not the certificate's, or the certificate has no key identifier. */
export function signerOf(key: SigningKey, certificate: Certificate): Signer {
  const { spki, subjectDer, subjectKeyId, notBeforeMs, notAfterMs, pathLength } = certificate;
  if (!key.publicKey.equals(spki)) {
    throw new CountersignError('bad-input', `the key ${key.id} is not the key of the authority's certificate`);
  }
  // RFC 5280, section 4.2.1.2: every CA has one
  if (subjectKeyId === undefined)
    throw new CountersignError('bad-input', 'the authority has no subject key identifier');
  return { key, issuer: { subjectDer, subjectKeyId, notBeforeMs, notAfterMs, pathLength } };
}
