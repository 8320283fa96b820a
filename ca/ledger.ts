/** Step 4 of issuing: the record of every certificate that was signed. issuance.ts lets none leave before its row is on disk. */
import type { DatabaseSync, StatementSync } from 'node:sqlite';
import type { SpiffeId } from '../src/model/ids.ts';
import type { CertificatePlan } from './profile.ts';

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

export class Ledger {
  readonly #database: DatabaseSync;
  readonly #insert: StatementSync;
  #prunedMs = Number.NEGATIVE_INFINITY;

  constructor(database: DatabaseSync, nowMs: number) {
    this.#database = database;
    this.#prune(nowMs);
    this.#insert = database.prepare('INSERT INTO svid VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)');
  }

  /** All of them or none, on disk when it returns. Throws what SQLite throws. */
  append(rows: readonly LedgerRow[]): void {
    this.#database.exec('BEGIN IMMEDIATE');
    try {
      for (const row of rows) this.#insertRow(row);
      this.#database.exec('COMMIT');
    } catch (thrown) {
      if (this.#database.isTransaction) this.#database.exec('ROLLBACK');
      throw thrown;
    }
    this.#pruneDaily(rows[0]?.issuedMs ?? this.#prunedMs);
  }

  /** Certificates that have not ended at `nowMs`, newest first. */
  listLive(nowMs: number): LedgerRow[] {
    const rows = this.#database
      .prepare('SELECT * FROM svid WHERE not_after_ms >= ? ORDER BY rowid DESC LIMIT ?')
      .all(nowMs, MAX_LIST);
    return rows.map(rowOf);
  }

  /** Reads the whole table: an index on random serial numbers would cost each issued certificate a page of its own on disk. */
  bySerial(serial: string): LedgerRow | undefined {
    const row = this.#database.prepare('SELECT * FROM svid WHERE serial = ?').get(serial);
    return row === undefined ? undefined : rowOf(row);
  }

  isEmpty(): boolean {
    return this.#database.prepare('SELECT 1 FROM svid LIMIT 1').get() === undefined;
  }

  #insertRow(row: LedgerRow): void {
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

  #pruneDaily(nowMs: number): void {
    if (nowMs - this.#prunedMs >= PRUNE_INTERVAL_MS) this.#prune(nowMs);
  }

  #prune(nowMs: number): void {
    this.#prunedMs = nowMs;
    this.#database.prepare('DELETE FROM svid WHERE not_after_ms < ?').run(nowMs - RETENTION_MS);
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
