/** Opens identity.db: private, whole, of this version's tables. */
import { chmodSync, closeSync, openSync, statSync } from 'node:fs';
import { DatabaseSync } from 'node:sqlite';
import { asError, CountersignError } from '../../src/base/errors.ts';
import { migrate } from './migrations.ts';

/** Commits are on disk when they return. @throws CountersignError if it is damaged or of a later version; it is left as it is */
export function openDatabase(path: string): DatabaseSync {
  // made before SQLite does, so that it never exists with another mode; -wal and -shm follow the database's
  closeSync(openSync(path, 'a', 0o600));
  chmodSync(path, 0o600);
  let database: DatabaseSync | undefined;
  try {
    if (statSync(path).size > 0) checkWhole(path);
    database = new DatabaseSync(path);
    database.exec('PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA secure_delete = ON;');
    migrate(database, path);
    return database;
  } catch (thrown) {
    database?.close();
    if (thrown instanceof CountersignError) throw thrown;
    const fault = asError(thrown).message.replaceAll('\n', ' ');
    const message = `${path}: ${fault}; it was left as it is: use countersign server restore`;
    throw new CountersignError('bad-input', message, { cause: thrown });
  }
}

/** Read only: what is broken stays as it is for whoever is to mend it. Throws what SQLite throws, or the first fault it finds. */
export function checkWhole(path: string): void {
  const database = new DatabaseSync(path, { readOnly: true });
  try {
    const found = database.prepare('PRAGMA quick_check(1)').get()!.quick_check;
    if (found !== 'ok') throw new Error(String(found));
  } finally {
    database.close();
  }
}
