/**
 * One timer for any number of deadlines. An item is not taken out when it is no longer wanted: that shows when its time has
 * come, or when there are so many of those that the rest is worth sorting anew.
 */
import type { Timers } from '../base/timers.ts';

export interface DeadlinesOptions<T> {
  readonly timers: Timers;
  /** On the clock that the times are of, in ms. */
  nowMs(): number;
  isWanted(item: T): boolean;
  /** All whose time has come, earliest first. */
  due(items: readonly T[]): void;
}

/** Below this many nothing is sorted anew. */
const FEW = 1_024;

export class Deadlines<T> {
  readonly #options: DeadlinesOptions<T>;
  /** A binary heap by time, as two arrays: 100,000 items cost 1.6 MB besides themselves. */
  #times: number[] = [];
  #items: T[] = [];
  #sortAnewAt = FEW;
  #armed: { readonly atMs: number; readonly cancel: () => void } | undefined;

  constructor(options: DeadlinesOptions<T>) {
    this.#options = options;
  }

  add(item: T, atMs: number): void {
    if (this.#items.length >= this.#sortAnewAt) this.#sortAnew();
    this.#push(atMs, item);
    this.#arm();
  }

  #arm(): void {
    const first = this.#times[0];
    if (first === undefined || (this.#armed !== undefined && this.#armed.atMs <= first)) return;
    this.#armed?.cancel();
    const waitMs = Math.max(0, first - this.#options.nowMs());
    this.#armed = { atMs: first, cancel: this.#options.timers.set(waitMs, () => this.#fire()) };
  }

  #fire(): void {
    this.#armed = undefined;
    // A timer counts no further than it can, and may be early; the clock decides.
    const now = this.#options.nowMs();
    const due: T[] = [];
    while (this.#times[0] !== undefined && this.#times[0] <= now) {
      const item = this.#pop();
      if (this.#options.isWanted(item)) due.push(item);
    }
    try {
      if (due.length > 0) this.#options.due(due);
    } finally {
      this.#arm();
    }
  }

  #sortAnew(): void {
    const [times, items] = [this.#times, this.#items];
    this.#times = [];
    this.#items = [];
    items.forEach((item, i) => {
      if (this.#options.isWanted(item)) this.#push(times[i]!, item);
    });
    this.#sortAnewAt = Math.max(FEW, 2 * this.#items.length);
  }

  #push(time: number, item: T): void {
    let at = this.#times.length;
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (this.#times[parent]! <= time) break;
      this.#times[at] = this.#times[parent]!;
      this.#items[at] = this.#items[parent]!;
      at = parent;
    }
    this.#times[at] = time;
    this.#items[at] = item;
  }

  #pop(): T {
    const first = this.#items[0]!;
    const time = this.#times.pop()!;
    const item = this.#items.pop()!;
    const length = this.#times.length;
    if (length === 0) return first;
    let at = 0;
    for (;;) {
      let child = 2 * at + 1;
      if (child >= length) break;
      if (child + 1 < length && this.#times[child + 1]! < this.#times[child]!) child += 1;
      if (this.#times[child]! >= time) break;
      this.#times[at] = this.#times[child]!;
      this.#items[at] = this.#items[child]!;
      at = child;
    }
    this.#times[at] = time;
    this.#items[at] = item;
    return first;
  }
}
