/** Branded ids: numbers and strings that must not be mixed up. Shapes only; parsing untrusted text is spiffe-id.ts and address.ts. */
declare const brand: unique symbol;
type Brand<T, B> = T & { readonly [brand]: B };

/** A valid SPIFFE ID in its canonical text form. Made only by parseSpiffeId. */
export type SpiffeId = Brand<string, 'SpiffeId'>;
/** A valid trust domain name. */
export type TrustDomain = Brand<string, 'TrustDomain'>;
/** u32: reserved 1-255, cluster 256-65535. */
export type SecurityIdentity = Brand<number, 'SecurityIdentity'>;
/** u32 given by the identity server at attestation; 0 means "this node" in the datapath. */
export type NodeId = Brand<number, 'NodeId'>;
export type NodeName = Brand<string, 'NodeName'>;
/** Canonical text of an IPv4 or IPv6 address (RFC 5952). Made only by parseAddress. */
export type IpAddress = Brand<string, 'IpAddress'>;

export function securityIdentity(n: number): SecurityIdentity {
  if (!Number.isInteger(n) || n < 0 || n > 0xffffffff) throw new RangeError(`not a security identity: ${n}`);
  return n as SecurityIdentity;
}

export function nodeId(n: number): NodeId {
  if (!Number.isInteger(n) || n < 0 || n > 0xffffffff) throw new RangeError(`not a node id: ${n}`);
  return n as NodeId;
}

export const LOCAL_NODE = 0 as NodeId;
export const IDENTITY_HOST = 1 as SecurityIdentity;
export const IDENTITY_WORLD = 2 as SecurityIdentity;
export const IDENTITY_REMOTE_NODE = 6 as SecurityIdentity;
