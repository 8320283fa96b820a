/** Makes the certificate of an authority for a key that it has: self-signed. */
import { CountersignError } from '../src/base/errors.ts';
import type { TrustDomain } from '../src/model/ids.ts';
import { type Certificate, parseCertificate } from '../src/pki/certificate.ts';
import { buildTbs } from './build.ts';
import type { SigningKey } from './keys/key-manager.ts';
import { lintTbs } from './lint.ts';
import { planAuthority, type Validity } from './profile.ts';
import { randomSerial } from './serial.ts';
import { signCertificate } from './sign.ts';

export interface MadeAuthority {
  readonly certificate: Certificate;
  /** DER. What SVIDs carry behind their own certificate: the authority's first, then those above it, never a root. Empty for a root. */
  readonly chain: readonly Buffer[];
  /** DER. What a bundle lists so that its SVIDs verify. */
  readonly roots: readonly Buffer[];
}

/** @throws CountersignError bad-input naming the broken rule; unavailable if the key's token is gone. */
export async function makeAuthority(
  key: SigningKey,
  trustDomain: TrustDomain,
  validity: Validity,
): Promise<MadeAuthority> {
  const plan = planAuthority(trustDomain, validity);
  const signer = { key, issuer: undefined };
  const linted = lintTbs(buildTbs(plan, signer, key.publicKey, randomSerial()), plan, signer, key.publicKey);
  if (!linted.ok) {
    throw new CountersignError(
      'bad-input',
      `no authority for ${trustDomain}; what must hold: ${linted.error.join('; ')}`,
    );
  }
  const der = signCertificate(linted.value);
  const parsed = parseCertificate(der);
  if (!parsed.ok) throw new CountersignError('internal', `the authority that was made does not parse: ${parsed.error}`);
  return { certificate: parsed.value, chain: [], roots: [der] };
}
