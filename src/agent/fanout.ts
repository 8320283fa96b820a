/** Audit events to the log, and to those who watch on the admin socket. */
import type { AuditEvent, AuditSink } from '../model/audit-event.ts';

export class EventFanout implements AuditSink {
  readonly #log: AuditSink;
  readonly #watchers = new Set<(json: string) => void>();

  constructor(log: AuditSink) {
    this.#log = log;
  }

  emit(event: AuditEvent): void {
    this.#log.emit(event);
    if (this.#watchers.size === 0) return;
    const json = JSON.stringify({ time: new Date().toISOString(), ...event });
    for (const watch of this.#watchers) watch(json);
  }

  subscribe(watch: (json: string) => void): () => void {
    this.#watchers.add(watch);
    return () => this.#watchers.delete(watch);
  }
}
