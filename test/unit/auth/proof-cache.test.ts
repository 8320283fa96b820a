/** A proof stands for its identity on its channel until something it rests on changes: each such change, and what would come of a proof that outlived it. */
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import {
  FrameType,
  ProveChallenge,
  ProveProof,
  ProveRequest,
  ProveResult,
} from '../../../proto/gen/countersign/peer/v1/peer.ts';
import type { TrustDomain } from '../../../src/model/ids.ts';
import { channelOf, type SimNode, type Workload, World } from './world.ts';

let world: World;
let a: SimNode;
let b: SimNode;
let frontend: Workload;
let backend: Workload;
let other: Workload;

beforeEach(async () => {
  world = await World.create();
  a = world.node('a');
  b = world.node('b');
  frontend = await world.workload('frontend', a, '10.0.1.2', 300);
  backend = await world.workload('backend', b, '10.0.2.2', 301);
  other = await world.workload('other', b, '10.0.2.3', 302);
  for (const one of [backend, other]) world.require(frontend, one);
  world.send(frontend, backend);
  world.send(frontend, other);
  await world.settle();
  expect([a.kernelAuth.size, b.kernelAuth.size]).toEqual([2, 2]);
});
afterEach(() => world.close());

/** Proves the pair anew; which authenticators travelled for it. */
async function again(from = frontend, to = backend): Promise<string[]> {
  for (const node of [a, b]) node.manager.flush();
  world.frames.length = 0;
  world.send(from, to);
  await world.settle();
  return world.frames.flatMap(({ from: node, type, body }) => {
    if (type === FrameType.FRAME_TYPE_PROVE_PROOF && ProveProof.decode(body).authenticator.length > 100) return [node];
    if (type === FrameType.FRAME_TYPE_PROVE_RESULT && ProveResult.decode(body).authenticator.length > 100)
      return [node];
    return [];
  });
}

async function rotate(workload: Workload) {
  const svid = await world.issue(workload.spiffeId, workload.node.info.spiffeId);
  workload.node.svids.set(workload.identity, { ok: true, value: svid });
  workload.node.manager.svidsChanged();
  return svid;
}

const leafShownBy = (workload: Workload) => {
  const svid = workload.node.svids.get(workload.identity)!;
  if (!svid.ok) throw new Error();
  return svid.value.chain[0]!;
};

test('while nothing changes, no authenticator is made again', async () => {
  expect(await again()).toEqual([]);
  expect([a.kernelAuth.size, b.kernelAuth.size]).toEqual([1, 1]);
});

describe('a new SVID', () => {
  test('of the initiator is shown before anything new rests on it', async () => {
    await rotate(frontend);
    expect(await again()).toEqual(['a']);
    expect(world.frames.some(({ body }) => body.includes(leafShownBy(frontend)))).toBe(true);
    expect([a.kernelAuth.size, b.kernelAuth.size]).toEqual([1, 1]);
    expect(await again(), 'once').toEqual([]);
  });

  test('of the responder is asked for, and shown', async () => {
    await rotate(backend);
    expect(await again()).toEqual(['b']);
    expect(world.frames.some(({ body }) => body.includes(leafShownBy(backend)))).toBe(true);
    expect([a.kernelAuth.size, b.kernelAuth.size]).toEqual([1, 1]);
    expect(a.reasons('auth.failed')).toEqual([]);
  });

  test('of both is shown by both', async () => {
    await rotate(frontend);
    await rotate(backend);
    expect((await again()).sort()).toEqual(['a', 'b']);
  });

  test('that is another workload’s does not ride on the proof of before', async () => {
    const intruder = await world.workload('intruder', b, '10.0.2.9', 309);
    b.svids.set(backend.identity, b.svids.get(intruder.identity)!);
    await again();
    expect(a.kernelAuth.size + b.kernelAuth.size).toBe(0);
    expect(a.reasons('auth.failed')).toEqual(['AUTH_WRONG_SPIFFE_ID']);
  });

  test('of the initiator that it conceals is still judged by what it shows: an entry ends with the certificate that was proven', async () => {
    const short = await world.issue(frontend.spiffeId, a.info.spiffeId, 60);
    a.svids.set(frontend.identity, { ok: true, value: short });
    expect(await again()).toEqual(['a']);
    // From here on A claims a longer one and names the old certificate's digest.
    await rotate(frontend);
    world.intercept = (frame) => {
      if (frame.type !== FrameType.FRAME_TYPE_PROVE_REQUEST) return [frame];
      const request = { ...ProveRequest.decode(frame.body), localCertificate: Buffer.alloc(0) };
      return [{ ...frame, body: Buffer.from(ProveRequest.encode(request).finish()) }];
    };
    await again();
    for (const entry of b.kernelAuth.values()) {
      expect(entry.expiresAtNs - world.time.bootNs()).toBeLessThanOrEqual(60_000_000_000n);
    }
  });

  test('gone altogether: nothing is proven with what the peer still remembers', async () => {
    b.svids.set(backend.identity, { ok: false, error: 'AUTH_NO_SVID' });
    await again();
    expect(a.kernelAuth.size + b.kernelAuth.size).toBe(0);
    expect(a.reasons('auth.failed')).toEqual(['AUTH_NO_SVID']);
  });
});

describe('a proof that stood a moment ago serves nothing', () => {
  test('when it was revoked, on either side', async () => {
    // B itself never hears of it: A's memory alone decides.
    b.restart({ revocations: { isRevoked: () => false } });
    b.manager.addEndpoint({ ...backend, addresses: [backend.ip] });
    await world.pass(1_000);
    await again();
    expect(await again()).toEqual([]);
    world.ca.revoke({ spiffeId: backend.spiffeId }, 'test');
    await again();
    expect(a.kernelAuth.size + b.kernelAuth.size).toBe(0);
    expect(a.reasons('auth.failed')).toContain('AUTH_REVOKED');
  });

  test('when the bundle changed: it is verified anew', async () => {
    for (const node of [a, b]) node.manager.bundlesChanged();
    expect((await again()).sort()).toEqual(['a', 'b']);
    const td = 'example.org' as TrustDomain;
    world.bundles.set(td, { trustDomain: td, authorities: [] });
    for (const node of [a, b]) node.manager.bundlesChanged();
    await again();
    expect(a.kernelAuth.size + b.kernelAuth.size).toBe(0);
    expect(b.reasons('auth.failed')).toEqual(['CERT_UNTRUSTED']);
  });

  test('when its channel ended: on the next one everything is proven again', async () => {
    channelOf(a, b).close('PEER_SHUTDOWN');
    expect((await again()).sort()).toEqual(['a', 'b']);
  });

  test('when the epoch rose', async () => {
    a.epoch = 2;
    b.epoch = 2;
    expect((await again()).sort()).toEqual(['a', 'b']);
    expect([...a.kernelAuth.values(), ...b.kernelAuth.values()].map((entry) => entry.epoch)).toEqual([2, 2]);
  });

  test('when the identity table ties the identity to another SPIFFE ID, or takes the node away', async () => {
    const row = world.rows.get(backend.identity)!;
    world.rows.set(backend.identity, { ...row, nodes: [] });
    a.manager.identitiesChanged();
    await again();
    expect(a.kernelAuth.size).toBe(0);
  });

  test('when most of its life is over: a renewal begins with a fresh one', async () => {
    world.settings = { maxAuthAgeMs: 100_000 };
    for (const node of [a, b]) node.start();
    a.manager.addEndpoint({ ...frontend, addresses: [frontend.ip] });
    b.manager.addEndpoint({ ...backend, addresses: [backend.ip] });
    for (const node of [a, b]) for (const channel of node.channelTo.values()) channel.close('PEER_SHUTDOWN');
    world.connect(a, b);
    // successors, to each other
    await world.pass(500);
    await again();
    await world.pass(60_000);
    expect(await again()).toEqual([]);
    await world.pass(12_000);
    expect((await again()).sort()).toEqual(['a', 'b']);
  });
});

test('a challenge that names a request twice is not answered from memory', async () => {
  const seen: Buffer[] = [];
  world.intercept = (frame) => {
    if (frame.type !== FrameType.FRAME_TYPE_PROVE_CHALLENGE) return [frame];
    const message = ProveChallenge.decode(frame.body);
    if (message.authenticatorRequest.length > 0) seen.push(message.authenticatorRequest);
    const body = ProveChallenge.encode({ ...message, authenticatorRequest: seen[0] ?? Buffer.alloc(0) }).finish();
    return [{ ...frame, body: Buffer.from(body) }];
  };
  for (const node of [a, b]) node.manager.bundlesChanged();
  await again();
  for (const node of [a, b]) node.manager.bundlesChanged();
  await again();
  expect(a.reasons('auth.failed')).toContain('AUTH_CONTEXT_REUSED');
});
