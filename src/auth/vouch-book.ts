/**
 * What other nodes vouch for, as this node holds it: which address is whose until when, which generations were withdrawn, and who had an
 * address lately. Pure bookkeeping for vouch-client.ts; the kernel's table stays the truth about what is in force.
 */
import type { IpAddress, NodeId, SecurityIdentity, SpiffeId } from '../model/ids.ts';

export interface KnownVouch {
  readonly address: IpAddress;
  readonly node: NodeId;
  readonly identity: SecurityIdentity;
  readonly spiffeId: SpiffeId | undefined;
  readonly incarnation: bigint;
  readonly generation: bigint;
  /** CLOCK_BOOTTIME. */
  readonly leaseEndNs: bigint;
  /** The address had an earlier owner on that node until then, CLOCK_BOOTTIME: what its sessions brought before is not from this one.
   *  undefined: none of which any packet may live. */
  readonly earlierOwnerNs?: bigint;
  /** What was held for the address before then, CLOCK_BOOTTIME, is not meant for this owner. undefined: in force from before this
   *  agent's start. */
  readonly ownedSinceNs?: bigint;
}

export interface Version {
  readonly incarnation: bigint;
  readonly generation: bigint;
}

interface Tombstone extends Version {
  readonly untilNs: bigint;
}

/** A generation that is in force no more. */
export interface Gone extends Version {
  readonly node: NodeId;
  readonly atNs: bigint;
}

/** Withdrawn generations remembered for one node. A node that withdraws more in one lease than any node can host is believed only what is
 *  newer than all it withdrew. */
const MAX_TOMBSTONES = 8_192;
/** Addresses remembered that were somebody's lately, for all nodes. */
const MAX_GONE = 65_536;

export class VouchBook {
  readonly #byAddress = new Map<IpAddress, KnownVouch>();
  readonly #byNode = new Map<NodeId, Set<IpAddress>>();
  readonly #byIdentity = new Map<string, Set<IpAddress>>();
  readonly #tombstones = new Map<NodeId, Map<IpAddress, Tombstone>>();
  readonly #floors = new Map<NodeId, Tombstone>();
  /** By address, then node: which generation was last in force there, and until when. */
  readonly #gone = new Map<IpAddress, Map<NodeId, Gone>>();

  get(address: IpAddress): KnownVouch | undefined {
    return this.#byAddress.get(address);
  }

  all(): KnownVouch[] {
    return [...this.#byAddress.values()];
  }

  ofNode(node: NodeId): KnownVouch[] {
    return [...(this.#byNode.get(node) ?? [])].map((address) => this.#byAddress.get(address)!);
  }

  hasNode(node: NodeId): boolean {
    return this.#byNode.has(node);
  }

  nodes(): NodeId[] {
    return [...this.#byNode.keys()];
  }

  set(vouch: KnownVouch): void {
    const before = this.#byAddress.get(vouch.address);
    this.#byAddress.set(vouch.address, vouch);
    if (before !== undefined && before.node === vouch.node && before.identity === vouch.identity) return;
    if (before !== undefined) this.#unindex(before);
    add(this.#byNode, vouch.node, vouch.address);
    add(this.#byIdentity, identityKey(vouch.node, vouch.identity), vouch.address);
  }

  remove(address: IpAddress): KnownVouch | undefined {
    const vouch = this.#byAddress.get(address);
    if (vouch === undefined) return undefined;
    this.#byAddress.delete(address);
    this.#unindex(vouch);
    return vouch;
  }

  /** Does a live vouch of the node name the identity? */
  isVouched(node: NodeId, identity: SecurityIdentity, nowNs: bigint): boolean {
    for (const address of this.#byIdentity.get(identityKey(node, identity)) ?? []) {
      if (this.#byAddress.get(address)!.leaseEndNs > nowNs) return true;
    }
    return false;
  }

  /** TombstoneWithdrawn: a withdrawn generation, and every earlier one, is remembered for one lease. */
  bury(node: NodeId, address: IpAddress, tombstone: Tombstone): void {
    let tombs = this.#tombstones.get(node);
    if (tombs === undefined) {
      tombs = new Map();
      this.#tombstones.set(node, tombs);
    }
    const before = tombs.get(address);
    if (before !== undefined && !isNewer(tombstone, before)) return;
    if (before === undefined && tombs.size >= MAX_TOMBSTONES) {
      const floor = this.#floors.get(node);
      if (floor === undefined || isNewer(tombstone, floor)) this.#floors.set(node, tombstone);
      return;
    }
    // Last in the order in which they are forgotten.
    tombs.delete(address);
    tombs.set(address, tombstone);
  }

  isWithdrawn(claim: KnownVouch): boolean {
    const floor = this.#floors.get(claim.node);
    if (floor !== undefined && !isNewer(claim, floor)) return true;
    const tombstone = this.#tombstones.get(claim.node)?.get(claim.address);
    return tombstone !== undefined && !isNewer(claim, tombstone);
  }

  forgetTombstones(node: NodeId, nowNs: bigint): void {
    const floor = this.#floors.get(node);
    if (floor !== undefined && floor.untilNs <= nowNs) this.#floors.delete(node);
    const tombs = this.#tombstones.get(node);
    if (tombs === undefined) return;
    for (const [address, tombstone] of tombs) {
      // In the order they were buried, and all for the same time.
      if (tombstone.untilNs > nowNs) break;
      tombs.delete(address);
    }
    if (tombs.size === 0) this.#tombstones.delete(node);
  }

  /** It is out of the kernel's table; its packets may live on in a session of the tunnel. */
  left(address: IpAddress, gone: Gone): void {
    let nodes = this.#gone.get(address);
    if (nodes === undefined) {
      if (this.#gone.size >= MAX_GONE) this.#gone.delete(this.#gone.keys().next().value!);
      nodes = new Map();
    }
    // Last in the order in which they are forgotten.
    this.#gone.delete(address);
    this.#gone.set(address, nodes.set(gone.node, gone));
  }

  /** Owners before this one that the address had since then. */
  predecessors(vouch: KnownVouch, sinceNs: bigint): Gone[] {
    return [...(this.#gone.get(vouch.address)?.values() ?? [])].filter(
      (gone) =>
        gone.atNs > sinceNs &&
        (gone.node !== vouch.node || gone.incarnation !== vouch.incarnation || gone.generation !== vouch.generation),
    );
  }

  wasHeldSince(address: IpAddress, sinceNs: bigint): boolean {
    return [...(this.#gone.get(address)?.values() ?? [])].some(({ atNs }) => atNs > sinceNs);
  }

  /** Was anything of the node in force since then that is not now? */
  hasLeftSince(node: NodeId, sinceNs: bigint): boolean {
    for (const nodes of this.#gone.values()) if ((nodes.get(node)?.atNs ?? -1n) > sinceNs) return true;
    return false;
  }

  forgetGone(beforeNs: bigint): void {
    for (const [address, nodes] of this.#gone) {
      for (const [node, { atNs }] of nodes) if (atNs <= beforeNs) nodes.delete(node);
      if (nodes.size > 0) break;
      this.#gone.delete(address);
    }
  }

  #unindex(vouch: KnownVouch): void {
    drop(this.#byNode, vouch.node, vouch.address);
    drop(this.#byIdentity, identityKey(vouch.node, vouch.identity), vouch.address);
  }
}

/** Rule 3: generations compare only within one incarnation. */
export function isNewer(a: Version, b: Version): boolean {
  return a.incarnation > b.incarnation || (a.incarnation === b.incarnation && a.generation > b.generation);
}

function identityKey(node: NodeId, identity: SecurityIdentity): string {
  return `${node}/${identity}`;
}

function add<K, V>(index: Map<K, Set<V>>, key: K, value: V): void {
  let values = index.get(key);
  if (values === undefined) {
    values = new Set();
    index.set(key, values);
  }
  values.add(value);
}

function drop<K, V>(index: Map<K, Set<V>>, key: K, value: V): void {
  const values = index.get(key);
  values?.delete(value);
  if (values?.size === 0) index.delete(key);
}
