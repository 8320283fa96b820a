/**
 * The agent's half of the hold budget. The kernel counts packets it put into the queue (taken), this counts those that
 * left it (returned); the difference is what waits. A packet that the device itself lost was taken and never comes back:
 * when an identity has been quiet for a whole interval with nothing waiting, its difference is that loss, and is written off.
 */
import type { SecurityIdentity } from '../model/ids.ts';
import type { DatapathMaps } from './maps.ts';

const TOTAL = 0;

export class HoldBudget {
  readonly #maps: DatapathMaps;
  readonly #lost: (packets: bigint) => void;
  readonly #returned = new Map<number, bigint>();
  #seen = new Map<number, bigint>();

  /**
   * Call it while nothing can be in the queue (the device is new): whatever was taken before is gone.
   * @param lost so many packets were dropped with a device, here or in an earlier process, and nobody saw which.
   */
  constructor(maps: DatapathMaps, lost: (packets: bigint) => void) {
    this.#maps = maps;
    this.#lost = lost;
    const taken = this.#taken();
    const returned = maps.cs_hold_returned.get({ n: TOTAL })?.n ?? 0n;
    this.#tell((taken.get(TOTAL) ?? 0n) - returned);
    for (const [{ n: key }] of maps.cs_hold_returned.entries())
      if (!taken.has(key)) maps.cs_hold_returned.delete({ n: key });
    for (const [key, count] of taken) this.#write(key, count);
  }

  /** @param identity undefined when it is not known any more: then only the total is counted, and the rest written off later. */
  left(identity: SecurityIdentity | undefined, packets: number): void {
    if (identity !== undefined) this.#add(identity, packets);
    this.#add(TOTAL, packets);
  }

  /** Once per interval that is longer than any packet waits. Does nothing unless the queue is empty. */
  writeOffLost(queueIsEmpty: boolean): void {
    const taken = this.#taken();
    if (queueIsEmpty) {
      for (const [key, count] of taken) {
        const returned = this.#returned.get(key) ?? 0n;
        if (this.#seen.get(key) !== count || returned === count) continue;
        if (key === TOTAL) this.#tell(count - returned);
        this.#write(key, count);
      }
    }
    this.#seen = taken;
  }

  #add(key: number, packets: number): void {
    const taken = this.#maps.cs_hold_taken.get({ n: key })?.n ?? 0n;
    const returned = (this.#returned.get(key) ?? 0n) + BigInt(packets);
    // A packet that somebody routed into the device was never taken; more returned than taken would read as a huge queue.
    this.#write(key, returned < taken ? returned : taken);
  }

  #tell(packets: bigint): void {
    if (packets > 0n) this.#lost(packets);
  }

  #taken(): Map<number, bigint> {
    return new Map(this.#maps.cs_hold_taken.entries().map(([key, value]) => [key.n, value.n]));
  }

  #write(key: number, count: bigint): void {
    this.#returned.set(key, count);
    this.#maps.cs_hold_returned.put({ n: key }, { n: count });
  }
}
