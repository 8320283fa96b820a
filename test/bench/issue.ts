/**
 * SVIDs per second and core, beside what OpenSSL needs for the same signatures in the same run: certificates in process, from request to
 * ledger row; certificates and JWT-SVIDs through the whole path between an agent and a server process; JWT-SVIDs in process. All are
 * per second of CPU time (`openssl speed` counts so by itself), so that a busy machine does not decide.
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
import { type IssuePath, openIssuePath } from './issue-path.ts';
import type { Bench, BenchResult } from './support.ts';

const ROUNDS = 6;
/** Until nothing is compiled any more. */
const WARM_UP_ROUNDS = 3;
/** A multiple of those in flight, so that the work divides evenly. */
const REQUESTS = 2048;
/** Requests that are in flight together, as from many agents, or from one Issue call of a node with many workloads. */
const CONCURRENCY = 64;
/** Tokens that share a commit of the ledger under load. */
const TOKENS_IN_FLIGHT = 256;

const workload = spiffeId('spiffe://example.org/ns/shop/sa/frontend');
const node = spiffeId('spiffe://example.org/node/a');

/** Of one kind of work: what it takes, CPU ms of each process that has a part in it. */
interface Work {
  readonly name: string;
  readonly unit: string;
  /** Per second, of OpenSSL's. */
  readonly floor: (speed: Speed) => { readonly name: string; readonly value: number };
  readonly target?: { readonly ratio?: number; readonly rate?: number };
  /** Does REQUESTS of them. */
  run(): Promise<void>;
  /** CPU ms so far. */
  spent(): number;
}

interface Speed {
  readonly signs: number;
  readonly verifies: number;
}

const signAndVerify = ({ signs, verifies }: Speed) => ({
  name: 'openssl speed, P-256: 1 sign + 1 verify',
  value: 1 / (1 / signs + 1 / verifies),
});
const signOnly = ({ signs }: Speed) => ({ name: 'openssl speed, P-256: 1 sign', value: signs });

export const bench: Bench = {
  name: 'issue',
  async run(emit, progress) {
    const directory = await mkdtemp(join(tmpdir(), 'countersign-bench-issue-'));
    const clock = { nowMs: () => Date.now(), bootNs: () => process.hrtime.bigint() };
    const ca = await openCertificateAuthority({ directory, trustDomain: 'example.org' as TrustDomain, clock });
    let path: IssuePath | undefined;
    try {
      progress(`issue: making ${REQUESTS} requests, each with a key of its own`);
      const csrs = Array.from({ length: REQUESTS }, () => createCsr(generateKey()));
      path = await openIssuePath();
      for (const work of works(ca, path, csrs)) await measure(work, emit, progress);
    } finally {
      await path?.close();
      ca.close();
      await rm(directory, { recursive: true });
    }
  },
};

function works(ca: CertificateAuthority, path: IssuePath, csrs: readonly Buffer[]): Work[] {
  const here = () => path.spent().agent;
  const both = () => path.spent().agent + path.spent().server;
  const server = () => path.spent().server;
  return [
    {
      name: 'issue',
      unit: 'svids/s',
      floor: signAndVerify,
      target: { ratio: 0.5 },
      run: () => issueAll(ca, csrs),
      spent: here,
    },
    {
      name: 'issue, JWT-SVIDs',
      unit: 'tokens/s',
      floor: signOnly,
      target: { ratio: 0.5 },
      run: () => jwtAll(ca),
      spent: here,
    },
    {
      name: 'issue over gRPC, one to a call, agent and server',
      unit: 'svids/s',
      floor: signAndVerify,
      target: { rate: 1500 },
      run: () => path.issueAll(csrs, 1, CONCURRENCY),
      spent: both,
    },
    {
      name: 'issue over gRPC, one to a call, the server alone',
      unit: 'svids/s',
      floor: signAndVerify,
      run: () => path.issueAll(csrs, 1, CONCURRENCY),
      spent: server,
    },
    {
      name: 'issue over gRPC, 64 to a call, agent and server',
      unit: 'svids/s',
      floor: signAndVerify,
      run: () => path.issueAll(csrs, CONCURRENCY, 2),
      spent: both,
    },
    {
      name: 'issue over gRPC, JWT-SVIDs, agent and server',
      unit: 'tokens/s',
      floor: signOnly,
      run: () => path.jwtAll(REQUESTS, CONCURRENCY),
      spent: both,
    },
  ];
}

async function measure(
  { name, unit, floor, target, run, spent }: Work,
  emit: (result: BenchResult) => void,
  progress: (line: string) => void,
): Promise<void> {
  for (let i = 0; i < WARM_UP_ROUNDS; i++) await run();
  const rounds: { rate: number; speed: Speed }[] = [];
  for (let round = 1; round <= ROUNDS; round++) {
    const speed = await measureOpenssl();
    const before = spent();
    await run();
    const rate = (REQUESTS / (spent() - before)) * 1000;
    rounds.push({ rate, speed });
    progress(
      `${name}: round ${round} of ${ROUNDS}: ${Math.round(rate)}/s, OpenSSL ${Math.round(floor(speed).value)}/s`,
    );
  }
  // the best of each: what was least disturbed by others on the machine
  const rate = Math.max(...rounds.map((round) => round.rate));
  const signs = Math.max(...rounds.map(({ speed }) => speed.signs));
  const verifies = Math.max(...rounds.map(({ speed }) => speed.verifies));
  const below = floor({ signs, verifies });
  const ratio = rate / below.value;
  const least = target?.ratio === undefined ? target?.rate : target.ratio * below.value;
  const wanted = target?.ratio === undefined ? `${target?.rate}/s or more` : `at least ${target.ratio} of the floor`;
  emit({
    name,
    value: Math.round(rate),
    unit,
    floor: { name: below.name, value: Math.round(below.value) },
    ratio: Math.round(ratio * 1000) / 1000,
    ...(least === undefined ? {} : { target: wanted, ok: rate >= least }),
  });
}

/** Verified request, linted and signed certificate, ledger row on disk: all of it for each. */
async function issueAll(ca: CertificateAuthority, csrs: readonly Buffer[]): Promise<void> {
  for (let at = 0; at < csrs.length; at += CONCURRENCY) {
    const outcomes = await Promise.all(
      csrs
        .slice(at, at + CONCURRENCY)
        .map((csr) => ca.issueWorkloadSvid({ csr, spiffeId: workload, node, requester: node })),
    );
    for (const outcome of outcomes) if (!outcome.ok) throw new Error(`not issued: ${outcome.error}`);
  }
}

/** Signed token, ledger row on disk. */
async function jwtAll(ca: CertificateAuthority): Promise<void> {
  for (let at = 0; at < REQUESTS; at += TOKENS_IN_FLIGHT) {
    const outcomes = await Promise.all(
      Array.from({ length: TOKENS_IN_FLIGHT }, () =>
        ca.issueJwtSvid({ spiffeId: workload, audience: ['db'], node, requester: node }),
      ),
    );
    for (const outcome of outcomes) if (!outcome.ok) throw new Error(`not issued: ${outcome.error}`);
  }
}

async function measureOpenssl(): Promise<Speed> {
  const { stdout } = await promisify(execFile)('openssl', ['speed', '-mr', '-seconds', '1', 'ecdsap256']);
  const line = stdout.split('\n').find((text) => text.startsWith('+F4:'));
  // +F4:INDEX:BITS:SIGNATURES PER SECOND:VERIFICATIONS PER SECOND
  const [, , , signs, verifies] = line?.split(':').map(Number) ?? [];
  if (!signs || !verifies) throw new Error('openssl speed ecdsap256 printed no figures');
  return { signs, verifies };
}
