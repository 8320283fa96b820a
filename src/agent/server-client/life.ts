/** Is this still the life of the machine in which the node got its incarnation? Reboots, snapshots and clones begin another. */
import { readFileSync } from 'node:fs';
import type { Clock } from '../../base/clock.ts';

/** What tells one life of a machine from another. */
export interface Life {
  /** Of the kernel, random at each boot. */
  readonly bootId: string;
  /**
   * Wall clock less boot time, ms. Both are slewed alike, so it moves only when the wall clock is set, and when a virtual
   * machine is set back to a snapshot: then its boot time goes on from the snapshot and the wall clock is corrected.
   */
  readonly offsetMs: number;
}

/** A clock that is set by less is an ordinary clock. */
const CLOCK_JUMP_MS = 5_000;
const CHECK_MS = 1_000;

function isSame(a: Life, b: Life): boolean {
  return a.bootId === b.bootId && Math.abs(a.offsetMs - b.offsetMs) < CLOCK_JUMP_MS;
}

export class LifeWatch {
  readonly #clock: Clock;
  readonly #bootId: string;
  readonly #timer: NodeJS.Timeout;
  #last: Life;

  /**
   * @param jumped between two looks, a second apart: the machine was set back or its clock was set. Which, nobody can tell.
   * @param bootId left out: the kernel's
   */
  constructor(clock: Clock, jumped: () => void, bootId = readBootId()) {
    this.#clock = clock;
    this.#bootId = bootId;
    this.#last = this.now();
    this.#timer = setInterval(() => {
      const now = this.now();
      if (!isSame(this.#last, now)) jumped();
      this.#last = now;
    }, CHECK_MS);
    this.#timer.unref();
  }

  now(): Life {
    const { nowMs, bootNs } = { nowMs: this.#clock.nowMs(), bootNs: this.#clock.bootNs() };
    return { bootId: this.#bootId, offsetMs: nowMs - Number(bootNs / 1_000_000n) };
  }

  /** undefined: nobody wrote down in which life it was. */
  isCurrent(life: Life | undefined): boolean {
    return life !== undefined && isSame(life, this.now());
  }

  close(): void {
    clearInterval(this.#timer);
  }
}

/** random(4): made by the kernel at boot, the same in all containers. */
function readBootId(): string {
  return readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim();
}
