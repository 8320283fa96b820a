/** How long a node is left alone after dials that failed: doubling up to a bound, with jitter, forgotten when a channel opens. */
import type { Clock } from '../base/clock.ts';
import type { ReasonCode } from '../base/registry/reason-codes.ts';
import type { NodeInfo } from '../model/identity.ts';
import type { SpiffeId } from '../model/ids.ts';
import type { ChannelLimits } from './limits.ts';

export interface DialFailure {
  readonly reason: ReasonCode;
  /** In a row. */
  readonly count: number;
  /** 0: the next one that needs the channel dials. */
  readonly retryInMs: number;
}

interface Failure {
  readonly reason: ReasonCode;
  readonly count: number;
  readonly untilNs: bigint;
  /** What was dialed: a node that moved, or that lives anew, is dialed at once. */
  readonly dialed: string;
}

/** Nodes remembered; beyond it the oldest is forgotten, which only means one dial more. */
const MAX_NODES = 16_384;

export class DialBackoff {
  readonly #limits: Pick<ChannelLimits, 'dialBackoffMinMs' | 'dialBackoffMaxMs'>;
  readonly #clock: Pick<Clock, 'bootNs'>;
  readonly #random: () => number;
  readonly #failures = new Map<SpiffeId, Failure>();

  /** @param random uniform in [0, 1). */
  constructor(
    limits: Pick<ChannelLimits, 'dialBackoffMinMs' | 'dialBackoffMaxMs'>,
    clock: Pick<Clock, 'bootNs'>,
    random: () => number = Math.random,
  ) {
    this.#limits = limits;
    this.#clock = clock;
    this.#random = random;
  }

  /** Why the last dial failed, as long as the node is not to be dialed again. */
  failure(node: NodeInfo): ReasonCode | undefined {
    const last = this.#failures.get(node.spiffeId);
    if (last === undefined || last.dialed !== keyOf(node) || this.#clock.bootNs() >= last.untilNs) return undefined;
    return last.reason;
  }

  /** For people: how the dials of the node went since a channel was last open; undefined: none failed. */
  last(node: NodeInfo): DialFailure | undefined {
    const last = this.#failures.get(node.spiffeId);
    if (last === undefined) return undefined;
    const leftNs = last.untilNs - this.#clock.bootNs();
    return { reason: last.reason, count: last.count, retryInMs: leftNs > 0n ? Number(leftNs / 1_000_000n) : 0 };
  }

  failed(node: NodeInfo, reason: ReasonCode): void {
    const last = this.#failures.get(node.spiffeId);
    const dialed = keyOf(node);
    const count = last?.dialed === dialed ? last.count + 1 : 1;
    const { dialBackoffMinMs, dialBackoffMaxMs } = this.#limits;
    const fullMs = Math.min(dialBackoffMaxMs, dialBackoffMinMs * 2 ** Math.min(count - 1, 16));
    // Half of it at random, so that the nodes which lost one node at once do not come back to it at once.
    const waitNs = BigInt(Math.round(fullMs * (0.5 + 0.5 * this.#random()) * 1e6));
    this.#failures.delete(node.spiffeId);
    this.#failures.set(node.spiffeId, { reason, count, untilNs: this.#clock.bootNs() + waitNs, dialed });
    if (this.#failures.size > MAX_NODES) this.#failures.delete(this.#failures.keys().next().value!);
  }

  succeeded(node: NodeInfo): void {
    this.#failures.delete(node.spiffeId);
  }
}

function keyOf({ peerAddresses, incarnation }: NodeInfo): string {
  return `${incarnation} ${peerAddresses.join(' ')}`;
}
