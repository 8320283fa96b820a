/** The registration entries in force and the identity table that follows from them. */
import { isDeepStrictEqual } from 'node:util';
import { CountersignError } from '../src/base/errors.ts';
import type { AuditSink } from '../src/model/audit-event.ts';
import type { NodeName, SecurityIdentity, SpiffeId, TrustDomain } from '../src/model/ids.ts';
import { allocateIdentity } from './allocate.ts';
import { type EntrySpec, problemOf } from './entry-spec.ts';
import type { Feed, RegisteredEntry, TableRow } from './feed.ts';
import { canonicalLabels, type EntryRecord, type Store } from './store.ts';

export interface RegistryOptions {
  readonly store: Store;
  readonly feed: Feed;
  readonly trustDomain: TrustDomain;
  /** Nodes that entries may name. */
  readonly nodeNames: ReadonlySet<string>;
  readonly audit: AuditSink;
}

export class Registry {
  readonly #options: RegistryOptions;
  #entries = new Map<string, RegisteredEntry>();
  #rows = new Map<SecurityIdentity, TableRow>();

  constructor(options: RegistryOptions) {
    this.#options = options;
    const { store, feed } = options;
    // an entry whose node left the configuration is no longer in force
    const records = store.entries().filter((entry) => options.nodeNames.has(entry.node));
    this.#entries = store.transaction(() => this.#register(records));
    this.#rows = tableOf(this.#entries, new Map(), feed.version);
  }

  entry(id: string): RegisteredEntry | undefined {
    return this.#entries.get(id);
  }

  entries(): readonly RegisteredEntry[] {
    return [...this.#entries.values()];
  }

  entriesOf(node: NodeName): readonly RegisteredEntry[] {
    return this.entries().filter((entry) => entry.node === node);
  }

  rows(): readonly TableRow[] {
    return [...this.#rows.values()];
  }

  /** Makes the entries of the file exactly these. @throws CountersignError bad-input: nothing is changed. */
  replaceFileEntries(specs: readonly EntrySpec[], file: string): void {
    const next = new Map<string, EntryRecord>();
    for (const entry of this.#entries.values()) if (entry.origin === 'admin') next.set(entry.id, entry);
    specs.forEach((spec, i) => {
      this.#check(spec, `${file}: entries[${i}]`);
      if (next.has(spec.id)) {
        throw new CountersignError('bad-input', `${file}: entries[${i}].id: ${spec.id} is taken; give each its own`);
      }
      const record = recordOf(spec, 'file');
      const known = this.#entries.get(spec.id);
      // what stays as it was stays barred, what is new is not
      next.set(spec.id, known !== undefined && isSame(known, record) ? { ...record, barred: known.barred } : record);
    });
    this.#apply([...next.values()], file);
  }

  /** Adds or replaces an entry; one that was barred by a revocation is registered anew. @throws CountersignError */
  put(spec: EntrySpec, actor: string): RegisteredEntry {
    this.#check(spec, 'entry');
    if (this.#entries.get(spec.id)?.origin === 'file') {
      throw new CountersignError('already-exists', `entry ${spec.id} stands in the entries file; change it there`);
    }
    const others = this.entries().filter((entry) => entry.id !== spec.id);
    this.#apply([...others, recordOf(spec, 'admin')], actor);
    return this.#entries.get(spec.id)!;
  }

  /** @throws CountersignError not-found, or already-exists if the entries file holds it. */
  delete(id: string, actor: string): void {
    const entry = this.#entries.get(id);
    if (entry === undefined) throw new CountersignError('not-found', `no entry ${id}; see: countersign entry list`);
    if (entry.origin === 'file') {
      throw new CountersignError('already-exists', `entry ${id} stands in the entries file; remove it there`);
    }
    this.#apply(
      this.entries().filter((other) => other.id !== id),
      actor,
    );
  }

  /** Nothing is issued for the entries that now have this SPIFFE ID until they are registered anew. */
  bar(spiffeId: SpiffeId): void {
    const { store } = this.#options;
    store.transaction(() => {
      for (const entry of this.#entries.values()) {
        if (entry.spiffeId !== spiffeId) continue;
        const barred = { ...entry, barred: true };
        store.putEntry(barred);
        this.#entries.set(entry.id, barred);
      }
    });
  }

  #check(spec: EntrySpec, where: string): void {
    const { trustDomain, nodeNames } = this.#options;
    const problem = problemOf(spec, trustDomain, (name) => nodeNames.has(name));
    if (problem !== undefined) throw new CountersignError('bad-input', `${where}.${problem}`);
  }

  #apply(records: readonly EntryRecord[], actor: string): void {
    const { store, feed, audit } = this.#options;
    checkOneLabelSet(records);
    const before = this.#entries;
    const after = store.transaction(() => {
      const kept = new Set(records.map((record) => record.id));
      for (const id of before.keys()) if (!kept.has(id)) store.deleteEntry(id);
      for (const record of records)
        if (!isDeepStrictEqual(plain(before.get(record.id)), record)) store.putEntry(record);
      return this.#register(records);
    });
    const rows = tableOf(after, this.#rows, feed.nextVersion);
    const entries = [...after.values()].filter((entry) => !isDeepStrictEqual(before.get(entry.id), entry));
    const removedEntries = [...before.values()].filter(({ id, node }) => after.get(id)?.node !== node);
    const changedRows = [...rows.values()].filter((row) => this.#rows.get(row.identity) !== row);
    const removedRows = [...this.#rows.keys()].filter((identity) => !rows.has(identity));
    if (entries.length + removedEntries.length + changedRows.length + removedRows.length === 0) return;
    this.#entries = after;
    this.#rows = rows;
    feed.publish({ entries, removedEntries, rows: changedRows, removedRows });
    for (const entry of entries) emit(audit, entry, actor, before.has(entry.id) ? 'changed' : 'added');
    for (const entry of removedEntries) if (!after.has(entry.id)) emit(audit, entry, actor, 'removed');
  }

  #register(records: readonly EntryRecord[]): Map<string, RegisteredEntry> {
    const { store } = this.#options;
    return new Map(
      records.map((record) => {
        const identity = allocateIdentity(store, record.spiffeId, record.labels);
        return [record.id, { ...record, identity }];
      }),
    );
  }
}

function recordOf(spec: EntrySpec, origin: EntryRecord['origin']): EntryRecord {
  return { ...spec, ttlSeconds: spec.ttlSeconds ?? 0, origin, barred: false };
}

function plain(entry: RegisteredEntry | undefined): EntryRecord | undefined {
  if (entry === undefined) return undefined;
  const { identity: _, ...record } = entry;
  return record;
}

function isSame(known: RegisteredEntry, record: EntryRecord): boolean {
  return isDeepStrictEqual({ ...plain(known), barred: false }, record);
}

/** One SPIFFE ID proves one label set, and names one set of ports: else an SVID would not say which its holder has. */
function checkOneLabelSet(records: readonly EntryRecord[]): void {
  const sets = new Map<SpiffeId, EntryRecord>();
  for (const record of records) {
    const first = sets.get(record.spiffeId);
    if (first === undefined) sets.set(record.spiffeId, record);
    else if (canonicalLabels(first.labels) !== canonicalLabels(record.labels)) {
      throw new CountersignError(
        'bad-input',
        `entries ${first.id} and ${record.id}: both are ${record.spiffeId} but have different labels; make them equal`,
      );
    } else if (!isDeepStrictEqual(first.ports, record.ports)) {
      throw new CountersignError(
        'bad-input',
        `entries ${first.id} and ${record.id}: both are ${record.spiffeId} but have different ports; make them equal`,
      );
    }
  }
}

/** Rows that did not change are the very objects of `before`. */
function tableOf(
  entries: ReadonlyMap<string, RegisteredEntry>,
  before: ReadonlyMap<SecurityIdentity, TableRow>,
  version: number,
): Map<SecurityIdentity, TableRow> {
  const nodes = new Map<SecurityIdentity, { entry: RegisteredEntry; nodes: Set<NodeName> }>();
  for (const entry of entries.values()) {
    const group = nodes.get(entry.identity);
    if (group === undefined) nodes.set(entry.identity, { entry, nodes: new Set([entry.node]) });
    else group.nodes.add(entry.node);
  }
  const rows = new Map<SecurityIdentity, TableRow>();
  for (const [identity, { entry, nodes: parents }] of nodes) {
    const { spiffeId, labels, ports } = entry;
    const row: TableRow = { identity, spiffeId, labels, ports, nodes: [...parents].sort(), sequence: version };
    const known = before.get(identity);
    rows.set(identity, known !== undefined && isDeepStrictEqual({ ...known, sequence: version }, row) ? known : row);
  }
  return rows;
}

function emit(audit: AuditSink, entry: RegisteredEntry, actor: string, change: string): void {
  audit.emit({
    kind: 'entry.changed',
    actor,
    source: { spiffeId: entry.spiffeId, identity: entry.identity, node: entry.node },
    detail: { entry: entry.id, change, selectors: entry.selectors.join(' '), labels: canonicalLabels(entry.labels) },
  });
}
