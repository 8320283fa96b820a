/** Nodes over real sockets on the loopback device, with everything a test wants to see or turn. */
import { vi } from 'vitest';
import { FrameType } from '../../../proto/gen/countersign/peer/v1/peer.ts';
import type { Clock } from '../../../src/base/clock.ts';
import { createLogger } from '../../../src/base/log.ts';
import type { ReasonCode } from '../../../src/base/registry/reason-codes.ts';
import type { StaticAddresses } from '../../../src/channel/dial-address.ts';
import type { ChannelLimits } from '../../../src/channel/limits.ts';
import type { PeerChannel } from '../../../src/channel/peer-channel.ts';
import { type StartedPeerChannels, startPeerChannels } from '../../../src/channel/peer-channels.ts';
import type { AuditEvent } from '../../../src/model/audit-event.ts';
import type { NodeInfo, NodeTable, RevocationSubject, Svid, TrustBundle } from '../../../src/model/identity.ts';
import { type NodeId, nodeId } from '../../../src/model/ids.ts';
import { nodeSpiffeId, parseNodeName } from '../../../src/model/spiffe-id.ts';
import type { TestAuthority } from './certificates.ts';

/** On a busy machine too. */
export const eventually = (probe: () => void) => vi.waitFor(probe, { timeout: 10_000 });

/** Real time, with a hand to move it on. */
export class TestClock implements Clock {
  #aheadMs = 0;

  advance(ms: number): void {
    this.#aheadMs += ms;
  }

  nowMs(): number {
    return Date.now() + this.#aheadMs;
  }

  bootNs(): bigint {
    return process.hrtime.bigint() + BigInt(this.#aheadMs) * 1_000_000n;
  }
}

const issued = new WeakMap<TestAuthority, Map<string, Svid>>();

/** Nodes that all know each other. */
export class TestCluster {
  readonly authority: TestAuthority;
  readonly infos: NodeInfo[] = [];
  readonly nodes: TestNode[] = [];
  readonly table: NodeTable = {
    byName: (name) => this.infos.find((info) => info.name === name),
    byId: (id) => this.infos.find((info) => info.id === id),
    bySpiffeId: (id) => this.infos.find((info) => info.spiffeId === id),
    candidates: () => [],
    nodes: () => this.infos,
  };

  constructor(authority: TestAuthority) {
    this.authority = authority;
  }

  /** Lists a node; its addresses come when it starts. */
  list(name: string, incarnation = 1n): NodeInfo {
    const parsed = parseNodeName(name);
    if (!parsed.ok) throw new Error(parsed.error);
    const info: NodeInfo = {
      name: parsed.value,
      spiffeId: nodeSpiffeId(this.authority.bundle.trustDomain, parsed.value),
      id: nodeId(100 + this.infos.length),
      incarnation,
      peerAddresses: [],
      prefixes: [],
    };
    this.infos.push(info);
    return info;
  }

  change(name: string, change: Partial<NodeInfo>): NodeInfo {
    const at = this.infos.findIndex((info) => info.name === name);
    const info = { ...this.infos[at]!, ...change };
    this.infos[at] = info;
    return info;
  }

  /** The same one for the same node and incarnation of one authority: issuing takes its time. */
  svidOf(info: NodeInfo): Svid {
    const key = `${info.spiffeId} ${info.incarnation}`;
    const known = issued.get(this.authority) ?? new Map<string, Svid>();
    issued.set(this.authority, known);
    const svid =
      known.get(key) ?? this.authority.issue({ spiffeId: info.spiffeId, incarnation: info.incarnation.toString() });
    known.set(key, svid);
    return svid;
  }

  /** Starts a listed node, or lists it first. */
  async start(name: string, options: NodeOptions = {}): Promise<TestNode> {
    const info = this.infos.find((known) => known.name === name) ?? this.list(name);
    const node = new TestNode(this, info, options);
    await node.start();
    this.nodes.push(node);
    return node;
  }

  async close(): Promise<void> {
    await Promise.all(this.nodes.splice(0).map((node) => node.channels.close()));
  }
}

export interface NodeOptions {
  readonly svid?: Svid;
  readonly limits?: Partial<ChannelLimits>;
  readonly groups?: string;
  readonly staticAddresses?: StaticAddresses;
  readonly seenIncarnation?: (node: NodeId) => bigint | undefined;
  /** Its addresses are not put into the table. */
  readonly unlisted?: boolean;
  readonly onFrame?: (channel: PeerChannel, type: FrameType, body: Buffer) => void;
}

/** Short, so that no test waits for long; ticks are short too. */
const LIMITS: Partial<ChannelLimits> = {
  handshakeMs: 2_000,
  probeMs: 300,
  lingerMs: 100,
  tickMs: 10,
  acceptsPerSecond: 1_000,
  acceptBurst: 1_000,
  halfOpenPerSource: 1_000,
  handshakesPerSecond: 1_000,
  handshakeBurst: 1_000,
  dialBackoffMinMs: 0,
};

export class TestNode {
  readonly clock = new TestClock();
  readonly audit: AuditEvent[] = [];
  readonly opened: PeerChannel[] = [];
  /** Of both, with the peer's incarnation, in the order in which they were told. */
  readonly order: string[] = [];
  readonly closed: { channel: PeerChannel; reason: ReasonCode }[] = [];
  readonly frames: { channel: PeerChannel; type: FrameType; body: Buffer }[] = [];
  revoked: (subject: RevocationSubject) => boolean = () => false;
  bundle: TrustBundle;
  svid: Svid;
  info: NodeInfo;
  channels!: StartedPeerChannels;
  readonly #cluster: TestCluster;
  readonly #options: NodeOptions;

  constructor(cluster: TestCluster, info: NodeInfo, options: NodeOptions) {
    this.#cluster = cluster;
    this.#options = options;
    this.info = info;
    this.bundle = cluster.authority.bundle;
    this.svid = options.svid ?? cluster.svidOf(info);
  }

  async start(): Promise<void> {
    const { trustDomain } = this.#cluster.authority.bundle;
    this.channels = await startPeerChannels({
      self: () => ({ info: this.info, svid: this.svid }),
      nodes: this.#cluster.table,
      bundles: { bundleOf: (asked) => (asked === this.bundle.trustDomain ? this.bundle : undefined) },
      revocations: { isRevoked: (subject) => this.revoked(subject) },
      trustDomain,
      listen: [{ address: '127.0.0.1', port: 0 }],
      limits: { ...LIMITS, ...this.#options.limits },
      clock: this.clock,
      audit: { emit: (event) => this.audit.push(event) },
      log: createLogger('test', 'silent'),
      events: {
        opened: (channel) => {
          this.opened.push(channel);
          this.order.push(`opened ${channel.peer.incarnation}`);
        },
        frame: (channel, type, body) => {
          this.frames.push({ channel, type, body });
          this.#options.onFrame?.(channel, type, body);
        },
        closed: (channel, reason) => {
          this.closed.push({ channel, reason });
          this.order.push(`closed ${channel.peer.incarnation} ${reason}`);
        },
      },
      ...(this.#options.groups === undefined ? {} : { groups: this.#options.groups }),
      staticAddresses: this.#options.staticAddresses ?? new Map(),
      ...(this.#options.seenIncarnation === undefined ? {} : { seenIncarnation: this.#options.seenIncarnation }),
    });
    if (this.#options.unlisted !== true) {
      this.info = this.#cluster.change(this.info.name, { peerAddresses: [this.address] });
    }
  }

  get port(): number {
    return this.channels.addresses()[0]!.port;
  }

  get address(): string {
    return `127.0.0.1:${this.port}`;
  }

  refusals(): (string | undefined)[] {
    return this.audit.filter(({ kind }) => kind === 'peer.refused').map(({ reason }) => reason);
  }

  /** A frame of a type that the layers above own. */
  static readonly someType = FrameType.FRAME_TYPE_MISS;
}
