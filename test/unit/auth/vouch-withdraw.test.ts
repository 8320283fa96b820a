/**
 * How a lease is let go of: incarnations, withdraws and their acks, rule by rule (numbered as in docs/architecture.md),
 * on the real state machines with a simulated clock and network.
 */
import { describe, expect, test } from 'vitest';
import {
  FrameType,
  Reset,
  ResetAck,
  VouchReply,
  Withdraw,
  WithdrawAck,
} from '../../../proto/gen/countersign/peer/v1/peer.ts';
import { addressWireBytes } from '../../../src/model/address.ts';
import {
  a,
  b,
  backend,
  c,
  eachInItsOwnWorld,
  forge,
  frontend,
  isOpenTo,
  isWithdrawAck,
  meet,
  refusals,
  replaceBackend,
  world,
} from './vouch-support.ts';
import { address, channelOf, type Frame, inject } from './world.ts';

eachInItsOwnWorld();

describe('rule 3, incarnation', () => {
  test('RESET is not acked while the tunnel’s entry of the earlier one stands', async () => {
    await meet();
    const gate = Promise.withResolvers<void>();
    a.tunnelGate = gate.promise;
    b.info = { ...b.info, incarnation: 2n };
    channelOf(a, b).close('PEER_REPLACED');
    b.start();
    world.frames.length = 0;
    world.connect(b, a);
    await world.settle();
    const acks = () => world.frames.filter((f) => f.from === 'a' && f.type === FrameType.FRAME_TYPE_RESET_ACK).length;
    expect([acks(), a.believes(backend.ip)]).toEqual([0, undefined]);
    gate.resolve();
    await world.settle();
    expect(acks()).toBe(1);
  });

  test('RESET of a higher one deletes what the earlier one vouched, before it is acked', async () => {
    await meet();
    const order: string[] = [];
    world.intercept = (frame) => {
      if (frame.type === FrameType.FRAME_TYPE_RESET_ACK && frame.from === 'a') {
        order.push(`ack ${a.believes(backend.ip)} ${a.tunnelAllowed.has(backend.ip)}`);
      }
      return [frame];
    };
    b.info = { ...b.info, incarnation: 2n };
    channelOf(a, b).close('PEER_REPLACED');
    b.start();
    world.connect(b, a);
    await world.settle();
    expect(order).toEqual(['ack undefined false']);
  });

  test('a lower one is barred: a restored snapshot gets no channel', async () => {
    b.info = { ...b.info, incarnation: 5n };
    b.start();
    b.manager.addEndpoint({ ...backend, addresses: [backend.ip] });
    await meet();
    channelOf(a, b).close('PEER_REPLACED');
    b.info = { ...b.info, incarnation: 4n };
    b.start();
    const channel = world.connect(b, a);
    await world.settle();
    expect(channel.closeReason).toBe('PEER_INCARNATION_BARRED');
  });

  test('an answer of another incarnation than the channel’s RESET is stale', async () => {
    forge((reply) => ({ ...reply, incarnation: 7n }));
    await meet();
    expect(refusals()).toEqual(['VOUCH_STALE', 'VOUCH_STALE']);
    expect(a.believes(backend.ip)).toBeUndefined();
  });

  test('after a restart every peer counts as holding a lease: nothing passes to or from it before it has acked', async () => {
    const second = await world.workload('second', c, '10.0.3.3', 303);
    await meet();
    world.connect(c, b);
    await world.pass(1_000);
    expect([b.believes(frontend.ip), b.believes(second.ip)]).toEqual([300, 303]);
    world.cut('b', 'c');
    channelOf(a, b).close('PEER_SHUTDOWN');
    b.opened.length = 0;
    b.start({ firstLife: false });
    const successor = await replaceBackend(false);
    await world.pass(120_000);
    expect(isOpenTo(successor, a)).toBe(true);
    expect(isOpenTo(successor, c)).toBe(false);
    expect(b.manager.endpoints()[0]).toMatchObject({ waitsFor: [3], endpoint: { open: true } });
    expect(b.believes(second.ip), 'and nothing of it comes into force').toBeUndefined();
    world.heal('b', 'c');
    world.connect(c, b);
    await world.pass(2_000);
    expect(isOpenTo(successor, c)).toBe(true);
  });

  test('an endpoint that outlived its agent with its generation stays open', () => {
    const { generation } = b.kernelAddresses.get(backend.ip)!;
    b.start({ firstLife: false });
    b.opened.length = 0;
    const hosted = b.manager.addEndpoint({ ...backend, addresses: [backend.ip] }, generation);
    expect(hosted).toMatchObject({ generation, open: true });
    expect(
      b.manager.addEndpoint({ ...backend, endpoint: 99, addresses: [address('10.0.2.99')] }).generation,
    ).toBeGreaterThan(generation);
  });

  test('an ack of another RESET than was said closes the channel', async () => {
    const channel = world.connect(a, b);
    inject(
      channel,
      FrameType.FRAME_TYPE_RESET_ACK,
      Buffer.from(ResetAck.encode({ incarnation: 9n, kept: [], more: false, released: false }).finish()),
    );
    expect(channel.closeReason).toBe('PEER_FRAME_UNEXPECTED');
  });

  test('a second RESET on a channel closes it', async () => {
    const channel = world.connect(a, b);
    await world.settle();
    inject(
      channel,
      FrameType.FRAME_TYPE_RESET,
      Buffer.from(Reset.encode({ incarnation: 1n, keeps: [], more: false }).finish()),
    );
    await world.settle();
    expect(channel.closeReason).toBe('PEER_FRAME_UNEXPECTED');
  });
});

describe('rule 4, withdraw and ack', () => {
  test('the ack comes after the kernel’s entry and the tunnel’s are gone, kernel first', async () => {
    await meet();
    a.log.length = 0;
    const seen: string[] = [];
    world.intercept = (frame) => {
      if (isWithdrawAck(frame)) seen.push(...a.log, 'ack');
      return [frame];
    };
    b.manager.closeEndpoint(backend.endpoint);
    await world.settle();
    expect(seen).toEqual(['vouch- 10.0.2.2', 'quiesce', 'disallow 10.0.2.2', 'ack']);
  });

  test('no ack while the tunnel’s entry stands', async () => {
    await meet();
    const gate = Promise.withResolvers<void>();
    a.tunnelGate = gate.promise;
    b.manager.closeEndpoint(backend.endpoint);
    await world.settle();
    expect(a.believes(backend.ip)).toBeUndefined();
    expect(world.frames.some(isWithdrawAck)).toBe(false);
    gate.resolve();
    await world.settle();
    expect(world.frames.some(isWithdrawAck)).toBe(true);
  });

  test('deletes by key what the agent does not remember', async () => {
    await meet();
    const entry = a.kernelAddresses.get(backend.ip)!;
    const ghost = address('10.0.2.77');
    a.kernelAddresses.set(ghost, { ...entry, address: ghost });
    const withdraw = {
      id: 5n,
      incarnation: 1n,
      addresses: [{ address: addressWireBytes(ghost), generation: entry.generation }],
    };
    inject(channelOf(a, b), FrameType.FRAME_TYPE_WITHDRAW, Buffer.from(Withdraw.encode(withdraw).finish()));
    await world.settle();
    expect(a.kernelAddresses.has(ghost)).toBe(false);
  });

  test('takes back nothing of another node, nor of a newer generation', async () => {
    await meet();
    world.connect(a, c);
    await world.settle();
    const entry = a.kernelAddresses.get(backend.ip)!;
    const say = (generation: bigint) =>
      Buffer.from(
        Withdraw.encode({
          id: 5n,
          incarnation: 1n,
          addresses: [{ address: addressWireBytes(backend.ip), generation }],
        }).finish(),
      );
    inject(channelOf(a, c), FrameType.FRAME_TYPE_WITHDRAW, say(entry.generation));
    inject(channelOf(a, b), FrameType.FRAME_TYPE_WITHDRAW, say(entry.generation - 1n));
    await world.settle();
    expect(a.believes(backend.ip)).toBe(301);
    expect(a.tunnelAllowed.get(backend.ip)).toBe(2);
  });

  test('a vouch on its way into the tables when it is withdrawn never comes into force', async () => {
    const gate = Promise.withResolvers<void>();
    a.tunnelGate = gate.promise;
    await meet();
    b.manager.closeEndpoint(backend.endpoint);
    await world.settle();
    gate.resolve();
    await world.settle();
    expect(a.log.filter((line) => line.startsWith('vouch+'))).toEqual([]);
    expect(a.tunnelAllowed.has(backend.ip)).toBe(false);
    expect(a.refused).toHaveLength(1);
    expect(world.frames.some(isWithdrawAck)).toBe(true);
  });

  test('cancels the outstanding request, and its late answer is a withdrawn generation’s', async () => {
    const late: Frame[] = [];
    world.intercept = (frame) => {
      if (frame.type !== FrameType.FRAME_TYPE_VOUCH_REPLY || frame.from !== 'b') return [frame];
      late.push(frame);
      return undefined;
    };
    await meet();
    b.manager.closeEndpoint(backend.endpoint);
    await world.settle();
    expect(a.reasons('auth.failed')).toEqual(['VOUCH_WITHDRAWN']);
    inject(channelOf(a, b), late[0]!.type, late[0]!.body);
    await world.settle();
    expect(a.believes(backend.ip)).toBeUndefined();
    // and offered once more, in answer to a new question
    const { vouches } = VouchReply.decode(late[0]!.body);
    forge((reply) => ({ ...reply, vouches }));
    await world.pass(1_000);
    await meet();
    expect(refusals()).toEqual(['VOUCH_STALE']);
  });

  test('auth entries that rested on the vouch go with it', async () => {
    world.require(frontend, backend);
    await meet();
    expect(a.kernelAuth.size).toBe(1);
    b.manager.closeEndpoint(backend.endpoint);
    expect(b.kernelAuth.size).toBe(0);
    await world.settle();
    expect(a.kernelAuth.size).toBe(0);
    expect(a.reasons('auth.expired')).toEqual(['AUTH_NOT_VOUCHED']);
  });

  test('an ack that nothing was said for closes the channel', async () => {
    const channel = world.connect(a, b);
    await world.settle();
    inject(channel, FrameType.FRAME_TYPE_WITHDRAW_ACK, Buffer.from(WithdrawAck.encode({ id: 3n }).finish()));
    expect(channel.closeReason).toBe('PEER_FRAME_UNEXPECTED');
  });
});
