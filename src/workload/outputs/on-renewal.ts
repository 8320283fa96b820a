/**
 * What is told after each renewal: a process, by a signal, or a command that runs to its end. Neither is given a secret: they
 * know the directory and read it.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';

export interface RenewalHooks {
  /** Program and arguments, run without a shell. */
  readonly command?: readonly string[];
  readonly commandTimeoutMs: number;
  readonly pidFile?: string;
  readonly signal: NodeJS.Signals;
}

export interface RenewalRunner {
  /** A command that still runs is waited for, and then run once more however often this was called. */
  renewed(): void;
  /** A command that still runs is ended. */
  close(): void;
}

const MAX_PID = 2 ** 22;

export function renewalRunner(
  { command, commandTimeoutMs, pidFile, signal }: RenewalHooks,
  environment: Readonly<Record<string, string>>,
  report: (problem: string) => void,
): RenewalRunner {
  let running: ChildProcess | undefined;
  let again = false;
  let over = false;

  const run = ([program, ...args]: readonly string[]): void => {
    const child = spawn(program!, args, {
      stdio: ['ignore', 'inherit', 'inherit'],
      env: { ...process.env, ...environment },
      timeout: commandTimeoutMs,
      killSignal: 'SIGKILL',
    });
    running = child;
    let ended = false;
    const end = (problem?: string) => {
      if (ended) return;
      ended = true;
      running = undefined;
      if (problem !== undefined && !over) report(problem);
      if (again && !over) {
        again = false;
        run([program!, ...args]);
      }
    };
    child.once('error', (error) => end(`${program} cannot be run: ${(error as NodeJS.ErrnoException).code}`));
    child.once('exit', (code, by) => {
      if (code === 0) end();
      else if (child.killed) end(`${program} was ended after ${commandTimeoutMs} ms`);
      else end(`${program} ended with ${code ?? by}`);
    });
  };
  return {
    renewed() {
      if (over) return;
      if (pidFile !== undefined) {
        const problem = signalPid(pidFile, signal);
        if (problem !== undefined) report(problem);
      }
      if (command === undefined) return;
      if (running === undefined) run(command);
      else again = true;
    },
    close() {
      over = true;
      running?.kill('SIGTERM');
    },
  };
}

function signalPid(pidFile: string, signal: NodeJS.Signals): string | undefined {
  let text: string;
  try {
    text = readFileSync(pidFile, 'utf8').trim();
  } catch (thrown) {
    return `${pidFile} cannot be read (${(thrown as NodeJS.ErrnoException).code}); nobody was told`;
  }
  const pid = Number(text);
  // 0, 1 and negative numbers would mean a group, the first process, or all of them
  if (!/^\d{1,7}$/.test(text) || pid < 2 || pid > MAX_PID) return `${pidFile} holds no process id; nobody was told`;
  try {
    process.kill(pid, signal);
    return undefined;
  } catch (thrown) {
    const { code } = thrown as NodeJS.ErrnoException;
    return `process ${pid} of ${pidFile} could not be sent ${signal} (${code})`;
  }
}
