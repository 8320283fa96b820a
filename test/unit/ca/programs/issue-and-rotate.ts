/**
 * A certificate authority that issues without a pause while it rotates its keys, until it is killed. What it issued goes to standard output,
 * a line each, after it left the authority; BAD lines are what must not happen. Its clock runs a thousand times as fast as the wall's.
 * Arguments: directory, Unix ms at which its clock begins, mode ("rotate" or "issue"), certificates of an earlier run that must still verify.
 */
import { writeSync } from 'node:fs';
import { type CertificateAuthority, openCertificateAuthority } from '../../../../ca/api.ts';
import { asError } from '../../../../src/base/errors.ts';
import type { TrustDomain } from '../../../../src/model/ids.ts';
import { spiffeId } from '../../../../src/model/spiffe-id.ts';
import { parseCertificate } from '../../../../src/pki/certificate.ts';
import { createCsr } from '../../../../src/pki/csr.ts';
import { validateJwtSvid } from '../../../../src/pki/jwt.ts';
import { generateKey } from '../../../../src/pki/keys.ts';
import { verifyX509Svid } from '../../../../src/pki/verify.ts';

const [directory = '', beginsMs = '0', mode = 'issue', ...earlier] = process.argv.slice(2);
const SPEED = mode === 'rotate' ? 1000 : 1;
const began = performance.now();
const clock = {
  nowMs: () => Number(beginsMs) + Math.floor((performance.now() - began) * SPEED),
  bootNs: () => process.hrtime.bigint(),
};
const trustDomain = 'example.org' as TrustDomain;
const [workload, node] = [spiffeId('spiffe://example.org/shop'), spiffeId('spiffe://example.org/node/a')];
const csr = createCsr(generateKey());

/** In one write: a line is there whole or, after a kill, not at all. */
function say(...words: string[]): void {
  writeSync(1, `${words.join(' ')}\n`);
}

/** Why it does not verify now. It may have ended meanwhile, as this clock is fast, and its authority with it. */
function problemOf(ca: CertificateAuthority, chain: readonly Buffer[]): string | undefined {
  const verified = verifyX509Svid(chain, { trustDomain, ...ca.bundle() }, clock.nowMs());
  const leaf = parseCertificate(chain[0]!);
  const ended = leaf.ok && leaf.value.notAfterMs < clock.nowMs();
  return verified.ok || ended ? undefined : verified.error;
}

async function issue(ca: CertificateAuthority): Promise<void> {
  const request = { spiffeId: workload, node, requester: node };
  const before = ca.bundle();
  const [x509, jwt] = await Promise.all([
    ca.issueWorkloadSvid({ ...request, csr }),
    ca.issueJwtSvid({ ...request, audience: ['db'] }),
  ]);
  if (!x509.ok || !jwt.ok) return say('BAD', 'refused');
  const { serial, chain } = x509.value;
  say('CERT', serial, chain.map((der) => der.toString('base64')).join(','));
  const problem = problemOf(ca, chain);
  if (problem !== undefined) say('BAD', 'just issued', problem);
  // who read the bundle before it was asked for knows the key too
  if (!verifyX509Svid(chain, { trustDomain, ...before }, x509.value.notBeforeMs + 10_000).ok)
    say('BAD', 'early', serial);
  const token = validateJwtSvid(jwt.value.token, 'db', [{ trustDomain, ...ca.bundle() }], jwt.value.issuedAtMs);
  if (!token.ok) say('BAD', 'token', token.error);
}

async function rotate(ca: CertificateAuthority): Promise<void> {
  for (let n = 0; ; n++) {
    await ca.upkeep();
    if (n % 7 === 3) {
      const kind = n % 2 === 0 ? 'x509' : 'jwt';
      await ca.prepare(kind);
      await new Promise((resolve) => setTimeout(resolve, 1));
      // it may have been time for that anyway
      if (ca.authorities().some((each) => each.kind === kind && each.state === 'prepared')) await ca.activate(kind);
    }
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
}

try {
  const ca = await openCertificateAuthority({
    directory,
    trustDomain,
    clock,
    ...(mode === 'rotate' ? { authorityTtlSeconds: 2000, jwtKeyTtlSeconds: 1800, replaceLostKeys: true } : {}),
    workloadTtl: { defaultTtlSeconds: 900, maxTtlSeconds: 900 },
    onError: (error) => say('BAD', error.message),
  });
  for (const text of earlier) {
    const chain = text.split(',').map((der) => Buffer.from(der, 'base64'));
    const problem = problemOf(ca, chain);
    if (problem !== undefined) say('BAD', 'of before the restart', problem);
  }
  say('OPEN', String(ca.authorities().length));
  if (mode === 'rotate') rotate(ca).catch((thrown: unknown) => say('BAD', asError(thrown).message));
  for (;;) await Promise.all(Array.from({ length: 8 }, () => issue(ca)));
} catch (thrown) {
  say('BAD', asError(thrown).message);
  process.exitCode = 1;
}
