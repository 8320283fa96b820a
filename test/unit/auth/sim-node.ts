/** One node with the real auth manager on simulated time: its tables are in memory, its channels end in the world's queue of frames. */
import { createHmac } from 'node:crypto';
import type { FrameType } from '../../../proto/gen/countersign/peer/v1/peer.ts';
import { flowText } from '../../../src/auth/flow-proofs.ts';
import { type AuthManager, type AuthManagerOptions, createAuthManager } from '../../../src/auth/manager.ts';
import type { Clock } from '../../../src/base/clock.ts';
import { err, ok, type Result } from '../../../src/base/errors.ts';
import { createLogger } from '../../../src/base/log.ts';
import type { ReasonCode } from '../../../src/base/registry/reason-codes.ts';
import type { Timers } from '../../../src/base/timers.ts';
import type { ChannelRole, PeerChannel, PeerChannels } from '../../../src/channel/peer-channel.ts';
import { parsePrefix } from '../../../src/model/address.ts';
import type { AuditEvent } from '../../../src/model/audit-event.ts';
import type { AddressEntry, AuthEntry, AuthKey, FlowAuthEntry } from '../../../src/model/datapath.ts';
import type { NodeInfo, Svid } from '../../../src/model/identity.ts';
import {
  type IpAddress,
  LOCAL_NODE,
  type NodeId,
  type NodeName,
  nodeId,
  type SecurityIdentity,
  type TrustDomain,
} from '../../../src/model/ids.ts';
import { nodeSpiffeId } from '../../../src/model/spiffe-id.ts';

import type { World } from './world.ts';

export const DOMAIN = 'example.org' as TrustDomain;
const SECOND_NS = 1_000_000_000n;

/** Simulated time: timers run when it passes, frames when the network is settled. */
export class SimTime implements Clock, Timers {
  #bootNs = 1_000n * SECOND_NS;
  readonly #startMs = Date.UTC(2026, 0, 1);
  #timers: { atNs: bigint; order: number; fn: () => void }[] = [];
  #order = 0;
  #wallMs = 0;

  nowMs(): number {
    return this.#startMs + this.#wallMs + Number(this.#bootNs / 1_000_000n);
  }

  /** Somebody sets the wall clock. */
  setWall(byMs: number): void {
    this.#wallMs += byMs;
  }

  bootNs(): bigint {
    return this.#bootNs;
  }

  set(ms: number, fn: () => void): () => void {
    const timer = { atNs: this.#bootNs + BigInt(Math.ceil(ms * 1e6)), order: this.#order++, fn };
    this.#timers.push(timer);
    return () => {
      this.#timers = this.#timers.filter((t) => t !== timer);
    };
  }

  /** Clocks leap, timers do not run. */
  skip(ms: number): void {
    this.#bootNs += BigInt(ms) * 1_000_000n;
  }

  /** The next timer due until then, with the clock set to it. */
  next(untilNs: bigint): (() => void) | undefined {
    const due = this.#timers
      .filter((t) => t.atNs <= untilNs)
      .sort((a, b) => Number(a.atNs - b.atNs) || a.order - b.order);
    const timer = due[0];
    if (timer === undefined) {
      this.#bootNs = untilNs;
      return undefined;
    }
    this.#timers = this.#timers.filter((t) => t !== timer);
    if (timer.atNs > this.#bootNs) this.#bootNs = timer.atNs;
    return timer.fn;
  }
}

export interface Frame {
  readonly from: string;
  readonly to: string;
  readonly type: FrameType;
  readonly body: Buffer;
}

export interface Wire extends Frame {
  readonly target: SimChannel;
}

/** One end of a channel. */
export class SimChannel implements PeerChannel {
  readonly peer: NodeInfo;
  readonly role: ChannelRole;
  readonly id: string;
  readonly validUntilMs = Number.MAX_SAFE_INTEGER;
  readonly hash = 'sha256';
  /** Of no interest here: the channel layer has judged it. */
  readonly peerCertificate = {} as PeerChannel['peerCertificate'];
  closed = false;
  other!: SimChannel;
  closeReason: ReasonCode | undefined;
  readonly node: SimNode;
  readonly #secret: Buffer;

  constructor(node: SimNode, peer: SimNode, role: ChannelRole, id: string, secret: Buffer) {
    this.node = node;
    this.peer = { ...peer.info };
    this.role = role;
    this.id = id;
    this.#secret = secret;
  }

  send(type: FrameType, body: Uint8Array): void {
    if (this.closed) return;
    this.node.world.queue.push({
      from: this.node.name,
      to: this.peer.name,
      type,
      body: Buffer.from(body),
      target: this.other,
    });
  }

  exportKey(label: string, context: Uint8Array, length: number): Buffer {
    return createHmac('sha512', this.#secret)
      .update(`${label}\0${length}\0`)
      .update(context)
      .digest()
      .subarray(0, length);
  }

  close(reason: ReasonCode): void {
    this.#end(reason);
    this.other.#end(reason);
  }

  #end(reason: ReasonCode): void {
    if (this.closed) return;
    this.closed = true;
    this.closeReason = reason;
    if (this.node.channelTo.get(this.peer.id) === this) this.node.channelTo.delete(this.peer.id);
    this.node.closedChannels.push({ peer: this.peer.name, reason });
    this.node.manager.closed(this, reason);
  }
}

export class SimNode {
  readonly world: World;
  readonly name: string;
  info: NodeInfo;
  manager!: AuthManager;
  readonly channelTo = new Map<NodeId, SimChannel>();
  readonly closedChannels: { peer: string; reason: ReasonCode }[] = [];
  readonly svids = new Map<SecurityIdentity, Result<Svid, ReasonCode>>();
  readonly kernelAddresses = new Map<IpAddress, AddressEntry>();
  readonly kernelAuth = new Map<string, AuthEntry>();
  /** Proofs of flows, by endpoint, protocol and both ends. */
  readonly kernelFlows = new Map<string, FlowAuthEntry>();
  /** Until when packets of a key drop at once. */
  readonly kernelRefused = new Map<string, bigint>();
  readonly tunnelAllowed = new Map<IpAddress, NodeId>();
  readonly audit: AuditEvent[] = [];
  readonly opened: number[] = [];
  readonly released: string[] = [];
  readonly refused: string[] = [];
  /** What was done to the tables, in order. */
  readonly log: string[] = [];
  epoch = 1;
  #life = 0;
  tunnelReady: Result<void, ReasonCode> = ok(undefined);
  /** While set, changes of the tunnel's table wait for it. */
  tunnelGate: Promise<void> | undefined;
  /** While set, sessions end when it does; programs, likewise. */
  sessionGate: Promise<void> | undefined;
  quiesceGate: Promise<void> | undefined;
  /** "endpoint/node" */
  readonly kernelFences = new Set<string>();

  constructor(world: World, name: string, id: number, prefixes: string[]) {
    this.world = world;
    this.name = name;
    this.info = {
      name: name as NodeName,
      spiffeId: nodeSpiffeId(DOMAIN, name as NodeName),
      id: nodeId(id),
      incarnation: 1n,
      peerAddresses: [],
      prefixes: prefixes.map((prefix) => parsePrefix(prefix)!),
    };
  }

  /** A new process of the agent: kernel tables stay, memory goes. */
  start(options: Partial<AuthManagerOptions> = {}): void {
    const { world } = this;
    const { time } = world;
    const life = ++this.#life;
    this.manager = createAuthManager({
      self: this.info,
      firstLife: true,
      channels: this.#channels(),
      hold: {
        release: (local, remote) => this.released.push(`${local}>${remote}`),
        refuse: (local, remote, reason) => this.refused.push(`${local}>${remote} ${reason}`),
        forget: () => {},
        waiting: () => [],
      },
      authTable: this.#authTable(),
      addresses: this.#addressTable(),
      identities: world.identities,
      nodes: world.nodeTable,
      svids: { svidOf: (identity) => this.svids.get(identity) ?? err('AUTH_NO_SVID') },
      bundles: { bundleOf: (td) => world.bundles.get(td) },
      revocations: { isRevoked: (subject) => world.ca.isRevoked(subject) },
      policy: () => world.policy,
      tunnel: {
        whenReady: async () => this.tunnelReady,
        allow: async (node, ip) => {
          await this.tunnelGate;
          this.log.push(`allow ${ip} ${node}`);
          this.tunnelAllowed.set(ip, node);
        },
        disallow: async (ip) => {
          await this.tunnelGate;
          this.log.push(`disallow ${ip}`);
          this.tunnelAllowed.delete(ip);
        },
        endSession: async (node) => {
          await this.sessionGate;
          this.log.push(`end ${node}`);
        },
      },
      fences: this.#fenceTable(),
      quiesce: async () => {
        await this.quiesceGate;
        this.log.push('quiesce');
      },
      endpointOpened: (endpoint) => {
        this.log.push(`opened ${endpoint.endpoint}`);
        this.opened.push(endpoint.endpoint);
        for (const ip of endpoint.addresses) {
          this.kernelAddresses.set(ip, {
            address: ip,
            identity: endpoint.identity,
            node: LOCAL_NODE,
            incarnation: this.info.incarnation,
            generation: endpoint.generation,
            leaseEndNs: undefined,
            endpoint: endpoint.endpoint,
            reserved: false,
          });
        }
      },
      audit: { emit: (event) => this.audit.push(event) },
      clock: time,
      // Those of a process that ended never run.
      timers: { set: (ms, fn) => time.set(ms, () => (life === this.#life ? fn() : undefined)) },
      log: createLogger('test', 'silent'),
      settings: world.settings,
      random: () => 0.5,
      ...options,
    });
  }

  /** kill -9, and a new process: its channels break, what the kernel has stays. Its endpoints are added by who calls. */
  restart(options: Partial<AuthManagerOptions> = {}): void {
    for (const channel of [...this.channelTo.values()]) channel.close('PEER_CHANNEL_CLOSED');
    this.start({ firstLife: false, ...options });
  }

  #channels(): PeerChannels {
    return {
      open: async (node) => {
        const there = this.channelTo.get(node.id);
        if (there !== undefined) return there;
        const peer = this.world.nodes.find((n) => n.info.id === node.id);
        if (peer === undefined || this.world.isCut(this.name, peer.name)) {
          throw Object.assign(new Error('unreachable'), { reason: 'PEER_UNREACHABLE' });
        }
        return this.world.connect(this, peer);
      },
      get: (node) => this.channelTo.get(node.id),
      list: () => [...this.channelTo.values()],
    };
  }

  #authTable(): AuthManagerOptions['authTable'] {
    const self = this;
    const put = (entry: AuthEntry) => {
      this.log.push(`auth+ ${entry.local}>${entry.remote}@${entry.remoteNode}`);
      this.kernelRefused.delete(keyText(entry));
      this.kernelAuth.set(keyText(entry), entry);
    };
    return {
      get epoch() {
        return self.epoch;
      },
      put,
      putAll: (entries) => entries.forEach(put),
      raiseEpoch: () => {
        this.log.push('epoch+');
        this.epoch += 1;
        return this.epoch;
      },
      delete: (keys) => {
        for (const key of keys) this.log.push(`auth- ${key.local}>${key.remote}@${key.remoteNode}`);
        for (const key of keys) this.kernelRefused.delete(keyText(key));
        return keys.filter((key) => this.kernelAuth.delete(keyText(key))).length;
      },
      refuse: (keys, untilNs) => {
        for (const key of keys) {
          this.log.push(`auth! ${key.local}>${key.remote}@${key.remoteNode}`);
          this.kernelAuth.delete(keyText(key));
          this.kernelRefused.set(keyText(key), untilNs);
        }
      },
      forgetRefusals: () => this.kernelRefused.clear(),
      list: () => [...this.kernelAuth.values()],
      putFlow: (entry, flow) => {
        this.log.push(`flow+ ${entry.local}>${entry.remote}@${entry.remoteNode} ${flowText(flow)}`);
        this.kernelFlows.set(flowText(flow), { ...entry, flow, taken: false });
      },
      refuseFlow: (_, flow) => {
        this.log.push(`flow! ${flowText(flow)}`);
        this.kernelFlows.delete(flowText(flow));
      },
      deleteFlows: (keys) => {
        const texts = new Set(keys.map(keyText));
        const going = [...this.kernelFlows].filter(([, entry]) => texts.has(keyText(entry)));
        for (const [text] of going) this.kernelFlows.delete(text);
        return going.length;
      },
      listFlows: () => [...this.kernelFlows.values()],
    };
  }

  #addressTable(): AuthManagerOptions['addresses'] {
    return {
      put: (entry) => {
        this.log.push(`vouch+ ${entry.address} ${entry.identity}@${entry.node}`);
        this.kernelAddresses.set(entry.address, entry);
      },
      putAll: (entries) => {
        for (const entry of entries) {
          this.log.push(`vouch+ ${entry.address} ${entry.identity}@${entry.node}`);
          this.kernelAddresses.set(entry.address, entry);
        }
      },
      delete: (ip) => {
        this.log.push(`vouch- ${ip}`);
        return this.kernelAddresses.delete(ip);
      },
      get: (ip) => this.kernelAddresses.get(ip),
      list: () => [...this.kernelAddresses.values()],
    };
  }

  #fenceTable(): AuthManagerOptions['fences'] {
    return {
      close: (endpoint, nodes) => {
        for (const node of nodes) {
          this.log.push(`shut ${endpoint}/${node}`);
          this.kernelFences.add(`${endpoint}/${node}`);
        }
      },
      open: (endpoint, nodes) => {
        for (const node of nodes) {
          this.log.push(`open ${endpoint}/${node}`);
          this.kernelFences.delete(`${endpoint}/${node}`);
        }
      },
      list: () =>
        [...this.kernelFences].map((fence) => {
          const [endpoint, node] = fence.split('/').map(Number) as [number, number];
          return { endpoint, node: nodeId(node) };
        }),
    };
  }

  /** Who the kernel believes an address to be, now. */
  believes(ip: IpAddress): SecurityIdentity | undefined {
    const entry = this.kernelAddresses.get(ip);
    if (entry === undefined) return undefined;
    const alive = entry.leaseEndNs === undefined || entry.leaseEndNs > this.world.time.bootNs();
    return alive ? entry.identity : undefined;
  }

  hasAuth(local: SecurityIdentity, remote: SecurityIdentity, node: NodeId): boolean {
    const entry = this.kernelAuth.get(keyText({ local, remote, remoteNode: node, authType: 'spiffe' }));
    return entry !== undefined && entry.expiresAtNs > this.world.time.bootNs() && entry.epoch >= this.epoch;
  }

  isRefused(local: SecurityIdentity, remote: SecurityIdentity, node: NodeId): boolean {
    const untilNs = this.kernelRefused.get(keyText({ local, remote, remoteNode: node, authType: 'spiffe' }));
    return untilNs !== undefined && untilNs > this.world.time.bootNs();
  }

  reasons(kind: AuditEvent['kind']): (string | undefined)[] {
    return this.audit.filter((event) => event.kind === kind).map((event) => event.reason);
  }
}

function keyText(key: AuthKey): string {
  return `${key.local}/${key.remote}/${key.remoteNode}/${key.authType}`;
}
