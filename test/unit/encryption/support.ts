/** Two nodes with real SVID keys, joined by a wire the test delivers by hand, each with a tunnel that only remembers. */
import { createHmac, generateKeyPairSync, type KeyObject } from 'node:crypto';
import type { FrameType } from '../../../proto/gen/countersign/peer/v1/peer.ts';
import { createLogger } from '../../../src/base/log.ts';
import type { ReasonCode } from '../../../src/base/registry/reason-codes.ts';
import type { ChannelRole, PeerChannel } from '../../../src/channel/peer-channel.ts';
import { nobodysPublicKey } from '../../../src/encryption/key-file.ts';
import { createTunnelManager, type TunnelManager } from '../../../src/encryption/manager.ts';
import type { AuditEvent } from '../../../src/model/audit-event.ts';
import type { NodeInfo } from '../../../src/model/identity.ts';
import { type IpAddress, type NodeId, type NodeName, nodeId } from '../../../src/model/ids.ts';
import { spiffeId } from '../../../src/model/spiffe-id.ts';
import type { Tunnel, TunnelPeer, TunnelPeerStatus } from '../../../src/model/tunnel.ts';
import type { Certificate } from '../../../src/pki/certificate.ts';

export class RememberedTunnel implements Tunnel {
  readonly type = 'wireguard';
  readonly implementation = 'memory';
  readonly device = 'mem0';
  readonly ifindex = 1;
  readonly publicKey = nobodysPublicKey();
  readonly keyNumber = 1;
  readonly listenPort = 51871;
  readonly peers = new Map<NodeId, TunnelPeer>();
  readonly calls: string[] = [];
  failure: Error | undefined;
  /** setPeer waits for this. */
  gate: Promise<void> = Promise.resolve();

  async setPeer(peer: TunnelPeer): Promise<void> {
    await this.gate;
    if (this.failure !== undefined) throw this.failure;
    this.calls.push(`set ${peer.node}`);
    this.peers.set(peer.node, peer);
  }
  async startHandshake(node: NodeId): Promise<void> {
    this.calls.push(`handshake ${node}`);
  }
  async removePeer(node: NodeId): Promise<void> {
    this.calls.push(`remove ${node}`);
    this.peers.delete(node);
  }
  async allow(_node: NodeId, _address: IpAddress): Promise<void> {}
  async disallow(_address: IpAddress): Promise<void> {}
  async endSession(node: NodeId, handshake: boolean): Promise<void> {
    this.calls.push(`end ${node}${handshake ? ' handshake' : ''}`);
  }
  async status(): Promise<readonly TunnelPeerStatus[]> {
    return [];
  }
  async close(): Promise<void> {}
  async destroy(): Promise<void> {}
}

export class TestNode {
  info: NodeInfo;
  readonly key: KeyObject;
  readonly publicKey: KeyObject;
  readonly tunnel = new RememberedTunnel();
  readonly events: AuditEvent[] = [];
  readonly manager: TunnelManager;
  endpoint: string;

  constructor(id: number) {
    const { privateKey, publicKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
    this.key = privateKey;
    this.publicKey = publicKey;
    this.endpoint = `192.0.2.${id}:51871`;
    this.info = {
      name: `node-${id}` as NodeName,
      spiffeId: spiffeId(`spiffe://example.org/node/node-${id}`),
      id: nodeId(id),
      incarnation: BigInt(id * 100),
      peerAddresses: [],
      prefixes: [],
    };
    this.manager = createTunnelManager({
      tunnel: this.tunnel,
      self: () => ({
        info: this.info,
        svid: { spiffeId: this.info.spiffeId, chain: [], privateKey, notAfterMs: 0 },
        underlayEndpoint: () => this.endpoint,
      }),
      audit: { emit: (event) => this.events.push(event) },
      log: createLogger('test', 'silent'),
    });
  }

  reasons(): (string | undefined)[] {
    return this.events.map((e) => (e.reason === undefined ? e.kind : `${e.kind} ${e.reason}`));
  }
}

interface Sent {
  readonly from: WireEnd;
  readonly type: FrameType;
  readonly body: Buffer;
}

class WireEnd implements PeerChannel {
  readonly validUntilMs = 0;
  readonly hash = 'sha256';
  readonly peerCertificate: Certificate;
  readonly role: ChannelRole;
  readonly id: string;
  readonly node: TestNode;
  readonly peer: NodeInfo;
  readonly #wire: Wire;

  constructor(wire: Wire, node: TestNode, remote: TestNode, role: ChannelRole) {
    this.#wire = wire;
    this.node = node;
    this.peer = { ...remote.info };
    this.role = role;
    this.id = wire.id;
    this.peerCertificate = { publicKey: remote.publicKey } as Certificate;
  }

  get closed(): boolean {
    return this.#wire.closedWith !== undefined;
  }

  send(type: FrameType, body: Uint8Array): void {
    if (!this.closed) this.#wire.sent.push({ from: this, type, body: Buffer.from(body) });
  }

  exportKey(label: string, context: Uint8Array, length: number): Buffer {
    const info = Buffer.concat([Buffer.from(`${label}\0${length}\0`), context]);
    return createHmac('sha256', this.#wire.secret).update(info).digest().subarray(0, length);
  }

  close(reason: ReasonCode): void {
    this.#wire.close(reason);
  }
}

let wires = 0;

/** One channel between two nodes: frames wait in `sent` until delivered. */
export class Wire {
  readonly id = `channel-${++wires}`;
  readonly secret = Buffer.from(`secret of ${wires}`);
  readonly sent: Sent[] = [];
  readonly client: WireEnd;
  readonly server: WireEnd;
  closedWith: ReasonCode | undefined;

  constructor(client: TestNode, server: TestNode) {
    this.client = new WireEnd(this, client, server, 'client');
    this.server = new WireEnd(this, server, client, 'server');
    this.server.node.manager.channelOpened(this.server);
    this.client.node.manager.channelOpened(this.client);
  }

  /** Delivers until nothing is under way. */
  async settle(): Promise<void> {
    for (;;) {
      const frame = this.sent.shift();
      if (frame !== undefined) this.deliver(frame);
      await new Promise(setImmediate);
      if (this.sent.length === 0) {
        await new Promise(setImmediate);
        if (this.sent.length === 0) return;
      }
    }
  }

  deliver({ from, type, body }: Sent): void {
    const to = from === this.client ? this.server : this.client;
    if (!to.closed) to.node.manager.frame(to, type, body);
  }

  close(reason: ReasonCode): void {
    if (this.closedWith !== undefined) return;
    this.closedWith = reason;
    for (const end of [this.client, this.server]) end.node.manager.channelClosed(end);
  }
}
