/** What the auth manager can say about itself: for `countersign auth list`, `peers` and `explain`. Plain data, ready for JSON. */
import type { ReasonCode } from '../base/registry/reason-codes.ts';
import type { FlowAuthEntry } from '../model/datapath.ts';
import type { IdentityTable } from '../model/identity.ts';
import { type IpAddress, LOCAL_NODE, type NodeId, type SecurityIdentity } from '../model/ids.ts';
import { type AuthRecord, isAdopted } from './auth-entries.ts';
import type { Backoff, Failure } from './backoff.ts';
import type { OwnProofs } from './own-proof.ts';
import type { PolicyDecisions } from './ports.ts';
import type { Proofs } from './proofs.ts';
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
  /** undefined: of a flow nobody remembers. */
  readonly initiated: boolean | undefined;
  readonly correlation: string | undefined;
  /** Written before the agent's restart and not proven anew yet. */
  readonly adopted: boolean;
  /** The one flow that it is for, as this node's endpoint sees it: protocol number, local end, remote end. */
  readonly flow?: string;
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
  readonly remoteNodeName?: string | undefined;
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
  /** For each node that vouches: do authenticators of both stand on its channel? */
  readonly authenticators: readonly {
    readonly node: number;
    readonly nodeName: string | undefined;
    readonly remote: number;
    readonly onChannel: boolean;
  }[];
  readonly entries: readonly AuthEntryView[];
  /** Why there is no proof of an own workload, if there is none. */
  readonly ownProof: { readonly identity: number; readonly refusal: ReasonCode | undefined }[];
  readonly lastSuccess:
    | { readonly atMs: number; readonly handshakeMs: number; readonly correlation: string }
    | undefined;
  readonly failures: readonly FailureView[];
}

export interface Explaining {
  readonly proofs: Proofs;
  readonly owns: OwnProofs;
  /** By key of the pair, and by pair of addresses. */
  readonly pairBackoff: Backoff;
  readonly addressBackoff: Backoff;
  hosts(identity: SecurityIdentity): boolean;
  /** Whose the address of this node is. */
  identityAt(address: IpAddress): SecurityIdentity | undefined;
  policy(): PolicyDecisions;
  vouches(): readonly VouchView[];
  /** Proofs of single flows. */
  flows(): readonly AuthEntryView[];
  nodeName(node: NodeId): string | undefined;
  readonly nowNs: bigint;
}

/** Everything known of a pair, in both orders. */
export function explainPair(from: SecurityIdentity, to: SecurityIdentity, parts: Explaining): PairExplanation {
  const { proofs, owns, hosts, nowNs } = parts;
  const concerns = (local: number, remote: number) =>
    (local === from && remote === to) || (local === to && remote === from);
  const hosted = [...new Set([from, to])].filter((identity) => hosts(identity));
  const entries = proofs.pairs.entries.list().filter((record) => concerns(record.local, record.remote));
  const pairFailures = [...parts.pairBackoff.all()].flatMap(([key, failure]) => {
    const [local, remote, node] = key.split('/').map(Number) as [number, number, NodeId];
    if (!concerns(local, remote)) return [];
    return [{ ...viewOfFailure(failure, nowNs), remoteNode: node, remoteNodeName: parts.nodeName(node) }];
  });
  const addressFailures = [...parts.addressBackoff.all()].flatMap(([key, failure]) => {
    const [localAddress, remoteAddress] = key.split('|') as [IpAddress, IpAddress];
    const local = parts.identityAt(localAddress);
    if (local === undefined || !hosted.includes(local)) return [];
    return [{ ...viewOfFailure(failure, nowNs), localAddress, remoteAddress }];
  });
  const proven = (local: SecurityIdentity, remote: SecurityIdentity, remoteNode: NodeId) =>
    remoteNode === LOCAL_NODE || proofs.onChannels.isProven({ local, remote, remoteNode, authType: 'spiffe' });
  const vouches = parts.vouches().filter((vouch) => vouch.identity === from || vouch.identity === to);
  const other = (identity: number) => (identity === from ? to : from);
  return {
    from,
    to,
    required: parts.policy().authTypesOf(from, to),
    fromHostedHere: hosted.includes(from),
    toHostedHere: hosted.includes(to),
    vouches,
    authenticators: vouches.flatMap(({ identity, node, nodeName }, i) => {
      // One node vouches for each address of the identity.
      const isFirst = vouches.findIndex((v) => v.identity === identity && v.node === node) === i;
      const local = other(identity) as SecurityIdentity;
      if (!isFirst || !hosts(local)) return [];
      const onChannel = proven(local, identity as SecurityIdentity, node as NodeId);
      return [{ node, nodeName, remote: identity, onChannel }];
    }),
    entries: [
      ...entries.map((record) => viewOfEntry(record, parts.nodeName(record.remoteNode), nowNs)),
      ...parts.flows().filter(({ local, remote }) => concerns(local, remote)),
    ],
    ownProof: hosted.map((identity) => {
      const own = owns.of(identity);
      return { identity, refusal: own.ok ? undefined : own.error };
    }),
    lastSuccess: proofs.pairs.successesOf(concerns).sort((a, b) => b.atMs - a.atMs)[0],
    failures: [...pairFailures, ...addressFailures].sort((a, b) => b.atMs - a.atMs),
  };
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
    adopted: isAdopted(record),
  };
}

export function viewOfFlow(
  { local, remote, remoteNode, authType, expiresAtNs, epoch, flow }: FlowAuthEntry,
  identities: IdentityTable,
  nodeName: string | undefined,
  nowNs: bigint,
): AuthEntryView {
  const { protocol, localAddress, localPort, remoteAddress, remotePort } = flow;
  return {
    local,
    remote,
    localSpiffeId: identities.byIdentity(local)?.spiffeId,
    remoteSpiffeId: identities.byIdentity(remote)?.spiffeId,
    remoteNode,
    remoteNodeName: nodeName,
    authType,
    expiresAtNs: String(expiresAtNs),
    expiresInMs: Number((expiresAtNs - nowNs) / 1_000_000n),
    epoch,
    initiated: undefined,
    correlation: undefined,
    adopted: false,
    flow: `${protocol} ${localAddress} ${localPort} ${remoteAddress} ${remotePort}`,
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
