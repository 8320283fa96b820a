/** Makes the certificate of an authority for a key that it has: self-signed, or signed upstream and then believed no more than a stranger's. */
import { CountersignError } from '../src/base/errors.ts';
import type { TrustDomain } from '../src/model/ids.ts';
import { type Certificate, parseCertificate } from '../src/pki/certificate.ts';
import { authorityRequest } from './authority-request.ts';
import { buildTbs } from './build.ts';
import type { SigningKey } from './keys/key-manager.ts';
import { lintTbs } from './lint.ts';
import { planAuthority, type Validity } from './profile.ts';
import { randomSerial } from './serial.ts';
import { signCertificate } from './sign.ts';
import { checkMinted, endsBefore } from './upstream/minted.ts';
import type { UpstreamAuthority } from './upstream/upstream.ts';

/** By which an upstream's clock may be ahead of ours. */
const CLOCK_MARGIN_MS = 60_000;

export interface MadeAuthority {
  readonly certificate: Certificate;
  /** DER. What SVIDs carry behind their own certificate: the authority's first, then those above it, never a root. Empty for a root. */
  readonly chain: readonly Buffer[];
  /** DER. What a bundle lists so that its SVIDs verify. */
  readonly roots: readonly Buffer[];
}

/**
 * @param validity with an upstream what is asked for: it may end earlier, never later.
 * @throws CountersignError naming the broken rule; unavailable if the key's token or the upstream is out of reach.
 */
export async function makeAuthority(
  key: SigningKey,
  trustDomain: TrustDomain,
  validity: Validity,
  upstream?: UpstreamAuthority,
): Promise<MadeAuthority> {
  return upstream === undefined
    ? selfSigned(key, trustDomain, validity)
    : mintedBy(upstream, key, trustDomain, validity);
}

function selfSigned(key: SigningKey, trustDomain: TrustDomain, validity: Validity): MadeAuthority {
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

async function mintedBy(
  upstream: UpstreamAuthority,
  key: SigningKey,
  trustDomain: TrustDomain,
  validity: Validity,
): Promise<MadeAuthority> {
  const request = authorityRequest(key, trustDomain);
  const ask = (notAfterMs: number) => upstream.mint(request, Math.floor((notAfterMs - validity.notBeforeMs) / 1000));
  let minted = await ask(validity.notAfterMs);
  // Vault lets an intermediate outlive its issuer, and what that signs then would fail before it ends
  const endMs = endsBefore(minted);
  if (endMs !== undefined && endMs - CLOCK_MARGIN_MS > validity.notBeforeMs)
    minted = await ask(endMs - CLOCK_MARGIN_MS);
  const certificate = checkMinted(minted, { key, trustDomain, validity, upstream: upstream.name });
  return { certificate, chain: minted.chain, roots: minted.roots };
}
