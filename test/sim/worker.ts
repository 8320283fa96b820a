/** Runs schedules in a thread of its own: seeds in, outcomes and transitions out. */
import { hash } from 'node:crypto';
import { parentPort, workerData } from 'node:worker_threads';
import { accept, type TraceEvent } from '../model/trace.ts';
import { simulateCrypto, simulateTimers } from './globals.ts';
import type { Mutant } from './mutants.ts';
import type { Plan } from './plan.ts';

export interface Task {
  readonly first: number;
  readonly count: number;
  /** Keep each schedule's events, and have the model's monitor read them. */
  readonly record: boolean;
}

/** What was recorded of one schedule. */
export interface Recorded {
  readonly seed: number;
  /** SHA-256 of all its events. */
  readonly digest: string;
  /** Events in the model's words. */
  readonly events: number;
  /** Why the model's monitor refuses them. */
  readonly refusal: string | undefined;
}

export interface Found {
  readonly seed: number;
  readonly profile: string;
  readonly property: string;
  readonly atMs: number;
  readonly what: string;
}

export interface Report {
  readonly first: number;
  readonly ran: number;
  readonly events: number;
  readonly found: readonly Found[];
  readonly taken: readonly (readonly [string, number])[];
  readonly recorded: readonly Recorded[];
}

export interface WorkerData {
  readonly mutant: string | undefined;
  /** Stop at the first of these properties; left out: go on. */
  readonly until?: readonly string[];
}

const { mutant: name, until } = workerData as WorkerData;
simulateTimers();
simulateCrypto();
const { MUTANTS } = await import('./mutants.ts');
const mutant: Mutant | undefined = MUTANTS.find((one) => one.name === name);
if (name !== undefined && mutant === undefined) throw new Error(`no mutant ${name}`);
if (mutant?.changes !== undefined) {
  const { breakSource } = await import('./globals.ts');
  breakSource(mutant.changes);
}
const { Material } = await import('./material.ts');
const { planOf } = await import('./plan.ts');
const { runSchedule } = await import('./schedule.ts');
const material = await Material.create();

parentPort!.on('message', (task: Task) => {
  void work(task).then((report) => parentPort!.postMessage(report));
});
parentPort!.postMessage('ready');

async function work({ first, count, record }: Task): Promise<Report> {
  const recorded: Recorded[] = [];
  const found: Found[] = [];
  const taken = new Map<string, number>();
  let events = 0;
  let ran = 0;
  for (let seed = first; seed < first + count; seed++) {
    const plan = planOf(seed);
    const outcome = await runSchedule(plan, material, {
      recording: record,
      faults: mutant?.faults ?? {},
      ...(mutant?.settings === undefined ? {} : { settings: mutant.settings }),
    });
    if (record) recorded.push(judge(plan, outcome.log));
    ran += 1;
    events += outcome.events;
    for (const [transition, times] of outcome.taken) taken.set(transition, (taken.get(transition) ?? 0) + times);
    const { violation } = outcome;
    if (violation === undefined) continue;
    found.push({ seed, profile: plan.profile, ...violation });
    if (until?.includes(violation.property) === true) break;
  }
  return { first, ran, events, found, taken: [...taken], recorded };
}

/** A snapshot that is restored brings an earlier incarnation back, which the monitor takes for a fault of the trace. */
function judge({ seed, steps, settings: { drainMs } }: Plan, log: readonly string[]): Recorded {
  const digest = hash('sha256', log.join('\n'));
  const trace = log.filter((line) => line.includes('"ev":'));
  const isReadable = !steps.some(({ op }) => op.kind === 'restore');
  const verdict = isReadable
    ? accept(trace.map(inMicroseconds), { drainMs: drainMs * 1000, tunnels: true })
    : ({ ok: true } as const);
  const refusal = verdict.ok ? undefined : `${verdict.rule}: ${verdict.why} (${trace[verdict.line]})`;
  return { seed, digest, events: isReadable ? trace.length : 0, refusal };
}

/** Whole numbers, so that sums are exact: the monitor only compares and adds. */
function inMicroseconds(line: string): TraceEvent {
  const event = JSON.parse(line) as { ev: string; node: string; [field: string]: unknown };
  for (const field of ['t', 'leaseEnd', 'leaseMs'])
    if (typeof event[field] === 'number') event[field] = Math.round(event[field] * 1000);
  return event;
}
