/** One-shot timers, passed in as time is, so that tests run on a clock of their own. */
export interface Timers {
  /** Runs `fn` once after `ms` milliseconds. Returns what cancels it; cancelling twice, or too late, does nothing. */
  set(ms: number, fn: () => void): () => void;
}

/** What setTimeout can count, about 24.8 days; a longer wait fires early and the caller looks at its clock again. */
const MAX_MS = 0x7fffffff;

/** The process's own. They do not keep it alive. */
export const systemTimers: Timers = {
  set(ms, fn) {
    const timer = setTimeout(fn, Math.min(Math.max(ms, 0), MAX_MS));
    timer.unref();
    return () => clearTimeout(timer);
  },
};
