/** `spiffe` across nodes: pairs are proven on the peer channel to the other node, alone or many at once. */
import { FrameType } from '../../proto/gen/countersign/peer/v1/peer.ts';
import { err } from '../base/errors.ts';
import type { PeerChannel } from '../channel/peer-channel.ts';
import type { AuthKey, FlowTuple } from '../model/datapath.ts';
import type { NodeInfo } from '../model/identity.ts';
import type { NodeId } from '../model/ids.ts';
import type { AuthMethod } from './auth-method.ts';
import { ChannelProofs } from './channel-proofs.ts';
import { Exchanges } from './exchange.ts';
import type { ExchangeHost, Outcome } from './exchange-host.ts';
import { PairBatches } from './pair-batches.ts';

export interface SpiffeOnChannelsOptions {
  channelTo(node: NodeId): PeerChannel | undefined;
  hostFor(peer: NodeInfo): ExchangeHost;
}

interface Session {
  readonly host: ExchangeHost;
  readonly proofs: ChannelProofs;
  readonly exchanges: Exchanges;
  readonly batches: PairBatches;
}

export class SpiffeOnChannels implements AuthMethod {
  readonly type = 'spiffe';
  readonly #options: SpiffeOnChannelsOptions;
  readonly #sessions = new Map<PeerChannel, Session>();

  constructor(options: SpiffeOnChannelsOptions) {
    this.#options = options;
  }

  async prove({ local, remote, remoteNode }: AuthKey): Promise<Outcome> {
    const session = this.#sessionTo(remoteNode);
    if (session === undefined) return err('PEER_CHANNEL_CLOSED');
    return session.exchanges.prove({ local, remote });
  }

  async proveFlow({ local, remote, remoteNode }: AuthKey, flow: FlowTuple): Promise<Outcome> {
    const session = this.#sessionTo(remoteNode);
    if (session === undefined) return err('PEER_CHANNEL_CLOSED');
    return session.exchanges.prove({ local, remote, flow });
  }

  /** All of one node, at most MAX_PAIRS. */
  async proveAll(keys: readonly AuthKey[], remoteNode: NodeId): Promise<readonly Outcome[]> {
    const session = this.#sessionTo(remoteNode);
    if (session === undefined) return keys.map(() => err('PEER_CHANNEL_CLOSED'));
    return session.batches.prove(keys.map(({ local, remote }) => ({ local, remote })));
  }

  /** Are both identities proven on the channel already, so that the pair costs no signature? */
  isProven({ local, remote, remoteNode }: AuthKey): boolean {
    const session = this.#sessionTo(remoteNode);
    if (session?.proofs.standing(remote) === undefined) return false;
    const own = session.host.own(local);
    return own.ok && session.proofs.isShown(own.value);
  }

  opened(channel: PeerChannel): void {
    const host = this.#options.hostFor(channel.peer);
    const proofs = new ChannelProofs(channel, host);
    const exchanges = new Exchanges(channel, host, proofs);
    const batches = new PairBatches(channel, host, proofs);
    this.#sessions.set(channel, { host, proofs, exchanges, batches });
  }

  closed(channel: PeerChannel): void {
    const session = this.#sessions.get(channel);
    this.#sessions.delete(channel);
    session?.exchanges.closed();
    session?.batches.closed();
  }

  /** What was verified before is verified anew from here on: a bundle changed. */
  forgetProofs(): void {
    for (const { proofs } of this.#sessions.values()) proofs.forget();
  }

  /** @throws on a malformed body. */
  frame(channel: PeerChannel, type: FrameType, body: Buffer): void {
    const session = this.#sessions.get(channel);
    if (session === undefined) return;
    switch (type) {
      case FrameType.FRAME_TYPE_PROVE_REQUEST:
        return void session.exchanges.onRequest(body);
      case FrameType.FRAME_TYPE_PROVE_CHALLENGE:
        return void session.exchanges.onChallenge(body);
      case FrameType.FRAME_TYPE_PROVE_PROOF:
        return void session.exchanges.onProof(body);
      case FrameType.FRAME_TYPE_PROVE_RESULT:
        return void session.exchanges.onResult(body);
      case FrameType.FRAME_TYPE_PROVE_PAIRS:
        return void session.batches.onPairs(body);
      case FrameType.FRAME_TYPE_PAIRS_RESULT:
        return void session.batches.onResult(body);
    }
  }

  #sessionTo(node: NodeId): Session | undefined {
    const channel = this.#options.channelTo(node);
    return channel === undefined ? undefined : this.#sessions.get(channel);
  }
}
