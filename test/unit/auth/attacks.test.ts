/** What must not be proven: each case is one attack or fault, and each has its own reason on the node that refuses. */

import { mkdtempSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { openCertificateAuthority } from '../../../ca/api.ts';
import {
  FrameType,
  ProveChallenge,
  ProveProof,
  ProveRequest,
  ProveResult,
} from '../../../proto/gen/countersign/peer/v1/peer.ts';
import type { TrustDomain } from '../../../src/model/ids.ts';
import { spiffeId } from '../../../src/model/spiffe-id.ts';
import { createCsr } from '../../../src/pki/csr.ts';
import { generateKey } from '../../../src/pki/keys.ts';
import { channelOf, type Frame, type SimNode, type Workload, World } from './world.ts';

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

const proofs = () => world.frames.filter((frame) => frame.type === FrameType.FRAME_TYPE_PROVE_PROOF);

describe('step 1, the authenticator', () => {
  test('no SVID at the sender: nothing is asked of the peer', async () => {
    a.svids.clear();
    await sendAndSettle();
    expectRefused('AUTH_NO_SVID');
    expect(a.manager.explain(frontend.identity, backend.identity)).toMatchObject({
      required: ['spiffe'],
      entries: [],
      ownProof: [{ identity: 300, refusal: 'AUTH_NO_SVID' }],
      failures: [{ reason: 'AUTH_NO_SVID', count: 1 }],
    });
  });

  test('no SVID at the receiver: it says so, after the sender proved itself', async () => {
    b.svids.clear();
    await sendAndSettle();
    expectRefused('AUTH_NO_SVID', 'AUTH_NO_SVID');
    expect(proofs()).toHaveLength(1);
  });

  test('an initiator that does not prove itself learns nothing about the responder’s workloads', async () => {
    b.svids.clear();
    const answers: string[] = [];
    world.intercept = (frame) => {
      if (frame.type === FrameType.FRAME_TYPE_PROVE_PROOF) {
        const { exchange } = ProveProof.decode(frame.body);
        return [
          { ...frame, body: Buffer.from(ProveProof.encode({ exchange, authenticator: Buffer.alloc(40) }).finish()) },
        ];
      }
      if (frame.type === FrameType.FRAME_TYPE_PROVE_RESULT) answers.push(ProveResult.decode(frame.body).reason);
      return [frame];
    };
    await sendAndSettle();
    expect(answers).toEqual(['AUTH_BAD_AUTHENTICATOR']);
  });

  test('a proof replayed in another exchange is bound to its own request', async () => {
    let recorded: Buffer | undefined;
    world.intercept = (frame) => {
      if (frame.type !== FrameType.FRAME_TYPE_PROVE_PROOF) return [frame];
      const { exchange, authenticator } = ProveProof.decode(frame.body);
      recorded ??= authenticator;
      return [{ ...frame, body: Buffer.from(ProveProof.encode({ exchange, authenticator: recorded }).finish()) }];
    };
    await sendAndSettle();
    expect(b.kernelAuth.size).toBe(1);
    a.manager.flush();
    b.manager.flush();
    b.manager.bundlesChanged();
    await sendAndSettle();
    expect(b.reasons('auth.failed')).toEqual(['AUTH_BAD_AUTHENTICATOR']);
    expect(a.kernelAuth.size + b.kernelAuth.size).toBe(0);
  });

  test('a proof replayed on another channel fails its Finished', async () => {
    const recorded: Frame[] = [];
    world.intercept = (frame) => {
      if (frame.type === FrameType.FRAME_TYPE_PROVE_PROOF) {
        recorded.push(frame);
        return undefined;
      }
      return [frame];
    };
    await sendAndSettle();
    channelOf(a, b).close('PEER_SHUTDOWN');
    await world.pass(6_000);
    world.intercept = (frame) => {
      if (frame.type !== FrameType.FRAME_TYPE_PROVE_PROOF) return [frame];
      const { exchange } = ProveProof.decode(frame.body);
      const { authenticator } = ProveProof.decode(recorded[0]!.body);
      return [{ ...frame, body: Buffer.from(ProveProof.encode({ exchange, authenticator }).finish()) }];
    };
    await sendAndSettle();
    expect(recorded.length).toBeGreaterThan(0);
    expect(b.reasons('auth.failed').some((r) => r === 'AUTH_BAD_AUTHENTICATOR' || r === 'AUTH_BAD_FINISHED')).toBe(
      true,
    );
    expect(b.kernelAuth.size).toBe(0);
  });

  test('a request sent back to its maker is no request of the peer', async () => {
    world.intercept = (frame) => {
      if (frame.type !== FrameType.FRAME_TYPE_PROVE_CHALLENGE) return [frame];
      const asked = world.frames.find((f) => f.type === FrameType.FRAME_TYPE_PROVE_REQUEST)!;
      const { authenticatorRequest, exchange } = ProveRequest.decode(asked.body);
      const body = Buffer.from(ProveChallenge.encode({ exchange, authenticatorRequest }).finish());
      return [{ ...frame, body }];
    };
    await sendAndSettle();
    expectRefused('AUTH_BAD_REQUEST');
    expect(proofs()).toEqual([]);
  });

  test('an authenticator sent back to its maker proves nothing', async () => {
    world.intercept = (frame) => {
      if (frame.type !== FrameType.FRAME_TYPE_PROVE_RESULT || frame.from !== 'b') return [frame];
      const { authenticator } = ProveProof.decode(proofs()[0]!.body);
      const result = { ...ProveResult.decode(frame.body), authenticator };
      return [{ ...frame, body: Buffer.from(ProveResult.encode(result).finish()) }];
    };
    await sendAndSettle();
    expect(a.reasons('auth.failed')).toEqual(['AUTH_BAD_AUTHENTICATOR']);
    expect(a.kernelAuth.size).toBe(0);
    expect(b.kernelAuth.size, 'A said that it failed: B deletes what it wrote').toBe(0);
    expect(b.reasons('auth.failed')).toEqual(['AUTH_BAD_AUTHENTICATOR']);
  });

  test('the same proof twice in one exchange counts once', async () => {
    world.intercept = (frame) => (frame.type === FrameType.FRAME_TYPE_PROVE_PROOF ? [frame, frame] : [frame]);
    await sendAndSettle();
    expect(b.log.filter((line) => line.startsWith('auth'))).toEqual(['auth+ 301>300@1']);
    expect(a.released).toHaveLength(1);
  });

  test('a request that was answered before is not answered again', async () => {
    let recorded: Buffer | undefined;
    world.intercept = (frame) => {
      if (frame.type !== FrameType.FRAME_TYPE_PROVE_CHALLENGE) return [frame];
      const { exchange, authenticatorRequest } = ProveChallenge.decode(frame.body);
      recorded ??= authenticatorRequest;
      const body = Buffer.from(ProveChallenge.encode({ exchange, authenticatorRequest: recorded }).finish());
      return [{ ...frame, body }];
    };
    await sendAndSettle();
    for (const node of [a, b]) {
      node.manager.flush();
      node.manager.bundlesChanged();
    }
    await sendAndSettle();
    expect(proofs()).toHaveLength(1);
    expect(a.reasons('auth.failed')).toEqual(['AUTH_CONTEXT_REUSED']);
  });

  test('an altered proof: every octet that is flipped is noticed', async () => {
    let at = 0;
    world.intercept = (frame) => {
      if (frame.type !== FrameType.FRAME_TYPE_PROVE_PROOF) return [frame];
      const message = ProveProof.decode(frame.body);
      const altered = Buffer.from(message.authenticator);
      altered[at % altered.length]! ^= 1;
      return [{ ...frame, body: Buffer.from(ProveProof.encode({ ...message, authenticator: altered }).finish()) }];
    };
    for (at = 0; at < 600; at += 37) {
      world.send(frontend, backend);
      await world.settle();
      await world.pass(31_000);
    }
    expect(a.kernelAuth.size + b.kernelAuth.size).toBe(0);
    expect(a.released).toEqual([]);
  });
});

describe('step 2, the chain', () => {
  test('an SVID of an authority that is not in the bundle', async () => {
    world.bundles.set('example.org' as TrustDomain, { trustDomain: 'example.org' as TrustDomain, authorities: [] });
    await sendAndSettle();
    expectRefused('CERT_UNTRUSTED', 'CERT_UNTRUSTED');
  });

  test('an SVID of another trust domain, though its authority is known here too', async () => {
    const td = 'other.org' as TrustDomain;
    const directory = join(mkdtempSync(join(tmpdir(), 'cs-auth-')), 'ca');
    const ca = await openCertificateAuthority({ directory, trustDomain: td, clock: world.time });
    world.bundles.set(td, { trustDomain: td, authorities: ca.bundle().authorities });
    const privateKey = generateKey();
    const id = spiffeId('spiffe://other.org/frontend');
    const node = spiffeId('spiffe://other.org/node/a');
    const issued = await ca.issueWorkloadSvid({ csr: createCsr(privateKey), spiffeId: id, node, requester: 't' });
    if (!issued.ok) throw new Error(issued.error);
    ca.close();
    const { chain, notAfterMs } = issued.value;
    a.svids.set(frontend.identity, { ok: true, value: { spiffeId: id, chain, privateKey, notAfterMs } });
    await sendAndSettle();
    expectRefused('CERT_TRUST_DOMAIN', 'CERT_TRUST_DOMAIN');
  });

  test('an expired SVID that the sender still shows', async () => {
    const short = await world.issue(frontend.spiffeId, a.info.spiffeId, 60);
    a.svids.set(frontend.identity, { ok: true, value: { ...short, notAfterMs: Number.MAX_SAFE_INTEGER } });
    await world.pass(120_000);
    await sendAndSettle();
    expectRefused('CERT_EXPIRED', 'CERT_EXPIRED');
  });
});

describe('step 3, the node', () => {
  test('an SVID bound to another node', async () => {
    a.svids.set(frontend.identity, { ok: true, value: await world.issue(frontend.spiffeId, b.info.spiffeId) });
    await sendAndSettle();
    expectRefused('AUTH_WRONG_NODE', 'AUTH_WRONG_NODE');
  });

  test('the same at the receiver: its entry goes again', async () => {
    b.svids.set(backend.identity, { ok: true, value: await world.issue(backend.spiffeId, a.info.spiffeId) });
    await sendAndSettle();
    expectRefused('AUTH_WRONG_NODE', 'AUTH_WRONG_NODE');
    expect(b.log.filter((line) => line.startsWith('auth'))).toEqual(['auth+ 301>300@1', 'auth- 301>300@1']);
  });

  test('on one node the binding is checked too', async () => {
    const neighbour = await world.workload('neighbour', a, '10.0.1.3', 303);
    world.require(frontend, neighbour);
    a.svids.set(neighbour.identity, { ok: true, value: await world.issue(neighbour.spiffeId, b.info.spiffeId) });
    world.send(frontend, neighbour);
    await world.settle();
    expect(a.kernelAuth.size).toBe(0);
    expect(a.reasons('auth.failed')).toEqual(['AUTH_WRONG_NODE']);
  });
});

describe('step 4, the identity table', () => {
  test('another workload’s SVID', async () => {
    const intruder = await world.workload('intruder', a, '10.0.1.9', 309);
    a.svids.set(frontend.identity, a.svids.get(intruder.identity)!);
    await sendAndSettle();
    expectRefused('AUTH_WRONG_SPIFFE_ID', 'AUTH_WRONG_SPIFFE_ID');
  });

  test('a key that is not the certificate’s', async () => {
    const own = a.svids.get(frontend.identity)!;
    if (!own.ok) throw new Error();
    a.svids.set(frontend.identity, { ok: true, value: { ...own.value, privateKey: generateKey() } });
    await sendAndSettle();
    expectRefused('AUTH_BAD_SIGNATURE', 'AUTH_BAD_SIGNATURE');
  });
});

test('on one node, too, the key must be the certificate’s', async () => {
  const neighbour = await world.workload('neighbour', a, '10.0.1.3', 303);
  world.require(frontend, neighbour);
  const own = a.svids.get(neighbour.identity)!;
  if (!own.ok) throw new Error();
  a.svids.set(neighbour.identity, { ok: true, value: { ...own.value, privateKey: generateKey() } });
  world.send(frontend, neighbour);
  await world.settle();
  expect(a.reasons('auth.failed')).toEqual(['AUTH_BAD_SIGNATURE']);
  expect(a.kernelAuth.size).toBe(0);
});

describe('step 5, the vouch', () => {
  test('an identity that its node does not vouch for', async () => {
    world.intercept = (frame) =>
      frame.to === 'a' && frame.type === FrameType.FRAME_TYPE_VOUCH_REQUEST ? undefined : [frame];
    world.connect(a, b);
    await world.settle();
    // B's question for the sender's address is lost, whenever it is offered: B cannot know the sender, and answers no sooner than its patience ends
    world.send(frontend, backend);
    await world.pass(4_100);
    expect(b.believes(frontend.ip)).toBeUndefined();
    const result = a.manager.authenticate({
      local: frontend.identity,
      remote: backend.identity,
      remoteNode: b.info.id,
      authType: 'spiffe',
    });
    await world.settle();
    expect(await result).toMatchObject({ ok: false, error: 'AUTH_NOT_VOUCHED' });
    expect(b.kernelAuth.size).toBe(0);
  });

  test('a lease that has run out takes the entries with it', async () => {
    await sendAndSettle();
    expect(b.kernelAuth.size).toBe(1);
    world.cut('a', 'b');
    await world.pass(31_000);
    expect(a.kernelAuth.size + b.kernelAuth.size).toBe(0);
    expect(a.reasons('lease.expired')).toEqual(['LEASE_EXPIRED']);
  });
});

describe('step 6, revocation', () => {
  test('revoked before: refused on the own node already', async () => {
    world.ca.revoke({ spiffeId: frontend.spiffeId }, 'test');
    await sendAndSettle();
    expectRefused('AUTH_REVOKED');
  });

  test('revoked before, and its node pretends not to know', async () => {
    world.ca.revoke({ spiffeId: frontend.spiffeId }, 'test');
    a.start({ revocations: { isRevoked: () => false } });
    a.manager.addEndpoint({ ...frontend, addresses: [frontend.ip] });
    await sendAndSettle();
    expectRefused('AUTH_REVOKED', 'AUTH_REVOKED');
  });

  test('revoked between the proof and the result: nothing is written, or it goes again', async () => {
    world.intercept = (frame) => {
      if (frame.type === FrameType.FRAME_TYPE_PROVE_RESULT && frame.from === 'b') {
        world.ca.revoke({ spiffeId: backend.spiffeId }, 'test');
        b.manager.revoked();
      }
      return [frame];
    };
    await sendAndSettle();
    expectRefused('AUTH_REVOKED');
  });

  test('revoked afterwards: exactly its entries are gone when the call returns, on both nodes, by push alone', async () => {
    const other = await world.workload('other', a, '10.0.1.3', 303);
    world.require(other, backend);
    await sendAndSettle();
    world.send(other, backend);
    await world.settle();
    expect([a.kernelAuth.size, b.kernelAuth.size]).toEqual([2, 2]);
    world.ca.revoke({ spiffeId: frontend.spiffeId }, 'test');
    expect([a.manager.revoked(), b.manager.revoked()]).toEqual([1, 1]);
    expect([...a.kernelAuth.keys(), ...b.kernelAuth.keys()]).toEqual(['303/301/2/spiffe', '301/303/1/spiffe']);
    expect(a.reasons('auth.revoked')).toEqual(['AUTH_REVOKED']);
    expect(world.send(frontend, backend), 'not even held').toBe('dropped');
    await world.pass(1_100);
    expect(world.send(frontend, backend)).toBe('held');
    await world.settle();
    expect(a.refused).toHaveLength(1);
    expect(a.kernelAuth.size).toBe(1);
    expect(world.send(other, backend)).toBe('passed');
  });

  test('by serial, by node, and of what an earlier process of the agent proved', async () => {
    await sendAndSettle();
    const own = a.svids.get(frontend.identity)!;
    if (!own.ok) throw new Error();
    const row = world.ca.listSvids().find((r) => r.spiffeId === frontend.spiffeId)!;
    world.ca.revoke({ serial: row.serial }, 'test');
    expect(a.manager.revoked()).toBe(1);
    b.start();
    expect(b.kernelAuth.size).toBe(1);
    expect(b.manager.revoked()).toBe(1);
    expect(b.kernelAuth.size).toBe(0);
  });

  test('a fresh SVID after the revocation is proven at once', async () => {
    await sendAndSettle();
    world.ca.revoke({ spiffeId: frontend.spiffeId }, 'test');
    for (const node of [a, b]) node.manager.revoked();
    expect(world.send(frontend, backend)).toBe('dropped');
    await world.pass(1_000);
    world.time.skip(60_000);
    a.svids.set(frontend.identity, { ok: true, value: await world.issue(frontend.spiffeId, a.info.spiffeId) });
    a.manager.svidsChanged();
    await sendAndSettle();
    expect(a.released).toHaveLength(2);
  });

  test('a bundle that loses the authority ends what rests on it', async () => {
    await sendAndSettle();
    world.bundles.set('example.org' as TrustDomain, { trustDomain: 'example.org' as TrustDomain, authorities: [] });
    a.manager.bundlesChanged();
    expect(a.kernelAuth.size).toBe(0);
    expect(a.reasons('auth.revoked')).toEqual(['CERT_UNTRUSTED']);
  });
});
