/**
 * Simulated time: events in order, each run to the end of what it makes follow (promises included) before the next. A machine that
 * is paused keeps its events until it goes on; what belongs to a process that was killed never happens.
 */
import { setImmediate as nextTurn } from 'node:timers/promises';

/** A machine: its clock stands while it is paused. */
export interface Pausable {
  pausedAtMs: number | undefined;
  readonly frozen: Event[];
}

/** Whose event it is: a process of a machine, or the machine itself. */
export interface Owner {
  readonly machine: Pausable;
  dead: boolean;
}

export interface Event {
  atMs: number;
  order: number;
  readonly fn: () => void;
  readonly owner: Owner | undefined;
  /** From outside: it waits at the door of a machine that is paused, and comes in as soon as that goes on. */
  readonly isArrival: boolean;
  cancelled: boolean;
}

export class Engine {
  /** Nobody's clock: ms since the schedule's start. */
  nowMs = 0;
  /** Whose event runs now. */
  current: Owner | undefined;
  events = 0;
  readonly #heap: Event[] = [];
  #order = 0;

  after(ms: number, owner: Owner | undefined, fn: () => void, isArrival = false): Event {
    const atMs = this.nowMs + Math.max(0, ms);
    const event = { atMs, order: this.#order++, fn, owner, isArrival, cancelled: false };
    this.#push(event);
    return event;
  }

  pause(machine: Pausable): void {
    machine.pausedAtMs ??= this.nowMs;
  }

  resume(machine: Pausable): void {
    const since = machine.pausedAtMs;
    if (since === undefined) return;
    machine.pausedAtMs = undefined;
    for (const event of machine.frozen.splice(0)) {
      event.atMs = event.isArrival ? this.nowMs : this.nowMs + (event.atMs - since);
      event.order = this.#order++;
      this.#push(event);
    }
  }

  /** Until then, or until `isOver`. */
  async run(untilMs: number, isOver: () => boolean): Promise<void> {
    await nextTurn();
    while (!isOver()) {
      const event = this.#heap[0];
      if (event === undefined || event.atMs > untilMs) break;
      this.#pop();
      if (event.cancelled || event.owner?.dead === true) continue;
      if (event.owner !== undefined && event.owner.machine.pausedAtMs !== undefined) {
        event.owner.machine.frozen.push(event);
        continue;
      }
      this.nowMs = event.atMs;
      this.current = event.owner;
      this.events += 1;
      event.fn();
      await settled();
      this.current = undefined;
    }
    if (!isOver()) this.nowMs = Math.max(this.nowMs, untilMs);
    // Promises that nobody caught are told now.
    await nextTurn();
  }

  #push(event: Event): void {
    const heap = this.#heap;
    let at = heap.length;
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (!isBefore(event, heap[parent]!)) break;
      heap[at] = heap[parent]!;
      at = parent;
    }
    heap[at] = event;
  }

  #pop(): void {
    const heap = this.#heap;
    const last = heap.pop()!;
    const { length } = heap;
    if (length === 0) return;
    let at = 0;
    for (;;) {
      let child = 2 * at + 1;
      if (child >= length) break;
      if (child + 1 < length && isBefore(heap[child + 1]!, heap[child]!)) child += 1;
      if (!isBefore(heap[child]!, last)) break;
      heap[at] = heap[child]!;
      at = child;
    }
    heap[at] = last;
  }
}

/** As Node counts: whole milliseconds, one at least, so a timer is early by what is cut off. A wait below what the clock can add would
 *  stand still for ever. */
export function timerMs(ms: number): number {
  return Math.max(1, Math.trunc(ms));
}

function isBefore(a: Event, b: Event): boolean {
  return a.atMs < b.atMs || (a.atMs === b.atMs && a.order < b.order);
}

/** Every promise that can go on has gone on: nextTick, called from a promise's job, runs after all others. */
function settled(): Promise<void> {
  return new Promise((resolve) => process.nextTick(resolve));
}
