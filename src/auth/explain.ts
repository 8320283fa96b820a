/** What the auth manager can say about itself: for `countersign auth list`, `peers` and `explain`. Plain data, ready for JSON. */
import type { ReasonCode } from '../base/registry/reason-codes.ts';
import type { AuthRecord } from './auth-entries.ts';
import type { Failure } from './backoff.ts';
import type { KnownVouch } from './vouch-book.ts';

export interface AuthEntryView {
  readonly local: number;
  readonly remote: number;
  readonly localSpiffeId: string | undefined;
  readonly remoteSpiffeId: string | undefined;
  /** 0: this node. */
  readonly remoteNode: number;
  readonly remoteNodeName: string | undefined;
  readonly authType: string;
  /** CLOCK_BOOTTIME in ns, decimal. */
  readonly expiresAtNs: string;
  readonly expiresInMs: number;
  readonly epoch: number;
  readonly initiated: boolean;
  readonly correlation: string;
}

export interface VouchView {
  readonly address: string;
  readonly identity: number;
  readonly spiffeId: string | undefined;
  readonly node: number;
  readonly nodeName: string | undefined;
  readonly incarnation: string;
  readonly generation: string;
  /** Negative: run out. */
  readonly leaseLeftMs: number;
}

export interface FailureView {
  readonly reason: ReasonCode;
  /** Unix ms. */
  readonly atMs: number;
  readonly count: number;
  /** 0: now. */
  readonly retryInMs: number;
  /** Addresses, when it failed before the remote identity was known. */
  readonly localAddress?: string;
  readonly remoteAddress?: string;
  readonly remoteNode?: number;
}

export interface PairExplanation {
  readonly from: number;
  readonly to: number;
  /** Auth types that policy demands between the two. */
  readonly required: readonly string[];
  readonly fromHostedHere: boolean;
  readonly toHostedHere: boolean;
  /** Vouches for `to` or `from` by other nodes. */
  readonly vouches: readonly VouchView[];
  readonly entries: readonly AuthEntryView[];
  /** Why there is no proof of an own workload, if there is none. */
  readonly ownProof: { readonly identity: number; readonly refusal: ReasonCode | undefined }[];
  readonly lastSuccess:
    | { readonly atMs: number; readonly handshakeMs: number; readonly correlation: string }
    | undefined;
  readonly failures: readonly FailureView[];
}

export function viewOfEntry(record: AuthRecord, nodeName: string | undefined, nowNs: bigint): AuthEntryView {
  return {
    local: record.local,
    remote: record.remote,
    localSpiffeId: record.own?.svid.spiffeId,
    remoteSpiffeId: record.remoteProof?.spiffeId,
    remoteNode: record.remoteNode,
    remoteNodeName: nodeName,
    authType: record.authType,
    expiresAtNs: String(record.expiresAtNs),
    expiresInMs: Number((record.expiresAtNs - nowNs) / 1_000_000n),
    epoch: record.epoch,
    initiated: record.initiated,
    correlation: record.correlation,
  };
}

export function viewOfVouch(vouch: KnownVouch, nodeName: string | undefined, nowNs: bigint): VouchView {
  return {
    address: vouch.address,
    identity: vouch.identity,
    spiffeId: vouch.spiffeId,
    node: vouch.node,
    nodeName,
    incarnation: String(vouch.incarnation),
    generation: String(vouch.generation),
    leaseLeftMs: Number((vouch.leaseEndNs - nowNs) / 1_000_000n),
  };
}

export function viewOfFailure(failure: Failure, nowNs: bigint): FailureView {
  const left = failure.retryAtNs - nowNs;
  return {
    reason: failure.reason,
    atMs: failure.atMs,
    count: failure.count,
    retryInMs: left > 0n ? Number(left / 1_000_000n) : 0,
  };
}
