/**
 * The changes that some agent has not been sent yet, and what has changed since a version: only what is so now, whatever it was
 * in between. So an agent that takes its time costs no memory of its own: it gets one larger change when it is ready for it.
 */
import type { Revocation } from '../src/model/identity.ts';
import type { NodeName, SecurityIdentity, TrustDomain } from '../src/model/ids.ts';
import type { Change, RegisteredEntry, TableRow } from './feed.ts';
import type { NodeRecord } from './store.ts';

/** What the log keeps: entries, rows and nodes. Who would need more begins anew with a snapshot. */
const MAX_ITEMS = 250_000;

/** undefined stands for: it is gone. */
export interface Merged {
  readonly entries: ReadonlyMap<NodeName, ReadonlyMap<string, RegisteredEntry | undefined>>;
  readonly rows: ReadonlyMap<SecurityIdentity, TableRow | undefined>;
  readonly nodes: ReadonlyMap<NodeName, NodeRecord | undefined>;
  readonly revocations: readonly Revocation[];
  readonly federatedBundles: ReadonlySet<TrustDomain>;
  readonly bundle: boolean;
  readonly crls: boolean;
  readonly signer: boolean;
}

interface Logged {
  readonly version: number;
  readonly change: Change;
  readonly items: number;
}

export class SyncLog {
  #logged: Logged[] = [];
  #items = 0;
  /** Version before the first that is kept. */
  #base: number;

  constructor(version: number) {
    this.#base = version;
  }

  get length(): number {
    return this.#logged.length;
  }

  add(version: number, change: Change): void {
    const { entries, removedEntries, rows, removedRows, nodes, removedNodes, revocations } = change;
    const lists = [entries, removedEntries, rows, removedRows, nodes, removedNodes, revocations];
    const items = lists.reduce((sum, list) => sum + (list?.length ?? 0), 1);
    this.#logged.push({ version, change, items });
    this.#items += items;
    // the newest stays, however large
    while (this.#items > MAX_ITEMS && this.#logged.length > 1) this.#dropFirst();
  }

  /** Everybody was sent what came up to this version. */
  forget(version: number): void {
    while (this.#logged.length > 0 && this.#logged[0]!.version <= version) this.#dropFirst();
  }

  /** What differs from what an agent knows that was sent this version; undefined if that is no longer known. */
  since(version: number): Merged | undefined {
    if (version < this.#base) return undefined;
    const entries = new Map<NodeName, Map<string, RegisteredEntry | undefined>>();
    const rows = new Map<SecurityIdentity, TableRow | undefined>();
    const nodes = new Map<NodeName, NodeRecord | undefined>();
    const revocations: Revocation[] = [];
    const federatedBundles = new Set<TrustDomain>();
    const flags = { bundle: false, crls: false, signer: false };
    const setEntry = (node: NodeName, id: string, entry: RegisteredEntry | undefined) => {
      const of = entries.get(node);
      if (of === undefined) entries.set(node, new Map([[id, entry]]));
      else of.set(id, entry);
    };
    for (const { version: at, change } of this.#logged) {
      if (at <= version) continue;
      for (const { id, node } of change.removedEntries ?? []) setEntry(node, id, undefined);
      for (const entry of change.entries ?? []) setEntry(entry.node, entry.id, entry);
      for (const identity of change.removedRows ?? []) rows.set(identity, undefined);
      for (const row of change.rows ?? []) rows.set(row.identity, row);
      for (const name of change.removedNodes ?? []) nodes.set(name, undefined);
      for (const node of change.nodes ?? []) nodes.set(node.name, node);
      revocations.push(...(change.revocations ?? []));
      for (const name of change.federatedBundles ?? []) federatedBundles.add(name);
      flags.bundle ||= change.bundle === true;
      flags.crls ||= change.crls === true;
      flags.signer ||= change.signer === true;
    }
    return { entries, rows, nodes, revocations, federatedBundles, ...flags };
  }

  #dropFirst(): void {
    const dropped = this.#logged.shift()!;
    this.#items -= dropped.items;
    this.#base = dropped.version;
  }
}
