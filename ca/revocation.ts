/** What was taken back, for ever and in order. A revocation is on disk before anyone is told of it. */
import type { DatabaseSync } from 'node:sqlite';
import { CountersignError } from '../src/base/errors.ts';
import type { Revocation, RevocationSubject } from '../src/model/identity.ts';
import type { NodeName, SpiffeId } from '../src/model/ids.ts';
import { nodeNameOf } from '../src/model/spiffe-id.ts';
import { BACKDATE_SECONDS } from './profile.ts';

const MAX_REASON_LENGTH = 256;

export type RevocationTarget = Revocation['what'];

export class RevocationRegistry {
  readonly #database: DatabaseSync;
  readonly #revocations: Revocation[];

  constructor(database: DatabaseSync) {
    this.#database = database;
    this.#revocations = database.prepare('SELECT * FROM revocation ORDER BY sequence').all().map(revocationOf);
  }

  /**
   * Takes back every SVID that `what` names and that was issued up to now. An SVID carries its time of issue as a notBefore that is
   * backdated, so `issuedUntil` is too. One issued later within the same second falls under it as well: that errs to the safe side.
   */
  revoke(what: RevocationTarget, reason: string, nowMs: number): Revocation {
    if (reason.length > MAX_REASON_LENGTH) {
      throw new CountersignError('bad-input', `reason: longer than ${MAX_REASON_LENGTH} characters; shorten it`);
    }
    const [kind, name] = kindOf(what);
    const issuedUntil = Math.floor(nowMs / 1000) - BACKDATE_SECONDS;
    const done = this.#database
      .prepare('INSERT INTO revocation (kind, what, issued_until, reason, revoked_ms) VALUES (?, ?, ?, ?, ?)')
      .run(kind, name, issuedUntil, reason, nowMs);
    const revocation: Revocation = { sequence: BigInt(done.lastInsertRowid), what, issuedUntil, reason };
    this.#revocations.push(revocation);
    return revocation;
  }

  /** In the order of their sequence, which begins at 1 and is never used again. */
  list(): readonly Revocation[] {
    return this.#revocations;
  }

  isRevoked(subject: RevocationSubject): boolean {
    return this.#revocations.some((revocation) => concerns(revocation, subject));
  }
}

function concerns({ what, issuedUntil }: Revocation, subject: RevocationSubject): boolean {
  if ('serial' in what) return what.serial === subject.serial;
  if ('authority' in what) return subject.authorities?.includes(what.authority) ?? false;
  if (subject.notBeforeMs > issuedUntil * 1000) return false;
  if ('spiffeId' in what) return what.spiffeId === subject.spiffeId;
  return subject.node !== undefined && what.node === nodeNameOf(subject.node);
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
