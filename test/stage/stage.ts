/**
 * A whole small deployment as in production: one identity server, an agent for each node, workloads with veths of their
 * own, all real processes. The demonstration, the end-to-end tests and the first-connect benchmark stand on it.
 */
import type { ChildProcess } from 'node:child_process';
import { copyFileSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { exited, inNetns, type Output, run, sh, start, until } from './shell.ts';
import { buildTopology, clearStage, netnsOf, type TopologySpec, type WorkloadSpec } from './topology.ts';

const root = join(import.meta.dirname, '../..');
/** As it is installed. */
const COUNTERSIGN = join(root, 'bin/countersign');
const NODE = process.execPath;

export interface StageSpec extends TopologySpec {
  /** Everything the stage writes is below it. */
  readonly dir: string;
  /** How long a process may take to be ready. Default 20 s. */
  readonly patienceMs?: number;
  /** Writes server.yaml, entries.yaml, agent-<node>.yaml and policies/ into the directory. */
  readonly configure: (dir: string) => void;
  /** Environment of the agents, besides the stage's own. */
  readonly agentEnv?: NodeJS.ProcessEnv;
}

export class Stage {
  readonly spec: StageSpec;
  readonly dir: string;
  readonly env: NodeJS.ProcessEnv;
  readonly #processes = new Map<string, ChildProcess>();
  #leaving = false;

  constructor(spec: StageSpec) {
    this.spec = spec;
    this.dir = spec.dir;
    // The marker by which a later run finds what a killed one left.
    this.env = { COUNTERSIGN_STAGE: spec.prefix };
  }

  static clear(spec: { prefix: string; dir: string }): Promise<{ processes: number; namespaces: number }> {
    return clearStage(spec.prefix, spec.dir);
  }

  /** Namespaces, configuration, server, agents. Says each step to `progress`. `built`: the namespaces stand, nothing runs yet. */
  async up(progress: (what: string) => void, built: () => void = () => {}): Promise<void> {
    await Stage.clear(this.spec);
    mkdirSync(join(this.dir, 'bpf'), { recursive: true, mode: 0o755 });
    mkdirSync(join(this.dir, 'logs'), { mode: 0o700 });
    mkdirSync(join(this.dir, 'captures'), { mode: 0o700 });
    mkdirSync(join(this.dir, 'workloads'), { mode: 0o755 });
    sh('mount', ['-t', 'bpf', 'bpf', join(this.dir, 'bpf')]);
    this.spec.configure(this.dir);
    progress('network namespaces');
    buildTopology(this.spec);
    built();
    progress('identity server');
    await this.startServer();
    for (const node of this.spec.nodes) {
      progress(`agent of ${node.name}`);
      const reply = await this.cli('token', 'create', '--node', node.name, '--socket', this.serverSocket, '-o', 'json');
      writeFileSync(join(this.dir, `${node.name}.token`), `${(reply as { token: string }).token}\n`, { mode: 0o600 });
      await this.startAgent(node.name);
    }
    progress('agents see each other');
    await until('the agents to be ready', 20_000, async () => {
      const states = await Promise.all(this.spec.nodes.map((node) => this.status(node.name)));
      return states.every((s) => s?.nodes === this.spec.nodes.length) ? true : undefined;
    });
  }

  async down(): Promise<void> {
    this.#leaving = true;
    await Stage.clear(this.spec);
  }

  get #patienceMs(): number {
    return this.spec.patienceMs ?? 20_000;
  }

  get serverSocket(): string {
    return join(this.dir, 'server/admin.sock');
  }

  agentSocket(node: string): string {
    return join(this.dir, node, 'admin.sock');
  }

  workloadSocket(node: string): string {
    return join(this.dir, `${node}-workload.sock`);
  }

  netns(name: string): string {
    return netnsOf(this.spec, name);
  }

  workload(name: string): WorkloadSpec {
    const found = this.spec.workloads.find((w) => w.name === name);
    if (found === undefined) throw new Error(`no workload ${name}`);
    return found;
  }

  log(name: string): string {
    return join(this.dir, 'logs', `${name}.log`);
  }

  async startServer(): Promise<void> {
    this.spawn(
      'server',
      inNetns(this.netns('server'), COUNTERSIGN, 'server', 'run', '--config', join(this.dir, 'server.yaml')),
    );
    await this.#ready('server', this.serverSocket);
  }

  async startAgent(node: string): Promise<void> {
    const config = join(this.dir, `agent-${node}.yaml`);
    this.spawn(node, inNetns(this.netns(node), COUNTERSIGN, 'agent', 'run', '--config', config), this.spec.agentEnv);
    await this.#ready(node, this.agentSocket(node));
    await until(`the agent of ${node} to be synchronised`, this.#patienceMs, async () =>
      (await this.status(node))?.ready === true ? true : undefined,
    );
  }

  async stop(name: string, signal: NodeJS.Signals = 'SIGTERM'): Promise<void> {
    const child = this.#processes.get(name);
    if (child === undefined) return;
    child.kill(signal);
    await exited(child);
    this.#processes.delete(name);
  }

  pid(name: string): number {
    const pid = this.#processes.get(name)?.pid;
    if (pid === undefined) throw new Error(`${name} does not run`);
    return pid;
  }

  spawn(name: string, argv: readonly string[], env: NodeJS.ProcessEnv = {}): ChildProcess {
    if (this.#leaving) throw new Error('the stage is being taken away');
    const child = start(argv, this.log(name), { ...env, ...this.env });
    this.#processes.set(name, child);
    return child;
  }

  async #ready(name: string, socket: string): Promise<void> {
    await until(`${name} to listen on its admin socket`, this.#patienceMs, () => {
      const child = this.#processes.get(name)!;
      if (child.exitCode !== null || child.signalCode !== null) {
        throw new Error(`${name} ended with ${child.exitCode ?? child.signalCode}:\n${this.tail(name)}`);
      }
      return existsSync(socket) ? true : undefined;
    });
  }

  tail(name: string, lines = 20): string {
    return existsSync(this.log(name)) ? readFileSync(this.log(name), 'utf8').split('\n').slice(-lines).join('\n') : '';
  }

  /** The CLI's JSON answer. @throws Error with its stderr */
  async cli(...args: string[]): Promise<unknown> {
    const output = await this.cliRaw(...args);
    if (output.status !== 0 && output.status !== 1)
      throw new Error(`countersign ${args.join(' ')}: exit ${output.status}: ${output.stderr.trim()}`);
    return output.stdout.trim() === '' ? undefined : JSON.parse(output.stdout);
  }

  cliRaw(...args: string[]): Promise<Output> {
    return run(COUNTERSIGN, args, { timeoutMs: 60_000 });
  }

  agentCli(node: string, ...args: string[]): Promise<unknown> {
    return this.cli(...args, '--socket', this.agentSocket(node), '-o', 'json');
  }

  async status(node: string): Promise<AgentStatus | undefined> {
    const output = await this.cliRaw('status', '--socket', this.agentSocket(node), '-o', 'json');
    return output.status === 0 ? (JSON.parse(output.stdout) as AgentStatus) : undefined;
  }

  /** A TypeScript program of the stage, inside a workload's namespace, that drops to the workload's uid by itself. */
  spawnIn(workload: string, name: string, program: string, ...args: string[]): ChildProcess {
    return this.spawn(
      name,
      inNetns(this.netns(workload), NODE, join(import.meta.dirname, 'programs', program), ...args),
    );
  }

  runIn(workload: string, command: string, ...args: string[]): Promise<Output> {
    const argv = inNetns(this.netns(workload), command, ...args);
    return run(argv[0]!, argv.slice(1), { timeoutMs: 30_000 });
  }

  /** All events of a node's (or the server's) audit log so far. */
  audit(name: string): AuditLine[] {
    const dir = join(this.dir, name, 'audit');
    return readdirSync(dir)
      .filter((file) => file.endsWith('.jsonl') || file.endsWith('.log'))
      .sort()
      .flatMap((file) => readFileSync(join(dir, file), 'utf8').split('\n'))
      .filter((line) => line.startsWith('{') && line.endsWith('}'))
      .map((line) => JSON.parse(line) as AuditLine);
  }
}

export interface AgentStatus {
  readonly ready: boolean;
  readonly nodes: number;
  readonly [key: string]: unknown;
}

export interface AuditLine {
  readonly kind: string;
  readonly time: string;
  readonly reason?: string;
  readonly source?: { spiffeId?: string; address?: string };
  readonly destination?: { spiffeId?: string; address?: string };
  readonly detail?: Record<string, string | number | boolean>;
}

/** Copies files of deploy/examples as they are: what the documentation shows is what runs. */
export function copyExamples(dir: string): void {
  const examples = join(root, 'deploy/examples');
  copyFileSync(join(examples, 'server.yaml'), join(dir, 'server.yaml'));
  copyFileSync(join(examples, 'entries.yaml'), join(dir, 'entries.yaml'));
  for (const node of ['a', 'b'])
    copyFileSync(join(examples, `agent-${node}.yaml`), join(dir, `agent-node-${node}.yaml`));
  rmSync(join(dir, 'policies'), { recursive: true, force: true });
  mkdirSync(join(dir, 'policies'));
  for (const file of readdirSync(join(examples, 'policies'))) {
    copyFileSync(join(examples, 'policies', file), join(dir, 'policies', file));
  }
}
