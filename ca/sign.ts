/** Step 3 of issuing, and the only place where an authority's key is used. */
import { type KeyObject, sign } from 'node:crypto';
import { assembleCertificate } from './build.ts';
import type { Linted } from './lint.ts';

/** The certificate, DER. Synchronous: an asynchronous signature is no faster for P-256, and costs a thread. */
export function signCertificate(key: KeyObject, linted: Linted): Buffer {
  const tbs = linted.take();
  return assembleCertificate(tbs, sign('sha256', tbs, key));
}
