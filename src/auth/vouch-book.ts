/**
 * What other nodes vouch for, as this node holds it: which address is whose until when, and which generations were withdrawn.
 * Pure bookkeeping for vouch-client.ts; the kernel's table stays the truth about what is in force.
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
}

interface Tombstone extends Version {
  readonly untilNs: bigint;
}

export class VouchBook {
  readonly #byAddress = new Map<IpAddress, KnownVouch>();
  readonly #byIdentity = new Map<string, Set<IpAddress>>();
  readonly #tombstones = new Map<string, Tombstone>();

  get(address: IpAddress): KnownVouch | undefined {
    return this.#byAddress.get(address);
  }

  all(): KnownVouch[] {
    return [...this.#byAddress.values()];
  }

  ofNode(node: NodeId): KnownVouch[] {
    return this.all().filter((vouch) => vouch.node === node);
  }

  set(vouch: KnownVouch): void {
    this.remove(vouch.address);
    this.#byAddress.set(vouch.address, vouch);
    const key = identityKey(vouch.node, vouch.identity);
    const addresses = this.#byIdentity.get(key) ?? new Set();
    this.#byIdentity.set(key, addresses.add(vouch.address));
  }

  remove(address: IpAddress): KnownVouch | undefined {
    const vouch = this.#byAddress.get(address);
    if (vouch === undefined) return undefined;
    this.#byAddress.delete(address);
    const key = identityKey(vouch.node, vouch.identity);
    const addresses = this.#byIdentity.get(key);
    addresses?.delete(address);
    if (addresses?.size === 0) this.#byIdentity.delete(key);
    return vouch;
  }

  /** Does a live vouch of the node name the identity? */
  isVouched(node: NodeId, identity: SecurityIdentity, nowNs: bigint): boolean {
    for (const address of this.#byIdentity.get(identityKey(node, identity)) ?? []) {
      if (this.#byAddress.get(address)!.leaseEndNs > nowNs) return true;
    }
    return false;
  }

  /** Rule 4: a withdrawn generation, and every earlier one, is remembered for one lease. */
  bury(node: NodeId, address: IpAddress, tombstone: Tombstone): void {
    const key = `${node}|${address}`;
    const before = this.#tombstones.get(key);
    if (before === undefined || isNewer(tombstone, before)) this.#tombstones.set(key, tombstone);
  }

  isWithdrawn(claim: KnownVouch): boolean {
    const tombstone = this.#tombstones.get(`${claim.node}|${claim.address}`);
    return tombstone !== undefined && !isNewer(claim, tombstone);
  }

  forgetTombstones(nowNs: bigint): void {
    for (const [key, tombstone] of this.#tombstones) if (tombstone.untilNs <= nowNs) this.#tombstones.delete(key);
  }
}

interface Version {
  readonly incarnation: bigint;
  readonly generation: bigint;
}

/** Rule 3: generations compare only within one incarnation. */
export function isNewer(a: Version, b: Version): boolean {
  return a.incarnation > b.incarnation || (a.incarnation === b.incarnation && a.generation > b.generation);
}

function identityKey(node: NodeId, identity: SecurityIdentity): string {
  return `${node}/${identity}`;
}
