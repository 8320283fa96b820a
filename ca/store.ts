/** The authority's database: one SQLite file (0600, WAL) that one process holds alone. ledger.ts and revocation.ts own its tables. */
import { chmodSync, closeSync, openSync } from 'node:fs';
import { DatabaseSync } from 'node:sqlite';
import { asError, CountersignError } from '../src/base/errors.ts';

const SCHEMA_VERSION = 1;

const SCHEMA = `
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
  PRAGMA user_version = ${SCHEMA_VERSION};
`;

/** Commits are on disk when they return (synchronous=FULL). @throws CountersignError if another process holds it or a newer version wrote it. */
export function openStore(path: string): DatabaseSync {
  // SQLite would make it with the process's umask; its -wal file takes the mode of the file itself
  closeSync(openSync(path, 'a', 0o600));
  chmodSync(path, 0o600);
  let database: DatabaseSync | undefined;
  try {
    database = new DatabaseSync(path);
    database.exec(`
      PRAGMA locking_mode = EXCLUSIVE;
      PRAGMA journal_mode = WAL;
      PRAGMA synchronous = FULL;
    `);
    const version = database.prepare('PRAGMA user_version').get()?.user_version;
    if (version === 0) database.exec(`BEGIN; ${SCHEMA} COMMIT;`);
    else if (version !== SCHEMA_VERSION) {
      throw new CountersignError('unsupported', `${path}: its schema ${version} is newer than this program; update it`);
    }
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
