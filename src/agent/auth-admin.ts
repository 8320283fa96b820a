/** What a person does with proofs through the admin socket: throw some away, or have one made now and watch each step. */
import { CountersignError } from '../base/errors.ts';
import { dropReasons } from '../base/registry/drop-reasons.gen.ts';
import { type ReasonCode, reasonCodes } from '../base/registry/reason-codes.ts';
import type { AuditSink } from '../model/audit-event.ts';
import type { AuthKey, AuthType, FlowTuple } from '../model/datapath.ts';
import type { IdentityRow, NodeInfo } from '../model/identity.ts';
import { type IpAddress, LOCAL_NODE } from '../model/ids.ts';
import type { ExplainQuery } from './explain.ts';
import { protocolOf } from './protocols.ts';
import { targetOf } from './target.ts';
import type { Parts } from './views.ts';

export interface FlushQuery {
  /** Both or neither. */
  readonly from: string;
  readonly to: string;
  readonly actor: string;
}

/** @throws CountersignError bad-input, not-found. */
export function flushAuth(parts: Parts, { from, to, actor }: FlushQuery, audit: AuditSink): { flushed: number } {
  if ((from === '') !== (to === '')) throw new CountersignError('bad-input', 'name both sides of the pair, or neither');
  const { manager } = parts;
  let flushed: number;
  if (from === '') flushed = manager.flush();
  else {
    const [a, b] = [workload(parts, from).identity, workload(parts, to).identity];
    flushed = manager.flush(({ local, remote }) => (local === a && remote === b) || (local === b && remote === a));
  }
  audit.emit({
    kind: 'admin.action',
    source: { node: parts.config.node.name },
    ...(actor === '' ? {} : { actor: actor.slice(0, 256) }),
    detail: { action: 'auth flush', flushed, ...(from === '' ? {} : { from, to }) },
  });
  return { flushed };
}

export interface AuthStep {
  readonly step: 'identities' | 'policy' | 'own SVID' | 'node' | 'channel' | 'vouch' | 'proof' | 'entry';
  readonly ok: boolean;
  readonly ms: number;
  readonly detail: string;
  /** Why not. */
  readonly reason?: ReasonCode;
}

export interface AuthTest {
  readonly verdict: 'proven' | 'refused';
  readonly because: string;
  readonly steps: readonly AuthStep[];
}

/** How long a vouch may take that the peer gives when a channel opens. */
const VOUCH_WAIT_MS = 2_000;
const VOUCH_LOOK_MS = 20;

/** @throws CountersignError bad-input, not-found: nobody of that name, or neither of them runs here */
export async function testAuth(parts: Parts, query: ExplainQuery): Promise<AuthTest> {
  const { manager, policy } = parts;
  const protocol = protocolOf(query.protocol);
  const steps: AuthStep[] = [];
  let startedMs = performance.now();
  const told = (step: AuthStep['step'], detail: string, reason?: ReasonCode): void => {
    const now = performance.now();
    const ms = Math.round((now - startedMs) * 1_000) / 1_000;
    steps.push({ step, ok: reason === undefined, ms, detail, ...(reason === undefined ? {} : { reason }) });
    startedMs = now;
  };
  const refused = (because: string): AuthTest => ({ verdict: 'refused', because, steps });

  const [from, to] = [workload(parts, query.from), workload(parts, query.to)];
  const facts = manager.explain(from.identity, to.identity);
  if (!facts.fromHostedHere && !facts.toHostedHere) {
    const nodes = [...new Set([...from.nodes, ...to.nodes])].join(', ');
    throw new CountersignError(
      'not-found',
      `neither ${query.from} nor ${query.to} runs on this node: ask the agent of a node where one does${nodes === '' ? '' : ` (${nodes})`}`,
    );
  }
  told('identities', `${from.spiffeId} (${from.identity}) and ${to.spiffeId} (${to.identity})`);

  const authType = demanded(parts, from, to, protocol, query.port);
  if (authType === 'deny') {
    told('policy', 'denied', 'AUTH_NOT_REQUIRED');
    return refused(dropReasons.POLICY_DENIED.text);
  }
  if (authType === 'none') {
    told('policy', 'requires no authentication', 'AUTH_NOT_REQUIRED');
    return refused(reasonCodes.AUTH_NOT_REQUIRED);
  }
  const rule = policy.rule(policy.decide(from.identity, to.identity, protocol, query.port).rule);
  told('policy', `requires ${authType}${rule === undefined ? '' : `: ${rule.file}:${rule.line} ${rule.policy}`}`);

  const [own, other] = facts.fromHostedHere ? [from, to] : [to, from];
  const missing = facts.ownProof.find(({ refusal }) => refusal !== undefined);
  if (missing?.refusal !== undefined) {
    told('own SVID', `of ${missing.identity === from.identity ? from.spiffeId : to.spiffeId}`, missing.refusal);
    return refused(reasonCodes[missing.refusal]);
  }
  told('own SVID', `of ${own.spiffeId}`);

  if (facts.fromHostedHere && facts.toHostedHere) {
    told('node', 'both run here');
    return prove({ local: own.identity, remote: other.identity, remoteNode: LOCAL_NODE, authType }, ownAddress(other));
  }
  const reached = await reach();
  if (reached === undefined) return refused(reasonCodes[steps.at(-1)!.reason!]);
  const { node, address } = reached;
  return prove({ local: own.identity, remote: other.identity, remoteNode: node.id, authType }, address);

  /** The first node that vouches for the other side. */
  async function reach(): Promise<{ readonly node: NodeInfo; readonly address: IpAddress } | undefined> {
    const { channels, server, clock } = parts;
    const vouching = () => manager.vouches().find((v) => v.identity === other.identity && v.leaseLeftMs > 0);
    const known = vouching();
    const candidates =
      known === undefined
        ? other.nodes.flatMap((id) => server.nodes.bySpiffeId(id) ?? [])
        : server.nodes.nodes().filter((node) => node.id === known.node);
    if (candidates.length === 0) {
      told('node', `no node is registered for ${other.spiffeId}`, 'VOUCH_NO_NODE');
      return undefined;
    }
    told('node', candidates.map((node) => node.name).join(', '));
    const opened: string[] = [];
    for (const node of candidates) {
      const before = channels.get(node);
      const reason = await manager.connect(node);
      const channel = channels.get(node);
      if (channel === undefined) told('channel', `to ${node.name}`, reason ?? 'PEER_UNREACHABLE');
      else {
        opened.push(node.name);
        told('channel', `to ${node.name}, ${before === undefined ? 'opened' : 'open'}, as TLS ${channel.role}`);
      }
    }
    if (opened.length === 0) return undefined;
    const untilMs = clock.nowMs() + VOUCH_WAIT_MS;
    while (vouching() === undefined && clock.nowMs() < untilMs) {
      await new Promise((resolve) => setTimeout(resolve, VOUCH_LOOK_MS));
    }
    const vouch = vouching();
    const node = vouch === undefined ? undefined : server.nodes.nodes().find(({ id }) => id === vouch.node);
    if (vouch === undefined || node === undefined) {
      told('vouch', `${opened.join(', ')} vouches for no address of ${other.spiffeId}`, 'AUTH_NOT_VOUCHED');
      return undefined;
    }
    told('vouch', `${node.name} vouches for ${vouch.address} for ${secondsText(vouch.leaseLeftMs)} more`);
    return { node, address: vouch.address as IpAddress };
  }

  function ownAddress(row: IdentityRow): IpAddress | undefined {
    return manager.endpoints().find(({ endpoint }) => endpoint.identity === row.identity)?.endpoint.addresses[0];
  }

  /** For a proof of a flow: one from port 0, which no workload ever uses. */
  function flowTo(remoteAddress: IpAddress | undefined): FlowTuple | undefined {
    const hosted = manager.endpoints().find(({ endpoint }) => endpoint.identity === own.identity)?.endpoint;
    const isSameFamily = (address: IpAddress) => address.includes(':') === remoteAddress?.includes(':');
    const localAddress = hosted?.addresses.find(isSameFamily);
    if (hosted === undefined || localAddress === undefined || remoteAddress === undefined) return undefined;
    const { endpoint } = hosted;
    return { endpoint, localAddress, remoteAddress, protocol, localPort: 0, remotePort: query.port };
  }

  async function prove(key: AuthKey, address: IpAddress | undefined): Promise<AuthTest> {
    const flow = key.authType === 'spiffe-connection' ? flowTo(address) : undefined;
    const outcome = await manager.authenticate(key, flow);
    const where =
      key.remoteNode === LOCAL_NODE ? 'on this node' : `with ${parts.server.nodes.byId(key.remoteNode)?.name}`;
    if (!outcome.ok) {
      told('proof', where, outcome.error);
      return refused(reasonCodes[outcome.error]);
    }
    told('proof', `${where}, ${outcome.value.correlation}`);
    const leftMs = Number((outcome.value.expiresAtNs - parts.clock.bootNs()) / 1_000_000n);
    told('entry', `written, for ${secondsText(leftMs)}`);
    return { verdict: 'proven', because: 'both sides have proved who they are', steps };
  }
}

function demanded(
  { policy }: Parts,
  from: IdentityRow,
  to: IdentityRow,
  protocol: number,
  port: number,
): AuthType | 'deny' {
  // Without a port: what any traffic between the two needs.
  if (port === 0) return policy.authTypesOf(from.identity, to.identity)[0] ?? 'none';
  const { verdict, authType } = policy.decide(from.identity, to.identity, protocol, port);
  return verdict === 'deny' ? 'deny' : authType;
}

function secondsText(ms: number): string {
  return `${(ms / 1000).toFixed(1)} s`;
}

function workload(parts: Parts, text: string): IdentityRow {
  const target = targetOf(parts, text);
  if (target.kind === 'workload') return target.row;
  throw new CountersignError('bad-input', `${text} is no workload: only workloads prove who they are`);
}
