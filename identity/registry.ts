/** The registration entries in force and the identity table that follows from them. A change costs what it touches. */
import { CountersignError } from '../src/base/errors.ts';
import type { AuditSink } from '../src/model/audit-event.ts';
import type { NodeName, SecurityIdentity, SpiffeId, TrustDomain } from '../src/model/ids.ts';
import { allocateIdentity } from './allocate.ts';
import { type EntryFilter, EntryIndex } from './entry-index.ts';
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

/** Must the id be free, be taken, or neither? */
export type PutMode = 'create' | 'update' | '';

export class Registry {
  readonly #options: RegistryOptions;
  readonly #index = new EntryIndex();
  readonly #rows = new Map<SecurityIdentity, TableRow>();

  constructor(options: RegistryOptions) {
    this.#options = options;
    const { store, feed } = options;
    // an entry whose node left the configuration is no longer in force
    const records = store.entries().filter((entry) => options.nodeNames.has(entry.node));
    for (const entry of store.transaction(() => this.#register(records))) this.#index.set(entry);
    for (const entry of this.#index.values()) {
      if (!this.#rows.has(entry.identity)) this.#rows.set(entry.identity, this.#rowOf(entry.spiffeId, feed.version)!);
    }
  }

  get size(): number {
    return this.#index.size;
  }

  entry(id: string): RegisteredEntry | undefined {
    return this.#index.get(id);
  }

  page(filter: EntryFilter, after: string, limit: number): { entries: RegisteredEntry[]; more: boolean } {
    return this.#index.page(filter, after, limit);
  }

  entriesOf(node: NodeName): Iterable<RegisteredEntry> {
    return this.#index.ofNode(node).values();
  }

  countOf(node: NodeName): number {
    return this.#index.ofNode(node).size;
  }

  entriesWith(spiffeId: SpiffeId): Iterable<RegisteredEntry> {
    return this.#index.ofSpiffeId(spiffeId).values();
  }

  row(identity: number): TableRow | undefined {
    return this.#rows.get(identity as SecurityIdentity);
  }

  rows(): ReadonlyMap<SecurityIdentity, TableRow> {
    return this.#rows;
  }

  /** Makes the entries of the file exactly these. @throws CountersignError bad-input: nothing is changed. */
  replaceFileEntries(specs: readonly EntrySpec[], file: string): void {
    const records = new Map<string, EntryRecord>();
    specs.forEach((spec, i) => {
      this.#check(spec, `${file}: entries[${i}]`);
      const known = this.#index.get(spec.id);
      if (records.has(spec.id) || known?.origin === 'admin') {
        throw new CountersignError('bad-input', `${file}: entries[${i}].id: ${spec.id} is taken; give each its own`);
      }
      const record = recordOf(spec, 'file');
      // what stays as it was stays barred, what is new is not
      const stays = known !== undefined && isSame({ ...known, barred: false }, record);
      records.set(spec.id, stays ? { ...record, barred: known.barred } : record);
    });
    const deletes: string[] = [];
    for (const { id, origin } of this.#index.values()) if (origin === 'file' && !records.has(id)) deletes.push(id);
    this.#apply([...records.values()], deletes, file);
  }

  /** Adds or replaces an entry; one that was barred by a revocation is registered anew. @throws CountersignError */
  put(spec: EntrySpec, actor: string, mode: PutMode = ''): RegisteredEntry {
    this.#check(spec, 'entry');
    const known = this.#index.get(spec.id);
    if (known?.origin === 'file') {
      throw new CountersignError('already-exists', `entry ${spec.id} stands in the entries file; change it there`);
    }
    if (mode === 'create' && known !== undefined) {
      throw new CountersignError('already-exists', `entry ${spec.id} exists; update it, or give another id`);
    }
    if (mode === 'update' && known === undefined) throw noEntry(spec.id);
    this.#apply([recordOf(spec, 'admin')], [], actor);
    return this.#index.get(spec.id)!;
  }

  /** @throws CountersignError not-found, or already-exists if the entries file holds it. */
  delete(id: string, actor: string): void {
    const entry = this.#index.get(id);
    if (entry === undefined) throw noEntry(id);
    if (entry.origin === 'file') {
      throw new CountersignError('already-exists', `entry ${id} stands in the entries file; remove it there`);
    }
    this.#apply([], [id], actor);
  }

  /** Nothing is issued for the entries that now have this SPIFFE ID until they are registered anew. */
  bar(spiffeId: SpiffeId): void {
    const { store } = this.#options;
    const barred = [...this.entriesWith(spiffeId)].map((entry) => ({ ...entry, barred: true }));
    store.transaction(() => {
      for (const entry of barred) store.putEntry(entry);
    });
    for (const entry of barred) this.#index.set(entry);
  }

  #check(spec: EntrySpec, where: string): void {
    const { trustDomain, nodeNames } = this.#options;
    const problem = problemOf(spec, trustDomain, (name) => nodeNames.has(name));
    if (problem !== undefined) throw new CountersignError('bad-input', `${where}.${problem}`);
  }

  /** All of it or, if it throws, nothing. */
  #apply(asked: readonly EntryRecord[], askedDeletes: readonly string[], actor: string): void {
    const { store, feed, audit } = this.#options;
    const index = this.#index;
    const puts = asked.filter((record) => !isSame(index.get(record.id), record));
    const deletes = askedDeletes.filter((id) => index.get(id) !== undefined);
    if (puts.length + deletes.length === 0) return;
    this.#checkOneLabelSet(puts, new Set(deletes));
    const entries = store.transaction(() => {
      for (const id of deletes) store.deleteEntry(id);
      for (const record of puts) store.putEntry(record);
      return this.#register(puts);
    });
    // from here on nothing can fail
    const before = new Map([...puts.map(({ id }) => id), ...deletes].map((id) => [id, index.get(id)]));
    const touched = new Map<SecurityIdentity, SpiffeId>();
    for (const entry of [...before.values(), ...entries]) {
      if (entry !== undefined) touched.set(entry.identity, entry.spiffeId);
    }
    for (const id of deletes) index.delete(id);
    for (const entry of entries) index.set(entry);
    const moved = entries.flatMap(({ id, node }) => {
      const was = before.get(id);
      return was === undefined || was.node === node ? [] : [was];
    });
    const gone = deletes.map((id) => before.get(id)!);
    const { rows, removedRows } = this.#updateRows(touched, feed.nextVersion);
    feed.publish({ entries, removedEntries: [...moved, ...gone], rows, removedRows });
    for (const entry of entries) emit(audit, entry, actor, before.get(entry.id) === undefined ? 'added' : 'changed');
    for (const entry of gone) emit(audit, entry, actor, 'removed');
  }

  /** The rows of these identities as the entries now have them; `rows` and `removedRows` say what that changed. */
  #updateRows(touched: ReadonlyMap<SecurityIdentity, SpiffeId>, version: number) {
    const rows: TableRow[] = [];
    const removedRows: SecurityIdentity[] = [];
    for (const [identity, spiffeId] of touched) {
      const known = this.#rows.get(identity);
      const row = this.#rowOf(spiffeId, version);
      if (row === undefined || row.identity !== identity) {
        if (this.#rows.delete(identity)) removedRows.push(identity);
      } else if (known === undefined || !isSameRow(known, row)) {
        this.#rows.set(identity, row);
        rows.push(row);
      }
    }
    return { rows, removedRows };
  }

  /** All entries of a SPIFFE ID have one label set, so one identity. */
  #rowOf(spiffeId: SpiffeId, version: number): TableRow | undefined {
    const group = this.#index.ofSpiffeId(spiffeId);
    const first = group.values().next().value;
    if (first === undefined) return undefined;
    const nodes = new Set<NodeName>();
    for (const { node } of group.values()) nodes.add(node);
    const { identity, labels, ports } = first;
    return { identity, spiffeId, labels, ports, nodes: [...nodes].sort(), sequence: version };
  }

  #register(records: readonly EntryRecord[]): RegisteredEntry[] {
    const { store } = this.#options;
    // many entries share a SPIFFE ID: one question to the store for each
    const asked = new Map<string, SecurityIdentity>();
    return records.map((record) => {
      const key = `${record.spiffeId}\n${canonicalLabels(record.labels)}`;
      const identity = asked.get(key) ?? allocateIdentity(store, record.spiffeId, record.labels);
      asked.set(key, identity);
      return { ...record, identity };
    });
  }

  /** One SPIFFE ID proves one label set, and names one set of ports: else an SVID would not say which its holder has. */
  #checkOneLabelSet(puts: readonly EntryRecord[], deletes: ReadonlySet<string>): void {
    const changed = new Map(puts.map((record) => [record.id, record]));
    const firsts = new Map<SpiffeId, EntryRecord>();
    for (const record of puts) {
      let first = firsts.get(record.spiffeId);
      if (first === undefined) {
        // those that stay are of one set already: one of them stands for all
        for (const entry of this.entriesWith(record.spiffeId)) {
          if (changed.has(entry.id) || deletes.has(entry.id)) continue;
          first = entry;
          break;
        }
        first ??= record;
        firsts.set(record.spiffeId, first);
      }
      const isOneSet = canonicalLabels(first.labels) === canonicalLabels(record.labels);
      if (isOneSet && JSON.stringify(first.ports) === JSON.stringify(record.ports)) continue;
      const differ = isOneSet ? 'ports' : 'labels';
      throw new CountersignError(
        'bad-input',
        `entries ${first.id} and ${record.id}: both are ${record.spiffeId} but have different ${differ}; make them equal`,
      );
    }
  }
}

function noEntry(id: string): CountersignError {
  return new CountersignError('not-found', `no entry ${id}; see: countersign entry list`);
}

function recordOf(spec: EntrySpec, origin: EntryRecord['origin']): EntryRecord {
  const { id, spiffeId, node, selectors, labels, ports, hint, dnsNames, federatesWith, admin, downstream } = spec;
  const { ttlSeconds = 0, jwtTtlSeconds = 0 } = spec;
  const ttls = { ttlSeconds, jwtTtlSeconds };
  return {
    id,
    origin,
    spiffeId,
    node,
    selectors,
    hint,
    labels,
    ports,
    ...ttls,
    dnsNames,
    federatesWith,
    admin,
    downstream,
    barred: false,
  };
}

function isSame(known: EntryRecord | undefined, record: EntryRecord): boolean {
  return (
    known !== undefined &&
    known.spiffeId === record.spiffeId &&
    known.node === record.node &&
    known.origin === record.origin &&
    known.hint === record.hint &&
    known.ttlSeconds === record.ttlSeconds &&
    known.jwtTtlSeconds === record.jwtTtlSeconds &&
    known.admin === record.admin &&
    known.downstream === record.downstream &&
    known.barred === record.barred &&
    isSameList(known.selectors, record.selectors) &&
    isSameList(known.dnsNames, record.dnsNames) &&
    isSameList(known.federatesWith, record.federatesWith) &&
    canonicalLabels(known.labels) === canonicalLabels(record.labels) &&
    JSON.stringify(known.ports) === JSON.stringify(record.ports)
  );
}

function isSameRow(a: TableRow, b: TableRow): boolean {
  const isSameSet = canonicalLabels(a.labels) === canonicalLabels(b.labels);
  return isSameSet && isSameList(a.nodes, b.nodes) && JSON.stringify(a.ports) === JSON.stringify(b.ports);
}

function isSameList(a: readonly string[], b: readonly string[]): boolean {
  return a.length === b.length && a.every((text, i) => text === b[i]);
}

function emit(audit: AuditSink, entry: RegisteredEntry, actor: string, change: string): void {
  audit.emit({
    kind: 'entry.changed',
    actor,
    source: { spiffeId: entry.spiffeId, identity: entry.identity, node: entry.node },
    detail: { entry: entry.id, change, selectors: entry.selectors.join(' '), labels: canonicalLabels(entry.labels) },
  });
}
