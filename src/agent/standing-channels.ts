/**
 * Channels that policy says will be needed: to every node that may prove an identity which an endpoint here must authenticate
 * with. Opened before the first packet, so that it waits for a proof and not for TLS and a tunnel's handshake as well.
 */
import type { Clock } from '../base/clock.ts';
import { asError } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import type { PeerChannels } from '../channel/peer-channel.ts';
import type { IdentityTable, NodeInfo, NodeTable } from '../model/identity.ts';
import type { SecurityIdentity, SpiffeId } from '../model/ids.ts';

export interface StandingChannelsOptions {
  readonly self: Pick<NodeInfo, 'name' | 'spiffeId'>;
  readonly channels: PeerChannels;
  readonly nodes: NodeTable;
  readonly identities: IdentityTable;
  /** Identities that an endpoint here must authenticate with. */
  requiredPeers(): readonly SecurityIdentity[];
  readonly clock: Clock;
  readonly log: Logger;
}

const RETRY_MS = 5_000;

export class StandingChannels {
  readonly #options: StandingChannelsOptions;
  readonly #triedMs = new Map<SpiffeId, number>();

  constructor(options: StandingChannelsOptions) {
    this.#options = options;
  }

  /** Opens what is missing, each node at most once in a while. Of two nodes the one with the lower name dials. */
  apply(): void {
    const { self, channels, nodes, identities, clock, log } = this.#options;
    const wanted = new Set(this.#options.requiredPeers().flatMap((id) => identities.byIdentity(id)?.nodes ?? []));
    for (const spiffeId of wanted) {
      const node = nodes.bySpiffeId(spiffeId);
      if (node === undefined || spiffeId === self.spiffeId || node.name < self.name) continue;
      if (channels.get(node) !== undefined) continue;
      const now = clock.nowMs();
      if (now - (this.#triedMs.get(spiffeId) ?? 0) < RETRY_MS) continue;
      this.#triedMs.set(spiffeId, now);
      channels
        .open(node)
        .catch((thrown: unknown) => log.debug({ node: node.name, problem: asError(thrown).message }, 'no channel yet'));
    }
  }
}
