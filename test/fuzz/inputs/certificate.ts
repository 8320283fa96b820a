/** Certificates, alone and in a chain: nothing but the samples themselves verifies, and where OpenSSL reads one too, it reads the same. */
import { X509Certificate } from 'node:crypto';
import type { TrustBundle } from '../../../src/model/identity.ts';
import { parseCertificate } from '../../../src/pki/certificate.ts';
import { verifyX509Svid } from '../../../src/pki/verify.ts';
import type { Random } from '../random.ts';
import { damage, damageElement } from './mutate.ts';
import { authorities, ders, intermediates, leaves, NOW_MS, TRUST_DOMAIN } from './samples.ts';
import { hold, type Target } from './target.ts';

const bundle: TrustBundle = { trustDomain: TRUST_DOMAIN, authorities };
const samples = [...leaves, ...authorities];
const untouched = new Set(leaves.map((leaf) => leaf.toString('latin1')));

export const x509: Target = {
  name: 'certificate',
  make(random: Random) {
    const sample = random.pick(samples);
    return random.oneIn(3) ? damage(random, sample, ders) : damageElement(random, sample, ders);
  },
  check(input) {
    const bytes = input as Buffer;
    const verified = verifyX509Svid([bytes, ...intermediates], bundle, NOW_MS);
    hold('only what an authority signed verifies', !verified.ok || untouched.has(bytes.toString('latin1')));
    const parsed = parseCertificate(bytes);
    if (!parsed.ok) {
      hold('what does not parse does not verify', !verified.ok);
      return false;
    }
    const { serial, spiffeId, der } = parsed.value;
    hold('a parsed certificate is the bytes it was parsed from', der.equals(bytes));
    const openssl = readByOpenssl(bytes);
    hold('what verifies OpenSSL reads', !verified.ok || openssl !== undefined);
    if (openssl === undefined) return true;
    hold('OpenSSL reads the same serial', BigInt(`0x${serial}`) === BigInt(`0x${openssl.serialNumber}`));
    const names = openssl.subjectAltName ?? '';
    hold('OpenSSL reads the same SPIFFE ID', spiffeId === undefined || names.includes(`URI:${spiffeId}`));
    return true;
  },
};

/** It looks into names, which are carried here as they are. */
function readByOpenssl(bytes: Buffer): X509Certificate | undefined {
  try {
    return new X509Certificate(bytes);
  } catch {
    return undefined;
  }
}
