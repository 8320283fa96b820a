/** What the admin socket shows: the state of the node's parts as plain documents. docs/cli.md describes their shapes. */
import type { AuditLog } from '../audit/log.ts';
import type { AuthManager } from '../auth/manager.ts';
import type { Clock } from '../base/clock.ts';
import { dropReasons } from '../base/registry/drop-reasons.gen.ts';
import type { StartedPeerChannels } from '../channel/peer-channels.ts';
import type { Datapath } from '../datapath/datapath.ts';
import type { AgentConfig } from './config.ts';
import type { Endpoints } from './endpoints.ts';
import type { NodePath } from './path.ts';
import type { PolicyControl } from './policy-control.ts';
import type { ServerClient } from './server-client/client.ts';

export interface Parts {
  readonly config: AgentConfig;
  readonly server: ServerClient;
  readonly datapath: Datapath;
  readonly path: NodePath;
  readonly channels: StartedPeerChannels;
  readonly manager: AuthManager;
  readonly endpoints: Endpoints;
  readonly policy: PolicyControl;
  readonly auditLog: AuditLog;
  readonly clock: Clock;
}

export async function status(parts: Parts) {
  const { config, server, datapath, path, channels, endpoints, policy, auditLog } = parts;
  const node = server.node.info;
  const states = endpoints.view();
  const waiting = datapath.hold.waiting();
  return {
    // Identities known, and every endpoint that can be attached is.
    ready: server.identities.rows().length > 0 || config.endpoints.length === 0,
    node: { name: node.name, spiffeId: node.spiffeId, id: node.id, incarnation: node.incarnation },
    nodes: server.nodes.nodes().length,
    server: server.status(),
    endpoints: {
      open: states.filter((e) => e.state === 'open').length,
      notOpen: states.filter((e) => e.state !== 'open').map((e) => `${e.name}: ${e.state}`),
    },
    datapath: { attach: datapath.attachMode, epoch: datapath.auth.epoch, enforcement: config.enforcement },
    policy: policy.view(),
    tunnel: path.describe(),
    channels: channels.list().length,
    proven: parts.manager.list().length,
    hold: { ...datapath.held(), waiting: waiting.reduce((sum, w) => sum + w.packets, 0) },
    audit: { events: auditLog.size, lost: auditLog.lost },
    unprotected: unprotected(config),
  };
}

/** What this configuration gives up, in sentences. Empty is how it should be. */
function unprotected(config: AgentConfig): string[] {
  const said: string[] = [];
  if (!config.encryption.enabled) said.push('encryption is off: workload traffic crosses the underlay in clear');
  if (config.authentication.allowUnboundPath)
    said.push('allowUnboundPath: nothing ties a packet to the node that sent it');
  if (config.enforcement === 'observe') said.push('enforcement is observe: nothing is dropped');
  return said;
}

export function vouches({ manager }: Parts) {
  return manager.vouches().map((v) => ({ ...v, leaseMs: Math.max(0, v.leaseLeftMs) }));
}

export async function peers({ server, channels, path, clock }: Parts) {
  const tunnels = new Map((await path.peers()).map((p) => [p.node, p]));
  const open = new Map(channels.list().map((c) => [c.peer.spiffeId, c]));
  return server.nodes.nodes().flatMap((node) => {
    if (node.spiffeId === server.node.info.spiffeId) return [];
    const channel = open.get(node.spiffeId);
    const tunnel = tunnels.get(node.id);
    const handshake = tunnel?.lastHandshake ?? 0;
    return [
      {
        name: node.name,
        id: node.id,
        spiffeId: node.spiffeId,
        incarnation: node.incarnation,
        channel: channel === undefined ? 'closed' : 'open',
        channelValidUntil: channel === undefined ? undefined : new Date(channel.validUntilMs).toISOString(),
        tunnel: tunnel === undefined ? 'none' : 'up',
        lastHandshake: handshake === 0 ? 'never' : `${Math.max(0, Math.round(clock.nowMs() / 1000 - handshake))}s ago`,
        rxBytes: tunnel?.rxBytes,
        txBytes: tunnel?.txBytes,
        addresses: tunnel?.allowedAddresses,
      },
    ];
  });
}

export function drops({ datapath }: Parts) {
  return datapath
    .drops()
    .filter((d) => d.packets > 0n)
    .map((d) => ({
      ...d,
      text:
        d.reason in dropReasons ? dropReasons[d.reason as keyof typeof dropReasons].text : 'not known to this build',
    }));
}
