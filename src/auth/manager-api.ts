/** The auth manager as the agent sees it: what it needs, and what it is told and asked. */
import type { Clock } from '../base/clock.ts';
import type { Result } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import type { ReasonCode } from '../base/registry/reason-codes.ts';
import type { Timers } from '../base/timers.ts';
import type { PeerChannelEvents, PeerChannels } from '../channel/peer-channel.ts';
import type { AuditSink } from '../model/audit-event.ts';
import type {
  AddressTable,
  AuthKey,
  AuthTable,
  DatapathSignal,
  FenceTable,
  FlowTuple,
  HoldQueue,
} from '../model/datapath.ts';
import type {
  IdentityTable,
  NodeInfo,
  NodeTable,
  RevocationTable,
  SvidSource,
  TrustBundles,
} from '../model/identity.ts';
import type { NodeId, SecurityIdentity } from '../model/ids.ts';
import type { AuthRecord } from './auth-entries.ts';
import type { AuthEntryView, PairExplanation, VouchView } from './explain.ts';
import type { AuthSettings, PolicyDecisions, TunnelBinding } from './ports.ts';
import type { HostedEndpoint, OwnEndpoint, VouchHost } from './vouch-host.ts';
import type { VouchTrace } from './vouch-trace.ts';

export interface AuthManagerOptions {
  /** This node. `incarnation`: of its node SVID. */
  readonly self: Pick<NodeInfo, 'name' | 'spiffeId' | 'incarnation'>;
  /** See VouchHostOptions. */
  readonly firstLife: boolean;
  readonly channels: PeerChannels;
  readonly hold: HoldQueue;
  readonly authTable: AuthTable;
  readonly addresses: AddressTable;
  readonly identities: IdentityTable;
  readonly nodes: NodeTable;
  readonly svids: SvidSource;
  readonly bundles: TrustBundles;
  readonly revocations: RevocationTable;
  /** Key identifiers of signing keys that are to go: what rests on them is proven anew as soon as it can be. Left out: none. */
  tainted?(): ReadonlySet<string>;
  /** The policies in force now. */
  policy(): PolicyDecisions;
  readonly tunnel: TunnelBinding;
  /** The fence of an own endpoint is open: write its address and let it send and receive. */
  endpointOpened(endpoint: HostedEndpoint): void;
  /** Are the node's leases worth renewing, and its channel worth keeping? Left out: they always are. */
  inUse?(node: NodeId): boolean;
  readonly fences: FenceTable;
  /** As Datapath.quiesce. */
  quiesce(): Promise<void>;
  /** Told what leases and fences do, for tests. */
  readonly trace?: VouchTrace;
  /** When a packet last passed between here and the node, CLOCK_BOOTTIME. Left out: everything counts as used. */
  lastUse?(node: NodeId): bigint | undefined;
  readonly audit: AuditSink;
  readonly clock: Clock;
  readonly timers: Timers;
  readonly log: Logger;
  readonly settings?: Partial<AuthSettings>;
  /** Uniform in [0, 1). */
  readonly random?: () => number;
}

export interface AuthManager extends PeerChannelEvents {
  signal(signal: DatapathSignal): void;
  /** @throws CountersignError already-exists. Generation for the datapath's endpoint; `open` is false while fenced. */
  addEndpoint(endpoint: OwnEndpoint, continues?: bigint): HostedEndpoint;
  closeEndpoint(endpoint: number): void;
  /** `of`: whose policy or row changed; left out: anybody's. */
  policyChanged(of?: ReadonlySet<SecurityIdentity>): void;
  identitiesChanged(of?: ReadonlySet<SecurityIdentity>): void;
  nodesChanged(): void;
  bundlesChanged(): void;
  /** An own SVID came, was rotated or went. */
  svidsChanged(): void;
  /** Revocations changed. When this returns, the kernel has no entry that rests on a revoked SVID. How many went. */
  revoked(): number;
  /** Deletes auth entries; left out, all of them. They are proven anew when next needed. How many there were. */
  flush(concerns?: (key: AuthKey) => boolean): number;
  /** Opens the channel to the node if there is none. Why not; undefined: it is open. */
  connect(node: NodeInfo): Promise<ReasonCode | undefined>;
  /** Proves the pair now, as a packet would make it, whatever failed before. `flow`: of type spiffe-connection. */
  authenticate(key: AuthKey, flow?: FlowTuple): Promise<Result<AuthRecord, ReasonCode>>;
  /** What an earlier life of the agent left in the tables is confirmed by its owners: opens the channels to them. */
  reconnect(): void;
  /** When anything of the node was last used: a packet passed, or a proof was asked for. CLOCK_BOOTTIME; 0: not since the start. */
  lastUseOf(node: NodeId): bigint;
  /** How many pairs are. */
  readonly proven: number;
  list(): AuthEntryView[];
  vouches(): VouchView[];
  endpoints(): ReturnType<VouchHost['list']>;
  /** Nodes that the endpoint is shut to, or that must let go before it opens. */
  waitsFor(endpoint: number): readonly NodeId[];
  /** Both orders of the pair. */
  explain(from: SecurityIdentity, to: SecurityIdentity): PairExplanation;
  /**
   * Nothing is begun or gone on with any more: before channels and tables are closed. What is proven stays in the kernel until its end;
   * a change of revocations, policy, identities or nodes still takes away what it concerns.
   */
  close(): void;
}
