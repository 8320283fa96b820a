/** Nodes as an administrator sees them, evicts, bans and lets in again. */
import { status } from '@grpc/grpc-js';
import { checkReason } from '../../ca/api.ts';
import type { ServerAdminServer } from '../../proto/gen/countersign/admin/v1/admin.ts';
import { CountersignError } from '../../src/base/errors.ts';
import type { NodeName } from '../../src/model/ids.ts';
import { nodeSpiffeId, parseNodeName } from '../../src/model/spiffe-id.ts';
import { Refusal } from '../refusal.ts';
import { revoke } from '../revoke.ts';
import type { CoreAdminOptions } from './core.ts';
import { handlers, json, time } from './service.ts';

/** How long a ban waits until every connected agent has it in force. */
const BAN_WAIT_MS = 5_000;

export function nodeHandlers(
  options: CoreAdminOptions,
): Pick<ServerAdminServer, 'listNodes' | 'evictNode' | 'banNode' | 'unbanNode'> {
  const { nodes, store, hub, feed, clock, audit } = options;
  const handler = handlers(options);
  return {
    listNodes: handler('viewer', () => json({ nodes: listNodes(options) })),
    evictNode: handler('admin', (request, actor) => {
      const name = nameOf(request.node);
      checkReason(request.reason);
      if (nodes.node(name) === undefined) throw unknown(name);
      nodes.evict(name);
      hub.disconnect(name, new Refusal('ATTEST_NODE_EVICTED', status.PERMISSION_DENIED));
      feed.publish({ removedNodes: [name] });
      const detail = { text: request.reason };
      audit.emit({ kind: 'node.evicted', actor: actor.name, source: { node: name }, detail });
      return json({ node: name, evicted: true });
    }),
    banNode: handler('admin', async (request, actor) => {
      const name = nameOf(request.node);
      const { reason } = request;
      checkReason(reason);
      const known = nodes.node(name) !== undefined;
      if (!known && !nodes.isConfigured(name)) throw unknown(name);
      // on disk first: from here on nobody attests under this name
      store.putBan({ name, reason, atMs: clock.nowMs() });
      audit.emit({ kind: 'node.banned', actor: actor.name, source: { node: name }, detail: { text: reason } });
      // what never attested has nothing that could be taken back
      if (!known) return json({ node: name, banned: true, inForce: [], missing: [] });
      const { inForce, missing } = await revoke(options, { node: name }, reason, BAN_WAIT_MS, actor.name);
      return json({ node: name, banned: true, inForce, missing });
    }),
    unbanNode: handler('admin', (request, actor) => {
      const name = nameOf(request.node);
      if (!store.deleteBan(name)) {
        throw new CountersignError('not-found', `node ${name} is not banned; see: countersign node list`);
      }
      audit.emit({ kind: 'node.unbanned', actor: actor.name, source: { node: name } });
      return json({ node: name, banned: false });
    }),
  };
}

function unknown(name: NodeName): CountersignError {
  return new CountersignError('not-found', `there is no node ${name}; see: countersign node list`);
}

function nameOf(text: string): NodeName {
  const name = parseNodeName(text);
  if (!name.ok) throw new CountersignError('bad-input', `node: ${name.error}; correct it`);
  return name.value;
}

/** Those configured, those that ever attested and those banned. */
function listNodes({ nodes, hub, ca, store }: CoreAdminOptions) {
  const records = new Map(nodes.all().map((node) => [node.name as string, node]));
  const bans = new Map(store.bans().map((ban) => [ban.name as string, ban]));
  return [...new Set([...nodes.names, ...records.keys(), ...bans.keys()])].sort().map((name) => {
    const record = records.get(name);
    const ban = bans.get(name);
    const prefixes = nodes.prefixesOf(name as NodeName);
    const banned = ban === undefined ? {} : { banned: { since: time(ban.atMs), reason: ban.reason } };
    if (record === undefined) {
      return { name, state: ban === undefined ? 'never attested' : 'banned', connected: false, prefixes, ...banned };
    }
    const session = hub.session(record.name);
    const evicted = record.evicted ? 'evicted' : nodes.isConfigured(name) ? 'attested' : 'not configured';
    return {
      name,
      spiffeId: nodeSpiffeId(ca.trustDomain, record.name),
      id: record.nodeId,
      incarnation: record.incarnation,
      state: ban === undefined ? evicted : 'banned',
      attestor: record.attestor,
      connected: session !== undefined,
      connectedSince: time(session?.sinceMs),
      inForceVersion: session?.acked,
      attestedAt: time(record.attestedAtMs),
      notAfter: time(record.notAfterMs),
      peerAddresses: record.peerAddresses,
      prefixes,
      ...banned,
    };
  });
}
