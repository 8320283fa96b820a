/** Warnings that a workload can bring about as often as it likes: one a second for each thing to say, with how many were left out. */
import type { Clock } from '../base/clock.ts';
import type { Logger } from '../base/log.ts';

export interface RareLog {
  /** @param key what is said, and of whom as far as each is to be heard; bounded by the caller, or forgotten oldest first */
  warn(key: string, fields: object, message: string): void;
}

const INTERVAL_NS = 1_000_000_000n;
const MAX_KEYS = 1_024;

export function createRareLog(log: Logger, clock: Clock): RareLog {
  const said = new Map<string, { atNs: bigint; suppressed: number }>();
  return {
    warn(key, fields, message) {
      const last = said.get(key);
      const now = clock.bootNs();
      if (last !== undefined && now - last.atNs < INTERVAL_NS) {
        last.suppressed++;
        return;
      }
      said.delete(key);
      if (said.size >= MAX_KEYS) said.delete(said.keys().next().value!);
      said.set(key, { atNs: now, suppressed: 0 });
      log.warn(last?.suppressed ? { ...fields, suppressed: last.suppressed } : fields, message);
    },
  };
}
