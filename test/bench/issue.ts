/**
 * X.509-SVIDs per second and core, from request to ledger row, beside what OpenSSL needs for one signature and one verification.
 * Both are per second of CPU time (`openssl speed` counts so by itself), so that a busy machine does not decide.
 */
import { execFile } from 'node:child_process';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { type CertificateAuthority, openCertificateAuthority } from '../../ca/api.ts';
import type { TrustDomain } from '../../src/model/ids.ts';
import { spiffeId } from '../../src/model/spiffe-id.ts';
import { createCsr } from '../../src/pki/csr.ts';
import { generateKey } from '../../src/pki/keys.ts';
import type { Bench } from './support.ts';

const ROUNDS = 6;
/** Until nothing is compiled any more. */
const WARM_UP_ROUNDS = 3;
const REQUESTS_PER_ROUND = 2000;
/** Requests that are in flight together, as from one Issue call of a node with many workloads. */
const CONCURRENCY = 64;
const TARGET = 0.5;

export const bench: Bench = {
  name: 'issue',
  async run(emit, progress) {
    const directory = await mkdtemp(join(tmpdir(), 'countersign-bench-issue-'));
    const clock = { nowMs: () => Date.now(), bootNs: () => process.hrtime.bigint() };
    const ca = await openCertificateAuthority({ directory, trustDomain: 'example.org' as TrustDomain, clock });
    try {
      progress(`issue: making ${REQUESTS_PER_ROUND} requests, each with a key of its own`);
      const csrs = Array.from({ length: REQUESTS_PER_ROUND }, () => createCsr(generateKey()));
      for (let i = 0; i < WARM_UP_ROUNDS; i++) await issueAll(ca, csrs);
      const rounds: { rate: number; floor: number }[] = [];
      for (let round = 1; round <= ROUNDS; round++) {
        const floor = await measureFloor();
        const before = process.cpuUsage();
        await issueAll(ca, csrs);
        const { user, system } = process.cpuUsage(before);
        const rate = (REQUESTS_PER_ROUND / (user + system)) * 1e6;
        rounds.push({ rate, floor });
        progress(`issue: round ${round} of ${ROUNDS}: ${Math.round(rate)}/s, OpenSSL ${Math.round(floor)}/s`);
      }
      // the best of each: what was least disturbed by others on the machine
      const rate = Math.max(...rounds.map((round) => round.rate));
      const floor = Math.max(...rounds.map((round) => round.floor));
      const ratio = rate / floor;
      emit({
        name: 'issue',
        value: Math.round(rate),
        unit: 'svids/s',
        floor: { name: 'openssl speed, P-256: 1 sign + 1 verify', value: Math.round(floor) },
        ratio: Math.round(ratio * 1000) / 1000,
        target: `at least ${TARGET} of the floor`,
        ok: ratio >= TARGET,
      });
    } finally {
      ca.close();
      await rm(directory, { recursive: true });
    }
  },
};

/** Verified request, linted and signed certificate, ledger row on disk: all of it for each. */
async function issueAll(ca: CertificateAuthority, csrs: readonly Buffer[]): Promise<void> {
  const workload = spiffeId('spiffe://example.org/ns/shop/sa/frontend');
  const node = spiffeId('spiffe://example.org/node/a');
  for (let at = 0; at < csrs.length; at += CONCURRENCY) {
    const outcomes = await Promise.all(
      csrs
        .slice(at, at + CONCURRENCY)
        .map((csr) => ca.issueWorkloadSvid({ csr, spiffeId: workload, node, requester: node })),
    );
    for (const outcome of outcomes) if (!outcome.ok) throw new Error(`not issued: ${outcome.error}`);
  }
}

/** Pairs of one signature and one verification per second. */
async function measureFloor(): Promise<number> {
  const { stdout } = await promisify(execFile)('openssl', ['speed', '-mr', '-seconds', '1', 'ecdsap256']);
  const line = stdout.split('\n').find((text) => text.startsWith('+F4:'));
  // +F4:INDEX:BITS:SIGNATURES PER SECOND:VERIFICATIONS PER SECOND
  const [, , , signs, verifies] = line?.split(':').map(Number) ?? [];
  if (!signs || !verifies) throw new Error('openssl speed ecdsap256 printed no figures');
  return 1 / (1 / signs + 1 / verifies);
}
