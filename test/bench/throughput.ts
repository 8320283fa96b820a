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

const IPERF = { rounds: 15, seconds: 1 };
const REQUESTS = { rounds: 61, seconds: 0.25 };
/** Both ends of a round trip on one core: where the scheduler puts them makes more difference than all else. */
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
} as const;
type Variant = keyof typeof pairs;

const median = (values: readonly number[]): number => [...values].sort((a, b) => a - b)[values.length >> 1]!;

function compile(dir: string): string {
  const binary = join(dir, 'tcp-rr');
  execFileSync('gcc', ['-O2', '-o', binary, join(import.meta.dirname, 'programs/tcp-rr.c')]);
  return binary;
}

interface IperfReport {
  readonly end: { readonly sum_received: { readonly bits_per_second: number } };
}

/** Each variant once per round; the ratio is programs to none. */
function rounds(count: number, measure: (variant: Variant) => number, progress: (line: string) => void) {
  const seen: Record<Variant, number[]> = { programs: [], none: [] };
  for (let round = 0; round < count; round++) {
    const order: Variant[] = round % 2 === 0 ? ['programs', 'none'] : ['none', 'programs'];
    for (const variant of order) seen[variant].push(measure(variant));
    progress(`  round ${round + 1} of ${count}: ${(seen.programs.at(-1)! / seen.none.at(-1)!).toFixed(3)}`);
  }
  return {
    programs: median(seen.programs),
    none: median(seen.none),
    ratio: median(seen.programs.map((value, i) => value / seen.none[i]!)),
  };
}

async function measureAll(lab: Lab, rr: string, emit: (r: BenchResult) => void, progress: (s: string) => void) {
  await lab.open();
  await lab.policy(POLICY);
  const before = await lab.drops();
  for (const [, server] of Object.values(pairs)) {
    lab.spawn(server, 'iperf3', '-s', '-p', String(IPERF_PORT));
    lab.spawn(server, ...ONE_CORE, rr, 'listen', String(RR_PORT));
    await until(`the servers of ${server}`, 10_000, () => {
      const sockets = lab.spaces.exec(server, 'ss -ltn');
      return sockets.includes(`:${IPERF_PORT} `) && sockets.includes(`:${RR_PORT} `) ? true : undefined;
    });
  }
  const iperf = (variant: Variant): number => {
    const [client, server] = pairs[variant];
    const command = `iperf3 -J -c ${lab.address4(server)} -p ${IPERF_PORT} -t ${IPERF.seconds}`;
    const report = JSON.parse(lab.spaces.exec(client, command)) as IperfReport;
    return report.end.sum_received.bits_per_second / 1e9;
  };
  const trips = (variant: Variant): number => {
    const [client, server] = pairs[variant];
    const output = lab.spaces.exec(
      client,
      `${ONE_CORE.join(' ')} ${rr} ask ${lab.address4(server)} ${RR_PORT} ${REQUESTS.seconds}`,
    );
    const [count, seconds] = output.trim().split(' ').map(Number) as [number, number];
    return count / seconds;
  };
  for (const [name, unit, digits, measure, effort] of [
    ['throughput.tcp', 'Gbit/s', 2, iperf, IPERF],
    ['throughput.requests', 'round trips/s', 0, trips, REQUESTS],
  ] as const) {
    progress(`${name}: ${effort.rounds} rounds of ${effort.seconds} s each`);
    const { programs, none, ratio } = rounds(effort.rounds, measure, progress);
    emit({
      name,
      value: Number(programs.toFixed(digits)),
      unit,
      rival: { name: 'no program', value: Number(none.toFixed(digits)) },
      ratio: Number(ratio.toFixed(3)),
      target: `at least ${LIMIT} of no program`,
      ok: ratio >= LIMIT,
    });
  }
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
