/** Five hundred workloads on one node, each with a stack of its own: each reaches the one it may, and nobody else. */
import { afterAll, beforeAll, expect, test } from 'vitest';
import { SLOW } from '../support/slow.ts';
import { Lab } from './support/lab.ts';

const COUNT = 500;
/** Workload i may open to i + 1 of its own ring of ten, so that both the allowed and the denied are many. */
const RING = 10;

const name = (i: number) => `w${i}`;
const next = (i: number) => (i % RING === RING - 1 ? i - RING + 1 : i + 1);

const lab = new Lab('me', {
  fixedNeighbours: true,
  workloads: Array.from({ length: COUNT }, (_, i) => ({
    name: name(i),
    labels: { app: name(i), opens: name(next(i)) },
  })),
});

const policies = Array.from(
  { length: COUNT },
  (_, i) => `---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: ${name(i)}}
spec:
  endpointSelector: {matchLabels: {app: ${name(i)}}}
  ingress: [{fromEndpoints: [{matchLabels: {opens: ${name(i)}}}]}]
`,
).join('');

/** Which of the pairs a ping gets through. Fifty at a time: the machine is small. */
async function reached(pairs: readonly (readonly [number, number])[], waitSeconds: number): Promise<boolean[]> {
  const results: boolean[] = [];
  for (let at = 0; at < pairs.length; at += 50) {
    const batch = pairs.slice(at, at + 50).map(([from, to], i) => {
      const address = (at + i) % 2 === 0 ? lab.address4(name(to)) : lab.address6(name(to));
      const child = lab.spawn(name(from), 'ping', '-n', '-q', '-c1', `-W${waitSeconds}`, address);
      return new Promise<boolean>((resolve) => child.once('exit', (status) => resolve(status === 0)));
    });
    results.push(...(await Promise.all(batch)));
  }
  return results;
}

beforeAll(async () => {
  await lab.open();
  await lab.policy(policies);
}, 180_000 * SLOW);

afterAll(() => lab.close(), 60_000 * SLOW);

test('each of 500 endpoints is attached and open', async () => {
  const endpoints = await lab.datapath.call('listEndpoints');
  expect(endpoints).toHaveLength(COUNT);
  expect(endpoints.every((e) => e.open)).toBe(true);
  expect(new Set(endpoints.map((e) => e.ifindex)).size).toBe(COUNT);
});

test(
  'each reaches the one it may',
  async () => {
    const before = await lab.drops();
    const got = await reached(
      Array.from({ length: COUNT }, (_, i) => [i, next(i)] as const),
      5 * SLOW,
    );
    expect(got.filter((ok) => !ok)).toEqual([]);
    expect(await lab.drops()).toEqual(before);
  },
  120_000 * SLOW,
);

test(
  'and nobody else: not the one behind, not the next ring, all by policy',
  async () => {
    const before = await lab.drops();
    const pairs = Array.from({ length: COUNT }, (_, i) => [i, (i + 2 + (i % 7) * RING) % COUNT] as const).filter(
      ([from, to]) => to !== from && next(from) !== to,
    );
    expect(pairs.length).toBeGreaterThan(400);
    const got = await reached(pairs, 0.3);
    expect(got.filter((ok) => ok)).toEqual([]);
    const now = await lab.drops();
    expect(Object.keys(now).filter((reason) => now[reason] !== before[reason])).toEqual(['POLICY_DENIED']);
    expect(now.POLICY_DENIED! - (before.POLICY_DENIED ?? 0)).toBe(pairs.length);
  },
  120_000 * SLOW,
);
