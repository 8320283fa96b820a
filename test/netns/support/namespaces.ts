/** Network namespaces a test makes itself. Names begin with `cs-t-`; leftovers of a killed run are cleared at the start. */
import { type ChildProcess, execFileSync, spawn, spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, rmdirSync, statSync } from 'node:fs';
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

  /** Many at once, in one process; loopback stays down. */
  addAll(names: readonly string[]): void {
    ipBatch(
      [],
      names.map((ns) => `netns add ${this.full(ns)}`),
    );
  }

  /** `ip` commands inside, in one process. @throws Error with its stderr */
  ip(ns: string, commands: readonly string[]): void {
    ipBatch(['nsenter', `--net=/run/netns/${this.full(ns)}`], commands);
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
    const existing = existsSync('/run/netns')
      ? readdirSync('/run/netns').filter((name) => name.startsWith(`${this.#prefix}-`))
      : [];
    for (const pid of processesIn(existing)) killIfThere(pid); // whoever is in a namespace of this test was started by it
    if (existing.length > 0) {
      ipBatch(
        [],
        existing.map((name) => `netns del ${name}`),
      );
    }
    if (existsSync(this.bpffs)) {
      spawnSync('umount', ['-l', this.bpffs]); // a process that was just killed may hold it for another moment
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

function ipBatch(prefix: readonly string[], commands: readonly string[]): void {
  const argv = [...prefix, 'ip', '-batch', '-'];
  try {
    const options = { input: `${commands.join('\n')}\n`, encoding: 'utf8', timeout: 120_000 * SLOW } as const;
    execFileSync(argv[0]!, argv.slice(1), { ...options, stdio: ['pipe', 'ignore', 'pipe'] });
  } catch (error) {
    const { stderr } = error as { stderr?: string };
    throw new Error(`${argv.join(' ')}: ${stderr || (error as Error).message}`, { cause: error });
  }
}

function processesIn(namespaces: readonly string[]): number[] {
  const inodes = new Set(namespaces.map((name) => statSync(`/run/netns/${name}`).ino));
  return readdirSync('/proc').flatMap((entry) => {
    const pid = Number(entry);
    if (!Number.isInteger(pid)) return [];
    try {
      return inodes.has(statSync(`/proc/${pid}/ns/net`).ino) ? [pid] : [];
    } catch {
      return []; // ended meanwhile
    }
  });
}

function killIfThere(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error;
  }
}
