/** What was taken back, for ever and in order, and which certificates that is. A revocation is on disk before anyone is told of it. */
import type { DatabaseSync } from 'node:sqlite';
import { CountersignError } from '../src/base/errors.ts';
import type { Revocation, RevocationSubject } from '../src/model/identity.ts';
import type { NodeName, SpiffeId, TrustDomain } from '../src/model/ids.ts';
import { nodeNameOf, nodeSpiffeId } from '../src/model/spiffe-id.ts';
import { type CrlEntry, REASON_CODES } from './crl.ts';
import { BACKDATE_SECONDS } from './profile.ts';
import { transaction } from './store.ts';

const MAX_REASON_LENGTH = 256;
/** A certificate that was being issued while its name was revoked is in the ledger by then. */
const SETTLING_MS = 2000;

/** Live certificates that a revocation may name. A workload's is bound to its node; a node's own names it, and has no node. */
const FIND = `
  SELECT serial, authority, spiffe_id, node, not_before_ms, not_after_ms FROM svid
  WHERE not_after_ms >= ?1 AND (
    serial IN (SELECT value FROM json_each(?2)) OR authority IN (SELECT value FROM json_each(?3))
    OR spiffe_id IN (SELECT value FROM json_each(?4)) OR node IN (SELECT value FROM json_each(?5))
    OR (profile = 'node' AND spiffe_id IN (SELECT value FROM json_each(?5))))`;
const INSERT = `
  INSERT OR IGNORE INTO revoked_svid (serial, authority, revoked_ms, not_after_ms, reason_code) VALUES (?, ?, ?, ?, ?)`;

export type RevocationTarget = Revocation['what'];

/** Times are Unix ms. */
export interface RevocationTimes {
  readonly nowMs: number;
  /** When the latest certificate was issued: with a clock that was set back, later than now. */
  readonly latestIssueMs: number;
}

export class RevocationRegistry {
  readonly #database: DatabaseSync;
  readonly #trustDomain: TrustDomain;
  readonly #revocations: Revocation[] = [];
  readonly #serials = new Set<string>();
  readonly #authorities = new Set<string>();
  /** Unix seconds until which what has this name is revoked. */
  readonly #spiffeIds = new Map<string, number>();
  readonly #nodes = new Map<string, number>();

  constructor(database: DatabaseSync, trustDomain: TrustDomain) {
    this.#database = database;
    this.#trustDomain = trustDomain;
    for (const row of database.prepare('SELECT * FROM revocation ORDER BY sequence').all()) {
      this.#remember(revocationOf(row));
    }
  }

  /**
   * Takes back every SVID that `what` names and that was issued up to now. An SVID carries its time of issue as a notBefore that is
   * backdated, so `issuedUntil` is too. One issued later within the same second falls under it as well: that errs to the safe side. With a
   * clock that was set back, so does everything that is issued until the clock is again where it was.
   */
  revoke(what: RevocationTarget, reason: string, times: RevocationTimes): Revocation {
    const revocation = this.#record(what, reason, times);
    this.#remember(revocation);
    return revocation;
  }

  /** All of them or none, in this order. */
  revokeAll(whats: readonly RevocationTarget[], reason: string, times: RevocationTimes): Revocation[] {
    const made = transaction(this.#database, () => whats.map((what) => this.#record(what, reason, times)));
    for (const revocation of made) this.#remember(revocation);
    return made;
  }

  /** In the order of their sequence, which begins at 1 and is never used again. */
  list(): readonly Revocation[] {
    return this.#revocations;
  }

  isRevoked({ spiffeId, serial, node, notBeforeMs, authorities }: RevocationSubject): boolean {
    if (this.#serials.has(serial)) return true;
    if (authorities?.some((id) => this.#authorities.has(id)) === true) return true;
    if (notBeforeMs <= (this.#spiffeIds.get(spiffeId) ?? Number.NEGATIVE_INFINITY) * 1000) return true;
    const name = node === undefined ? undefined : nodeNameOf(node);
    return name !== undefined && notBeforeMs <= (this.#nodes.get(name) ?? Number.NEGATIVE_INFINITY) * 1000;
  }

  /**
   * Finds the certificates that fresh revocations take back, by the ledger.
   * @returns ms after which it is to be asked again; undefined: all are found.
   */
  settle(nowMs: number): number | undefined {
    const fresh = this.#database.prepare('SELECT * FROM revocation WHERE settled = 0 ORDER BY sequence').all();
    if (fresh.length === 0) return undefined;
    let again = false;
    transaction(this.#database, () => {
      this.#find(fresh, nowMs);
      const settle = this.#database.prepare('UPDATE revocation SET settled = 1 WHERE sequence = ?');
      for (const row of fresh) {
        const age = nowMs - (row.revoked_ms as number);
        // a clock that was set back: nothing that was asked for before is still under way
        if (age < 0 || age >= SETTLING_MS) settle.run(row.sequence as number);
        else again = true;
      }
    });
    return again ? SETTLING_MS : undefined;
  }

  /** Revoked certificates of an authority that end at `sinceMs` or later, in the order in which they were found. */
  entriesOf(authority: string, sinceMs: number): CrlEntry[] {
    return this.#database
      .prepare(
        'SELECT serial, revoked_ms, reason_code FROM revoked_svid WHERE authority = ? AND not_after_ms >= ? ORDER BY id',
      )
      .all(authority, sinceMs)
      .map((row) => ({
        serial: row.serial as string,
        revokedMs: row.revoked_ms as number,
        reasonCode: row.reason_code as number,
      }));
  }

  /** Forgets revoked certificates that ended before `ms`: they have been on a CRL that was issued after their end. */
  forgetEnded(authority: string, ms: number): void {
    this.#database.prepare('DELETE FROM revoked_svid WHERE authority = ? AND not_after_ms < ?').run(authority, ms);
  }

  #record(what: RevocationTarget, reason: string, { nowMs, latestIssueMs }: RevocationTimes): Revocation {
    checkReason(reason);
    const [kind, name] = kindOf(what);
    const issuedUntil = Math.floor(Math.max(nowMs, latestIssueMs) / 1000) - BACKDATE_SECONDS;
    const done = this.#database
      .prepare('INSERT INTO revocation (kind, what, issued_until, reason, revoked_ms) VALUES (?, ?, ?, ?, ?)')
      .run(kind, name, issuedUntil, reason, nowMs);
    return { sequence: BigInt(done.lastInsertRowid), what, issuedUntil, reason };
  }

  /** Reads the ledger once, however many revocations there are. */
  #find(fresh: readonly Record<string, unknown>[], nowMs: number): void {
    const named = (kind: string) =>
      new Map(fresh.flatMap((row) => (row.kind === kind ? [[row.what as string, row]] : [])));
    const [serials, authorities, spiffeIds] = [named('serial'), named('authority'), named('spiffe-id')];
    const nodes = new Map(
      [...named('node')].map(([name, row]) => [nodeSpiffeId(this.#trustDomain, name as NodeName) as string, row]),
    );
    const list = (map: ReadonlyMap<string, unknown>) => JSON.stringify([...map.keys()]);
    const candidates = this.#database
      .prepare(FIND)
      .iterate(nowMs, list(serials), list(authorities), list(spiffeIds), list(nodes));
    const found = [...candidates].flatMap((svid) => {
      const inTime = (row: Record<string, unknown> | undefined) =>
        row !== undefined && (svid.not_before_ms as number) <= (row.issued_until as number) * 1000 ? row : undefined;
      const row =
        serials.get(svid.serial as string) ??
        authorities.get(svid.authority as string) ??
        inTime(spiffeIds.get(svid.spiffe_id as string)) ??
        inTime(nodes.get((svid.node ?? svid.spiffe_id) as string));
      return row === undefined ? [] : [{ svid, row }];
    });
    const insert = this.#database.prepare(INSERT);
    for (const { svid, row } of found) {
      const { serial, authority, not_after_ms: endMs } = svid as Record<string, string | number>;
      insert.run(serial!, authority!, row.revoked_ms as number, endMs!, reasonCodeOf(revocationOf(row)));
    }
  }

  #remember(revocation: Revocation): void {
    this.#revocations.push(revocation);
    const { what, issuedUntil } = revocation;
    const until = (map: Map<string, number>, name: string) =>
      map.set(name, Math.max(map.get(name) ?? Number.NEGATIVE_INFINITY, issuedUntil));
    if ('serial' in what) this.#serials.add(what.serial);
    else if ('authority' in what) this.#authorities.add(what.authority);
    else if ('spiffeId' in what) until(this.#spiffeIds, what.spiffeId);
    else until(this.#nodes, what.node);
  }
}

/** @throws CountersignError bad-input */
export function checkReason(reason: string): void {
  if (reason.length > MAX_REASON_LENGTH) {
    throw new CountersignError('bad-input', `reason: longer than ${MAX_REASON_LENGTH} characters; shorten it`);
  }
}

/** The CRL's, if the reason is one of its names; else what the kind of revocation says. */
function reasonCodeOf({ what, reason }: Revocation): number {
  const named = Object.hasOwn(REASON_CODES, reason) ? REASON_CODES[reason] : undefined;
  if (named !== undefined) return named;
  if ('authority' in what) return REASON_CODES.cACompromise!;
  return 'serial' in what ? REASON_CODES.unspecified! : REASON_CODES.privilegeWithdrawn!;
}

function kindOf(what: RevocationTarget): [kind: string, name: string] {
  if ('spiffeId' in what) return ['spiffe-id', what.spiffeId];
  if ('serial' in what) {
    if (!/^([0-9a-f]{2}){1,20}$/.test(what.serial)) {
      throw new CountersignError(
        'bad-input',
        'serial: not a serial number; give it in lower-case hex, as svid list shows it',
      );
    }
    return ['serial', what.serial];
  }
  if ('authority' in what) return ['authority', what.authority];
  return ['node', what.node];
}

/** Only this file writes the table. */
function revocationOf(row: Record<string, unknown>): Revocation {
  const name = row.what as string;
  const what: RevocationTarget =
    row.kind === 'spiffe-id'
      ? { spiffeId: name as SpiffeId }
      : row.kind === 'serial'
        ? { serial: name }
        : row.kind === 'authority'
          ? { authority: name }
          : { node: name as NodeName };
  return {
    sequence: BigInt(row.sequence as number),
    what,
    issuedUntil: row.issued_until as number,
    reason: row.reason as string,
  };
}
