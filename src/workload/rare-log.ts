/** Warnings that a workload can bring about as often as it likes: one a second for each thing to say, with how many were left out. */
import type { Clock } from '../base/clock.ts';
import type { Logger } from '../base/log.ts';
import { createSeldom } from '../base/seldom.ts';

export interface RareLog {
  /** @param key what is said, and of whom as far as each is to be heard; bounded by the caller, or forgotten oldest first */
  warn(key: string, fields: object, message: string): void;
}

const INTERVAL_NS = 1_000_000_000n;
const MAX_KEYS = 1_024;

export function createRareLog(log: Logger, clock: Clock): RareLog {
  const seldom = createSeldom(INTERVAL_NS, MAX_KEYS, clock);
  return {
    warn(key, fields, message) {
      const suppressed = seldom(key);
      if (suppressed !== undefined) log.warn(suppressed > 0 ? { ...fields, suppressed } : fields, message);
    },
  };
}
