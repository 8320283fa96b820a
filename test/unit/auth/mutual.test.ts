/** Two workloads prove themselves to each other: what must happen, in which order, and what it costs on the wire. */
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { FrameType, ProveRequest } from '../../../proto/gen/countersign/peer/v1/peer.ts';
import { World } from './world.ts';

let world: World;
beforeEach(async () => {
  world = await World.create();
});
afterEach(() => world.close());

async function pair() {
  const [a, b] = [world.node('a'), world.node('b')];
  const frontend = await world.workload('frontend', a, '10.0.1.2', 300);
  const backend = await world.workload('backend', b, '10.0.2.2', 301);
  world.require(frontend, backend);
  return { a, b, frontend, backend };
}

describe('a pair that policy requires', () => {
  test('is proven from the first held packet on, both maps are written, and the packet goes on', async () => {
    const { a, b, frontend, backend } = await pair();
    expect(world.send(frontend, backend)).toBe('held');
    await world.settle();
    expect(a.released).toEqual(['10.0.1.2>10.0.2.2']);
    expect(a.refused).toEqual([]);
    expect(a.hasAuth(frontend.identity, backend.identity, b.info.id)).toBe(true);
    expect(b.hasAuth(backend.identity, frontend.identity, a.info.id)).toBe(true);
    expect(world.send(frontend, backend)).toBe('passed');
    expect(world.send(backend, frontend)).toBe('passed');
    const [success] = a.audit.filter((event) => event.kind === 'auth.succeeded');
    expect(success).toMatchObject({
      source: { identity: 300, spiffeId: 'spiffe://example.org/frontend', node: 'a' },
      destination: { identity: 301, spiffeId: 'spiffe://example.org/backend', node: 'b' },
      detail: { role: 'initiator', handshake_ms: 0 },
    });
    expect(b.reasons('auth.succeeded')).toHaveLength(1);
  });

  test('B writes and acks before A writes, and the sender is known to B before its packet goes', async () => {
    const { a, b, frontend, backend } = await pair();
    const order: string[] = [];
    const watch = (node: typeof a) => {
      const push = node.log.push.bind(node.log);
      node.log.push = (...lines) => {
        order.push(...lines.map((line) => `${node.name}: ${line}`));
        return push(...lines);
      };
    };
    watch(a);
    watch(b);
    const release = a.released.push.bind(a.released);
    a.released.push = (...pairs) => {
      order.push('a: released');
      return release(...pairs);
    };
    world.send(frontend, backend);
    await world.settle();
    const inOrder = (...lines: string[]) => expect(order.filter((line) => lines.includes(line))).toEqual(lines);
    inOrder('b: allow 10.0.1.2 1', 'b: vouch+ 10.0.1.2 300@1', 'b: auth+ 301>300@1');
    inOrder('a: allow 10.0.2.2 2', 'a: vouch+ 10.0.2.2 301@2', 'b: auth+ 301>300@1');
    expect(order.slice(4)).toEqual(['b: auth+ 301>300@1', 'a: auth+ 300>301@2', 'a: released']);
  });

  test('the responder shows its authenticator only after it verified the initiator', async () => {
    const { a, b, frontend, backend } = await pair();
    world.send(frontend, backend);
    await world.settle();
    const shown = world.frames
      .filter((frame) => frame.type >= FrameType.FRAME_TYPE_PROVE_REQUEST)
      .map((frame) => `${frame.from} ${frame.type} ${frame.body.includes('spiffe://example.org/backend')}`);
    expect(shown).toEqual([
      `a ${FrameType.FRAME_TYPE_PROVE_REQUEST} false`,
      `b ${FrameType.FRAME_TYPE_PROVE_CHALLENGE} false`,
      `a ${FrameType.FRAME_TYPE_PROVE_PROOF} false`,
      `b ${FrameType.FRAME_TYPE_PROVE_RESULT} true`,
      `a ${FrameType.FRAME_TYPE_PROVE_RESULT} false`,
    ]);
    expect(a.channelTo.size + b.channelTo.size).toBe(2);
  });

  test('works the other way round, begun by the TLS server', async () => {
    const { a, b, frontend, backend } = await pair();
    world.connect(a, b);
    await world.settle();
    world.send(backend, frontend);
    await world.settle();
    expect(b.released).toEqual(['10.0.2.2>10.0.1.2']);
    expect(world.send(frontend, backend)).toBe('passed');
  });

  test('settles when both sides begin at once: one exchange, both packets go', async () => {
    const { a, b, frontend, backend } = await pair();
    world.connect(a, b);
    await world.settle();
    world.send(frontend, backend);
    world.send(backend, frontend);
    await world.settle();
    expect(a.released).toEqual(['10.0.1.2>10.0.2.2']);
    expect(b.released).toEqual(['10.0.2.2>10.0.1.2']);
    expect(world.frames.filter((frame) => frame.type === FrameType.FRAME_TYPE_PROVE_PROOF)).toHaveLength(1);
    expect([...a.log, ...b.log].filter((line) => line.startsWith('auth+'))).toHaveLength(2);
    expect([...a.refused, ...b.refused]).toEqual([]);
  });

  test('a second pair with the same identities exchanges no authenticator again', async () => {
    const { a, frontend, backend } = await pair();
    world.send(frontend, backend);
    await world.settle();
    const other = await world.workload('other', world.node('b'), '10.0.2.3', 302);
    world.require(frontend, other);
    world.frames.length = 0;
    world.send(frontend, other);
    await world.settle();
    expect(a.released).toHaveLength(2);
    const challenge = world.frames.find((frame) => frame.type === FrameType.FRAME_TYPE_PROVE_CHALLENGE)!;
    expect(challenge.body.length).toBeLessThan(8);
    expect(world.frames.find((frame) => frame.type === FrameType.FRAME_TYPE_PROVE_PROOF)!.body.length).toBeLessThan(8);
  });

  test('on one node is proven by the same rules without a channel', async () => {
    const { a, frontend } = await pair();
    const neighbour = await world.workload('neighbour', a, '10.0.1.3', 303);
    world.require(frontend, neighbour);
    expect(world.send(frontend, neighbour)).toBe('held');
    await world.settle();
    expect(a.channelTo.size).toBe(0);
    expect(world.send(frontend, neighbour)).toBe('passed');
    expect(world.send(neighbour, frontend)).toBe('passed');
  });

  test('an entry ends at the least of both SVIDs, the greatest age and the peer’s own entry', async () => {
    const { a, b, frontend, backend } = await pair();
    b.svids.set(backend.identity, { ok: true, value: await world.issue(backend.spiffeId, b.info.spiffeId, 120) });
    world.send(frontend, backend);
    await world.settle();
    const ends = [...a.kernelAuth.values(), ...b.kernelAuth.values()].map((e) => e.expiresAtNs - world.time.bootNs());
    for (const end of ends) expect(end).toBeLessThanOrEqual(120_000_000_000n);
    for (const end of ends) expect(end).toBeGreaterThan(100_000_000_000n);
  });

  test('is renewed before it expires and never lapses', async () => {
    world.settings = { maxAuthAgeMs: 60_000 };
    const { a, b, frontend, backend } = await pair();
    for (const node of [a, b]) node.start();
    a.manager.addEndpoint({ ...frontend, addresses: [frontend.ip] });
    b.manager.addEndpoint({ ...backend, addresses: [backend.ip] });
    world.send(frontend, backend);
    await world.settle();
    for (let i = 0; i < 30; i++) {
      await world.pass(10_000);
      expect(world.send(frontend, backend)).toBe('passed');
      expect(world.send(backend, frontend)).toBe('passed');
    }
    expect(a.reasons('auth.renewed').length).toBeGreaterThan(3);
    expect(a.reasons('auth.expired')).toEqual([]);
    expect(a.reasons('lease.expired')).toEqual([]);
  });

  test('an entry that is not renewed is cleared when it expires', async () => {
    const { a, b, frontend, backend } = await pair();
    world.send(frontend, backend);
    await world.settle();
    world.cut('a', 'b');
    await world.pass(3_700_000);
    expect(a.kernelAuth.size + b.kernelAuth.size).toBe(0);
  });

  test('a miss at the receiver makes the sender’s node prove again', async () => {
    const { a, b, frontend, backend } = await pair();
    world.send(frontend, backend);
    await world.settle();
    b.manager.flush();
    expect(b.kernelAuth.size).toBe(0);
    world.missAtReceiver(backend, frontend);
    await world.settle();
    expect(b.hasAuth(backend.identity, frontend.identity, a.info.id)).toBe(true);
  });

  test('an entry carries the epoch read when verification began: one raised meanwhile makes it a miss', async () => {
    const { a, b, frontend, backend } = await pair();
    world.intercept = (frame) => {
      if (frame.type === FrameType.FRAME_TYPE_PROVE_PROOF) b.epoch = 2;
      if (frame.type === FrameType.FRAME_TYPE_PROVE_RESULT && frame.from === 'b') a.epoch = 2;
      return [frame];
    };
    world.send(frontend, backend);
    await world.settle();
    expect([...a.kernelAuth.values(), ...b.kernelAuth.values()].map((entry) => entry.epoch)).toEqual([1, 1]);
    world.intercept = undefined;
    expect(world.send(frontend, backend)).toBe('held');
    await world.settle();
    expect(world.send(frontend, backend)).toBe('passed');
  });
});

describe('a pair that policy does not require', () => {
  test('goes on once both sides are vouched for, without an authenticator', async () => {
    const { a, b, frontend, backend } = await pair();
    world.required.clear();
    world.send(frontend, backend);
    await world.settle();
    expect(a.released).toHaveLength(1);
    expect(b.believes(frontend.ip)).toBe(frontend.identity);
    expect(world.frames.some((frame) => frame.type >= FrameType.FRAME_TYPE_PROVE_REQUEST)).toBe(false);
  });

  test('is not proven to a peer that asks', async () => {
    const { a, b, frontend, backend } = await pair();
    world.send(frontend, backend);
    await world.settle();
    const policyOfB = { ...world.policy, authTypesOf: () => [] };
    b.start({ policy: () => policyOfB });
    b.manager.addEndpoint({ ...backend, addresses: [backend.ip] });
    world.connect(a, b);
    a.manager.flush();
    // to A it is a successor
    await world.pass(500);
    world.send(frontend, backend);
    await world.settle();
    expect(a.reasons('auth.failed')).toContain('AUTH_NOT_REQUIRED');
    expect(a.hasAuth(frontend.identity, backend.identity, b.info.id)).toBe(false);
  });

  test('is let go to the kernel when denied, which drops it by name', async () => {
    const { a, frontend, backend } = await pair();
    world.denied.add(`${frontend.identity}>${backend.identity}`);
    world.send(frontend, backend);
    await world.settle();
    expect(a.released).toHaveLength(1);
    expect(a.kernelAuth.size).toBe(0);
  });

  test('loses its entry when policy no longer requires it', async () => {
    const { a, frontend, backend } = await pair();
    world.send(frontend, backend);
    await world.settle();
    world.required.clear();
    a.manager.policyChanged();
    expect(a.kernelAuth.size).toBe(0);
  });
});

test('the request names the initiator’s identity as local and the wanted one as remote', async () => {
  const { frontend, backend } = await pair();
  world.send(frontend, backend);
  await world.settle();
  const request = world.frames.find((frame) => frame.type === FrameType.FRAME_TYPE_PROVE_REQUEST)!;
  expect(ProveRequest.decode(request.body)).toMatchObject({ localIdentity: 300, remoteIdentity: 301, authType: 1 });
});
