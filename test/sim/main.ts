/**
 * The tier: random schedules in all cores with the transitions they took, recordings, and the rules whose absence is found.
 *
 *     node test/sim/main.ts                              all of it
 *     node test/sim/main.ts --schedules N [--from SEED]  so many schedules alone; so --recordings
 *     node test/sim/main.ts --mutants [--mutant NAME]    rules taken away, or one of them
 *     node test/sim/main.ts --seed N [--trace] [--mutant NAME]  one schedule again, with its plan and, if wanted, every event
 */
import { hash } from 'node:crypto';
import { availableParallelism } from 'node:os';
import { parseArgs } from 'node:util';
import { Worker } from 'node:worker_threads';
import { MUTANTS } from './mutants.ts';
import { judgeTransitions } from './transitions.ts';
import type { Found, Recorded, Report, Task, WorkerData } from './worker.ts';

const SCHEDULES = 100_000;
const BATCH = 100;
/** Schedules whose events the model's monitor reads. */
const RECORDED = 1_000;
/** Of these, the first are run again. */
const REPEATED = 100;

const { values } = parseArgs({
  options: {
    seed: { type: 'string' },
    trace: { type: 'boolean', default: false },
    mutant: { type: 'string' },
    mutants: { type: 'boolean', default: false },
    recordings: { type: 'boolean', default: false },
    schedules: { type: 'string' },
    from: { type: 'string', default: '1' },
    workers: { type: 'string' },
  },
});
const workers = values.workers === undefined ? Math.max(1, availableParallelism()) : Number(values.workers);

interface Sum {
  ran: number;
  events: number;
  readonly found: Found[];
  readonly taken: Map<string, number>;
  readonly recorded: Recorded[];
}

/** Seeds from `from` on, in all workers; ends early when `isEnough`. */
async function runAll(
  data: WorkerData & { readonly record?: boolean },
  from: number,
  count: number,
  isEnough: (sum: Sum) => boolean = () => false,
  largestBatch = BATCH,
): Promise<Sum> {
  const sum: Sum = { ran: 0, events: 0, found: [], taken: new Map(), recorded: [] };
  let next = from;
  const batch = Math.min(largestBatch, Math.ceil(count / workers));
  const endAt = from + count;
  const one = () =>
    new Promise<void>((resolve, reject) => {
      const worker = new Worker(new URL('./worker.ts', import.meta.url), { workerData: data });
      const end = () => void worker.terminate().then(() => resolve());
      worker.on('error', reject);
      worker.on('message', (message: Report | 'ready') => {
        if (message !== 'ready') {
          sum.ran += message.ran;
          sum.events += message.events;
          sum.found.push(...message.found);
          sum.recorded.push(...message.recorded);
          for (const [name, times] of message.taken) sum.taken.set(name, (sum.taken.get(name) ?? 0) + times);
        }
        if (next >= endAt || isEnough(sum)) return end();
        const task: Task = { first: next, count: Math.min(batch, endAt - next), record: data.record === true };
        next += task.count;
        worker.postMessage(task);
      });
    });
  await Promise.all(Array.from({ length: Math.min(workers, Math.ceil(count / batch)) }, one));
  sum.found.sort((a, b) => a.seed - b.seed);
  return sum;
}

function tell({ seed, profile, property, atMs, what }: Found): string {
  return `seed ${seed} (${profile}): ${property} at ${atMs.toFixed(3)} ms: ${what}`;
}

async function all(): Promise<boolean> {
  const began = performance.now();
  const count = Number(values.schedules ?? SCHEDULES);
  const sum = await runAll({ mutant: values.mutant }, Number(values.from), count, ({ found }) => found.length >= 20);
  const seconds = ((performance.now() - began) / 1000).toFixed(0);
  for (const found of sum.found) console.log(`not ok - ${tell(found)}`);
  const first = sum.found[0];
  if (first !== undefined) {
    console.log(`# again, with its schedule: node test/sim/main.ts --seed ${first.seed} --trace`);
    await one(first.seed, false);
  }
  const { user, system } = process.cpuUsage();
  const rate = (sum.ran * 1e6) / (user + system);
  console.log(
    `# ${sum.ran} schedules, ${sum.events} events, ${seconds} s, ${workers} workers, ${rate.toFixed(0)} schedules in each second of processor time`,
  );
  if (sum.found.length === 0) console.log(`ok - ${sum.ran} schedules: the property and liveness hold`);
  const transitions = judgeTransitions(sum.taken);
  for (const line of transitions.lines) console.log(line);
  return sum.found.length === 0 && transitions.ok;
}

/** The same seed gives the same events, whoever runs it and after what; and the model's monitor accepts what the product says of itself. */
async function recordings(): Promise<boolean> {
  const [once, again] = [
    await runAll({ mutant: undefined, record: true }, 1, RECORDED),
    await runAll({ mutant: undefined, record: true }, 1 - REPEATED, 2 * REPEATED),
  ];
  const digests = new Map(once.recorded.map(({ seed, digest }) => [seed, digest]));
  const repeated = again.recorded.filter(({ seed }) => seed >= 1);
  const different = repeated.filter(({ seed, digest }) => digests.get(seed) !== digest);
  for (const { seed } of different) console.log(`not ok - seed ${seed} does not give the same events twice`);
  if (different.length === 0) console.log(`ok - ${repeated.length} schedules give the same events twice`);
  const refused = once.recorded.filter(({ refusal }) => refusal !== undefined);
  for (const { seed, refusal } of refused.slice(0, 10))
    console.log(`not ok - the model refuses seed ${seed}: ${refusal}`);
  const events = once.recorded.reduce((sum, one) => sum + one.events, 0);
  if (refused.length === 0) console.log(`ok - the model accepts ${events} events of ${once.recorded.length} schedules`);
  return different.length + refused.length === 0;
}

async function mutants(): Promise<boolean> {
  let good = true;
  for (const mutant of MUTANTS.filter(({ name }) => values.mutant === undefined || values.mutant === name)) {
    const began = performance.now();
    const finds = mutant.finds ?? ['P1', 'P2'];
    const isFound = (found: readonly Found[]) => found.find((one) => finds.includes(one.property));
    const sum = await runAll(
      { mutant: mutant.name, until: finds },
      1,
      mutant.within,
      ({ found }) => isFound(found) !== undefined,
    );
    const found = isFound(sum.found);
    if (mutant.within === 0) console.log(`# without ${mutant.name}: ${mutant.what}`);
    const seconds = ((performance.now() - began) / 1000).toFixed(1);
    if (mutant.within > 0 && found === undefined) {
      good = false;
      console.log(`not ok - without ${mutant.name} (${mutant.what}) nothing is found in ${sum.ran} schedules`);
    } else if (found !== undefined)
      console.log(`ok - without ${mutant.name} (${mutant.what}): ${tell(found)} [${sum.ran} schedules, ${seconds} s]`);
    if (mutant.refusedWithin !== undefined) good = (await isRefused(mutant.name, mutant.refusedWithin)) && good;
  }
  return good;
}

/** What the code says of itself without the rule: does the model's monitor refuse it? */
async function isRefused(mutant: string, within: number): Promise<boolean> {
  const refusal = ({ recorded }: Sum) => recorded.find((one) => one.refusal !== undefined);
  const sum = await runAll({ mutant, record: true }, 1, within, (so) => refusal(so) !== undefined, 10);
  const refused = refusal(sum);
  if (refused === undefined) console.log(`not ok - without ${mutant} the model refuses none of ${sum.ran} schedules`);
  else console.log(`ok - without ${mutant} the model refuses seed ${refused.seed}: ${refused.refusal}`);
  return refused !== undefined;
}

/** One schedule in this very thread. */
async function one(seed: number, trace: boolean): Promise<boolean> {
  const { breakSource, simulateCrypto, simulateTimers } = await import('./globals.ts');
  const mutant = MUTANTS.find(({ name }) => name === values.mutant);
  simulateTimers();
  simulateCrypto();
  if (mutant?.changes !== undefined) breakSource(mutant.changes);
  const { Material } = await import('./material.ts');
  const { planOf } = await import('./plan.ts');
  const { runSchedule } = await import('./schedule.ts');
  const plan = planOf(seed);
  const { steps, required, denied, ...rest } = plan;
  const text = (pairs: typeof required) => pairs.map((pair) => pair.join('/')).join(' ');
  console.log(JSON.stringify({ ...rest, required: text(required), denied: text(denied) }));
  for (const { atMs, op } of steps) console.log(`# ${atMs.toFixed(3).padStart(11)} ms ${JSON.stringify(op)}`);
  const outcome = await runSchedule(plan, await Material.create(), {
    recording: true,
    faults: mutant?.faults ?? {},
    ...(mutant?.settings === undefined ? {} : { settings: mutant.settings }),
  });
  if (trace) for (const line of outcome.log) console.log(line);
  console.log(`# ${outcome.log.length} events, SHA-256 ${hash('sha256', outcome.log.join('\n'))}`);
  if (outcome.violation === undefined) console.log(`ok - seed ${seed}`);
  else console.log(`not ok - ${tell({ seed, profile: plan.profile, ...outcome.violation })}`);
  return outcome.violation === undefined;
}

async function tier(): Promise<boolean> {
  const parts = [all, recordings, mutants];
  let good = true;
  for (const part of parts) good = (await part()) && good;
  return good;
}

let run = tier;
if (values.seed !== undefined) run = () => one(Number(values.seed), values.trace);
else if (values.mutants) run = mutants;
else if (values.recordings) run = recordings;
else if (values.schedules !== undefined) run = all;
process.exitCode = (await run()) ? 0 : 1;
