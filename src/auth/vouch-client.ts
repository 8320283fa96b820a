/**
 * The receiver's side of leases and fences: asks a node who its addresses are, believes it within the rules, renews, and lets go
 * when told to (rules 1 to 4). What is believed is put in force by vouch-tables.ts; an ack is given only when both tables are clean.
 */
import {
  FrameType,
  type RenewReply,
  type Reset,
  ResetAck,
  type VouchReply,
  type Withdraw,
  WithdrawAck,
} from '../../proto/gen/countersign/peer/v1/peer.ts';
import { err } from '../base/errors.ts';
import type { ReasonCode } from '../base/registry/reason-codes.ts';
import type { PeerChannel } from '../channel/peer-channel.ts';
import { addressFromBytes, addressWireBytes, prefixContains } from '../model/address.ts';
import type { NodeInfo } from '../model/identity.ts';
import type { IpAddress, NodeId, SecurityIdentity } from '../model/ids.ts';
import { type AuthSettings, SESSION_LIFE_MS } from './ports.ts';
import { laterOf, nsOfMs } from './units.ts';
import { isNewer, type KnownVouch } from './vouch-book.ts';
import type { Claimed } from './vouch-grants.ts';
import { Renewals } from './vouch-renewal.ts';
import { VouchRequests } from './vouch-requests.ts';
import { newSession, type Session } from './vouch-session.ts';
import { type VouchAnswer, VouchTables, type VouchTablesOptions } from './vouch-tables.ts';

export interface VouchClientOptions extends Omit<VouchTablesOptions, 'freed'> {
  readonly settings: Pick<AuthSettings, 'leaseMs' | 'vouchTimeoutMs' | 'queueSize'>;
  channelTo(node: NodeInfo): PeerChannel | undefined;
  /** Addresses of this node's endpoints that are open to the node. */
  openTo(node: NodeId): readonly IpAddress[];
  /** Does the peer hold a lease on this node's address, with a good part of it left? */
  isKnownTo(peer: NodeId, address: IpAddress): boolean;
  /** Has the channel's peer acked this node's RESET? Until then it knows nothing for certain, and may not ask. */
  isSettled(channel: PeerChannel): boolean;
  /** May the peer hold a lease on any address of this node? */
  isLeasedTo(peer: NodeId): boolean;
  /** Are the node's leases worth renewing, or has nothing needed them for long? Left out: they always are. */
  inUse?(node: NodeId): boolean;
}

/** Addresses in one request: its reply stays below 64 KiB for SPIFFE IDs of common length. */
const BATCH = 64;
/** Own addresses in one request: what a peer takes. */
export const OWN_BATCH = 16;
/** One peer's share of the queue, for what it makes this node ask: a hostile one leaves the rest to the others. */
const OFFER_SHARE = 16;
/** Ungranted addresses that are audited for one channel. */
const MAX_UNGRANTED = 64;
/** Addresses that are remembered to be asked for again, for one channel. */
const MAX_MISSED = 1_024;
/** What RESET may name: above what a node can host. */
const MAX_KEEPS = 65_536;
/** Kept addresses in one ack. */
const ACK_BATCH = 1_024;

export class VouchClient {
  readonly tables: VouchTables;
  readonly #options: VouchClientOptions;
  readonly #requests: VouchRequests;
  readonly #renewals: Renewals;
  readonly #sessions = new Map<PeerChannel, Session>();
  /** The newest channel to each node. */
  readonly #current = new Map<NodeId, PeerChannel>();
  readonly #incarnations = new Map<NodeId, bigint>();
  readonly #ticks = new Map<NodeId, () => void>();

  constructor(options: VouchClientOptions) {
    const { settings, clock, timers, trace } = options;
    this.#options = options;
    this.tables = new VouchTables({ ...options, freed: (address) => this.freed(address) });
    this.#requests = new VouchRequests({
      timeoutMs: settings.vouchTimeoutMs,
      limit: settings.queueSize,
      clock,
      timers,
      trace,
    });
    this.#renewals = new Renewals({
      tables: this.tables,
      leaseMs: settings.leaseMs,
      askAnew: (channel) => this.#askAnew(channel),
      clock,
      trace,
    });
  }

  /** Asks the channel's peer who the address is. `own`: addresses of this node that it may ask back for. */
  async ask(channel: PeerChannel, address: IpAddress, own: readonly IpAddress[] = []): Promise<VouchAnswer> {
    const session = this.#sessions.get(channel);
    if (session === undefined) return err('PEER_CHANNEL_CLOSED');
    if (session.incarnation === undefined) await session.ready;
    if (session.incarnation === undefined || channel.closed) return err('PEER_CHANNEL_CLOSED');
    if (this.#requests.isFull) return err('AUTH_QUEUE_FULL');
    return new Promise((resolve) => this.#requests.ask(channel, new Map([[address, resolve]]), own));
  }

  /** A live vouch of this peer with a good part of its lease left needs no asking. */
  known(peer: NodeId, address: IpAddress): KnownVouch | undefined {
    const vouch = this.tables.get(address);
    if (vouch === undefined || vouch.node !== peer) return undefined;
    const leftNs = vouch.leaseEndNs - this.#options.clock.bootNs();
    return leftNs > nsOfMs(this.#options.settings.leaseMs) / 3n ? vouch : undefined;
  }

  channelOpened(channel: PeerChannel): void {
    this.#current.set(channel.peer.id, channel);
    this.#sessions.set(channel, newSession(this.#options.clock.bootNs()));
  }

  /** RequestsDieWithChannel, and so does what was answered and is not in force yet; leases run on, to their end. */
  channelClosed(channel: PeerChannel): void {
    const session = this.#sessions.get(channel);
    const node = channel.peer.id;
    this.#sessions.delete(channel);
    if (session !== undefined) {
      session.incarnation = undefined;
      session.setReady();
    }
    this.#requests.endOn(channel);
    if (this.#current.get(node) !== channel) return;
    this.#current.delete(node);
    this.tables.abandon(node);
  }

  /**
   * Rule 3. Everything of the node but what RESET names leaves both tables, then the ack (ResetDeletes, ResetNamesLive); an incarnation
   * lower than ever seen is barred (BarLowerIncarnation). @throws RangeError on a malformed address or too many.
   */
  async reset(channel: PeerChannel, message: Reset): Promise<void> {
    const session = this.#sessions.get(channel);
    if (session === undefined) return;
    const { keeps } = session;
    if (keeps === undefined) return channel.close('PEER_FRAME_UNEXPECTED');
    session.resetSeen = true;
    if (keeps.size + message.keeps.length > MAX_KEEPS) throw new RangeError('RESET names too many addresses');
    for (const { address, generation } of message.keeps) keeps.set(addressFromBytes(address), generation);
    if (message.more) {
      if (message.keeps.length === 0) throw new RangeError('an empty RESET that more follow');
      return;
    }
    session.keeps = undefined;
    const { incarnation } = message;
    const node = channel.peer.id;
    const held = this.tables.heldBy(node);
    const highest = held.map((entry) => entry.incarnation).reduce(laterOf, this.#incarnations.get(node) ?? 0n);
    if (incarnation < highest) return channel.close('PEER_INCARNATION_BARRED');
    this.#incarnations.set(node, incarnation);
    const goesOn = (entry: { address: IpAddress; incarnation: bigint; generation: bigint }) =>
      entry.incarnation === incarnation && keeps.get(entry.address) === entry.generation;
    // What was asked on an older channel may be answered as of before: it is asked again on this one.
    const asked = this.#current.get(node) === channel ? this.#requests.takeFromOthers(channel) : [];
    this.tables.abandon(node, goesOn);
    const old = held.filter((entry) => !goesOn(entry));
    for (const { address } of old) void this.tables.drop(address, node).catch(() => {});
    // AckAfterPrograms, FlushBeforeAck: also of what a withdraw on an earlier channel, or an end of a lease, began to take away.
    await this.tables.dropped(node);
    if (channel.closed || this.#sessions.get(channel) !== session) {
      for (const waiting of asked) for (const resolve of waiting.values()) resolve(err('PEER_CHANNEL_CLOSED'));
      return;
    }
    // What is on its way comes into force after all: the host must count with it.
    this.#ackReset(channel, incarnation, this.tables.heldBy(node).filter(goesOn), old.length > 0);
    session.incarnation = incarnation;
    session.setReady();
    for (const waiting of asked) this.#requests.ask(channel, waiting, []);
    // Whether it is in use or not: the peer must know whoever may send.
    if (this.#options.isSettled(channel)) this.offerUnknown(channel);
    this.#tick(node);
  }

  /** What stood in the way of a vouch for the address is gone: whoever offered it is asked again. */
  freed(address: IpAddress): void {
    for (const [channel, session] of this.#sessions) {
      if (session.missed.has(address) && this.#current.get(channel.peer.id) === channel)
        this.#askFor(channel, [address]);
    }
  }

  /**
   * Has the peer ask who these addresses of this node are, unless it knows. A packet whose source the peer's tunnel does not expect
   * dies there unseen, so nobody would ask later: every endpoint that is open to it is offered on each channel, before its first packet.
   * No answer is waited for.
   */
  offer(channel: PeerChannel, own: readonly IpAddress[]): void {
    if (this.#sessions.get(channel)?.incarnation === undefined) return;
    for (let at = 0; at < own.length; at += OWN_BATCH) this.#requests.offer(channel, own.slice(at, at + OWN_BATCH));
  }

  /** Offers what the peer may know and does not. */
  offerUnknown(channel: PeerChannel): void {
    const node = channel.peer.id;
    this.offer(
      channel,
      this.#options.openTo(node).filter((address) => !this.#options.isKnownTo(node, address)),
    );
  }

  /**
   * The peer offers addresses of its own: what is not known yet is asked for, in one request. Bounded for each channel; above that an
   * offer is not heeded. undefined: nothing to wait for; else resolves when the addresses are in force, or refused. An offer
   * before RESET, which comes first, closes the channel: nothing would bound the wait.
   */
  offered(channel: PeerChannel, own: readonly IpAddress[]): Promise<unknown> | undefined {
    const session = this.#sessions.get(channel);
    if (session === undefined || own.length === 0) return undefined;
    if (!session.resetSeen) {
      channel.close('PEER_FRAME_UNEXPECTED');
      return undefined;
    }
    const wanted = [...new Set(own)].filter(
      (address) =>
        this.known(channel.peer.id, address) === undefined && this.#isGranted(channel.peer, session, address),
    );
    const share = Math.max(1, Math.floor(this.#options.settings.queueSize / OFFER_SHARE));
    const news = wanted.filter((address) => !session.askedBack.has(address));
    if (news.length > 0 && session.asking < share) {
      session.asking += 1;
      const asked = this.#askBack(channel, session, news).finally(() => {
        session.asking -= 1;
        for (const address of news) session.askedBack.delete(address);
      });
      for (const address of news) session.askedBack.set(address, asked);
    }
    const awaited = new Set(wanted.flatMap((address) => session.askedBack.get(address) ?? []));
    if (awaited.size === 0 || session.waiting >= share) return undefined;
    session.waiting += 1;
    return Promise.all(awaited).finally(() => {
      session.waiting -= 1;
    });
  }

  /** Rules 1 and 2. A reply to no open request of this channel (late, or invented) changes nothing. @throws on a malformed address. */
  reply(channel: PeerChannel, reply: VouchReply): void {
    const { clock, settings } = this.#options;
    const vouches = reply.vouches.map((vouch) => ({ ...vouch, address: addressFromBytes(vouch.address) }));
    const nonce = reply.nonce.toString('hex');
    const request = this.#requests.take(channel, nonce);
    if (request === undefined) return;
    const incarnation = this.#sessions.get(channel)?.incarnation;
    const now = clock.bootNs();
    for (const answer of vouches) {
      const resolve = request.waiting.get(answer.address);
      if (resolve === undefined) continue;
      request.waiting.delete(answer.address);
      const vouch: KnownVouch = {
        address: answer.address,
        node: channel.peer.id,
        identity: answer.securityIdentity as SecurityIdentity,
        spiffeId: answer.spiffeId as KnownVouch['spiffeId'],
        incarnation: reply.incarnation,
        generation: answer.generation,
        // LeaseFromAsking: no delay of the answer makes a lease longer.
        leaseEndNs: request.sentNs + nsOfMs(Math.min(answer.leaseMs, settings.leaseMs)),
        // Counted back from now: the delay of the answer can only make them later.
        ...(answer.earlierOwnerMs === 0n ? {} : { earlierOwnerNs: now - answer.earlierOwnerMs * 1_000_000n }),
        ownedSinceNs: now - answer.ownedMs * 1_000_000n,
      };
      const refusal = reply.incarnation === incarnation ? this.#refusal(channel.peer, vouch) : 'VOUCH_STALE';
      if (refusal === undefined) void this.#take(channel, vouch, nonce).then(resolve);
      else {
        this.#auditRefusal(channel.peer, vouch, refusal);
        resolve(err(refusal));
      }
    }
    for (const [address, resolve] of request.waiting) {
      if (this.tables.book.get(address)?.node === channel.peer.id) this.tables.dropLater(address, channel.peer.id);
      this.#auditRefusal(channel.peer, { address }, 'VOUCH_NOT_HOSTED');
      resolve(err('VOUCH_NOT_HOSTED'));
    }
  }

  renewed(channel: PeerChannel, reply: RenewReply): void {
    this.#renewals.reply(channel, reply.nonce.toString('hex'), reply.ok, reply.leaseMs);
  }

  /**
   * Rule 4. By key in the kernel's table, whatever is remembered here; then the tunnel's entry; then the ack. Covers every generation
   * up to the named one. @throws on a malformed address.
   */
  async withdraw(channel: PeerChannel, message: Withdraw): Promise<void> {
    const withdrawn = message.addresses.map((entry) => ({ ...entry, address: addressFromBytes(entry.address) }));
    const session = this.#sessions.get(channel);
    if (session === undefined) return;
    if (!session.withdraws.begin(message.id)) return channel.close('PEER_FRAME_UNEXPECTED');
    const node = channel.peer.id;
    const now = this.#options.clock.bootNs();
    this.tables.book.forgetTombstones(node, now);
    const untilNs = now + nsOfMs(this.#options.settings.leaseMs);
    const gone = withdrawn.map(({ address, generation }) => {
      const what = { incarnation: message.incarnation, generation };
      session.missed.delete(address);
      this.tables.book.bury(node, address, { ...what, untilNs });
      this.#requests.cancel(node, address);
      const { entry, known, install } = this.tables.held(address);
      const held = [install, entry, known].find((h) => h !== undefined && h.node === node);
      // A newer one, or another node's: both tables are that one's.
      if ((held !== undefined && isNewer(held, what)) || (held === undefined && entry !== undefined)) {
        return this.tables.quiet(address);
      }
      if (held !== undefined) {
        this.#options.audit.emit({
          kind: 'vouch.withdrawn',
          source: { address, node: channel.peer.name, identity: held.identity },
          detail: { generation: String(generation) },
        });
      }
      return this.tables.drop(address, node);
    });
    await Promise.all(gone);
    session.withdraws.end(message.id);
    this.#options.trace?.({ ev: 'withdraw-ack', peer: node, channel: channel.id, id: message.id });
    channel.send(FrameType.FRAME_TYPE_WITHDRAW_ACK, WithdrawAck.encode({ id: message.id }).finish());
  }

  /** The node left the registry. */
  nodeRemoved(node: NodeId): void {
    for (const { address } of this.tables.heldBy(node)) this.tables.dropLater(address, node);
    this.#ticks.get(node)?.();
    this.#ticks.delete(node);
  }

  /** Identity table, prefixes or nodes changed: what would not be believed today goes. */
  recheck(): void {
    for (const vouch of this.tables.book.all()) {
      const node = this.#options.nodes.byId(vouch.node);
      const refusal = node === undefined ? 'VOUCH_NO_NODE' : this.#standing(node, vouch);
      if (refusal === undefined) continue;
      if (node !== undefined) this.#auditRefusal(node, vouch, refusal);
      this.tables.dropLater(vouch.address, vouch.node);
    }
  }

  #ackReset(channel: PeerChannel, incarnation: bigint, kept: readonly Claimed[], dropped: boolean): void {
    const sinceNs = this.#options.clock.bootNs() - nsOfMs(SESSION_LIFE_MS);
    const node = channel.peer.id;
    const released = dropped || this.tables.book.hasLeftSince(node, sinceNs);
    const generations = new Map(kept.map(({ address, generation }) => [address, generation]));
    const entries = [...generations].map(([address, generation]) => ({
      address: addressWireBytes(address),
      generation,
    }));
    let from = 0;
    do {
      const more = from + ACK_BATCH < entries.length;
      const body = ResetAck.encode({ incarnation, kept: entries.slice(from, from + ACK_BATCH), more, released });
      channel.send(FrameType.FRAME_TYPE_RESET_ACK, body.finish());
      from += ACK_BATCH;
    } while (from < entries.length);
    this.#options.trace?.({ ev: 'reset-ack', peer: node, channel: channel.id, incarnation });
  }

  async #askBack(channel: PeerChannel, session: Session, addresses: readonly IpAddress[]): Promise<void> {
    if (session.incarnation === undefined) await session.ready;
    if (session.incarnation === undefined || channel.closed) return;
    if (this.#requests.isFull) {
      for (const address of addresses) miss(session, address);
      return;
    }
    const answers = addresses.map((address) => ({ address, ...Promise.withResolvers<VouchAnswer>() }));
    this.#requests.ask(channel, new Map(answers.map(({ address, resolve }) => [address, resolve])), []);
    await Promise.all(
      answers.map(async ({ address, promise }) => {
        const answer = await promise;
        if (answer.ok) session.missed.delete(address);
        else miss(session, address);
      }),
    );
  }

  /** As granted now, not as when the channel was opened. What is not is audited, once for each address and channel. */
  #isGranted(peer: NodeInfo, session: Session, address: IpAddress): boolean {
    const { prefixes } = this.#options.nodes.byId(peer.id) ?? peer;
    if (prefixes.some((prefix) => prefixContains(prefix, address))) return true;
    if (!session.ungranted.has(address) && session.ungranted.size < MAX_UNGRANTED) {
      session.ungranted.add(address);
      this.#auditRefusal(peer, { address }, 'VOUCH_NOT_GRANTED');
    }
    return false;
  }

  /** What must hold for as long as the vouch does. */
  #standing(node: NodeInfo, claim: KnownVouch): ReasonCode | undefined {
    if (!node.prefixes.some((prefix) => prefixContains(prefix, claim.address))) return 'VOUCH_NOT_GRANTED';
    const row = this.#options.identities.byIdentity(claim.identity);
    if (row === undefined) return 'VOUCH_UNKNOWN_IDENTITY';
    if (claim.spiffeId !== undefined && row.spiffeId !== claim.spiffeId) return 'VOUCH_IDENTITY_MISMATCH';
    // Policies without authentication rest on the vouch alone: the node must be one that this identity may run on.
    if (!row.nodes.includes(node.spiffeId)) return 'VOUCH_WRONG_NODE';
    return undefined;
  }

  #refusal(peer: NodeInfo, claim: KnownVouch): ReasonCode | undefined {
    // Grants as they are now, not as they were when the channel was opened.
    const standing = this.#standing(this.#options.nodes.byId(peer.id) ?? peer, claim);
    if (standing !== undefined) return standing;
    const now = this.#options.clock.bootNs();
    const { entry, install } = this.tables.held(claim.address);
    if (entry?.reserved) return 'VOUCH_NOT_GRANTED';
    for (const held of [entry, install]) {
      if (held === undefined) continue;
      const isAlive = held.leaseEndNs === undefined || held.leaseEndNs > now;
      // OtherNodesLeaseWins, NewerWins.
      if (held.node !== claim.node && isAlive) return 'VOUCH_HELD_BY_OTHER';
      if (held.node === claim.node && isNewer(held, claim)) return 'VOUCH_STALE';
    }
    // BarLowerIncarnation, on whatever channel.
    if (claim.incarnation < (this.#incarnations.get(claim.node) ?? 0n)) return 'VOUCH_STALE';
    if (this.tables.book.isWithdrawn(claim)) return 'VOUCH_STALE';
    if (claim.leaseEndNs <= now) return 'LEASE_EXPIRED';
    return undefined;
  }

  async #take(channel: PeerChannel, vouch: KnownVouch, nonce: string): Promise<VouchAnswer> {
    const answer = await this.tables.take(channel.peer, { vouch, nonce });
    if (answer.ok) this.#armTick(vouch.node);
    else this.#auditRefusal(channel.peer, vouch, answer.error);
    return answer;
  }

  #armTick(node: NodeId): void {
    if (this.#ticks.has(node)) return;
    const cancel = this.#options.timers.set(this.#options.settings.leaseMs / 3, () => {
      this.#ticks.delete(node);
      this.#tick(node);
      const channel = this.#current.get(node);
      if (channel !== undefined && this.tables.book.hasNode(node)) this.offerUnknown(channel);
    });
    this.#ticks.set(node, cancel);
  }

  /** At each third of a lease, while there is a channel or a lease. */
  #tick(node: NodeId): void {
    const channel = this.#current.get(node);
    const session = channel === undefined ? undefined : this.#sessions.get(channel);
    if (channel === undefined && !this.tables.book.hasNode(node)) return;
    this.#armTick(node);
    if (channel === undefined || session?.incarnation === undefined) return;
    if (!this.#isInUse(node, session)) {
      this.#closeIdle(channel);
      return;
    }
    if (this.tables.book.hasNode(node)) {
      this.#renewals.ask(channel, session.incarnation, session.withdraws.version);
      this.#askFor(channel, this.tables.adoptedOf(node));
    }
    this.#askFor(channel, [...session.missed]);
  }

  /** A channel that was just opened was opened for something. */
  #isInUse(node: NodeId, session: Session): boolean {
    const { inUse, clock, settings } = this.#options;
    if (inUse === undefined || inUse.call(this.#options, node)) return true;
    return clock.bootNs() - session.openedNs < nsOfMs(settings.leaseMs) * 4n;
  }

  /** Neither side has needed the other for long, and neither believes anything of the other any more. */
  #closeIdle(channel: PeerChannel): void {
    const node = channel.peer.id;
    if (this.tables.book.hasNode(node) || this.#options.isLeasedTo(node)) return;
    channel.close('PEER_IDLE');
  }

  /** Without anybody who waits for the answers. */
  #askFor(channel: PeerChannel, addresses: readonly IpAddress[]): void {
    const session = this.#sessions.get(channel);
    for (let at = 0; at < addresses.length && !this.#requests.isFull; at += BATCH) {
      const batch = addresses.slice(at, at + BATCH).map((address) => {
        const heard = (answer: VouchAnswer) => {
          if (answer.ok) session?.missed.delete(address);
        };
        return [address, heard] as const;
      });
      this.#requests.ask(channel, new Map(batch), []);
    }
  }

  #askAnew(channel: PeerChannel): void {
    this.#askFor(
      channel,
      this.tables.book.ofNode(channel.peer.id).map(({ address }) => address),
    );
  }

  #auditRefusal(peer: NodeInfo, claim: Pick<KnownVouch, 'address'> & Partial<KnownVouch>, reason: ReasonCode): void {
    const { address, identity } = claim;
    this.#options.audit.emit({
      kind: 'vouch.refused',
      reason,
      source: { address, node: peer.name, ...(identity === undefined ? {} : { identity }) },
    });
  }
}

function miss(session: Session, address: IpAddress): void {
  if (session.missed.size < MAX_MISSED) session.missed.add(address);
}
