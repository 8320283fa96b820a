/**
 * The host's side of leases and fences: says to a peer who this node's endpoints are (rule 1, VouchOwnNode), takes it back (rule 4,
 * Withdraw) and keeps a successor on an address shut to each peer that may still believe the earlier owner (rule 5, Fence; the fences
 * themselves are vouch-fences.ts) and to everybody until that one's last packets have drained (rule 6).
 */
import type { Clock } from '../base/clock.ts';
import { asError, CountersignError } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import type { Timers } from '../base/timers.ts';
import type { PeerChannel } from '../channel/peer-channel.ts';
import type { AuditSink } from '../model/audit-event.ts';
import type { FenceTable } from '../model/datapath.ts';
import type { NodeInfo } from '../model/identity.ts';
import type { IpAddress, NodeId, SecurityIdentity, SpiffeId } from '../model/ids.ts';
import type { AuthSettings, TunnelBinding } from './ports.ts';
import { laterOf, nsOfMs } from './units.ts';
import { Drains } from './vouch-drain.ts';
import { PeerFences } from './vouch-fences.ts';
import type { Claimed } from './vouch-grants.ts';
import { VouchLedger } from './vouch-ledger.ts';
import type { VouchTrace } from './vouch-trace.ts';

/** One workload of this node, as others shall know it. */
export interface OwnEndpoint {
  readonly endpoint: number;
  readonly identity: SecurityIdentity;
  readonly spiffeId: SpiffeId;
  readonly addresses: readonly IpAddress[];
}

/** What the host vouches: `generation` rises with every endpoint within an incarnation. */
export interface HostedEndpoint extends OwnEndpoint {
  readonly generation: bigint;
  /** False while what an earlier owner sent drains. Open, it may still be shut to some peers. */
  readonly open: boolean;
}

export interface VouchedAddress {
  readonly address: IpAddress;
  readonly owner: HostedEndpoint;
  /** Until when the address may have been an earlier owner's here; undefined: too long ago for any packet of that time to live. */
  readonly earlierOwnerNs: bigint | undefined;
  /** See VouchHost.ownedSinceNs. */
  readonly ownedSinceNs: bigint;
}

export interface VouchHostOptions {
  /** Of this node's SVID. */
  readonly incarnation: bigint;
  /** True only if no earlier life of this agent had this incarnation. */
  readonly firstLife: boolean;
  readonly settings: Pick<AuthSettings, 'leaseMs' | 'drainMs'>;
  /** All nodes but this one. */
  peers(): readonly NodeInfo[];
  /** Opens a channel, so that a withdraw can be said. Failures are not reported; the host asks again. */
  dial(node: NodeInfo): void;
  readonly fences: FenceTable;
  readonly tunnel: Pick<TunnelBinding, 'endSession'>;
  /** As Datapath.quiesce. */
  quiesce(): Promise<void>;
  /** Nodes that the kernel's table believes from before this agent's start. */
  readonly believed: ReadonlySet<NodeId>;
  /** The datapath lets the endpoint send and receive from here on, but for the peers it is shut to. */
  opened(endpoint: HostedEndpoint): void;
  /** These are this node's own from now on: ends what other nodes vouch for on them. Which of them had such an owner, now or lately. */
  takeOver(addresses: readonly IpAddress[]): readonly IpAddress[];
  /** No endpoint of this node has these addresses any more. */
  closed(addresses: readonly IpAddress[]): void;
  /** The peer acked the channel's RESET: from here on it may be vouched to, and what it knows is known. */
  settled(channel: PeerChannel): void;
  /** It is open to this peer, too. */
  openedTo(endpoint: HostedEndpoint, node: NodeId): void;
  readonly audit: AuditSink;
  readonly clock: Clock;
  readonly timers: Timers;
  readonly log: Logger;
  readonly trace?: VouchTrace;
}

interface Hosted extends OwnEndpoint {
  readonly generation: bigint;
  readonly continues: boolean;
  readonly bornNs: bigint;
  open: boolean;
  /** Tunnel sessions are being ended before it opens. */
  opening: boolean;
}

const RETRY_MS = 1_000;

export class VouchHost {
  readonly #options: VouchHostOptions;
  readonly #endpoints = new Map<number, Hosted>();
  readonly #owners = new Map<IpAddress, Hosted>();
  /** Open endpoints of each identity. */
  readonly #open = new Map<SecurityIdentity, number>();
  readonly #ledger: VouchLedger;
  readonly #drains: Drains;
  readonly #fences: PeerFences;
  /** When a peer let go of what this agent does not know: an earlier agent's, or an earlier life's. */
  readonly #releasedNs = new Map<NodeId, bigint>();
  #nextGeneration: bigint;

  constructor(options: VouchHostOptions) {
    const { clock, timers, log, tunnel, audit, trace, settings } = options;
    const { drainMs } = settings;
    const quiesce = () => options.quiesce();
    this.#options = options;
    // NewerWins: above every generation of this incarnation, by whatever agent. An incarnation ends with the boot, so the boot clock
    // never goes back within one; the wall clock does when somebody sets it.
    this.#nextGeneration = clock.bootNs();
    this.#ledger = new VouchLedger({
      incarnation: options.incarnation,
      leaseMs: settings.leaseMs,
      generationAt: (address) => this.#owners.get(address)?.generation,
      openTo: (node) => this.#claimedTo(node),
      released: (node, addresses) => this.#released(node, addresses),
      met: (node, kept, released) => this.#metNode(node, kept, released),
      settled: (channel) => options.settled(channel),
      peers: () => options.peers(),
      dial: (node) => options.dial(node),
      audit,
      clock,
      timers,
      trace,
    });
    this.#drains = new Drains({
      drainMs,
      firstLife: options.firstLife,
      quiesce,
      flushed: (addresses) => this.#openOn(addresses),
      clock,
      timers,
      log,
      trace,
    });
    this.#fences = new PeerFences({
      kernel: options.fences,
      tunnel,
      quiesce,
      drainMs,
      opened: (endpoint, node) => this.#openedTo(endpoint, node),
      clock,
      timers,
      log,
      trace,
    });
  }

  /**
   * A new endpoint. It opens (`options.opened`) at once if its addresses had no earlier owner lately, else when that one's packets have
   * drained; to a peer that may believe the earlier owner only when that peer has let go. `continues`: the same endpoint as before an
   * agent's restart, with the generation it had; it was open and stays so, shut to whom the kernel's fences say.
   * @throws CountersignError already-exists when an address or the number is taken.
   */
  add(endpoint: OwnEndpoint, continues?: bigint): HostedEndpoint {
    if (this.#endpoints.has(endpoint.endpoint)) {
      throw new CountersignError('already-exists', `endpoint ${endpoint.endpoint} exists; close it first`);
    }
    for (const address of endpoint.addresses) {
      const owner = this.#owners.get(address);
      if (owner !== undefined) {
        throw new CountersignError(
          'already-exists',
          `${address} belongs to endpoint ${owner.endpoint}; close it first`,
        );
      }
    }
    const generation = continues ?? this.#nextGeneration;
    if (generation >= this.#nextGeneration) this.#nextGeneration = generation;
    this.#nextGeneration += 1n;
    const hosted: Hosted = {
      ...endpoint,
      generation,
      continues: continues !== undefined,
      bornNs: this.#options.clock.bootNs(),
      open: false,
      opening: false,
    };
    // StampLocalDelivery: an address that comes here from another node is a move, too. Before it is born, what was of others goes.
    const moved = this.#options.takeOver(hosted.addresses);
    this.#endpoints.set(hosted.endpoint, hosted);
    for (const address of hosted.addresses) {
      this.#owners.set(address, hosted);
      const { identity } = hosted;
      this.#options.trace?.({
        ev: 'born',
        ip: address,
        endpoint: hosted.endpoint,
        identity,
        generation,
        continues: hosted.continues,
      });
    }
    if (hosted.continues) this.#openNow(hosted);
    else {
      this.#fences.forget(hosted.endpoint);
      if (moved.length > 0) this.#drains.closed(moved, undefined);
      this.#tryOpen(hosted);
    }
    this.#ledger.withdrawSoon(hosted.addresses);
    return viewOf(hosted);
  }

  /** Its interface is gone, its entries are out of the kernel's tables, what it sent is out of the hold queue: from now on nobody may be
   *  told that it lives. Unknown numbers are ignored. Returns whose it was. */
  close(endpoint: number): SecurityIdentity | undefined {
    const hosted = this.#endpoints.get(endpoint);
    if (hosted === undefined) return undefined;
    this.#endpoints.delete(endpoint);
    if (hosted.open) this.#countOpen(hosted.identity, -1);
    for (const address of hosted.addresses) this.#owners.delete(address);
    this.#fences.forget(endpoint);
    this.#drains.closed(hosted.addresses, hosted.generation);
    this.#ledger.withdrawSoon(hosted.addresses);
    this.#options.closed(hosted.addresses);
    return hosted.identity;
  }

  at(address: IpAddress): HostedEndpoint | undefined {
    return this.#owners.get(address);
  }

  /** Since when the address has been its present owner's, as far as this agent has seen. */
  ownedSinceNs(address: IpAddress): bigint | undefined {
    return this.#owners.get(address)?.bornNs;
  }

  /** Does an open endpoint of this node have the identity? */
  hosts(identity: SecurityIdentity): boolean {
    return this.#open.has(identity);
  }

  /** Of open endpoints. */
  openIdentities(): Iterable<SecurityIdentity> {
    return this.#open.keys();
  }

  /** Addresses of endpoints that are open to the node. */
  openTo(node: NodeId): IpAddress[] {
    return this.#claimedTo(node).map(({ address }) => address);
  }

  /** Does the peer hold a lease on the address's present owner, with at least a third of it left? */
  isKnownTo(peer: NodeId, address: IpAddress): boolean {
    const endNs = this.#ledger.leaseEndNs(peer, address);
    if (endNs === undefined) return false;
    return endNs - this.#options.clock.bootNs() > nsOfMs(this.#options.settings.leaseMs) / 3n;
  }

  isSettled(channel: PeerChannel): boolean {
    return this.#ledger.state(channel) === 'current';
  }

  isLeasedTo(peer: NodeId): boolean {
    return this.#ledger.isLeasedTo(peer);
  }

  /** `waitsFor`: peers it is shut to; they owe an ack, or what they sent before it still drains. */
  list(): {
    endpoint: HostedEndpoint;
    waitsFor: NodeId[];
    grants: { peer: NodeId; address: IpAddress; untilNs: bigint }[];
  }[] {
    return [...this.#endpoints.values()].map((hosted) => ({
      endpoint: viewOf(hosted),
      waitsFor: this.#waitsFor(hosted),
      grants: hosted.addresses.flatMap((address) =>
        this.#ledger.grantsAt(address).map(({ peer, untilNs }) => ({ peer, address, untilNs })),
      ),
    }));
  }

  waitsFor(endpoint: number): NodeId[] {
    const hosted = this.#endpoints.get(endpoint);
    return hosted === undefined ? [] : this.#waitsFor(hosted);
  }

  channelOpened(channel: PeerChannel): void {
    this.#ledger.channelOpened(channel);
  }

  channelClosed(channel: PeerChannel): void {
    this.#ledger.channelClosed(channel);
  }

  /** False: an ack of something else than was said; the channel must close. So withdrawAcked. See VouchLedger. */
  resetAcked(
    channel: PeerChannel,
    incarnation: bigint,
    kept: readonly Claimed[],
    more: boolean,
    released: boolean,
  ): boolean {
    return this.#ledger.resetAcked(channel, incarnation, kept, more, released);
  }

  withdrawAcked(channel: PeerChannel, id: bigint): boolean {
    return this.#ledger.withdrawAcked(channel, id);
  }

  /** See VouchLedger. */
  renew(channel: PeerChannel, incarnation: bigint, version: bigint): boolean {
    return this.#ledger.renew(channel, incarnation, version);
  }

  /** Nothing that a node vouches for may come into force here before it has let go of this node's earlier lives: until then that is what
   *  shuts endpoints to it. Resolves with false when the channel on which it might have said so is gone. */
  whenMet(node: NodeId): Promise<boolean> {
    return this.#ledger.whenMet(node);
  }

  isMet(node: NodeId): boolean {
    return this.#ledger.metNodes.has(node);
  }

  /**
   * Rule 1: only endpoints that are open to the peer are vouched for (FenceVouch). undefined: the peer asks before it let go of earlier
   * lives (rule 3), which no honest peer does. 'superseded': it asks on a channel that was replaced; it will ask again on the new one.
   */
  vouch(channel: PeerChannel, addresses: readonly IpAddress[]): VouchedAddress[] | 'superseded' | undefined {
    const state = this.#ledger.state(channel);
    if (state !== 'current') return state;
    const peer = channel.peer.id;
    return addresses.flatMap((address) => {
      const owner = this.#owners.get(address);
      if (owner === undefined || !this.#isOpenTo(owner, peer)) return [];
      if (this.#ledger.given(peer, address, owner.generation)) {
        this.#options.audit.emit({
          kind: 'vouch.given',
          source: { address, identity: owner.identity, spiffeId: owner.spiffeId },
          destination: { node: channel.peer.name },
          detail: { generation: String(owner.generation), lease_ms: this.#options.settings.leaseMs },
        });
      }
      const { bornNs } = owner;
      const earlierOwnerNs = this.#drains.recentNs(address) === undefined ? undefined : bornNs;
      return [{ address, owner: viewOf(owner), earlierOwnerNs, ownedSinceNs: bornNs }];
    });
  }

  /** The node left the registry, and nothing of it is in the kernel. */
  forgetNode(node: NodeId): void {
    this.#ledger.forgetNode(node);
    this.#releasedNs.delete(node);
    this.#fences.forgetNode(node);
  }

  #waitsFor(hosted: Hosted): NodeId[] {
    if (hosted.open) return this.#fences.nodesOf(hosted.endpoint);
    return [...new Set(hosted.addresses.flatMap((address) => this.#ledger.owedAt(address)))];
  }

  #isOpenTo(hosted: Hosted, node: NodeId): boolean {
    return hosted.open && !this.#fences.isShut(hosted.endpoint, node);
  }

  #claimedTo(node: NodeId): Claimed[] {
    return [...this.#endpoints.values()].flatMap((hosted) => {
      if (!this.#isOpenTo(hosted, node)) return [];
      return hosted.addresses.map((address) => ({ address, generation: hosted.generation }));
    });
  }

  #released(node: NodeId, addresses: readonly IpAddress[]): void {
    for (const address of addresses) this.#drains.letGo(address, node);
    const owners = new Set(addresses.flatMap((address) => this.#owners.get(address) ?? []));
    for (const owner of owners) this.#letGo(owner, node);
  }

  /** Its vouches may come into force from here on: whatever is open to it must be so rightly. */
  #metNode(node: NodeId, kept: ReadonlySet<IpAddress>, released: boolean): void {
    if (released) this.#releasedNs.set(node, this.#options.clock.bootNs());
    for (const hosted of this.#endpoints.values()) {
      if (!hosted.open) continue;
      // What it sent to an earlier owner, of an earlier life, is on its way until its ack.
      const isSuccessor = released && !hosted.addresses.some((address) => kept.has(address));
      if (isSuccessor) this.#fences.close(hosted.endpoint, [node]);
      if (this.#isOpenTo(hosted, node)) this.#traceOpen(hosted, node);
      this.#letGo(hosted, node);
    }
  }

  /** Tells the fence if the peer owes nothing at any of the endpoint's addresses. */
  #letGo(hosted: Hosted, node: NodeId): void {
    if (!hosted.open || !this.isMet(node)) return;
    if (hosted.addresses.some((address) => this.#ledger.owes(node, address))) return;
    this.#fences.letGo(hosted.endpoint, node);
  }

  #openOn(addresses: readonly IpAddress[]): void {
    const owners = new Set(addresses.flatMap((address) => this.#owners.get(address) ?? []));
    for (const owner of owners) this.#tryOpen(owner);
  }

  /** DrainTime: not before the earlier owner's queues were empty, and then for a while. */
  #tryOpen(hosted: Hosted): void {
    if (this.#endpoints.get(hosted.endpoint) !== hosted || hosted.open || hosted.opening) return;
    let waitNs = 0n;
    for (const address of hosted.addresses) {
      const leftNs = this.#drains.leftNs(address);
      if (leftNs === undefined) return;
      if (leftNs > waitNs) waitNs = leftNs;
    }
    if (waitNs > 0n) {
      this.#options.timers.set(Number(waitNs / 1_000_000n) + 1, () => this.#tryOpen(hosted));
      return;
    }
    const recentNs = hosted.addresses.flatMap((address) => this.#drains.recentNs(address) ?? []);
    if (recentNs.length === 0) {
      this.#openNow(hosted, this.#ledger.metNodes);
      return;
    }
    // DropSessionBeforeOpen: peers that never held a lease may have sent to the earlier owner, or been sent to, all the same.
    const met = new Set(this.#ledger.metNodes);
    hosted.opening = true;
    const open = async () => {
      try {
        await this.#fences.endSessions([...met], recentNs.reduce(laterOf));
        if (this.#endpoints.get(hosted.endpoint) === hosted) this.#openNow(hosted, met);
      } catch (thrown) {
        this.#options.log.error({ err: asError(thrown) }, 'an endpoint waits: tunnel sessions could not be ended');
        this.#options.timers.set(RETRY_MS, () => this.#tryOpen(hosted));
      } finally {
        hosted.opening = false;
      }
    };
    void open();
  }

  /** `ended`: peers whose sessions hold nothing of the time before it. Others stay shut out until they do not. */
  #openNow(hosted: Hosted, ended: ReadonlySet<NodeId> = this.#ledger.metNodes): void {
    if (!hosted.continues) this.#shut(hosted, ended);
    hosted.open = true;
    this.#countOpen(hosted.identity, 1);
    this.#options.opened(viewOf(hosted));
    for (const node of this.#ledger.metNodes) {
      if (this.#isOpenTo(hosted, node)) this.#traceOpen(hosted, node);
      else this.#letGo(hosted, node);
    }
  }

  /** FenceSend, FenceReceive: in the kernel before the endpoint opens. */
  #shut(hosted: Hosted, ended: ReadonlySet<NodeId>): void {
    const shut = new Set<NodeId>();
    for (const address of hosted.addresses) {
      for (const node of this.#ledger.owedAt(address)) shut.add(node);
      for (const [node, sinceNs] of this.#drains.lettingGo(address)) {
        if (!this.#fences.endedSince(node, sinceNs)) shut.add(node);
      }
    }
    // DrainFromAck, for owners that nobody here remembers.
    for (const [node, sinceNs] of this.#releasedNs) if (!this.#fences.endedSince(node, sinceNs)) shut.add(node);
    for (const node of this.#ledger.metNodes) if (!ended.has(node)) shut.add(node);
    // ResetAssumesAll: what the kernel believes from before the restart would let their packets pass. Of other peers that were not met
    // nothing is believed, and nothing will be before they are.
    for (const node of this.#options.believed) if (!this.isMet(node)) shut.add(node);
    this.#fences.close(hosted.endpoint, [...shut]);
  }

  #openedTo(endpoint: number, node: NodeId): void {
    const hosted = this.#endpoints.get(endpoint);
    if (hosted === undefined) return;
    this.#traceOpen(hosted, node);
    this.#options.openedTo(viewOf(hosted), node);
  }

  #traceOpen(hosted: Hosted, peer: NodeId): void {
    const { trace } = this.#options;
    if (trace === undefined) return;
    for (const ip of hosted.addresses) trace({ ev: 'open', ip, generation: hosted.generation, peer });
  }

  #countOpen(identity: SecurityIdentity, change: 1 | -1): void {
    const count = (this.#open.get(identity) ?? 0) + change;
    if (count === 0) this.#open.delete(identity);
    else this.#open.set(identity, count);
  }
}

function viewOf({ endpoint, identity, spiffeId, addresses, generation, open }: Hosted): HostedEndpoint {
  return { endpoint, identity, spiffeId, addresses, generation, open };
}
