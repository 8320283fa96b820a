/**
 * The models' rules for traces: what a trace of the code is, and whether the rules permit it. `monitor.ts` holds the rules; the vocabulary is
 * in README.md.
 */
import { Monitor } from './monitor.ts';
import { Refused } from './trace-fields.ts';

export interface TraceEvent {
  readonly ev: string;
  /** Who acted. */
  readonly node: string;
  /** That node's boot time in ms. Left out: as at its last event. */
  readonly t?: number;
  readonly [field: string]: unknown;
}

export interface AcceptOptions {
  /** How long a successor waits after the close and after a peer's ack. */
  readonly drainMs?: number;
  /** The tunnel's table is in the trace: tunnel-allow and tunnel-disallow are demanded. */
  readonly tunnels?: boolean;
}

export type Accepted =
  | { readonly ok: true }
  | { readonly ok: false; readonly line: number; readonly rule: string; readonly why: string };

/** Is the trace one that the rules permit? Lines of JSON, in the order in which things came into force. */
export function accept(trace: readonly (string | TraceEvent)[], options: AcceptOptions = {}): Accepted {
  const monitor = new Monitor(options);
  for (const [line, entry] of trace.entries()) {
    try {
      monitor.take(typeof entry === 'string' ? (JSON.parse(entry) as TraceEvent) : entry);
    } catch (thrown) {
      if (thrown instanceof Refused) return { ok: false, line, rule: thrown.rule, why: thrown.message };
      throw thrown;
    }
  }
  return { ok: true };
}
