/** Nodes, identities, SVIDs and revocations as every part of a node sees them. */
import type { KeyObject } from 'node:crypto';
import type { Result } from '../base/errors.ts';
import type { ReasonCode } from '../base/registry/reason-codes.ts';
import type { Prefix } from './address.ts';
import type { IpAddress, NodeId, NodeName, SecurityIdentity, SpiffeId, TrustDomain } from './ids.ts';

export type Labels = Readonly<Record<string, string>>;

/** A port that policies may name instead of its number. */
export interface NamedPort {
  readonly name: string;
  /** IP protocol number. */
  readonly protocol: number;
  readonly port: number;
}

/** A verified row of the identity table: policy selects labels, an SVID proves a SPIFFE ID, this ties them. */
export interface IdentityRow {
  readonly identity: SecurityIdentity;
  readonly spiffeId: SpiffeId;
  readonly labels: Labels;
  /** Nodes that may prove it. */
  readonly nodes: readonly SpiffeId[];
  /** Left out: it names none. */
  readonly ports?: readonly NamedPort[];
}

export interface IdentityTable {
  byIdentity(identity: SecurityIdentity): IdentityRow | undefined;
  bySpiffeId(spiffeId: SpiffeId): IdentityRow | undefined;
  rows(): readonly IdentityRow[];
}

export interface NodeInfo {
  readonly name: NodeName;
  readonly spiffeId: SpiffeId;
  readonly id: NodeId;
  readonly incarnation: bigint;
  /** "IP:port" or "[IPv6]:port". */
  readonly peerAddresses: readonly string[];
  /** What it may vouch for. */
  readonly prefixes: readonly Prefix[];
}

export interface NodeTable {
  byName(name: NodeName): NodeInfo | undefined;
  byId(id: NodeId): NodeInfo | undefined;
  bySpiffeId(spiffeId: SpiffeId): NodeInfo | undefined;
  /** Hints where an address may live, from the prefixes: the most specific first, 8 at most. A hint never admits a packet. */
  candidates(address: IpAddress): readonly NodeInfo[];
  nodes(): readonly NodeInfo[];
}

/** An SVID with its private key. The key is a KeyObject, so that it does not print. */
export interface Svid {
  readonly spiffeId: SpiffeId;
  /** DER, leaf first, without the root. */
  readonly chain: readonly Buffer[];
  readonly privateKey: KeyObject;
  /** Unix ms. */
  readonly notAfterMs: number;
}

/** The SVIDs this node can prove with. Why there is none is part of the answer. */
export interface SvidSource {
  svidOf(identity: SecurityIdentity): Result<Svid, ReasonCode>;
}

/** A key that signs JWT-SVIDs. */
export interface JwtAuthority {
  /** The kid of a JWT's header. */
  readonly keyId: string;
  /** SubjectPublicKeyInfo, DER. */
  readonly publicKey: Buffer;
  /** Unix ms; left out: it does not end by itself. */
  readonly expiresAtMs?: number;
  readonly tainted?: boolean;
}

/** Vouches for identities of its own trust domain and for no other. */
export interface TrustBundle {
  readonly trustDomain: TrustDomain;
  /** DER. */
  readonly authorities: readonly Buffer[];
  /** Left out: JWT-SVIDs of this trust domain cannot be validated here. */
  readonly jwtAuthorities?: readonly JwtAuthority[];
  /** spiffe_sequence and spiffe_refresh_hint (SPIFFE Trust Domain and Bundle, section 4.1). */
  readonly sequence?: bigint;
  readonly refreshHintSeconds?: number;
}

export interface TrustBundles {
  bundleOf(trustDomain: TrustDomain): TrustBundle | undefined;
}

/** What was taken back. Times are Unix seconds: an SVID whose notBefore is at or before `issuedUntil` is revoked. */
export interface Revocation {
  readonly sequence: bigint;
  readonly what:
    | { readonly spiffeId: SpiffeId }
    | { readonly serial: string }
    | { readonly node: NodeName }
    /** Subject key identifier of a signing certificate, lower-case hex: all that it signed, whenever. */
    | { readonly authority: string };
  readonly issuedUntil: number;
  readonly reason: string;
}

/** The facts of a certificate that a revocation may name. */
export interface RevocationSubject {
  readonly spiffeId: SpiffeId;
  /** Lower-case hex, no leading zeros beyond one byte. */
  readonly serial: string;
  /** Node the certificate is bound to or names. */
  readonly node: SpiffeId | undefined;
  /** Unix ms. */
  readonly notBeforeMs: number;
  /** Key identifiers of the certificates above it in its chain, lower-case hex. */
  readonly authorities?: readonly string[];
}

export interface RevocationTable {
  isRevoked(subject: RevocationSubject): boolean;
}
