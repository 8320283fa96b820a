/** What the identity server remembers, as its parts see it. identity/store.ts reads and writes it, migrations.ts has its tables. */
import type { Labels, NamedPort } from '../../src/model/identity.ts';
import type { NodeName, SpiffeId, TrustDomain } from '../../src/model/ids.ts';

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
  /** An SVID of it may have an authority of a server below signed. */
  readonly downstream: boolean;
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
