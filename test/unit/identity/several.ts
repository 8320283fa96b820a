/** Real etcd and real server processes on loopback: what is needed to kill, pause and cut them off. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { delimiter, join } from 'node:path';
import { credentials, Metadata } from '@grpc/grpc-js';
import { stringify } from 'yaml';
import {
  type CreateJoinTokenReply,
  type RevokeSvidReply,
  RevokeSvidRequest,
  ServerAdminClient,
} from '../../../proto/gen/countersign/admin/v1/admin.ts';
import { connectServer, type ServerClient, type ServerClientOptions } from '../../../src/agent/server-client/client.ts';
import type { NodeName } from '../../../src/model/ids.ts';
import { decodePem } from '../../../src/pki/pem.ts';
import { quiet, TestClock, TRUST_DOMAIN } from './harness.ts';

const root = join(import.meta.dirname, '../../..');

/** @throws if there is none: these tests are not to be passed over in silence */
function etcdBinary(): string {
  const places = [...(process.env.PATH ?? '').split(delimiter), join(root, '.cache/etcd/usr/bin')];
  const found = places.map((place) => join(place, 'etcd')).find((path) => existsSync(path));
  if (found === undefined) throw new Error('no etcd on the PATH nor in .cache/etcd: run ./dev test, which unpacks it');
  return found;
}

export async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as { port: number };
  server.close();
  await once(server, 'close');
  return port;
}

/** Polls until `probe` gives something. */
export async function eventually<T>(
  what: string,
  probe: () => Promise<T | undefined | false> | T | undefined | false,
  ms = 40_000,
): Promise<T> {
  const deadline = performance.now() + ms;
  let last: unknown;
  for (;;) {
    try {
      const value = await probe();
      if (value !== undefined && value !== false) return value;
    } catch (thrown) {
      last = thrown;
    }
    if (performance.now() > deadline) throw new Error(`waited in vain for ${what}`, { cause: last });
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

async function ended(child: ChildProcess): Promise<void> {
  if (child.exitCode === null && child.signalCode === null) await once(child, 'exit');
}

export class Etcd {
  readonly #dir: string;
  #child: ChildProcess | undefined;
  readonly #port: number;
  readonly #peerPort: number;

  private constructor(dir: string, port: number, peerPort: number) {
    this.#dir = dir;
    this.#port = port;
    this.#peerPort = peerPort;
  }

  static async start(dir: string): Promise<Etcd> {
    const etcd = new Etcd(dir, await freePort(), await freePort());
    await etcd.up();
    return etcd;
  }

  get endpoint(): string {
    return `http://127.0.0.1:${this.#port}`;
  }

  async up(): Promise<void> {
    const peer = `http://127.0.0.1:${this.#peerPort}`;
    const settings = {
      'data-dir': join(this.#dir, 'etcd'),
      'listen-client-urls': this.endpoint,
      'advertise-client-urls': this.endpoint,
      'listen-peer-urls': peer,
      'initial-advertise-peer-urls': peer,
      'initial-cluster': `default=${peer}`,
      // a lease of one second is granted only where an election is quick
      'heartbeat-interval': '50',
      'election-timeout': '500',
      'log-level': 'error',
    };
    const args = Object.entries(settings).map(([name, value]) => `--${name}=${value}`);
    this.#child = spawn(etcdBinary(), args, { stdio: 'ignore' });
    await eventually('etcd', async () => (await fetch(`${this.endpoint}/health`)).ok);
  }

  /** All that is in it. */
  async wipe(): Promise<void> {
    const all = Buffer.of(0).toString('base64');
    const body = JSON.stringify({ key: all, range_end: all });
    await fetch(`${this.endpoint}/v3/kv/deleterange`, { method: 'POST', body });
  }

  async down(): Promise<void> {
    if (this.#child === undefined) return;
    this.#child.kill('SIGKILL');
    await ended(this.#child);
    this.#child = undefined;
  }
}

type Unary<Q, R> = (
  request: Q,
  metadata: Metadata,
  options: { deadline: number },
  done: (error: Error | null, reply: R) => void,
) => unknown;

/** One server process. */
export class Server {
  readonly name: string;
  readonly dir: string;
  readonly port: number;
  readonly #config: object;
  #child: ChildProcess | undefined;
  #admin: ServerAdminClient | undefined;
  logged = '';

  constructor(dir: string, name: string, port: number, etcd: Etcd, settings: object) {
    this.name = name;
    this.dir = join(dir, name);
    this.port = port;
    mkdirSync(this.dir);
    this.#config = {
      apiVersion: 'countersign.dev/v1alpha1',
      kind: 'ServerConfig',
      trustDomain: TRUST_DOMAIN,
      dataDir: join(this.dir, 'data'),
      listen: { address: '127.0.0.1', port },
      adminSocket: join(this.dir, 'admin.sock'),
      nodes: ['a', 'b', 'c', 'd', 'e', 'f'].map((letter) => ({ name: `node-${letter}` })),
      ca: { keys: { type: 'disk', passphraseFile: join(dir, 'passphrase') } },
      datastore: { type: 'etcd', endpoints: [etcd.endpoint], leaseSeconds: 2 },
      audit: { dir: join(this.dir, 'audit') },
      // tests ask again and again for one node; see node-share.test.ts
      limits: { svidsPerNode: 1_000_000 },
      logLevel: 'info',
      ...settings,
    };
    writeFileSync(join(this.dir, 'server.yaml'), stringify(this.#config));
  }

  get address(): string {
    return `127.0.0.1:${this.port}`;
  }

  up(): void {
    const child = spawn(
      process.execPath,
      ['src/cli/main.ts', 'server', 'run', '--config', join(this.dir, 'server.yaml')],
      {
        cwd: root,
        stdio: ['ignore', 'ignore', 'pipe'],
      },
    );
    child.stderr.on('data', (data: Buffer) => {
      this.logged += data.toString();
    });
    this.#child = child;
  }

  async signal(name: NodeJS.Signals): Promise<void> {
    const child = this.#child!;
    child.kill(name);
    if (name !== 'SIGKILL' && name !== 'SIGTERM') return;
    await ended(child);
    this.#admin?.close();
    this.#admin = undefined;
    this.#child = undefined;
  }

  get isUp(): boolean {
    return this.#child !== undefined;
  }

  get admin(): ServerAdminClient {
    this.#admin ??= new ServerAdminClient(`unix:${join(this.dir, 'admin.sock')}`, credentials.createInsecure(), {
      'grpc.initial_reconnect_backoff_ms': 50,
      'grpc.max_reconnect_backoff_ms': 100,
    });
    return this.#admin;
  }

  /** A unary call that gives up after 8 s. */
  ask<Q, R>(method: Unary<Q, R>, request: Q): Promise<R> {
    return new Promise((resolve, reject) => {
      const options = { deadline: Date.now() + 8_000 };
      method.call(this.admin, request, new Metadata(), options, (error, reply) =>
        error ? reject(error) : resolve(reply),
      );
    });
  }

  async status(): Promise<Record<string, unknown>> {
    return JSON.parse((await this.ask(this.admin.getStatus, {})).json) as Record<string, unknown>;
  }

  async list<T>(what: 'listSvids' | 'listNodes', name: string): Promise<T[]> {
    const { json } = await this.ask(this.admin[what], {});
    return (JSON.parse(json) as Record<string, T[]>)[name]!;
  }

  token(nodeName: string): Promise<CreateJoinTokenReply> {
    return this.ask(this.admin.createJoinToken, { nodeName, ttlSeconds: 60 });
  }

  putEntry(entry: object): Promise<unknown> {
    return this.ask(this.admin.putEntry, { json: JSON.stringify(entry), mode: '' });
  }

  revoke(what: NonNullable<RevokeSvidRequest['what']>): Promise<RevokeSvidReply> {
    return this.ask(this.admin.revokeSvid, RevokeSvidRequest.create({ what, reason: 'test', waitMs: 0 }));
  }
}

/** Two servers on one etcd, and clients of both. */
export class Several {
  readonly dir = mkdtempSync(join(tmpdir(), 'cs-several-'));
  readonly clients: ServerClient[] = [];
  etcd!: Etcd;
  servers: Server[] = [];

  static async start(settings: object = {}): Promise<Several> {
    const several = new Several();
    several.etcd = await Etcd.start(several.dir);
    writeFileSync(join(several.dir, 'passphrase'), 'correct horse battery staple\n', { mode: 0o600 });
    for (const name of ['one', 'two']) {
      several.servers.push(new Server(several.dir, name, await freePort(), several.etcd, settings));
    }
    for (const server of several.servers) server.up();
    await several.leader();
    return several;
  }

  /** The one that serves. @param not another than this one */
  leader(not?: Server): Promise<Server> {
    return eventually('a leader', async () => {
      for (const server of this.servers) {
        if (!server.isUp || server === not) continue;
        const status = await server.status().catch(() => undefined);
        if (status?.role === 'serving') return server;
      }
      return undefined;
    });
  }

  other(server: Server): Server {
    return this.servers.find((one) => one !== server)!;
  }

  bundle(server: Server): Buffer[] {
    return decodePem(readFileSync(join(server.dir, 'data/bundle.pem'), 'utf8'), 'CERTIFICATE');
  }

  async client(nodeName: string, from: Server, options: Partial<ServerClientOptions> = {}): Promise<ServerClient> {
    const { token } = await from.token(nodeName);
    const client = await connectServer({
      addresses: this.servers.map(({ address }) => address),
      trustDomain: TRUST_DOMAIN,
      bundle: this.bundle(from),
      nodeName: nodeName as NodeName,
      stateDir: join(this.dir, `state-${nodeName}`),
      peerAddresses: ['127.0.0.1:4250'],
      joinToken: async () => token,
      clock: new TestClock(),
      log: quiet,
      audit: { emit: () => {} },
      ...options,
    });
    client.onChange(async () => {});
    this.clients.push(client);
    return client;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const client of this.clients) await client.close();
    for (const server of this.servers) if (server.isUp) await server.signal('SIGKILL');
    await this.etcd?.down();
    rmSync(this.dir, { recursive: true, force: true });
  }
}
