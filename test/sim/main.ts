/**
 * `node test/sim/main.ts [--schedules N] [--from N] [--mutants]`: random schedules in all cores, the transitions they took, and the rules whose
 * absence they find. `--seed N [--trace] [--mutant NAME]`: one schedule again, with its plan and, if wanted, every event.
 */
import { availableParallelism } from 'node:os';
import { parseArgs } from 'node:util';
import { Worker } from 'node:worker_threads';
import { MUTANTS } from './mutants.ts';
import { judgeTransitions } from './transitions.ts';
import type { Found, Report, Task, WorkerData } from './worker.ts';

const SCHEDULES = 100_000;
const BATCH = 100;

const { values } = parseArgs({
  options: {
    seed: { type: 'string' },
    trace: { type: 'boolean', default: false },
    mutant: { type: 'string' },
    mutants: { type: 'boolean', default: false },
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
}

/** Seeds from `from` on, in all workers; ends early when `isEnough`. */
async function runAll(data: WorkerData, from: number, count: number, isEnough: (sum: Sum) => boolean): Promise<Sum> {
  const sum: Sum = { ran: 0, events: 0, found: [], taken: new Map() };
  let next = from;
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
          for (const [name, times] of message.taken) sum.taken.set(name, (sum.taken.get(name) ?? 0) + times);
        }
        if (next >= endAt || isEnough(sum)) return end();
        const task: Task = { first: next, count: Math.min(BATCH, endAt - next) };
        next += task.count;
        worker.postMessage(task);
      });
    });
  await Promise.all(Array.from({ length: Math.min(workers, Math.ceil(count / BATCH)) }, one));
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
  for (const found of sum.found) console.log(`not ok - ${tell(found)}`);
  const first = sum.found[0];
  if (first !== undefined) {
    console.log(`# again, with its schedule: node test/sim/main.ts --seed ${first.seed} --trace`);
    await one(first.seed, false);
  }
  const seconds = ((performance.now() - began) / 1000).toFixed(0);
  console.log(`# ${sum.ran} schedules, ${sum.events} events, ${seconds} s, ${workers} workers`);
  if (sum.found.length === 0) console.log(`ok - ${sum.ran} schedules: the property and liveness hold`);
  const transitions = judgeTransitions(sum.taken);
  for (const line of transitions.lines) console.log(line);
  return sum.found.length === 0 && transitions.ok;
}

async function mutants(): Promise<boolean> {
  let good = true;
  for (const mutant of MUTANTS) {
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
    const seconds = ((performance.now() - began) / 1000).toFixed(1);
    if (found === undefined) {
      good = false;
      console.log(`not ok - without ${mutant.name} (${mutant.what}) nothing is found in ${sum.ran} schedules`);
    } else
      console.log(`ok - without ${mutant.name} (${mutant.what}): ${tell(found)} [${sum.ran} schedules, ${seconds} s]`);
  }
  return good;
}

/** One schedule in this very thread. */
async function one(seed: number, trace: boolean): Promise<boolean> {
  const { breakSource, simulateCrypto, simulateTimers } = await import('./globals.ts');
  const mutant = MUTANTS.find(({ name }) => name === values.mutant);
  simulateTimers();
  simulateCrypto();
  if (mutant?.change !== undefined) breakSource(mutant.change);
  const { Material } = await import('./material.ts');
  const { planOf } = await import('./plan.ts');
  const { runSchedule } = await import('./schedule.ts');
  const plan = planOf(seed);
  const { steps, required, ...rest } = plan;
  console.log(JSON.stringify({ ...rest, required: required.map((pair) => pair.join('/')).join(' ') }));
  for (const { atMs, op } of steps) console.log(`# ${atMs.toFixed(3).padStart(11)} ms ${JSON.stringify(op)}`);
  const outcome = await runSchedule(plan, await Material.create(), {
    recording: trace,
    faults: mutant?.faults ?? {},
    ...(mutant?.settings === undefined ? {} : { settings: mutant.settings }),
  });
  for (const line of outcome.log) console.log(line);
  if (outcome.violation === undefined) console.log(`ok - seed ${seed}`);
  else console.log(`not ok - ${tell({ seed, profile: plan.profile, ...outcome.violation })}`);
  return outcome.violation === undefined;
}

const good =
  values.seed !== undefined
    ? await one(Number(values.seed), values.trace)
    : values.mutants
      ? await mutants()
      : await all();
process.exitCode = good ? 0 : 1;
