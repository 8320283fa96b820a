/** How long to leave a key alone after failures: doubling from a floor to a ceiling, with jitter, and why it failed last. */
import type { ReasonCode } from '../base/registry/reason-codes.ts';
import { nsOfMs } from './units.ts';

export interface Failure {
  readonly reason: ReasonCode;
  /** Unix ms. */
  readonly atMs: number;
  readonly count: number;
  /** CLOCK_BOOTTIME: no try before. */
  readonly retryAtNs: bigint;
}

export interface BackoffLimits {
  readonly backoffMinMs: number;
  readonly backoffMaxMs: number;
}

/** Keys remembered; beyond it the oldest is forgotten, which only means one try more. */
const MAX_KEYS = 16_384;

export class Backoff {
  readonly #limits: BackoffLimits;
  readonly #random: () => number;
  readonly #failures = new Map<string, Failure>();

  /** @param random uniform in [0, 1). */
  constructor(limits: BackoffLimits, random: () => number) {
    this.#limits = limits;
    this.#random = random;
  }

  last(key: string): Failure | undefined {
    return this.#failures.get(key);
  }

  all(): ReadonlyMap<string, Failure> {
    return this.#failures;
  }

  isWaiting(key: string, nowNs: bigint): boolean {
    const failure = this.#failures.get(key);
    return failure !== undefined && failure.retryAtNs > nowNs;
  }

  failed(key: string, reason: ReasonCode, nowNs: bigint, nowMs: number): void {
    const count = (this.#failures.get(key)?.count ?? 0) + 1;
    const { backoffMinMs, backoffMaxMs } = this.#limits;
    const full = Math.min(backoffMaxMs, backoffMinMs * 2 ** Math.min(count - 1, 30));
    const waitMs = full * (0.8 + 0.2 * this.#random());
    this.#remember(key, { reason, atMs: nowMs, count, retryAtNs: nowNs + nsOfMs(waitMs) });
  }

  /** For `explain` alone: the peer's try failed, ours need not wait. */
  note(key: string, reason: ReasonCode, nowMs: number): void {
    if (!this.#failures.has(key)) this.#remember(key, { reason, atMs: nowMs, count: 0, retryAtNs: 0n });
    else this.#failures.set(key, { ...this.#failures.get(key)!, reason, atMs: nowMs });
  }

  succeeded(key: string): void {
    this.#failures.delete(key);
  }

  /** What failures rested on has changed: every key may be tried at once. Reasons stay, for `explain`. */
  relent(concerns: (key: string) => boolean = () => true): void {
    for (const [key, failure] of this.#failures) {
      if (concerns(key)) this.#failures.set(key, { ...failure, retryAtNs: 0n, count: 0 });
    }
  }

  #remember(key: string, failure: Failure): void {
    this.#failures.delete(key);
    this.#failures.set(key, failure);
    if (this.#failures.size > MAX_KEYS) this.#failures.delete(this.#failures.keys().next().value!);
  }
}
