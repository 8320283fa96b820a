/** What the authentications on a channel need of their node, and what they hand back. */
import type { Clock } from '../base/clock.ts';
import type { Result } from '../base/errors.ts';
import type { ReasonCode } from '../base/registry/reason-codes.ts';
import type { Timers } from '../base/timers.ts';
import type { AuthType, FlowTuple } from '../model/datapath.ts';
import type { IpAddress, SecurityIdentity } from '../model/ids.ts';
import type { AuthRecord } from './auth-entries.ts';
import type { OwnProof } from './own-proof.ts';
import type { AuthSettings } from './ports.ts';
import type { Proof, ProofFacts } from './verify-proof.ts';

export interface Pair {
  readonly local: SecurityIdentity;
  readonly remote: SecurityIdentity;
  /** For this flow alone, as this node's endpoint sees it. */
  readonly flow?: FlowTuple;
}

/** Both sides' proofs of one pair, ready to be written. */
export interface ProvenPair extends Pair {
  readonly own: OwnProof;
  readonly remoteProof: Proof;
  readonly initiated: boolean;
  readonly correlation: string;
  /** Unix ms: the peer's entry lives no longer. */
  readonly peerUntilMs: number | undefined;
}

export type Outcome = Result<AuthRecord, ReasonCode>;

export interface ExchangeHost {
  readonly facts: ProofFacts;
  /** The datapath's epoch now. */
  epoch(): number;
  own(identity: SecurityIdentity): Result<OwnProof, ReasonCode>;
  /** Does an open endpoint of this node have the identity? */
  hosts(identity: SecurityIdentity): boolean;
  authTypesOf(a: SecurityIdentity, b: SecurityIdentity): readonly AuthType[];
  /** undefined: no vouch for it is on its way into the tables. */
  settled(remote: SecurityIdentity): Promise<unknown> | undefined;
  /** The endpoint that has the address; undefined: none of this node. */
  endpointAt(address: IpAddress): number | undefined;
  /** Are the flow's addresses those of the pair, here and by the peer's vouch? */
  isFlowOf(pair: Pair): boolean;
  /** Writes the kernel's entries, all in one call; when it returns, packets of these pairs pass. */
  write(pairs: readonly ProvenPair[]): AuthRecord[];
  /** `flow`: of that one alone. */
  erase(records: readonly AuthRecord[], reason: ReasonCode, flow?: FlowTuple): void;
  /** A responder's part ended: its own held packets may go, or not. */
  answered(pair: Pair, correlation: string, outcome: Outcome): void;
  readonly settings: Pick<AuthSettings, 'authTimeoutMs' | 'queueSize'>;
  readonly clock: Clock;
  readonly timers: Timers;
}

/** How long an entry lives from now, ms: what the peer's entry ends with too. */
export function lifeLeftMs(record: AuthRecord, clock: Clock): bigint {
  const leftNs = record.expiresAtNs - clock.bootNs();
  return leftNs > 0n ? leftNs / 1_000_000n : 0n;
}
