/** Runs schedules in a thread of its own: seeds in, outcomes and transitions out. */
import { parentPort, workerData } from 'node:worker_threads';
import { simulateCrypto, simulateTimers } from './globals.ts';
import type { Mutant } from './mutants.ts';

export interface Task {
  readonly first: number;
  readonly count: number;
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
if (mutant?.change !== undefined) {
  const { breakSource } = await import('./globals.ts');
  breakSource(mutant.change);
}
const { Material } = await import('./material.ts');
const { planOf } = await import('./plan.ts');
const { runSchedule } = await import('./schedule.ts');
const material = await Material.create();

parentPort!.on('message', (task: Task) => {
  void work(task).then((report) => parentPort!.postMessage(report));
});
parentPort!.postMessage('ready');

async function work({ first, count }: Task): Promise<Report> {
  const found: Found[] = [];
  const taken = new Map<string, number>();
  let events = 0;
  let ran = 0;
  for (let seed = first; seed < first + count; seed++) {
    const plan = planOf(seed);
    const outcome = await runSchedule(plan, material, {
      recording: false,
      faults: mutant?.faults ?? {},
      ...(mutant?.settings === undefined ? {} : { settings: mutant.settings }),
    });
    ran += 1;
    events += outcome.events;
    for (const [transition, times] of outcome.taken) taken.set(transition, (taken.get(transition) ?? 0) + times);
    const { violation } = outcome;
    if (violation === undefined) continue;
    found.push({ seed, profile: plan.profile, ...violation });
    if (until?.includes(violation.property) === true) break;
  }
  return { first, ran, events, found, taken: [...taken] };
}
