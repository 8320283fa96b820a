/** What is proven before a packet asks for it: when, in which order, at what cost, and that it does no harm when it fails. */
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { FrameType, ProvePairs, ProveProof, ProveResult } from '../../../proto/gen/countersign/peer/v1/peer.ts';
import { type SimNode, type Workload, World } from './world.ts';

let world: World;
let a: SimNode;
let b: SimNode;

beforeEach(async () => {
  world = await World.create();
  world.settings = { preAuthentication: { enabled: true, rate: 200 } };
  for (const node of world.nodes) node.start();
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

function requireAll(near: readonly Workload[], far: readonly Workload[]) {
  for (const one of near) for (const other of far) world.require(one, other);
}

/** Authenticators that travelled: neither empty nor a refusal. */
function authenticators(): number {
  return world.frames.filter(({ type, body }) => {
    if (type === FrameType.FRAME_TYPE_PROVE_PROOF) return ProveProof.decode(body).authenticator.length > 100;
    if (type === FrameType.FRAME_TYPE_PROVE_RESULT) return ProveResult.decode(body).authenticator.length > 100;
    return false;
  }).length;
}

const framesOf = (type: FrameType) => world.frames.filter((frame) => frame.type === type);

describe('a pair that policy requires and whose sides are both known', () => {
  test('is proven within 2 s without a packet, and both nodes write from one exchange', async () => {
    const [[frontend], [backend]] = [await workloads(a, 1, 300), await workloads(b, 1, 400)];
    world.require(frontend!, backend!);
    world.connect(a, b);
    await world.pass(2_000);
    expect(a.hasAuth(frontend!.identity, backend!.identity, b.info.id)).toBe(true);
    expect(b.hasAuth(backend!.identity, frontend!.identity, a.info.id)).toBe(true);
    expect(framesOf(FrameType.FRAME_TYPE_PROVE_REQUEST)).toHaveLength(1);
    expect(world.send(frontend!, backend!)).toBe('passed');
  });

  test('is proven when policy begins to require it', async () => {
    const [[frontend], [backend]] = [await workloads(a, 1, 300), await workloads(b, 1, 400)];
    world.connect(a, b);
    await world.pass(2_000);
    expect(a.kernelAuth.size).toBe(0);
    world.require(frontend!, backend!);
    for (const node of [a, b]) node.manager.policyChanged(new Set([frontend!.identity]));
    await world.pass(2_000);
    expect([a.kernelAuth.size, b.kernelAuth.size]).toEqual([1, 1]);
  });

  test('is proven when the second of them starts later, on either side', async () => {
    const [frontend] = await workloads(a, 1, 300);
    world.connect(a, b);
    await world.pass(2_000);
    const [backend] = await workloads(b, 1, 400);
    world.require(frontend!, backend!);
    await world.pass(2_000);
    expect([a.kernelAuth.size, b.kernelAuth.size]).toEqual([1, 1]);
    const later = await world.workload('later', a, '10.0.1.99', 399);
    world.require(later, backend!);
    await world.pass(2_000);
    expect([a.kernelAuth.size, b.kernelAuth.size]).toEqual([2, 2]);
  });

  test('is proven when its SVID comes late', async () => {
    const [[frontend], [backend]] = [await workloads(a, 1, 300), await workloads(b, 1, 400)];
    world.require(frontend!, backend!);
    const svid = a.svids.get(frontend!.identity)!;
    a.svids.clear();
    world.connect(a, b);
    await world.pass(5_000);
    expect(a.kernelAuth.size).toBe(0);
    a.svids.set(frontend!.identity, svid);
    a.manager.svidsChanged();
    await world.pass(2_000);
    expect([a.kernelAuth.size, b.kernelAuth.size]).toEqual([1, 1]);
  });

  test('on one node is proven too', async () => {
    const near = await workloads(a, 2, 300);
    world.require(near[0]!, near[1]!);
    a.manager.policyChanged();
    await world.pass(100);
    expect(a.kernelAuth.size).toBe(2);
  });

  test('is proven again when its entry was flushed, and renewed although no packet passes', async () => {
    world.settings = { maxAuthAgeMs: 60_000, preAuthentication: { enabled: true, rate: 200 } };
    for (const node of [a, b]) node.start({ lastUse: () => 0n });
    const [[frontend], [backend]] = [await workloads(a, 1, 300), await workloads(b, 1, 400)];
    world.require(frontend!, backend!);
    world.connect(a, b);
    await world.pass(2_000);
    a.manager.flush();
    await world.pass(1_000);
    expect(a.kernelAuth.size).toBe(1);
    for (let i = 0; i < 12; i++) {
      await world.pass(10_000);
      expect(world.send(frontend!, backend!)).toBe('passed');
    }
  });

  test('is left alone when this is switched off', async () => {
    world.settings = {};
    for (const node of [a, b]) node.start();
    const [[frontend], [backend]] = [await workloads(a, 1, 300), await workloads(b, 1, 400)];
    world.require(frontend!, backend!);
    world.connect(a, b);
    await world.pass(5_000);
    expect(a.kernelAuth.size + b.kernelAuth.size).toBe(0);
  });

  test('is not proven to be denied: what policy does not require is left alone', async () => {
    const [[frontend], [backend]] = [await workloads(a, 1, 300), await workloads(b, 1, 400)];
    world.require(frontend!, backend!, 'test-always-fail');
    world.connect(a, b);
    await world.pass(5_000);
    expect(a.audit.filter((event) => event.kind === 'auth.failed')).toEqual([]);
    expect(world.frames.filter((frame) => frame.type >= FrameType.FRAME_TYPE_PROVE_REQUEST)).toEqual([]);
  });
});

describe('many identities on a pair of nodes', () => {
  test('cost one proof each, not one for each pair', async () => {
    const [near, far] = [await workloads(a, 12, 300), await workloads(b, 12, 400)];
    requireAll(near, far);
    world.connect(a, b);
    await world.pass(2_000);
    expect([a.kernelAuth.size, b.kernelAuth.size]).toEqual([144, 144]);
    expect(authenticators(), '12 and 12 identities').toBe(24);
    expect(framesOf(FrameType.FRAME_TYPE_PROVE_PAIRS).length).toBeLessThanOrEqual(12);
    expect(world.frames.reduce((sum, { type, body }) => sum + (type === 25 ? body.length : 0), 0)).toBeLessThan(
      144 * 9,
    );
    for (const one of near) for (const other of far) expect(world.send(one, other)).toBe('passed');
    expect([...a.reasons('auth.failed'), ...b.reasons('auth.failed')]).toEqual([]);
  });

  test('are proven no faster than the rate', async () => {
    world.settings = { preAuthentication: { enabled: true, rate: 4 } };
    for (const node of [a, b]) node.start();
    const near = await workloads(a, 24, 300);
    const far = await workloads(b, 24, 400);
    near.forEach((one, i) => {
      world.require(one, far[i]!);
    });
    world.connect(a, b);
    await world.pass(2_000);
    expect(a.kernelAuth.size).toBeLessThanOrEqual(16);
    await world.pass(8_000);
    expect(a.kernelAuth.size).toBe(24);
  });

  test('are proven in the order of their last use', async () => {
    const near = await workloads(a, 20, 300);
    const far = await workloads(b, 20, 400);
    near.forEach((one, i) => {
      world.require(one, far[i]!);
    });
    world.connect(a, b);
    await world.pass(5_000);
    const flush = () => {
      for (const node of [a, b]) node.manager.flush();
    };
    flush();
    world.send(near[13]!, far[13]!);
    await world.settle();
    flush();
    const done = a.log.length;
    await world.pass(1_000);
    expect(a.log.slice(done).find((line) => line.startsWith('auth+'))).toBe('auth+ 313>413@2');
  });
});

describe('a proof ahead of packets that fails', () => {
  test('does not cost the first packet its own try', async () => {
    const [[frontend], [backend]] = [await workloads(a, 1, 300), await workloads(b, 1, 400)];
    world.require(frontend!, backend!);
    world.intercept = (frame) => (frame.type === FrameType.FRAME_TYPE_PROVE_CHALLENGE ? undefined : [frame]);
    world.connect(a, b);
    await world.pass(5_600);
    expect(a.kernelAuth.size).toBe(0);
    expect(a.kernelRefused.size).toBe(0);
    world.intercept = undefined;
    expect(world.send(frontend!, backend!)).toBe('held');
    await world.settle();
    expect(a.released).toHaveLength(1);
  });

  test('is tried again after a while, and told once for each reason', async () => {
    const [[frontend], [backend]] = [await workloads(a, 1, 300), await workloads(b, 1, 400)];
    world.require(frontend!, backend!);
    b.svids.set(backend!.identity, { ok: true, value: await world.issue(backend!.spiffeId, a.info.spiffeId) });
    world.connect(a, b);
    await world.pass(20_000);
    expect(a.kernelAuth.size + b.kernelAuth.size).toBe(0);
    expect(a.reasons('auth.failed').filter((reason) => reason === 'AUTH_WRONG_NODE').length).toBeLessThan(4);
    b.svids.set(backend!.identity, { ok: true, value: await world.issue(backend!.spiffeId, b.info.spiffeId) });
    await world.pass(31_000);
    expect([a.kernelAuth.size, b.kernelAuth.size]).toEqual([1, 1]);
  });

  test('makes the kernel drop when a packet waited for it', async () => {
    const [[frontend], [backend]] = [await workloads(a, 1, 300), await workloads(b, 1, 400)];
    world.require(frontend!, backend!);
    world.intercept = (frame) => (frame.type === FrameType.FRAME_TYPE_PROVE_CHALLENGE ? undefined : [frame]);
    world.connect(a, b);
    await world.pass(1_000);
    expect(world.send(frontend!, backend!)).toBe('held');
    await world.pass(4_500);
    expect(a.refused).toEqual(['10.0.1.10>10.0.2.10 HOLD_REFUSED']);
    expect(world.send(frontend!, backend!)).toBe('dropped');
  });
});

test('a batch names each pair once', async () => {
  const [near, far] = [await workloads(a, 4, 300), await workloads(b, 4, 400)];
  requireAll(near, far);
  world.connect(a, b);
  await world.pass(2_000);
  const pairs = framesOf(FrameType.FRAME_TYPE_PROVE_PAIRS).flatMap(({ body }) =>
    ProvePairs.decode(body).pairs.map(({ localIdentity, remoteIdentity }) => `${localIdentity}>${remoteIdentity}`),
  );
  expect(new Set(pairs).size).toBe(pairs.length);
});
