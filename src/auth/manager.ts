/**
 * The auth manager: wires vouches, proofs and held packets of one node together, and is told everything that may change a verdict.
 * It gets the peer channels' events, the datapath's signals and the control plane's changes; it writes the kernel's tables.
 */
import { FrameType } from '../../proto/gen/countersign/peer/v1/peer.ts';
import { err, type Result } from '../base/errors.ts';
import type { ReasonCode } from '../base/registry/reason-codes.ts';
import type { PeerChannel } from '../channel/peer-channel.ts';
import type { AuthKey, DatapathSignal, FlowTuple } from '../model/datapath.ts';
import type { NodeInfo } from '../model/identity.ts';
import { type IpAddress, LOCAL_NODE, type NodeId, type SecurityIdentity } from '../model/ids.ts';
import type { AuthRecord } from './auth-entries.ts';
import { Backoff } from './backoff.ts';
import {
  type AuthEntryView,
  explainPair,
  type PairExplanation,
  type VouchView,
  viewOfEntry,
  viewOfFlow,
  viewOfVouch,
} from './explain.ts';
import { HeldPackets } from './held-packets.ts';
import type { AuthManager, AuthManagerOptions } from './manager-api.ts';
import { Outside } from './outside.ts';
import { OwnProofs } from './own-proof.ts';
import { DEFAULT_AUTH_SETTINGS } from './ports.ts';
import { Proofs } from './proofs.ts';
import { Redial } from './redial.ts';
import type { ProofFacts } from './verify-proof.ts';
import { VouchClient } from './vouch-client.ts';
import { VouchFrames } from './vouch-frames.ts';
import { type HostedEndpoint, type OwnEndpoint, VouchHost } from './vouch-host.ts';

export type { AuthManager, AuthManagerOptions } from './manager-api.ts';

const NONE: ReadonlySet<string> = new Set();

/** Frame types that belong here; the others above the channel's own are the tunnel's. */
export function isAuthFrame(type: FrameType): boolean {
  return type >= FrameType.FRAME_TYPE_VOUCH_REQUEST && type <= FrameType.FRAME_TYPE_PAIRS_RESULT;
}

export function createAuthManager(options: AuthManagerOptions): AuthManager {
  return new Manager(options);
}

class Manager implements AuthManager {
  readonly #options: AuthManagerOptions;
  readonly #host: VouchHost;
  readonly #vouches: VouchClient;
  readonly #proofs: Proofs;
  readonly #held: HeldPackets;
  readonly #owns: OwnProofs;
  readonly #pairBackoff: Backoff;
  readonly #addressBackoff: Backoff;
  readonly #vouchFrames: VouchFrames;
  readonly #redial: Redial;
  readonly #outside = new Outside();
  #nodeIds: ReadonlySet<NodeId>;

  constructor(given: AuthManagerOptions) {
    const options: AuthManagerOptions = {
      ...given,
      channels: this.#outside.channels(given.channels),
      tunnel: this.#outside.tunnel(given.tunnel),
      quiesce: this.#outside.quiesce(() => given.quiesce()),
      timers: this.#outside.timers(given.timers),
    };
    const { clock, timers, audit, log, nodes, identities, channels } = options;
    const settings = { ...DEFAULT_AUTH_SETTINGS, ...options.settings };
    const random = options.random ?? Math.random;
    this.#options = options;
    this.#nodeIds = new Set(nodes.nodes().map((node) => node.id));
    this.#pairBackoff = new Backoff(settings, random);
    this.#addressBackoff = new Backoff(settings, random);
    this.#redial = new Redial({
      channels,
      nodes,
      isNeeded: (node) => this.#isOwed(node),
      settings,
      timers,
      random,
      log,
    });
    this.#owns = new OwnProofs(options.svids, options.revocations, () => clock.nowMs());
    this.#host = new VouchHost({
      incarnation: options.self.incarnation,
      firstLife: options.firstLife,
      settings,
      peers: () => nodes.nodes().filter((node) => node.spiffeId !== options.self.spiffeId),
      dial: (node) => void this.#redial.open(node),
      fences: options.fences,
      tunnel: options.tunnel,
      quiesce: () => options.quiesce(),
      believed: new Set(options.addresses.list().flatMap(({ node }) => (node === LOCAL_NODE ? [] : [node]))),
      opened: (endpoint) => {
        options.endpointOpened(endpoint);
        for (const channel of channels.list()) this.#offer(channel, endpoint);
        this.#proofs.ahead.changed(LOCAL_NODE, { locals: new Set([endpoint.identity]) });
      },
      takeOver: (addresses) => addresses.filter((address) => this.#vouches.tables.takeOver(address)),
      closed: (addresses) => {
        for (const address of addresses) this.#vouches.freed(address);
      },
      settled: (channel) => this.#vouches.offerUnknown(channel),
      openedTo: (endpoint, id) => {
        const node = nodes.byId(id);
        const channel = node === undefined ? undefined : channels.get(node);
        if (channel !== undefined) this.#offer(channel, endpoint);
      },
      audit,
      clock,
      timers,
      log,
      trace: options.trace,
    });
    this.#vouches = new VouchClient({
      addresses: options.addresses,
      identities,
      nodes,
      tunnel: options.tunnel,
      settings,
      channelTo: (node) => channels.get(node),
      ...(options.inUse === undefined ? {} : { inUse: (node) => options.inUse!(node) }),
      openTo: (node) => this.#host.openTo(node),
      isKnownTo: (peer, address) => this.#host.isKnownTo(peer, address),
      isSettled: (channel) => this.#host.isSettled(channel),
      isLeasedTo: (peer) => this.#host.isLeasedTo(peer),
      whenMet: (node) => this.#host.whenMet(node),
      quiesce: () => options.quiesce(),
      flushTo: (address) => this.#flushTo(address),
      drainMs: settings.drainMs,
      lost: (node, identity) => this.#proofs.lostVouch(node, identity),
      taken: (node, identity) => this.#proofs.ahead.changed(node, { remotes: new Set([identity]) }),
      audit,
      clock,
      timers,
      log,
      trace: options.trace,
    });
    this.#vouchFrames = new VouchFrames({
      host: this.#host,
      client: this.#vouches,
      incarnation: options.self.incarnation,
      leaseMs: settings.leaseMs,
      granted: (node, identities) => this.#proofs.ahead.changed(node, { locals: identities }),
      clock,
      log,
      trace: options.trace,
    });
    const facts: ProofFacts = {
      identities,
      bundles: options.bundles,
      revocations: options.revocations,
      isVouched: (node, identity) =>
        node === LOCAL_NODE ? this.#host.hosts(identity) : this.#vouches.tables.isVouched(node, identity),
      nowMs: () => clock.nowMs(),
      maxAgeMs: settings.maxAuthAgeMs,
    };
    this.#proofs = new Proofs({
      self: options.self,
      table: options.authTable,
      facts,
      owns: this.#owns,
      nodes,
      channels,
      hosts: (identity) => this.#host.hosts(identity),
      hosted: () => this.#host.openIdentities(),
      vouchedBy: (node) => new Set(this.#vouches.tables.book.ofNode(node).map((vouch) => vouch.identity)),
      settled: (node, identity) => this.#vouches.tables.settled(node, identity),
      ownAt: (address) => {
        const own = this.#host.at(address);
        return own?.open ? own : undefined;
      },
      identityAt: (node, address) => {
        const vouch = this.#vouches.tables.get(address);
        return vouch?.node === node ? vouch.identity : undefined;
      },
      policy: () => options.policy(),
      tainted: () => options.tainted?.() ?? NONE,
      lastUse: options.lastUse,
      backoff: this.#pairBackoff,
      settings,
      random,
      audit,
      clock,
      timers,
    });
    this.#held = new HeldPackets({
      selfSpiffeId: options.self.spiffeId,
      hold: options.hold,
      channels,
      nodes,
      identities,
      vouches: this.#vouches,
      host: this.#host,
      pairs: this.#proofs.pairs,
      flows: this.#proofs.flows,
      policy: () => options.policy(),
      backoff: this.#addressBackoff,
      settings,
      audit,
      clock,
      log,
    });
  }

  close(): void {
    this.#outside.close();
  }

  signal(signal: DatapathSignal): void {
    if (!this.#outside.isClosed) this.#held.signal(signal);
  }

  opened(channel: PeerChannel): void {
    if (this.#outside.isClosed) return;
    this.#redial.opened(channel.peer);
    this.#vouches.channelOpened(channel);
    this.#proofs.channelOpened(channel);
    this.#host.channelOpened(channel);
    this.#addressBackoff.relent();
  }

  closed(channel: PeerChannel): void {
    if (this.#outside.isClosed) return;
    this.#vouches.channelClosed(channel);
    this.#proofs.channelClosed(channel);
    this.#host.channelClosed(channel);
    this.#redial.closed(channel.peer);
  }

  /** @throws on a malformed body; the channel closes then. */
  frame(channel: PeerChannel, type: FrameType, body: Buffer): void {
    if (this.#outside.isClosed) return;
    if (this.#vouchFrames.frame(channel, type, body)) return;
    if (type === FrameType.FRAME_TYPE_MISS) this.#held.onMiss(channel, body);
    else this.#proofs.onChannels.frame(channel, type, body);
  }

  addEndpoint(endpoint: OwnEndpoint, continues?: bigint): HostedEndpoint {
    return this.#host.add(endpoint, continues);
  }

  closeEndpoint(endpoint: number): void {
    const closed = this.#host.close(endpoint);
    if (closed !== undefined) this.#proofs.closed(closed);
  }

  policyChanged(of?: ReadonlySet<SecurityIdentity>): void {
    this.#relent();
    this.#proofs.policyChanged(of);
  }

  identitiesChanged(of?: ReadonlySet<SecurityIdentity>): void {
    this.#vouches.recheck();
    this.#relent();
    this.#proofs.identitiesChanged(of);
  }

  nodesChanged(): void {
    const now = new Set(this.#options.nodes.nodes().map((node) => node.id));
    for (const id of this.#nodeIds) {
      if (now.has(id)) continue;
      this.#proofs.nodeRemoved(id);
      this.#vouches.nodeRemoved(id);
      this.#host.forgetNode(id);
    }
    this.#nodeIds = now;
    this.#vouches.recheck();
    this.#relent();
  }

  bundlesChanged(): void {
    this.#relent();
    this.#proofs.bundlesChanged();
  }

  svidsChanged(): void {
    this.#relent();
    this.#proofs.svidsChanged();
  }

  revoked(): number {
    return this.#proofs.revoked();
  }

  flush(concerns: (key: AuthKey) => boolean = () => true): number {
    return this.#proofs.flush(concerns);
  }

  connect(node: NodeInfo): Promise<ReasonCode | undefined> {
    return this.#redial.open(node);
  }

  async authenticate(key: AuthKey, flow?: FlowTuple): Promise<Result<AuthRecord, ReasonCode>> {
    const { nodes, clock } = this.#options;
    if (key.remoteNode !== LOCAL_NODE) {
      const node = nodes.byId(key.remoteNode);
      if (node === undefined) return err('VOUCH_NO_NODE');
      await this.#redial.open(node);
    }
    const { pairs, flows } = this.#proofs;
    pairs.forgive(key);
    return flow === undefined ? pairs.authenticate(key, clock.bootNs()) : flows.authenticate(key, flow, clock.bootNs());
  }

  reconnect(): void {
    const { nodes } = this.#options;
    for (const node of nodes.nodes()) if (this.#isOwed(node.id)) this.#redial.closed(node);
  }

  lastUseOf(node: NodeId): bigint {
    return this.#proofs.lastUseOf(node);
  }

  get proven(): number {
    return this.#proofs.pairs.entries.size;
  }

  list(): AuthEntryView[] {
    const now = this.#options.clock.bootNs();
    const pairs = this.#proofs.pairs.entries
      .list()
      .map((record) => viewOfEntry(record, this.#nodeName(record.remoteNode), now));
    return [...pairs, ...this.#flows()];
  }

  vouches(): VouchView[] {
    const now = this.#options.clock.bootNs();
    return this.#vouches.tables.book.all().map((vouch) => viewOfVouch(vouch, this.#nodeName(vouch.node), now));
  }

  endpoints(): ReturnType<VouchHost['list']> {
    return this.#host.list();
  }

  waitsFor(endpoint: number): readonly NodeId[] {
    return this.#host.waitsFor(endpoint);
  }

  explain(from: SecurityIdentity, to: SecurityIdentity): PairExplanation {
    return explainPair(from, to, {
      proofs: this.#proofs,
      owns: this.#owns,
      pairBackoff: this.#pairBackoff,
      addressBackoff: this.#addressBackoff,
      hosts: (identity) => this.#host.hosts(identity),
      identityAt: (address) => this.#host.at(address)?.identity,
      policy: () => this.#options.policy(),
      vouches: () => this.vouches(),
      flows: () => this.#flows(),
      nodeName: (id) => this.#nodeName(id),
      nowNs: this.#options.clock.bootNs(),
    });
  }

  #flows(): AuthEntryView[] {
    const { authTable, identities, clock } = this.#options;
    const now = clock.bootNs();
    return authTable.listFlows().map((entry) => viewOfFlow(entry, identities, this.#nodeName(entry.remoteNode), now));
  }

  #relent(): void {
    this.#proofs.pairs.forgive();
    this.#addressBackoff.relent();
  }

  /** Does anything that this node holds rest on the other node's word? */
  #isOwed(node: NodeId): boolean {
    return this.#vouches.tables.book.ofNode(node).length > 0 || this.#proofs.pairs.entries.adoptedOf(node).length > 0;
  }

  #offer(channel: PeerChannel, endpoint: HostedEndpoint): void {
    const open = new Set(this.#host.openTo(channel.peer.id));
    this.#vouches.offer(
      channel,
      endpoint.addresses.filter((address) => open.has(address)),
    );
  }

  /** FlushBeforeAck: what is held on its way to the address is meant for who had it. */
  #flushTo(address: IpAddress): void {
    const { hold } = this.#options;
    for (const { local, remote } of hold.waiting()) if (remote === address) hold.refuse(local, remote, 'HOLD_STALE');
    hold.forget(address);
  }

  #nodeName(id: NodeId): string | undefined {
    return id === LOCAL_NODE ? this.#options.self.name : this.#options.nodes.byId(id)?.name;
  }
}
