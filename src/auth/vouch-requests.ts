/**
 * Questions that are open: who has these addresses? Each has a nonce that no one else knows and serves one answer, on the channel that
 * it was asked on (VouchNonce).
 */
import { randomBytes } from 'node:crypto';
import { FrameType, VouchRequest } from '../../proto/gen/countersign/peer/v1/peer.ts';
import type { Clock } from '../base/clock.ts';
import { err } from '../base/errors.ts';
import type { ReasonCode } from '../base/registry/reason-codes.ts';
import type { Timers } from '../base/timers.ts';
import type { PeerChannel } from '../channel/peer-channel.ts';
import { addressWireBytes } from '../model/address.ts';
import type { IpAddress, NodeId } from '../model/ids.ts';
import type { VouchAnswer } from './vouch-tables.ts';
import type { VouchTrace } from './vouch-trace.ts';

export type Waiting = Map<IpAddress, (answer: VouchAnswer) => void>;

export interface OpenRequest {
  readonly channel: PeerChannel;
  /** LeaseFromAsking: what a lease counts from. */
  readonly sentNs: bigint;
  readonly waiting: Waiting;
  readonly cancelTimeout: () => void;
}

export interface VouchRequestsOptions {
  readonly timeoutMs: number;
  /** Requests that may be open. */
  readonly limit: number;
  readonly clock: Clock;
  readonly timers: Timers;
  readonly trace: VouchTrace;
}

export class VouchRequests {
  readonly #options: VouchRequestsOptions;
  readonly #open = new Map<string, OpenRequest>();

  constructor(options: VouchRequestsOptions) {
    this.#options = options;
  }

  get isFull(): boolean {
    return this.#open.size >= this.#options.limit;
  }

  /** Asks for what is waited for, and offers `own`. */
  ask(channel: PeerChannel, waiting: Waiting, own: readonly IpAddress[]): void {
    const { clock, timers, timeoutMs, trace } = this.#options;
    const nonce = randomBytes(16);
    const key = nonce.toString('hex');
    const request: OpenRequest = {
      channel,
      sentNs: clock.bootNs(),
      waiting,
      cancelTimeout: timers.set(timeoutMs, () => this.#end(key, request, 'VOUCH_TIMEOUT')),
    };
    this.#open.set(key, request);
    const ips = [...waiting.keys()];
    trace?.({ ev: 'ask', peer: channel.peer.id, channel: channel.id, nonce: key, ips });
    send(channel, nonce, ips, own);
  }

  /** Offers without asking: no answer is waited for. */
  offer(channel: PeerChannel, own: readonly IpAddress[]): void {
    send(channel, randomBytes(16), [], own);
  }

  /** The open request that the answer serves, which is open no more. undefined: none of this channel (late, or invented). */
  take(channel: PeerChannel, nonce: string): OpenRequest | undefined {
    const request = this.#open.get(nonce);
    if (request === undefined || request.channel !== channel) return undefined;
    this.#open.delete(nonce);
    request.cancelTimeout();
    return request;
  }

  /** RequestsDieWithChannel. */
  endOn(channel: PeerChannel): void {
    for (const [nonce, request] of this.#open) {
      if (request.channel === channel) this.#end(nonce, request, 'PEER_CHANNEL_CLOSED');
    }
  }

  /** What is open on other channels of the node, taken back: it is asked anew on the newest. */
  takeFromOthers(channel: PeerChannel): Waiting[] {
    const taken: Waiting[] = [];
    for (const [nonce, request] of this.#open) {
      if (request.channel === channel || request.channel.peer.id !== channel.peer.id) continue;
      this.#open.delete(nonce);
      request.cancelTimeout();
      if (request.waiting.size > 0) taken.push(request.waiting);
    }
    return taken;
  }

  /** WithdrawCancelsRequests. */
  cancel(node: NodeId, address: IpAddress): void {
    for (const [nonce, request] of this.#open) {
      const resolve = request.waiting.get(address);
      if (request.channel.peer.id !== node || resolve === undefined) continue;
      request.waiting.delete(address);
      resolve(err('VOUCH_WITHDRAWN'));
      if (request.waiting.size === 0) this.#end(nonce, request, 'VOUCH_WITHDRAWN');
    }
  }

  #end(nonce: string, request: OpenRequest, reason: ReasonCode): void {
    this.#open.delete(nonce);
    request.cancelTimeout();
    for (const resolve of request.waiting.values()) resolve(err(reason));
  }
}

function send(channel: PeerChannel, nonce: Buffer, asked: readonly IpAddress[], own: readonly IpAddress[]): void {
  const request = { nonce, addresses: asked.map(addressWireBytes), own: own.map(addressWireBytes) };
  channel.send(FrameType.FRAME_TYPE_VOUCH_REQUEST, VouchRequest.encode(request).finish());
}
