/** The Workload API's audit events, limited: a workload that asks in a loop must not fill the log. */
import type { Clock } from '../base/clock.ts';
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
  const said = new Map<string, { atNs: bigint; suppressed: number }>();
  const audit: WorkloadAudit = {
    refused(caller, method, { reason }) {
      if (reason !== undefined) audit.say(caller, { kind: 'workload.refused', reason, detail: { method } });
    },
    say(caller, event) {
      const key = [caller.uid, event.kind, event.reason, event.source?.spiffeId, event.detail?.method].join(' ');
      const last = said.get(key);
      const now = clock.bootNs();
      if (last !== undefined && now - last.atNs < INTERVAL_NS) {
        last.suppressed++;
        return;
      }
      said.delete(key);
      if (said.size >= MAX_KEYS) said.delete(said.keys().next().value!);
      said.set(key, { atNs: now, suppressed: 0 });
      const { uid, gid, pid } = caller;
      const detail = { ...event.detail, uid, gid, pid, ...(last?.suppressed ? { suppressed: last.suppressed } : {}) };
      sink.emit({ ...event, actor: `uid:${uid}`, detail });
    },
  };
  return audit;
}
