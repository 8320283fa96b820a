/** Refused connections as audit events: each reason and source at most once per interval, what was left out counted. */
import type { Clock } from '../base/clock.ts';
import type { ReasonCode } from '../base/registry/reason-codes.ts';
import type { AuditEvent, AuditSink } from '../model/audit-event.ts';

const INTERVAL_NS = 1_000_000_000n;
const MAX_KEYS = 1024;

export class RefusalLog {
  readonly #audit: AuditSink;
  readonly #clock: Pick<Clock, 'bootNs'>;
  readonly #recent = new Map<string, { sinceNs: bigint; suppressed: number }>();
  /** Refusals of sources that found no place in the table. */
  #untold = 0;

  constructor(audit: AuditSink, clock: Pick<Clock, 'bootNs'>) {
    this.#audit = audit;
    this.#clock = clock;
  }

  refused(reason: ReasonCode, address: string, event: Omit<AuditEvent, 'kind' | 'reason'>): void {
    const now = this.#clock.bootNs();
    const key = `${reason} ${address}`;
    const known = this.#recent.get(key);
    if (known !== undefined && now - known.sinceNs < INTERVAL_NS) {
      known.suppressed++;
      return;
    }
    this.#recent.delete(key);
    if (this.#recent.size >= MAX_KEYS && !this.#forget(now)) {
      this.#untold++;
      return;
    }
    this.#recent.set(key, { sinceNs: now, suppressed: 0 });
    const suppressed = (known?.suppressed ?? 0) + this.#untold;
    this.#untold = 0;
    const detail = suppressed === 0 ? event.detail : { ...event.detail, suppressed };
    this.#audit.emit({ kind: 'peer.refused', reason, ...event, ...(detail === undefined ? {} : { detail }) });
  }

  /** Oldest first: insertion order is time order. */
  #forget(now: bigint): boolean {
    const oldest = this.#recent.entries().next().value;
    if (oldest === undefined) return true;
    const [key, { sinceNs, suppressed }] = oldest;
    if (now - sinceNs < INTERVAL_NS) return false;
    this.#untold += suppressed;
    return this.#recent.delete(key);
  }
}
