/**
 * Accepted vouches in the two tables that must agree: the tunnel's (which node may send from the address) and the kernel's (who the
 * address is). Written tunnel first and kernel last (MoveTunnelBeforeVouch), taken away kernel first and tunnel last (MoveDeleteFirst,
 * AckAfterDelete), one change of an address after another. A vouch is in force only when both are written.
 *
 * Between two owners of an address nothing of the earlier one, and nothing meant for it, may be left anywhere: held packets for it are
 * dropped and running programs end (FlushBeforeAck, AckAfterPrograms, MoveWaitPrograms), what the tunnel queued or a delayer keeps dies
 * with the session (DropSessionBeforeSuccessor, QueueBeforeSuccessor, MoveFlush).
 */
import type { Clock } from '../base/clock.ts';
import { err, ok, type Result } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import type { ReasonCode } from '../base/registry/reason-codes.ts';
import type { Timers } from '../base/timers.ts';
import type { AuditSink } from '../model/audit-event.ts';
import type { AddressEntry, AddressTable } from '../model/datapath.ts';
import type { IdentityTable, NodeInfo, NodeTable } from '../model/identity.ts';
import { type IpAddress, LOCAL_NODE, type NodeId, type SecurityIdentity } from '../model/ids.ts';
import { SESSION_LIFE_MS, type TunnelBinding } from './ports.ts';
import { earlierOf, laterOf, msOfNs, nsOfMs } from './units.ts';
import { type KnownVouch, VouchBook } from './vouch-book.ts';
import type { VouchTrace } from './vouch-trace.ts';

export type VouchAnswer = Result<KnownVouch, ReasonCode>;

export interface VouchTablesOptions {
  readonly addresses: AddressTable;
  readonly identities: IdentityTable;
  readonly nodes: NodeTable;
  readonly tunnel: TunnelBinding;
  /** As Datapath.quiesce: running programs have ended. */
  quiesce(): Promise<void>;
  /** Drops what is held on its way to the address. */
  flushTo(address: IpAddress): void;
  /** See VouchHost. */
  whenMet(node: NodeId): Promise<boolean>;
  /** What may still be on its way in this machine's own queues is gone after so long. */
  readonly drainMs: number;
  /** Nobody holds the address any more. */
  freed(address: IpAddress): void;
  /** The node no longer vouches for the identity at any address: what rested on it must go. */
  lost(node: NodeId, identity: SecurityIdentity): void;
  /** A vouch for the identity has come into force, in both tables. */
  taken?(node: NodeId, identity: SecurityIdentity): void;
  readonly audit: AuditSink;
  readonly clock: Clock;
  readonly timers: Timers;
  readonly log: Logger;
  readonly trace?: VouchTrace;
}

/** A vouch that the rules accept, and what its host says of it. */
export interface Claim {
  readonly vouch: KnownVouch;
  /** The request it answers. */
  readonly nonce: string;
}

/** An accepted vouch on its way into the tables. */
interface Install {
  readonly vouch: KnownVouch;
  readonly done: Promise<VouchAnswer>;
}

export class VouchTables {
  readonly book = new VouchBook();
  readonly #options: VouchTablesOptions;
  readonly #installs = new Map<IpAddress, Install>();
  readonly #serial = new Map<IpAddress, Promise<void>>();
  /** Under way, and of which node. */
  readonly #drops = new Map<Promise<void>, NodeId>();
  /** In the kernel's table from before a restart: the tunnel may be a new one that has no entry for them. */
  readonly #adopted = new Set<IpAddress>();
  #expiry: { atNs: bigint; cancel: () => void } | undefined;

  constructor(options: VouchTablesOptions) {
    this.#options = options;
    this.#adopt();
  }

  /** In force now: a live lease in the kernel's table, and the tunnel's entry with it. */
  get(address: IpAddress): KnownVouch | undefined {
    const vouch = this.#adopted.has(address) ? undefined : this.book.get(address);
    return vouch !== undefined && vouch.leaseEndNs > this.#options.clock.bootNs() ? vouch : undefined;
  }

  isVouched(node: NodeId, identity: SecurityIdentity): boolean {
    return this.book.isVouched(node, identity, this.#options.clock.bootNs());
  }

  /** undefined: no vouch of this node for this identity is on its way into the tables; else resolves when none is. */
  settled(node: NodeId, identity: SecurityIdentity): Promise<unknown> | undefined {
    if (this.#installs.size === 0) return undefined;
    const pending = [...this.#installs.values()].filter((i) => i.vouch.node === node && i.vouch.identity === identity);
    return pending.length === 0 ? undefined : Promise.all(pending.map((install) => install.done));
  }

  /** The kernel's entry, whatever is remembered; what is remembered; and what is on its way. */
  held(address: IpAddress): {
    entry: AddressEntry | undefined;
    known: KnownVouch | undefined;
    install: KnownVouch | undefined;
  } {
    return {
      entry: this.#options.addresses.get(address),
      known: this.book.get(address),
      install: this.#installs.get(address)?.vouch,
    };
  }

  /** What the node holds in the kernel's table, or is about to. */
  heldBy(node: NodeId): { address: IpAddress; incarnation: bigint; generation: bigint }[] {
    const known = this.book.ofNode(node);
    const installs = [...this.#installs.values()].map(({ vouch }) => vouch).filter((vouch) => vouch.node === node);
    return [...known, ...installs];
  }

  /** A renewal of what is in force is one write; anything else goes through both tables. */
  async take(peer: NodeInfo, claim: Claim): Promise<VouchAnswer> {
    const { vouch } = claim;
    const { address } = vouch;
    const known = this.book.get(address);
    const entry = this.#options.addresses.get(address);
    const isRenewal = known !== undefined && entry !== undefined && isSame(known, vouch) && isSame(entry, vouch);
    if (isRenewal && !this.#adopted.has(address)) {
      if (vouch.leaseEndNs > known.leaseEndNs) this.#write([vouch], claim.nonce);
      return ok(this.book.get(address)!);
    }
    const earlier = this.#installs.get(address);
    if (earlier !== undefined && isSame(earlier.vouch, vouch)) return earlier.done;
    // MoveDeleteFirst. What was adopted stays in force while the tunnel learns of it: its flows and proofs are still good.
    if (entry !== undefined && !isRenewal) this.#unwrite(address);
    const done = this.#prepare(peer, claim).then((refused) =>
      refused === undefined ? this.#inTurn(address, () => this.#install(peer, claim, isRenewal)) : err(refused),
    );
    this.#installs.set(address, { vouch, done });
    const answer = await done;
    if (this.#installs.get(address)?.done === done) this.#installs.delete(address);
    return answer;
  }

  /** RenewalNamesVersion, at the receiver: everything of the node that is in force lives on, in one write. */
  renew(node: NodeId, incarnation: bigint, leaseEndNs: bigint, nonce: string): void {
    const renewed = this.book
      .ofNode(node)
      .filter(
        (vouch) =>
          vouch.incarnation === incarnation && vouch.leaseEndNs < leaseEndNs && !this.#adopted.has(vouch.address),
      )
      .map((vouch) => ({ ...vouch, leaseEndNs }));
    if (renewed.length > 0) this.#write(renewed, undefined);
    this.#options.trace?.({ ev: 'renewed', peer: node, nonce, leaseEndNs });
  }

  /** In the kernel's table from before a restart, and not yet in the tunnel's. */
  adoptedOf(node: NodeId): IpAddress[] {
    if (this.#adopted.size === 0) return [];
    return [...this.#adopted].filter((address) => this.book.get(address)?.node === node);
  }

  /** RequestsDieWithChannel: what was accepted on a channel that is gone, and is not in force, never will be. */
  abandon(node: NodeId, isWanted: (vouch: KnownVouch) => boolean = () => false): void {
    for (const [address, { vouch }] of this.#installs) {
      if (vouch.node === node && !isWanted(vouch)) this.#installs.delete(address);
    }
  }

  /**
   * Ends what the node holds on the address, in force or on its way, by key (AckByKey): the kernel's entry now. Resolves when programs that
   * still saw it have ended (AckAfterPrograms), what waited to go there is gone (FlushBeforeAck) and the tunnel's entry is (AckAfterTunnel).
   */
  drop(address: IpAddress, node: NodeId): Promise<void> {
    const { addresses, tunnel, trace } = this.#options;
    if (this.#installs.get(address)?.vouch.node === node) this.#installs.delete(address);
    const entry = addresses.get(address);
    if (entry?.node === node || this.book.get(address)?.node === node) this.#unwrite(address);
    // FlushBeforeAck: what waits for a vouch of the address was sent to the owner that goes, known here or not.
    else if (entry === undefined) this.#options.flushTo(address);
    const dropped = this.#inTurn(address, async () => {
      await this.#options.quiesce();
      // Another node's by now: its own install moved the tunnel's entry, or will.
      const owner = addresses.get(address)?.node ?? this.#installs.get(address)?.vouch.node;
      if (owner !== undefined && owner !== node) return;
      await tunnel.disallow(address);
      trace?.({ ev: 'tunnel-disallow', ip: address, peer: node });
      this.#options.freed(address);
    });
    this.#drops.set(dropped, node);
    const forget = () => void this.#drops.delete(dropped);
    dropped.then(forget, forget);
    return dropped;
  }

  /** Resolves when nothing of the node is being taken away any more. Rejects as `drop` does. */
  async dropped(node: NodeId): Promise<void> {
    await Promise.all([...this.#drops].flatMap(([dropped, of]) => (of === node ? [dropped] : [])));
  }

  /** The address is this node's own now. True: another node had it, now or lately. */
  takeOver(address: IpAddress): boolean {
    const install = this.#installs.get(address)?.vouch;
    const vouch = this.book.get(address) ?? install;
    if (vouch !== undefined) this.dropLater(address, vouch.node);
    this.#options.flushTo(address);
    return (
      vouch !== undefined || this.book.wasHeldSince(address, this.#options.clock.bootNs() - nsOfMs(SESSION_LIFE_MS))
    );
  }

  /** As drop, when nobody waits for it. */
  dropLater(address: IpAddress, node: NodeId): void {
    this.drop(address, node).catch((thrown) => this.#complain(thrown));
  }

  /** Resolves when no change of the address is under way. */
  async quiet(address: IpAddress): Promise<void> {
    await this.#serial.get(address);
  }

  #isCurrent(vouch: KnownVouch): boolean {
    return this.#installs.get(vouch.address)?.vouch === vouch;
  }

  /** What may take long, before anything is changed. */
  async #prepare(peer: NodeInfo, { vouch }: Claim): Promise<ReasonCode | undefined> {
    // TunnelOrigin: no vouch without the authenticated tunnel.
    const ready = await this.#options.tunnel.whenReady(peer);
    if (!ready.ok) return ready.error;
    // FenceReceive, after a restart: the peer may believe an earlier life of this node.
    if (!(await this.#options.whenMet(vouch.node))) return 'PEER_CHANNEL_CLOSED';
    return this.#isCurrent(vouch) ? undefined : 'VOUCH_WITHDRAWN';
  }

  async #install(peer: NodeInfo, claim: Claim, isKept: boolean): Promise<VouchAnswer> {
    const { vouch, nonce } = claim;
    const { tunnel, clock, audit, trace } = this.#options;
    const { address, node } = vouch;
    if (!this.#isCurrent(vouch)) return err('VOUCH_WITHDRAWN');
    try {
      const succeeds = !isKept && (await this.#clear(claim));
      if (!this.#isCurrent(vouch)) return err('VOUCH_WITHDRAWN');
      await tunnel.allow(node, address);
      trace?.({ ev: 'tunnel-allow', ip: address, peer: node });
      // MoveWaitPrograms, QueueBeforeSuccessor: what the tunnel let in before belongs to nobody yet.
      if (succeeds) await this.#options.quiesce();
      if (!this.#isCurrent(vouch) || vouch.leaseEndNs <= clock.bootNs()) {
        await tunnel.disallow(address);
        trace?.({ ev: 'tunnel-disallow', ip: address, peer: node });
        return err(this.#isCurrent(vouch) ? 'LEASE_EXPIRED' : 'VOUCH_WITHDRAWN');
      }
    } catch (thrown) {
      this.#complain(thrown);
      return err('TUNNEL_FAILED');
    }
    this.#adopted.delete(address);
    this.#write([vouch], nonce);
    audit.emit({
      kind: 'vouch.taken',
      source: { ...partyOf(vouch), node: peer.name },
      detail: { generation: String(vouch.generation), incarnation: String(vouch.incarnation) },
    });
    this.#options.taken?.(node, vouch.identity);
    return ok(vouch);
  }

  /**
   * Before a successor's vouch: ends what may live of an earlier owner in sessions with the nodes that had it, this one or others
   * (DropSessionBeforeSuccessor), and what waits to go there (MoveFlush). False: there was none lately.
   */
  async #clear({ vouch }: Claim): Promise<boolean> {
    const { tunnel, clock, timers, drainMs, trace } = this.#options;
    const sinceNs = clock.bootNs() - nsOfMs(SESSION_LIFE_MS);
    const earlier = this.book.predecessors(vouch, sinceNs);
    if ((vouch.earlierOwnerNs ?? 0n) <= sinceNs && earlier.length === 0) return false;
    const lastNs = earlier.map(({ atNs }) => atNs).reduce(laterOf, 0n);
    await this.#options.quiesce();
    const waitNs = lastNs + nsOfMs(drainMs) - clock.bootNs();
    if (waitNs > 0n) await new Promise<void>((resolve) => timers.set(Math.ceil(msOfNs(waitNs)), resolve));
    const nodes = new Set([vouch.node, ...earlier.map(({ node }) => node)]);
    await Promise.all([...nodes].map((node) => tunnel.endSession(node)));
    for (const peer of nodes) trace?.({ ev: 'session-drop', peer });
    return true;
  }

  /** `nonce`: of the request that is answered; undefined: a renewal of all. */
  #write(vouches: readonly KnownVouch[], nonce: string | undefined): void {
    this.#options.addresses.putAll(
      vouches.map(({ address, identity, node, incarnation, generation, leaseEndNs }) => ({
        address,
        identity,
        node,
        incarnation,
        generation,
        leaseEndNs,
        endpoint: 0,
        reserved: false,
      })),
    );
    for (const vouch of vouches) {
      this.book.set(vouch);
      if (nonce !== undefined) {
        const { node: peer, address: ip, identity, incarnation, generation, leaseEndNs } = vouch;
        this.#options.trace?.({ ev: 'apply', peer, ip, identity, incarnation, generation, leaseEndNs, nonce });
      }
    }
    this.#armExpiry(vouches[0]!.leaseEndNs);
  }

  /** Out of the kernel's table and of the book; says so if the identity is now vouched for nowhere on that node. */
  #unwrite(address: IpAddress): void {
    const { addresses, clock, trace } = this.#options;
    const entry = addresses.get(address);
    // This node's own endpoint may have taken the address over: its entry is none of ours.
    if (entry !== undefined && entry.node !== LOCAL_NODE && !entry.reserved) addresses.delete(address);
    trace?.({ ev: 'delete', ip: address });
    this.#options.flushTo(address);
    this.#adopted.delete(address);
    const vouch = this.book.remove(address);
    const gone = entry === undefined || entry.node === LOCAL_NODE ? vouch : entry;
    const atNs = clock.bootNs();
    this.book.forgetGone(atNs - nsOfMs(SESSION_LIFE_MS));
    if (gone !== undefined) {
      const { node, incarnation, generation } = gone;
      this.book.left(address, { node, incarnation, generation, atNs });
    }
    if (vouch !== undefined && !this.isVouched(vouch.node, vouch.identity)) {
      this.#options.lost(vouch.node, vouch.identity);
    }
  }

  /** MoveSerial. */
  #inTurn<T>(address: IpAddress, change: () => Promise<T>): Promise<T> {
    const result = (this.#serial.get(address) ?? Promise.resolve()).then(change);
    const settled = result.then(
      () => {},
      () => {},
    );
    this.#serial.set(address, settled);
    void settled.then(() => {
      if (this.#serial.get(address) === settled) this.#serial.delete(address);
    });
    return result;
  }

  /** What pinned tables hold from before an agent's restart: it lives on until its lease ends or its owner says otherwise. */
  #adopt(): void {
    for (const entry of this.#options.addresses.list()) {
      if (entry.node === LOCAL_NODE || entry.reserved || entry.leaseEndNs === undefined) continue;
      const spiffeId = this.#options.identities.byIdentity(entry.identity)?.spiffeId;
      this.book.set({ ...entry, leaseEndNs: entry.leaseEndNs, spiffeId });
      this.#adopted.add(entry.address);
      this.#armExpiry(entry.leaseEndNs);
    }
  }

  #armExpiry(atNs: bigint): void {
    if (this.#expiry !== undefined && this.#expiry.atNs <= atNs) return;
    this.#expiry?.cancel();
    const ms = Number((atNs - this.#options.clock.bootNs()) / 1_000_000n) + 1;
    this.#expiry = { atNs, cancel: this.#options.timers.set(Math.max(ms, 0), () => this.#expire()) };
  }

  /** The kernel has stopped believing these already; here they are cleared away. */
  #expire(): void {
    this.#expiry = undefined;
    const now = this.#options.clock.bootNs();
    let next: bigint | undefined;
    for (const vouch of this.book.all()) {
      if (vouch.leaseEndNs > now) {
        next = next === undefined ? vouch.leaseEndNs : earlierOf(next, vouch.leaseEndNs);
        continue;
      }
      const node = this.#options.nodes.byId(vouch.node)?.name;
      this.#options.audit.emit({
        kind: 'lease.expired',
        reason: 'LEASE_EXPIRED',
        source: { ...partyOf(vouch), ...(node === undefined ? {} : { node }) },
      });
      this.dropLater(vouch.address, vouch.node);
    }
    if (next !== undefined) this.#armExpiry(next);
  }

  #complain(thrown: unknown): void {
    this.#options.log.error({ err: thrown }, 'the tunnel refused a change of its allowed addresses');
  }
}

function isSame(
  a: Omit<KnownVouch, 'spiffeId' | 'leaseEndNs'>,
  b: Omit<KnownVouch, 'spiffeId' | 'leaseEndNs'>,
): boolean {
  return (
    a.node === b.node && a.identity === b.identity && a.incarnation === b.incarnation && a.generation === b.generation
  );
}

function partyOf(vouch: KnownVouch): { address: string; identity: number; spiffeId?: string } {
  const { address, identity, spiffeId } = vouch;
  return spiffeId === undefined ? { address, identity } : { address, identity, spiffeId };
}
