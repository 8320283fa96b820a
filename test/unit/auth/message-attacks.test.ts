/** Messages of an authentication that are cut, extended, repeated, invented or out of turn: nothing is proven by them, and nobody learns anything. */
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import {
  FrameType,
  PairsResult,
  ProvePairs,
  ProveProof,
  ProveResult,
} from '../../../proto/gen/countersign/peer/v1/peer.ts';
import { channelOf, type Frame, inject, type SimNode, type Workload, World } from './world.ts';

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

/** Of the flow that was begun last. */
let port = 40_000;

const PROVING = [
  FrameType.FRAME_TYPE_PROVE_REQUEST,
  FrameType.FRAME_TYPE_PROVE_CHALLENGE,
  FrameType.FRAME_TYPE_PROVE_PROOF,
  FrameType.FRAME_TYPE_PROVE_RESULT,
];

/** Tag, length and SHA-256. */
const CERTIFICATE_FIELD = 34;

type Kind = 'pair' | 'flow';

/** One exchange from a fresh start with one message changed; what is written when all is over. */
async function exchangeWith(kind: Kind, type: FrameType, from: string, change: (body: Buffer) => Buffer | undefined) {
  for (const node of [a, b]) {
    for (const channel of [...node.channelTo.values()]) channel.close('PEER_SHUTDOWN');
    node.manager.flush();
  }
  world.queue.length = 0;
  await world.pass(31_000);
  for (const node of [a, b]) node.manager.svidsChanged();
  a.released.length = 0;
  let isDone = false;
  world.intercept = (frame) => {
    if (isDone || frame.type !== type || frame.from !== from) return [frame];
    isDone = true;
    const body = change(frame.body);
    return body === undefined ? undefined : [{ ...frame, body }];
  };
  begin(kind);
  await world.pass(6_000);
  world.intercept = undefined;
  return { released: a.released.length, a: written(a), b: written(b) };
}

function begin(kind: Kind) {
  if (kind === 'pair') world.send(frontend, backend);
  else world.sendFlow(frontend, backend, ++port);
}

function written({ kernelAuth, kernelFlows }: SimNode): number {
  return kernelAuth.size + kernelFlows.size;
}

/** What each message looks like, from an exchange that goes well. */
async function samples(kind: Kind): Promise<Frame[]> {
  if (kind === 'flow') world.require(frontend, backend, 'spiffe-connection');
  begin(kind);
  await world.settle();
  expect(a.released).toHaveLength(1);
  return world.frames.filter((frame) => PROVING.includes(frame.type as (typeof PROVING)[number]));
}

describe.each(['pair', 'flow'] as const)('each message of the exchange of a %s', (kind) => {
  test('that is cut at any octet proves nothing', async () => {
    for (const { type, from, body } of await samples(kind)) {
      // The last word names no proof; cut to nothing it names no exchange, and what it would confirm goes.
      if (type === FrameType.FRAME_TYPE_PROVE_RESULT && from === 'a') continue;
      for (let length = 0; length < body.length; length++) {
        // What is left is a whole request that does not name its certificate.
        if (type === FrameType.FRAME_TYPE_PROVE_REQUEST && length === body.length - CERTIFICATE_FIELD) continue;
        const left = await exchangeWith(kind, type, from, (whole) =>
          whole.subarray(0, Math.min(length, whole.length - 1)),
        );
        expect([type, from, length, left.released, left.a]).toEqual([type, from, length, 0, 0]);
      }
    }
  }, 60_000);

  test('whose authenticator is cut or extended proves nothing', async () => {
    await samples(kind);
    const bend = (change: (octets: Buffer) => Buffer) => (body: Buffer) => {
      const message = ProveProof.decode(body);
      return Buffer.from(ProveProof.encode({ ...message, authenticator: change(message.authenticator) }).finish());
    };
    // At every octet of it: real-channel.test.ts.
    for (let at = 0; at <= 700; at += 20) {
      const cut = await exchangeWith(
        kind,
        FrameType.FRAME_TYPE_PROVE_PROOF,
        'a',
        bend((octets) => octets.subarray(0, at)),
      );
      expect([at, cut]).toEqual([at, { released: 0, a: 0, b: 0 }]);
      const extended = await exchangeWith(
        kind,
        FrameType.FRAME_TYPE_PROVE_PROOF,
        'a',
        bend((octets) => Buffer.concat([octets.subarray(0, at), Buffer.from([0]), octets.subarray(at)])),
      );
      expect([at, extended]).toEqual([at, { released: 0, a: 0, b: 0 }]);
    }
  }, 60_000);
});

describe('a batch of pairs', () => {
  let other: Workload;
  beforeEach(async () => {
    other = await world.workload('other', b, '10.0.2.3', 302);
    world.require(frontend, other);
  });

  const verdictsTo = (name: string) =>
    world.frames
      .filter((frame) => frame.type === FrameType.FRAME_TYPE_PAIRS_RESULT && frame.to === name)
      .flatMap((frame) => PairsResult.decode(frame.body).verdicts);

  function ask(pairs: readonly [number, number][], exchange = 1n, authType = 1) {
    const message = {
      exchange,
      authType,
      pairs: pairs.map(([localIdentity, remoteIdentity]) => ({ localIdentity, remoteIdentity })),
    };
    inject(channelOf(b, a), FrameType.FRAME_TYPE_PROVE_PAIRS, Buffer.from(ProvePairs.encode(message).finish()));
  }

  /** A has proven frontend, B has proven backend; `other` has been shown to nobody. */
  async function prove() {
    world.send(frontend, backend);
    await world.settle();
    expect([a.kernelAuth.size, b.kernelAuth.size]).toEqual([1, 1]);
    world.frames.length = 0;
  }

  test('of an identity that was never proven writes nothing, and says nothing about the own side', async () => {
    await prove();
    const second = await world.workload('second', a, '10.0.1.3', 303);
    world.require(second, backend);
    ask([
      [303, 301],
      [303, 999],
      [777, 301],
    ]);
    await world.settle();
    expect(verdictsTo('a').map(({ ok, reason }) => [ok, reason])).toEqual([
      [false, 'AUTH_EXPIRED'],
      [false, 'AUTH_EXPIRED'],
      [false, 'AUTH_EXPIRED'],
    ]);
    expect(b.kernelAuth.size).toBe(1);
  });

  test('with an own identity that was not shown on the channel writes nothing', async () => {
    await prove();
    ask([[300, 302]]);
    await world.settle();
    expect(verdictsTo('a')).toMatchObject([{ ok: false, reason: 'AUTH_EXPIRED' }]);
    expect(b.kernelAuth.size).toBe(1);
  });

  test('that policy does not require, or of an identity that is not hosted, writes nothing', async () => {
    await prove();
    const spare = await world.workload('spare', b, '10.0.2.4', 304);
    ask([
      [300, spare.identity],
      [300, 555],
    ]);
    await world.settle();
    expect(verdictsTo('a').map(({ reason }) => reason)).toEqual(['AUTH_NOT_REQUIRED', 'AUTH_NOT_REQUIRED']);
  });

  test('of what was revoked a moment ago writes nothing', async () => {
    await prove();
    for (const node of [a, b]) node.manager.flush();
    world.ca.revoke({ spiffeId: frontend.spiffeId }, 'test');
    ask([[300, 301]]);
    await world.settle();
    expect(verdictsTo('a')).toMatchObject([{ ok: false, reason: 'AUTH_EXPIRED' }]);
    expect(b.kernelAuth.size).toBe(0);
  });

  test('that is cut at any octet, or has one more at any place, writes nothing that is not proven', async () => {
    await prove();
    const second = await world.workload('second', a, '10.0.1.3', 303);
    world.require(second, backend);
    const pairs = [
      { localIdentity: 303, remoteIdentity: 301 },
      { localIdentity: 300, remoteIdentity: 301 },
      { localIdentity: 300, remoteIdentity: 302 },
    ];
    const { length } = ProvePairs.encode({ exchange: 1n, authType: 1, pairs }).finish();
    const log = b.log.length;
    for (let at = 0; at <= length; at++) {
      for (const isCut of [true, false]) {
        if (channelOf(b, a) === undefined) world.connect(a, b);
        await world.settle();
        for (const node of [a, b]) node.manager.flush();
        world.send(frontend, backend);
        await world.settle();
        const body = Buffer.from(
          ProvePairs.encode({ exchange: BigInt(at * 4 + (isCut ? 101 : 103)), authType: 1, pairs }).finish(),
        );
        const bent = isCut
          ? body.subarray(0, at)
          : Buffer.concat([body.subarray(0, at), Buffer.from([0xff]), body.subarray(at)]);
        inject(channelOf(b, a), FrameType.FRAME_TYPE_PROVE_PAIRS, bent);
        await world.settle();
      }
    }
    const entries = new Set(b.log.slice(log).filter((line) => line.startsWith('auth+')));
    expect(entries).toEqual(new Set(['auth+ 301>300@1']));
  }, 60_000);

  test('that its initiator does not confirm goes again', async () => {
    await prove();
    for (const node of [a, b]) node.manager.flush();
    ask([[300, 301]]);
    await world.settle();
    expect(verdictsTo('a')).toMatchObject([{ ok: true }]);
    expect(b.kernelAuth.size).toBe(1);
    await world.pass(5_100);
    expect(b.kernelAuth.size).toBe(0);
  });

  test('of a channel that ends before it is confirmed goes again', async () => {
    await prove();
    for (const node of [a, b]) node.manager.flush();
    ask([[300, 301]]);
    channelOf(a, b).close('PEER_SHUTDOWN');
    await world.settle();
    expect(b.kernelAuth.size).toBe(0);
  });

  test('that is confirmed in part keeps that part', async () => {
    world.send(frontend, other);
    await world.settle();
    await prove2();
    for (const node of [a, b]) node.manager.flush();
    ask([
      [300, 301],
      [300, 302],
    ]);
    await world.settle();
    const verdicts = [
      { ok: false, reason: 'AUTH_REVOKED', validMs: 0n },
      { ok: true, reason: '', validMs: 1_000n },
    ];
    const body = Buffer.from(PairsResult.encode({ exchange: 1n, verdicts }).finish());
    inject(channelOf(b, a), FrameType.FRAME_TYPE_PAIRS_RESULT, body);
    expect([...b.kernelAuth.keys()]).toEqual(['302/300/1/spiffe']);
  });

  async function prove2() {
    world.send(frontend, backend);
    await world.settle();
    expect([a.kernelAuth.size, b.kernelAuth.size]).toEqual([2, 2]);
  }

  test('with too many pairs, none, another type, a number used before or of this side closes the channel', async () => {
    const many = Array.from({ length: 513 }, (_, i): [number, number] => [300, 1_000 + i]);
    const wrong: [() => void, string][] = [
      [() => ask(many), 'PEER_FRAME_MALFORMED'],
      [() => ask([]), 'PEER_FRAME_UNEXPECTED'],
      [() => ask([[300, 301]], 1n, 2), 'PEER_FRAME_UNEXPECTED'],
      [() => ask([[300, 301]], 2n), 'PEER_FRAME_UNEXPECTED'],
      [
        () => {
          ask([[300, 301]], 3n);
          ask([[300, 301]], 3n);
        },
        'PEER_FRAME_UNEXPECTED',
      ],
    ];
    for (const [attack, reason] of wrong) {
      world.connect(a, b);
      await world.settle();
      const far = channelOf(b, a);
      attack();
      expect(far.closeReason).toBe(reason);
    }
  });

  test('results that nobody asked for, or of another length, prove nothing', async () => {
    await prove();
    const yes = { ok: true, reason: '', validMs: 99_999n };
    const result = (exchange: bigint, count: number) =>
      Buffer.from(PairsResult.encode({ exchange, verdicts: Array.from({ length: count }, () => yes) }).finish());
    const far = channelOf(b, a);
    inject(far, FrameType.FRAME_TYPE_PAIRS_RESULT, result(77n, 3));
    inject(far, FrameType.FRAME_TYPE_PAIRS_RESULT, result(2n, 1));
    expect(far.closed).toBe(false);
    expect(b.kernelAuth.size).toBe(1);
    ask([[300, 301]], 9n);
    inject(far, FrameType.FRAME_TYPE_PAIRS_RESULT, result(9n, 2));
    expect(far.closeReason).toBe('PEER_FRAME_UNEXPECTED');
  });

  test('more of them at once than a peer needs are refused by name', async () => {
    await prove();
    world.intercept = (frame) => (frame.from === 'a' ? undefined : [frame]);
    for (let i = 0; i < 12; i++) ask([[300, 301]], BigInt(2 * i + 1));
    await world.settle();
    expect(verdictsTo('a').filter(({ reason }) => reason === 'AUTH_QUEUE_FULL')).toHaveLength(4);
  });
});

test('a result that says yes without a proof, after the own one, writes nothing', async () => {
  world.intercept = (frame) => {
    if (frame.type !== FrameType.FRAME_TYPE_PROVE_RESULT || frame.from !== 'b') return [frame];
    const result = { ...ProveResult.decode(frame.body), authenticator: Buffer.alloc(0) };
    return [{ ...frame, body: Buffer.from(ProveResult.encode(result).finish()) }];
  };
  world.send(frontend, backend);
  await world.settle();
  expect(a.kernelAuth.size + b.kernelAuth.size).toBe(0);
  expect(a.reasons('auth.failed')).toEqual(['AUTH_BAD_AUTHENTICATOR']);
});
