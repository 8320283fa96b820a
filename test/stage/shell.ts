/** Running the system's tools: bounded in time (longer on a slow machine), with what they printed in the error. */
import { type ChildProcess, execFile, type SpawnOptions, spawn, spawnSync } from 'node:child_process';
import { openSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import { SLOW } from '../support/slow.ts';

/** @throws Error with stderr when the exit status is not 0 */
export function sh(command: string, args: readonly string[], options: { timeoutMs?: number } = {}): string {
  const result = spawnSync(command, args, { encoding: 'utf8', timeout: (options.timeoutMs ?? 20_000) * SLOW });
  if (result.error) throw new Error(`${command} ${args.join(' ')}: ${result.error.message}`);
  if (result.status !== 0)
    throw new Error(`${command} ${args.join(' ')}: exit ${result.status}: ${result.stderr.trim()}`);
  return result.stdout;
}

export interface Output {
  readonly status: number;
  readonly stdout: string;
  readonly stderr: string;
}

export function run(command: string, args: readonly string[], options: { timeoutMs?: number } = {}): Promise<Output> {
  return new Promise((resolve) => {
    execFile(
      command,
      args,
      { timeout: (options.timeoutMs ?? 20_000) * SLOW, maxBuffer: 64 << 20 },
      (error, stdout, stderr) => {
        const status = error === null ? 0 : typeof error.code === 'number' ? error.code : 124;
        resolve({ status, stdout, stderr });
      },
    );
  });
}

/** Arguments that run a command inside a network namespace. Not `ip netns exec`: it remounts /sys and hides bpffs pins. */
export function inNetns(netns: string, command: string, ...args: string[]): string[] {
  return ['nsenter', `--net=/run/netns/${netns}`, '--', command, ...args];
}

export function start(
  argv: readonly string[],
  log: string,
  env: NodeJS.ProcessEnv = {},
  options: SpawnOptions = {},
): ChildProcess {
  const out = openSync(log, 'a', 0o600);
  return spawn(argv[0]!, argv.slice(1), { stdio: ['ignore', out, out], env: { ...process.env, ...env }, ...options });
}

/** Polls a condition until it gives a value. @throws Error naming what was awaited */
export async function until<T>(
  what: string,
  timeoutMs: number,
  probe: () => T | undefined | Promise<T | undefined>,
): Promise<T> {
  const deadline = performance.now() + timeoutMs * SLOW;
  for (;;) {
    const value = await probe();
    if (value !== undefined && value !== false) return value;
    if (performance.now() > deadline) throw new Error(`not within ${timeoutMs * SLOW} ms: ${what}`);
    await delay(10);
  }
}

export function exited(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return Promise.resolve();
  return new Promise((resolve) => child.once('exit', () => resolve()));
}
