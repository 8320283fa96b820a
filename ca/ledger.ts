/** Step 4 of issuing: the record of everything that was signed. Neither a certificate nor a token leaves before its row is on disk. */
import type { DatabaseSync, StatementSync } from 'node:sqlite';
import type { SpiffeId } from '../src/model/ids.ts';
import type { CertificatePlan } from './profile.ts';
import { transaction } from './store.ts';

/** How long a row is kept after its certificate ended, and after its token did: there are many more of those. */
const RETENTION_MS = 30 * 86_400_000;
const JWT_RETENTION_MS = 7 * 86_400_000;
const PRUNE_INTERVAL_MS = 86_400_000;
const MAX_LIST = 10_000;

/** Times are Unix ms. */
export interface LedgerRow {
  /** Lower-case hex, no leading zeros beyond one byte. */
  readonly serial: string;
  readonly profile: CertificatePlan['profile'];
  readonly spiffeId: SpiffeId;
  /** The node that a workload's certificate is bound to, or whose workload had an authority signed. */
  readonly node: SpiffeId | undefined;
  /** SHA-256 of the SubjectPublicKeyInfo, hex. */
  readonly keyId: string;
  /** Subject key identifier of who signed it, lower-case hex. */
  readonly authority: string;
  readonly notBeforeMs: number;
  readonly notAfterMs: number;
  readonly issuedMs: number;
  /** Who asked: a SPIFFE ID, or the means of attestation. */
  readonly requester: string;
}

/** A JWT-SVID that was signed. Times are Unix ms. */
export interface JwtRow {
  readonly jti: string;
  /** The kid of who signed it. */
  readonly authority: string;
  readonly spiffeId: SpiffeId;
  /** The node whose workload it is for. */
  readonly node: SpiffeId;
  readonly audience: readonly string[];
  readonly issuedMs: number;
  readonly expiresMs: number;
  readonly requester: string;
}

export class Ledger {
  readonly #database: DatabaseSync;
  readonly #insert: StatementSync;
  readonly #insertJwt: StatementSync;
  #prunedMs = Number.NEGATIVE_INFINITY;
  #latestMs: number;
  /** In memory: each revocation asks for them. */
  #downstreams: LedgerRow[];

  constructor(database: DatabaseSync, nowMs: number) {
    this.#database = database;
    this.#prune(nowMs);
    this.#latestMs = Number(database.prepare('SELECT max(issued_ms) AS at FROM svid').get()?.at ?? 0);
    this.#downstreams = database.prepare("SELECT * FROM svid WHERE profile = 'downstream'").all().map(rowOf);
    this.#insert = database.prepare('INSERT INTO svid VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)');
    this.#insertJwt = database.prepare('INSERT INTO jwt_svid VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?)');
  }

  /** When the latest certificate was issued: with a clock that was set back, later than now. */
  get latestMs(): number {
    return this.#latestMs;
  }

  /** All of them or none, on disk when it returns. Throws what SQLite throws. */
  append(rows: readonly LedgerRow[]): void {
    transaction(this.#database, () => {
      for (const row of rows) this.#insertRow(row);
    });
    for (const row of rows) {
      this.#latestMs = Math.max(this.#latestMs, row.issuedMs);
      if (row.profile === 'downstream') this.#downstreams.push(row);
    }
    this.#pruneDaily(rows[0]?.issuedMs ?? this.#prunedMs);
  }

  /** As append. */
  appendJwts(rows: readonly JwtRow[]): void {
    transaction(this.#database, () => {
      for (const { jti, authority, spiffeId, node, audience, issuedMs, expiresMs, requester } of rows) {
        const audiences = JSON.stringify(audience);
        this.#insertJwt.run(jti, authority, spiffeId, node, audiences, issuedMs, expiresMs, requester);
      }
    });
    this.#pruneDaily(rows[0]?.issuedMs ?? this.#prunedMs);
  }

  /** Certificates that have not ended at `nowMs`, newest first. */
  listLive(nowMs: number): LedgerRow[] {
    const rows = this.#database
      .prepare('SELECT * FROM svid WHERE not_after_ms >= ? ORDER BY id DESC LIMIT ?')
      .all(nowMs, MAX_LIST);
    return rows.map(rowOf);
  }

  /** Authorities of servers below that have not ended at `nowMs`. */
  liveDownstreams(nowMs: number): readonly LedgerRow[] {
    this.#downstreams = this.#downstreams.filter(({ notAfterMs }) => notAfterMs >= nowMs);
    return this.#downstreams;
  }

  /** Reads the whole table: an index on random serial numbers would cost each issued certificate a page of its own on disk. */
  bySerial(serial: string): LedgerRow | undefined {
    const row = this.#database.prepare('SELECT * FROM svid WHERE serial = ?').get(serial);
    return row === undefined ? undefined : rowOf(row);
  }

  /** When the last of what this authority signed ends. Unix ms; 0: it signed nothing that is still recorded. Reads the whole table. */
  lastEndMs(kind: 'x509' | 'jwt', authority: string): number {
    const query =
      kind === 'x509'
        ? 'SELECT max(not_after_ms) AS at FROM svid WHERE authority = ?'
        : 'SELECT max(expires_ms) AS at FROM jwt_svid WHERE authority = ?';
    return Number(this.#database.prepare(query).get(authority)?.at ?? 0);
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
      row.authority,
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
    this.#database.prepare('DELETE FROM jwt_svid WHERE expires_ms < ?').run(nowMs - JWT_RETENTION_MS);
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
    authority: row.authority as string,
    notBeforeMs: row.not_before_ms as number,
    notAfterMs: row.not_after_ms as number,
    issuedMs: row.issued_ms as number,
    requester: row.requester as string,
  };
}
