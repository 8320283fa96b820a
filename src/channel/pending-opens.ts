/** Those who wait for a channel to a node: one promise for all of them, kept by whichever channel comes first. */
import type { ReasonCode } from '../base/registry/reason-codes.ts';
import type { NodeInfo } from '../model/identity.ts';
import type { SpiffeId } from '../model/ids.ts';
import { PeerChannelError } from './error.ts';
import type { PeerChannel } from './peer-channel.ts';

export interface PendingOpen {
  readonly node: NodeInfo;
  readonly promise: Promise<PeerChannel>;
  readonly resolve: (channel: PeerChannel) => void;
  readonly reject: (error: PeerChannelError) => void;
}

export class PendingOpens {
  readonly #byNode = new Map<SpiffeId, PendingOpen>();

  get(node: NodeInfo): PendingOpen | undefined {
    return this.#byNode.get(node.spiffeId);
  }

  add(node: NodeInfo): PendingOpen {
    const pending = { node, ...Promise.withResolvers<PeerChannel>() };
    this.#byNode.set(node.spiffeId, pending);
    return pending;
  }

  kept(channel: PeerChannel): void {
    const pending = this.#byNode.get(channel.peer.spiffeId);
    if (pending === undefined) return;
    this.#byNode.delete(channel.peer.spiffeId);
    if (channel.closed) pending.reject(new PeerChannelError('PEER_CHANNEL_CLOSED', channel.peer.name));
    else pending.resolve(channel);
  }

  /** Nothing happens if it was kept meanwhile. */
  giveUp(pending: PendingOpen, reason: ReasonCode): void {
    if (this.#byNode.get(pending.node.spiffeId) !== pending) return;
    this.#byNode.delete(pending.node.spiffeId);
    pending.reject(new PeerChannelError(reason, pending.node.name));
  }

  giveUpAll(reason: ReasonCode): void {
    for (const pending of [...this.#byNode.values()]) this.giveUp(pending, reason);
  }
}
