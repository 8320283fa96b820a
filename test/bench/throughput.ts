/**
 * What the programs cost real traffic: TCP bytes and round trips for each second between two workloads of one node, beside
 * the same between two veths that no program sees, in the same namespace. The two take turns, and who begins too; a
 * ratio is the median of the rounds' ratios, so that the machine's mood falls out.
 */
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Lab } from '../netns/support/lab.ts';
import { until } from '../stage/shell.ts';
import type { Bench, BenchResult } from './support.ts';

const IPERF = { rounds: 61, megabytes: 128 };
/** Short turns: what else the machine does lasts longer than one. A round trip takes some 20 µs. */
const REQUESTS = { rounds: 901, milliseconds: 10 };
/** Both ends on one core: where the scheduler puts them makes more difference than all else. */
const ONE_CORE = ['taskset', '-c', '1'];
const IPERF_PORT = 5201;
const RR_PORT = 5300;
const LIMIT = 0.95;
const POLICY = `apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: server}
spec:
  endpointSelector: {matchLabels: {app: server}}
  ingress:
    - fromEndpoints: [{matchLabels: {app: client}}]
      toPorts: [{ports: [{port: "${IPERF_PORT}", protocol: TCP}, {port: "${RR_PORT}", protocol: TCP}]}]
`;

const pairs = {
  programs: ['client', 'server'],
  none: ['bare-client', 'bare-server'],
  again: ['bare-client-2', 'bare-server-2'],
} as const;
type Variant = keyof typeof pairs;
const variants: readonly Variant[] = ['programs', 'none', 'again'];
type Series = Record<Variant, number[]>;

const median = (values: readonly number[]): number => [...values].sort((a, b) => a - b)[values.length >> 1]!;

function compile(dir: string): string {
  const binary = join(dir, 'tcp-rr');
  execFileSync('gcc', ['-O2', '-o', binary, join(import.meta.dirname, 'programs/tcp-rr.c')]);
  return binary;
}

interface IperfReport {
  readonly end: { readonly sum_received: { readonly bits_per_second: number } };
}

interface Measured {
  readonly name: string;
  readonly unit: string;
  readonly digits: number;
  readonly seen: Series;
}

/** One round after the other, every other one backwards. */
function iperfRounds(lab: Lab, progress: (line: string) => void): Series {
  const seen: Series = { programs: [], none: [], again: [] };
  for (let round = 0; round < IPERF.rounds; round++) {
    for (const variant of round % 2 === 0 ? variants : variants.toReversed()) {
      const [client, server] = pairs[variant];
      const command = `iperf3 -J -c ${lab.address4(server)} -p ${IPERF_PORT} -n ${IPERF.megabytes}M`;
      const report = JSON.parse(lab.spaces.exec(client, `${ONE_CORE.join(' ')} ${command}`)) as IperfReport;
      seen[variant].push(report.end.sum_received.bits_per_second / 1e9);
    }
    progress(`  round ${round + 1} of ${IPERF.rounds}: ${(seen.programs.at(-1)! / seen.none.at(-1)!).toFixed(3)}`);
  }
  return seen;
}

/** All in one process that goes from connection to connection. */
function requestRounds(lab: Lab, rr: string): Series {
  const ends = variants.flatMap((variant) => {
    const [client, server] = pairs[variant];
    return [`/run/netns/${lab.spaces.full(client)}`, lab.address4(server)];
  });
  const [command, ...args] = [...ONE_CORE, rr, 'turns', RR_PORT, REQUESTS.rounds, REQUESTS.milliseconds, ...ends];
  const rounds = execFileSync(String(command), args.map(String), { encoding: 'utf8' })
    .trim()
    .split('\n')
    .map((line) => line.split(' ').map(Number));
  if (rounds.length !== REQUESTS.rounds) throw new Error(`tcp-rr: ${rounds.length} rounds`);
  const column = (variant: Variant) => rounds.map((round) => round[variants.indexOf(variant)]!);
  return { programs: column('programs'), none: column('none'), again: column('again') };
}

function results({ name, unit, digits, seen }: Measured): BenchResult[] {
  const value = (variant: Variant) => Number(median(seen[variant]).toFixed(digits));
  const ratio = (variant: Variant) => median(seen[variant].map((rate, i) => rate / seen.none[i]!));
  const line = (variant: Variant) => ({
    value: value(variant),
    unit,
    rival: { name: 'no program', value: value('none') },
    ratio: Number(ratio(variant).toFixed(3)),
  });
  return [
    { name, ...line('programs'), target: `at least ${LIMIT} of no program`, ok: ratio('programs') >= LIMIT },
    { name: `${name}/no-program-again`, ...line('again'), target: '1, but for chance' },
  ];
}

async function measureAll(lab: Lab, rr: string, emit: (r: BenchResult) => void, progress: (s: string) => void) {
  await lab.open();
  await lab.policy(POLICY);
  const before = await lab.drops();
  for (const [, server] of Object.values(pairs)) {
    lab.spawn(server, ...ONE_CORE, 'iperf3', '-s', '-p', String(IPERF_PORT));
    lab.spawn(server, ...ONE_CORE, rr, 'listen', String(RR_PORT));
    await until(`the servers of ${server}`, 10_000, () => {
      const sockets = lab.spaces.exec(server, 'ss -ltn');
      return sockets.includes(`:${IPERF_PORT} `) && sockets.includes(`:${RR_PORT} `) ? true : undefined;
    });
  }
  progress(`throughput.tcp: ${IPERF.rounds} rounds of ${IPERF.megabytes} MB each`);
  const tcp = { name: 'throughput.tcp', unit: 'Gbit/s', digits: 2, seen: iperfRounds(lab, progress) };
  for (const result of results(tcp)) emit(result);
  progress(`throughput.requests: ${REQUESTS.rounds} rounds of ${REQUESTS.milliseconds} ms each`);
  const requests = { name: 'throughput.requests', unit: 'round trips/s', digits: 0, seen: requestRounds(lab, rr) };
  for (const result of results(requests)) emit(result);
  const drops = JSON.stringify(await lab.drops());
  if (drops !== JSON.stringify(before)) throw new Error(`packets were dropped meanwhile: ${drops}`);
}

export const bench: Bench = {
  name: 'throughput',
  async run(emit, progress): Promise<void> {
    if (process.getuid?.() !== 0) throw new Error('throughput needs root: it makes network namespaces');
    const dir = mkdtempSync(join(tmpdir(), 'countersign-throughput-'));
    const lab = new Lab('tp', {
      workloads: [
        { name: 'client', labels: { app: 'client' } },
        { name: 'server', labels: { app: 'server' } },
        { name: 'bare-client', labels: {}, enforced: false },
        { name: 'bare-server', labels: {}, enforced: false },
        { name: 'bare-client-2', labels: {}, enforced: false },
        { name: 'bare-server-2', labels: {}, enforced: false },
      ],
    });
    try {
      await measureAll(lab, compile(dir), emit, progress);
    } finally {
      lab.close();
      rmSync(dir, { recursive: true, force: true });
    }
  },
};
