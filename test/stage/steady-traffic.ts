/** A steady stream of datagrams to backend while somebody does mischief, counted at both ends. */
import { readFileSync } from 'node:fs';
import { BACKEND_UDP_PORT } from './demo-spec.ts';
import { until } from './shell.ts';
import type { Stage } from './stage.ts';

export interface Counted {
  readonly sent: number;
  readonly lost: number;
  /** Datagrams the receiver got that the sender does not send. */
  readonly foreign: number;
  /** Numbers of the lost ones, as ranges; for a failure's message. */
  readonly gaps: string;
}

export interface SteadyTraffic {
  /** Ends it and counts. */
  stop(): Promise<Counted>;
  /** Ends its processes, whatever they counted. */
  abandon(): Promise<void>;
}

let runs = 0;

/** Resolves when the first datagram has been sent. */
export async function startSteadyTraffic(stage: Stage, from: string, perSecond: number): Promise<SteadyTraffic> {
  const run = ++runs;
  const [sink, source] = [`steady-sink-${run}`, `steady-${from}-${run}`];
  const target = stage.workload('backend').address4;
  const said = (name: string, word: string) =>
    until(`${name} to say "${word}"`, 10_000, () => (stage.tail(name).includes(word) ? true : undefined));
  stage.spawnIn('backend', sink, 'udp-counter.ts', String(BACKEND_UDP_PORT));
  await said(sink, 'listening');
  const args = [String(stage.workload(from).uid), target, String(BACKEND_UDP_PORT), String(perSecond)];
  stage.spawnIn(from, source, 'udp-sender.ts', ...args);
  await said(source, 'sending');
  const abandon = async () => {
    await stage.stop(source);
    await stage.stop(sink);
  };
  return {
    abandon,
    async stop() {
      await abandon();
      const { sent } = figures(stage, source) as { sent: number };
      const counted = figures(stage, sink) as { distinct: number; foreign: number; gaps: unknown };
      const { distinct, foreign, gaps } = counted;
      return { sent, lost: sent - distinct, foreign, gaps: JSON.stringify(gaps) };
    },
  };
}

function figures(stage: Stage, name: string): unknown {
  const line = readFileSync(stage.log(name), 'utf8')
    .split('\n')
    .findLast((l) => l.startsWith('{'));
  if (line === undefined) throw new Error(`${name} printed no figures: ${stage.tail(name)}`);
  return JSON.parse(line);
}
