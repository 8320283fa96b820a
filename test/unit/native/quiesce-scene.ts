/** For quiesce.test.ts, on a CPU of its own: while a program runs for some tenths of a second on another, what has ended when? */
import { stat } from 'node:fs/promises';
import { Worker } from 'node:worker_threads';
import { native } from '../../../native/index.ts';

const object = native().loadObject({ path: process.argv[2]! });
const map = object.maps.t_hash!.fd;
const word = (n: number) => Buffer.from([n, 0, 0, 0]);
const [BEGUN, ENDED, OTHER] = [word(1), word(2), word(3)];
const seen = (key: Buffer) => native().mapLookup(map, key) !== undefined;

const worker = new Worker(
  `const { execFileSync } = require('node:child_process');
   const [, thread] = require('node:fs').readlinkSync('/proc/thread-self').split('/task/');
   execFileSync('taskset', ['-p', '-c', '1', thread]);
   import(${JSON.stringify(new URL('../../../native/index.ts', import.meta.url).href)}).then(({ native }) =>
     native().progTestRun(${object.programs.linger!}, { packet: Buffer.alloc(64), mark: 30 }));`,
  { eval: true },
);
const exit = new Promise((resolve, reject) => worker.once('exit', resolve).once('error', reject));
while (!seen(BEGUN)) await new Promise((resolve) => setTimeout(resolve, 1));

const atTheCall = seen(ENDED);
const waited = native().quiesce();
native().mapUpdate(map, OTHER, Buffer.alloc(8));
const afterAnotherWrite = seen(ENDED);
await stat('/');
const afterWorkOfAnotherThread = seen(ENDED);
await waited;
const afterQuiesce = seen(ENDED);
await exit;
process.stdout.write(
  JSON.stringify({ hadEnded: { atTheCall, afterAnotherWrite, afterWorkOfAnotherThread, afterQuiesce } }),
);
