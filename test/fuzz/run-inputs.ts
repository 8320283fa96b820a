/** Damaged inputs to the parsers of what strangers send: so many to each, in a thread that is watched, as a parser that hangs cannot say so. */
import { Worker } from 'node:worker_threads';
import { targets } from './inputs/targets.ts';
import { type Failure, shown, tryInput } from './inputs/try.ts';
import type { WorkerJob } from './inputs/worker.ts';
import { Random } from './random.ts';

/** Without a single input done: it hangs. */
const HANG_MS = 20_000;
const LOOK_MS = 500;
const SAY_MS = 10_000;

interface Ended {
  readonly accepted: number;
  readonly slowest: { readonly ms: number; readonly seed: number };
}

/** True: of each of these targets, every input was taken or refused in time, and all properties held. */
export async function runInputs(names: readonly string[], inputs: number, seed: number): Promise<boolean> {
  for (const name of names) if (!(await runTarget(name, inputs, seed))) return false;
  return true;
}

/** One input again. */
export function repeatInput(name: string, seed: number): boolean {
  const target = targets.find((candidate) => candidate.name === name)!;
  console.log(`fuzz: ${name}: seed ${seed}: ${shown(target.make(new Random(seed)))}`);
  const tried = tryInput(target, seed);
  if ('problem' in tried) return say(tried);
  console.log(`fuzz: ${name}: ${tried.accepted ? 'accepted' : 'refused'} in ${tried.ms.toFixed(2)} ms`);
  return true;
}

async function runTarget(name: string, inputs: number, seed: number): Promise<boolean> {
  console.log(`fuzz: ${name}: seed ${seed}, ${inputs} inputs`);
  const started = performance.now();
  const done = new SharedArrayBuffer(4);
  const job: WorkerJob = { target: name, seed, inputs, done };
  const worker = new Worker(new URL('./inputs/worker.ts', import.meta.url), { workerData: job });
  let failure: Failure | undefined;
  const ended = await new Promise<Ended | undefined>((resolve) => {
    let [last, since, said] = [0, started, started];
    const watch = setInterval(() => {
      const now = performance.now();
      const at = Atomics.load(new Int32Array(done), 0);
      if (now - said > SAY_MS) {
        said = now;
        console.log(`fuzz: ${name}: ${at} inputs`);
      }
      if (at !== last) [last, since] = [at, now];
      else if (now - since > HANG_MS) {
        const target = targets.find((candidate) => candidate.name === name)!;
        const input = shown(target.make(new Random((seed + at) >>> 0)));
        failure = { target: name, seed: (seed + at) >>> 0, problem: `hangs: no end after ${HANG_MS} ms`, input };
        resolve(undefined);
      }
    }, LOOK_MS);
    worker.once('error', (error) => {
      failure = { target: name, seed, problem: `the thread ended: ${error.stack}`, input: 'unknown' };
      resolve(undefined);
    });
    worker.on('message', (message: { failure: Failure } | Ended) => {
      if ('failure' in message) failure = message.failure;
      else resolve(failure === undefined ? message : undefined);
    });
    worker.once('exit', () => clearInterval(watch));
  });
  await worker.terminate();
  if (failure !== undefined || ended === undefined) return say(failure!);
  const seconds = (performance.now() - started) / 1000;
  const { accepted, slowest } = ended;
  console.log(
    `fuzz: ${name}: ${inputs} in ${seconds.toFixed(1)} s, ${Math.round(inputs / seconds)} a second: ${accepted} accepted, the slowest ${slowest.ms.toFixed(1)} ms (seed ${slowest.seed})`,
  );
  return true;
}

function say({ target, seed, problem, input }: Failure): false {
  console.log(
    `fuzz: ${target}: FAILED with seed ${seed}: ${problem}\n${input}\nAgain: npm run fuzz -- ${target} --input ${seed}`,
  );
  return false;
}
