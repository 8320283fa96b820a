/** One run of the checker: spin writes it in C, gcc compiles it, it searches the whole state space with exact storage. */
import { spawn } from 'node:child_process';
import { copyFileSync, existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Row } from './rows.ts';

export interface Checked {
  readonly states: number;
  readonly seconds: number;
  readonly megabytes: number;
  readonly errors: number;
  /** False: the search ended early, so that nothing is proved. */
  readonly exhausted: boolean;
  /** Which property broke, and the steps to it, as the model prints them. */
  readonly broken: string | undefined;
  readonly steps: readonly string[];
}

interface Ended {
  readonly code: number | null;
  readonly out: string;
}

/** Megabytes that one search may take. */
const MEMORY_MB = 6_000;

export function run(command: string, args: readonly string[], cwd: string, timeoutMs: number): Promise<Ended> {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, { cwd, stdio: ['ignore', 'pipe', 'pipe'] });
    const timer = setTimeout(() => child.kill('SIGKILL'), timeoutMs);
    let out = '';
    child.stdout.on('data', (chunk: Buffer) => (out += chunk.toString()));
    child.stderr.on('data', (chunk: Buffer) => (out += chunk.toString()));
    child.once('error', reject);
    child.once('close', (code) => {
      clearTimeout(timer);
      resolve({ code, out });
    });
  });
}

/** @throws Error when spin or gcc refuse the model. */
export async function check(row: Row, timeoutMs: number): Promise<Checked> {
  return inScratch(async (dir) => {
    const model = `${row.model}.pml`;
    const flags = [...row.size, ...row.without.map((rule) => `NO_${rule}`)].map((flag) => `-D${flag}`);
    const isLive = row.model === 'liveness';
    const mustHold = row.breaks === undefined;
    if (!mustHold) unhide(join(dir, model));
    await must('spin', [...flags, '-a', model], dir);
    // COLLAPSE keeps every state whole, in parts; without partial order reduction what is counted is every state. Breadth first
    // gives the shortest way to what breaks.
    const storage = isLive ? ['-DNFAIR=3'] : ['-DSAFETY', '-DNOFAIR', mustHold ? '-DCOLLAPSE' : '-DBFS'];
    const args = [
      mustHold ? '-O2' : '-O1',
      '-w',
      ...storage,
      '-DNOREDUCE',
      `-DMEMLIM=${MEMORY_MB}`,
      '-o',
      'pan',
      'pan.c',
    ];
    await must('gcc', args, dir);
    const search = [...(isLive ? ['-a', '-f', '-N', 'good'] : ['-E']), '-m1000000', mustHold ? '-w24' : '-w18'];
    const started = performance.now();
    const { code, out } = await run('./pan', search, dir, timeoutMs);
    const seconds = (performance.now() - started) / 1000;
    const errors = Number(/errors: (\d+)/.exec(out)?.[1] ?? Number.NaN);
    const states = Number(/^\s*([0-9.e+]+) states, stored/m.exec(out)?.[1] ?? 0);
    const megabytes = Number(/^\s*([0-9.]+)\s+total actual memory usage/m.exec(out)?.[1] ?? 0);
    const exhausted =
      code === 0 && !/Search not completed|max search depth too small|out of memory|truncated/i.test(out);
    const trail = existsSync(join(dir, `${model}.trail`))
      ? await run('spin', [...flags, '-t', model], dir, 20_000)
      : undefined;
    const lines = (trail?.out ?? '').split('\n').map((line) => line.trim());
    return {
      states,
      seconds,
      megabytes,
      errors,
      exhausted,
      broken:
        lines.map((line) => /^(P\d): /.exec(line)?.[1]).find((p) => p !== undefined) ??
        (isLive && errors > 0 ? 'liveness' : undefined),
      steps: lines.filter((line) => line.startsWith('EV ') || /^P\d: /.test(line)),
    };
  });
}

/** A random run of the model with these flags: what it prints. */
export async function simulate(
  model: Row['model'],
  flags: readonly string[],
  seed: number,
  steps: number,
): Promise<string[]> {
  return inScratch(async (dir) => {
    const args = [...flags.map((flag) => `-D${flag}`), `-n${seed}`, `-u${steps}`, `${model}.pml`];
    const { out } = await run('spin', args, dir, 30_000);
    return out
      .split('\n')
      .map((line) => line.trim())
      .filter((line) => line.startsWith('EV '));
  });
}

async function inScratch<T>(work: (dir: string) => Promise<T>): Promise<T> {
  const dir = mkdtempSync(join(tmpdir(), 'countersign-model-'));
  try {
    for (const model of ['lease', 'flight', 'move', 'renew', 'channel', 'liveness']) {
      copyFileSync(join(import.meta.dirname, `${model}.pml`), join(dir, `${model}.pml`));
    }
    return await work(dir);
  } finally {
    rmSync(dir, { recursive: true, force: true });
  }
}

/** Breadth-first search wants every variable in the state. */
function unhide(path: string): void {
  writeFileSync(path, readFileSync(path, 'utf8').replaceAll(/^hidden /gm, ''));
}

async function must(command: string, args: readonly string[], cwd: string): Promise<void> {
  const { code, out } = await run(command, args, cwd, 120_000);
  if (code !== 0) throw new Error(`${command} ${args.join(' ')}: ${out}`);
}
