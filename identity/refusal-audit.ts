/**
 * Refusals of who proved nothing, as audit events, limited: a stranger who asks in a loop must not fill the disk that the ledger is on.
 * What has an actor is of somebody known, and always told.
 */
import type { Clock } from '../src/base/clock.ts';
import { fullBucket, refill, type TokenBucket, take } from '../src/base/token-bucket.ts';
import type { AuditKind, AuditSink } from '../src/model/audit-event.ts';

const KINDS: ReadonlySet<AuditKind> = new Set(['peer.refused', 'node.attest_refused', 'admin.refused']);
/** Of each kind and reason: so many at once, and then one a second. The next one says how many were left out. */
const BURST = 100;
const PER_SECOND = 1;

export function limitRefusals(audit: AuditSink, clock: Pick<Clock, 'bootNs'>): AuditSink {
  /** As many as there are reasons. */
  const said = new Map<string, { bucket: TokenBucket; suppressed: number }>();
  return {
    emit(event) {
      if (!KINDS.has(event.kind) || event.actor !== undefined) return audit.emit(event);
      const key = `${event.kind} ${event.reason}`;
      const nowNs = clock.bootNs();
      const known = said.get(key) ?? { bucket: fullBucket(BURST, nowNs), suppressed: 0 };
      said.set(key, known);
      refill(known.bucket, nowNs, PER_SECOND, BURST);
      if (!take(known.bucket, 1)) {
        known.suppressed += 1;
        return;
      }
      const { suppressed } = known;
      known.suppressed = 0;
      audit.emit(suppressed === 0 ? event : { ...event, detail: { ...event.detail, suppressed } });
    },
  };
}
