import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { Store } from '../../../identity/store.ts';
import type { Labels } from '../../../src/model/identity.ts';
import type { NodeName, SpiffeId } from '../../../src/model/ids.ts';

let dir: string;
let path: string;

beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'cs-store-'));
  path = join(dir, 'identity.db');
});
afterEach(() => rmSync(dir, { recursive: true, force: true }));

/** The tables as each released version made them, and rows as it wrote them. */
const earlier: Record<number, string> = {
  1: `
    CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT;
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
    ) STRICT;
    INSERT INTO counters VALUES ('version', 41), ('node_id', 7), ('identity', 300);
    INSERT INTO nodes VALUES ('node-a', 7, 3, 1000, 2000, 0, '["10.0.0.1:4250"]');
    INSERT INTO tokens VALUES (x'01', 'node-a', 9000);
    INSERT INTO entries VALUES ('frontend', 'admin', 'spiffe://example.org/frontend', 'node-a', '["unix:uid:1"]', '',
      '{"app":"frontend"}', 600, '["frontend.example"]', 1);
    INSERT INTO identities VALUES (300, 'spiffe://example.org/frontend', '[["app","frontend"]]');
    INSERT INTO checkpoints VALUES ('node-a', 5, 'cm9vdA==', x'6e6f7465', 1234);`,
};
earlier[2] = `${earlier[1]}
  ALTER TABLE entries ADD COLUMN ports TEXT NOT NULL DEFAULT '[]';
  UPDATE entries SET ports = '[{"name":"http","protocol":6,"port":80}]';`;
earlier[3] = `${earlier[2]}
  ALTER TABLE nodes ADD COLUMN used_incarnation INTEGER NOT NULL DEFAULT 0;
  ALTER TABLE nodes ADD COLUMN session_issued INTEGER NOT NULL DEFAULT 0;
  ALTER TABLE nodes ADD COLUMN session_confirmed INTEGER NOT NULL DEFAULT 0;
  UPDATE nodes SET used_incarnation = 2, session_issued = 9, session_confirmed = 8;`;
earlier[4] = `${earlier[3]}
  ALTER TABLE nodes ADD COLUMN attestor TEXT NOT NULL DEFAULT 'join_token';
  CREATE TABLE bans (name TEXT PRIMARY KEY, reason TEXT NOT NULL, at_ms INTEGER NOT NULL) STRICT;
  ALTER TABLE entries ADD COLUMN jwt_ttl_seconds INTEGER NOT NULL DEFAULT 0;
  ALTER TABLE entries ADD COLUMN federates_with TEXT NOT NULL DEFAULT '[]';
  ALTER TABLE entries ADD COLUMN admin INTEGER NOT NULL DEFAULT 0;
  CREATE TABLE federated_bundles (
    trust_domain TEXT PRIMARY KEY, document TEXT NOT NULL, origin TEXT NOT NULL, fetched_at_ms INTEGER NOT NULL
  ) STRICT;
  UPDATE nodes SET attestor = 'x509pop';
  UPDATE entries SET jwt_ttl_seconds = 60, federates_with = '["other.org"]', admin = 1;`;

function write(version: number): void {
  const database = new DatabaseSync(path);
  database.exec(`PRAGMA journal_mode = WAL; ${earlier[version]} PRAGMA user_version = ${version};`);
  database.close();
}

function columnsOf(file: string): string[] {
  const database = new DatabaseSync(file, { readOnly: true });
  const rows = database
    .prepare(
      'SELECT m.name AS tbl, c.* FROM sqlite_master m, pragma_table_info(m.name) c WHERE m.type = ? ORDER BY 1, 2',
    )
    .all('table');
  database.close();
  return rows.map((row) => JSON.stringify(row));
}

describe.each([1, 2, 3, 4])('a database of version %i', (version) => {
  test('keeps every row, and what it did not know has the value that was true then', () => {
    write(version);
    const store = new Store(path);
    expect(store.current('version')).toBe(41);
    expect(store.next('node_id')).toBe(8);
    expect(store.node('node-a')).toEqual({
      name: 'node-a',
      nodeId: 7,
      incarnation: 3,
      attestedAtMs: 1000,
      notAfterMs: 2000,
      evicted: false,
      peerAddresses: ['10.0.0.1:4250'],
      // before version 3 a certificate was in use as soon as it was issued
      usedIncarnation: version < 3 ? 3 : 2,
      sessionIssued: version < 3 ? 0 : 9,
      sessionConfirmed: version < 3 ? 0 : 8,
      attestor: version < 4 ? 'join_token' : 'x509pop',
    });
    expect(store.entries()).toEqual([
      {
        id: 'frontend',
        origin: 'admin',
        spiffeId: 'spiffe://example.org/frontend',
        node: 'node-a',
        selectors: ['unix:uid:1'],
        hint: '',
        labels: { app: 'frontend' },
        ports: version < 2 ? [] : [{ name: 'http', protocol: 6, port: 80 }],
        ttlSeconds: 600,
        jwtTtlSeconds: version < 4 ? 0 : 60,
        dnsNames: ['frontend.example'],
        federatesWith: version < 4 ? [] : ['other.org'],
        admin: version === 4,
        downstream: false,
        barred: true,
      },
    ]);
    expect(store.identityOf('spiffe://example.org/frontend' as SpiffeId, { app: 'frontend' } as Labels)).toBe(300);
    expect(store.tokensOf('node-a')).toEqual([{ hash: Buffer.of(1), node: 'node-a', expiresAtMs: 9000 }]);
    expect(store.checkpoint('node-a')).toMatchObject({ size: 5, text: Buffer.from('note') });
    store.close();
  });

  test('has the very tables of a new one afterwards', () => {
    write(version);
    new Store(path).close();
    const fresh = join(dir, 'fresh.db');
    new Store(fresh).close();
    expect(columnsOf(path)).toEqual(columnsOf(fresh));
  });
});

test('every table has a primary key: changes are replicated by it', () => {
  new Store(path).close();
  const database = new DatabaseSync(path, { readOnly: true });
  const without = database
    .prepare(
      `SELECT name FROM sqlite_master m WHERE type = 'table'
       AND NOT EXISTS (SELECT 1 FROM pragma_table_info(m.name) WHERE pk > 0)`,
    )
    .all();
  database.close();
  expect(without).toEqual([]);
});

test('a database of a later version is refused and left as it is', () => {
  new Store(path).close();
  const database = new DatabaseSync(path);
  database.exec('PRAGMA user_version = 99');
  database.close();
  const before = readFileSync(path);
  expect(() => new Store(path)).toThrow(/written by a later version/);
  expect(readFileSync(path).equals(before)).toBe(true);
});

test('a damaged database is refused with what to do, and not one byte of it is changed', () => {
  const store = new Store(path);
  for (let i = 0; i < 200; i++) store.addToken({ hash: Buffer.alloc(32, i), node: 'n' as NodeName, expiresAtMs: i });
  store.close();
  const bytes = readFileSync(path);
  bytes.fill(0x5a, 4096, 4096 * 6);
  writeFileSync(path, bytes);
  expect(() => new Store(path)).toThrow(/identity\.db: .*left as it is.*countersign server restore/);
  expect(readFileSync(path).equals(bytes)).toBe(true);
});

test('what is no database at all is refused in the same way', () => {
  writeFileSync(
    path,
    'this is a text file, put here by mistake; it is long enough to be taken for a header of SQLite or not',
  );
  expect(() => new Store(path)).toThrow(/left as it is/);
});

test('the file is the owner’s alone', () => {
  new Store(path).close();
  expect(statSync(path).mode & 0o777).toBe(0o600);
});
