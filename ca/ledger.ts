/**
 * Step 4 of issuing: the record of every certificate that was signed. The rule: a certificate leaves the authority only after the row
 * that names it is on disk. Rows that come in one turn of the event loop share one commit, so that the disk is asked once for all.
 */
import type { DatabaseSync, StatementSync } from 'node:sqlite';
import { asError, CountersignError } from '../src/base/errors.ts';
import type { SpiffeId } from '../src/model/ids.ts';
import type { CertificatePlan } from './profile.ts';

const MAX_BATCH = 1024;
/** How long a row is kept after its certificate ended. */
const RETENTION_MS = 30 * 86_400_000;
const PRUNE_INTERVAL_MS = 86_400_000;
const MAX_LIST = 10_000;

/** Times are Unix ms. */
export interface LedgerRow {
  /** Lower-case hex, no leading zeros beyond one byte. */
  readonly serial: string;
  readonly profile: CertificatePlan['profile'];
  readonly spiffeId: SpiffeId;
  /** The node that a workload's certificate is bound to. */
  readonly node: SpiffeId | undefined;
  /** SHA-256 of the SubjectPublicKeyInfo, hex. */
  readonly keyId: string;
  readonly notBeforeMs: number;
  readonly notAfterMs: number;
  readonly issuedMs: number;
  /** Who asked: a SPIFFE ID, or the means of attestation. */
  readonly requester: string;
}

interface Waiting {
  readonly row: LedgerRow;
  readonly written: () => void;
  readonly failed: (error: Error) => void;
}

export class Ledger {
  readonly #database: DatabaseSync;
  readonly #insert: StatementSync;
  #waiting: Waiting[] = [];
  #scheduled: NodeJS.Immediate | undefined;
  #closed = false;
  #prunedMs: number;

  constructor(database: DatabaseSync, nowMs: number) {
    this.#database = database;
    this.#prune(nowMs);
    this.#prunedMs = nowMs;
    this.#insert = database.prepare('INSERT INTO svid VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)');
  }

  /** Resolves when the row is on disk; rejects, and the certificate must be thrown away, if it could not be written. */
  append(row: LedgerRow): Promise<void> {
    if (this.#closed) return Promise.reject(new CountersignError('unavailable', 'the ledger is closed'));
    return new Promise((written, failed) => {
      this.#waiting.push({ row, written, failed });
      if (this.#waiting.length >= MAX_BATCH) this.#commit();
      else this.#scheduled ??= setImmediate(() => this.#commit());
    });
  }

  /** Certificates that have not ended at `nowMs`, newest first. */
  listLive(nowMs: number): LedgerRow[] {
    const rows = this.#database
      .prepare('SELECT * FROM svid WHERE not_after_ms >= ? ORDER BY rowid DESC LIMIT ?')
      .all(nowMs, MAX_LIST);
    return rows.map(rowOf);
  }

  bySerial(serial: string): LedgerRow | undefined {
    const row = this.#database.prepare('SELECT * FROM svid WHERE serial = ?').get(serial);
    return row === undefined ? undefined : rowOf(row);
  }

  isEmpty(): boolean {
    return this.#database.prepare('SELECT 1 FROM svid LIMIT 1').get() === undefined;
  }

  /** Writes what waits. */
  close(): void {
    this.#commit();
    this.#closed = true;
  }

  #commit(): void {
    if (this.#scheduled !== undefined) clearImmediate(this.#scheduled);
    this.#scheduled = undefined;
    const batch = this.#waiting;
    if (batch.length === 0) return;
    this.#waiting = [];
    try {
      this.#writeAll(batch);
    } catch (thrown) {
      const error = new CountersignError('unavailable', `the ledger could not be written: ${asError(thrown).message}`);
      for (const { failed } of batch) failed(error);
      return;
    }
    for (const { written } of batch) written();
    const nowMs = batch[0]!.row.issuedMs;
    if (nowMs - this.#prunedMs < PRUNE_INTERVAL_MS) return;
    this.#prunedMs = nowMs;
    this.#prune(nowMs);
  }

  #prune(nowMs: number): void {
    this.#database.prepare('DELETE FROM svid WHERE not_after_ms < ?').run(nowMs - RETENTION_MS);
  }

  #writeAll(batch: readonly Waiting[]): void {
    this.#database.exec('BEGIN IMMEDIATE');
    try {
      for (const { row } of batch) {
        this.#insert.run(
          row.serial,
          row.profile,
          row.spiffeId,
          row.node ?? null,
          row.keyId,
          row.notBeforeMs,
          row.notAfterMs,
          row.issuedMs,
          row.requester,
        );
      }
      this.#database.exec('COMMIT');
    } catch (thrown) {
      if (this.#database.isTransaction) this.#database.exec('ROLLBACK');
      throw thrown;
    }
  }
}

/** Only this file writes the table: its values are of the types they were written with. */
function rowOf(row: Record<string, unknown>): LedgerRow {
  return {
    serial: row.serial as string,
    profile: row.profile as CertificatePlan['profile'],
    spiffeId: row.spiffe_id as SpiffeId,
    node: (row.node ?? undefined) as SpiffeId | undefined,
    keyId: row.key_id as string,
    notBeforeMs: row.not_before_ms as number,
    notAfterMs: row.not_after_ms as number,
    issuedMs: row.issued_ms as number,
    requester: row.requester as string,
  };
}
