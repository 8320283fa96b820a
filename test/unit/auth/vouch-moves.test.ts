/** Addresses that come to this node from another one, lives of a node that overlap, and what an agent's start must not forget. */
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import {
  FrameType,
  Reset,
  ResetAck,
  VouchReply,
  VouchRequest,
  Withdraw,
} from '../../../proto/gen/countersign/peer/v1/peer.ts';
import type { VouchEvent } from '../../../src/auth/vouch-trace.ts';
import { addressFromBytes, addressWireBytes } from '../../../src/model/address.ts';
import { LOCAL_NODE } from '../../../src/model/ids.ts';
import type { Frame, SimChannel, SimNode } from './sim-node.ts';
import { channelOf, inject, type Workload, World } from './world.ts';

let world: World;
let a: SimNode;
let b: SimNode;
let frontend: Workload;
let backend: Workload;

beforeEach(async () => {
  world = await World.create();
  a = world.node('a');
  b = world.node('b');
  frontend = await world.workload('frontend', a, '10.0.1.2', 300);
  backend = await world.workload('backend', b, '10.0.2.2', 301);
});
afterEach(() => world.close());

async function meet() {
  world.send(frontend, backend);
  await world.settle();
  expect(a.believes(backend.ip)).toBe(301);
}

const bytes = (writer: { finish(): Uint8Array }) => Buffer.from(writer.finish());
const isWithdraw = ({ type }: Frame) => type === FrameType.FRAME_TYPE_WITHDRAW;

describe('StampLocalDelivery: an address that becomes this node’s own', () => {
  test('is nobody else’s in the kernel’s table or the tunnel’s before its endpoint opens', async () => {
    await meet();
    a.log.length = 0;
    const mine = await world.workload('mine', a, '10.0.2.2', 310);
    expect(a.kernelAddresses.has(backend.ip), 'at once').toBe(false);
    expect(a.opened).not.toContain(mine.endpoint);
    await world.pass(1_000);
    expect(a.tunnelAllowed.has(backend.ip)).toBe(false);
    expect(a.kernelAddresses.get(backend.ip)).toMatchObject({ identity: 310, node: LOCAL_NODE });
    const steps = a.log.filter((line) => /^(vouch-|disallow|opened|end )/.test(line));
    expect(steps).toEqual(['vouch- 10.0.2.2', 'disallow 10.0.2.2', 'end 2', `opened ${mine.endpoint}`]);
  });

  test('stays this node’s own whatever the earlier node renews, withdraws or lets expire', async () => {
    const second = await world.workload('second', b, '10.0.2.3', 303);
    await meet();
    world.send(frontend, second);
    await world.settle();
    await world.workload('mine', a, '10.0.2.2', 310);
    await world.pass(15_000);
    expect(a.believes(second.ip), 'renewed').toBe(303);
    expect(a.kernelAddresses.get(backend.ip)).toMatchObject({ identity: 310, node: LOCAL_NODE });
    b.manager.closeEndpoint(backend.endpoint);
    await world.pass(60_000);
    expect(a.kernelAddresses.get(backend.ip)).toMatchObject({ identity: 310, node: LOCAL_NODE });
  });

  test('and goes back to that node brings no earlier generation of it into force', async () => {
    const second = await world.workload('second', b, '10.0.2.3', 303);
    await meet();
    world.send(frontend, second);
    await world.settle();
    const mine = await world.workload('mine', a, '10.0.2.2', 310);
    b.manager.closeEndpoint(backend.endpoint);
    await world.pass(1_000);
    a.manager.closeEndpoint(mine.endpoint);
    a.kernelAddresses.delete(backend.ip);
    await world.workload('successor', b, '10.0.2.2', 302);
    for (let i = 0; i < 30; i++) {
      expect(a.believes(backend.ip)).not.toBe(301);
      await world.pass(1_000);
    }
    expect(a.believes(second.ip)).toBe(303);
  });

  test('a withdraw ends what is remembered of it, though the kernel’s entry is this node’s own', async () => {
    const second = await world.workload('second', b, '10.0.2.3', 303);
    await meet();
    world.send(frontend, second);
    await world.settle();
    // As if an endpoint had come beside the manager.
    const own = { ...a.kernelAddresses.get(frontend.ip)!, address: backend.ip };
    a.kernelAddresses.set(backend.ip, own);
    b.manager.closeEndpoint(backend.endpoint);
    await world.pass(20_000);
    expect(a.kernelAddresses.get(backend.ip)).toBe(own);
    expect(a.believes(second.ip)).toBe(303);
  });

  test('gets nothing that was held for its owner elsewhere', async () => {
    const refused: string[] = [];
    const waiting = [{ local: frontend.ip, remote: backend.ip, packets: 1, sinceNs: 0n }];
    a.start({
      hold: {
        release: () => 0,
        refuse: (local, remote, reason) => refused.push(`${local}>${remote} ${reason}`),
        forget: () => {},
        waiting: () => waiting,
      },
    });
    await world.workload('mine', a, '10.0.2.2', 310);
    expect(refused).toEqual(['10.0.1.2>10.0.2.2 HOLD_STALE']);
  });
});

describe('FlushBeforeAck', () => {
  test('a withdraw ends what waits for a vouch of the address, though none is in force', async () => {
    const waiting: { local: Workload['ip']; remote: Workload['ip']; packets: number; sinceNs: bigint }[] = [];
    const stale: string[] = [];
    a.start({
      hold: {
        release: () => 0,
        refuse: (_, remote, reason) => (reason === 'HOLD_STALE' ? stale.push(remote) : 0),
        forget: () => {},
        waiting: () => waiting,
      },
    });
    a.manager.addEndpoint({ ...frontend, addresses: [frontend.ip] });
    world.connect(a, b);
    world.intercept = (frame) =>
      frame.type === FrameType.FRAME_TYPE_VOUCH_REPLY && frame.from === 'b' ? undefined : [frame];
    world.send(frontend, backend);
    await world.settle();
    waiting.push({ local: frontend.ip, remote: backend.ip, packets: 1, sinceNs: 0n });
    b.manager.closeEndpoint(backend.endpoint);
    await world.settle();
    expect(world.frames.some(isWithdraw)).toBe(true);
    expect(stale).toEqual([backend.ip]);
  });
});

describe('AckAfterPrograms', () => {
  test('RESET is not acked while what an earlier channel’s withdraw began to take away is not gone', async () => {
    await meet();
    const gate = Promise.withResolvers<void>();
    a.quiesceGate = gate.promise;
    b.manager.closeEndpoint(backend.endpoint);
    await world.settle();
    expect(a.believes(backend.ip)).toBeUndefined();
    const earlier = channelOf(a, b);
    world.frames.length = 0;
    world.connect(a, b);
    await world.settle();
    earlier.close('PEER_REPLACED');
    const isAcked = () =>
      world.frames.some(({ from, type }) => from === 'a' && type === FrameType.FRAME_TYPE_RESET_ACK);
    expect(isAcked()).toBe(false);
    gate.resolve();
    await world.settle();
    expect(isAcked()).toBe(true);
  });
});

describe('RequestsDieWithChannel', () => {
  test('a vouch that is still on its way when RESET names it is named in the ack, and withdrawn like any other', async () => {
    const gate = Promise.withResolvers<void>();
    a.tunnelGate = gate.promise;
    world.send(frontend, backend);
    await world.settle();
    expect(a.believes(backend.ip)).toBeUndefined();
    const kept: string[] = [];
    world.intercept = (frame) => {
      if (frame.type === FrameType.FRAME_TYPE_RESET_ACK && frame.from === 'a')
        for (const entry of ResetAck.decode(frame.body).kept) kept.push(addressFromBytes(entry.address));
      return [frame];
    };
    const earlier = channelOf(a, b);
    world.connect(a, b);
    await world.settle();
    earlier.close('PEER_REPLACED');
    gate.resolve();
    await world.settle();
    expect(kept).toEqual([backend.ip]);
    expect(a.believes(backend.ip)).toBe(301);
    world.intercept = (frame) => (isWithdraw(frame) ? undefined : [frame]);
    b.manager.closeEndpoint(backend.endpoint);
    const successor = await world.workload('successor', b, '10.0.2.2', 302);
    await world.pass(60_000);
    expect(b.kernelFences.has(`${successor.endpoint}/1`), 'A has not acked').toBe(true);
  });
});

describe('BarLowerIncarnation', () => {
  test('what an earlier life vouches on a channel that is still open never comes into force', async () => {
    const nonces: Buffer[] = [];
    world.intercept = (frame) => {
      if (frame.from === 'a' && frame.type === FrameType.FRAME_TYPE_VOUCH_REQUEST)
        nonces.push(VouchRequest.decode(frame.body).nonce);
      return undefined;
    };
    const reset = (channel: SimChannel, incarnation: bigint) =>
      inject(channel, FrameType.FRAME_TYPE_RESET, bytes(Reset.encode({ incarnation, keeps: [], more: false })));
    const ofClone = world.connect(a, b);
    reset(ofClone, 1n);
    await world.settle();
    reset(world.connect(a, b), 2n);
    await world.settle();
    const address = addressWireBytes(backend.ip);
    const offer = { nonce: Buffer.alloc(16), addresses: [], own: [address] };
    inject(ofClone, FrameType.FRAME_TYPE_VOUCH_REQUEST, bytes(VouchRequest.encode(offer)));
    await world.settle();
    const { identity: securityIdentity, spiffeId } = backend;
    const vouch = {
      address,
      securityIdentity,
      spiffeId,
      generation: 1n,
      leaseMs: 30_000,
      earlierOwnerMs: 0n,
      ownedMs: 0n,
    };
    expect(nonces).toHaveLength(1);
    const reply = { nonce: nonces[0]!, incarnation: 1n, vouches: [vouch] };
    inject(ofClone, FrameType.FRAME_TYPE_VOUCH_REPLY, bytes(VouchReply.encode(reply)));
    await world.settle();
    expect(a.believes(backend.ip)).toBeUndefined();
    expect(a.reasons('vouch.refused')).toEqual(['VOUCH_STALE']);
  });
});

describe('an agent that starts over a kernel that goes on', () => {
  test('opens successors though own addresses are in the table, which are no peer’s belief', async () => {
    await meet();
    const errors: unknown[] = [];
    const log = { error: (...args: unknown[]) => errors.push(args), warn: () => {}, info: () => {}, debug: () => {} };
    b.restart({ log: log as never });
    const successor = await world.workload('successor', b, '10.0.2.9', 302);
    await world.pass(1_000);
    expect(b.opened).toContain(successor.endpoint);
    expect(errors).toEqual([]);
    expect([...b.kernelFences].filter((fence) => fence.endsWith(`/${LOCAL_NODE}`))).toEqual([]);
  });

  test('NewerWins: gives no generation twice, wherever the wall clock was set', async () => {
    await world.pass(60_000);
    b.restart();
    b.manager.addEndpoint({ ...backend, addresses: [backend.ip] });
    const second = await world.workload('second', b, '10.0.2.3', 303);
    await world.pass(1_000);
    await meet();
    world.send(frontend, second);
    await world.settle();
    const { generation } = b.kernelAddresses.get(backend.ip)!;
    const earlier = b.kernelAddresses.get(second.ip)!.generation;
    world.time.setWall(-10_000);
    b.restart();
    b.manager.addEndpoint({ ...backend, addresses: [backend.ip] }, generation);
    const successor = await world.workload('successor', b, '10.0.2.3', 304);
    world.connect(a, b);
    await world.pass(5_000);
    expect(b.kernelAddresses.get(successor.ip)!.generation).toBeGreaterThan(earlier);
    expect(a.believes(successor.ip)).toBe(304);
  });

  test('DrainFromAck: waits for what a peer sent, until its ack, to an owner that nobody remembers', async () => {
    await meet();
    world.cut('a', 'b');
    const said: VouchEvent[] = [];
    b.start({ firstLife: false, trace: (event) => void said.push(event) });
    await world.pass(50);
    const successor = await world.workload('successor', b, '10.0.2.2', 302);
    world.heal('a', 'b');
    world.connect(a, b);
    await world.pass(1);
    const ackedNs = world.time.bootNs();
    expect(said.some(({ ev }) => ev === 'reset-acked')).toBe(true);
    expect(b.opened.filter((endpoint) => endpoint === successor.endpoint)).toEqual([]);
    let openedNs = 0n;
    for (let i = 0; i < 400 && openedNs === 0n; i++) {
      const isOpen = b.opened.includes(successor.endpoint) && !b.kernelFences.has(`${successor.endpoint}/1`);
      if (isOpen) openedNs = world.time.bootNs();
      else await world.pass(1);
    }
    expect(openedNs - ackedNs).toBeGreaterThanOrEqual(98_000_000n);
  });
});

describe('what leases and fences say of themselves', () => {
  test('a withdraw names its own id as the version that a renewal must have applied', async () => {
    const said: VouchEvent[] = [];
    b.start({ trace: (event) => void said.push(event) });
    b.manager.addEndpoint({ ...backend, addresses: [backend.ip] });
    await meet();
    b.manager.closeEndpoint(backend.endpoint);
    await world.settle();
    const withdraw = said.find((event) => event.ev === 'withdraw');
    expect(withdraw).toMatchObject({ id: 1n, version: 1n });
    const sent = world.frames.find(isWithdraw)!;
    expect(Withdraw.decode(sent.body).id).toBe(1n);
  });
});
