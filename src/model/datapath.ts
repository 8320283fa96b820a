/**
 * What the agent says to the kernel and hears from it, without a word about maps. src/datapath/ implements it;
 * src/auth/ and the agent use it. Boot times are CLOCK_BOOTTIME in ns.
 */
import type { DropReason } from '../base/registry/drop-reasons.gen.ts';
import type { Prefix } from './address.ts';
import type { IpAddress, NodeId, SecurityIdentity } from './ids.ts';

export type Direction = 'egress' | 'ingress';
/** spiffe: a proof for the pair of identities. spiffe-connection: one for each flow, which no other flow may use. */
export type AuthType = 'none' | 'spiffe' | 'spiffe-connection' | 'test-always-fail';
export const AUTH_TYPE_CODE: Readonly<Record<AuthType, number>> = {
  none: 0,
  spiffe: 1,
  'test-always-fail': 2,
  'spiffe-connection': 3,
};

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

/**
 * A flow as its endpoint sees it, whichever side began it: the fields of a signal of the same names. The other node's is the same
 * with local and remote exchanged.
 */
export interface FlowTuple extends FlowPorts {
  readonly endpoint: number;
  readonly localAddress: IpAddress;
  readonly remoteAddress: IpAddress;
}

/** Of an ICMP echo: the identifier on the side that asks, the request's type on the other. */
export interface FlowPorts {
  readonly protocol: number;
  readonly localPort: number;
  readonly remotePort: number;
}

export interface FlowAuthEntry extends AuthEntry {
  readonly flow: FlowTuple;
  /** A flow was let through by it, and no other will be. */
  readonly taken: boolean;
}

export interface AuthTable {
  readonly epoch: number;
  put(entry: AuthEntry): void;
  /** All of them in as few calls of the kernel as it takes. */
  putAll(entries: readonly AuthEntry[]): void;
  /** Every entry of before is a miss when this returns, and every flow is judged anew. Returns the new epoch. */
  raiseEpoch(): number;
  /** Deletes, then makes every flow be judged anew. Returns how many were there. */
  delete(keys: readonly AuthKey[]): number;
  /** Instead of a proof its opposite: until then packets of the pair drop at once (AUTH_REFUSED) and none is held. Flows are judged anew. */
  refuse(keys: readonly AuthKey[], untilNs: bigint): void;
  /** Takes away every refusal there is. */
  forgetRefusals(): void;
  /** Proofs only. */
  list(): AuthEntry[];
  /** A proof (authType spiffe-connection) for this flow alone. When there are too many the oldest leave: their flows are proven again. */
  putFlow(entry: AuthEntry, flow: FlowTuple): void;
  /** Its opposite, as refuse(); of that flow alone. Does not touch flows that run. */
  refuseFlow(key: AuthKey, flow: FlowTuple, untilNs: bigint): void;
  /** Deletes the proofs and refusals of all flows of the pairs, then makes every flow be judged anew. Returns how many there were. */
  deleteFlows(keys: readonly AuthKey[]): number;
  /** Proofs of flows only. */
  listFlows(): FlowAuthEntry[];
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
  /** Only through the tunnel, whatever else is allowed. undefined: for what other nodes vouch for, as the datapath was told. */
  readonly encrypt?: boolean;
}

export interface AddressTable {
  put(entry: AddressEntry): void;
  /** All of them in as few calls of the kernel as it takes, if they are renewals of what is in force. */
  putAll(entries: readonly AddressEntry[]): void;
  /** Deletes by key, then makes every flow be judged anew. False if it was not there. */
  delete(address: IpAddress): boolean;
  get(address: IpAddress): AddressEntry | undefined;
  list(): AddressEntry[];
}

/** FenceSend, FenceReceive: nothing passes between the endpoint and the node (its workloads, its own addresses), in either direction. */
export interface Fence {
  readonly endpoint: number;
  readonly node: NodeId;
}

/** Fences that stand in the kernel. They outlive the agent, and end with their endpoint: close them before it is opened. */
export interface FenceTable {
  close(endpoint: number, nodes: readonly NodeId[]): void;
  open(endpoint: number, nodes: readonly NodeId[]): void;
  list(): Fence[];
}

/**
 * What the kernel tells of one packet. A miss: it waits, was dropped or passed by observation because something is not known
 * yet. verdict: allowed, a sample. observed: passed, `reason` says why it would have been dropped.
 */
export interface DatapathSignal {
  readonly kind: 'vouch-miss' | 'auth-miss' | 'drop' | 'verdict' | 'observed';
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
  /** Set when the packet was dropped, or would have been. A code this build does not know is reported as its number. */
  readonly reason: DropReason | `UNKNOWN_${number}` | undefined;
  readonly length: number;
}

/** Packets that wait in the hold queue, by the pair of addresses they travel between. */
export interface HoldQueue {
  /**
   * Lets the packets of the pair go on, in order, through the full check again. Returns how many. `sinceNs`, CLOCK_BOOTTIME: what was
   * held before it was meant for an earlier owner of the remote address and is dropped (HOLD_STALE). `flow`: only its packets, and those
   * that name no flow by themselves (later fragments), for what was proven for it alone.
   */
  release(local: IpAddress, remote: IpAddress, sinceNs?: bigint, flow?: FlowPorts): number;
  /** Drops them, counted under the reason. Returns how many. */
  refuse(local: IpAddress, remote: IpAddress, reason: DropReason, flow?: FlowPorts): number;
  /** Nobody owns the remote address any more: what was released or refused for it says nothing about its next owner. */
  forget(remote: IpAddress): void;
  /** Packets now in the queue, by pair. */
  waiting(): { local: IpAddress; remote: IpAddress; packets: number; sinceNs: bigint }[];
}

export interface DropCount {
  readonly reason: DropReason | `UNKNOWN_${number}`;
  readonly direction: Direction;
  readonly packets: bigint;
  readonly bytes: bigint;
}

/** Drops of one pair of identities. The kernel keeps the pairs that dropped last, a bounded number of them. */
export interface PairDropCount extends DropCount {
  readonly local: SecurityIdentity;
  /** 0: not known. */
  readonly remote: SecurityIdentity;
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

/** From 1. Identities that no rule, subject or named port tells apart share one. Numbers of different directions and roles
 *  have nothing to do with one another. */
export type PolicyClass = number;

/** Every identity has one: to the kernel an identity without a class is one that a deny rule might have named. */
export interface PolicyClassRow {
  readonly identity: SecurityIdentity;
  /** As the endpoint that policy selects; 0: not on this node. */
  readonly local: Readonly<Record<Direction, PolicyClass | 0>>;
  /** As whom it speaks to. */
  readonly remote: Readonly<Record<Direction, PolicyClass>>;
  /** Bit n: an entry of local[direction] has portBits n. 0 for identities that are not local. */
  readonly portBits: Readonly<Record<Direction, number>>;
}

/** The kernel asks for the remote class before any, the longest port prefix first, any protocol last. */
export interface PolicyEntryKey {
  /** A row's local[direction]. */
  readonly local: PolicyClass;
  /** A row's remote[direction]; 0: any. */
  readonly remote: PolicyClass | 0;
  readonly direction: Direction;
  /** IP protocol number; 0: any, then portBits is 0. */
  readonly protocol: number;
  /** The first portBits bits, the rest 0. ICMP: the message's type. */
  readonly port: number;
  /** 0: every port; 16: this one. */
  readonly portBits: number;
}

export interface PolicyVerdict {
  readonly verdict: 'allow' | 'deny';
  readonly authType: AuthType;
  /** Index into the rules; 0 of a deny: no rule allows it. */
  readonly rule: number;
}

export interface PolicyEntry extends PolicyEntryKey, PolicyVerdict {
  /** If the policies that only observe were in force too; undefined: the same. */
  readonly observed?: PolicyVerdict;
}

/** Addresses outside the cluster that a rule names. A number is not given to other prefixes while packets may still be judged by it. */
export interface CidrIdentity {
  readonly prefix: Prefix;
  readonly identity: SecurityIdentity;
}

export interface PolicyTables {
  /** Those of host, world and remote-node are always among them. */
  readonly classes: readonly PolicyClassRow[];
  readonly entries: readonly PolicyEntry[];
  readonly cidrs: readonly CidrIdentity[];
  /** By direction: some policy selects the node itself, and its own traffic is judged. */
  readonly host: Readonly<Record<Direction, boolean>>;
}

/**
 * The same policies with other identities or endpoints. No packet meets a half of it when it is written in this order: entries
 * put, class rows put, class rows deleted, entries deleted.
 */
export interface PolicyDelta {
  readonly putEntries: readonly PolicyEntry[];
  readonly putClasses: readonly PolicyClassRow[];
  readonly deleteClasses: readonly SecurityIdentity[];
  readonly deleteEntries: readonly PolicyEntryKey[];
}
