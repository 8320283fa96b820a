/** What the CLI shows of a node whose agent may be down: straight from the pinned maps. */

import { native } from '../../native/index.ts';
import { readPinned } from '../datapath/pinned.ts';
import type { AuthEntry } from '../model/datapath.ts';

export interface AuthRow {
  readonly local: number;
  readonly remote: number;
  readonly remoteNode: number;
  readonly authType: string;
  readonly epoch: number;
  readonly expiresInMs: number;
}

export function authRow(entry: AuthEntry, nowNs: bigint): AuthRow {
  return {
    local: entry.local,
    remote: entry.remote,
    remoteNode: entry.remoteNode,
    authType: entry.authType,
    epoch: entry.epoch,
    expiresInMs: Math.max(0, Number((entry.expiresAtNs - nowNs) / 1_000_000n)),
  };
}

/** @throws CountersignError not-found when nothing is pinned for this node */
export function pinnedAuthEntries(bpffs: string, node: string): Record<string, unknown>[] {
  const now = native().bootTimeNs();
  return readPinned(bpffs, node).auth.map((entry) => ({ ...authRow(entry, now) }));
}
