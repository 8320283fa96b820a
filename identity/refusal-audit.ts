/**
 * Refusals of who proved nothing, as audit events, limited: a stranger who asks in a loop must not fill the disk that the ledger is on.
 * What has an actor is of somebody known, and always told.
 */
import type { Clock } from '../src/base/clock.ts';
import type { AuditKind, AuditSink } from '../src/model/audit-event.ts';

const KINDS: ReadonlySet<AuditKind> = new Set(['peer.refused', 'node.attest_refused', 'admin.refused']);
/** Of each kind and reason: so many at once, and then one a second. The next one says how many were left out. */
const BURST = 100;
const SECOND_NS = 1_000_000_000n;

export function limitRefusals(audit: AuditSink, clock: Pick<Clock, 'bootNs'>): AuditSink {
  /** As many as there are reasons. */
  const said = new Map<string, { left: number; atNs: bigint; suppressed: number }>();
  return {
    emit(event) {
      if (!KINDS.has(event.kind) || event.actor !== undefined) return audit.emit(event);
      const key = `${event.kind} ${event.reason}`;
      const nowNs = clock.bootNs();
      const known = said.get(key) ?? { left: BURST, atNs: nowNs, suppressed: 0 };
      said.set(key, known);
      const seconds = (nowNs - known.atNs) / SECOND_NS;
      known.left = Math.min(BURST, known.left + Number(seconds));
      known.atNs += seconds * SECOND_NS;
      if (known.left === 0) {
        known.suppressed += 1;
        return;
      }
      const { suppressed } = known;
      known.left -= 1;
      known.suppressed = 0;
      audit.emit(suppressed === 0 ? event : { ...event, detail: { ...event.detail, suppressed } });
    },
  };
}
