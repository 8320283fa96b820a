/** Nodes, tokens, entries, SVIDs and revocations, as an administrator sees and changes them. Every change is an audit event. */
import { randomUUID } from 'node:crypto';
import { status } from '@grpc/grpc-js';
import type { z } from 'zod';
import type { CertificateAuthority, RevocationTarget } from '../../ca/api.ts';
import {
  type ListEntriesRequest,
  type RevokeSvidRequest,
  type ServerAdminServer,
  ServerAdminService,
} from '../../proto/gen/countersign/admin/v1/admin.ts';
import type { Clock } from '../../src/base/clock.ts';
import { parseConfig } from '../../src/base/config-file.ts';
import { CountersignError } from '../../src/base/errors.ts';
import { nodeSpiffeId, parseNodeName, parseSpiffeId } from '../../src/model/spiffe-id.ts';
import type { EntryFilter } from '../entry-index.ts';
import { entrySchema } from '../entry-spec.ts';
import type { Feed, RegisteredEntry } from '../feed.ts';
import type { Nodes } from '../nodes.ts';
import { Refusal } from '../refusal.ts';
import type { PutMode, Registry } from '../registry.ts';
import { revoke } from '../revoke.ts';
import type { SigningKeys } from '../signing-keys.ts';
import type { Store } from '../store.ts';
import type { SyncHub } from '../sync.ts';
import { createToken } from '../tokens.ts';
import { nodeHandlers } from './nodes.ts';
import { type RoleSource, rankOf } from './roles.ts';
import { type Actor, type AdminContext, type AdminService, handlers, json, time } from './service.ts';

const MAX_TOKEN_TTL_SECONDS = 7 * 86_400;
const DEFAULT_TOKEN_TTL_SECONDS = 600;
const MAX_WAIT_MS = 60_000;
/** Entries of one reply. */
const MAX_PAGE = 1000;

export interface CoreAdminOptions extends AdminContext {
  readonly ca: CertificateAuthority;
  readonly store: Store;
  readonly registry: Registry;
  readonly nodes: Nodes;
  readonly feed: Feed;
  readonly hub: SyncHub;
  readonly signingKeys: SigningKeys;
  readonly clock: Clock;
  readonly status: () => object;
  readonly roles: RoleSource;
  readonly backup: ServerAdminServer['backup'];
}

export function coreAdmin(options: CoreAdminOptions): AdminService {
  const { ca, store, registry, nodes, clock, audit } = options;
  const handler = handlers(options);
  const acted = ({ name }: Actor, action: string, detail: Record<string, string | number>) =>
    audit.emit({ kind: 'admin.action', actor: name, detail: { action, ...detail } });

  const implementation: ServerAdminServer = {
    getStatus: handler('viewer', () => json(options.status())),
    createJoinToken: handler('registrar', ({ nodeName, ttlSeconds }, actor) => {
      const name = parseNodeName(nodeName);
      if (!name.ok) throw new CountersignError('bad-input', `node: ${name.error}; correct it`);
      if (!nodes.isConfigured(name.value)) {
        const message = `node ${name.value} is not in the server's configuration; list it under nodes first`;
        throw new CountersignError('not-found', message);
      }
      // whoever is the node gets the SVIDs of its entries
      for (const entry of registry.entriesOf(name.value)) mayTouch(options, entry, actor);
      const ttl = ttlSeconds === 0 ? DEFAULT_TOKEN_TTL_SECONDS : ttlSeconds;
      if (ttl > MAX_TOKEN_TTL_SECONDS)
        throw new CountersignError('bad-input', 'ttl: a join token lives 7 days at most');
      const expiresAtMs = clock.nowMs() + ttl * 1000;
      const token = createToken(store, name.value, expiresAtMs, clock.nowMs());
      audit.emit({ kind: 'token.created', actor: actor.name, source: { node: name.value }, detail: { expiresAtMs } });
      return { token, expiresAt: BigInt(Math.floor(expiresAtMs / 1000)) };
    }),
    listEntries: handler('viewer', (request) => {
      const limit = request.pageSize === 0 ? MAX_PAGE : Math.min(request.pageSize, MAX_PAGE);
      const { entries, more } = registry.page(filterOf(request), request.pageToken, limit);
      const nextPageToken = more ? { nextPageToken: entries.at(-1)!.id } : {};
      return json({ entries: entries.map((entry) => entryJson(options, entry)), ...nextPageToken });
    }),
    putEntry: handler('registrar', (request, actor) => {
      const mode = modeOf(request.mode);
      const schema = entrySchema.extend({ id: entrySchema.shape.id.default(() => randomUUID()) });
      // JSON is YAML: one reader, one form of message
      const spec = parseConfig('entry', request.json, schema as z.ZodType<z.infer<typeof entrySchema>>);
      const known = registry.entry(spec.id);
      if (known !== undefined) mayTouch(options, known, actor);
      mayTouch(options, spec, actor);
      const entry = registry.put(spec, actor.name, mode);
      acted(actor, 'put-entry', { entry: entry.id });
      return json(entryJson(options, entry));
    }),
    deleteEntry: handler('registrar', ({ id }, actor) => {
      const known = registry.entry(id);
      if (known !== undefined) mayTouch(options, known, actor);
      registry.delete(id, actor.name);
      acted(actor, 'delete-entry', { entry: id });
      return json({ id });
    }),
    listSvids: handler('viewer', () => json({ svids: listSvids(options) })),
    revokeSvid: handler('admin', async (request, actor) => {
      const what = targetOf(request);
      const waitMs = Math.min(request.waitMs, MAX_WAIT_MS);
      const { sequence, inForce, missing, inForceMs } = await revoke(options, what, request.reason, waitMs, actor.name);
      return { sequence, inForce: [...inForce], missing: [...missing], inForceMs };
    }),
    getBundle: handler('viewer', () => ({ certificates: ca.bundle().authorities })),
    getEntry: handler('viewer', ({ id }) => {
      const entry = registry.entry(id);
      if (entry === undefined) throw new CountersignError('not-found', `no entry ${id}; see: countersign entry list`);
      return json(entryJson(options, entry));
    }),
    ...nodeHandlers(options),
    backup: options.backup,
  };
  return { definition: ServerAdminService, implementation };
}

/**
 * Who may change an entry may become its workload. So nobody changes one that gives a higher role than they have.
 * @throws Refusal
 */
function mayTouch(
  { registry, roles, audit }: CoreAdminOptions,
  { spiffeId, admin, downstream }: Pick<RegisteredEntry, 'spiffeId' | 'admin' | 'downstream'>,
  actor: Actor,
): void {
  // who can have an authority signed can become an administrator
  const signs = downstream || [...registry.entriesWith(spiffeId)].some((entry) => entry.downstream);
  const role = admin || signs ? 'admin' : roles.roleOf(spiffeId);
  if (rankOf(role) <= rankOf(actor.role)) return;
  const detail = { spiffeId, role: actor.role, needs: role! };
  audit.emit({ kind: 'admin.refused', reason: 'ADMIN_ROLE', actor: actor.name, detail });
  const what = signs ? 'may have authorities signed, which takes the role admin to give' : `has the role ${role}`;
  const advice = `${spiffeId} ${what}, and ${actor.name} has ${actor.role}`;
  throw new Refusal('ADMIN_ROLE', status.PERMISSION_DENIED, advice);
}

function modeOf(text: string): PutMode {
  if (text === '' || text === 'create' || text === 'update') return text;
  throw new CountersignError('bad-input', 'mode: must be create, update or empty; correct it');
}

/** @throws CountersignError bad-input */
function filterOf({ node, spiffeId, selectors }: ListEntriesRequest): EntryFilter {
  const name = node === '' ? undefined : parseNodeName(node);
  if (name?.ok === false) throw new CountersignError('bad-input', `node: ${name.error}; correct it`);
  const id = spiffeId === '' ? undefined : parseSpiffeId(spiffeId);
  if (id?.ok === false) throw new CountersignError('bad-input', `spiffe-id: ${id.error}; correct it`);
  return {
    selectors,
    ...(name === undefined ? {} : { node: name.value }),
    ...(id === undefined ? {} : { spiffeId: id.value.id }),
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
    case 'authority':
      return { authority: what.value };
    case undefined:
      throw new CountersignError('bad-input', 'name what to revoke: a SPIFFE ID, a serial number or a node');
  }
}

function entryJson({ ca }: CoreAdminOptions, entry: RegisteredEntry) {
  const { id, spiffeId, selectors, labels, ports, hint, ttlSeconds, jwtTtlSeconds, dnsNames, origin, barred } = entry;
  const { federatesWith, admin, downstream, identity } = entry;
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
    jwtTtlSeconds,
    dnsNames,
    federatesWith,
    admin,
    downstream,
    origin,
    ...revoked,
  };
}

function listSvids({ ca }: CoreAdminOptions) {
  return ca.listSvids().map((row) => {
    const node = row.node ?? (row.profile === 'node' ? row.spiffeId : undefined);
    return {
      serial: row.serial,
      spiffeId: row.spiffeId,
      profile: row.profile,
      node,
      issuedAt: time(row.issuedMs),
      notAfter: time(row.notAfterMs),
      authority: row.authority,
      revoked: ca.isRevoked({ ...row, node, authorities: [row.authority] }),
    };
  });
}
