/** Ten thousand connections at once: channels that stand go on, and nodes get in. */
import { fork } from 'node:child_process';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it, vi } from 'vitest';
import { DEFAULT_CHANNEL_LIMITS } from '../../../src/channel/limits.ts';
import { createTestAuthority, type TestAuthority } from './certificates.ts';
import { eventually, TestCluster, TestNode } from './node.ts';

let authority: TestAuthority;
let cluster: TestCluster;
beforeAll(() => {
  authority = createTestAuthority('example.org');
});
afterAll(() => authority.close());
beforeEach(() => {
  cluster = new TestCluster(authority);
});
afterEach(() => cluster.close());

/** A sixth of the default lease, on however busy a machine. How long it takes on an idle one: docs/peer-channel.md. */
const RENEW_MS = 5_000;

function flood(
  port: number,
  kind: 'tcp' | 'tls',
  count: number,
  sources: number,
): Promise<{ ended: number; handshakes: number }> {
  const child = fork(join(import.meta.dirname, 'flooder.ts'), [port, kind, count, sources].map(String));
  return new Promise((resolve, reject) => {
    child.on('message', (message) => resolve(message as { ended: number; handshakes: number }));
    child.on('error', reject);
    child.on('exit', (code) => code !== 0 && reject(new Error(`the flooder ended with ${code}`)));
  });
}

describe.each([
  ['10,000 connections, silent, each from an address of its own', 'tcp', 10_000, 10_000, 'a node that dials gets in'],
  ['2,000 TLS handshakes, each from an address of its own', 'tls', 2_000, 2_000, 'a node that dials gets in'],
  ['2,000 TLS handshakes from the address of a listed node', 'tls', 2_000, 1, 'the node keeps its channel'],
] as const)('%s', (_, kind, count, sources, also) => {
  it(`a channel that renews goes on in time, and ${also}`, async () => {
    const victim = await cluster.start('victim', {
      limits: DEFAULT_CHANNEL_LIMITS,
      onFrame: (channel) => channel.send(TestNode.someType, Buffer.from('renewed')),
    });
    const friend = await cluster.start('friend');
    const channel = await friend.channels.open(victim.info);
    const waits: number[] = [];
    let asked = 0;
    const renewing = setInterval(() => {
      const begun = performance.now();
      const mine = ++asked;
      channel.send(TestNode.someType, Buffer.from('renew'));
      const seen = setInterval(() => {
        if (friend.frames.length < mine) return;
        clearInterval(seen);
        waits.push(performance.now() - begun);
      }, 1);
    }, 50);
    const begun = performance.now();
    const flooded = flood(victim.port, kind, count, sources);
    await vi.waitFor(() => expect(victim.refusals()).not.toEqual([]), { timeout: 20_000 });
    if (sources > 1) {
      const late = await cluster.start('late');
      await expect(late.channels.open(victim.info)).resolves.toMatchObject({ closed: false });
    }
    const { ended, handshakes } = await flooded;
    clearInterval(renewing);
    await eventually(() => expect(waits).toHaveLength(asked));
    expect(ended).toBe(count);
    expect(Math.max(...waits)).toBeLessThan(RENEW_MS);
    // the burst, and then so many a second, is all the cryptography that it made this node do
    const { handshakeBurst, handshakesPerSecond } = DEFAULT_CHANNEL_LIMITS;
    expect(handshakes).toBeLessThanOrEqual(handshakeBurst + (handshakesPerSecond * (performance.now() - begun)) / 1000);
    expect(friend.closed).toEqual([]);
    expect(victim.closed).toEqual([]);
  }, 60_000);
});
