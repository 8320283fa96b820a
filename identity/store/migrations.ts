/**
 * The tables of identity.db and how each earlier version of them becomes the next. A migration is never changed once it was
 * released: what follows is a further one at the end. Every table has a primary key, as changes are replicated by it.
 */
import type { DatabaseSync } from 'node:sqlite';
import { CountersignError } from '../../src/base/errors.ts';

/** The nth makes version n of version n - 1; version 0 is an empty file. */
const migrations: readonly string[] = [
  `CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT;
   CREATE TABLE nodes (
     name TEXT PRIMARY KEY, node_id INTEGER NOT NULL UNIQUE, incarnation INTEGER NOT NULL,
     attested_at_ms INTEGER NOT NULL, not_after_ms INTEGER NOT NULL, evicted INTEGER NOT NULL, peer_addresses TEXT NOT NULL
   ) STRICT;
   CREATE TABLE tokens (hash BLOB PRIMARY KEY, node TEXT NOT NULL, expires_at_ms INTEGER NOT NULL) STRICT;
   CREATE TABLE entries (
     id TEXT PRIMARY KEY, origin TEXT NOT NULL, spiffe_id TEXT NOT NULL, node TEXT NOT NULL, selectors TEXT NOT NULL,
     hint TEXT NOT NULL, labels TEXT NOT NULL, ttl_seconds INTEGER NOT NULL, dns_names TEXT NOT NULL, barred INTEGER NOT NULL
   ) STRICT;
   CREATE TABLE identities (
     identity INTEGER PRIMARY KEY, spiffe_id TEXT NOT NULL, labels TEXT NOT NULL, UNIQUE (spiffe_id, labels)
   ) STRICT;
   CREATE TABLE checkpoints (
     node TEXT PRIMARY KEY, size INTEGER NOT NULL, root TEXT NOT NULL, text BLOB NOT NULL, received_at_ms INTEGER NOT NULL
   ) STRICT;`,
  "ALTER TABLE entries ADD COLUMN ports TEXT NOT NULL DEFAULT '[]';",
  // The certificates that version 2 issued are in use.
  `ALTER TABLE nodes ADD COLUMN used_incarnation INTEGER NOT NULL DEFAULT 0;
   ALTER TABLE nodes ADD COLUMN session_issued INTEGER NOT NULL DEFAULT 0;
   ALTER TABLE nodes ADD COLUMN session_confirmed INTEGER NOT NULL DEFAULT 0;
   UPDATE nodes SET used_incarnation = incarnation;`,
  // Version 3 knew join tokens only.
  `ALTER TABLE nodes ADD COLUMN attestor TEXT NOT NULL DEFAULT 'join_token';
   CREATE TABLE bans (name TEXT PRIMARY KEY, reason TEXT NOT NULL, at_ms INTEGER NOT NULL) STRICT;
   ALTER TABLE entries ADD COLUMN jwt_ttl_seconds INTEGER NOT NULL DEFAULT 0;
   ALTER TABLE entries ADD COLUMN federates_with TEXT NOT NULL DEFAULT '[]';
   ALTER TABLE entries ADD COLUMN admin INTEGER NOT NULL DEFAULT 0;
   CREATE TABLE federated_bundles (
     trust_domain TEXT PRIMARY KEY, document TEXT NOT NULL, origin TEXT NOT NULL, fetched_at_ms INTEGER NOT NULL
   ) STRICT;`,
  'ALTER TABLE entries ADD COLUMN downstream INTEGER NOT NULL DEFAULT 0;',
];

/** All of the steps or none. @throws CountersignError unsupported: a later version of the program wrote it */
export function migrate(database: DatabaseSync, path: string): void {
  const version = Number(database.prepare('PRAGMA user_version').get()!.user_version);
  if (version > migrations.length) {
    throw new CountersignError('unsupported', `${path} was written by a later version of the server; use that one`);
  }
  const steps = migrations.slice(version);
  if (steps.length === 0) return;
  database.exec('BEGIN IMMEDIATE');
  try {
    for (const step of steps) database.exec(step);
    // a pragma takes no parameter
    database.exec(`PRAGMA user_version = ${migrations.length}; COMMIT`);
  } catch (thrown) {
    if (database.isTransaction) database.exec('ROLLBACK');
    throw thrown;
  }
}
