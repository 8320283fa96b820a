/** An agent that was killed and starts again: what the kernel had goes on, until its owner confirms it, or does not. */
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { FrameType, ProveProof, ProveResult } from '../../../proto/gen/countersign/peer/v1/peer.ts';
import { type SimNode, type Workload, World } from './world.ts';

let world: World;
let a: SimNode;
let b: SimNode;

beforeEach(async () => {
  world = await World.create();
  a = world.node('a');
  b = world.node('b');
});
afterEach(() => world.close());

async function proven(nearCount = 1, farCount = 1) {
  const near: Workload[] = [];
  const far: Workload[] = [];
  for (let i = 0; i < nearCount; i++) near.push(await world.workload(`f${i}`, a, `10.0.1.${10 + i}`, 300 + i));
  for (let i = 0; i < farCount; i++) far.push(await world.workload(`b${i}`, b, `10.0.2.${10 + i}`, 600 + i));
  for (const one of near) for (const other of far) world.require(one, other);
  for (const one of near) for (const other of far) world.send(one, other);
  await world.pass(1_000);
  expect(a.kernelAuth.size).toBe(nearCount * farCount);
  return { near, far };
}

/** As the agent does: the endpoints that it finds in the kernel go on with their generations. */
function restart(node: SimNode, workloads: readonly Workload[]) {
  const generations = new Map([...node.kernelAddresses.values()].map((entry) => [entry.address, entry.generation]));
  node.restart();
  for (const workload of workloads) {
    node.manager.addEndpoint({ ...workload, addresses: [workload.ip] }, generations.get(workload.ip));
  }
  node.manager.reconnect();
}

const adopted = (node: SimNode) => node.manager.list().filter((entry) => entry.adopted).length;

describe('entries of before a restart', () => {
  test('go on while their owner is asked, and are proven anew as soon as its channel is back', async () => {
    const { near, far } = await proven();
    restart(a, near);
    expect(adopted(a)).toBe(1);
    expect(world.send(near[0]!, far[0]!)).toBe('passed');
    await world.pass(2_000);
    expect(adopted(a)).toBe(0);
    expect(world.send(near[0]!, far[0]!)).toBe('passed');
    expect(a.reasons('auth.expired')).toEqual([]);
  });

  test('of a few hundred pairs are confirmed within 2 s, in batches: one proof for each identity', async () => {
    const { near, far } = await proven(20, 20);
    world.frames.length = 0;
    restart(a, near);
    const startedMs = performance.now();
    await world.pass(2_000);
    expect(adopted(a)).toBe(0);
    expect([a.kernelAuth.size, b.kernelAuth.size]).toEqual([400, 400]);
    const shown = world.frames.filter(({ type, body }) => {
      if (type === FrameType.FRAME_TYPE_PROVE_PROOF) return ProveProof.decode(body).authenticator.length > 100;
      return type === FrameType.FRAME_TYPE_PROVE_RESULT && ProveResult.decode(body).authenticator.length > 100;
    });
    expect(shown).toHaveLength(40);
    expect(performance.now() - startedMs, 'of this process, for both nodes').toBeLessThan(2_000);
    for (const one of near) for (const other of far) expect(world.send(one, other)).toBe('passed');
  });

  test('go when nobody confirms them in time', async () => {
    const { near, far } = await proven();
    world.cut('a', 'b');
    restart(a, near);
    await world.pass(29_000);
    expect(a.kernelAuth.size).toBe(1);
    await world.pass(2_000);
    expect(a.kernelAuth.size).toBe(0);
    expect(world.send(near[0]!, far[0]!)).not.toBe('passed');
  });

  test('go at once when their owner says no', async () => {
    const { near, far } = await proven();
    const generation = b.kernelAddresses.get(far[0]!.ip)!.generation;
    b.restart({ policy: () => ({ ...world.policy, authTypesOf: () => [] }) });
    b.manager.addEndpoint({ ...far[0]!, addresses: [far[0]!.ip] }, generation);
    restart(a, near);
    await world.pass(3_000);
    expect(a.kernelAuth.size).toBe(0);
    expect(a.reasons('auth.expired')).toEqual(['AUTH_NOT_REQUIRED']);
  });

  test('go at once when the owner still hosts the other side, and refuses the proof', async () => {
    const { near, far } = await proven();
    b.svids.set(far[0]!.identity, { ok: true, value: await world.issue(far[0]!.spiffeId, a.info.spiffeId) });
    restart(a, near);
    await world.pass(3_000);
    expect(a.kernelAuth.size).toBe(0);
    expect(a.reasons('auth.expired')).toContain('AUTH_WRONG_NODE');
  });

  test('whose endpoint has not come back go at the deadline', async () => {
    await proven();
    restart(a, []);
    await world.pass(31_000);
    expect(a.kernelAuth.size).toBe(0);
  });

  test('on one node are confirmed by its own endpoints', async () => {
    const near = [await world.workload('x', a, '10.0.1.2', 300), await world.workload('y', a, '10.0.1.3', 301)];
    world.require(near[0]!, near[1]!);
    world.send(near[0]!, near[1]!);
    await world.settle();
    expect(a.kernelAuth.size).toBe(2);
    restart(a, near);
    await world.pass(100);
    expect(adopted(a)).toBe(0);
    expect(a.kernelAuth.size).toBe(2);
  });

  test('all go with a revocation while nobody knows what they rest on; afterwards only those that it concerns', async () => {
    const { near, far } = await proven(2, 1);
    restart(a, near);
    world.ca.revoke({ spiffeId: near[0]!.spiffeId }, 'test');
    expect(a.manager.revoked()).toBe(2);
    expect(a.kernelAuth.size).toBe(0);
    restart(b, far);
    await world.pass(2_000);
    b.manager.revoked();
    world.send(near[1]!, far[0]!);
    await world.pass(2_000);
    expect([...a.kernelAuth.keys()]).toEqual(['301/600/2/spiffe']);
    restart(b, far);
    await world.pass(2_000);
    expect(adopted(b)).toBe(0);
    world.ca.revoke({ spiffeId: near[0]!.spiffeId }, 'again');
    expect(b.manager.revoked()).toBe(0);
  });

  test('refusals of before are forgotten: the next packet is held, and tried', async () => {
    const { near, far } = await proven();
    world.ca.revoke({ spiffeId: far[0]!.spiffeId }, 'test');
    a.manager.revoked();
    expect(world.send(near[0]!, far[0]!)).toBe('dropped');
    restart(a, near);
    expect(a.kernelRefused.size).toBe(0);
    expect(world.send(near[0]!, far[0]!)).toBe('held');
  });
});
