/** The entries in force, found by id, by node and by SPIFFE ID, so that a change costs what it touches and not what there is. */
import type { NodeName, SpiffeId } from '../src/model/ids.ts';
import type { RegisteredEntry } from './feed.ts';

export interface EntryFilter {
  readonly node?: NodeName;
  readonly spiffeId?: SpiffeId;
  /** Each of them. */
  readonly selectors?: readonly string[];
}

type Group = Map<string, RegisteredEntry>;
const NONE: ReadonlyMap<string, RegisteredEntry> = new Map();

export class EntryIndex {
  readonly #byId: Group = new Map();
  readonly #byNode = new Map<NodeName, Group>();
  readonly #bySpiffeId = new Map<SpiffeId, Group>();
  /** All ids in order, for pages; undefined: to be made again. */
  #ids: string[] | undefined;

  get size(): number {
    return this.#byId.size;
  }

  get(id: string): RegisteredEntry | undefined {
    return this.#byId.get(id);
  }

  values(): IterableIterator<RegisteredEntry> {
    return this.#byId.values();
  }

  ofNode(node: NodeName): ReadonlyMap<string, RegisteredEntry> {
    return this.#byNode.get(node) ?? NONE;
  }

  ofSpiffeId(spiffeId: SpiffeId): ReadonlyMap<string, RegisteredEntry> {
    return this.#bySpiffeId.get(spiffeId) ?? NONE;
  }

  set(entry: RegisteredEntry): void {
    const before = this.#byId.get(entry.id);
    if (before === undefined) this.#ids = undefined;
    else this.#leaveGroups(before);
    this.#byId.set(entry.id, entry);
    join(this.#byNode, entry.node, entry);
    join(this.#bySpiffeId, entry.spiffeId, entry);
  }

  delete(id: string): void {
    const before = this.#byId.get(id);
    if (before === undefined) return;
    this.#ids = undefined;
    this.#leaveGroups(before);
    this.#byId.delete(id);
  }

  /** At most `limit` that match, ordered by id, from the first after `after`. `more`: there are others behind them. */
  page(filter: EntryFilter, after: string, limit: number): { entries: RegisteredEntry[]; more: boolean } {
    const { node, spiffeId, selectors = [] } = filter;
    const ids = this.#candidates(filter);
    const entries: RegisteredEntry[] = [];
    for (let i = firstAfter(ids, after); i < ids.length; i++) {
      const entry = this.#byId.get(ids[i]!)!;
      if (node !== undefined && entry.node !== node) continue;
      if (spiffeId !== undefined && entry.spiffeId !== spiffeId) continue;
      if (!selectors.every((selector) => entry.selectors.includes(selector))) continue;
      if (entries.length === limit) return { entries, more: true };
      entries.push(entry);
    }
    return { entries, more: false };
  }

  #candidates({ node, spiffeId }: EntryFilter): readonly string[] {
    if (spiffeId !== undefined) return [...this.ofSpiffeId(spiffeId).keys()].sort();
    if (node !== undefined) return [...this.ofNode(node).keys()].sort();
    this.#ids ??= [...this.#byId.keys()].sort();
    return this.#ids;
  }

  #leaveGroups(entry: RegisteredEntry): void {
    leave(this.#byNode, entry.node, entry.id);
    leave(this.#bySpiffeId, entry.spiffeId, entry.id);
  }
}

/** Index of the first that is greater, by bisection. */
function firstAfter(sorted: readonly string[], after: string): number {
  let low = 0;
  let high = sorted.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (sorted[middle]! <= after) low = middle + 1;
    else high = middle;
  }
  return low;
}

function join<K>(groups: Map<K, Group>, key: K, entry: RegisteredEntry): void {
  const group = groups.get(key);
  if (group === undefined) groups.set(key, new Map([[entry.id, entry]]));
  else group.set(entry.id, entry);
}

function leave<K>(groups: Map<K, Group>, key: K, id: string): void {
  const group = groups.get(key);
  group?.delete(id);
  if (group?.size === 0) groups.delete(key);
}
