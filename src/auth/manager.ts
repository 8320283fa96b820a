/**
 * The auth manager: wires vouches, proofs and held packets of one node together, and is told everything that may change a verdict.
 * It gets the peer channels' events, the datapath's signals and the control plane's changes; it writes the kernel's tables.
 */
import {
  FrameType,
  Reset,
  ResetAck,
  VouchReply,
  VouchRequest,
  Withdraw,
  WithdrawAck,
} from '../../proto/gen/countersign/peer/v1/peer.ts';
import type { Clock } from '../base/clock.ts';
import { err, type Result } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import type { ReasonCode } from '../base/registry/reason-codes.ts';
import type { Timers } from '../base/timers.ts';
import type { PeerChannel, PeerChannelEvents, PeerChannels } from '../channel/peer-channel.ts';
import { addressFromBytes, addressWireBytes } from '../model/address.ts';
import type { AuditSink } from '../model/audit-event.ts';
import type { AddressTable, AuthKey, AuthTable, DatapathSignal, HoldQueue } from '../model/datapath.ts';
import type {
  IdentityTable,
  NodeInfo,
  NodeTable,
  RevocationTable,
  SvidSource,
  TrustBundles,
} from '../model/identity.ts';
import { type IpAddress, LOCAL_NODE, type NodeId, type SecurityIdentity } from '../model/ids.ts';
import type { AuthRecord } from './auth-entries.ts';
import { Backoff } from './backoff.ts';
import {
  type AuthEntryView,
  type PairExplanation,
  type VouchView,
  viewOfEntry,
  viewOfFailure,
  viewOfVouch,
} from './explain.ts';
import { HeldPackets } from './held-packets.ts';
import { OwnProofs } from './own-proof.ts';
import { PairAuthenticator } from './pair-authenticator.ts';
import { type AuthSettings, DEFAULT_AUTH_SETTINGS, type PolicyDecisions, type TunnelBinding } from './ports.ts';
import type { ProofFacts } from './verify-proof.ts';
import { OWN_BATCH, VouchClient } from './vouch-client.ts';
import { type HostedEndpoint, type OwnEndpoint, VouchHost } from './vouch-host.ts';

export interface AuthManagerOptions {
  /** This node. `incarnation`: of its node SVID. */
  readonly self: Pick<NodeInfo, 'name' | 'spiffeId' | 'incarnation'>;
  /** See VouchHostOptions. */
  readonly firstGeneration: bigint;
  readonly firstLife: boolean;
  readonly channels: PeerChannels;
  readonly hold: HoldQueue;
  readonly authTable: AuthTable;
  readonly addresses: AddressTable;
  readonly identities: IdentityTable;
  readonly nodes: NodeTable;
  readonly svids: SvidSource;
  readonly bundles: TrustBundles;
  readonly revocations: RevocationTable;
  /** The policies in force now. */
  policy(): PolicyDecisions;
  readonly tunnel: TunnelBinding;
  /** The fence of an own endpoint is open: write its address and let it send and receive. */
  endpointOpened(endpoint: HostedEndpoint): void;
  /** Is a remote address worth renewing its lease? Left out: every known one is. */
  inUse?(address: IpAddress): boolean;
  readonly audit: AuditSink;
  readonly clock: Clock;
  readonly timers: Timers;
  readonly log: Logger;
  readonly settings?: Partial<AuthSettings>;
  /** Uniform in [0, 1). */
  readonly random?: () => number;
}

export interface AuthManager extends PeerChannelEvents {
  signal(signal: DatapathSignal): void;
  /** @throws CountersignError already-exists. Generation for the datapath's endpoint; `open` is false while fenced. */
  addEndpoint(endpoint: OwnEndpoint, continues?: bigint): HostedEndpoint;
  closeEndpoint(endpoint: number): void;
  /** `of`: whose policy or row changed; left out: anybody's. */
  policyChanged(of?: ReadonlySet<SecurityIdentity>): void;
  identitiesChanged(of?: ReadonlySet<SecurityIdentity>): void;
  nodesChanged(): void;
  bundlesChanged(): void;
  /** An own SVID came, was rotated or went. */
  svidsChanged(): void;
  /** Revocations changed. When this returns, the kernel has no entry that rests on a revoked SVID. How many went. */
  revoked(): number;
  /** Deletes auth entries; all without `keys`. They are proven anew when next needed. */
  flush(keys?: readonly AuthKey[]): number;
  /** Proves the pair now, as a packet would make it. */
  authenticate(key: AuthKey): Promise<Result<AuthRecord, ReasonCode>>;
  /** How many pairs are. */
  readonly proven: number;
  list(): AuthEntryView[];
  vouches(): VouchView[];
  endpoints(): ReturnType<VouchHost['list']>;
  /** Both orders of the pair. */
  explain(from: SecurityIdentity, to: SecurityIdentity): PairExplanation;
}

/** Above what any honest peer sends; below what could keep this node busy. */
const MAX_ADDRESSES = 1_024;
const FIRST_REDIAL_MS = 50;

/** Frame types that belong here; the others above the channel's own are the tunnel's. */
export function isAuthFrame(type: FrameType): boolean {
  return type >= FrameType.FRAME_TYPE_VOUCH_REQUEST && type <= FrameType.FRAME_TYPE_MISS;
}

export function createAuthManager(options: AuthManagerOptions): AuthManager {
  return new Manager(options);
}

class Manager implements AuthManager {
  readonly #options: AuthManagerOptions;
  readonly #settings: AuthSettings;
  readonly #host: VouchHost;
  readonly #vouches: VouchClient;
  readonly #pairs: PairAuthenticator;
  readonly #held: HeldPackets;
  readonly #owns: OwnProofs;
  readonly #pairBackoff: Backoff;
  readonly #addressBackoff: Backoff;
  readonly #redials = new Map<NodeId, number>();
  #nodeIds: ReadonlySet<NodeId>;

  constructor(options: AuthManagerOptions) {
    const { clock, timers, audit, log, nodes, identities, channels } = options;
    const settings = { ...DEFAULT_AUTH_SETTINGS, ...options.settings };
    const random = options.random ?? Math.random;
    this.#options = options;
    this.#settings = settings;
    this.#nodeIds = new Set(nodes.nodes().map((node) => node.id));
    this.#pairBackoff = new Backoff(settings, random);
    this.#addressBackoff = new Backoff(settings, random);
    this.#owns = new OwnProofs(options.svids, options.revocations, () => clock.nowMs());
    this.#host = new VouchHost({
      incarnation: options.self.incarnation,
      firstGeneration: options.firstGeneration,
      firstLife: options.firstLife,
      settings,
      peers: () => nodes.nodes().filter((node) => node.spiffeId !== options.self.spiffeId),
      channelTo: (node) => channels.get(node),
      dial: (node) => this.#dial(node),
      opened: (endpoint) => {
        options.endpointOpened(endpoint);
        for (const channel of channels.list()) this.#vouches.offer(channel, endpoint.addresses);
      },
      audit,
      clock,
      timers,
    });
    this.#vouches = new VouchClient({
      addresses: options.addresses,
      identities,
      nodes,
      tunnel: options.tunnel,
      settings,
      channelTo: (node) => channels.get(node),
      ...(options.inUse === undefined ? {} : { inUse: (address) => options.inUse!(address) }),
      ownOpen: () => this.#host.list().flatMap(({ endpoint }) => (endpoint.open ? endpoint.addresses : [])),
      isKnownTo: (peer, address) => this.#host.isKnownTo(peer, address),
      lost: (node, identity) => this.#pairs.lostVouch(node, identity),
      audit,
      clock,
      timers,
      log,
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
    this.#pairs = new PairAuthenticator({
      self: options.self,
      table: options.authTable,
      facts,
      owns: this.#owns,
      hosts: (identity) => this.#host.hosts(identity),
      policy: () => options.policy(),
      settled: (node, identity) => this.#vouches.tables.settled(node, identity),
      channelTo: (id) => {
        const node = nodes.byId(id);
        return node === undefined ? undefined : channels.get(node);
      },
      nodeName: (id) => nodes.byId(id)?.name,
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
      pairs: this.#pairs,
      policy: () => options.policy(),
      backoff: this.#addressBackoff,
      settings,
      audit,
      clock,
      log,
    });
  }

  signal(signal: DatapathSignal): void {
    this.#held.signal(signal);
  }

  opened(channel: PeerChannel): void {
    this.#redials.delete(channel.peer.id);
    this.#vouches.channelOpened(channel);
    this.#pairs.channelOpened(channel);
    this.#host.channelOpened(channel);
    this.#addressBackoff.relent();
  }

  closed(channel: PeerChannel): void {
    this.#vouches.channelClosed(channel);
    this.#pairs.channelClosed(channel);
    this.#host.channelClosed(channel);
    this.#keepUp(channel.peer);
  }

  /** @throws on a malformed body; the channel closes then. */
  frame(channel: PeerChannel, type: FrameType, body: Buffer) {
    switch (type) {
      case FrameType.FRAME_TYPE_VOUCH_REQUEST:
        return this.#onVouchRequest(channel, VouchRequest.decode(body));
      case FrameType.FRAME_TYPE_VOUCH_REPLY:
        return this.#vouches.reply(channel, VouchReply.decode(body));
      case FrameType.FRAME_TYPE_WITHDRAW:
        return this.#onWithdraw(channel, Withdraw.decode(body));
      case FrameType.FRAME_TYPE_WITHDRAW_ACK:
        return this.#expect(channel, this.#host.withdrawAcked(channel, WithdrawAck.decode(body).id));
      case FrameType.FRAME_TYPE_RESET:
        return this.#guard(this.#vouches.reset(channel, Reset.decode(body).incarnation));
      case FrameType.FRAME_TYPE_RESET_ACK:
        return this.#expect(channel, this.#host.resetAcked(channel, ResetAck.decode(body).incarnation));
      case FrameType.FRAME_TYPE_MISS:
        return this.#held.onMiss(channel, body);
      default:
        return this.#pairs.frame(channel, type, body);
    }
  }

  addEndpoint(endpoint: OwnEndpoint, continues?: bigint): HostedEndpoint {
    return this.#host.add(endpoint, continues);
  }

  closeEndpoint(endpoint: number): void {
    const closed = this.#host.close(endpoint);
    if (closed !== undefined) this.#pairs.recheck(new Set([closed]));
  }

  policyChanged(of?: ReadonlySet<SecurityIdentity>): void {
    this.#pairs.policyChanged(of);
    this.#relent();
  }

  identitiesChanged(of?: ReadonlySet<SecurityIdentity>): void {
    this.#vouches.recheck();
    this.#pairs.recheck(of);
    this.#relent();
  }

  nodesChanged(): void {
    const now = new Set(this.#options.nodes.nodes().map((node) => node.id));
    for (const id of this.#nodeIds) {
      if (now.has(id)) continue;
      this.#pairs.nodeRemoved(id);
      this.#vouches.nodeRemoved(id);
      this.#host.forgetNode(id);
    }
    this.#nodeIds = now;
    this.#vouches.recheck();
    this.#relent();
  }

  bundlesChanged(): void {
    this.#pairs.bundlesChanged();
    this.#relent();
  }

  svidsChanged(): void {
    this.#relent();
  }

  revoked(): number {
    return this.#pairs.revoked();
  }

  flush(keys?: readonly AuthKey[]): number {
    const records = keys === undefined ? this.#pairs.entries.list() : keys.map((key) => this.#pairs.entries.get(key));
    const present = records.filter((record) => record !== undefined);
    return this.#pairs.entries.remove(present, { kind: 'auth.revoked', reason: 'REVOKED_BY_ADMIN' });
  }

  async authenticate(key: AuthKey): Promise<Result<AuthRecord, ReasonCode>> {
    if (key.remoteNode !== LOCAL_NODE) {
      const node = this.#options.nodes.byId(key.remoteNode);
      if (node === undefined) return err('VOUCH_NO_NODE');
      if (this.#options.channels.get(node) === undefined) await this.#open(node);
    }
    return this.#pairs.authenticate(key, this.#options.clock.bootNs());
  }

  get proven(): number {
    return this.#pairs.entries.size;
  }

  list(): AuthEntryView[] {
    const now = this.#options.clock.bootNs();
    return this.#pairs.entries.list().map((record) => viewOfEntry(record, this.#nodeName(record.remoteNode), now));
  }

  vouches(): VouchView[] {
    const now = this.#options.clock.bootNs();
    return this.#vouches.tables.book.all().map((vouch) => viewOfVouch(vouch, this.#nodeName(vouch.node), now));
  }

  endpoints(): ReturnType<VouchHost['list']> {
    return this.#host.list();
  }

  explain(from: SecurityIdentity, to: SecurityIdentity): PairExplanation {
    const now = this.#options.clock.bootNs();
    const concerns = (local: number, remote: number) =>
      (local === from && remote === to) || (local === to && remote === from);
    const hosted = [from, to].filter((identity) => this.#host.hosts(identity));
    const entries = this.#pairs.entries.list().filter((record) => concerns(record.local, record.remote));
    const pairFailures = [...this.#pairBackoff.all()].flatMap(([key, failure]) => {
      const [local, remote, node] = key.split('/').map(Number) as [number, number, number];
      return concerns(local, remote) ? [{ ...viewOfFailure(failure, now), remoteNode: node }] : [];
    });
    const addressFailures = [...this.#addressBackoff.all()].flatMap(([key, failure]) => {
      const [localAddress, remoteAddress] = key.split('|') as [IpAddress, IpAddress];
      const local = this.#host.at(localAddress)?.identity;
      if (local === undefined || !hosted.includes(local)) return [];
      return [{ ...viewOfFailure(failure, now), localAddress, remoteAddress }];
    });
    const successes = this.#pairs.successesOf(concerns);
    return {
      from,
      to,
      required: this.#options.policy().authTypesOf(from, to),
      fromHostedHere: hosted.includes(from),
      toHostedHere: hosted.includes(to),
      vouches: this.vouches().filter((vouch) => vouch.identity === from || vouch.identity === to),
      entries: entries.map((record) => viewOfEntry(record, this.#nodeName(record.remoteNode), now)),
      ownProof: hosted.map((identity) => {
        const own = this.#owns.of(identity);
        return { identity, refusal: own.ok ? undefined : own.error };
      }),
      lastSuccess: successes.sort((a, b) => b.atMs - a.atMs)[0],
      failures: [...pairFailures, ...addressFailures].sort((a, b) => b.atMs - a.atMs),
    };
  }

  /**
   * Answers when the asker's own addresses are in force here, as far as this node does not know them: then the first packet finds both sides
   * known. @throws RangeError on a malformed address or too many.
   */
  #onVouchRequest(channel: PeerChannel, request: VouchRequest) {
    if (request.addresses.length > MAX_ADDRESSES || request.own.length > OWN_BATCH)
      throw new RangeError('too many addresses');
    const addresses = request.addresses.map(addressFromBytes);
    const known = this.#vouches.offered(channel, request.own.map(addressFromBytes));
    if (known === undefined) return this.#vouch(channel, request.nonce, addresses);
    this.#guard(known.then(() => this.#vouch(channel, request.nonce, addresses)));
  }

  #vouch(channel: PeerChannel, nonce: Buffer, addresses: readonly IpAddress[]) {
    if (channel.closed) return;
    const vouches = this.#host.vouch(channel, addresses);
    if (vouches === undefined) return channel.close('PEER_FRAME_UNEXPECTED');
    const reply = VouchReply.encode({
      nonce,
      incarnation: this.#options.self.incarnation,
      vouches: vouches.map(({ address, owner }) => ({
        address: addressWireBytes(address),
        securityIdentity: owner.identity,
        spiffeId: owner.spiffeId,
        generation: owner.generation,
        leaseMs: this.#settings.leaseMs,
      })),
    });
    channel.send(FrameType.FRAME_TYPE_VOUCH_REPLY, reply.finish());
  }

  #onWithdraw(channel: PeerChannel, message: Withdraw): void {
    if (message.addresses.length > MAX_ADDRESSES) throw new RangeError('too many addresses');
    for (const { address } of message.addresses) addressFromBytes(address);
    this.#guard(this.#vouches.withdraw(channel, message));
  }

  #expect(channel: PeerChannel, isExpected: boolean): void {
    if (!isExpected) channel.close('PEER_FRAME_UNEXPECTED');
  }

  /** What fails here fails closed: no ack goes out, the host's fence stays shut. */
  #guard(work: Promise<unknown>): void {
    work.catch((thrown) => this.#options.log.error({ err: thrown }, 'a peer message could not be worked on'));
  }

  #relent(): void {
    this.#pairs.forgive();
    this.#addressBackoff.relent();
  }

  #dial(node: NodeInfo): void {
    void this.#open(node);
  }

  async #open(node: NodeInfo): Promise<void> {
    try {
      await this.#options.channels.open(node);
    } catch (thrown) {
      this.#options.log.debug({ err: thrown, node: node.name }, 'no channel');
    }
  }

  /** Leases and entries that live need their channel: without it they run out. */
  #keepUp(node: NodeInfo): void {
    const { channels, timers, nodes } = this.#options;
    const isNeeded = () => this.#vouches.tables.book.ofNode(node.id).length > 0 && nodes.byId(node.id) !== undefined;
    if (channels.get(node) !== undefined || !isNeeded() || this.#redials.has(node.id)) return;
    this.#redials.set(node.id, 0);
    const attempt = () => {
      const tries = this.#redials.get(node.id);
      if (tries === undefined) return;
      if (channels.get(node) !== undefined || !isNeeded()) {
        this.#redials.delete(node.id);
        return;
      }
      this.#redials.set(node.id, tries + 1);
      const { backoffMinMs, backoffMaxMs } = this.#settings;
      const waitMs = Math.min(backoffMaxMs, backoffMinMs * 2 ** Math.min(tries, 10));
      timers.set(waitMs * (0.5 + 0.5 * (this.#options.random ?? Math.random)()), attempt);
      this.#dial(nodes.byId(node.id) ?? node);
    };
    timers.set(FIRST_REDIAL_MS, attempt);
  }

  #nodeName(id: NodeId): string | undefined {
    return id === LOCAL_NODE ? this.#options.self.name : this.#options.nodes.byId(id)?.name;
  }
}
