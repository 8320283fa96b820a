/** The administrator's API: gRPC on a unix socket that only the server's own user may open. Every change is an audit event. */
import { randomUUID } from 'node:crypto';
import { chmodSync, existsSync, mkdirSync, rmSync } from 'node:fs';
import { connect, createServer } from 'node:net';
import { dirname } from 'node:path';
import { Server, ServerCredentials, type ServerUnaryCall, type sendUnaryData } from '@grpc/grpc-js';
import type { z } from 'zod';
import type { CertificateAuthority, RevocationTarget } from '../ca/api.ts';
import {
  type RevokeSvidRequest,
  type ServerAdminServer,
  ServerAdminService,
} from '../proto/gen/countersign/admin/v1/admin.ts';
import type { Clock } from '../src/base/clock.ts';
import { parseConfig } from '../src/base/config-file.ts';
import { CountersignError } from '../src/base/errors.ts';
import type { Logger } from '../src/base/log.ts';
import type { AuditSink } from '../src/model/audit-event.ts';
import { nodeSpiffeId, parseNodeName, parseSpiffeId } from '../src/model/spiffe-id.ts';
import { entrySchema } from './entry-spec.ts';
import type { Feed, RegisteredEntry } from './feed.ts';
import type { Nodes } from './nodes.ts';
import { toServiceError } from './refusal.ts';
import type { Registry } from './registry.ts';
import { revoke } from './revoke.ts';
import type { Store } from './store.ts';
import type { SyncHub } from './sync.ts';
import { createToken } from './tokens.ts';

const MAX_TOKEN_TTL_SECONDS = 7 * 86_400;
const DEFAULT_TOKEN_TTL_SECONDS = 600;
const MAX_WAIT_MS = 60_000;
/** Whoever may open the socket. */
const ACTOR = 'admin';

export interface AdminOptions {
  readonly ca: CertificateAuthority;
  readonly store: Store;
  readonly registry: Registry;
  readonly nodes: Nodes;
  readonly feed: Feed;
  readonly hub: SyncHub;
  readonly clock: Clock;
  readonly log: Logger;
  readonly audit: AuditSink;
  readonly status: () => object;
}

/** @throws CountersignError if another server answers on the socket. */
export async function serveAdmin(path: string, options: AdminOptions): Promise<() => void> {
  await clearSocket(path);
  const server = new Server({ 'grpc.max_receive_message_length': 1 << 20, 'grpc.enable_channelz': 0 });
  server.addService(ServerAdminService, adminHandlers(options));
  const injector = server.createConnectionInjector(ServerCredentials.createInsecure());
  const listener = createServer((socket) => injector.injectConnection(socket));
  // there is no moment in which others may open it: it is bound within this call, under this mask
  const mask = process.umask(0o177);
  const listening = new Promise<void>((resolve, reject) => {
    listener.once('error', (error: NodeJS.ErrnoException) => {
      const message = `adminSocket: ${path}: cannot listen (${error.code}); check the directory and its owner`;
      reject(new CountersignError('unavailable', message, { cause: error }));
    });
    listener.listen(path, resolve);
  });
  process.umask(mask);
  await listening;
  chmodSync(path, 0o600);
  return () => {
    listener.close();
    server.forceShutdown();
  };
}

/** A socket nobody answers on is what a killed server left. */
async function clearSocket(path: string): Promise<void> {
  mkdirSync(dirname(path), { recursive: true, mode: 0o711 });
  if (!existsSync(path)) return;
  const alive = await new Promise<boolean>((resolve) => {
    const probe = connect(path);
    probe.once('connect', () => resolve(true));
    probe.once('error', () => resolve(false));
    probe.once('connect', () => probe.destroy());
  });
  if (alive) {
    const message = `adminSocket: ${path}: another server answers there; stop it or set another path`;
    throw new CountersignError('already-exists', message);
  }
  rmSync(path, { force: true });
}

function adminHandlers(options: AdminOptions): ServerAdminServer {
  const { ca, store, registry, nodes, clock, log, audit } = options;
  const handler =
    <Request, Response>(work: (request: Request) => Promise<Response> | Response) =>
    (call: ServerUnaryCall<Request, Response>, done: sendUnaryData<Response>) => {
      Promise.resolve()
        .then(() => work(call.request))
        .then(
          (response) => done(null, response),
          (thrown: unknown) => done(toServiceError(thrown, log)),
        );
    };
  const acted = (action: string, detail: Record<string, string | number>) =>
    audit.emit({ kind: 'admin.action', actor: ACTOR, detail: { action, ...detail } });

  return {
    getStatus: handler(() => json(options.status())),
    createJoinToken: handler(({ nodeName, ttlSeconds }) => {
      const name = parseNodeName(nodeName);
      if (!name.ok) throw new CountersignError('bad-input', `node: ${name.error}; correct it`);
      if (!nodes.isConfigured(name.value)) {
        const message = `node ${name.value} is not in the server's configuration; list it under nodes first`;
        throw new CountersignError('not-found', message);
      }
      const ttl = ttlSeconds === 0 ? DEFAULT_TOKEN_TTL_SECONDS : ttlSeconds;
      if (ttl > MAX_TOKEN_TTL_SECONDS)
        throw new CountersignError('bad-input', 'ttl: a join token lives 7 days at most');
      const expiresAtMs = clock.nowMs() + ttl * 1000;
      const token = createToken(store, name.value, expiresAtMs, clock.nowMs());
      audit.emit({ kind: 'token.created', actor: ACTOR, source: { node: name.value }, detail: { expiresAtMs } });
      return { token, expiresAt: BigInt(Math.floor(expiresAtMs / 1000)) };
    }),
    listNodes: handler(() => json({ nodes: listNodes(options) })),
    listEntries: handler(() => json({ entries: registry.entries().map((entry) => entryJson(options, entry)) })),
    putEntry: handler((request) => {
      const schema = entrySchema.extend({ id: entrySchema.shape.id.default(() => randomUUID()) });
      // JSON is YAML: one reader, one form of message
      const spec = parseConfig('entry', request.json, schema as z.ZodType<z.infer<typeof entrySchema>>);
      const entry = registry.put(spec, ACTOR);
      acted('put-entry', { entry: entry.id });
      return json(entryJson(options, entry));
    }),
    deleteEntry: handler(({ id }) => {
      registry.delete(id, ACTOR);
      acted('delete-entry', { entry: id });
      return json({ id });
    }),
    listSvids: handler(() => json({ svids: listSvids(options) })),
    revokeSvid: handler(async (request) => {
      const what = targetOf(request);
      const waitMs = Math.min(request.waitMs, MAX_WAIT_MS);
      const { sequence, inForce, missing, inForceMs } = await revoke(options, what, request.reason, waitMs, ACTOR);
      return { sequence, inForce: [...inForce], missing: [...missing], inForceMs };
    }),
    getBundle: handler(() => ({ certificates: ca.bundle().authorities })),
  };
}

function targetOf({ what }: RevokeSvidRequest): RevocationTarget {
  switch (what?.$case) {
    case 'spiffeId': {
      const id = parseSpiffeId(what.value);
      if (!id.ok) throw new CountersignError('bad-input', `spiffe-id: ${id.error}; correct it`);
      return { spiffeId: id.value.id };
    }
    case 'serial':
      return { serial: what.value };
    case 'node': {
      const name = parseNodeName(what.value);
      if (!name.ok) throw new CountersignError('bad-input', `node: ${name.error}; correct it`);
      return { node: name.value };
    }
    case undefined:
      throw new CountersignError('bad-input', 'name what to revoke: a SPIFFE ID, a serial number or a node');
  }
}

/** Those configured and those that ever attested. */
function listNodes({ nodes, hub, ca }: AdminOptions) {
  const records = new Map(nodes.all().map((node) => [node.name as string, node]));
  return [...new Set([...nodes.names, ...records.keys()])].sort().map((name) => {
    const record = records.get(name);
    const prefixes = nodes.prefixesOf(name as never);
    if (record === undefined) return { name, state: 'never attested', connected: false, prefixes };
    const session = hub.session(record.name);
    return {
      name,
      spiffeId: nodeSpiffeId(ca.trustDomain, record.name),
      id: record.nodeId,
      incarnation: record.incarnation,
      state: record.evicted ? 'revoked' : nodes.isConfigured(name) ? 'attested' : 'not configured',
      connected: session !== undefined,
      connectedSince: time(session?.sinceMs),
      inForceVersion: session?.acked,
      attestedAt: time(record.attestedAtMs),
      notAfter: time(record.notAfterMs),
      peerAddresses: record.peerAddresses,
      prefixes,
    };
  });
}

function entryJson({ ca }: AdminOptions, entry: RegisteredEntry) {
  const { id, spiffeId, selectors, labels, ports, hint, ttlSeconds, dnsNames, origin, barred, identity } = entry;
  const parentId = nodeSpiffeId(ca.trustDomain, entry.node);
  const revoked = barred ? { revoked: true } : {};
  return {
    id,
    spiffeId,
    parentId,
    selectors,
    labels,
    ports,
    securityIdentity: identity,
    hint,
    ttlSeconds,
    dnsNames,
    origin,
    ...revoked,
  };
}

function listSvids({ ca }: AdminOptions) {
  return ca.listSvids().map((row) => {
    const node = row.node ?? (row.profile === 'node' ? row.spiffeId : undefined);
    return {
      serial: row.serial,
      spiffeId: row.spiffeId,
      profile: row.profile,
      node,
      issuedAt: time(row.issuedMs),
      notAfter: time(row.notAfterMs),
      revoked: ca.isRevoked({ spiffeId: row.spiffeId, serial: row.serial, node, notBeforeMs: row.notBeforeMs }),
    };
  });
}

function time(ms: number | undefined): string | undefined {
  return ms === undefined ? undefined : new Date(ms).toISOString();
}

function json(value: object): { json: string } {
  return { json: JSON.stringify(value) };
}
