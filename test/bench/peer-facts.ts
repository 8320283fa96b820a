/** What a benchmark tells its processes of peer nodes, as JSON, and what they answer. Octets are base64. */

export interface SvidFact {
  readonly identity: number;
  readonly spiffeId: string;
  readonly chain: readonly string[];
  /** PKCS#8, DER. */
  readonly key: string;
  /** Unix ms. */
  readonly notAfterMs: number;
}

export interface NodeFact {
  readonly name: string;
  readonly id: number;
  readonly incarnation: number;
  readonly peerAddresses: readonly string[];
  readonly prefixes: readonly string[];
}

export interface PeerFacts {
  readonly trustDomain: string;
  readonly authorities: readonly string[];
  /** The node that is measured. */
  readonly target: NodeFact;
  readonly targetWorkloads: readonly { readonly identity: number; readonly spiffeId: string }[];
  /** By identity. */
  readonly apps: Readonly<Record<number, number>>;
  readonly peers: readonly (NodeFact &
    Omit<SvidFact, 'identity'> & {
      /** The first three octets of its workloads' addresses. */
      readonly net: string;
      readonly workloads: readonly SvidFact[];
    })[];
}

/** From the parent. Each is answered with a PeerReport. */
export interface PeerRequest {
  /** From now on an endpoint of the process dies, and another one comes, so often. */
  readonly churnEveryMs?: number;
}

/** Sums over the process's nodes. */
export interface PeerReport {
  readonly channels: number;
  /** Endpoints on which the target holds a lease. */
  readonly known: number;
  readonly proven: number;
  readonly churned: number;
}
