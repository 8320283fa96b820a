/** A real identity server and a node's Workload API before it, for workloads of this user; SVIDs are real, so that others can read them. */
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { WorkloadSvids } from '../../../src/agent/server-client/svids.ts';
import { startWorkloadApi, type WorkloadApi } from '../../../src/workload/workload-api.ts';
import { quiet, TestServer } from '../identity/harness.ts';

const CLI = join(import.meta.dirname, '../../../src/cli/main.ts');

export interface Ended {
  readonly status: number;
  readonly stdout: string;
  readonly stderr: string;
}

export class SvidStage {
  readonly directory = mkdtempSync(join(tmpdir(), 'cs-svid-'));
  readonly socket = join(this.directory, 'workload.sock');
  readonly out = join(this.directory, 'out');
  readonly #server: TestServer;
  readonly #svids: WorkloadSvids;
  #api: WorkloadApi | undefined;
  readonly #watches: Watch[] = [];

  static async open(settings: Record<string, unknown> = {}): Promise<SvidStage> {
    const selectors = [`unix:uid:${process.getuid!()}`];
    const entries = ['web', 'web-admin'].map((name) => ({
      id: name,
      spiffeId: `spiffe://example.org/${name}`,
      node: 'node-a',
      selectors,
    }));
    const server = await TestServer.start(settings, entries);
    const client = await server.joined('node-a');
    const audit = { emit: () => {} };
    const stage = new SvidStage(server, new WorkloadSvids({ client, clock: server.clock, log: quiet, audit }));
    await stage.agentUp();
    return stage;
  }

  private constructor(server: TestServer, svids: WorkloadSvids) {
    this.#server = server;
    this.#svids = svids;
  }

  async agentUp(): Promise<void> {
    this.#api = await startWorkloadApi({
      socketPath: this.socket,
      feed: this.#svids,
      audit: { emit: () => {} },
      clock: this.#server.clock,
      log: quiet,
    });
  }

  async agentDown(): Promise<void> {
    await this.#api?.close();
    this.#api = undefined;
  }

  /** The node asks for another at once. */
  async takeBack(serial: string): Promise<void> {
    await this.#server.revoke({ $case: 'serial', value: serial });
  }

  cli(...args: string[]): Promise<Ended> {
    const argv = [CLI, 'svid', ...args];
    return new Promise((resolve) => {
      execFile(process.execPath, argv, { env: this.#env() }, (error, stdout, stderr) => {
        resolve({ status: error === null ? 0 : Number(error.code), stdout, stderr });
      });
    });
  }

  watch(...args: string[]): Watch {
    const watch = new Watch([CLI, 'svid', 'watch', '--write', this.out, '-o', 'json', ...args], this.#env());
    this.#watches.push(watch);
    return watch;
  }

  #env(): NodeJS.ProcessEnv {
    return { ...process.env, SPIFFE_ENDPOINT_SOCKET: `unix://${this.socket}` };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.#watches.map((watch) => watch.end('SIGKILL')));
    await this.agentDown();
    this.#svids.close();
    await this.#server[Symbol.asyncDispose]();
    rmSync(this.directory, { recursive: true, force: true });
  }
}

/** A running `svid watch`. */
export class Watch {
  readonly #child: ChildProcess;
  readonly #lines: AsyncIterator<string>;
  readonly #exited: Promise<number | null>;
  stderr = '';

  constructor(argv: readonly string[], env: NodeJS.ProcessEnv) {
    this.#child = spawn(process.execPath, argv, { env, stdio: ['ignore', 'pipe', 'pipe'] });
    this.#lines = createInterface({ input: this.#child.stdout! })[Symbol.asyncIterator]();
    this.#child.stderr!.on('data', (chunk: Buffer) => {
      this.stderr += chunk.toString();
    });
    this.#exited = new Promise((resolve) => this.#child.once('exit', resolve));
  }

  /** Its next line. @throws with what it said last, if it ended */
  async next(): Promise<Record<string, string>> {
    const line = await this.#lines.next();
    if (line.done) throw new Error(`svid watch ended: ${this.stderr}`);
    return JSON.parse(line.value);
  }

  async end(signal: NodeJS.Signals): Promise<number | null> {
    this.#child.kill(signal);
    return await this.#exited;
  }
}
