/**
 * What other nodes may believe of this node's addresses: to whom which generation was vouched. A grant ends when the peer says that it
 * let go, never with time (FenceNotByTime).
 */
import type { IpAddress, NodeId } from '../model/ids.ts';

/** A peer may act on a vouch of this generation, or an earlier one, until it says that it let go. */
export interface Grant {
  readonly generation: bigint;
  /** Order of this node's own messages: what was given after a RESET is not what the RESET's ack takes back. */
  readonly at: number;
  /** When the lease ends by this node's clock: for `list` and for renewal, never for the fence. */
  untilNs: bigint;
}

/** An address as one generation of it has it. */
export interface Claimed {
  readonly address: IpAddress;
  readonly generation: bigint;
}

export class Grants {
  readonly #byAddress = new Map<IpAddress, Map<NodeId, Grant>>();
  readonly #byNode = new Map<NodeId, Set<IpAddress>>();
  /** Until when the node's leases are renewed, all of them at once. */
  readonly #renewedNs = new Map<NodeId, bigint>();

  get(node: NodeId, address: IpAddress): Grant | undefined {
    return this.#byAddress.get(address)?.get(node);
  }

  set(node: NodeId, address: IpAddress, grant: Grant): void {
    let nodes = this.#byAddress.get(address);
    if (nodes === undefined) {
      nodes = new Map();
      this.#byAddress.set(address, nodes);
    }
    nodes.set(node, grant);
    let addresses = this.#byNode.get(node);
    if (addresses === undefined) {
      addresses = new Set();
      this.#byNode.set(node, addresses);
    }
    addresses.add(address);
  }

  delete(node: NodeId, address: IpAddress): void {
    const nodes = this.#byAddress.get(address);
    if (nodes?.delete(node) !== true) return;
    if (nodes.size === 0) this.#byAddress.delete(address);
    const addresses = this.#byNode.get(node)!;
    addresses.delete(address);
    if (addresses.size > 0) return;
    this.#byNode.delete(node);
    this.#renewedNs.delete(node);
  }

  deleteNode(node: NodeId): void {
    for (const address of [...(this.#byNode.get(node) ?? [])]) this.delete(node, address);
  }

  nodesOf(address: IpAddress): ReadonlyMap<NodeId, Grant> {
    return this.#byAddress.get(address) ?? new Map();
  }

  addressesOf(node: NodeId): ReadonlySet<IpAddress> {
    return this.#byNode.get(node) ?? new Set();
  }

  nodes(): Iterable<NodeId> {
    return this.#byNode.keys();
  }

  renew(node: NodeId, untilNs: bigint): void {
    if (this.#byNode.has(node)) this.#renewedNs.set(node, untilNs);
  }

  /** By this node's clock, which says nothing of what the peer believes. */
  untilNs(node: NodeId, grant: Grant): bigint {
    const renewedNs = this.#renewedNs.get(node) ?? 0n;
    return renewedNs > grant.untilNs ? renewedNs : grant.untilNs;
  }
}
