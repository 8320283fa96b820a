/**
 * The authority's database: one SQLite file (0600, WAL) that one process holds alone. Everything the authority must remember but its private
 * keys is in it; ledger.ts, revocation.ts and slots.ts own its tables. Each table has a primary key, so that its changes can be replicated.
 */
import { chmodSync, closeSync, openSync, statSync } from 'node:fs';
import { DatabaseSync } from 'node:sqlite';
import { asError, CountersignError } from '../src/base/errors.ts';

/** What makes version n + 1 of version n; version 0 is an empty file. */
const MIGRATIONS = [
  `
  CREATE TABLE svid (
    serial TEXT NOT NULL,
    profile TEXT NOT NULL,
    spiffe_id TEXT NOT NULL,
    node TEXT,
    key_id TEXT NOT NULL,
    not_before_ms INTEGER NOT NULL,
    not_after_ms INTEGER NOT NULL,
    issued_ms INTEGER NOT NULL,
    requester TEXT NOT NULL
  ) STRICT;
  CREATE INDEX svid_by_not_after ON svid (not_after_ms);
  CREATE TABLE revocation (
    sequence INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,
    what TEXT NOT NULL,
    issued_until INTEGER NOT NULL,
    reason TEXT NOT NULL,
    revoked_ms INTEGER NOT NULL
  ) STRICT;
  `,
  // Version 1 knew one authority: slots.ts says which when it takes it over, and fills in svid.authority.
  `
  CREATE TABLE svid_2 (
    id INTEGER PRIMARY KEY,
    serial TEXT NOT NULL,
    profile TEXT NOT NULL,
    spiffe_id TEXT NOT NULL,
    node TEXT,
    key_id TEXT NOT NULL,
    authority TEXT NOT NULL,
    not_before_ms INTEGER NOT NULL,
    not_after_ms INTEGER NOT NULL,
    issued_ms INTEGER NOT NULL,
    requester TEXT NOT NULL
  ) STRICT;
  INSERT INTO svid_2
    SELECT rowid, serial, profile, spiffe_id, node, key_id, '', not_before_ms, not_after_ms, issued_ms, requester FROM svid;
  DROP TABLE svid;
  ALTER TABLE svid_2 RENAME TO svid;
  CREATE INDEX svid_by_not_after ON svid (not_after_ms);
  CREATE TABLE jwt_svid (
    id INTEGER PRIMARY KEY,
    jti TEXT NOT NULL,
    authority TEXT NOT NULL,
    spiffe_id TEXT NOT NULL,
    node TEXT NOT NULL,
    audience TEXT NOT NULL,
    issued_ms INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL,
    requester TEXT NOT NULL
  ) STRICT;
  CREATE INDEX jwt_svid_by_expiry ON jwt_svid (expires_ms);
  ALTER TABLE revocation ADD COLUMN settled INTEGER NOT NULL DEFAULT 0;
  CREATE TABLE revoked_svid (
    id INTEGER PRIMARY KEY,
    serial TEXT NOT NULL,
    authority TEXT NOT NULL,
    revoked_ms INTEGER NOT NULL,
    not_after_ms INTEGER NOT NULL,
    reason_code INTEGER NOT NULL,
    UNIQUE (authority, serial)
  ) STRICT;
  CREATE TABLE authority (
    key_id TEXT PRIMARY KEY,
    kind TEXT NOT NULL,
    id TEXT NOT NULL,
    state TEXT NOT NULL,
    key_type TEXT NOT NULL,
    not_before_ms INTEGER NOT NULL,
    not_after_ms INTEGER NOT NULL,
    tainted INTEGER NOT NULL,
    public_key BLOB NOT NULL,
    chain TEXT NOT NULL,
    roots TEXT NOT NULL,
    crl BLOB,
    crl_number INTEGER NOT NULL,
    crl_this_update_ms INTEGER NOT NULL,
    crl_next_update_ms INTEGER NOT NULL
  ) STRICT;
  CREATE TABLE counter (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT;
  `,
];

/** Commits are on disk when they return (synchronous=FULL). @throws CountersignError if another process holds it, a newer version wrote it, or it is broken: then it stays as it is. */
export function openStore(path: string): DatabaseSync {
  // SQLite would make it with the process's umask; its -wal file takes the mode of the file itself
  closeSync(openSync(path, 'a', 0o600));
  chmodSync(path, 0o600);
  let database: DatabaseSync | undefined;
  try {
    if (statSync(path).size > 0) check(path);
    database = new DatabaseSync(path);
    database.exec(`
      PRAGMA locking_mode = EXCLUSIVE;
      PRAGMA journal_mode = WAL;
      PRAGMA synchronous = FULL;
    `);
    migrate(database, path);
    return database;
  } catch (thrown) {
    database?.close();
    if (thrown instanceof CountersignError) throw thrown;
    const message = asError(thrown).message;
    if (message.includes('locked')) {
      throw new CountersignError('unavailable', `${path}: another process holds it; stop that one first`, {
        cause: thrown,
      });
    }
    throw new CountersignError('bad-input', `${path}: ${message}; restore it from a backup`, { cause: thrown });
  }
}

/**
 * Reads every page before anything may write one: opening for writing would carry over what a killed process left in the -wal file, and what is
 * broken must stay as it is for whoever is to mend it.
 */
function check(path: string): void {
  const database = new DatabaseSync(path, { readOnly: true });
  try {
    const found = database.prepare('PRAGMA quick_check(1)').get()?.quick_check;
    if (found !== 'ok') throw new CountersignError('bad-input', `${path}: ${found}; restore it from a backup`);
  } finally {
    database.close();
  }
}

function migrate(database: DatabaseSync, path: string): void {
  const version = database.prepare('PRAGMA user_version').get()?.user_version as number;
  if (version > MIGRATIONS.length) {
    throw new CountersignError('unsupported', `${path}: its schema ${version} is newer than this program; update it`);
  }
  const steps = MIGRATIONS.slice(version);
  if (steps.length > 0) {
    database.exec(`BEGIN; ${steps.join('')} PRAGMA user_version = ${MIGRATIONS.length}; COMMIT;`);
  }
}

/** All or nothing, on disk when it returns. Not to be nested. Throws what SQLite throws. */
export function transaction<T>(database: DatabaseSync, work: () => T): T {
  database.exec('BEGIN IMMEDIATE');
  try {
    const result = work();
    database.exec('COMMIT');
    return result;
  } catch (thrown) {
    // a full disk may have ended it already
    if (database.isTransaction) database.exec('ROLLBACK');
    throw thrown;
  }
}
