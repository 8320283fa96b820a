/** Leases and fences, rule by rule (numbered as in docs/architecture.md), on the real state machines with a simulated clock and network. */
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import {
  FrameType,
  Reset,
  ResetAck,
  VouchReply,
  VouchRequest,
  Withdraw,
  WithdrawAck,
} from '../../../proto/gen/countersign/peer/v1/peer.ts';
import { addressWireBytes, parsePrefix } from '../../../src/model/address.ts';
import { spiffeId } from '../../../src/model/spiffe-id.ts';
import { address, channelOf, type Frame, inject, type SimNode, type Workload, World } from './world.ts';

let world: World;
let a: SimNode;
let b: SimNode;
let c: SimNode;
let frontend: Workload;
let backend: Workload;

beforeEach(async () => {
  world = await World.create({ a: ['10.0.1.0/24'], b: ['10.0.2.0/24'], c: ['10.0.3.0/24'] });
  a = world.node('a');
  b = world.node('b');
  c = world.node('c');
  frontend = await world.workload('frontend', a, '10.0.1.2', 300);
  backend = await world.workload('backend', b, '10.0.2.2', 301);
});
afterEach(() => world.close());

async function meet() {
  world.send(frontend, backend);
  await world.settle();
}

/** Rewrites the vouches that B gives. */
function forge(change: (reply: VouchReply) => VouchReply) {
  world.intercept = (frame) => {
    if (frame.type !== FrameType.FRAME_TYPE_VOUCH_REPLY || frame.from !== 'b') return [frame];
    const body = Buffer.from(VouchReply.encode(change(VouchReply.decode(frame.body))).finish());
    return [{ ...frame, body }];
  };
}

/** An address is asked for twice: when its node offers it, and when a packet wants to go there. */
const refusals = () => a.reasons('vouch.refused');
const isWithdraw = (frame: Frame) => frame.type === FrameType.FRAME_TYPE_WITHDRAW;
const isWithdrawAck = (frame: Frame) => frame.type === FrameType.FRAME_TYPE_WITHDRAW_ACK;

/** The workload's address passes to another identity on the same node. */
async function replaceBackend(known = true): Promise<Workload> {
  if (known) b.manager.closeEndpoint(backend.endpoint);
  return world.workload('successor', b, '10.0.2.2', 302);
}

/** As the kernel has it: open, and no fence towards the peer. */
const isOpenTo = ({ node, endpoint }: Workload, peer: SimNode) =>
  node.opened.includes(endpoint) && !node.kernelFences.has(`${endpoint}/${peer.info.id}`);

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

describe('rule 5, fence', () => {
  test('a successor on the address is neither open to a peer nor vouched for to it before its ack', async () => {
    await meet();
    const withdraws: Frame[] = [];
    world.intercept = (frame) => {
      if (!isWithdraw(frame)) return [frame];
      withdraws.push(frame);
      return undefined;
    };
    const successor = await replaceBackend();
    await world.pass(3_600_000);
    expect(isOpenTo(successor, a)).toBe(false);
    expect(a.reasons('vouch.taken')).toHaveLength(1);
    world.send(frontend, successor);
    await world.settle();
    expect(a.believes(successor.ip)).toBeUndefined();
    world.intercept = undefined;
    inject(channelOf(a, b), withdraws[0]!.type, withdraws[0]!.body);
    await world.pass(1_000);
    expect(isOpenTo(successor, a)).toBe(true);
    expect(a.believes(successor.ip), 'offered as soon as it is open').toBe(successor.identity);
  });

  test('the fence is in the kernel before the endpoint opens, and goes after the session has ended', async () => {
    await meet();
    world.cut('a', 'b');
    b.log.length = 0;
    const successor = await replaceBackend();
    await world.pass(1_000);
    const of = (log: readonly string[]) => log.filter((line) => /^(shut|open|opened|end) /.test(line));
    expect(of(b.log)).toEqual(['end 1', `shut ${successor.endpoint}/1`, `opened ${successor.endpoint}`]);
    b.log.length = 0;
    world.heal('a', 'b');
    await world.pass(31_000);
    expect(of(b.log).slice(0, 2)).toEqual(['end 1', `open ${successor.endpoint}/1`]);
  });

  test('time alone never opens it: to a peer that is gone it stays shut until that comes back and acks', async () => {
    await meet();
    world.cut('a', 'b');
    const successor = await replaceBackend();
    await world.pass(600_000);
    expect(isOpenTo(successor, a)).toBe(false);
    world.heal('a', 'b');
    world.connect(a, b);
    await world.pass(1_000);
    expect(isOpenTo(successor, a)).toBe(true);
  });

  test('a dead peer delays traffic with itself only', async () => {
    const third = await world.workload('third', c, '10.0.3.3', 303);
    await meet();
    world.cut('a', 'b');
    const successor = await replaceBackend();
    await world.pass(200);
    expect([isOpenTo(successor, a), isOpenTo(successor, c)]).toEqual([false, true]);
    world.send(third, successor);
    await world.settle();
    expect(c.believes(successor.ip)).toBe(successor.identity);
    expect(b.manager.endpoints()[0]).toMatchObject({ waitsFor: [1], endpoint: { open: true } });
  });

  test('an agent that restarts keeps the fences that stand in the kernel, and opens them with the RESET’s ack', async () => {
    await meet();
    world.cut('a', 'b');
    const successor = await replaceBackend();
    await world.pass(1_000);
    const { generation } = b.kernelAddresses.get(successor.ip)!;
    b.start({ firstLife: false });
    b.manager.addEndpoint({ ...successor, addresses: [successor.ip] }, generation);
    await world.pass(60_000);
    expect(isOpenTo(successor, a)).toBe(false);
    expect(b.manager.endpoints()[0]).toMatchObject({ waitsFor: [1] });
    world.heal('a', 'b');
    world.connect(a, b);
    await world.pass(1_000);
    expect(isOpenTo(successor, a)).toBe(true);
    expect(a.believes(successor.ip)).toBe(successor.identity);
  });

  test('an endpoint that outlived its agent is withdrawn from whom the earlier agent vouched for it', async () => {
    await meet();
    const { generation } = b.kernelAddresses.get(backend.ip)!;
    channelOf(a, b).close('PEER_SHUTDOWN');
    b.start({ firstLife: false });
    b.manager.addEndpoint({ ...backend, addresses: [backend.ip] }, generation);
    world.intercept = (frame) => (isWithdraw(frame) ? undefined : [frame]);
    world.connect(a, b);
    await world.settle();
    expect(a.believes(backend.ip), 'RESET says that it goes on').toBe(301);
    const successor = await replaceBackend();
    await world.pass(60_000);
    expect(isOpenTo(successor, a)).toBe(false);
  });

  test('a peer that left the registry is not waited for, and has to let go of everything when it comes back', async () => {
    await meet();
    world.cut('a', 'b');
    const successor = await replaceBackend();
    await world.pass(1_000);
    world.nodes.splice(world.nodes.indexOf(a), 1);
    b.manager.nodesChanged();
    await world.pass(1_000);
    expect(b.manager.endpoints()[0]).toMatchObject({ waitsFor: [] });
    expect(b.kernelAddresses.has(frontend.ip)).toBe(false);
    world.nodes.push(a);
    b.manager.nodesChanged();
    world.heal('a', 'b');
    world.intercept = (frame) =>
      frame.type === FrameType.FRAME_TYPE_RESET_ACK && frame.from === 'a' ? undefined : [frame];
    world.connect(a, b);
    await world.pass(3_000);
    expect(b.believes(frontend.ip), 'its vouches are its fence').toBeUndefined();
    world.intercept = undefined;
    channelOf(a, b).close('PEER_SHUTDOWN');
    world.connect(a, b);
    await world.pass(3_000);
    expect(b.believes(frontend.ip)).toBe(frontend.identity);
    expect(isOpenTo(successor, a)).toBe(true);
  });

  test('an address that nobody holds a lease on opens at once', async () => {
    const successor = await world.workload('other', b, '10.0.2.9', 302);
    expect(b.opened).toContain(successor.endpoint);
  });

  test('fifty owners in turn: no receiver ever believes one that is not there', async () => {
    let owner = backend;
    for (let i = 0; i < 50; i++) {
      world.send(frontend, owner);
      await world.pass(200);
      expect(a.believes(owner.ip)).toBe(owner.identity);
      b.manager.closeEndpoint(owner.endpoint);
      owner = await world.workload(`owner-${i}`, b, '10.0.2.2', 400 + i);
      for (;;) {
        const believed = a.believes(owner.ip);
        const isOpen = isOpenTo(owner, a);
        expect(believed === undefined || !isOpen || believed === owner.identity).toBe(true);
        if (isOpen) break;
        await world.pass(50);
      }
    }
  });

  test('two endpoints never share an address, and generations rise', async () => {
    expect(() => b.manager.addEndpoint({ ...backend, endpoint: 50, addresses: [backend.ip] })).toThrow(/10\.0\.2\.2/);
    expect(() => b.manager.addEndpoint({ ...backend, addresses: [address('10.0.2.8')] })).toThrow(/endpoint/);
    const { generation } = b.kernelAddresses.get(backend.ip)!;
    const successor = await replaceBackend();
    await world.pass(200);
    expect(b.kernelAddresses.get(successor.ip)!.generation).toBeGreaterThan(generation);
  });
});

describe('rule 6, drain', () => {
  test('a successor is not opened before the earlier owner’s packets have drained', async () => {
    await meet();
    const successor = await replaceBackend();
    await world.settle();
    expect(world.frames.some(isWithdrawAck)).toBe(true);
    expect(b.opened).not.toContain(successor.endpoint);
    await world.pass(99);
    expect(b.opened).not.toContain(successor.endpoint);
    await world.pass(3);
    expect(b.opened).toContain(successor.endpoint);
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
