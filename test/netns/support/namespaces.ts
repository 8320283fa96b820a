/** Network namespaces a test makes itself. Names begin with `cs-t-`; leftovers of a killed run are cleared at the start. */
import { type ChildProcess, execFileSync, spawn, spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, rmdirSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { SLOW } from '../../support/slow.ts';

export class Namespaces {
  readonly #prefix: string;
  readonly #children = new Set<ChildProcess>();

  /** @param name short; namespaces become cs-t-NAME-…, the bpffs /run/cs-t-NAME-bpf. */
  constructor(name: string) {
    this.#prefix = `cs-t-${name}`;
    this.clear();
  }

  get bpffs(): string {
    return `/run/${this.#prefix}-bpf`;
  }

  full(ns: string): string {
    return `${this.#prefix}-${ns}`;
  }

  /** Makes the namespace, with loopback up. */
  add(ns: string): void {
    run('ip', ['netns', 'add', this.full(ns)]);
    this.exec(ns, 'ip link set dev lo up');
  }

  mountBpffs(): void {
    mkdirSync(this.bpffs, { recursive: true, mode: 0o700 });
    run('mount', ['-t', 'bpf', 'bpf', this.bpffs]);
  }

  /** Runs a shell command inside. nsenter, not `ip netns exec`: that one hides bpffs. @throws Error with its stderr. */
  exec(ns: string, command: string): string {
    return run('nsenter', [`--net=/run/netns/${this.full(ns)}`, 'sh', '-ec', command]);
  }

  /** Whether a command succeeds inside. */
  succeeds(ns: string, command: string): boolean {
    return spawnSync('nsenter', [`--net=/run/netns/${this.full(ns)}`, 'sh', '-ec', command]).status === 0;
  }

  spawn(ns: string, command: readonly string[], ipc = false): ChildProcess {
    const child = spawn('nsenter', [`--net=/run/netns/${this.full(ns)}`, ...command], {
      stdio: ['ignore', 'pipe', 'pipe', ...(ipc ? (['ipc'] as const) : [])],
      serialization: 'advanced',
    });
    this.#children.add(child);
    child.once('exit', () => this.#children.delete(child));
    return child;
  }

  /** Ends this run's processes and takes everything away. */
  clear(): void {
    for (const child of this.#children) child.kill('SIGKILL');
    const existing = spawnSync('ip', ['netns', 'list']).stdout.toString();
    for (const [name] of existing.matchAll(new RegExp(`^${this.#prefix}-[^ \n]+`, 'gm'))) {
      for (const pid of spawnSync('ip', ['netns', 'pids', name]).stdout.toString().split('\n').filter(Boolean)) {
        killIfThere(Number(pid)); // whoever is in a namespace of this test was started by it
      }
      spawnSync('ip', ['netns', 'del', name]);
    }
    if (existsSync(this.bpffs)) {
      spawnSync('umount', [this.bpffs]);
      rmdirSync(this.bpffs);
    }
  }
}

/** A capture in a namespace: counts the packets a filter matches. */
export class Capture {
  readonly lines: string[] = [];
  readonly #child: ChildProcess;
  readonly ready: Promise<void>;

  constructor(namespaces: Namespaces, ns: string, device: string, filter: string) {
    this.#child = namespaces.spawn(ns, ['tcpdump', '--immediate-mode', '-ttlnni', device, filter]);
    createInterface({ input: this.#child.stdout! }).on('line', (line) => this.lines.push(line));
    const said = createInterface({ input: this.#child.stderr! });
    this.ready = new Promise((resolve, reject) => {
      said.on('line', (line) => {
        if (line.startsWith('listening on')) resolve();
      });
      this.#child.once('exit', () => reject(new Error(`tcpdump ended on ${device}`)));
    });
  }

  /** When each packet was seen, ms since the Unix epoch. */
  get timesMs(): number[] {
    return this.lines.map((line) => Number(line.slice(0, line.indexOf(' '))) * 1000);
  }

  async stop(): Promise<void> {
    const ended = new Promise((resolve) => this.#child.once('exit', resolve));
    this.#child.kill('SIGINT');
    await ended;
  }
}

function run(command: string, args: readonly string[]): string {
  try {
    return execFileSync(command, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'], timeout: 20_000 * SLOW });
  } catch (error) {
    const { stderr } = error as { stderr?: string };
    throw new Error(`${command} ${args.join(' ')}: ${stderr || (error as Error).message}`, { cause: error });
  }
}

function killIfThere(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error;
  }
}
