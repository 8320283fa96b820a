/**
 * Rule 2, Lease, at the receiver: while a node is in use all its vouches are renewed together, by the last withdraw that is applied here
 * (RenewalNamesVersion). What is not in use runs out, and then its channel closes.
 */
import { randomBytes } from 'node:crypto';
import { FrameType, Renew } from '../../proto/gen/countersign/peer/v1/peer.ts';
import type { Clock } from '../base/clock.ts';
import type { PeerChannel } from '../channel/peer-channel.ts';
import { nsOfMs } from './units.ts';
import type { VouchTables } from './vouch-tables.ts';
import type { VouchTrace } from './vouch-trace.ts';

export interface RenewalOptions {
  readonly tables: VouchTables;
  readonly leaseMs: number;
  /** Asks for everything of the channel's node anew. */
  askAnew(channel: PeerChannel): void;
  readonly clock: Clock;
  readonly trace: VouchTrace;
}

interface OpenRenewal {
  readonly nonce: string;
  readonly incarnation: bigint;
  readonly sentNs: bigint;
}

/** Withdraws of one channel that are being worked on, and the last one up to which all are applied. */
export class AppliedWithdraws {
  readonly #open = new Set<bigint>();
  #highest = 0n;

  /** False: more at once than any honest peer says. */
  begin(id: bigint): boolean {
    if (this.#open.size >= MAX_WITHDRAWS || id <= this.#highest) return false;
    this.#open.add(id);
    this.#highest = id;
    return true;
  }

  end(id: bigint): void {
    this.#open.delete(id);
  }

  /** Ids rise, so whatever is below the lowest open one is applied. */
  get version(): bigint {
    const first = this.#open.values().next().value;
    return first === undefined ? this.#highest : first - 1n;
  }
}

const MAX_WITHDRAWS = 1_024;

export class Renewals {
  readonly #options: RenewalOptions;
  readonly #open = new WeakMap<PeerChannel, OpenRenewal>();

  constructor(options: RenewalOptions) {
    this.#options = options;
  }

  /** One message renews all. A reply to an earlier one of this channel is then too late. */
  ask(channel: PeerChannel, incarnation: bigint, version: bigint): void {
    const { clock, trace } = this.#options;
    const nonce = randomBytes(16);
    const renewal = { nonce: nonce.toString('hex'), incarnation, sentNs: clock.bootNs() };
    this.#open.set(channel, renewal);
    trace?.({
      ev: 'renew',
      peer: channel.peer.id,
      channel: channel.id,
      nonce: renewal.nonce,
      incarnation,
      version,
    });
    channel.send(FrameType.FRAME_TYPE_RENEW, Renew.encode({ nonce, incarnation, version }).finish());
  }

  /** LeaseFromAsking: counted from when it was asked, and only what was in force then lives on. */
  reply(channel: PeerChannel, nonce: string, ok: boolean, leaseMs: number): void {
    const renewal = this.#open.get(channel);
    if (renewal === undefined || renewal.nonce !== nonce) return;
    this.#open.delete(channel);
    if (!ok) {
      this.#options.askAnew(channel);
      return;
    }
    const endNs = renewal.sentNs + nsOfMs(Math.min(leaseMs, this.#options.leaseMs));
    if (endNs > this.#options.clock.bootNs()) {
      this.#options.tables.renew(channel.peer.id, renewal.incarnation, endNs, nonce);
    }
  }
}
