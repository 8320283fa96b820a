/** A key is tainted and all of a cluster renew what it signed: at a pace that one server keeps, and at once where there is little. */
import { expect, test } from 'vitest';
import { renewalSpreadMs } from '../../../src/agent/server-client/renewal.ts';

/** One identity on as many nodes as it takes. */
function clusterOf(nodes: number, svids: number) {
  const rows = [{ nodes: Array.from({ length: svids }) }];
  const all = Array.from({ length: nodes });
  return { identities: { rows: () => rows as never }, nodes: { nodes: () => all as never } };
}

test('two nodes with a few workloads wait for some milliseconds', () => {
  expect(renewalSpreadMs(clusterOf(2, 7), () => 1)).toBeLessThan(20);
});

test('a thousand agents with a hundred SVIDs each come at a thousand SVIDs a second, not all at once', () => {
  const cluster = clusterOf(1000, 100_000);
  const waits = Array.from({ length: 1000 }, () => renewalSpreadMs(cluster));
  const perSecond = new Map<number, number>();
  for (const ms of waits) perSecond.set(Math.floor(ms / 1000), (perSecond.get(Math.floor(ms / 1000)) ?? 0) + 100);
  expect(Math.max(...waits)).toBeLessThanOrEqual(105_000);
  // 952 on average; three in a million seconds have as many as this
  expect(Math.max(...perSecond.values())).toBeLessThan(3_000);
});

test('the largest cluster is done within five minutes: half of the shortest life is more', () => {
  expect(renewalSpreadMs(clusterOf(10_000, 1_000_000), () => 1)).toBe(300_000);
});
