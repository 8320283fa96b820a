/**
 * What the agent says to the kernel and hears from it, without a word about maps. src/datapath/ implements it;
 * src/auth/ and the agent use it. Boot times are CLOCK_BOOTTIME in ns.
 */
import type { DropReason } from '../base/registry/drop-reasons.gen.ts';
import type { IpAddress, NodeId, SecurityIdentity } from './ids.ts';

export type Direction = 'egress' | 'ingress';
export type AuthType = 'none' | 'spiffe' | 'test-always-fail';
export const AUTH_TYPE_CODE: Readonly<Record<AuthType, number>> = { none: 0, spiffe: 1, 'test-always-fail': 2 };

export interface AuthKey {
  readonly local: SecurityIdentity;
  readonly remote: SecurityIdentity;
  /** LOCAL_NODE (0) when both are on this node. */
  readonly remoteNode: NodeId;
  readonly authType: AuthType;
}

export interface AuthEntry extends AuthKey {
  readonly expiresAtNs: bigint;
  /** The global epoch that was read when verification began. */
  readonly epoch: number;
}

export interface AuthTable {
  readonly epoch: number;
  put(entry: AuthEntry): void;
  /** Deletes, then makes every flow be judged anew. Returns how many were there. */
  delete(keys: readonly AuthKey[]): number;
  /** Instead of a proof its opposite: until then packets of the pair drop at once (AUTH_REFUSED) and none is held. Flows are judged anew. */
  refuse(keys: readonly AuthKey[], untilNs: bigint): void;
  /** Proofs only. */
  list(): AuthEntry[];
}

/** An address with its owner, as it is in force in the kernel. */
export interface AddressEntry {
  readonly address: IpAddress;
  readonly identity: SecurityIdentity;
  /** LOCAL_NODE for own endpoints. */
  readonly node: NodeId;
  readonly incarnation: bigint;
  readonly generation: bigint;
  /** undefined: no end (own endpoints, reserved). */
  readonly leaseEndNs: bigint | undefined;
  readonly endpoint: number;
  readonly reserved: boolean;
}

export interface AddressTable {
  put(entry: AddressEntry): void;
  /** Deletes by key, then makes every flow be judged anew. False if it was not there. */
  delete(address: IpAddress): boolean;
  get(address: IpAddress): AddressEntry | undefined;
  list(): AddressEntry[];
}

/** A packet of this pair of addresses waits (or was dropped) because something is not known yet. */
export interface DatapathSignal {
  readonly kind: 'vouch-miss' | 'auth-miss' | 'drop';
  readonly timeNs: bigint;
  readonly suppressed: bigint;
  readonly direction: Direction;
  readonly endpoint: number;
  readonly localAddress: IpAddress;
  readonly remoteAddress: IpAddress;
  readonly localIdentity: SecurityIdentity;
  /** 0: not known. */
  readonly remoteIdentity: SecurityIdentity;
  readonly remoteNode: NodeId;
  readonly protocol: number;
  readonly localPort: number;
  readonly remotePort: number;
  readonly authType: AuthType;
  /** Index into the compiled policy's rules; 0: none. */
  readonly rule: number;
  readonly held: boolean;
  /** Set when the packet was dropped. A code this build does not know is reported as its number. */
  readonly reason: DropReason | `UNKNOWN_${number}` | undefined;
  readonly length: number;
}

/** Packets that wait in the hold queue, by the pair of addresses they travel between. */
export interface HoldQueue {
  /** Lets all packets of the pair go on, in order, through the full check again. Returns how many. */
  release(local: IpAddress, remote: IpAddress): number;
  /** Drops them, counted under the reason. Returns how many. */
  refuse(local: IpAddress, remote: IpAddress, reason: DropReason): number;
  /** Packets now in the queue, by pair. */
  waiting(): { local: IpAddress; remote: IpAddress; packets: number; sinceNs: bigint }[];
}

export interface DropCount {
  readonly reason: DropReason | `UNKNOWN_${number}`;
  readonly direction: Direction;
  readonly packets: bigint;
  readonly bytes: bigint;
}

/** One network attachment of a workload: what the datapath must know of it. */
export interface EndpointAttachment {
  readonly endpoint: number;
  readonly identity: SecurityIdentity;
  readonly generation: bigint;
  readonly ifindex: number;
  /** Workload's end; undefined: not checked. */
  readonly mac: Buffer | undefined;
  readonly addresses: readonly IpAddress[];
  readonly open: boolean;
}

/** Verdict of one policy key, most specific wins in the kernel; see CompiledPolicy in src/policy. */
export interface PolicyEntry {
  readonly local: SecurityIdentity;
  /** 0: any. */
  readonly remote: SecurityIdentity | 0;
  readonly direction: Direction;
  /** IP protocol number; 0: any. */
  readonly protocol: number;
  /** 0: any. */
  readonly port: number;
  readonly verdict: 'allow' | 'deny';
  readonly authType: AuthType;
  readonly rule: number;
}
