/** What somebody else can bring about as often as he likes, and is to be said seldom: once in an interval, with how many were left out. */
import type { Clock } from './clock.ts';

/** @returns how many of this key were left out since it was said last; undefined: leave this one out, too. */
export type Seldom = (key: string) => number | undefined;

/** @param maxKeys beyond it the oldest is forgotten, and may be said again early. */
export function createSeldom(intervalNs: bigint, maxKeys: number, clock: Pick<Clock, 'bootNs'>): Seldom {
  const said = new Map<string, { atNs: bigint; suppressed: number }>();
  return (key) => {
    const last = said.get(key);
    const nowNs = clock.bootNs();
    if (last !== undefined && nowNs - last.atNs < intervalNs) {
      last.suppressed += 1;
      return undefined;
    }
    said.delete(key);
    if (said.size >= maxKeys) said.delete(said.keys().next().value!);
    said.set(key, { atNs: nowNs, suppressed: 0 });
    return last?.suppressed ?? 0;
  };
}
