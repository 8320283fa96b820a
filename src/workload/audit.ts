/** The Workload API's audit events, limited: a workload that asks in a loop must not fill the log. */
import type { Clock } from '../base/clock.ts';
import { createSeldom } from '../base/seldom.ts';
import type { AuditEvent, AuditSink } from '../model/audit-event.ts';
import type { Caller } from './callers.ts';
import type { Refusal } from './responses.ts';

/** One event of the same meaning in this time; the next one says how many were left out. */
const INTERVAL_NS = 60n * 1_000_000_000n;
/** Distinct (user, meaning) remembered. Beyond it the oldest is forgotten, and may be said again early. */
const MAX_KEYS = 4_096;

export interface WorkloadAudit {
  say(caller: Caller, event: AuditEvent): void;
  /** Only if the refusal is one for the audit log. */
  refused(caller: Caller, method: string, refusal: Refusal): void;
}

export function createWorkloadAudit(sink: AuditSink, clock: Clock): WorkloadAudit {
  const seldom = createSeldom(INTERVAL_NS, MAX_KEYS, clock);
  const audit: WorkloadAudit = {
    refused(caller, method, { reason }) {
      if (reason !== undefined) audit.say(caller, { kind: 'workload.refused', reason, detail: { method } });
    },
    say(caller, event) {
      const key = [caller.uid, event.kind, event.reason, event.source?.spiffeId, event.detail?.method].join(' ');
      const suppressed = seldom(key);
      if (suppressed === undefined) return;
      const { uid, gid, pid } = caller;
      const detail = { ...event.detail, uid, gid, pid, ...(suppressed > 0 ? { suppressed } : {}) };
      sink.emit({ ...event, actor: `uid:${uid}`, detail });
    },
  };
  return audit;
}
