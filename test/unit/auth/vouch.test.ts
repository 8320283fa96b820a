/**
 * What comes into force and for how long: vouches, leases and what the control plane takes away, rule by rule (numbered as in docs/architecture.md),
 * on the real state machines with a simulated clock and network.
 */
import { describe, expect, test } from 'vitest';
import { FrameType, type VouchReply, VouchRequest } from '../../../proto/gen/countersign/peer/v1/peer.ts';
import { addressWireBytes, parsePrefix } from '../../../src/model/address.ts';
import { spiffeId } from '../../../src/model/spiffe-id.ts';
import { a, b, backend, c, eachInItsOwnWorld, forge, frontend, meet, refusals, world } from './vouch-support.ts';
import { address, channelOf, type Frame, inject, type SimNode, type Workload } from './world.ts';

eachInItsOwnWorld();

describe('rule 1, vouch', () => {
  test('only the address that was asked for, answered to the nonce, comes into force', async () => {
    forge((reply) => ({
      ...reply,
      vouches: reply.vouches.map((v) => ({ ...v, address: addressWireBytes(address('10.0.2.9')) })),
    }));
    await meet();
    expect(a.believes(backend.ip)).toBeUndefined();
    expect(a.believes(address('10.0.2.9'))).toBeUndefined();
    expect(refusals()).toEqual(['VOUCH_NOT_HOSTED', 'VOUCH_NOT_HOSTED']);
  });

  test('an address outside the node’s prefixes is refused', async () => {
    b.info = { ...b.info, prefixes: [] };
    const hinted = { ...world.nodeTable, candidates: () => [b.info] };
    a.start({ nodes: hinted });
    a.manager.addEndpoint({ ...frontend, addresses: [frontend.ip] });
    await meet();
    expect(refusals()).toEqual(['VOUCH_NOT_GRANTED', 'VOUCH_NOT_GRANTED']);
    expect(a.believes(backend.ip)).toBeUndefined();
    expect(a.tunnelAllowed.size).toBe(0);
  });

  test('an identity that the table does not have, or ties to another SPIFFE ID, or allows elsewhere only', async () => {
    const cases: [Partial<VouchReply['vouches'][number]>, string][] = [
      [{ securityIdentity: 999 }, 'VOUCH_UNKNOWN_IDENTITY'],
      [{ spiffeId: 'spiffe://example.org/frontend' }, 'VOUCH_IDENTITY_MISMATCH'],
      [{ securityIdentity: 300, spiffeId: 'spiffe://example.org/frontend' }, 'VOUCH_WRONG_NODE'],
    ];
    for (const [change, reason] of cases) {
      forge((reply) => ({ ...reply, vouches: reply.vouches.map((v) => ({ ...v, ...change })) }));
      await meet();
      expect(refusals().at(-1)).toBe(reason);
      expect(a.believes(backend.ip)).toBeUndefined();
      await world.pass(31_000);
    }
  });

  test('while another node’s lease lives, it wins; afterwards the address may move, break before make', async () => {
    c.info = { ...c.info, prefixes: [...c.info.prefixes, parsePrefix('10.0.2.0/24')!] };
    await meet();
    const mover = await world.workload('mover', c, '10.0.2.2', 303);
    world.cut('a', 'b');
    channelOf(a, c).close('PEER_REPLACED');
    a.start();
    a.manager.addEndpoint({ ...frontend, addresses: [frontend.ip] });
    a.manager.signal(missOf(frontend, mover));
    await world.settle();
    expect(refusals().slice(-2)).toEqual(['VOUCH_HELD_BY_OTHER', 'VOUCH_HELD_BY_OTHER']);
    expect(a.believes(backend.ip)).toBe(301);
    a.log.length = 0;
    await world.pass(31_000);
    expect(a.believes(backend.ip), 'asked again as soon as the address is free').toBe(303);
    const steps = a.log.filter((line) => !line.includes('10.0.1.') && !line.startsWith('auth'));
    expect(steps.slice(steps.lastIndexOf('vouch- 10.0.2.2'))).toEqual([
      'vouch- 10.0.2.2',
      'quiesce',
      'end 3',
      'end 2',
      'allow 10.0.2.2 3',
      'quiesce',
      'vouch+ 10.0.2.2 303@3',
    ]);
  });

  test('an own address and a reserved one are never another node’s', async () => {
    a.kernelAddresses.set(backend.ip, {
      ...a.kernelAddresses.get(frontend.ip)!,
      address: backend.ip,
    });
    a.manager.signal(missOf(frontend, backend));
    await world.settle();
    expect(refusals()).toEqual(['VOUCH_HELD_BY_OTHER', 'VOUCH_HELD_BY_OTHER']);
    a.kernelAddresses.set(backend.ip, { ...a.kernelAddresses.get(backend.ip)!, reserved: true });
    await world.pass(31_000);
    a.manager.signal(missOf(frontend, backend));
    await world.settle();
    expect(refusals().at(-1)).toBe('VOUCH_NOT_GRANTED');
  });

  test('a question before the earlier life was let go of closes the channel', async () => {
    world.intercept = (frame) => (frame.type === FrameType.FRAME_TYPE_RESET ? undefined : [frame]);
    world.connect(a, b);
    await world.settle();
    const request = { nonce: Buffer.alloc(16), addresses: [addressWireBytes(backend.ip)], own: [] };
    inject(channelOf(b, a), FrameType.FRAME_TYPE_VOUCH_REQUEST, Buffer.from(VouchRequest.encode(request).finish()));
    expect(b.closedChannels).toEqual([{ peer: 'a', reason: 'PEER_FRAME_UNEXPECTED' }]);
    expect(world.frames.some((frame) => frame.type === FrameType.FRAME_TYPE_VOUCH_REPLY)).toBe(false);
  });

  test('a vouch is in force only when the tunnel’s entry is written, too', async () => {
    const gate = Promise.withResolvers<void>();
    a.tunnelGate = gate.promise;
    await meet();
    expect(a.believes(backend.ip)).toBeUndefined();
    gate.resolve();
    await world.settle();
    expect(a.believes(backend.ip)).toBe(301);
    expect(a.log).toEqual(['opened 1', 'allow 10.0.2.2 2', 'vouch+ 10.0.2.2 301@2']);
  });
});

describe('rule 2, lease', () => {
  test('ends a lease after the request was sent, however late the answer', async () => {
    const late: Frame[] = [];
    world.intercept = (frame) => {
      if (frame.type !== FrameType.FRAME_TYPE_VOUCH_REPLY || frame.from !== 'b') return [frame];
      late.push(frame);
      return undefined;
    };
    const sentNs = world.time.bootNs();
    await meet();
    await world.pass(1_500);
    world.intercept = undefined;
    inject(channelOf(a, b), late[0]!.type, late[0]!.body);
    await world.settle();
    expect(a.kernelAddresses.get(backend.ip)!.leaseEndNs).toBe(sentNs + 30_000_000_000n);
  });

  test('an answer after the request timed out is worth nothing', async () => {
    const late: Frame[] = [];
    world.intercept = (frame) => {
      if (frame.type !== FrameType.FRAME_TYPE_VOUCH_REPLY || frame.from !== 'b') return [frame];
      late.push(frame);
      return undefined;
    };
    await meet();
    await world.pass(2_100);
    world.intercept = undefined;
    inject(channelOf(a, b), late[0]!.type, late[0]!.body);
    await world.settle();
    expect(a.believes(backend.ip)).toBeUndefined();
    expect(a.reasons('auth.failed')).toEqual(['VOUCH_TIMEOUT']);
  });

  test('the same answer twice renews nothing', async () => {
    const replies: Frame[] = [];
    world.intercept = (frame) => {
      if (frame.type === FrameType.FRAME_TYPE_VOUCH_REPLY && frame.from === 'b') replies.push(frame);
      return [frame];
    };
    await meet();
    const endNs = a.kernelAddresses.get(backend.ip)!.leaseEndNs;
    inject(channelOf(a, b), replies[0]!.type, replies[0]!.body);
    await world.settle();
    expect(a.kernelAddresses.get(backend.ip)!.leaseEndNs).toBe(endNs);
  });

  test('is renewed at a third, and a longer one than this node’s own setting is cut', async () => {
    forge((reply) => ({ ...reply, vouches: reply.vouches.map((v) => ({ ...v, leaseMs: 4_000_000_000 })) }));
    await meet();
    for (let i = 0; i < 12; i++) {
      const leftNs = a.kernelAddresses.get(backend.ip)!.leaseEndNs! - world.time.bootNs();
      expect(leftNs).toBeGreaterThan(19_000_000_000n);
      expect(leftNs).toBeLessThanOrEqual(30_000_000_000n);
      await world.pass(5_000);
    }
    expect(a.reasons('vouch.taken')).toHaveLength(1);
  });

  test('a partition: traffic ends at the lease, and comes back after it heals', async () => {
    await meet();
    world.cut('a', 'b');
    await world.pass(29_000);
    expect(world.send(frontend, backend)).toBe('passed');
    await world.pass(2_000);
    expect(a.kernelAddresses.has(backend.ip)).toBe(false);
    expect(a.tunnelAllowed.has(backend.ip)).toBe(false);
    world.heal('a', 'b');
    await world.pass(31_000);
    await meet();
    expect(a.believes(backend.ip)).toBe(301);
  });

  test('a channel that ends while leases live is opened again, and they are renewed on it', async () => {
    await meet();
    channelOf(a, b).close('PEER_IDLE_TIMEOUT');
    await world.pass(60_000);
    expect(a.believes(backend.ip)).toBe(301);
    expect(a.reasons('lease.expired')).toEqual([]);
  });
});

describe('the control plane', () => {
  test('an identity that changes its SPIFFE ID, or a prefix that is taken away, ends the vouch', async () => {
    await meet();
    const row = world.rows.get(backend.identity)!;
    world.rows.set(backend.identity, { ...row, spiffeId: spiffeId('spiffe://example.org/else') });
    a.manager.identitiesChanged();
    expect(a.believes(backend.ip)).toBeUndefined();
    world.rows.set(backend.identity, row);
    a.manager.identitiesChanged();
    await meet();
    expect(a.believes(backend.ip)).toBe(301);
    b.info = { ...b.info, prefixes: [] };
    a.manager.nodesChanged();
    await world.settle();
    expect(a.believes(backend.ip)).toBeUndefined();
    expect(a.tunnelAllowed.has(backend.ip)).toBe(false);
  });

  test('too many addresses, or one of no known length, close the channel', async () => {
    for (const request of [
      { nonce: Buffer.alloc(16), addresses: [Buffer.alloc(5)], own: [] },
      { nonce: Buffer.alloc(16), addresses: [], own: [Buffer.alloc(3)] },
      { nonce: Buffer.alloc(16), addresses: Array.from({ length: 1_025 }, () => Buffer.alloc(4)), own: [] },
      { nonce: Buffer.alloc(16), addresses: [], own: Array.from({ length: 17 }, () => Buffer.alloc(4)) },
    ]) {
      const channel = world.connect(a, b);
      await world.settle();
      inject(channel, FrameType.FRAME_TYPE_VOUCH_REQUEST, Buffer.from(VouchRequest.encode(request).finish()));
      expect(channel.closeReason).toBe('PEER_FRAME_MALFORMED');
    }
  });

  test('a peer that asks back is asked for its own addresses only', async () => {
    world.connect(a, b);
    await world.settle();
    world.frames.length = 0;
    const asked = () =>
      world.frames.filter((f) => f.from === 'b' && f.type === FrameType.FRAME_TYPE_VOUCH_REQUEST).length;
    const request = { nonce: Buffer.alloc(16), addresses: [], own: [addressWireBytes(address('10.0.3.3'))] };
    inject(channelOf(b, a), FrameType.FRAME_TYPE_VOUCH_REQUEST, Buffer.from(VouchRequest.encode(request).finish()));
    await world.settle();
    expect(asked()).toBe(0);
  });
});

function missOf(from: Workload, to: Workload): Parameters<SimNode['manager']['signal']>[0] {
  return world.signalOf('vouch-miss', 'egress', from, to.ip);
}
