/**
 * Two or three nodes with the real auth manager, certificates, authenticators and authority, on a simulated clock and network. Tables are in
 * memory; a frame can be looked at, dropped, held back or replaced on its way.
 */
import { createHmac, randomBytes } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type CertificateAuthority, openCertificateAuthority } from '../../../ca/api.ts';
import type { FrameType } from '../../../proto/gen/countersign/peer/v1/peer.ts';
import { flowText } from '../../../src/auth/flow-proofs.ts';
import { type AuthManager, type AuthManagerOptions, createAuthManager } from '../../../src/auth/manager.ts';
import type { AuthSettings } from '../../../src/auth/ports.ts';
import type { Clock } from '../../../src/base/clock.ts';
import { err, ok, type Result } from '../../../src/base/errors.ts';
import { createLogger } from '../../../src/base/log.ts';
import type { ReasonCode } from '../../../src/base/registry/reason-codes.ts';
import type { Timers } from '../../../src/base/timers.ts';
import type { ChannelRole, PeerChannel, PeerChannels } from '../../../src/channel/peer-channel.ts';
import { parseAddress, parsePrefix, prefixContains } from '../../../src/model/address.ts';
import type { AuditEvent } from '../../../src/model/audit-event.ts';
import type {
  AddressEntry,
  AuthEntry,
  AuthKey,
  AuthType,
  DatapathSignal,
  FlowAuthEntry,
} from '../../../src/model/datapath.ts';
import type { IdentityRow, NodeInfo, Svid } from '../../../src/model/identity.ts';
import {
  type IpAddress,
  LOCAL_NODE,
  type NodeId,
  type NodeName,
  nodeId,
  type SecurityIdentity,
  type SpiffeId,
  securityIdentity,
  type TrustDomain,
} from '../../../src/model/ids.ts';
import { nodeSpiffeId, spiffeId } from '../../../src/model/spiffe-id.ts';
import { createCsr } from '../../../src/pki/csr.ts';
import { generateKey } from '../../../src/pki/keys.ts';

export const DOMAIN = 'example.org' as TrustDomain;
export const address = (text: string): IpAddress => parseAddress(text)!;
const SECOND_NS = 1_000_000_000n;

/** Simulated time: timers run when it passes, frames when the network is settled. */
export class SimTime implements Clock, Timers {
  #bootNs = 1_000n * SECOND_NS;
  readonly #startMs = Date.UTC(2026, 0, 1);
  #timers: { atNs: bigint; order: number; fn: () => void }[] = [];
  #order = 0;

  nowMs(): number {
    return this.#startMs + Number(this.#bootNs / 1_000_000n);
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

interface Wire extends Frame {
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
      firstGeneration: time.bootNs(),
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

export interface Workload {
  readonly node: SimNode;
  readonly ip: IpAddress;
  readonly identity: SecurityIdentity;
  readonly spiffeId: SpiffeId;
  readonly endpoint: number;
}

export class World {
  readonly time: SimTime;
  readonly ca: CertificateAuthority;
  readonly nodes: SimNode[] = [];
  readonly rows = new Map<SecurityIdentity, IdentityRow>();
  readonly bundles = new Map<TrustDomain, { trustDomain: TrustDomain; authorities: readonly Buffer[] }>();
  readonly required = new Map<string, AuthType>();
  readonly denied = new Set<string>();
  settings: Partial<AuthSettings> = {};
  queue: Wire[] = [];
  /** Returns what is delivered in a frame's place; undefined: nothing. */
  intercept: ((frame: Frame) => readonly Frame[] | undefined) | undefined;
  readonly frames: Frame[] = [];
  readonly #cuts = new Set<string>();
  readonly #directory: string;
  #channels = 0;
  #endpoints = 0;

  private constructor(time: SimTime, ca: CertificateAuthority, directory: string) {
    this.time = time;
    this.ca = ca;
    this.#directory = directory;
    this.bundles.set(DOMAIN, { trustDomain: DOMAIN, authorities: ca.bundle().authorities });
  }

  static async create(
    names: Record<string, string[]> = { a: ['10.0.1.0/24'], b: ['10.0.2.0/24'] },
    time = new SimTime(),
  ): Promise<World> {
    const directory = mkdtempSync(join(tmpdir(), 'cs-auth-'));
    const ca = await openCertificateAuthority({ directory: join(directory, 'ca'), trustDomain: DOMAIN, clock: time });
    const world = new World(time, ca, directory);
    for (const [i, [name, prefixes]] of Object.entries(names).entries()) {
      world.nodes.push(new SimNode(world, name, i + 1, prefixes));
    }
    for (const node of world.nodes) node.start();
    return world;
  }

  close(): void {
    this.ca.close();
    rmSync(this.#directory, { recursive: true, force: true });
  }

  node(name: string): SimNode {
    return this.nodes.find((n) => n.name === name)!;
  }

  readonly identities = {
    byIdentity: (identity: SecurityIdentity) => this.rows.get(identity),
    bySpiffeId: (id: SpiffeId) => [...this.rows.values()].find((row) => row.spiffeId === id),
    rows: () => [...this.rows.values()],
  };

  readonly nodeTable = {
    byName: (name: NodeName) => this.nodes.find((n) => n.name === name)?.info,
    byId: (id: NodeId) => this.nodes.find((n) => n.info.id === id)?.info,
    bySpiffeId: (id: SpiffeId) => this.nodes.find((n) => n.info.spiffeId === id)?.info,
    candidates: (ip: IpAddress) =>
      this.nodes.filter((n) => n.info.prefixes.some((p) => prefixContains(p, ip))).map((n) => n.info),
    nodes: () => this.nodes.map((n) => n.info),
  };

  readonly policy = {
    decide: (from: SecurityIdentity, to: SecurityIdentity) => ({
      verdict: this.denied.has(`${from}>${to}`) ? ('deny' as const) : ('allow' as const),
      authType: this.required.get(pairText(from, to)) ?? ('none' as const),
      rule: 1,
    }),
    authTypesOf: (a: SecurityIdentity, b: SecurityIdentity): readonly AuthType[] => {
      const type = this.required.get(pairText(a, b));
      return type === undefined ? [] : [type];
    },
  };

  require(a: Workload, b: Workload, authType: AuthType = 'spiffe'): void {
    this.required.set(pairText(a.identity, b.identity), authType);
  }

  /** An endpoint with an SVID, a row in the identity table and a place on a node. */
  async workload(name: string, node: SimNode, ip: string, identity: number): Promise<Workload> {
    const id = spiffeId(`spiffe://${DOMAIN}/${name}`);
    const numbered = securityIdentity(identity);
    const row = this.rows.get(numbered);
    const nodes = new Set([...(row?.nodes ?? []), node.info.spiffeId]);
    this.rows.set(numbered, { identity: numbered, spiffeId: id, labels: {}, nodes: [...nodes] });
    node.svids.set(numbered, ok(await this.issue(id, node.info.spiffeId)));
    const workload = { node, ip: address(ip), identity: numbered, spiffeId: id, endpoint: ++this.#endpoints };
    node.manager.addEndpoint({ ...workload, addresses: [workload.ip] });
    return workload;
  }

  async issue(id: SpiffeId, node: SpiffeId, ttlSeconds?: number): Promise<Svid> {
    const privateKey = generateKey();
    const request = { csr: createCsr(privateKey), spiffeId: id, node, requester: 'test' };
    const issued = await this.ca.issueWorkloadSvid(ttlSeconds === undefined ? request : { ...request, ttlSeconds });
    if (!issued.ok) throw new Error(issued.error);
    return { spiffeId: id, chain: issued.value.chain, privateKey, notAfterMs: issued.value.notAfterMs };
  }

  connect(client: SimNode, server: SimNode): SimChannel {
    const id = `ch${++this.#channels}`;
    const secret = randomBytes(32);
    const near = new SimChannel(client, server, 'client', `${id}c`, secret);
    const far = new SimChannel(server, client, 'server', `${id}s`, secret);
    near.other = far;
    far.other = near;
    client.channelTo.set(server.info.id, near);
    server.channelTo.set(client.info.id, far);
    client.manager.opened(near);
    server.manager.opened(far);
    return near;
  }

  cut(a: string, b: string): void {
    this.#cuts.add(pairText(a, b));
    const node = this.node(a);
    node.channelTo.get(this.node(b).info.id)?.close('PEER_IDLE_TIMEOUT');
  }

  heal(a: string, b: string): void {
    this.#cuts.delete(pairText(a, b));
  }

  isCut(a: string, b: string): boolean {
    return this.#cuts.has(pairText(a, b));
  }

  /** Until nothing is on the wire and nothing is left to do now. */
  async settle(): Promise<void> {
    for (;;) {
      await new Promise((resolve) => setImmediate(resolve));
      const wire = this.queue.shift();
      if (wire === undefined) return;
      this.#deliver(wire);
    }
  }

  #deliver(wire: Wire): void {
    const { target, ...frame } = wire;
    this.frames.push(frame);
    const instead = this.intercept === undefined ? [frame] : (this.intercept(frame) ?? []);
    for (const { type, body } of instead) inject(target, type, body);
  }

  async pass(ms: number): Promise<void> {
    const untilNs = this.time.bootNs() + BigInt(Math.round(ms * 1e6));
    for (;;) {
      await this.settle();
      const timer = this.time.next(untilNs);
      if (timer === undefined) break;
      timer();
    }
    await this.settle();
  }

  /** A packet that leaves `from` for an address: passes, or is held and signalled as the kernel would. */
  send(from: Workload, to: Workload | IpAddress): 'passed' | 'held' | 'dropped' {
    const remote = typeof to === 'string' ? to : to.ip;
    const { node } = from;
    const believed = node.believes(remote);
    const entry = node.kernelAddresses.get(remote);
    if (believed === undefined) {
      node.manager.signal(this.signalOf('vouch-miss', 'egress', from, remote));
      return 'held';
    }
    const authType = this.required.get(pairText(from.identity, believed));
    if (authType === undefined || node.hasAuth(from.identity, believed, entry!.node)) return 'passed';
    if (node.isRefused(from.identity, believed, entry!.node)) return 'dropped';
    const signal = this.signalOf('auth-miss', 'egress', from, remote);
    node.manager.signal({ ...signal, remoteIdentity: believed, remoteNode: entry!.node, authType });
    return 'held';
  }

  /** The first packet of a flow that policy wants a proof of its own for. */
  sendFlow(from: Workload, to: Workload, localPort: number, remotePort = 80): 'passed' | 'held' {
    const { node } = from;
    const entry = node.kernelAddresses.get(to.ip);
    const signal = { ...this.signalOf('auth-miss', 'egress', from, to.ip), localPort, remotePort };
    if (node.believes(to.ip) === undefined) {
      node.manager.signal({ ...signal, kind: 'vouch-miss' });
      return 'held';
    }
    const proof = node.kernelFlows.get(flowText(signal));
    if (proof !== undefined && proof.expiresAtNs > this.time.bootNs() && proof.epoch >= node.epoch) return 'passed';
    const { identity, node: remoteNode } = entry!;
    node.manager.signal({ ...signal, remoteIdentity: identity, remoteNode, authType: 'spiffe-connection' });
    return 'held';
  }

  /** The receiver's kernel dropped a packet from `remote` to `to`. */
  missAtReceiver(to: Workload, remote: Workload): void {
    const signal = this.signalOf('auth-miss', 'ingress', to, remote.ip);
    to.node.manager.signal({
      ...signal,
      held: false,
      remoteIdentity: remote.identity,
      remoteNode: remote.node.info.id,
      authType: 'spiffe',
    });
  }

  signalOf(
    kind: DatapathSignal['kind'],
    direction: 'egress' | 'ingress',
    from: Workload,
    remote: IpAddress,
  ): DatapathSignal {
    return {
      kind,
      timeNs: this.time.bootNs(),
      suppressed: 0n,
      direction,
      endpoint: from.endpoint,
      localAddress: from.ip,
      remoteAddress: remote,
      localIdentity: from.identity,
      remoteIdentity: securityIdentity(0),
      remoteNode: LOCAL_NODE,
      protocol: 6,
      localPort: 40_000,
      remotePort: 80,
      authType: 'none',
      rule: 1,
      held: true,
      reason: undefined,
      length: 60,
    };
  }
}

/** Hands a frame to a channel's node as the channel layer does: what does not decode closes the channel. */
export function inject(target: SimChannel, type: FrameType, body: Buffer): void {
  if (target.closed) return;
  try {
    target.node.manager.frame(target, type, body);
  } catch {
    target.close('PEER_FRAME_MALFORMED');
  }
}

export function channelOf(node: SimNode, peer: SimNode): SimChannel {
  return node.channelTo.get(peer.info.id)!;
}

function keyText(key: AuthKey): string {
  return `${key.local}/${key.remote}/${key.remoteNode}/${key.authType}`;
}

function pairText(a: string | number, b: string | number): string {
  return [a, b].sort().join('|');
}
