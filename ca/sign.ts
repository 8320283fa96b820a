/** Step 3 of issuing, and the only place where an authority's key signs a certificate: with the key that lint read the certificate for. */
import { assembleCertificate } from './build.ts';
import { SIGNING } from './keys/key-type.ts';
import type { Linted } from './lint.ts';

/** The certificate, DER. @throws CountersignError unavailable: the token that holds the key is gone. */
export function signCertificate(linted: Linted): Buffer {
  const { tbs, key } = linted.take();
  return assembleCertificate(tbs, SIGNING[key.type].identifier, key.sign(tbs));
}
