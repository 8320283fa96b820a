/**
 * What each peer was told of this node's endpoints, and what it therefore may believe: RESET when a channel opens (rule 3), withdraws until
 * they are acked (rule 4), renewal by version (rule 2). A peer owes an ack until it says that it let go, whatever time passes.
 */
import { FrameType, Reset, Withdraw } from '../../proto/gen/countersign/peer/v1/peer.ts';
import type { Clock } from '../base/clock.ts';
import type { Timers } from '../base/timers.ts';
import type { PeerChannel } from '../channel/peer-channel.ts';
import { addressWireBytes } from '../model/address.ts';
import type { AuditSink } from '../model/audit-event.ts';
import type { NodeInfo } from '../model/identity.ts';
import type { IpAddress, NodeId } from '../model/ids.ts';
import { nsOfMs } from './units.ts';
import { type Claimed, Grants } from './vouch-grants.ts';
import type { VouchTrace } from './vouch-trace.ts';

export interface VouchLedgerOptions {
  readonly incarnation: bigint;
  readonly leaseMs: number;
  /** Generation of the address's owner, open or not. */
  generationAt(address: IpAddress): bigint | undefined;
  /** What is open to the node. */
  openTo(node: NodeId): Claimed[];
  /** The peer let go of earlier owners of these. */
  released(node: NodeId, addresses: readonly IpAddress[]): void;
  /** It acked its first RESET of this life. `kept`: what it goes on believing; `released`: it believed something else, lately. */
  met(node: NodeId, kept: ReadonlySet<IpAddress>, released: boolean): void;
  /** What the peer knows is known: it acked the channel's RESET. */
  settled(channel: PeerChannel): void;
  peers(): readonly NodeInfo[];
  dial(node: NodeInfo): void;
  readonly audit: AuditSink;
  readonly clock: Clock;
  readonly timers: Timers;
  readonly trace: VouchTrace;
}

interface Session {
  /** Order of its RESET among this node's messages. */
  readonly at: number;
  /** What RESET said goes on; and what of it the peer says it holds, as far as it said. */
  readonly keeps: ReadonlyMap<IpAddress, bigint>;
  readonly kept: Set<IpAddress>;
  resetAcked: boolean;
  /** Withdraws on this channel that wait for their ack. */
  readonly pending: Map<bigint, readonly Claimed[]>;
  /** Id of the last one; 0: there was none. */
  lastWithdraw: bigint;
}

const REDIAL_MS = 1_000;
/** Addresses in one frame: 64 KiB hold more. */
const BATCH = 1_024;

export class VouchLedger {
  readonly #options: VouchLedgerOptions;
  readonly #grants = new Grants();
  readonly #sessions = new Map<PeerChannel, Session>();
  /** The newest channel to each node: only on it is anything vouched, renewed or withdrawn. */
  readonly #current = new Map<NodeId, PeerChannel>();
  /** Peers that acked a RESET of this life. All others count as holding a lease on every earlier address (ResetAssumesAll). */
  readonly #met = new Set<NodeId>();
  readonly #waiters = new Map<NodeId, ((met: boolean) => void)[]>();
  readonly #redials = new Map<NodeId, () => void>();
  #toWithdraw = new Set<NodeId>();
  #nextWithdraw = 1n;
  #at = 0;

  constructor(options: VouchLedgerOptions) {
    this.#options = options;
  }

  get metNodes(): ReadonlySet<NodeId> {
    return this.#met;
  }

  /** Resolves with true when the node has acked RESET; false: the channel on which it might have is gone. */
  whenMet(node: NodeId): Promise<boolean> {
    if (this.#met.has(node)) return Promise.resolve(true);
    if (!this.#current.has(node)) return Promise.resolve(false);
    return new Promise((resolve) => {
      const waiters = this.#waiters.get(node) ?? [];
      this.#waiters.set(node, waiters);
      waiters.push(resolve);
    });
  }

  /** Grants on the address, of its present owner and of earlier ones. */
  grantsAt(address: IpAddress): { peer: NodeId; untilNs: bigint }[] {
    return [...this.#grants.nodesOf(address)].map(([peer, grant]) => ({
      peer,
      untilNs: this.#grants.untilNs(peer, grant),
    }));
  }

  /** Until when the peer's lease on the address's present owner lives, by this node's clock; undefined: it has none. */
  leaseEndNs(peer: NodeId, address: IpAddress): bigint | undefined {
    const grant = this.#grants.get(peer, address);
    if (grant === undefined || grant.generation !== this.#options.generationAt(address)) return undefined;
    return this.#grants.untilNs(peer, grant);
  }

  /** May the peer believe anything of this node now, by this node's clock? */
  isLeasedTo(peer: NodeId): boolean {
    const now = this.#options.clock.bootNs();
    for (const address of this.#grants.addressesOf(peer)) {
      if (this.#grants.untilNs(peer, this.#grants.get(peer, address)!) > now) return true;
    }
    return false;
  }

  /** Peers that may believe an earlier owner of the address. */
  owedAt(address: IpAddress): NodeId[] {
    const generation = this.#options.generationAt(address);
    const owed: NodeId[] = [];
    for (const [node, grant] of this.#grants.nodesOf(address)) {
      if (generation === undefined || grant.generation < generation) owed.push(node);
    }
    return owed;
  }

  owes(node: NodeId, address: IpAddress): boolean {
    return this.#owed(node, address) !== undefined;
  }

  /** 'superseded': a newer channel took this one's place. undefined: the peer has not acked RESET. */
  state(channel: PeerChannel): 'current' | 'superseded' | undefined {
    if (this.#sessions.get(channel)?.resetAcked !== true) return undefined;
    return this.#current.get(channel.peer.id) === channel ? 'current' : 'superseded';
  }

  /** The peer is told now that the generation is on the address. True: it was told nothing of it before. */
  given(peer: NodeId, address: IpAddress, generation: bigint): boolean {
    const before = this.#grants.get(peer, address);
    const untilNs = this.#options.clock.bootNs() + nsOfMs(this.#options.leaseMs);
    this.#grants.set(peer, address, { generation, at: ++this.#at, untilNs });
    return before?.generation !== generation;
  }

  /**
   * RESET is the first thing a peer hears: which generations go on (ResetNamesLive). Nothing is vouched on the channel before it is
   * acked, and nothing any more on an older channel to the node.
   */
  channelOpened(channel: PeerChannel): void {
    const { incarnation, trace } = this.#options;
    const peer = channel.peer.id;
    const live = this.#options.openTo(peer);
    const at = ++this.#at;
    for (const { address, generation } of live) {
      const before = this.#grants.get(peer, address);
      this.#grants.set(peer, address, {
        generation,
        at,
        untilNs: before?.generation === generation ? before.untilNs : 0n,
      });
    }
    this.#sessions.set(channel, {
      at,
      keeps: new Map(live.map(({ address, generation }) => [address, generation])),
      kept: new Set(),
      resetAcked: false,
      pending: new Map(),
      lastWithdraw: 0n,
    });
    this.#current.set(peer, channel);
    trace?.({ ev: 'reset', peer, channel: channel.id, incarnation, keeps: live.map(traceOf) });
    let from = 0;
    do {
      const more = from + BATCH < live.length;
      const keeps = live.slice(from, from + BATCH).map(wireOf);
      channel.send(FrameType.FRAME_TYPE_RESET, Reset.encode({ incarnation, keeps, more }).finish());
      from += BATCH;
    } while (from < live.length);
  }

  channelClosed(channel: PeerChannel): void {
    const peer = channel.peer.id;
    this.#sessions.delete(channel);
    if (this.#current.get(peer) !== channel) return;
    this.#current.delete(peer);
    this.#settle(peer, false);
    this.#withdrawTo(peer);
  }

  /**
   * `kept`: what the peer still holds of what RESET named; all else of this node it holds no more. False: an ack of something else
   * than was said; the channel must close.
   */
  resetAcked(
    channel: PeerChannel,
    incarnation: bigint,
    kept: readonly Claimed[],
    more: boolean,
    released: boolean,
  ): boolean {
    const session = this.#sessions.get(channel);
    if (session === undefined || session.resetAcked || incarnation !== this.#options.incarnation) return false;
    for (const { address, generation } of kept) {
      if (session.keeps.get(address) !== generation || session.kept.has(address)) return false;
      session.kept.add(address);
    }
    if (more) return kept.length > 0;
    session.resetAcked = true;
    const peer = channel.peer.id;
    // ResetAckClearsNamed: a newer channel's RESET said more, and its ack is what counts.
    if (this.#current.get(peer) !== channel) return true;
    this.#options.trace?.({ ev: 'reset-acked', peer, channel: channel.id, incarnation });
    const gone = [...this.#grants.addressesOf(peer)].filter(
      (address) => this.#grants.get(peer, address)!.at !== session.at || !session.kept.has(address),
    );
    const owed = gone.filter((address) => this.owes(peer, address));
    for (const address of gone) this.#grants.delete(peer, address);
    const isNew = !this.#met.has(peer);
    this.#met.add(peer);
    if (isNew) this.#options.met(peer, session.kept, released);
    this.#options.released(peer, owed);
    this.#settle(peer, true);
    this.#withdrawTo(peer);
    this.#options.settled(channel);
    return true;
  }

  withdrawAcked(channel: PeerChannel, id: bigint): boolean {
    const { trace, audit, released } = this.#options;
    const session = this.#sessions.get(channel);
    const said = session?.pending.get(id);
    if (session === undefined || said === undefined) return false;
    session.pending.delete(id);
    const peer = channel.peer.id;
    trace?.({ ev: 'withdraw-acked', peer, channel: channel.id, id });
    const gone: IpAddress[] = [];
    for (const { address, generation } of said) {
      const grant = this.#grants.get(peer, address);
      if (grant === undefined || grant.generation > generation) continue;
      this.#grants.delete(peer, address);
      gone.push(address);
      audit.emit({
        kind: 'vouch.withdrawn',
        source: { address },
        destination: { node: channel.peer.name },
        detail: { generation: String(generation), acked: true },
      });
    }
    released(peer, gone);
    return true;
  }

  /**
   * RenewalNamesVersion: every vouch that the peer holds lives a lease longer, if its kernel has applied the last withdraw that was said
   * to it on this channel; none before RESET is acked on it (RenewalAfterReset). False: it asks for its addresses anew.
   */
  renew(channel: PeerChannel, incarnation: bigint, version: bigint): boolean {
    if (this.state(channel) !== 'current' || incarnation !== this.#options.incarnation) return false;
    this.#sayWithdraws();
    if (version < this.#sessions.get(channel)!.lastWithdraw) return false;
    this.#grants.renew(channel.peer.id, this.#options.clock.bootNs() + nsOfMs(this.#options.leaseMs));
    return true;
  }

  /** If the node comes back to the registry, it has to let go of everything first. */
  forgetNode(node: NodeId): void {
    this.#grants.deleteNode(node);
    this.#met.delete(node);
    this.#settle(node, false);
    this.#redials.get(node)?.();
    this.#redials.delete(node);
  }

  /** The owners of these addresses changed. What changes in one turn is withdrawn in one message. */
  withdrawSoon(addresses: readonly IpAddress[]): void {
    if (this.#toWithdraw.size === 0) queueMicrotask(() => this.#sayWithdraws());
    for (const address of addresses) for (const node of this.owedAt(address)) this.#toWithdraw.add(node);
  }

  /** The generation that the peer may believe although the address is no longer its; undefined: none. */
  #owed(node: NodeId, address: IpAddress): bigint | undefined {
    const grant = this.#grants.get(node, address);
    if (grant === undefined) return undefined;
    const generation = this.#options.generationAt(address);
    return generation === undefined || grant.generation < generation ? grant.generation : undefined;
  }

  #settle(node: NodeId, met: boolean): void {
    const waiters = this.#waiters.get(node) ?? [];
    this.#waiters.delete(node);
    for (const resolve of waiters) resolve(met);
  }

  #sayWithdraws(): void {
    if (this.#toWithdraw.size === 0) return;
    const nodes = this.#toWithdraw;
    this.#toWithdraw = new Set();
    for (const node of nodes) this.#withdrawTo(node);
  }

  /** Says to the peer what it has not been told yet, or dials it. */
  #withdrawTo(node: NodeId): void {
    const owed = [...this.#grants.addressesOf(node)].flatMap((address) => {
      const generation = this.#owed(node, address);
      return generation === undefined ? [] : [{ address, generation }];
    });
    if (owed.length === 0) return;
    const channel = this.#current.get(node);
    const session = channel === undefined ? undefined : this.#sessions.get(channel);
    if (channel === undefined || session === undefined) this.#redial(node, owed);
    else if (session.resetAcked) this.#withdraw(channel, session, owed);
  }

  #withdraw(channel: PeerChannel, session: Session, owed: readonly Claimed[]): void {
    const { incarnation, trace } = this.#options;
    const said = new Map([...session.pending.values()].flat().map(({ address, generation }) => [address, generation]));
    const news = owed.filter(({ address, generation }) => (said.get(address) ?? -1n) < generation);
    for (let from = 0; from < news.length; from += BATCH) {
      const batch = news.slice(from, from + BATCH);
      const id = this.#nextWithdraw++;
      session.pending.set(id, batch);
      session.lastWithdraw = id;
      const body = Withdraw.encode({ id, incarnation, addresses: batch.map(wireOf) }).finish();
      trace?.({
        ev: 'withdraw',
        peer: channel.peer.id,
        channel: channel.id,
        id,
        version: id,
        entries: batch.map(traceOf),
      });
      channel.send(FrameType.FRAME_TYPE_WITHDRAW, body);
    }
  }

  /** While the lease may live, the peer is told at once. Else the next channel's RESET tells it. */
  #redial(id: NodeId, owed: readonly Claimed[]): void {
    const node = this.#options.peers().find((peer) => peer.id === id);
    const now = this.#options.clock.bootNs();
    const matters = owed.some(({ address }) => this.#grants.untilNs(id, this.#grants.get(id, address)!) > now);
    if (node === undefined || !matters || this.#redials.has(id)) return;
    this.#options.dial(node);
    this.#redials.set(
      id,
      this.#options.timers.set(REDIAL_MS, () => {
        this.#redials.delete(id);
        if (!this.#current.has(id)) this.#withdrawTo(id);
      }),
    );
  }
}

function wireOf({ address, generation }: Claimed): { address: Buffer; generation: bigint } {
  return { address: addressWireBytes(address), generation };
}

function traceOf({ address, generation }: Claimed): { ip: IpAddress; generation: bigint } {
  return { ip: address, generation };
}
