/** The path between nodes: an authenticated tunnel, or, where the configuration accepts the risk, none. */
import { join } from 'node:path';
import { native } from '../../native/index.ts';
import type { FrameType } from '../../proto/gen/countersign/peer/v1/peer.ts';
import type { TunnelBinding } from '../auth/ports.ts';
import { CountersignError, ok } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import { parseDialAddress } from '../channel/dial-address.ts';
import type { PeerChannel } from '../channel/peer-channel.ts';
import type { Datapath } from '../datapath/datapath.ts';
import { createTunnelManager } from '../encryption/manager.ts';
import { openWireguardTunnel } from '../encryption/open.ts';
import type { AuditSink } from '../model/audit-event.ts';
import type { NodeInfo, Svid } from '../model/identity.ts';
import type { NodeId } from '../model/ids.ts';
import type { TunnelPeerStatus } from '../model/tunnel.ts';
import type { AgentConfig } from './config.ts';

/** Longer than a TLS handshake and a tunnel's between healthy nodes, shorter than a held packet's deadline. */
const READY_TIMEOUT_MS = 4_000;

export interface NodePath {
  /** The same tunnel as before the agent's start: addresses that the kernel still believes are bound in it. */
  readonly continues: boolean;
  readonly binding: TunnelBinding;
  channelOpened(channel: PeerChannel): void;
  /** @throws on a frame that is not the tunnel's; the channel closes then */
  frame(channel: PeerChannel, type: FrameType, body: Buffer): void;
  channelClosed(channel: PeerChannel): void;
  /** The node left the registry: its tunnel ends now, not with its last lease. */
  forget(node: NodeId): Promise<void>;
  describe(): {
    readonly type: string;
    readonly implementation?: string;
    readonly device?: string;
    readonly pskFrom?: string;
  };
  peers(): Promise<readonly TunnelPeerStatus[]>;
  close(): Promise<void>;
}

export interface PathOptions {
  readonly config: AgentConfig;
  readonly datapath: Datapath;
  readonly self: () => { info: NodeInfo; svid: Svid };
  readonly audit: AuditSink;
  readonly log: Logger;
}

export async function openPath(options: PathOptions): Promise<NodePath> {
  if (options.config.encryption.enabled) return openTunnelPath(options);
  // A device of an earlier start would keep its routes and go on encrypting what this configuration wants in clear.
  await removeTunnel(options.config, options.log);
  return clearPath();
}

/** Takes the tunnel device away, with its routes and its user-space process. Nothing to do if there is none. */
export async function removeTunnel(config: AgentConfig, log: Logger): Promise<void> {
  const { device, port, mtu, implementation } = config.encryption.wireguard;
  if (!deviceExists(device)) return;
  const tunnel = await openWireguardTunnel({
    device,
    listenPort: port,
    mtu,
    implementation,
    keyFile: keyFile(config),
    runDir: config.dataDir,
    log,
  });
  await tunnel.destroy();
}

const keyFile = (config: AgentConfig): string => join(config.dataDir, 'wireguard.key');

function deviceExists(name: string): boolean {
  try {
    native().ifIndex(name);
    return true;
  } catch {
    return false;
  }
}

async function openTunnelPath({ config, datapath, self, audit, log }: PathOptions): Promise<NodePath> {
  const { device, port, mtu, implementation } = config.encryption.wireguard;
  const continues = deviceExists(device);
  const tunnel = await openWireguardTunnel({
    device,
    listenPort: port,
    mtu,
    implementation,
    keyFile: keyFile(config),
    runDir: config.dataDir,
    onDeviceReplaced: (ifindex) => datapath.attachTunnel(ifindex),
    log,
  });
  datapath.attachTunnel(tunnel.ifindex);
  const hosts = config.peer.listen.flatMap((text) => parseDialAddress(text)?.host ?? []);
  const manager = createTunnelManager({
    tunnel,
    // The tunnel's outer address is of the family in which the peer is reached.
    self: () => ({
      ...self(),
      underlayEndpoint: (peer: NodeInfo) => {
        const peerHost = peer.peerAddresses.map((a) => parseDialAddress(a)?.host).find((h) => h !== undefined) ?? '';
        const host = hosts.find((h) => h.includes(':') === peerHost.includes(':')) ?? hosts[0] ?? '';
        return host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`;
      },
    }),
    audit,
    log,
  });
  return {
    continues,
    binding: {
      whenReady: (node) => manager.whenReady(node.id, READY_TIMEOUT_MS),
      allow: (node, address) => tunnel.allow(node, address),
      disallow: (address) => tunnel.disallow(address),
      endSession: (node) => manager.endSession(node),
    },
    channelOpened: (channel) => manager.channelOpened(channel),
    frame(channel, type, body) {
      if (!manager.frame(channel, type, body))
        throw new CountersignError('bad-input', `frame type ${type} belongs to nobody`);
    },
    channelClosed: (channel) => manager.channelClosed(channel),
    forget: (node) => manager.forget(node),
    describe: () => ({
      type: tunnel.type,
      implementation: tunnel.implementation,
      device: tunnel.device,
      pskFrom: 'TLS exporter',
    }),
    peers: () => tunnel.status(),
    close: () => tunnel.close(),
  };
}

function clearPath(): NodePath {
  return {
    continues: false,
    binding: {
      whenReady: async () => ok(undefined),
      allow: async () => {},
      disallow: async () => {},
      endSession: async () => {},
    },
    channelOpened: () => {},
    // The peer offers a tunnel that this node does not want: its offer stays unanswered, and it sees no tunnel.
    frame: () => {},
    channelClosed: () => {},
    forget: async () => {},
    describe: () => ({ type: 'none' }),
    peers: async () => [],
    close: async () => {},
  };
}
