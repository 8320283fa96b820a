/**
 * Frames about vouches, between a channel and the two sides of leases and fences on this node: decoded, bounded, and answered in the
 * order that the rules ask for.
 */
import {
  FrameType,
  type KeptAddress,
  Renew,
  RenewReply,
  Reset,
  ResetAck,
  VouchReply,
  VouchRequest,
  Withdraw,
  WithdrawAck,
} from '../../proto/gen/countersign/peer/v1/peer.ts';
import type { Clock } from '../base/clock.ts';
import type { Logger } from '../base/log.ts';
import type { PeerChannel } from '../channel/peer-channel.ts';
import { addressFromBytes, addressWireBytes } from '../model/address.ts';
import type { IpAddress, NodeId, SecurityIdentity } from '../model/ids.ts';
import { OWN_BATCH, type VouchClient } from './vouch-client.ts';
import type { VouchHost } from './vouch-host.ts';
import type { VouchTrace } from './vouch-trace.ts';

export interface VouchFramesOptions {
  readonly host: VouchHost;
  readonly client: VouchClient;
  /** Of this node's SVID. */
  readonly incarnation: bigint;
  readonly leaseMs: number;
  /** The peer was told of own identities that it did not know: what waits for that may begin. */
  granted(peer: NodeId, identities: ReadonlySet<SecurityIdentity>): void;
  readonly clock: Clock;
  readonly log: Logger;
  readonly trace?: VouchTrace;
}

/** Above what any honest peer sends; below what could keep this node busy. */
const MAX_ADDRESSES = 1_024;

export class VouchFrames {
  readonly #options: VouchFramesOptions;

  constructor(options: VouchFramesOptions) {
    this.#options = options;
  }

  /** False: not a frame about vouches. @throws on a malformed body. */
  frame(channel: PeerChannel, type: FrameType, body: Buffer): boolean {
    const { host, client } = this.#options;
    switch (type) {
      case FrameType.FRAME_TYPE_VOUCH_REQUEST:
        this.#onRequest(channel, VouchRequest.decode(body));
        return true;
      case FrameType.FRAME_TYPE_VOUCH_REPLY:
        client.reply(channel, VouchReply.decode(body));
        return true;
      case FrameType.FRAME_TYPE_WITHDRAW:
        this.#onWithdraw(channel, Withdraw.decode(body));
        return true;
      case FrameType.FRAME_TYPE_WITHDRAW_ACK:
        this.#expect(channel, host.withdrawAcked(channel, WithdrawAck.decode(body).id));
        return true;
      case FrameType.FRAME_TYPE_RESET:
        this.#onReset(channel, Reset.decode(body));
        return true;
      case FrameType.FRAME_TYPE_RESET_ACK:
        this.#onResetAck(channel, ResetAck.decode(body));
        return true;
      case FrameType.FRAME_TYPE_RENEW:
        this.#onRenew(channel, Renew.decode(body));
        return true;
      case FrameType.FRAME_TYPE_RENEW_REPLY:
        client.renewed(channel, RenewReply.decode(body));
        return true;
      default:
        return false;
    }
  }

  /**
   * Answers when the asker's own addresses are in force here, as far as this node does not know them: then the first packet finds both sides
   * known. @throws RangeError on a malformed address or too many.
   */
  #onRequest(channel: PeerChannel, request: VouchRequest) {
    if (request.addresses.length > MAX_ADDRESSES || request.own.length > OWN_BATCH)
      throw new RangeError('too many addresses');
    const addresses = request.addresses.map(addressFromBytes);
    const known = this.#options.client.offered(channel, request.own.map(addressFromBytes));
    if (known === undefined) return this.#vouch(channel, request.nonce, addresses);
    this.#guard(known.then(() => this.#vouch(channel, request.nonce, addresses)));
  }

  #vouch(channel: PeerChannel, nonce: Buffer, addresses: readonly IpAddress[]) {
    if (channel.closed) return;
    const { host, incarnation, leaseMs, granted, clock, trace } = this.#options;
    const news = new Set(
      addresses.flatMap((address) => {
        const owner = host.at(address);
        return owner === undefined || host.isKnownTo(channel.peer.id, address) ? [] : [owner.identity];
      }),
    );
    const vouches = host.vouch(channel, addresses);
    if (vouches === undefined) return channel.close('PEER_FRAME_UNEXPECTED');
    if (vouches === 'superseded') return;
    const now = clock.bootNs();
    const reply = VouchReply.encode({
      nonce,
      incarnation,
      vouches: vouches.map(({ address, owner, earlierOwnerNs, ownedSinceNs }) => ({
        address: addressWireBytes(address),
        securityIdentity: owner.identity,
        spiffeId: owner.spiffeId,
        generation: owner.generation,
        leaseMs,
        earlierOwnerMs: earlierOwnerNs === undefined ? 0n : (now - earlierOwnerNs) / 1_000_000n + 1n,
        ownedMs: (now - ownedSinceNs) / 1_000_000n,
      })),
    });
    trace?.({
      ev: 'grant',
      peer: channel.peer.id,
      channel: channel.id,
      nonce: nonce.toString('hex'),
      leaseMs,
      vouches: vouches.map(({ address, owner: { identity, generation } }) => ({ ip: address, identity, generation })),
    });
    channel.send(FrameType.FRAME_TYPE_VOUCH_REPLY, reply.finish());
    if (news.size > 0) granted(channel.peer.id, news);
  }

  #onReset(channel: PeerChannel, message: Reset): void {
    if (message.keeps.length > MAX_ADDRESSES) throw new RangeError('too many addresses');
    for (const { address } of message.keeps) addressFromBytes(address);
    this.#guard(this.#options.client.reset(channel, message));
  }

  #onResetAck(channel: PeerChannel, { incarnation, kept, more, released }: ResetAck): void {
    if (kept.length > MAX_ADDRESSES) throw new RangeError('too many addresses');
    const claimed = kept.map(({ address, generation }: KeptAddress) => ({
      address: addressFromBytes(address),
      generation,
    }));
    this.#expect(channel, this.#options.host.resetAcked(channel, incarnation, claimed, more, released));
  }

  #onRenew(channel: PeerChannel, { nonce, incarnation, version }: Renew): void {
    const { host, leaseMs, trace } = this.#options;
    const ok = host.renew(channel, incarnation, version);
    if (ok) {
      const peer = channel.peer.id;
      trace?.({ ev: 'renew-granted', peer, channel: channel.id, nonce: nonce.toString('hex'), leaseMs });
    }
    channel.send(
      FrameType.FRAME_TYPE_RENEW_REPLY,
      RenewReply.encode({ nonce, ok, leaseMs: ok ? leaseMs : 0 }).finish(),
    );
  }

  #onWithdraw(channel: PeerChannel, message: Withdraw): void {
    if (message.addresses.length > MAX_ADDRESSES) throw new RangeError('too many addresses');
    for (const { address } of message.addresses) addressFromBytes(address);
    this.#guard(this.#options.client.withdraw(channel, message));
  }

  #expect(channel: PeerChannel, isExpected: boolean): void {
    if (!isExpected) channel.close('PEER_FRAME_UNEXPECTED');
  }

  /** What fails here fails closed: no ack goes out, the host's fence stays shut. */
  #guard(work: Promise<unknown>): void {
    work.catch((thrown) => this.#options.log.error({ err: thrown }, 'a peer message could not be worked on'));
  }
}
