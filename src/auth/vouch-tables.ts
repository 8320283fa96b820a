/**
 * Accepted vouches in the two tables that must agree: the tunnel's (which node may send from the address) and the kernel's (who the
 * address is). Written tunnel first and kernel last, taken away kernel first and tunnel last (rule 7: break before make), one change
 * of an address after another. A vouch is in force only when both are written.
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
import type { TunnelBinding } from './ports.ts';
import { earlierOf } from './units.ts';
import { type KnownVouch, VouchBook } from './vouch-book.ts';

export type VouchAnswer = Result<KnownVouch, ReasonCode>;

export interface VouchTablesOptions {
  readonly addresses: AddressTable;
  readonly identities: IdentityTable;
  readonly nodes: NodeTable;
  readonly tunnel: TunnelBinding;
  /** The node no longer vouches for the identity at any address: what rested on it must go. */
  lost(node: NodeId, identity: SecurityIdentity): void;
  /** A vouch for the identity has come into force, in both tables. */
  taken?(node: NodeId, identity: SecurityIdentity): void;
  readonly audit: AuditSink;
  readonly clock: Clock;
  readonly timers: Timers;
  readonly log: Logger;
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

  /** The kernel's entry, whatever is remembered, and what is on its way. */
  held(address: IpAddress): { entry: AddressEntry | undefined; install: KnownVouch | undefined } {
    return { entry: this.#options.addresses.get(address), install: this.#installs.get(address)?.vouch };
  }

  /** Addresses that the node holds in the kernel's table or is about to. */
  heldBy(node: NodeId): { address: IpAddress; incarnation: bigint }[] {
    const entries = this.#options.addresses.list().filter((entry) => entry.node === node && !entry.reserved);
    const installs = [...this.#installs.values()].map(({ vouch }) => vouch).filter((vouch) => vouch.node === node);
    return [...entries, ...installs];
  }

  /** A claim that the rules accept. A renewal of what is in force is one write; anything else goes through both tables. */
  async take(peer: NodeInfo, claim: KnownVouch): Promise<VouchAnswer> {
    const known = this.book.get(claim.address);
    const entry = this.#options.addresses.get(claim.address);
    const isRenewal = known !== undefined && entry !== undefined && isSame(known, claim) && isSame(entry, claim);
    if (isRenewal && !this.#adopted.has(claim.address)) {
      if (claim.leaseEndNs > known.leaseEndNs) this.#write(claim);
      return ok(this.book.get(claim.address)!);
    }
    const earlier = this.#installs.get(claim.address);
    if (earlier !== undefined && isSame(earlier.vouch, claim)) return earlier.done;
    // What was adopted stays in force while the tunnel learns of it: its flows and proofs are still good.
    if (entry !== undefined && !isRenewal) this.#unwrite(claim.address);
    const done = this.#inTurn(claim.address, () => this.#install(peer, claim));
    this.#installs.set(claim.address, { vouch: claim, done });
    const answer = await done;
    if (this.#installs.get(claim.address)?.done === done) this.#installs.delete(claim.address);
    return answer;
  }

  /** Ends what the node holds on the address, in force or on its way: the kernel's entry now; resolves when the tunnel's is gone. */
  drop(address: IpAddress, node: NodeId): Promise<void> {
    if (this.#installs.get(address)?.vouch.node === node) this.#installs.delete(address);
    if (this.#options.addresses.get(address)?.node === node || this.book.get(address)?.node === node) {
      this.#unwrite(address);
    }
    return this.#inTurn(address, async () => {
      const owner = this.#options.addresses.get(address)?.node ?? this.#installs.get(address)?.vouch.node;
      // Another node's by now: its own install moved the tunnel's entry, or will.
      if (owner === undefined || owner === node) await this.#options.tunnel.disallow(address);
    });
  }

  /** As drop, when nobody waits for it. */
  dropLater(address: IpAddress, node: NodeId): void {
    this.drop(address, node).catch((thrown) => this.#complain(thrown));
  }

  /** Resolves when no change of the address is under way. */
  async quiet(address: IpAddress): Promise<void> {
    await this.#serial.get(address);
  }

  async #install(peer: NodeInfo, claim: KnownVouch): Promise<VouchAnswer> {
    const isCurrent = () => this.#installs.get(claim.address)?.vouch === claim;
    if (!isCurrent()) return err('VOUCH_WITHDRAWN');
    const ready = await this.#options.tunnel.whenReady(peer);
    if (!ready.ok) return ready;
    if (!isCurrent()) return err('VOUCH_WITHDRAWN');
    try {
      await this.#options.tunnel.allow(claim.node, claim.address);
      if (!isCurrent() || claim.leaseEndNs <= this.#options.clock.bootNs()) {
        await this.#options.tunnel.disallow(claim.address);
        return err(isCurrent() ? 'LEASE_EXPIRED' : 'VOUCH_WITHDRAWN');
      }
    } catch (thrown) {
      this.#complain(thrown);
      return err('TUNNEL_FAILED');
    }
    this.#adopted.delete(claim.address);
    this.#write(claim);
    this.#options.audit.emit({
      kind: 'vouch.taken',
      source: { ...partyOf(claim), node: peer.name },
      detail: { generation: String(claim.generation), incarnation: String(claim.incarnation) },
    });
    this.#options.taken?.(claim.node, claim.identity);
    return ok(claim);
  }

  #write(claim: KnownVouch): void {
    const { address, identity, node, incarnation, generation, leaseEndNs } = claim;
    this.#options.addresses.put({
      address,
      identity,
      node,
      incarnation,
      generation,
      leaseEndNs,
      endpoint: 0,
      reserved: false,
    });
    this.book.set(claim);
    this.#armExpiry(leaseEndNs);
  }

  /** Out of the kernel's table and of the book; says so if the identity is now vouched for nowhere on that node. */
  #unwrite(address: IpAddress): void {
    this.#options.addresses.delete(address);
    this.#adopted.delete(address);
    const vouch = this.book.remove(address);
    if (vouch !== undefined && !this.isVouched(vouch.node, vouch.identity)) {
      this.#options.lost(vouch.node, vouch.identity);
    }
  }

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
