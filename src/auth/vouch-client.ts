/**
 * The receiver's side of leases and fences: asks a node who its addresses are, believes it within the rules, renews, and lets go
 * when told to (rules 1 to 4). What is believed is put in force by vouch-tables.ts; an ack is given only when both tables are clean.
 */
import { randomBytes } from 'node:crypto';
import {
  FrameType,
  ResetAck,
  type VouchReply,
  VouchRequest,
  type Withdraw,
  WithdrawAck,
} from '../../proto/gen/countersign/peer/v1/peer.ts';
import { err } from '../base/errors.ts';
import type { ReasonCode } from '../base/registry/reason-codes.ts';
import type { PeerChannel } from '../channel/peer-channel.ts';
import { addressFromBytes, addressWireBytes, prefixContains } from '../model/address.ts';
import type { NodeInfo } from '../model/identity.ts';
import type { IpAddress, NodeId, SecurityIdentity } from '../model/ids.ts';
import type { AuthSettings } from './ports.ts';
import { laterOf, nsOfMs } from './units.ts';
import { isNewer, type KnownVouch } from './vouch-book.ts';
import { type VouchAnswer, VouchTables, type VouchTablesOptions } from './vouch-tables.ts';

export interface VouchClientOptions extends VouchTablesOptions {
  readonly settings: Pick<AuthSettings, 'leaseMs' | 'vouchTimeoutMs' | 'queueSize'>;
  channelTo(node: NodeInfo): PeerChannel | undefined;
  /** Addresses of this node's open endpoints. */
  ownOpen(): readonly IpAddress[];
  /** Does the peer hold a lease on this node's address, with a good part of it left? */
  isKnownTo(peer: NodeId, address: IpAddress): boolean;
  /** Is the address worth renewing? Left out: every known one is. */
  inUse?(address: IpAddress): boolean;
}

type Waiting = Map<IpAddress, (answer: VouchAnswer) => void>;

interface OpenRequest {
  readonly channel: PeerChannel;
  readonly sentNs: bigint;
  readonly waiting: Waiting;
  readonly cancelTimeout: () => void;
}

interface Session {
  /** The peer's incarnation once its RESET is applied and acked. */
  incarnation: bigint | undefined;
  resetSeen: boolean;
  readonly ready: Promise<void>;
  readonly setReady: () => void;
  /** What the peer offered and is being asked for, by address; one promise for all that one request asks. */
  readonly askedBack: Map<IpAddress, Promise<unknown>>;
  /** Requests of that kind that are open, and offers that wait for them. */
  asking: number;
  waiting: number;
  /** Offered without a grant, and audited. */
  readonly ungranted: Set<IpAddress>;
}

/** Addresses in one renewal: its reply stays below 64 KiB for SPIFFE IDs of common length. */
const BATCH = 64;
/** Own addresses in one request: what a peer takes. */
export const OWN_BATCH = 16;
/** One peer's share of the queue, for what it makes this node ask: a hostile one leaves the rest to the others. */
const OFFER_SHARE = 16;
/** Ungranted addresses that are audited for one channel. */
const MAX_UNGRANTED = 64;

export class VouchClient {
  readonly tables: VouchTables;
  readonly #options: VouchClientOptions;
  readonly #sessions = new Map<PeerChannel, Session>();
  readonly #incarnations = new Map<NodeId, bigint>();
  readonly #requests = new Map<string, OpenRequest>();
  readonly #renewals = new Map<NodeId, () => void>();

  constructor(options: VouchClientOptions) {
    this.#options = options;
    this.tables = new VouchTables(options);
  }

  /** Asks the channel's peer who the address is. `own`: addresses of this node that it may ask back for. */
  async ask(channel: PeerChannel, address: IpAddress, own: readonly IpAddress[] = []): Promise<VouchAnswer> {
    const session = this.#sessions.get(channel);
    if (session === undefined) return err('PEER_CHANNEL_CLOSED');
    if (session.incarnation === undefined) await session.ready;
    if (session.incarnation === undefined || channel.closed) return err('PEER_CHANNEL_CLOSED');
    if (this.#requests.size >= this.#options.settings.queueSize) return err('AUTH_QUEUE_FULL');
    return new Promise((resolve) => this.#send(channel, new Map([[address, resolve]]), own));
  }

  /** A live vouch of this peer with a good part of its lease left needs no asking. */
  known(peer: NodeId, address: IpAddress): KnownVouch | undefined {
    const vouch = this.tables.get(address);
    if (vouch === undefined || vouch.node !== peer) return undefined;
    const leftNs = vouch.leaseEndNs - this.#options.clock.bootNs();
    return leftNs > nsOfMs(this.#options.settings.leaseMs) / 3n ? vouch : undefined;
  }

  channelOpened(channel: PeerChannel): void {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#sessions.set(channel, {
      incarnation: undefined,
      resetSeen: false,
      ready: promise,
      setReady: resolve,
      askedBack: new Map(),
      asking: 0,
      waiting: 0,
      ungranted: new Set(),
    });
  }

  /** Its outstanding requests end; leases run on, to their end. */
  channelClosed(channel: PeerChannel): void {
    const session = this.#sessions.get(channel);
    this.#sessions.delete(channel);
    if (session !== undefined) {
      session.incarnation = undefined;
      session.setReady();
    }
    for (const [nonce, request] of this.#requests) {
      if (request.channel === channel) this.#end(nonce, request, 'PEER_CHANNEL_CLOSED');
    }
  }

  /** Rule 3. Everything of a lower incarnation leaves both tables, then the ack; one lower than ever seen is barred. */
  async reset(channel: PeerChannel, incarnation: bigint): Promise<void> {
    const session = this.#sessions.get(channel);
    if (session === undefined) return;
    if (session.resetSeen) return channel.close('PEER_FRAME_UNEXPECTED');
    session.resetSeen = true;
    const node = channel.peer.id;
    const held = this.tables.heldBy(node);
    const highest = held.map((entry) => entry.incarnation).reduce(laterOf, this.#incarnations.get(node) ?? 0n);
    if (incarnation < highest) return channel.close('PEER_INCARNATION_BARRED');
    this.#incarnations.set(node, incarnation);
    const old = held.filter((entry) => entry.incarnation < incarnation);
    await Promise.all(old.map((entry) => this.tables.drop(entry.address, node)));
    if (channel.closed || this.#sessions.get(channel) !== session) return;
    channel.send(FrameType.FRAME_TYPE_RESET_ACK, ResetAck.encode({ incarnation, kept: [], more: false }).finish());
    session.incarnation = incarnation;
    session.setReady();
    this.#renew(node);
    this.offer(channel, this.#options.ownOpen());
  }

  /**
   * Has the peer ask who these addresses of this node are, unless it knows. A packet whose source the peer's tunnel does not expect
   * dies there unseen, so nobody would ask later: every open endpoint is offered on each channel, before its first packet. No
   * answer is waited for; what the peer does not take up is offered again with the next renewal.
   */
  offer(channel: PeerChannel, own: readonly IpAddress[]): void {
    if (this.#sessions.get(channel)?.incarnation === undefined) return;
    for (let at = 0; at < own.length; at += OWN_BATCH) {
      this.#sendRequest(channel, randomBytes(16), [], own.slice(at, at + OWN_BATCH));
    }
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
    const vouches = reply.vouches.map((vouch) => ({ ...vouch, address: addressFromBytes(vouch.address) }));
    const nonce = reply.nonce.toString('hex');
    const request = this.#requests.get(nonce);
    if (request === undefined || request.channel !== channel) return;
    this.#requests.delete(nonce);
    request.cancelTimeout();
    const incarnation = this.#sessions.get(channel)?.incarnation;
    for (const vouch of vouches) {
      const resolve = request.waiting.get(vouch.address);
      if (resolve === undefined) continue;
      request.waiting.delete(vouch.address);
      const claim: KnownVouch = {
        address: vouch.address,
        node: channel.peer.id,
        identity: vouch.securityIdentity as SecurityIdentity,
        spiffeId: vouch.spiffeId as KnownVouch['spiffeId'],
        incarnation: reply.incarnation,
        generation: vouch.generation,
        // Rule 2: counted from when the request was sent, so that no delay of the answer makes a lease longer.
        leaseEndNs: request.sentNs + nsOfMs(Math.min(vouch.leaseMs, this.#options.settings.leaseMs)),
      };
      const refusal = reply.incarnation === incarnation ? this.#refusal(channel.peer, claim) : 'VOUCH_STALE';
      if (refusal === undefined) void this.#take(channel.peer, claim).then(resolve);
      else {
        this.#auditRefusal(channel.peer, claim, refusal);
        resolve(err(refusal));
      }
    }
    for (const [address, resolve] of request.waiting) {
      if (this.tables.book.get(address)?.node === channel.peer.id) this.tables.dropLater(address, channel.peer.id);
      this.#auditRefusal(channel.peer, { address }, 'VOUCH_NOT_HOSTED');
      resolve(err('VOUCH_NOT_HOSTED'));
    }
  }

  /**
   * Rule 4. By key in the kernel's table, whatever is remembered here; then the tunnel's entry; then the ack. Covers every generation
   * up to the named one. @throws on a malformed address.
   */
  async withdraw(channel: PeerChannel, message: Withdraw): Promise<void> {
    const withdrawn = message.addresses.map((entry) => ({ ...entry, address: addressFromBytes(entry.address) }));
    const node = channel.peer.id;
    const now = this.#options.clock.bootNs();
    this.tables.book.forgetTombstones(now);
    const gone = withdrawn.map(({ address, generation }) => {
      const what = { incarnation: message.incarnation, generation };
      this.tables.book.bury(node, address, { ...what, untilNs: now + nsOfMs(this.#options.settings.leaseMs) });
      this.#cancelRequests(node, address);
      const { entry, install } = this.tables.held(address);
      const held = [install, entry].find((h) => h !== undefined && h.node === node && !isNewer(h, what));
      if (held === undefined) return this.tables.quiet(address);
      this.#options.audit.emit({
        kind: 'vouch.withdrawn',
        source: { address, node: channel.peer.name, identity: held.identity },
        detail: { generation: String(generation) },
      });
      return this.tables.drop(address, node);
    });
    await Promise.all(gone);
    channel.send(FrameType.FRAME_TYPE_WITHDRAW_ACK, WithdrawAck.encode({ id: message.id }).finish());
  }

  /** The node left the registry. */
  nodeRemoved(node: NodeId): void {
    for (const { address } of this.tables.heldBy(node)) this.tables.dropLater(address, node);
    this.#renewals.get(node)?.();
    this.#renewals.delete(node);
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

  async #askBack(channel: PeerChannel, session: Session, addresses: readonly IpAddress[]): Promise<void> {
    if (session.incarnation === undefined) await session.ready;
    if (session.incarnation === undefined || channel.closed) return;
    if (this.#requests.size >= this.#options.settings.queueSize) return;
    const answers = addresses.map((address) => ({ address, ...Promise.withResolvers<VouchAnswer>() }));
    this.#send(channel, new Map(answers.map(({ address, resolve }) => [address, resolve])), []);
    await Promise.all(answers.map(({ promise }) => promise));
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

  #send(channel: PeerChannel, waiting: Waiting, own: readonly IpAddress[]): void {
    const nonce = randomBytes(16);
    const key = nonce.toString('hex');
    const { vouchTimeoutMs } = this.#options.settings;
    const request: OpenRequest = {
      channel,
      sentNs: this.#options.clock.bootNs(),
      waiting,
      cancelTimeout: this.#options.timers.set(vouchTimeoutMs, () => this.#end(key, request, 'VOUCH_TIMEOUT')),
    };
    this.#requests.set(key, request);
    this.#sendRequest(channel, nonce, [...waiting.keys()], own);
  }

  #sendRequest(channel: PeerChannel, nonce: Buffer, asked: readonly IpAddress[], own: readonly IpAddress[]): void {
    const request = { nonce, addresses: asked.map(addressWireBytes), own: own.map(addressWireBytes) };
    channel.send(FrameType.FRAME_TYPE_VOUCH_REQUEST, VouchRequest.encode(request).finish());
  }

  #end(nonce: string, request: OpenRequest, reason: ReasonCode): void {
    this.#requests.delete(nonce);
    request.cancelTimeout();
    for (const resolve of request.waiting.values()) resolve(err(reason));
  }

  #cancelRequests(node: NodeId, address: IpAddress): void {
    for (const [nonce, request] of this.#requests) {
      const resolve = request.waiting.get(address);
      if (request.channel.peer.id !== node || resolve === undefined) continue;
      request.waiting.delete(address);
      resolve(err('VOUCH_WITHDRAWN'));
      if (request.waiting.size === 0) this.#end(nonce, request, 'VOUCH_WITHDRAWN');
    }
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
      if (held.node !== claim.node && isAlive) return 'VOUCH_HELD_BY_OTHER';
      if (held.node === claim.node && isNewer(held, claim)) return 'VOUCH_STALE';
    }
    if (this.tables.book.isWithdrawn(claim)) return 'VOUCH_STALE';
    if (claim.leaseEndNs <= now) return 'LEASE_EXPIRED';
    return undefined;
  }

  async #take(peer: NodeInfo, claim: KnownVouch): Promise<VouchAnswer> {
    const answer = await this.tables.take(peer, claim);
    if (answer.ok) this.#armRenewal(claim.node);
    else this.#auditRefusal(peer, claim, answer.error);
    return answer;
  }

  #armRenewal(node: NodeId): void {
    if (this.#renewals.has(node)) return;
    const cancel = this.#options.timers.set(this.#options.settings.leaseMs / 3, () => {
      this.#renewals.delete(node);
      this.#renew(node);
    });
    this.#renewals.set(node, cancel);
  }

  #renew(node: NodeId): void {
    const known = this.tables.book.ofNode(node);
    if (known.length === 0) return;
    this.#armRenewal(node);
    const info = this.#options.nodes.byId(node);
    const channel = info === undefined ? undefined : this.#options.channelTo(info);
    if (channel === undefined || this.#sessions.get(channel)?.incarnation === undefined) return;
    const wanted = known.map((vouch) => vouch.address).filter((address) => this.#options.inUse?.(address) ?? true);
    for (let at = 0; at < wanted.length; at += BATCH) {
      const batch = wanted.slice(at, at + BATCH);
      this.#send(channel, new Map(batch.map((address) => [address, () => {}])), []);
    }
    // While this node sends to the peer, the peer must know whoever may send: an offer it could not take up is made again.
    if (wanted.length > 0) {
      this.offer(
        channel,
        this.#options.ownOpen().filter((address) => !this.#options.isKnownTo(node, address)),
      );
    }
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
