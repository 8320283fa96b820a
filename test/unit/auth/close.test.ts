/** An agent that stops in the midst of its work: what is proven stays, and nothing writes tables that are closed by then. */
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
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

async function workloads(node: SimNode, count: number, first: number): Promise<Workload[]> {
  const made: Workload[] = [];
  const subnet = node === a ? '10.0.1' : '10.0.2';
  for (let i = 0; i < count; i++) {
    made.push(await world.workload(`w${first + i}`, node, `${subnet}.${10 + i}`, first + i));
  }
  return made;
}

const writes = (node: SimNode) => node.log.filter((line) => /^(auth|flow|vouch|shut|open)/.test(line));

/** As the agent stops: the manager, then its channels. What it writes afterwards. */
async function writesAfterStop(node: SimNode): Promise<string[]> {
  node.manager.close();
  const before = writes(node).length;
  for (const channel of [...node.channelTo.values()]) channel.close('PEER_SHUTDOWN');
  await world.pass(60_000);
  return writes(node).slice(before);
}

describe('an agent that stops', () => {
  test('while pairs are proven ahead of packets, on the node and with a peer, proves no more of them', async () => {
    world.settings = { preAuthentication: { enabled: true, rate: 4 } };
    for (const node of world.nodes) node.start();
    const near = await workloads(a, 6, 300);
    const far = await workloads(b, 6, 400);
    for (const one of near) for (const other of [...near, ...far]) world.require(one, other);
    world.connect(a, b);
    for (let i = 0; a.kernelAuth.size === 0 && i < 50; i++) await world.pass(100);
    const proven = a.kernelAuth.size;
    expect(proven).toBeGreaterThan(0);
    expect(proven, 'there is more to do').toBeLessThan(6 * 11);
    expect(await writesAfterStop(a)).toEqual([]);
    expect(a.kernelAuth.size, 'what is proven stays').toBe(proven);
  });

  test('while it takes up a vouch, and while it lets go of one, does neither', async () => {
    const [frontend] = await workloads(a, 1, 300);
    const [backend] = await workloads(b, 1, 400);
    world.require(frontend!, backend!);
    world.send(frontend!, backend!);
    await world.settle();
    let go = () => {};
    a.tunnelGate = new Promise((resolve) => {
      go = resolve;
    });
    const other = await world.workload('other', b, '10.0.2.20', 420);
    world.send(frontend!, other);
    b.manager.closeEndpoint(backend!.endpoint);
    await world.settle();
    a.manager.close();
    const before = writes(a).length;
    go();
    await world.pass(1_000);
    expect(writes(a).slice(before)).toEqual([]);
  });

  test('with packets held and exchanges under way ends them without a word to the kernel', async () => {
    const [frontend] = await workloads(a, 1, 300);
    const [backend] = await workloads(b, 1, 400);
    world.require(frontend!, backend!);
    world.intercept = () => undefined;
    world.send(frontend!, backend!);
    await world.settle();
    expect(await writesAfterStop(a)).toEqual([]);
    expect([a.released, a.refused]).toEqual([[], []]);
  });

  test('still takes away what is revoked before its tables are closed', async () => {
    const [frontend] = await workloads(a, 1, 300);
    const [backend] = await workloads(b, 1, 400);
    world.require(frontend!, backend!);
    world.send(frontend!, backend!);
    await world.settle();
    a.manager.close();
    world.ca.revoke({ spiffeId: backend!.spiffeId }, 'test');
    expect(a.manager.revoked()).toBe(1);
    expect(a.kernelAuth.size).toBe(0);
  });
});
