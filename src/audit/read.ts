/** Looking events up in a log, newest last, in constant memory. Reading proves nothing: that is verify.ts. */
import type { AuditKind } from '../model/audit-event.ts';
import { eventsFiles, readLines } from './layout.ts';
import type { AuditRecord } from './record.ts';

export interface EventFilter {
  readonly kinds?: readonly AuditKind[];
  readonly reason?: string;
  readonly correlation?: string;
  /** Of source or destination. */
  readonly spiffeId?: string;
  /** Unix ms, inclusive. */
  readonly sinceMs?: number;
  /** Unix ms, exclusive. */
  readonly untilMs?: number;
  readonly fromSeq?: number;
  /** At most this many, the first that match. */
  readonly limit?: number;
}

/** Lines that are not events (a torn last one, an altered one) are passed over. */
export function* readEvents(dir: string, filter: EventFilter = {}): Generator<AuditRecord, void, void> {
  let left = filter.limit ?? Number.POSITIVE_INFINITY;
  const files = eventsFiles(dir);
  for (const [i, file] of files.entries()) {
    const next = files[i + 1];
    if (next !== undefined && next.firstSeq <= (filter.fromSeq ?? 0)) continue;
    for (const line of readLines(file.path)) {
      if (left <= 0) return;
      const record = line.whole ? parseRecord(line.bytes) : undefined;
      if (record === undefined || !matches(record, filter)) continue;
      left--;
      yield record;
    }
  }
}

function parseRecord(bytes: Buffer): AuditRecord | undefined {
  try {
    const record: unknown = JSON.parse(bytes.toString());
    if (typeof record !== 'object' || record === null) return undefined;
    const { seq, time, kind } = record as Partial<AuditRecord>;
    const isEvent = typeof seq === 'number' && typeof time === 'string' && typeof kind === 'string';
    return isEvent ? (record as AuditRecord) : undefined;
  } catch {
    return undefined;
  }
}

function matches(record: AuditRecord, filter: EventFilter): boolean {
  if (filter.kinds !== undefined && !filter.kinds.includes(record.kind)) return false;
  if (filter.reason !== undefined && record.reason !== filter.reason) return false;
  if (filter.correlation !== undefined && record.correlation !== filter.correlation) return false;
  if (filter.fromSeq !== undefined && record.seq < filter.fromSeq) return false;
  if (
    filter.spiffeId !== undefined &&
    record.source?.spiffeId !== filter.spiffeId &&
    record.destination?.spiffeId !== filter.spiffeId
  ) {
    return false;
  }
  const timeMs = Date.parse(record.time);
  if (filter.sinceMs !== undefined && !(timeMs >= filter.sinceMs)) return false;
  return filter.untilMs === undefined || timeMs < filter.untilMs;
}
