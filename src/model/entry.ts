/** A registration entry: which workload (selectors) on which node (parent) gets which SPIFFE ID, and with it which labels and security identity. */
import type { Labels } from './identity.ts';
import type { SecurityIdentity, SpiffeId, TrustDomain } from './ids.ts';

export interface RegistrationEntry {
  /** Stable name, unique in the trust domain. */
  readonly id: string;
  readonly spiffeId: SpiffeId;
  /** SPIFFE ID of the node the workload runs on. */
  readonly parentId: SpiffeId;
  /** "type:value", as SPIRE writes them, e.g. "unix:uid:1001". All must match. */
  readonly selectors: readonly string[];
  readonly hint: string;
  readonly identity: SecurityIdentity;
  readonly labels: Labels;
  /** Life of an X.509-SVID; 0: the server's default. */
  readonly ttlSeconds: number;
  /** Life of a JWT-SVID; 0: the server's default. */
  readonly jwtTtlSeconds: number;
  readonly dnsNames: readonly string[];
  /** Trust domains whose bundles its workload gets besides its own. */
  readonly federatesWith: readonly TrustDomain[];
}
