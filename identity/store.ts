/**
 * What the identity server must not forget, in one SQLite file of mode 0600: nodes with their ids and incarnations, join
 * tokens (only their SHA-256), entries, security identities, versions, checkpoints. What was issued and revoked is the CA's. No rules live here.
 */
import type { DatabaseSync, SQLInputValue } from 'node:sqlite';
import type { Labels, NamedPort } from '../src/model/identity.ts';
import type { NodeName, SpiffeId, TrustDomain } from '../src/model/ids.ts';
import { openDatabase } from './store/database.ts';
import type {
  BanRecord,
  CheckpointRecord,
  EntryRecord,
  FederatedBundleRecord,
  IdentityRecord,
  NodeRecord,
  TokenRecord,
} from './store/records.ts';

export type {
  BanRecord,
  CheckpointRecord,
  EntryRecord,
  FederatedBundleRecord,
  IdentityRecord,
  NodeRecord,
  TokenRecord,
} from './store/records.ts';

type Row = Record<string, SQLInputValue>;
type Counter = 'version' | 'node_id' | 'identity';

/** Keys sorted, so that equal label sets are equal text. */
export function canonicalLabels(labels: Labels): string {
  return JSON.stringify(Object.entries(labels).sort(([a], [b]) => (a < b ? -1 : 1)));
}

export class Store {
  readonly #db: DatabaseSync;

  /**
   * @param opened is given the connection before its first write: for the backup, and for what replicates each change
   * @throws CountersignError if the file is damaged or of a later version; it is left as it is
   */
  constructor(path: string, opened: (database: DatabaseSync) => void = () => {}) {
    this.#db = openDatabase(path);
    opened(this.#db);
  }

  /** All or nothing. Not to be nested. */
  transaction<T>(work: () => T): T {
    this.#db.exec('BEGIN IMMEDIATE');
    try {
      const result = work();
      this.#db.exec('COMMIT');
      return result;
    } catch (thrown) {
      // a full disk may have ended it already
      if (this.#db.isTransaction) this.#db.exec('ROLLBACK');
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
      'INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)',
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
      entry.downstream ? 1 : 0,
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
      downstream: row.downstream === 1,
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
