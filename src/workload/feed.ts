/** What the Workload API serves from: the node's registration entries, their SVIDs, the bundles. The agent implements it. */
import type { Result } from '../base/errors.ts';
import type { ReasonCode } from '../base/registry/reason-codes.ts';
import type { RegistrationEntry } from '../model/entry.ts';
import type { Svid, TrustBundle } from '../model/identity.ts';

export interface IdentitySnapshot {
  /** Those of this node. The first that matches a caller is its default identity. */
  readonly entries: readonly RegistrationEntry[];
  /** undefined: not issued yet, revoked, or refused. */
  svidOf(entryId: string): Svid | undefined;
  /** The own trust domain's first, then the federated ones: all that the node has, whichever entry may see them. */
  readonly bundles: readonly TrustBundle[];
  /** Revocation lists of the own trust domain (RFC 5280, section 5), DER, one for each signing key. */
  readonly crls: readonly Buffer[];
}

export interface IssuedJwtSvid {
  /** JWS, compact. A bearer secret: never logged. */
  readonly token: string;
  /** Unix ms. */
  readonly expiresAtMs: number;
}

export interface IdentityFeed {
  /** undefined: the agent is starting and does not know yet who its workloads are. */
  snapshot(): IdentitySnapshot | undefined;
  /** Called after every change. Returns what ends it. */
  subscribe(changed: () => void): () => void;
  /**
   * A JWT-SVID of an entry of this node, from the cache if that has at least half its life left. ISSUE_REVOKED and
   * ISSUE_NOT_YOUR_ENTRY are final; after any other refusal the caller may try again.
   */
  issueJwt(entryId: string, audience: readonly string[]): Promise<Result<IssuedJwtSvid, ReasonCode>>;
}
