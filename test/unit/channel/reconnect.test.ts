/** Where and how often nodes are dialed, and channels that end because nobody needs them. */
import { once } from 'node:events';
import { createServer } from 'node:net';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it, vi } from 'vitest';
import { DialBackoff } from '../../../src/channel/dial-backoff.ts';
import type { NodeInfo } from '../../../src/model/identity.ts';
import { createTestAuthority, type TestAuthority } from './certificates.ts';
import { eventually, TestCluster, TestNode } from './node.ts';
import { greetedTls } from './raw-peer.ts';

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

describe('after a dial that failed', () => {
  const limits = { dialBackoffMinMs: 200, dialBackoffMaxMs: 10_000 };
  const info = { spiffeId: 'spiffe://example.org/node/b', incarnation: 1n, peerAddresses: ['192.0.2.1:1'] };
  const node = info as unknown as NodeInfo;

  function backoff(random: () => number) {
    let nowMs = 0;
    const dials = new DialBackoff(limits, { bootNs: () => BigInt(nowMs * 1_000_000) }, random);
    /** ms until the node may be dialed. */
    const wait = () => {
      const begunMs = nowMs;
      while (dials.failure(node) !== undefined) nowMs += 1;
      return nowMs - begunMs;
    };
    return { dials, wait };
  }

  it('the wait doubles from 200 ms to 10 s, at least half of it and at most all', () => {
    for (const [random, share] of [
      [0, 0.5],
      [0.999999, 1],
    ] as const) {
      const { dials, wait } = backoff(() => random);
      const waits = Array.from({ length: 9 }, () => {
        dials.failed(node, 'PEER_UNREACHABLE');
        return wait();
      });
      expect(waits).toEqual([200, 400, 800, 1_600, 3_200, 6_400, 10_000, 10_000, 10_000].map((ms) => ms * share));
    }
  });

  it('an open channel, another address or a new incarnation ends it', () => {
    const { dials } = backoff(() => 1);
    dials.failed(node, 'PEER_UNREACHABLE');
    expect(dials.failure(node)).toBe('PEER_UNREACHABLE');
    expect(dials.failure({ ...node, peerAddresses: ['192.0.2.2:1'] })).toBeUndefined();
    expect(dials.failure({ ...node, incarnation: 2n })).toBeUndefined();
    dials.succeeded(node);
    expect(dials.failure(node)).toBeUndefined();
  });

  it('open is refused at once with the last reason, without a connection, until the wait is over', async () => {
    const a = await cluster.start('a', { limits: { dialBackoffMinMs: 60_000, dialBackoffMaxMs: 60_000 } });
    const b = cluster.list('b');
    let dialed = 0;
    const mute = createServer((socket) => {
      dialed++;
      socket.destroy();
    });
    mute.listen(0, '127.0.0.1');
    await once(mute, 'listening');
    const { port } = mute.address() as { port: number };
    const listed = cluster.change('b', { peerAddresses: [`127.0.0.1:${port}`] });
    for (let i = 0; i < 20; i++) {
      await expect(a.channels.open(listed)).rejects.toMatchObject({ reason: 'PEER_HANDSHAKE_FAILED' });
    }
    expect(dialed).toBe(1);
    a.clock.advance(60_000);
    await expect(a.channels.open(listed)).rejects.toThrow();
    expect(dialed).toBe(2);
    mute.close();
    // the node itself comes meanwhile: it is there at once
    const node = await cluster.start(b.name);
    await node.channels.open(a.info);
    await eventually(() => expect(a.opened).toHaveLength(1));
    await expect(a.channels.open(listed)).resolves.toMatchObject({ peer: { name: 'b' } });
  });
});

it('an address is not dialed any more when the node has come by itself meanwhile', async () => {
  const a = await cluster.start('a', { limits: { handshakeMs: 300 } });
  const b = await cluster.start('b');
  const silent = createServer();
  silent.listen(0, '127.0.0.1');
  await once(silent, 'listening');
  const { port } = silent.address() as { port: number };
  const opening = a.channels.open({ ...b.info, peerAddresses: [`127.0.0.1:${port}`, b.address] });
  await b.channels.open(a.info);
  await expect(opening).resolves.toMatchObject({ role: 'server' });
  await eventually(() => expect(a.refusals()).toEqual(['PEER_HANDSHAKE_TIMEOUT']));
  await new Promise((resolve) => setTimeout(resolve, 200));
  expect([a.opened.length, b.opened.length]).toEqual([1, 1]);
  silent.close();
});

describe('static addresses', () => {
  it('are dialed before those of the node table, and say nothing of who is there', async () => {
    const b = await cluster.start('b', { unlisted: true });
    const c = await cluster.start('c', { unlisted: true });
    const added = new Map([
      [b.info.name, [b.address]],
      // where c is said to live, b answers
      [c.info.name, [b.address]],
    ]);
    const a = await cluster.start('a', { staticAddresses: added });
    expect(b.info.peerAddresses).toEqual([]);
    await expect(a.channels.open(b.info)).resolves.toMatchObject({ peer: { name: 'b' } });
    await expect(a.channels.open(c.info)).rejects.toMatchObject({ reason: 'PEER_CERTIFICATE_REJECTED' });
    expect(c.opened).toEqual([]);
  });

  it('do not make a node of one that the identity server does not list', async () => {
    const ghost = await cluster.start('ghost', { unlisted: true });
    const added = new Map([[ghost.info.name, [ghost.address]]]);
    const a = await cluster.start('a', { staticAddresses: added });
    cluster.infos.splice(cluster.infos.indexOf(cluster.table.byName(ghost.info.name)!), 1);
    await expect(a.channels.open(ghost.info)).rejects.toMatchObject({ reason: 'PEER_UNKNOWN_NODE' });
  });
});

describe('a channel that nobody needs', () => {
  it('ends with PEER_IDLE on both ends, is refused by nobody, is not dialed again, and opens when it is needed', async () => {
    const a = await cluster.start('a', { limits: { redialAfterMs: 60_000, redialRetryMs: 1_000 } });
    const b = await cluster.start('b', { limits: { redialAfterMs: 60_000, redialRetryMs: 1_000 } });
    const channel = await a.channels.open(b.info);
    await eventually(() => expect(b.opened).toHaveLength(1));
    channel.close('PEER_IDLE');
    await eventually(() => expect(b.closed.map(({ reason }) => reason)).toEqual(['PEER_IDLE']));
    expect(a.closed.map(({ reason }) => reason)).toEqual(['PEER_IDLE']);
    for (const node of [a, b]) node.clock.advance(120_000);
    await new Promise((resolve) => setTimeout(resolve, 150));
    expect(a.opened.length + b.opened.length).toBe(2);
    expect([...a.refusals(), ...b.refusals()]).toEqual([]);
    const again = await b.channels.open(a.info);
    expect(again.role).toBe('client');
  });
});

describe('a peer that does not read', () => {
  it('costs a bounded queue: nothing more is read from it, and the others go on', async () => {
    const limits = { pauseAtBytes: 64 * 1024, sendQueueBytes: 32 * 1024 * 1024 };
    const answer = Buffer.alloc(16_000);
    const a = await cluster.start('a', { limits, onFrame: (channel) => channel.send(TestNode.someType, answer) });
    const deafInfo = cluster.list('deaf');
    const deaf = await greetedTls(a.port, cluster.svidOf(deafInfo));
    deaf.hello(deafInfo);
    await eventually(() => expect(a.opened).toHaveLength(1));
    const other = await cluster.start('other');
    // as of a process that is stopped, or busy
    deaf.socket.pause();
    for (let i = 0; i < 5_000; i++) deaf.frame(TestNode.someType, Buffer.alloc(500));
    await eventually(() => expect(a.frames.length).toBeGreaterThan(0));
    let before = -1;
    await vi.waitFor(
      () => {
        const now = a.frames.length;
        const stood = now === before;
        before = now;
        expect(stood).toBe(true);
      },
      { interval: 300, timeout: 5_000 },
    );
    // far fewer than were sent: what stands in sockets and one read, and the answers wait in a queue of that size
    expect(a.frames.length).toBeLessThan(2_500);
    expect(a.closed).toEqual([]);
    const channelOfOther = await other.channels.open(a.info);
    channelOfOther.send(TestNode.someType, Buffer.alloc(1));
    await eventually(() => expect(other.frames).toHaveLength(1));
    deaf.socket.resume();
    await vi.waitFor(() => expect(a.frames).toHaveLength(5_001), { timeout: 5_000 });
    await vi.waitFor(() => expect(deaf.octets).toBeGreaterThan(5_000 * answer.length), { timeout: 5_000 });
  });
});
