/** A proof for each flow: fresh authenticators on both sides, an entry for the 5-tuple on both nodes, and nothing that another flow could use. */
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { FrameType, Miss, ProveProof, ProveRequest, ProveResult } from '../../../proto/gen/countersign/peer/v1/peer.ts';
import { addressWireBytes } from '../../../src/model/address.ts';
import { channelOf, inject, type SimNode, type Workload, World } from './world.ts';

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
  world.require(frontend, backend, 'spiffe-connection');
  world.connect(a, b);
  world.sendFlow(frontend, backend, 1);
  await world.settle();
  world.frames.length = 0;
});
afterEach(() => world.close());

async function open(localPort: number) {
  expect(world.sendFlow(frontend, backend, localPort)).toBe('held');
  await world.settle();
}

function authenticators(): string[] {
  return world.frames.flatMap(({ from, type, body }) => {
    if (type === FrameType.FRAME_TYPE_PROVE_PROOF && ProveProof.decode(body).authenticator.length > 100) return [from];
    if (type === FrameType.FRAME_TYPE_PROVE_RESULT && ProveResult.decode(body).authenticator.length > 100)
      return [from];
    return [];
  });
}

const flowsOf = (node: SimNode) => [...node.kernelFlows.keys()];

describe('a flow', () => {
  test('is proven by authenticators of its own, and written on both nodes for its 5-tuple alone', async () => {
    await open(4_000);
    expect(flowsOf(a)).toContain('1 6 10.0.1.2 4000 10.0.2.2 80');
    expect(flowsOf(b)).toContain('2 6 10.0.2.2 80 10.0.1.2 4000');
    expect(authenticators()).toEqual(['a', 'b']);
    expect(world.sendFlow(frontend, backend, 4_000)).toBe('passed');
    expect(a.kernelAuth.size + b.kernelAuth.size, 'no entry for the pair').toBe(0);
  });

  test('is not let through by another flow’s proof, nor spares it the authenticators', async () => {
    await open(4_000);
    await open(4_001);
    expect(authenticators()).toEqual(['a', 'b', 'a', 'b']);
    expect(a.released.length).toBeGreaterThanOrEqual(2);
  });

  test('is proven by itself although the pair was proven before, and proves nothing for the pair', async () => {
    await open(4_000);
    world.frames.length = 0;
    world.require(frontend, backend, 'spiffe');
    for (const node of [a, b]) node.manager.policyChanged();
    world.send(frontend, backend);
    await world.settle();
    expect(authenticators(), 'of the pair').toEqual(['a', 'b']);
    world.require(frontend, backend, 'spiffe-connection');
    for (const node of [a, b]) node.manager.policyChanged();
    world.frames.length = 0;
    await open(4_001);
    expect(authenticators(), 'of the flow').toEqual(['a', 'b']);
  });

  test('on one node is proven for both endpoints', async () => {
    const neighbour = await world.workload('neighbour', a, '10.0.1.3', 303);
    world.require(frontend, neighbour, 'spiffe-connection');
    world.sendFlow(frontend, neighbour, 5_000);
    await world.settle();
    expect(flowsOf(a)).toContain('1 6 10.0.1.2 5000 10.0.1.3 80');
    expect(flowsOf(a)).toContain('3 6 10.0.1.3 80 10.0.1.2 5000');
  });

  test('many at once are proven each by itself', async () => {
    for (let port = 6_000; port < 6_020; port++) world.sendFlow(frontend, backend, port);
    await world.settle();
    expect(flowsOf(a).filter((flow) => flow.includes(' 60'))).toHaveLength(20);
    expect(authenticators()).toHaveLength(40);
  });

  test('whose proof the receiver lost is proven again when it says so', async () => {
    await open(4_000);
    b.kernelFlows.clear();
    const signal = world.signalOf('auth-miss', 'ingress', backend, frontend.ip);
    b.manager.signal({
      ...signal,
      held: false,
      localPort: 80,
      remotePort: 4_000,
      remoteIdentity: frontend.identity,
      remoteNode: a.info.id,
      authType: 'spiffe-connection',
    });
    await world.settle();
    expect(flowsOf(b)).toEqual(['2 6 10.0.2.2 80 10.0.1.2 4000']);
  });

  test('is neither proven ahead nor by a batch', async () => {
    world.settings = { preAuthentication: { enabled: true, rate: 200 } };
    for (const node of [a, b]) node.manager.policyChanged();
    await world.pass(2_000);
    expect(world.frames.filter((frame) => frame.type >= FrameType.FRAME_TYPE_PROVE_REQUEST)).toEqual([]);
  });
});

describe('of the flow’s proof nothing is left', () => {
  test.each<[string, () => void]>([
    [
      'when the SVID is revoked',
      () => {
        world.ca.revoke({ spiffeId: frontend.spiffeId }, 'test');
        for (const node of [a, b]) node.manager.revoked();
      },
    ],
    [
      'when policy requires it no longer',
      () => {
        world.required.clear();
        for (const node of [a, b]) node.manager.policyChanged();
      },
    ],
    [
      'when the identity is deleted',
      () => {
        world.rows.delete(frontend.identity);
        for (const node of [a, b]) node.manager.identitiesChanged();
      },
    ],
    [
      'when an operator flushes it',
      () => {
        for (const node of [a, b]) node.manager.flush();
      },
    ],
  ])('%s', async (_, change) => {
    await open(4_000);
    change();
    expect([...flowsOf(a), ...flowsOf(b)]).toEqual([]);
  });

  test('when its endpoint closes, here and at the peer', async () => {
    await open(4_000);
    a.manager.closeEndpoint(frontend.endpoint);
    expect(flowsOf(a)).toEqual([]);
    await world.settle();
    expect(flowsOf(b)).toEqual([]);
  });

  test('when the agent started again and nobody proved it anew', async () => {
    await open(4_000);
    a.restart();
    expect(flowsOf(a).length).toBeGreaterThan(0);
    await world.pass(30_100);
    expect(flowsOf(a)).toEqual([]);
  });

  test('when the initiator never says the last word', async () => {
    world.intercept = (frame) =>
      frame.type === FrameType.FRAME_TYPE_PROVE_RESULT && frame.from === 'a' ? undefined : [frame];
    await open(4_000);
    const flow = '2 6 10.0.2.2 80 10.0.1.2 4000';
    expect(flowsOf(b)).toContain(flow);
    await world.pass(5_100);
    expect(flowsOf(b)).not.toContain(flow);
  });
});

describe('refused', () => {
  function bend(change: (request: ReturnType<typeof ProveRequest.decode>) => object) {
    world.intercept = (frame) => {
      if (frame.type !== FrameType.FRAME_TYPE_PROVE_REQUEST) return [frame];
      const request = ProveRequest.decode(frame.body);
      return [{ ...frame, body: Buffer.from(ProveRequest.encode({ ...request, ...change(request) }).finish()) }];
    };
  }
  const countAtB = () => flowsOf(b).length;

  test.each<[string, (request: ReturnType<typeof ProveRequest.decode>) => object]>([
    [
      'a flow without an authenticator request: nothing of before serves it',
      () => ({ authenticatorRequest: Buffer.alloc(0) }),
    ],
    ['a flow under the type of pairs', () => ({ authType: 1 })],
    ['the type of flows without a flow', () => ({ flow: undefined })],
    [
      'a flow from an address that is not the identity’s',
      ({ flow }) => ({ flow: { ...flow!, localAddress: addressWireBytes('10.0.1.9' as typeof frontend.ip) } }),
    ],
    [
      'a flow to an address that is not the identity’s',
      ({ flow }) => ({ flow: { ...flow!, remoteAddress: addressWireBytes('10.0.2.9' as typeof frontend.ip) } }),
    ],
  ])('%s', async (_, change) => {
    bend(change);
    const count = countAtB();
    await open(4_000);
    expect(countAtB()).toBe(count);
    expect(flowsOf(a)).not.toContain('1 6 10.0.1.2 4000 10.0.2.2 80');
  });

  test('a flow with ports or a protocol that there are not closes the channel', async () => {
    bend(({ flow }) => ({ flow: { ...flow!, localPort: 70_000 } }));
    await open(4_000);
    expect(b.closedChannels.at(-1)?.reason).toBe('PEER_FRAME_MALFORMED');
  });

  test('a MISS for a flow of somebody else proves nothing', async () => {
    const flow = {
      localAddress: addressWireBytes(backend.ip),
      remoteAddress: addressWireBytes('10.0.1.77' as typeof frontend.ip),
      protocol: 6,
      localPort: 80,
      remotePort: 4_000,
    };
    const body = Buffer.from(Miss.encode({ localIdentity: 301, remoteIdentity: 300, flow }).finish());
    inject(channelOf(a, b), FrameType.FRAME_TYPE_MISS, body);
    await world.settle();
    expect(world.frames).toEqual([]);
  });
});
