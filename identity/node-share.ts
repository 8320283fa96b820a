/**
 * How many SVIDs a node may ask for: each is a row of the ledger and a line of the audit log, and a stolen node must not fill the disk on which
 * everybody's are recorded. A node that renews all that it has, twice over, does not notice.
 */
import { status } from '@grpc/grpc-js';
import type { Clock } from '../src/base/clock.ts';
import { createSeldom } from '../src/base/seldom.ts';
import { fullBucket, refill, type TokenBucket, take } from '../src/base/token-bucket.ts';
import type { AuditSink } from '../src/model/audit-event.ts';
import type { NodeName } from '../src/model/ids.ts';
import { Refusal } from './refusal.ts';

/** Saved up by a node that asked for nothing: this, and so many for each of its entries. */
const SAVED = 512;
const SAVED_PER_ENTRY = 4;
/** A second's share grows by one for so many entries. */
const ENTRIES_PER_SECOND = 10;
/** A node that is refused is an audit event once in this time. */
const TELL_NS = 60n * 1_000_000_000n;
const MAX_TOLD = 10_000;

export interface NodeShareOptions {
  /** SVIDs a second for each node. */
  readonly perSecond: number;
  readonly entriesOf: (node: NodeName) => number;
  readonly clock: Pick<Clock, 'bootNs'>;
  readonly audit: AuditSink;
}

/** Takes `count` from the node's share, or nothing. @throws Refusal ISSUE_RATE */
export function nodeShares({
  perSecond,
  entriesOf,
  clock,
  audit,
}: NodeShareOptions): (node: NodeName, count: number) => void {
  /** As many as there are nodes. */
  const shares = new Map<NodeName, TokenBucket>();
  const seldom = createSeldom(TELL_NS, MAX_TOLD, clock);
  return (node, count) => {
    const nowNs = clock.bootNs();
    const entries = entriesOf(node);
    const most = SAVED + SAVED_PER_ENTRY * entries;
    const share = shares.get(node) ?? fullBucket(most, nowNs);
    shares.set(node, share);
    refill(share, nowNs, perSecond + entries / ENTRIES_PER_SECOND, most);
    if (take(share, count)) return;
    const suppressed = seldom(node);
    if (suppressed !== undefined) {
      const detail = { asked: count, suppressed };
      audit.emit({ kind: 'svid.refused', reason: 'ISSUE_RATE', source: { node }, detail });
    }
    throw new Refusal('ISSUE_RATE', status.RESOURCE_EXHAUSTED, 'ask again later, or raise limits.svidsPerNode');
  };
}
