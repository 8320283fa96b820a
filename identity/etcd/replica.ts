/** A standby's databases: what the leader's were after some entry of the log. */
import { mkdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { constants, DatabaseSync } from 'node:sqlite';
import { CountersignError } from '../../src/base/errors.ts';
import type { EtcdStore } from './client.ts';
import { type Changes, DATABASES, type DatabaseName, HEAD, logKey, type SnapshotInfo } from './layout.ts';
import { readEntry } from './leader-log.ts';
import { currentSnapshot, ENDED, loadSnapshot } from './snapshot.ts';

/** Of entries, each of half a megabyte at most. */
const BATCH = 100;

export class Replica {
  readonly #etcd: EtcdStore;
  readonly directory: string;
  #databases: Partial<Record<DatabaseName, DatabaseSync>> = {};
  #sequence = 0;
  #snapshot: SnapshotInfo | undefined;

  /** What is in the directory is thrown away: only what etcd has counts. */
  constructor(etcd: EtcdStore, directory: string) {
    this.#etcd = etcd;
    this.directory = directory;
    this.#clear();
  }

  get sequence(): number {
    return this.#sequence;
  }

  get snapshot(): SnapshotInfo | undefined {
    return this.#snapshot;
  }

  get paths(): Record<DatabaseName, string> {
    return { identity: join(this.directory, 'identity.db'), ledger: join(this.directory, 'ca/ledger.db') };
  }

  /** Takes what came since the last time. Resolves when it has what etcd had when it was called. @throws CountersignError */
  async catchUp(): Promise<void> {
    const head = Number((await this.#etcd.get(HEAD)) ?? 0);
    if (this.#snapshot === undefined && !(await this.#load())) return;
    let failed: number | undefined;
    while (this.#sequence < head) {
      const found = await this.#etcd.range(logKey(this.#sequence + 1), logKey(head + 1), BATCH);
      let isWhole = found.length > 0;
      for (const [key, value] of found) {
        const changes =
          key === logKey(this.#sequence + 1) ? await readEntry(this.#etcd, this.#sequence + 1, value) : undefined;
        isWhole = changes !== undefined && this.#apply(changes);
        if (!isWhole) break;
        this.#sequence += 1;
      }
      if (isWhole) continue;
      if (failed === this.#sequence) {
        const message = `the change ${failed + 1} in etcd does not fit what is before it; restore a backup`;
        throw new CountersignError('internal', message);
      }
      // a snapshot took its place, or this copy went another way: once more from the snapshot
      failed = this.#sequence;
      if (!(await this.#load())) return;
    }
  }

  /** Closes the files, so that a server may open them. */
  close(): void {
    for (const name of DATABASES) this.#databases[name]?.close();
    this.#databases = {};
  }

  /** False: there is none, nobody ever served. */
  async #load(): Promise<boolean> {
    for (;;) {
      this.#clear();
      const info = await currentSnapshot(this.#etcd);
      if (info === undefined) return false;
      if (!(await loadSnapshot(this.#etcd, info, this.paths))) continue;
      for (const name of DATABASES) {
        const database = new DatabaseSync(this.paths[name]);
        // etcd is where it is safe: this copy is made anew at each start
        database.exec('PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF;');
        this.#databases[name] = database;
      }
      this.#sequence = info.sequence;
      this.#snapshot = info;
      return true;
    }
  }

  /** Both databases' part, or neither's. */
  #apply(changes: Changes): boolean {
    for (const name of DATABASES) this.#databases[name]!.exec('BEGIN');
    const applied = DATABASES.every((name) => applyChanges(this.#databases[name]!, changes[name]));
    for (const name of DATABASES) this.#databases[name]!.exec(applied ? 'COMMIT' : 'ROLLBACK');
    return applied;
  }

  #clear(): void {
    this.close();
    this.#sequence = 0;
    this.#snapshot = undefined;
    rmSync(this.directory, { recursive: true, force: true });
    mkdirSync(join(this.directory, 'ca'), { recursive: true, mode: 0o700 });
  }
}

/** False if a row was not what it was for the leader. Records that a snapshot leaves out may be missing where the leader removes them. */
function applyChanges(database: DatabaseSync, changes: Uint8Array): boolean {
  if (changes.length === 0) return true;
  const isEnded = (table: string) => ENDED[table] !== undefined;
  const abort = constants.SQLITE_CHANGESET_ABORT;
  const strict = database.applyChangeset(changes, { filter: (table) => !isEnded(table), onConflict: () => abort });
  const lenient = database.applyChangeset(changes, {
    filter: isEnded,
    onConflict: (type) => (type === constants.SQLITE_CHANGESET_NOTFOUND ? constants.SQLITE_CHANGESET_OMIT : abort),
  });
  return strict && lenient;
}
