/**
 * Channels that policy says will be needed: to every node that may prove an identity which an endpoint here must authenticate
 * with. Opened before the first packet, so that it waits for a proof and not for TLS and a tunnel's handshake as well. Bounded: the
 * nodes that were used last come first.
 */
import { asError } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import type { PeerChannels } from '../channel/peer-channel.ts';
import type { IdentityTable, NodeInfo, NodeTable } from '../model/identity.ts';
import type { NodeId, SecurityIdentity } from '../model/ids.ts';

export interface StandingChannelsOptions {
  readonly self: Pick<NodeInfo, 'name' | 'spiffeId'>;
  readonly channels: PeerChannels;
  readonly nodes: NodeTable;
  readonly identities: IdentityTable;
  /** Identities that an endpoint here must authenticate with. */
  requiredPeers(): readonly SecurityIdentity[];
  /** CLOCK_BOOTTIME; 0: not since the agent started. */
  lastUseOf(node: NodeId): bigint;
  /** So many at most. */
  readonly limit: number;
  readonly log: Logger;
}

export class StandingChannels {
  readonly #options: StandingChannelsOptions;
  #wanted: ReadonlySet<NodeId> = new Set();
  /** Without a channel when it was looked at before. */
  #missing: ReadonlySet<NodeId> = new Set();

  constructor(options: StandingChannelsOptions) {
    this.#options = options;
  }

  /** Is the channel to the node to stay open although nothing passes? As of the last `apply`. */
  isWanted(node: NodeId): boolean {
    return this.#wanted.has(node);
  }

  /**
   * Opens what is missing; how often a node is tried is up to the channels. Of two nodes the one with the lower name dials; the other does
   * where that has not come about by the next call: its peer may have given up for a while just before this agent started.
   */
  apply(): void {
    const { self, channels, log } = this.#options;
    const wanted = this.#choose();
    this.#wanted = new Set(wanted.map((node) => node.id));
    const missing = wanted.filter((node) => channels.get(node) === undefined);
    const before = this.#missing;
    this.#missing = new Set(missing.map((node) => node.id));
    for (const node of missing) {
      if (node.name < self.name && !before.has(node.id)) continue;
      channels
        .open(node)
        .catch((thrown: unknown) => log.debug({ node: node.name, problem: asError(thrown).message }, 'no channel yet'));
    }
  }

  #choose(): NodeInfo[] {
    const { self, nodes, identities, requiredPeers, lastUseOf, limit } = this.#options;
    const ids = new Set(requiredPeers().flatMap((identity) => identities.byIdentity(identity)?.nodes ?? []));
    ids.delete(self.spiffeId);
    const wanted = [...ids].flatMap((spiffeId) => nodes.bySpiffeId(spiffeId) ?? []);
    if (wanted.length <= limit) return wanted;
    const uses = new Map(wanted.map((node) => [node, lastUseOf(node.id)]));
    // By name where nothing passed yet: both sides of a channel, and every call, choose alike.
    wanted.sort((a, b) => Number(uses.get(b)! - uses.get(a)!) || (a.name < b.name ? -1 : 1));
    return wanted.slice(0, limit);
  }
}
