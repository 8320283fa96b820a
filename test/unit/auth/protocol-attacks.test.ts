/** A peer that does not keep to the protocol of an authentication: what it gets is a reason, or the end of the channel. */

import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import {
  FrameType,
  ProveChallenge,
  ProveProof,
  ProveRequest,
  ProveResult,
} from '../../../proto/gen/countersign/peer/v1/peer.ts';
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
  world.require(frontend, backend);
});
afterEach(() => world.close());

async function sendAndSettle() {
  world.send(frontend, backend);
  await world.settle();
}

/** Neither side has an entry, the packet was dropped, and both say why. */
function expectRefused(reasonAtA: string, reasonAtB?: string) {
  expect(a.kernelAuth.size).toBe(0);
  expect(b.kernelAuth.size).toBe(0);
  expect(a.released).toEqual([]);
  expect(a.refused).toEqual(['10.0.1.2>10.0.2.2 HOLD_REFUSED']);
  expect(a.reasons('auth.failed')).toEqual([reasonAtA]);
  if (reasonAtB !== undefined) expect(b.reasons('auth.failed')).toEqual([reasonAtB]);
}

describe('a peer that does not keep to the protocol', () => {
  test('a request that is never answered times out, and the next try waits', async () => {
    world.intercept = (frame) => (frame.type === FrameType.FRAME_TYPE_PROVE_CHALLENGE ? undefined : [frame]);
    world.send(frontend, backend);
    await world.pass(4_900);
    expect(a.refused).toEqual([]);
    await world.pass(200);
    expectRefused('AUTH_TIMEOUT', 'AUTH_TIMEOUT');
    world.send(frontend, backend);
    await world.settle();
    expect(world.send(frontend, backend), 'the kernel drops it until then').toBe('dropped');
    expect(a.reasons('auth.failed')).toEqual(['AUTH_TIMEOUT']);
    world.intercept = undefined;
    await world.pass(1_000);
    world.send(frontend, backend);
    await world.settle();
    expect(a.released).toHaveLength(1);
  });

  test('an initiator that never says the last word: the responder’s entry goes again', async () => {
    world.intercept = (frame) =>
      frame.type === FrameType.FRAME_TYPE_PROVE_RESULT && frame.from === 'a' ? undefined : [frame];
    await sendAndSettle();
    expect(b.kernelAuth.size).toBe(1);
    await world.pass(5_100);
    expect(b.kernelAuth.size).toBe(0);
  });

  test('the channel ends half way: nothing stays', async () => {
    world.intercept = (frame) => {
      if (frame.type === FrameType.FRAME_TYPE_PROVE_RESULT) channelOf(a, b).close('PEER_IDLE_TIMEOUT');
      return [frame];
    };
    await sendAndSettle();
    expectRefused('PEER_CHANNEL_CLOSED', 'PEER_CHANNEL_CLOSED');
  });

  test('messages of unknown exchanges change nothing', async () => {
    world.connect(a, b);
    await world.settle();
    const far = channelOf(b, a);
    inject(
      far,
      FrameType.FRAME_TYPE_PROVE_PROOF,
      Buffer.from(ProveProof.encode({ exchange: 77n, authenticator: Buffer.alloc(9) }).finish()),
    );
    inject(
      far,
      FrameType.FRAME_TYPE_PROVE_CHALLENGE,
      Buffer.from(ProveChallenge.encode({ exchange: 77n, authenticatorRequest: Buffer.alloc(9) }).finish()),
    );
    const result = { exchange: 77n, ok: true, reason: '', validMs: 99n, authenticator: Buffer.alloc(9) };
    inject(far, FrameType.FRAME_TYPE_PROVE_RESULT, Buffer.from(ProveResult.encode(result).finish()));
    await world.settle();
    expect(far.closed).toBe(false);
    expect(b.kernelAuth.size).toBe(0);
    expect(
      world.frames.filter((frame) => frame.from === 'b' && frame.type >= FrameType.FRAME_TYPE_PROVE_REQUEST),
    ).toEqual([]);
  });

  test('a result before the proof was asked for closes the channel', async () => {
    world.intercept = (frame) => {
      if (frame.type !== FrameType.FRAME_TYPE_PROVE_CHALLENGE) return [frame];
      const { exchange } = ProveChallenge.decode(frame.body);
      const result = { exchange, ok: true, reason: '', validMs: 99n, authenticator: Buffer.alloc(0) };
      return [
        { ...frame, type: FrameType.FRAME_TYPE_PROVE_RESULT, body: Buffer.from(ProveResult.encode(result).finish()) },
      ];
    };
    await sendAndSettle();
    expect(a.closedChannels.at(-1)?.reason).toBe('PEER_FRAME_UNEXPECTED');
    expect(a.kernelAuth.size).toBe(0);
  });

  test('an exchange number used twice, or of the wrong side, closes the channel', async () => {
    for (const exchange of [2n, 1n]) {
      world.connect(a, b);
      await world.settle();
      const far = channelOf(b, a);
      const request = {
        exchange,
        localIdentity: 300,
        remoteIdentity: 301,
        authType: 1,
        authenticatorRequest: Buffer.alloc(0),
        flow: undefined,
        localCertificate: Buffer.alloc(0),
      };
      const body = Buffer.from(ProveRequest.encode(request).finish());
      inject(far, FrameType.FRAME_TYPE_PROVE_REQUEST, body);
      if (exchange === 1n) inject(far, FrameType.FRAME_TYPE_PROVE_REQUEST, body);
      expect(far.closeReason).toBe('PEER_FRAME_UNEXPECTED');
    }
  });

  test('a body that does not decode closes the channel, whatever its type', async () => {
    for (const type of Object.values(FrameType)) {
      if (type < FrameType.FRAME_TYPE_VOUCH_REQUEST || type > FrameType.FRAME_TYPE_MISS) continue;
      world.connect(a, b);
      await world.settle();
      const far = channelOf(b, a);
      inject(far, type, Buffer.from([0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f, 1]));
      expect([type, far.closeReason]).toEqual([type, 'PEER_FRAME_MALFORMED']);
    }
  });

  test('a node that cannot be reached: refused with the reason, retried after a while', async () => {
    world.cut('a', 'b');
    await sendAndSettle();
    expectRefused('PEER_UNREACHABLE');
    expect(a.manager.explain(frontend.identity, backend.identity).failures[0]).toMatchObject({
      reason: 'PEER_UNREACHABLE',
      remoteAddress: '10.0.2.2',
    });
    world.heal('a', 'b');
    await world.pass(1_000);
    await sendAndSettle();
    expect(a.released).toHaveLength(1);
  });

  test('a queue with a bound: what exceeds it is refused by name', async () => {
    world.settings = { queueSize: 1 };
    a.start();
    a.manager.addEndpoint({ ...frontend, addresses: [frontend.ip] });
    world.intercept = () => undefined;
    const third = await world.workload('third', b, '10.0.2.3', 303);
    world.send(frontend, backend);
    world.send(frontend, third);
    expect(a.refused).toEqual(['10.0.1.2>10.0.2.3 HOLD_REFUSED']);
  });

  test('test-always-fail is never proven, on another node or on the own one', async () => {
    const neighbour = await world.workload('neighbour', a, '10.0.1.3', 303);
    world.require(frontend, backend, 'test-always-fail');
    world.require(frontend, neighbour, 'test-always-fail');
    await sendAndSettle();
    world.send(frontend, neighbour);
    await world.settle();
    expect(a.refused).toEqual(['10.0.1.2>10.0.2.2 AUTH_ALWAYS_FAIL', '10.0.1.2>10.0.1.3 AUTH_ALWAYS_FAIL']);
    expect(a.reasons('auth.failed')).toEqual(['AUTH_ALWAYS_FAIL', 'AUTH_ALWAYS_FAIL']);
    expect(a.kernelAuth.size).toBe(0);
  });

  test('without a tunnel nothing is vouched, so nothing is proven', async () => {
    a.tunnelReady = { ok: false, error: 'AUTH_NO_TUNNEL' };
    await sendAndSettle();
    expectRefused('AUTH_NO_TUNNEL');
    expect(a.believes(backend.ip)).toBeUndefined();
  });
});
