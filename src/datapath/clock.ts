/** The real clocks. Boot time is read from the very clock that the kernel programs read. */
import { native } from '../../native/index.ts';
import type { Clock } from '../base/clock.ts';

export function systemClock(): Clock {
  const addon = native();
  return { nowMs: () => Date.now(), bootNs: () => addon.bootTimeNs() };
}
