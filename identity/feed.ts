/**
 * What every agent should know, as one versioned state: each change is one version, told to all who watch, in order. The
 * version is on disk before anyone is told of it, so that it never goes back.
 */
import type { Revocation } from '../src/model/identity.ts';
import type { NodeName, SecurityIdentity, TrustDomain } from '../src/model/ids.ts';
import type { EntryRecord, NodeRecord, Store } from './store.ts';

/** A row of the identity table before it is signed. */
export interface TableRow {
  readonly identity: SecurityIdentity;
  readonly spiffeId: EntryRecord['spiffeId'];
  readonly labels: EntryRecord['labels'];
  readonly ports: EntryRecord['ports'];
  /** Parents of its entries, sorted. */
  readonly nodes: readonly NodeName[];
  /** Version in which it got this form. */
  readonly sequence: number;
}

export interface RegisteredEntry extends EntryRecord {
  readonly identity: SecurityIdentity;
}

export interface Change {
  readonly entries?: readonly RegisteredEntry[];
  readonly removedEntries?: readonly RegisteredEntry[];
  readonly rows?: readonly TableRow[];
  readonly removedRows?: readonly SecurityIdentity[];
  readonly nodes?: readonly NodeRecord[];
  readonly removedNodes?: readonly NodeName[];
  readonly revocations?: readonly Revocation[];
  /** The server has a new SVID: chain and all signatures of the table are new. */
  readonly signer?: true;
  /** The own bundle is another one: the CA is asked for it. */
  readonly bundle?: true;
  readonly crls?: true;
  /** Foreign trust domains whose bundles are new, other, or gone. */
  readonly federatedBundles?: readonly TrustDomain[];
}

export type FeedListener = (version: number, change: Change) => void;

export class Feed {
  readonly #store: Store;
  readonly #listeners = new Set<FeedListener>();
  #version: number;

  constructor(store: Store) {
    this.#store = store;
    this.#version = store.next('version');
  }

  get version(): number {
    return this.#version;
  }

  /** The version that `publish` will give to the change being made. Changes are made in one turn, so none comes between. */
  get nextVersion(): number {
    return this.#version + 1;
  }

  publish(change: Change): number {
    this.#version = this.#store.next('version');
    for (const listener of [...this.#listeners]) listener(this.#version, change);
    return this.#version;
  }

  watch(listener: FeedListener): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }
}
