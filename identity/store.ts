/**
 * What the identity server must not forget, in one SQLite file of mode 0600: nodes with their ids and incarnations, join
 * tokens (only their SHA-256), entries, security identities, versions, checkpoints. What was issued and revoked is the CA's. No rules live here.
 */
import { chmodSync, closeSync, openSync } from 'node:fs';
import { DatabaseSync, type SQLInputValue } from 'node:sqlite';
import { CountersignError } from '../src/base/errors.ts';
import type { Labels, NamedPort } from '../src/model/identity.ts';
import type { NodeName, SpiffeId, TrustDomain } from '../src/model/ids.ts';

const SCHEMA_VERSION = 4;
const schema = `
CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS nodes (
  name TEXT PRIMARY KEY, node_id INTEGER NOT NULL UNIQUE, incarnation INTEGER NOT NULL,
  attested_at_ms INTEGER NOT NULL, not_after_ms INTEGER NOT NULL, evicted INTEGER NOT NULL, peer_addresses TEXT NOT NULL,
  used_incarnation INTEGER NOT NULL DEFAULT 0, session_issued INTEGER NOT NULL DEFAULT 0,
  session_confirmed INTEGER NOT NULL DEFAULT 0, attestor TEXT NOT NULL DEFAULT 'join_token'
) STRICT;
CREATE TABLE IF NOT EXISTS bans (name TEXT PRIMARY KEY, reason TEXT NOT NULL, at_ms INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS tokens (
  hash BLOB PRIMARY KEY, node TEXT NOT NULL, expires_at_ms INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS entries (
  id TEXT PRIMARY KEY, origin TEXT NOT NULL, spiffe_id TEXT NOT NULL, node TEXT NOT NULL, selectors TEXT NOT NULL,
  hint TEXT NOT NULL, labels TEXT NOT NULL, ttl_seconds INTEGER NOT NULL, dns_names TEXT NOT NULL, barred INTEGER NOT NULL,
  ports TEXT NOT NULL DEFAULT '[]', jwt_ttl_seconds INTEGER NOT NULL DEFAULT 0,
  federates_with TEXT NOT NULL DEFAULT '[]', admin INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE IF NOT EXISTS identities (
  identity INTEGER PRIMARY KEY, spiffe_id TEXT NOT NULL, labels TEXT NOT NULL, UNIQUE (spiffe_id, labels)
) STRICT;
CREATE TABLE IF NOT EXISTS checkpoints (
  node TEXT PRIMARY KEY, size INTEGER NOT NULL, root TEXT NOT NULL, text BLOB NOT NULL, received_at_ms INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS federated_bundles (
  trust_domain TEXT PRIMARY KEY, document TEXT NOT NULL, origin TEXT NOT NULL, fetched_at_ms INTEGER NOT NULL
) STRICT;
`;

export interface NodeRecord {
  readonly name: NodeName;
  readonly nodeId: number;
  readonly incarnation: number;
  readonly attestedAtMs: number;
  readonly notAfterMs: number;
  /** Taken back: only a fresh token lets it in again. */
  readonly evicted: boolean;
  readonly peerAddresses: readonly string[];
  /** The highest incarnation whose certificate the node has shown: until it shows the next one, it may ask for that again. */
  readonly usedIncarnation: number;
  /** Number of the last Sync stream, */
  readonly sessionIssued: number;
  /** and of the last one that its node has on disk. */
  readonly sessionConfirmed: number;
  /** How it proved last what it is: "join_token", "x509pop". */
  readonly attestor: string;
}

/** A name under which nobody may attest. */
export interface BanRecord {
  readonly name: NodeName;
  readonly reason: string;
  readonly atMs: number;
}

export interface EntryRecord {
  readonly id: string;
  readonly origin: 'file' | 'admin';
  readonly spiffeId: SpiffeId;
  readonly node: NodeName;
  readonly selectors: readonly string[];
  readonly hint: string;
  readonly labels: Labels;
  /** Sorted by name and protocol. */
  readonly ports: readonly NamedPort[];
  readonly ttlSeconds: number;
  readonly dnsNames: readonly string[];
  /** 0: the default. */
  readonly jwtTtlSeconds: number;
  /** Trust domains whose bundles its workload gets besides its own. Sorted. */
  readonly federatesWith: readonly TrustDomain[];
  /** An SVID of it may administer the server. */
  readonly admin: boolean;
  /** Its SPIFFE ID was revoked after it was registered: nothing is issued until it is registered anew. */
  readonly barred: boolean;
}

export interface IdentityRecord {
  readonly identity: number;
  readonly spiffeId: SpiffeId;
  readonly labels: Labels;
}

export interface CheckpointRecord {
  readonly node: NodeName;
  readonly size: number;
  readonly root: string;
  readonly text: Buffer;
  readonly receivedAtMs: number;
}

export interface FederatedBundleRecord {
  readonly trustDomain: TrustDomain;
  /** SPIFFE bundle document, JSON. */
  readonly document: string;
  readonly origin: 'endpoint' | 'admin';
  /** When it was fetched or set last. */
  readonly fetchedAtMs: number;
}

export interface TokenRecord {
  readonly hash: Buffer;
  readonly node: NodeName;
  readonly expiresAtMs: number;
}

type Row = Record<string, SQLInputValue>;
type Counter = 'version' | 'node_id' | 'identity';

/** Keys sorted, so that equal label sets are equal text. */
export function canonicalLabels(labels: Labels): string {
  return JSON.stringify(Object.entries(labels).sort(([a], [b]) => (a < b ? -1 : 1)));
}

export class Store {
  readonly #db: DatabaseSync;

  /** @throws CountersignError if the file is of a later version. */
  constructor(path: string) {
    // made before SQLite does, so that it never exists with another mode; -wal and -shm follow the database's
    closeSync(openSync(path, 'a', 0o600));
    chmodSync(path, 0o600);
    this.#db = new DatabaseSync(path);
    this.#db.exec('PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA secure_delete = ON;');
    const version = Number(this.#db.prepare('PRAGMA user_version').get()?.user_version ?? 0);
    if (version > SCHEMA_VERSION) {
      this.#db.close();
      throw new CountersignError('unsupported', `${path} was written by a later version of the server; use that one`);
    }
    // Version 1 had no ports.
    if (version === 1) this.#db.exec("ALTER TABLE entries ADD COLUMN ports TEXT NOT NULL DEFAULT '[]'");
    // Version 2 had no sessions; the certificates it issued are in use.
    if (version === 1 || version === 2) {
      this.#db.exec(`
        ALTER TABLE nodes ADD COLUMN used_incarnation INTEGER NOT NULL DEFAULT 0;
        ALTER TABLE nodes ADD COLUMN session_issued INTEGER NOT NULL DEFAULT 0;
        ALTER TABLE nodes ADD COLUMN session_confirmed INTEGER NOT NULL DEFAULT 0;
        UPDATE nodes SET used_incarnation = incarnation;`);
    }
    // Version 3 knew join tokens only, and entries of fewer fields.
    if (version >= 1 && version <= 3) {
      this.#db.exec(`
        ALTER TABLE nodes ADD COLUMN attestor TEXT NOT NULL DEFAULT 'join_token';
        ALTER TABLE entries ADD COLUMN jwt_ttl_seconds INTEGER NOT NULL DEFAULT 0;
        ALTER TABLE entries ADD COLUMN federates_with TEXT NOT NULL DEFAULT '[]';
        ALTER TABLE entries ADD COLUMN admin INTEGER NOT NULL DEFAULT 0;`);
    }
    this.#db.exec(`${schema} PRAGMA user_version = ${SCHEMA_VERSION};`);
  }

  /** All or nothing. Not to be nested. */
  transaction<T>(work: () => T): T {
    this.#db.exec('BEGIN IMMEDIATE');
    try {
      const result = work();
      this.#db.exec('COMMIT');
      return result;
    } catch (thrown) {
      this.#db.exec('ROLLBACK');
      throw thrown;
    }
  }

  /** The next number of a counter, never the same again. The first is `first`. */
  next(counter: Counter, first = 1): number {
    const row = this.#get(
      'INSERT INTO counters VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + 1 RETURNING value',
      counter,
      first,
    );
    return row!.value as number;
  }

  /** The last number given, or 0. */
  current(counter: Counter): number {
    return (this.#get('SELECT value FROM counters WHERE name = ?', counter)?.value ?? 0) as number;
  }

  putNode(node: NodeRecord): void {
    this.#run(
      'INSERT OR REPLACE INTO nodes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)',
      node.name,
      node.nodeId,
      node.incarnation,
      node.attestedAtMs,
      node.notAfterMs,
      node.evicted ? 1 : 0,
      JSON.stringify(node.peerAddresses),
      node.usedIncarnation,
      node.sessionIssued,
      node.sessionConfirmed,
      node.attestor,
    );
  }

  putBan(ban: BanRecord): void {
    this.#run('INSERT OR REPLACE INTO bans VALUES (?, ?, ?)', ban.name, ban.reason, ban.atMs);
  }

  /** False if there was none. */
  deleteBan(name: string): boolean {
    return this.#run('DELETE FROM bans WHERE name = ?', name) === 1;
  }

  bans(): BanRecord[] {
    return this.#all('SELECT * FROM bans ORDER BY name').map((row) => ({
      name: row.name as NodeName,
      reason: row.reason as string,
      atMs: row.at_ms as number,
    }));
  }

  node(name: string): NodeRecord | undefined {
    const row = this.#get('SELECT * FROM nodes WHERE name = ?', name);
    return row === undefined ? undefined : nodeOf(row);
  }

  nodes(): NodeRecord[] {
    return this.#all('SELECT * FROM nodes ORDER BY name').map(nodeOf);
  }

  addToken(token: TokenRecord): void {
    this.#run('INSERT INTO tokens VALUES (?, ?, ?)', token.hash, token.node, token.expiresAtMs);
  }

  tokensOf(node: string): TokenRecord[] {
    return this.#all('SELECT * FROM tokens WHERE node = ?', node).map((row) => ({
      hash: Buffer.from(row.hash as Uint8Array),
      node: row.node as NodeName,
      expiresAtMs: row.expires_at_ms as number,
    }));
  }

  /** False if it was taken before. */
  takeToken(hash: Buffer): boolean {
    return this.#run('DELETE FROM tokens WHERE hash = ?', hash) === 1;
  }

  deleteTokensExpiredBefore(ms: number): void {
    this.#run('DELETE FROM tokens WHERE expires_at_ms <= ?', ms);
  }

  putEntry(entry: EntryRecord): void {
    this.#run(
      'INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)',
      entry.id,
      entry.origin,
      entry.spiffeId,
      entry.node,
      JSON.stringify(entry.selectors),
      entry.hint,
      JSON.stringify(entry.labels),
      entry.ttlSeconds,
      JSON.stringify(entry.dnsNames),
      entry.barred ? 1 : 0,
      JSON.stringify(entry.ports),
      entry.jwtTtlSeconds,
      JSON.stringify(entry.federatesWith),
      entry.admin ? 1 : 0,
    );
  }

  deleteEntry(id: string): void {
    this.#run('DELETE FROM entries WHERE id = ?', id);
  }

  entries(): EntryRecord[] {
    return this.#all('SELECT * FROM entries ORDER BY id').map((row) => ({
      id: row.id as string,
      origin: row.origin as EntryRecord['origin'],
      spiffeId: row.spiffe_id as SpiffeId,
      node: row.node as NodeName,
      selectors: JSON.parse(row.selectors as string) as string[],
      hint: row.hint as string,
      labels: JSON.parse(row.labels as string) as Labels,
      ports: JSON.parse(row.ports as string) as NamedPort[],
      ttlSeconds: row.ttl_seconds as number,
      dnsNames: JSON.parse(row.dns_names as string) as string[],
      jwtTtlSeconds: row.jwt_ttl_seconds as number,
      federatesWith: JSON.parse(row.federates_with as string) as TrustDomain[],
      admin: row.admin === 1,
      barred: row.barred === 1,
    }));
  }

  identityOf(spiffeId: SpiffeId, labels: Labels): number | undefined {
    const text = canonicalLabels(labels);
    return this.#get('SELECT identity FROM identities WHERE spiffe_id = ? AND labels = ?', spiffeId, text)?.identity as
      | number
      | undefined;
  }

  addIdentity(record: IdentityRecord): void {
    const { identity, spiffeId, labels } = record;
    this.#run('INSERT INTO identities VALUES (?, ?, ?)', identity, spiffeId, canonicalLabels(labels));
  }

  checkpoint(node: string): CheckpointRecord | undefined {
    const row = this.#get('SELECT * FROM checkpoints WHERE node = ?', node);
    if (row === undefined) return undefined;
    return {
      node: row.node as NodeName,
      size: row.size as number,
      root: row.root as string,
      text: Buffer.from(row.text as Uint8Array),
      receivedAtMs: row.received_at_ms as number,
    };
  }

  putCheckpoint(c: CheckpointRecord): void {
    this.#run(
      'INSERT OR REPLACE INTO checkpoints VALUES (?, ?, ?, ?, ?)',
      c.node,
      c.size,
      c.root,
      c.text,
      c.receivedAtMs,
    );
  }

  putFederatedBundle(bundle: FederatedBundleRecord): void {
    const { trustDomain, document, origin, fetchedAtMs } = bundle;
    this.#run(
      'INSERT OR REPLACE INTO federated_bundles VALUES (?, ?, ?, ?)',
      trustDomain,
      document,
      origin,
      fetchedAtMs,
    );
  }

  deleteFederatedBundle(trustDomain: TrustDomain): void {
    this.#run('DELETE FROM federated_bundles WHERE trust_domain = ?', trustDomain);
  }

  federatedBundles(): FederatedBundleRecord[] {
    return this.#all('SELECT * FROM federated_bundles ORDER BY trust_domain').map((row) => ({
      trustDomain: row.trust_domain as TrustDomain,
      document: row.document as string,
      origin: row.origin as FederatedBundleRecord['origin'],
      fetchedAtMs: row.fetched_at_ms as number,
    }));
  }

  close(): void {
    this.#db.close();
  }

  readonly #statements = new Map<string, ReturnType<DatabaseSync['prepare']>>();

  #prepare(sql: string) {
    let statement = this.#statements.get(sql);
    if (statement === undefined) {
      statement = this.#db.prepare(sql);
      this.#statements.set(sql, statement);
    }
    return statement;
  }

  #run(sql: string, ...values: SQLInputValue[]): number {
    return Number(this.#prepare(sql).run(...values).changes);
  }

  #get(sql: string, ...values: SQLInputValue[]): Row | undefined {
    return this.#prepare(sql).get(...values) as Row | undefined;
  }

  #all(sql: string, ...values: SQLInputValue[]): Row[] {
    return this.#prepare(sql).all(...values) as Row[];
  }
}

function nodeOf(row: Row): NodeRecord {
  return {
    name: row.name as NodeName,
    nodeId: row.node_id as number,
    incarnation: row.incarnation as number,
    attestedAtMs: row.attested_at_ms as number,
    notAfterMs: row.not_after_ms as number,
    evicted: row.evicted === 1,
    peerAddresses: JSON.parse(row.peer_addresses as string) as string[],
    usedIncarnation: row.used_incarnation as number,
    sessionIssued: row.session_issued as number,
    sessionConfirmed: row.session_confirmed as number,
    attestor: row.attestor as string,
  };
}
