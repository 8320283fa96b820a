/** What every workload attestor is: asked for a process's selectors of one type, and only for those that an entry needs. */
import type { Caller } from '../callers.ts';

export interface WorkloadAttestor {
  /** What its selectors begin with, without the colon. */
  readonly type: string;
  /**
   * The caller's selectors, of `wanted` at least those that are true. A selector is given only if it was true of the process that
   * connected: who reads it by pid asks isAlive() afterwards. "This process has none" is an answer; throwing means "not known now",
   * and then no entry that needs this type is decided on.
   */
  selectorsOf(caller: Caller, wanted: ReadonlySet<string>, signal: AbortSignal): Promise<readonly string[]>;
}

/** True if some wanted selector begins with `prefix`. */
export function wants(wanted: ReadonlySet<string>, prefix: string): boolean {
  for (const selector of wanted) if (selector.startsWith(prefix)) return true;
  return false;
}
