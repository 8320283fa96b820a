/** Two agents, one channel: what holds when both are honest. */
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { FrameType } from '../../../proto/gen/countersign/peer/v1/peer.ts';
import type { NodeInfo } from '../../../src/model/identity.ts';
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

const label = 'EXPORTER-test';
const none = Buffer.alloc(0);

describe('peer channels', () => {
  it('opens one channel, which both ends know by the other one', async () => {
    const a = await cluster.start('a');
    const b = await cluster.start('b');
    const channel = await a.channels.open(b.info);
    expect(channel.role).toBe('client');
    expect(channel.peer.spiffeId).toBe('spiffe://example.org/node/b');
    expect(channel.hash).toBe('sha384');
    await eventually(() => expect(b.opened).toHaveLength(1));
    expect(b.opened[0]!.role).toBe('server');
    expect(b.opened[0]!.peer.name).toBe('a');
    expect(await a.channels.open(b.info)).toBe(channel);
    expect(await b.channels.open(a.info)).toBe(b.opened[0]);
    expect(a.audit.map(({ kind }) => kind)).toEqual(['peer.opened']);
    expect(b.audit[0]).toMatchObject({
      kind: 'peer.opened',
      source: { node: 'a', spiffeId: 'spiffe://example.org/node/a' },
      destination: { node: 'b' },
    });
  });

  it('draws the same keys on both ends, others by another label or length, and others on the next channel', async () => {
    const a = await cluster.start('a');
    const b = await cluster.start('b');
    const first = await a.channels.open(b.info);
    await eventually(() => expect(b.opened).toHaveLength(1));
    const key = first.exportKey(label, none, 48);
    expect(b.opened[0]!.exportKey(label, none, 48)).toEqual(key);
    expect(first.exportKey('EXPORTER-other', none, 48)).not.toEqual(key);
    expect(first.exportKey(label, none, 32)).not.toEqual(key.subarray(0, 32));
    first.close('PEER_SHUTDOWN');
    expect(() => first.exportKey(label, none, 48)).toThrow('closed');
    await eventually(() => expect(b.closed).toHaveLength(1));
    const second = await a.channels.open(b.info);
    expect(second.exportKey(label, none, 48)).not.toEqual(key);
  });

  it('delivers frames in order, the largest one whole, and closes rather than send a larger one', async () => {
    const a = await cluster.start('a');
    const b = await cluster.start('b');
    const channel = await a.channels.open(b.info);
    const bodies = [Buffer.alloc(0), Buffer.from('one'), Buffer.alloc(65_535, 7), Buffer.from('last')];
    for (const body of bodies) channel.send(TestNode.someType, body);
    await eventually(() => expect(b.frames).toHaveLength(4));
    expect(b.frames.map(({ body }) => body)).toEqual(bodies);
    channel.send(TestNode.someType, Buffer.alloc(65_536));
    expect(channel.closed).toBe(true);
    expect(a.closed.map(({ reason }) => reason)).toEqual(['PEER_FRAME_TOO_LARGE']);
  });

  it('tells the reason to the other end when it closes, and drops what is sent afterwards', async () => {
    const a = await cluster.start('a');
    const b = await cluster.start('b');
    const channel = await a.channels.open(b.info);
    channel.close('AUTH_REVOKED');
    channel.send(TestNode.someType, none);
    expect(a.channels.list()).toEqual([]);
    await eventually(() => expect(b.closed.map(({ reason }) => reason)).toEqual(['AUTH_REVOKED']));
    expect(b.frames).toEqual([]);
    expect(b.audit.at(-1)).toMatchObject({ kind: 'peer.closed', reason: 'AUTH_REVOKED', detail: { by: 'peer' } });
  });

  it('keeps exactly one channel of two dialed at the same time, the one of the lower name, on both ends', async () => {
    for (let round = 0; round < 10; round++) {
      const [low, high] = [`a${round}`, `b${round}`];
      const a = await cluster.start(low);
      const b = await cluster.start(high);
      const [one, two] = await Promise.allSettled([a.channels.open(b.info), b.channels.open(a.info)]);
      expect([one.status, two.status]).toEqual(['fulfilled', 'fulfilled']);
      await eventually(() => {
        const live = [...a.opened, ...b.opened].filter(({ closed }) => !closed);
        expect(live.map(({ role }) => role).sort()).toEqual(['client', 'server']);
        expect(a.channels.list()[0]!.exportKey(label, none, 32)).toEqual(
          b.channels.list()[0]!.exportKey(label, none, 32),
        );
      });
      if (a.opened.length + b.opened.length > 2) expect(a.channels.list()[0]!.role).toBe('client');
    }
  });

  it('goes on to the next address when the first leads nowhere or to another node', async () => {
    const a = await cluster.start('a');
    const b = await cluster.start('b');
    const c = await cluster.start('c');
    const listed: NodeInfo = { ...b.info, peerAddresses: ['127.0.0.1:1', 'not an address', c.address, b.address] };
    const channel = await a.channels.open(listed);
    expect(channel.peer.name).toBe('b');
    expect(a.refusals()).toEqual(['PEER_UNREACHABLE', 'PEER_CERTIFICATE_REJECTED']);
    await eventually(() => expect(c.refusals()).toHaveLength(1));
    expect(c.opened).toEqual([]);
  });

  it('rejects with the reason when the node cannot be reached', async () => {
    const a = await cluster.start('a');
    const b = cluster.list('b');
    await expect(a.channels.open({ ...b, peerAddresses: ['127.0.0.1:1'] })).rejects.toMatchObject({
      reason: 'PEER_UNREACHABLE',
      code: 'unavailable',
    });
    await expect(a.channels.open(a.info)).rejects.toMatchObject({ reason: 'PEER_NODE_IN_USE' });
  });

  it('keeps a silent channel alive with pings and closes it when they stay without an answer', async () => {
    const a = await cluster.start('a', { limits: { pingAfterMs: 30, idleMs: 120 } });
    const b = await cluster.start('b', { limits: { pingAfterMs: 10_000, idleMs: 20_000 } });
    const channel = await a.channels.open(b.info);
    await new Promise((resolve) => setTimeout(resolve, 300));
    expect(channel.closed).toBe(false);
    expect(a.frames.concat(b.frames)).toEqual([]);
    a.clock.advance(121);
    await eventually(() => expect(a.closed.map(({ reason }) => reason)).toEqual(['PEER_IDLE_TIMEOUT']));
  });

  it('redials before it must, tells the new channel before the old one ends, and loses no frame', async () => {
    const a = await cluster.start('a', { limits: { redialAfterMs: 60_000, redialRetryMs: 1_000, idleMs: 600_000 } });
    const b = await cluster.start('b');
    const first = await a.channels.open(b.info);
    await eventually(() => expect(b.opened).toHaveLength(1));
    let sent = 0;
    const sender = setInterval(() => b.channels.get(a.info)!.send(TestNode.someType, Buffer.from([sent++])), 1);
    a.clock.advance(61_000);
    await eventually(() => expect(a.closed).toHaveLength(1));
    await eventually(() => expect(b.closed).toHaveLength(1));
    clearInterval(sender);
    await eventually(() => expect(a.frames).toHaveLength(sent));
    expect(a.opened).toHaveLength(2);
    expect(b.opened).toHaveLength(2);
    for (const node of [a, b]) {
      expect(node.audit.map(({ kind, reason }) => reason ?? kind)).toEqual([
        'peer.opened',
        'peer.opened',
        'PEER_REPLACED',
      ]);
    }
    const second = a.channels.get(b.info)!;
    expect(second).not.toBe(first);
    expect(second.exportKey(label, none, 32)).toEqual(b.channels.get(a.info)!.exportKey(label, none, 32));
  });

  it('hears nothing of an earlier life once a newer one is there: break before make', async () => {
    const a = await cluster.start('a', { limits: { redialAfterMs: 60_000, redialRetryMs: 1_000, idleMs: 600_000 } });
    const earlier = await cluster.start('b');
    const first = await a.channels.open(earlier.info);
    await eventually(() => expect(earlier.opened).toHaveLength(1));
    // the same name, dialed anew by a, in another life at another place
    cluster.change('b', { incarnation: 2n });
    const later = await cluster.start('b');
    const talking = setInterval(() => earlier.channels.get(a.info)?.send(TestNode.someType, none), 1);
    a.clock.advance(61_000);
    await eventually(() => expect(later.opened).toHaveLength(1));
    await eventually(() => expect(a.order).toEqual(['opened 1', 'closed 1 PEER_INCARNATION_BARRED', 'opened 2']));
    expect(first.closed).toBe(true);
    clearInterval(talking);
    await eventually(() => expect(earlier.closed.map(({ reason }) => reason)).toEqual(['PEER_INCARNATION_BARRED']));
  });

  it('closes at the end of the shorter node certificate', async () => {
    const a = await cluster.start('a', { limits: { redialRetryMs: 100_000_000 } });
    const b = await cluster.start('b', {
      svid: authority.issue({ spiffeId: 'spiffe://example.org/node/b', incarnation: '1', notAfter: 600 }),
    });
    const channel = await a.channels.open(b.info);
    expect(channel.validUntilMs).toBe(b.svid.notAfterMs);
    a.clock.advance(600_000);
    await eventually(() => expect(a.closed.map(({ reason }) => reason)).toEqual(['CERT_EXPIRED']));
  });

  it('is dialed anew before the certificates end, under the renewed one, and nothing is without a channel meanwhile', async () => {
    const short = authority.issue({ spiffeId: 'spiffe://example.org/node/a', incarnation: '1', notAfter: 600 });
    const a = await cluster.start('a', { svid: short, limits: { idleMs: 3_600_000, redialRetryMs: 1_000 } });
    const b = await cluster.start('b', { limits: { idleMs: 3_600_000 } });
    await a.channels.open(b.info);
    a.svid = authority.issue({ spiffeId: 'spiffe://example.org/node/a', incarnation: '1', notAfter: 3_000 });
    // nine tenths of four fifths of its rest is the earliest
    a.clock.advance(420_000);
    await new Promise((resolve) => setTimeout(resolve, 50));
    expect(a.opened).toHaveLength(1);
    a.clock.advance(62_000);
    await eventually(() => expect(a.closed.map(({ reason }) => reason)).toEqual(['PEER_REPLACED']));
    expect(a.opened.map(({ validUntilMs }) => validUntilMs)).toEqual([short.notAfterMs, a.svid.notAfterMs]);
    a.clock.advance(130_000);
    await new Promise((resolve) => setTimeout(resolve, 50));
    expect(a.closed).toHaveLength(1);
    expect(a.channels.get(b.info)?.closed).toBe(false);
  });

  it('beyond the cap on connections nobody gets in, nor out, until one has left', async () => {
    const a = await cluster.start('a', { limits: { connections: 2 } });
    const [b, c, d] = [await cluster.start('b'), await cluster.start('c'), await cluster.start('d')];
    await a.channels.open(b.info);
    await c.channels.open(a.info);
    await eventually(() => expect(a.opened).toHaveLength(2));
    await expect(d.channels.open(a.info)).rejects.toThrow();
    await expect(a.channels.open(d.info)).rejects.toMatchObject({ reason: 'PEER_TOO_MANY_CONNECTIONS' });
    expect(a.refusals()).toEqual(['PEER_TOO_MANY_CONNECTIONS']);
    a.channels.get(b.info)!.close('PEER_IDLE');
    await expect(d.channels.open(a.info)).resolves.toMatchObject({ closed: false });
  });

  it('presents a renewed node certificate to the next peer, dialing and accepting', async () => {
    const a = await cluster.start('a');
    const b = await cluster.start('b');
    const c = await cluster.start('c');
    a.svid = authority.issue({ spiffeId: a.info.spiffeId, incarnation: '1', notAfter: 1800 });
    const dialed = await a.channels.open(b.info);
    await c.channels.open(a.info);
    expect(dialed.validUntilMs).toBe(a.svid.notAfterMs);
    expect(c.opened[0]!.validUntilMs).toBe(a.svid.notAfterMs);
  });

  it('closes the channels of a node whose certificate is revoked, and only those', async () => {
    const a = await cluster.start('a');
    const b = await cluster.start('b');
    const c = await cluster.start('c');
    await a.channels.open(b.info);
    await a.channels.open(c.info);
    a.revoked = ({ node }) => node === b.info.spiffeId;
    a.channels.revokeCheck();
    expect(a.closed.map(({ channel, reason }) => [channel.peer.name, reason])).toEqual([['b', 'AUTH_REVOKED']]);
    expect(a.channels.list().map(({ peer }) => peer.name)).toEqual(['c']);
    await expect(a.channels.open(b.info)).rejects.toMatchObject({ reason: 'AUTH_REVOKED' });
    await expect(b.channels.open(a.info)).rejects.toMatchObject({ reason: 'AUTH_REVOKED' });
  });

  it('closes all channels when the agent shuts down, and rejects who still waits', async () => {
    const a = await cluster.start('a');
    const b = await cluster.start('b');
    await a.channels.open(b.info);
    const c = cluster.list('c');
    const waiting = expect(a.channels.open({ ...c, peerAddresses: ['192.0.2.1:1'] })).rejects.toMatchObject({
      reason: 'PEER_SHUTDOWN',
    });
    await a.channels.close();
    await waiting;
    await eventually(() => expect(b.closed.map(({ reason }) => reason)).toEqual(['PEER_SHUTDOWN']));
    await expect(a.channels.open(b.info)).rejects.toMatchObject({ reason: 'PEER_SHUTDOWN' });
  });

  it('stays open when a layer above throws at opening, and closes when a body does not decode', async () => {
    const a = await cluster.start('a');
    const b = await cluster.start('b', {
      onFrame: () => {
        throw new RangeError('does not decode');
      },
    });
    const channel = await a.channels.open(b.info);
    channel.send(FrameType.FRAME_TYPE_MISS, none);
    await eventually(() => expect(a.closed.map(({ reason }) => reason)).toEqual(['PEER_FRAME_MALFORMED']));
  });
});
