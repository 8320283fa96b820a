/** Everything a verdict can depend on, as plain objects: no maps, no slots, no layouts. Times are seconds on a clock that
 *  starts anywhere; addresses are 32 hexadecimal digits, IPv4 in its mapped form (RFC 4291, section 2.5.5.2). */
import type { DropReason } from '../../src/base/registry/drop-reasons.gen.ts';
import type { Packet } from './packet.ts';

export type Reason = DropReason;
export type Direction = 'egress' | 'ingress';
export type Address = string;
export type Program =
  | 'from_workload'
  | 'to_workload'
  | 'from_hold'
  | 'to_tunnel'
  | 'from_tunnel'
  | 'to_netdev'
  | 'from_netdev';

export const HOST = 1;
export const WORLD = 2;
export const REMOTE_NODE = 6;

/** No end. */
export const NEVER = Number.POSITIVE_INFINITY;

export interface Config {
  /** Raised after each change that can take a verdict away; 'stateless': no flow is made or believed. */
  readonly revision: number | 'stateless';
  readonly epoch: number;
  readonly holds: boolean;
  readonly holdLimitIdentity: number;
  readonly holdLimitTotal: number;
  readonly allowUnbound: boolean;
  readonly observe: boolean;
  readonly stopped: boolean;
  readonly exemptDhcp: boolean;
  readonly exemptHostProbes: boolean;
  readonly peerPort: number;
  /** A policy selects the node itself in that direction. */
  readonly hostEgress: boolean;
  readonly hostIngress: boolean;
}

export interface Endpoint {
  readonly ifindex: number;
  /** 1 to 4095. */
  readonly id: number;
  readonly identity: number;
  readonly open: boolean;
  /** 12 hexadecimal digits; undefined: not checked. */
  readonly mac?: string;
}

/** The node may still take the endpoint's addresses for somebody else's. */
export interface Fence {
  readonly endpoint: number;
  readonly node: number;
}

export interface AddressEntry {
  readonly kind: 'local' | 'node' | 'reserved' | 'nobody';
  readonly identity: number;
  /** 0: this node. */
  readonly node: number;
  /** Of a local one. */
  readonly endpoint: number;
  readonly leaseEnds: number;
  /** Only through the tunnel. */
  readonly encrypt: boolean;
}

export interface PrefixEntry {
  readonly address: Address;
  /** 0 to 128: IPv4 prefixes are 96 longer than they read. */
  readonly length: number;
  /** undefined: the world's. */
  readonly identity?: number;
  readonly cluster: boolean;
  readonly encrypt: boolean;
}

export type PolicyVerdict = 'allow' | 'deny';
export type AuthType = 'none' | 'spiffe' | 'connection' | 'always-fail';

export interface PolicyLine {
  /** Class of the endpoint's own identity. */
  readonly local: number;
  /** Class of the other side's; 0: any. */
  readonly remote: number;
  readonly direction: Direction;
  /** 0: any. */
  readonly protocol: number;
  /** Its first `portBits` bits count. Of ICMP messages the type. */
  readonly port: number;
  readonly portBits: number;
  readonly verdict: PolicyVerdict;
  readonly auth: AuthType;
  /** 0 in a deny: there is no rule that allows it. */
  readonly rule: number;
  /** Were the policies that only observe in force too. */
  readonly observed?: { readonly verdict: PolicyVerdict; readonly auth: AuthType; readonly rule: number };
}

export interface Proof {
  readonly local: number;
  readonly remote: number;
  /** 0: a pair of this node. */
  readonly node: number;
  readonly ends: number;
  readonly epoch: number;
  /** Its opposite: until it ends, nothing is asked again. */
  readonly refused: boolean;
}

/** For one flow. Whoever has the addresses now must be who proved themselves. */
export type FlowProof = Proof;

/** Identities that no policy tells apart share numbers: one for each direction and role. */
export interface ClassRow {
  readonly local: Readonly<Record<Direction, number>>;
  readonly remote: Readonly<Record<Direction, number>>;
}

export interface Flow {
  readonly revision: number;
  /** Least of lease and proof. */
  readonly validUntil: number;
  readonly lastPacket: number;
  /** In which it was begun. */
  readonly direction: Direction;
  readonly auth: AuthType;
  /** Upper half of the mark that packets from the other side carry. */
  readonly origin: number;
  readonly endpoint: number;
  /** It passes only because something observes: judged and counted with each packet. */
  readonly observed: boolean;
  /** A workload's behind the node's address: none of the node's policies was asked. */
  readonly transit?: boolean;
  /** It took a proof of its own. */
  readonly proven?: boolean;
  /** Of a TCP or SCTP connection, or whether a datagram was answered. */
  readonly state: string;
}

/** What the first fragment said of its datagram. */
export interface Datagram {
  /** What the later ones are in place of themselves. */
  readonly first: Packet;
  readonly seen: number;
  /** The last one was seen: the number is free for another datagram. */
  readonly complete: boolean;
}

/** Packets of a flow in the hold queue. */
export interface Waiting {
  readonly packets: number;
  readonly lastMiss: number;
}

/** What no policy of the node's own cuts off, besides the peers' port. */
export interface HostExempt {
  /** TCP. */
  readonly servers: readonly { readonly address: Address; readonly port: number }[];
  /** UDP, of the node's own. */
  readonly udpPorts: readonly number[];
}

/** The programs' own memory comes last. */
export interface State {
  readonly now: number;
  readonly config: Config;
  readonly hostExempt: HostExempt;
  /** By interface. */
  readonly endpoints: ReadonlyMap<number, Endpoint>;
  readonly fences: readonly Fence[];
  readonly addresses: ReadonlyMap<Address, AddressEntry>;
  readonly prefixes: readonly PrefixEntry[];
  readonly classes: ReadonlyMap<number, ClassRow>;
  readonly policy: readonly PolicyLine[];
  readonly proofs: readonly Proof[];
  /** By flowProofKey. */
  readonly flowProofs: ReadonlyMap<string, FlowProof>;

  /** Endpoint id to the interface of its last packet. */
  readonly lastSeen: ReadonlyMap<number, number>;
  readonly flows: ReadonlyMap<string, Flow>;
  readonly datagrams: ReadonlyMap<string, Datagram>;
  readonly waiting: ReadonlyMap<string, Waiting>;
  /** The proofs that flows took, by the same keys: no other flow may. */
  readonly taken: ReadonlyMap<string, FlowProof>;
  /** Packets in the hold queue by identity; 0: all. */
  readonly held: ReadonlyMap<number, number>;
}

export type Own = 'lastSeen' | 'flows' | 'datagrams' | 'waiting' | 'taken' | 'held';

/** The same state but for one record; undefined takes it away. */
export function remember<M extends Own, V>(state: State, map: M, key: string | number, value: V | undefined): State {
  const copy = new Map(state[map] as ReadonlyMap<string | number, unknown>);
  if (value === undefined) copy.delete(key);
  else copy.set(key, value);
  return { ...state, [map]: copy };
}
