/** What the Workload API serves from: the node's registration entries, their SVIDs, the bundles. The agent implements it. */
import type { RegistrationEntry } from '../model/entry.ts';
import type { Svid, TrustBundle } from '../model/identity.ts';

export interface IdentitySnapshot {
  /** Those of this node. The first that matches a caller is its default identity. */
  readonly entries: readonly RegistrationEntry[];
  /** undefined: not issued yet, revoked, or refused. */
  svidOf(entryId: string): Svid | undefined;
  readonly bundles: readonly TrustBundle[];
}

export interface IdentityFeed {
  /** undefined: the agent is starting and does not know yet who its workloads are. */
  snapshot(): IdentitySnapshot | undefined;
  /** Called after every change. Returns what ends it. */
  subscribe(changed: () => void): () => void;
}
