/** A real identity server on a loopback port with its database, CA and audit log in a temporary directory. */
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { credentials, type ServiceError } from '@grpc/grpc-js';
import { pino } from 'pino';
import { stringify } from 'yaml';
import type { ServerConfig } from '../../../identity/config.ts';
import { serverConfigSchema } from '../../../identity/config.ts';
import { type IdentityServer, startServer } from '../../../identity/server.ts';
import {
  type CreateJoinTokenReply,
  type JsonReply,
  ListEntriesRequest,
  type RevokeSvidReply,
  RevokeSvidRequest,
  ServerAdminClient,
} from '../../../proto/gen/countersign/admin/v1/admin.ts';
import { connectServer, type ServerClient, type ServerClientOptions } from '../../../src/agent/server-client/client.ts';
import type { Clock } from '../../../src/base/clock.ts';
import { parseConfig } from '../../../src/base/config-file.ts';
import { createLogger, type Logger } from '../../../src/base/log.ts';
import type { AuditEvent } from '../../../src/model/audit-event.ts';
import type { NodeName, TrustDomain } from '../../../src/model/ids.ts';
import { decodePem } from '../../../src/pki/pem.ts';

export const TRUST_DOMAIN = 'example.org' as TrustDomain;
export const quiet = createLogger('test', 'silent');

/** The wall clock, which a test may move. */
export class TestClock implements Clock {
  offsetMs = 0;
  nowMs(): number {
    return Date.now() + this.offsetMs;
  }
  bootNs(): bigint {
    return process.hrtime.bigint() + BigInt(this.offsetMs) * 1_000_000n;
  }
}

export interface EntryYaml {
  id: string;
  spiffeId: string;
  node: string;
  selectors?: string[];
  admin?: boolean;
  labels?: Record<string, string>;
}

export const ENTRIES: EntryYaml[] = [
  { id: 'frontend', spiffeId: 'spiffe://example.org/frontend', node: 'node-a', labels: { app: 'frontend' } },
  { id: 'backend', spiffeId: 'spiffe://example.org/backend', node: 'node-b', labels: { app: 'backend' } },
];

/** Polls until `probe` gives something. @throws after 10 s */
export async function until<T>(what: string, probe: () => T | undefined | false): Promise<T> {
  const deadline = performance.now() + 10_000;
  for (;;) {
    const value = probe();
    if (value !== undefined && value !== false) return value;
    if (performance.now() > deadline) throw new Error(`waited in vain for ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

export class TestServer {
  readonly dir = mkdtempSync(join(tmpdir(), 'cs-identity-'));
  readonly clock = new TestClock();
  /** Everything the server logged, at the finest level. */
  readonly logged: string[] = [];
  readonly log: Logger = pino({ level: 'trace' }, { write: (line: string) => void this.logged.push(line) });
  readonly #closers: (() => unknown)[] = [];
  #server: IdentityServer | undefined;
  #admin: ServerAdminClient | undefined;
  #port = 0;
  overrides: Record<string, unknown> = {};

  static async start(overrides: Record<string, unknown> = {}, entries = ENTRIES): Promise<TestServer> {
    const server = new TestServer();
    server.overrides = overrides;
    server.writeEntries(entries);
    await server.up();
    return server;
  }

  config(): ServerConfig {
    const settings = {
      apiVersion: 'countersign.dev/v1alpha1',
      kind: 'ServerConfig',
      trustDomain: TRUST_DOMAIN,
      dataDir: join(this.dir, 'data'),
      listen: { address: '127.0.0.1', port: this.#port },
      adminSocket: join(this.dir, 'admin.sock'),
      entriesFile: join(this.dir, 'entries.yaml'),
      nodes: [
        { name: 'node-a', prefixes: ['10.77.1.0/24', 'fd77:1::/64'] },
        { name: 'node-b', prefixes: ['10.77.2.0/24'] },
      ],
      audit: { dir: join(this.dir, 'audit') },
      // tests ask again and again for one node; see node-share.test.ts
      limits: { svidsPerNode: 1_000_000 },
      ...this.overrides,
    };
    return parseConfig('server.yaml', stringify(settings), serverConfigSchema);
  }

  writeEntries(entries: EntryYaml[]): void {
    const document = {
      apiVersion: 'countersign.dev/v1alpha1',
      kind: 'RegistrationEntries',
      entries: entries.map((entry) => ({ selectors: ['unix:uid:1001'], ...entry })),
    };
    writeFileSync(join(this.dir, 'entries.yaml'), stringify(document));
  }

  async up(): Promise<void> {
    this.#server = await startServer(this.config(), this.clock, this.log);
    this.#port = this.#server.port;
  }

  /** Stops the server; `up` starts it again on the same port. */
  async down(): Promise<void> {
    this.#admin?.close();
    this.#admin = undefined;
    await this.#server?.close();
    this.#server = undefined;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const close of this.#closers.splice(0).reverse()) await close();
    await this.down();
    rmSync(this.dir, { recursive: true, force: true });
  }

  onClose(close: () => unknown): void {
    this.#closers.push(close);
  }

  get address(): string {
    return `127.0.0.1:${this.#port}`;
  }

  get port(): number {
    return this.#port;
  }

  get bundle(): Buffer[] {
    return decodePem(readFileSync(join(this.dir, 'data/bundle.pem'), 'utf8'), 'CERTIFICATE');
  }

  get admin(): ServerAdminClient {
    this.#admin ??= new ServerAdminClient(`unix:${join(this.dir, 'admin.sock')}`, credentials.createInsecure());
    return this.#admin;
  }

  async token(nodeName: string, ttlSeconds = 60): Promise<string> {
    const reply = await new Promise<CreateJoinTokenReply>((resolve, reject) => {
      this.admin.createJoinToken({ nodeName, ttlSeconds }, (error, r) => (error ? reject(error) : resolve(r)));
    });
    return reply.token;
  }

  async list(what: 'listNodes' | 'listEntries' | 'listSvids' | 'getStatus'): Promise<Record<string, unknown>> {
    const json = await new Promise<string>((resolve, reject) => {
      const done = (error: ServiceError | null, reply: JsonReply) => (error ? reject(error) : resolve(reply.json));
      if (what === 'listEntries') this.admin.listEntries(ListEntriesRequest.create(), done);
      else this.admin[what]({}, done);
    });
    return JSON.parse(json) as Record<string, unknown>;
  }

  revoke(what: NonNullable<RevokeSvidRequest['what']>, waitMs = 5000, reason = 'test'): Promise<RevokeSvidReply> {
    return new Promise((resolve, reject) => {
      const request = RevokeSvidRequest.create({ what, reason, waitMs });
      this.admin.revokeSvid(request, (error, reply) => (error ? reject(error) : resolve(reply)));
    });
  }

  putEntry(entry: object, mode = ''): Promise<Record<string, unknown>> {
    return new Promise((resolve, reject) => {
      const json = JSON.stringify(entry);
      this.admin.putEntry({ json, mode }, (error, reply) => (error ? reject(error) : resolve(JSON.parse(reply.json))));
    });
  }

  nodeAction(what: 'evictNode' | 'banNode' | 'unbanNode', node: string, reason = ''): Promise<Record<string, unknown>> {
    return new Promise((resolve, reject) => {
      this.admin[what]({ node, reason }, (error, reply) => (error ? reject(error) : resolve(JSON.parse(reply.json))));
    });
  }

  /** An agent's side, closed with the server. Its state lies in `<dir>/<stateName>`. */
  async client(nodeName: string, options: Partial<ServerClientOptions> & { stateName?: string } = {}) {
    const client = await connectServer(this.clientOptions(nodeName, options));
    this.onClose(() => client.close());
    return client;
  }

  clientOptions(
    nodeName: string,
    { stateName = nodeName, ...options }: Partial<ServerClientOptions> & { stateName?: string } = {},
  ): ServerClientOptions {
    return {
      addresses: [this.address],
      trustDomain: TRUST_DOMAIN,
      bundle: this.bundle,
      nodeName: nodeName as NodeName,
      stateDir: join(this.dir, stateName),
      peerAddresses: ['127.0.0.1:4250'],
      clock: this.clock,
      log: this.log,
      audit: { emit: () => {} },
      ...options,
    };
  }

  /** Events of the server's audit log. They are on disk at the end of the turn they were emitted in. */
  auditLines(): {
    kind: string;
    reason?: string;
    actor?: string;
    detail?: Record<string, unknown>;
    source?: Record<string, unknown>;
  }[] {
    const dir = join(this.dir, 'audit');
    return readdirSync(dir)
      .filter((name) => name.startsWith('events-'))
      .flatMap((name) => readFileSync(join(dir, name), 'utf8').trimEnd().split('\n'))
      .map((line) => JSON.parse(line));
  }

  /** Files of the server in which these bytes stand. */
  filesWith(text: string): string[] {
    return readdirSync(this.dir, { recursive: true, encoding: 'utf8' })
      .map((name) => join(this.dir, name))
      .filter((path) => statSync(path).isFile() && readFileSync(path).includes(text));
  }

  modeOf(path: string): number {
    return statSync(join(this.dir, path)).mode & 0o777;
  }

  /** A client that just joined with a token of its own. */
  async joined(
    nodeName: string,
    options: Partial<ServerClientOptions> & { stateName?: string } = {},
  ): Promise<ServerClient> {
    const token = await this.token(nodeName);
    return this.client(nodeName, { joinToken: async () => token, ...options });
  }
}

export function collector(): { events: AuditEvent[]; emit(event: AuditEvent): void } {
  const events: AuditEvent[] = [];
  return { events, emit: (event) => events.push(event) };
}
