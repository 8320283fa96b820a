/** An identity server and one node's agent as real processes in network namespaces, and clients that others wrote beside them. */
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { chmodSync, chownSync, copyFileSync, existsSync, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { promisify } from 'node:util';
import { stringify } from 'yaml';
import { type Output, run } from '../stage/shell.ts';
import { Stage, type StageSpec } from '../stage/stage.ts';

const root = join(import.meta.dirname, '../..');
export const built = join(root, 'build/interop');
const NODE = 'node-a';

export const TRUST_DOMAIN = 'example.org';
/** Whose bundle `db` may see, and `web` may not. */
export const PARTNER = 'partner.example';
/** Two workloads on the node, one whose SVIDs live for a minute, and a user that no entry names. */
export const UID = { web: 20_001, db: 20_002, brief: 20_003, nobody: 20_009 } as const;

const spec = (settings: Record<string, unknown>): StageSpec => ({
  prefix: 'cs-interop',
  dir: '/run/countersign-interop',
  server: '10.77.0.10',
  nodes: [
    { name: NODE, underlay4: '10.77.0.1', underlay6: 'fd77::1', prefix4: '10.77.1.0/24', prefix6: 'fd77:1::/64' },
  ],
  workloads: [],
  configure: (dir) => configure(dir, settings),
});

function configure(dir: string, settings: Record<string, unknown>): void {
  const apiVersion = 'countersign.dev/v1alpha1';
  const write = (name: string, document: object) =>
    writeFileSync(join(dir, name), stringify({ apiVersion, ...document }));
  write('server.yaml', {
    kind: 'ServerConfig',
    trustDomain: TRUST_DOMAIN,
    dataDir: join(dir, 'server'),
    listen: { address: '10.77.0.10', port: 8443 },
    adminSocket: join(dir, 'server/admin.sock'),
    entriesFile: join(dir, 'entries.yaml'),
    nodes: [{ name: NODE, prefixes: ['10.77.1.0/24', 'fd77:1::/64'] }],
    audit: { dir: join(dir, 'server/audit') },
    ...settings,
  });
  write(`agent-${NODE}.yaml`, {
    kind: 'AgentConfig',
    trustDomain: TRUST_DOMAIN,
    node: { name: NODE, underlay: 'under0' },
    server: {
      address: '10.77.0.10:8443',
      bundleFile: join(dir, 'server/bundle.pem'),
      joinTokenFile: join(dir, `${NODE}.token`),
    },
    dataDir: join(dir, NODE),
    bpffs: join(dir, 'bpf'),
    peer: { listen: ['10.77.0.1:4250'] },
    sockets: { admin: join(dir, NODE, 'admin.sock'), workload: join(dir, `${NODE}-workload.sock`) },
    policies: { directory: join(dir, 'policies') },
    // one node and no packets: nothing is tunnelled
    encryption: { enabled: false },
    authentication: { allowUnboundPath: true },
  });
  mkdirSync(join(dir, 'policies'));
  write('entries.yaml', {
    kind: 'RegistrationEntries',
    entries: (['web', 'db', 'brief'] as const).map((name) => ({
      id: name,
      spiffeId: `spiffe://${TRUST_DOMAIN}/${name}`,
      node: NODE,
      selectors: [`unix:uid:${UID[name]}`],
      hint: name,
      labels: { app: name },
      ...(name === 'db' ? { federatesWith: [PARTNER] } : {}),
      ...(name === 'brief' ? { ttlSeconds: 60 } : {}),
    })),
  });
}

/** Builds the clients as their lock files pin them; each is a no-op when it is there. Needs their registries the first time. */
export async function buildClients(): Promise<void> {
  const exec = promisify(execFile);
  mkdirSync(built, { recursive: true });
  await exec('go', ['build', '-o', join(built, 'interop'), '.'], {
    cwd: join(root, 'test/interop/go'),
    env: { ...process.env, GOTOOLCHAIN: 'local', GOFLAGS: '-mod=readonly -buildvcs=false', CGO_ENABLED: '0' },
  });
  const venv = join(built, 'venv');
  if (!existsSync(join(venv, 'bin/pip'))) await exec(pythonProgram(), ['-m', 'venv', venv]);
  const requirements = join(root, 'test/interop/python/requirements.txt');
  await exec(join(venv, 'bin/pip'), [
    'install',
    '--quiet',
    '--require-hashes',
    '--only-binary',
    ':all:',
    '-r',
    requirements,
  ]);
}

const pythonProgram = (): string => (existsSync('/usr/bin/python3') ? '/usr/bin/python3' : 'python3');

export class Cluster {
  readonly stage: Stage;
  readonly #clients: Client[] = [];

  static async up(progress: (what: string) => void, settings: Record<string, unknown> = {}): Promise<Cluster> {
    progress('building the clients');
    await buildClients();
    const cluster = new Cluster(settings);
    await cluster.stage.up(progress);
    // where every user may read it, wherever the checkout lies
    const program = join(cluster.stage.dir, 'interop');
    copyFileSync(join(built, 'interop'), program);
    chmodSync(program, 0o755);
    return cluster;
  }

  private constructor(settings: Record<string, unknown>) {
    this.stage = new Stage(spec(settings));
  }

  async down(): Promise<void> {
    for (const client of this.#clients) client.kill();
    await this.stage.down();
  }

  get socket(): string {
    return this.stage.workloadSocket(NODE);
  }

  /** The Go program as a workload of this user. */
  go(uid: number, ...args: string[]): Client {
    return this.#start(join(this.stage.dir, 'interop'), ['-socket', `unix://${this.socket}`, ...args], uid);
  }

  /** The Python program; it gives up root by itself. */
  python(uid: number, ...args: string[]): Client {
    const script = join(root, 'test/interop/python/workload.py');
    return this.#start(join(built, 'venv/bin/python'), [script, String(uid), `unix://${this.socket}`, ...args]);
  }

  /** …that gives up soon, where it is to be refused. */
  goRefused(uid: number, ...args: string[]): Client {
    return this.go(uid, '-patience', '2s', ...args);
  }

  #start(program: string, args: readonly string[], uid?: number): Client {
    const client = new Client(program, args, uid, this.stage.env);
    this.#clients.push(client);
    return client;
  }

  server(...args: string[]): Promise<unknown> {
    return this.stage.cli(...args, '--socket', this.stage.serverSocket, '-o', 'json');
  }

  /** `countersign svid fetch --write` as a workload of this user. @throws Error with what it said */
  async fetchFiles(uid: number, directory: string): Promise<void> {
    const output = await this.cliAs(uid, 'svid', 'fetch', '--socket', this.socket, '--write', directory);
    if (output.status !== 0) throw new Error(output.stderr);
  }

  /** A directory for files of this user. */
  directoryOf(uid: number, name: string): string {
    const directory = join(this.stage.dir, name);
    mkdirSync(directory);
    chownSync(directory, uid, uid);
    return directory;
  }

  /** The CLI as a workload of this user. */
  cliAs(uid: number, ...args: string[]): Promise<Output> {
    const [program, ...rest] = asUser(uid, ...args);
    return run(program!, rest);
  }

  /** A CLI command that prints JSON lines. */
  watchAs(uid: number, ...args: string[]): Client {
    const [program, ...rest] = asUser(uid, ...args);
    return this.#start(program!, rest);
  }
}

function asUser(uid: number, ...args: string[]): string[] {
  // the interpreter and the sources may lie where only root reads: a capability stays, the uid that the kernel reports goes
  const dropped = [`--reuid=${uid}`, `--regid=${uid}`, '--clear-groups'];
  const kept = ['--inh-caps=+dac_override', '--ambient-caps=+dac_override'];
  return ['setpriv', ...dropped, ...kept, join(root, 'bin/countersign'), ...args];
}

/** A running client that prints JSON lines. */
export class Client {
  readonly #child: ChildProcess;
  readonly #lines: AsyncIterator<string>;
  readonly #exited: Promise<number | null>;
  stderr = '';

  constructor(program: string, args: readonly string[], uid: number | undefined, env: NodeJS.ProcessEnv) {
    this.#child = spawn(program, args, {
      cwd: '/',
      env: { ...process.env, ...env },
      stdio: ['pipe', 'pipe', 'pipe'],
      ...(uid === undefined ? {} : { uid, gid: uid }),
    });
    this.#child.stderr!.on('data', (chunk: Buffer) => {
      this.stderr += chunk.toString();
    });
    this.#lines = createInterface({ input: this.#child.stdout! })[Symbol.asyncIterator]();
    this.#exited = new Promise((resolve) => this.#child.once('exit', resolve));
  }

  /** Its next line. @throws Error with its stderr when it ended */
  // biome-ignore lint/suspicious/noExplicitAny: what the programs print is what the tests compare
  async next(): Promise<any> {
    const line = await this.#lines.next();
    if (line.done) throw new Error(`the client ended with ${await this.#exited}: ${this.stderr}`);
    return JSON.parse(line.value);
  }

  /** The first line from here on of which it holds: what is pushed for another reason is passed over. @throws as next */
  // biome-ignore lint/suspicious/noExplicitAny: as next
  async until(holds: (said: any) => boolean): Promise<any> {
    for (;;) {
      const said = await this.next();
      if (holds(said)) return said;
    }
  }

  /** Lets it end, and gives its last line. */
  async end(): Promise<unknown> {
    this.#child.stdin!.end();
    let last: string | undefined;
    for (let line = await this.#lines.next(); !line.done; line = await this.#lines.next()) last = line.value;
    await this.#exited;
    return last === undefined ? undefined : JSON.parse(last);
  }

  kill(): void {
    this.#child.kill('SIGKILL');
  }
}
