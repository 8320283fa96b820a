/** What the admin socket shows: the state of the node's parts as plain documents. docs/cli.md describes their shapes. */
import type { AuditLog } from '../audit/log.ts';
import type { AuthManager } from '../auth/manager.ts';
import type { Clock } from '../base/clock.ts';
import { dropReasons } from '../base/registry/drop-reasons.gen.ts';
import { reasonCodes } from '../base/registry/reason-codes.ts';
import type { DialFailure } from '../channel/dial-backoff.ts';
import type { StartedPeerChannels } from '../channel/peer-channels.ts';
import type { Datapath } from '../datapath/datapath.ts';
import type { Direction, DropCount } from '../model/datapath.ts';
import type { SecurityIdentity } from '../model/ids.ts';
import type { AgentConfig } from './config.ts';
import type { Endpoints } from './endpoints.ts';
import type { Enforcement } from './enforcement.ts';
import type { NodePath } from './path.ts';
import type { PolicyControl } from './policy-control.ts';
import type { ServerClient } from './server-client/client.ts';
import type { WorkloadSvids } from './server-client/svids.ts';
import { type Survival, withoutServer } from './survival.ts';

export interface Parts {
  readonly config: AgentConfig;
  readonly server: ServerClient;
  readonly svids: WorkloadSvids;
  readonly datapath: Datapath;
  readonly path: NodePath;
  readonly channels: StartedPeerChannels;
  readonly manager: AuthManager;
  readonly endpoints: Endpoints;
  readonly policy: PolicyControl;
  readonly enforcement: Enforcement;
  readonly auditLog: AuditLog;
  readonly clock: Clock;
}

export async function status(parts: Parts) {
  const { config, server, datapath, path, channels, endpoints, policy, auditLog } = parts;
  const node = server.node.info;
  const states = endpoints.view();
  const waiting = datapath.hold.waiting();
  const held = { status: server.status(), svids: parts.svids, nowMs: parts.clock.nowMs() };
  const survival: Survival = withoutServer(held);
  return {
    // Identities known, and every endpoint that can be attached is.
    ready: server.identities.rows().length > 0 || config.endpoints.length === 0,
    node: { name: node.name, spiffeId: node.spiffeId, id: node.id, incarnation: node.incarnation },
    nodes: server.nodes.nodes().length,
    server: server.status(),
    withoutServer: survival,
    endpoints: {
      open: states.filter((e) => e.state === 'open').length,
      notOpen: states.filter((e) => e.state !== 'open').map((e) => `${e.name}: ${e.state}`),
      // Open, but for peers that have not let go of an earlier owner of the address.
      shutTo: states.flatMap(({ name, waitsFor = [] }) =>
        waitsFor.length === 0 ? [] : `${name}: ${waitsFor.join(', ')}`,
      ),
    },
    datapath: {
      attach: datapath.attachMode,
      epoch: datapath.auth.epoch,
      enforcement: parts.enforcement.view().stopped ? 'stopped' : config.enforcement,
    },
    policy: policy.view(),
    exempt: exempt(config),
    tunnel: path.describe(),
    channels: channels.list().length,
    preAuthentication: config.authentication.preAuthentication.enabled,
    proven: parts.manager.proven,
    hold: { ...datapath.held(), waiting: waiting.reduce((sum, w) => sum + w.packets, 0) },
    audit: { events: auditLog.size, lost: auditLog.lost },
    unprotected: unprotected(parts),
  };
}

/** Besides ARP, neighbour discovery and ICMP errors of allowed flows: what no policy is asked about. */
function exempt({ exempt: { dhcp, hostProbes } }: AgentConfig): string[] {
  return [
    ...(dhcp ? ['dhcp: between workloads and this host'] : []),
    ...(hostProbes ? ['hostProbes: what this host opens to its own workloads'] : []),
  ];
}

/** What this configuration gives up, in sentences. Empty is how it should be. */
function unprotected({ config, policy, enforcement }: Parts): string[] {
  const { observing, allowsMore } = policy.view();
  const said: string[] = [];
  const { stopped, since, reason, actor } = enforcement.view();
  if (stopped) said.push(`ENFORCEMENT IS STOPPED since ${since} by ${actor}: ${reason}`);
  if (!config.encryption.enabled) said.push('encryption is off: workload traffic crosses the underlay in clear');
  if (config.authentication.allowUnboundPath)
    said.push('allowUnboundPath: nothing ties a packet to the node that sent it');
  if (config.enforcement === 'observe') said.push('enforcement is observe: nothing is dropped');
  for (const name of observing) said.push(`${name} only observes: what it alone would drop passes`);
  if (allowsMore) said.push('policies.l7 is ignore-with-warning: what such rules narrow is allowed whole');
  return said;
}

export function failureView(failure: DialFailure | undefined) {
  return failure === undefined ? {} : { lastFailure: { ...failure, text: reasonCodes[failure.reason] } };
}

export function vouches({ manager }: Parts) {
  return manager.vouches().map((v) => ({ ...v, leaseMs: Math.max(0, v.leaseLeftMs) }));
}

export async function peers({ server, channels, manager, path, clock }: Parts) {
  const leases = leasesByNode(manager);
  const tunnels = new Map((await path.peers()).map((p) => [p.node, p]));
  const open = new Map(channels.list().map((c) => [c.peer.spiffeId, c]));
  return server.nodes.nodes().flatMap((node) => {
    if (node.spiffeId === server.node.info.spiffeId) return [];
    const channel = open.get(node.spiffeId);
    const tunnel = tunnels.get(node.id);
    return [
      {
        name: node.name,
        id: node.id,
        spiffeId: node.spiffeId,
        incarnation: node.incarnation,
        channel: channel === undefined ? 'closed' : 'open',
        role: channel?.role,
        channelId: channel?.id,
        ...(channel === undefined ? failureView(channels.lastFailure(node)) : {}),
        channelAgeMs: channel?.ageMs,
        protocolVersion: channel?.version,
        channelValidUntil: channel === undefined ? undefined : new Date(channel.validUntilMs).toISOString(),
        vouches: leases.get(node.id)?.vouches ?? 0,
        leaseLeftMs: leases.get(node.id)?.leastMs,
        tunnel: tunnel === undefined ? 'none' : 'up',
        lastHandshake: agoText(tunnel?.lastHandshake ?? 0, clock.nowMs()),
        rxBytes: tunnel?.rxBytes,
        txBytes: tunnel?.txBytes,
        addresses: tunnel?.allowedAddresses,
      },
    ];
  });
}

/** Of what each node vouches for: how many addresses, and which lease ends first. */
function leasesByNode(manager: AuthManager): Map<number, { vouches: number; leastMs: number }> {
  const leases = new Map<number, { vouches: number; leastMs: number }>();
  for (const { node, leaseLeftMs } of manager.vouches()) {
    const known = leases.get(node);
    if (known === undefined) leases.set(node, { vouches: 1, leastMs: leaseLeftMs });
    else {
      known.vouches += 1;
      known.leastMs = Math.min(known.leastMs, leaseLeftMs);
    }
  }
  return leases;
}

/** @param seconds Unix; 0: never. */
export function agoText(seconds: number, nowMs: number): string {
  return seconds === 0 ? 'never' : `${Math.max(0, Math.round(nowMs / 1000 - seconds))}s ago`;
}

/** By reason and direction: what was dropped, and what would have been and passed. */
export function drops({ datapath }: Parts) {
  const rows = new Map<string, DropRow>();
  const rowOf = ({ reason, direction }: DropCount): DropRow => {
    const key = `${reason} ${direction}`;
    const row = rows.get(key) ?? {
      reason,
      direction,
      packets: 0n,
      bytes: 0n,
      observedPackets: 0n,
      observedBytes: 0n,
      text: textOf(reason),
    };
    rows.set(key, row);
    return row;
  };
  for (const count of datapath.drops()) {
    const row = rowOf(count);
    row.packets += count.packets;
    row.bytes += count.bytes;
  }
  for (const count of datapath.observed()) {
    const row = rowOf(count);
    row.observedPackets += count.packets;
    row.observedBytes += count.bytes;
  }
  return [...rows.values()].filter((row) => row.packets > 0n || row.observedPackets > 0n);
}

interface DropRow {
  readonly reason: DropCount['reason'];
  readonly direction: Direction;
  packets: bigint;
  bytes: bigint;
  observedPackets: bigint;
  observedBytes: bigint;
  readonly text: string;
}

export function dropPairs({ datapath, server }: Parts) {
  const nameOf = (identity: SecurityIdentity) =>
    server.identities.byIdentity(identity)?.spiffeId ?? RESERVED_NAMES[identity] ?? `identity ${identity}`;
  return datapath.pairDrops().map((count) => ({
    ...count,
    localName: nameOf(count.local),
    remoteName: nameOf(count.remote),
    text: textOf(count.reason),
  }));
}

const RESERVED_NAMES: Readonly<Record<number, string>> = { 0: 'unknown', 1: 'host', 2: 'world', 6: 'remote-node' };

function textOf(reason: DropCount['reason']): string {
  return reason in dropReasons ? dropReasons[reason as keyof typeof dropReasons].text : 'not known to this build';
}
