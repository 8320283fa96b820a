/**
 * When a successor on an address opens: fences and the drain, rule by rule (numbered as in docs/architecture.md),
 * on the real state machines with a simulated clock and network.
 */
import { describe, expect, test } from 'vitest';
import { FrameType } from '../../../proto/gen/countersign/peer/v1/peer.ts';
import {
  a,
  b,
  backend,
  c,
  eachInItsOwnWorld,
  frontend,
  isOpenTo,
  isWithdraw,
  isWithdrawAck,
  meet,
  replaceBackend,
  world,
} from './vouch-support.ts';
import { address, channelOf, type Frame, inject } from './world.ts';

eachInItsOwnWorld();

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
