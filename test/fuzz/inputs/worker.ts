/** Tries inputs of one target, one seed after the other, and keeps the number of the one it is at where the watcher sees it. */
import { parentPort, workerData } from 'node:worker_threads';
import { targets } from './targets.ts';
import { tryInput } from './try.ts';

export interface WorkerJob {
  readonly target: string;
  readonly seed: number;
  readonly inputs: number;
  /** One Int32: inputs that are done. */
  readonly done: SharedArrayBuffer;
}

const { target: name, seed, inputs, done } = workerData as WorkerJob;
const progress = new Int32Array(done);
const target = targets.find((candidate) => candidate.name === name)!;

let accepted = 0;
let slowest = { ms: 0, seed: 0 };
for (let n = 0; n < inputs; n++) {
  const at = (seed + n) >>> 0;
  const tried = tryInput(target, at);
  if ('problem' in tried) {
    parentPort!.postMessage({ failure: tried });
    break;
  }
  if (tried.accepted) accepted++;
  if (tried.ms > slowest.ms) slowest = { ms: tried.ms, seed: at };
  Atomics.store(progress, 0, n + 1);
}
parentPort!.postMessage({ accepted, slowest });
