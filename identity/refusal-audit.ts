/**
 * Refusals at the doors, as audit events, limited: who asks in a loop, a stranger or a workload that has no role, must not fill the disk that
 * the ledger is on. Acts are always told.
 */
import type { Clock } from '../src/base/clock.ts';
import { fullBucket, refill, type TokenBucket, take } from '../src/base/token-bucket.ts';
import type { AuditKind, AuditSink } from '../src/model/audit-event.ts';

const KINDS: ReadonlySet<AuditKind> = new Set(['peer.refused', 'node.attest_refused', 'admin.refused']);
/** Of each kind, reason and actor, strangers being one: so many at once, and then one a second. The next one says how many were left out. */
const BURST = 100;
const PER_SECOND = 1;
/** Beyond it the one that was quiet longest is forgotten, and has its burst again. */
const MAX_KEYS = 4_096;

export function limitRefusals(audit: AuditSink, clock: Pick<Clock, 'bootNs'>): AuditSink {
  const said = new Map<string, { bucket: TokenBucket; suppressed: number }>();
  return {
    emit(event) {
      if (!KINDS.has(event.kind)) return audit.emit(event);
      const key = `${event.kind} ${event.reason} ${event.actor ?? ''}`;
      const nowNs = clock.bootNs();
      const known = said.get(key) ?? { bucket: fullBucket(BURST, nowNs), suppressed: 0 };
      said.delete(key);
      if (said.size >= MAX_KEYS) said.delete(said.keys().next().value!);
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
