/** Everything that an entry rests on may go: by push, in the call that tells of it, exactly what is concerned leaves the kernel. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { openCertificateAuthority } from '../../../ca/api.ts';
import { FrameType } from '../../../proto/gen/countersign/peer/v1/peer.ts';
import type { NodeName, TrustDomain } from '../../../src/model/ids.ts';
import { createCsr } from '../../../src/pki/csr.ts';
import { generateKey } from '../../../src/pki/keys.ts';
import { type SimNode, type Workload, World } from './world.ts';

const domain = 'example.org' as TrustDomain;
let world: World;
let a: SimNode;
let b: SimNode;
let one: Workload;
let two: Workload;
let far: Workload;
let near: Workload;

beforeEach(async () => {
  world = await World.create();
  a = world.node('a');
  b = world.node('b');
  one = await world.workload('one', a, '10.0.1.1', 300);
  two = await world.workload('two', a, '10.0.1.2', 301);
  near = await world.workload('near', a, '10.0.1.3', 302);
  far = await world.workload('far', b, '10.0.2.1', 400);
  for (const local of [one, two]) world.require(local, far);
  world.require(one, near);
  for (const local of [one, two]) world.send(local, far);
  world.send(one, near);
  await world.settle();
  expect(keysOf(a)).toEqual(['300>302', '300>400', '301>400', '302>300']);
  expect(keysOf(b)).toEqual(['400>300', '400>301']);
});
afterEach(() => world.close());

const keysOf = (node: SimNode) => [...node.kernelAuth.values()].map((e) => `${e.local}>${e.remote}`).sort();

describe('revoked', () => {
  test('an SVID, by its serial', () => {
    const { serial } = world.ca.listSvids().find((row) => row.spiffeId === one.spiffeId)!;
    world.ca.revoke({ serial }, 'test');
    expect([a.manager.revoked(), b.manager.revoked()]).toEqual([3, 1]);
    expect([keysOf(a), keysOf(b)]).toEqual([['301>400'], ['400>301']]);
  });

  test('a SPIFFE ID, of the other side', () => {
    world.ca.revoke({ spiffeId: far.spiffeId }, 'test');
    expect([a.manager.revoked(), b.manager.revoked()]).toEqual([2, 2]);
    expect([keysOf(a), keysOf(b)]).toEqual([['300>302', '302>300'], []]);
    expect(world.send(one, far), 'at once, and not even held').toBe('dropped');
  });

  test('a node: everything that is bound to it', () => {
    world.ca.revoke({ node: 'b' as NodeName }, 'test');
    expect(a.manager.revoked()).toBe(2);
    expect(keysOf(a)).toEqual(['300>302', '302>300']);
  });

  test('nothing that anybody has: nothing goes', () => {
    world.ca.revoke({ serial: 'deadbeef' }, 'test');
    expect([a.manager.revoked(), b.manager.revoked()]).toEqual([0, 0]);
  });
});

describe('an authority', () => {
  /** A second one for the same trust domain; `two` and `far` get SVIDs of it and are proven anew. */
  async function second() {
    const directory = mkdtempSync(join(tmpdir(), 'cs-auth-second-'));
    const ca = await openCertificateAuthority({ directory, trustDomain: domain, clock: world.time });
    const authorities = [...world.ca.bundle().authorities, ...ca.bundle().authorities];
    world.bundles.set(domain, { trustDomain: domain, authorities });
    for (const node of [a, b]) node.manager.bundlesChanged();
    for (const workload of [two, far]) {
      const { spiffeId, node, identity } = workload;
      const privateKey = generateKey();
      const request = { csr: createCsr(privateKey), spiffeId, node: node.info.spiffeId, requester: 'test' };
      const issued = await ca.issueWorkloadSvid(request);
      if (!issued.ok) throw new Error(issued.error);
      const { chain, notAfterMs } = issued.value;
      node.svids.set(identity, { ok: true, value: { spiffeId, chain, privateKey, notAfterMs } });
      node.manager.svidsChanged();
    }
    for (const node of [a, b]) node.manager.flush();
    for (const local of [one, two]) world.send(local, far);
    world.send(one, near);
    await world.settle();
    expect(keysOf(a)).toEqual(['300>302', '300>400', '301>400', '302>300']);
    const close = () => {
      ca.close();
      rmSync(directory, { recursive: true });
    };
    return { ca, close };
  }

  test('that comes changes nothing that stands, and no epoch', async () => {
    const { close } = await second();
    expect([a.epoch, b.epoch]).toEqual([1, 1]);
    close();
  });

  test('that goes: by the epoch every entry is a miss at once; then those of the other one come back, and no other', async () => {
    const { ca, close } = await second();
    world.bundles.set(domain, { trustDomain: domain, authorities: ca.bundle().authorities });
    a.log.length = 0;
    a.manager.bundlesChanged();
    b.manager.bundlesChanged();
    expect(a.log[0], 'before anything else').toBe('epoch+');
    expect([keysOf(a), keysOf(b)]).toEqual([['301>400'], ['400>301']]);
    expect([...a.kernelAuth.values(), ...b.kernelAuth.values()].map((entry) => entry.epoch)).toEqual([2, 2]);
    expect(world.send(two, far)).toBe('passed');
    expect(world.send(one, far)).not.toBe('passed');
    close();
  });

  test('that goes while an authentication is under way: what it writes is of the epoch before, and passes nothing', async () => {
    const { ca, close } = await second();
    for (const node of [a, b]) node.manager.flush();
    let isOut = false;
    world.intercept = (frame) => {
      if (!isOut && frame.type === FrameType.FRAME_TYPE_PROVE_PROOF) {
        isOut = true;
        world.bundles.set(domain, { trustDomain: domain, authorities: ca.bundle().authorities });
        for (const node of [a, b]) node.manager.bundlesChanged();
      }
      return [frame];
    };
    world.send(one, far);
    await world.settle();
    expect(isOut).toBe(true);
    expect(a.hasAuth(one.identity, far.identity, b.info.id)).toBe(false);
    expect(b.hasAuth(far.identity, one.identity, a.info.id)).toBe(false);
    close();
  });

  test('that goes takes with it what an earlier life of the agent left', () => {
    a.restart();
    expect(a.kernelAuth.size).toBe(4);
    world.bundles.set(domain, { trustDomain: domain, authorities: [] });
    a.manager.bundlesChanged();
    expect(a.kernelAuth.size).toBe(0);
  });
});

describe('gone', () => {
  test('an identity that the server deleted', () => {
    world.rows.delete(one.identity);
    for (const node of [a, b]) node.manager.identitiesChanged(new Set([one.identity]));
    expect([keysOf(a), keysOf(b)]).toEqual([['301>400'], ['400>301']]);
  });

  test('a node of an identity: the server says that it lives elsewhere', () => {
    world.rows.set(far.identity, { ...world.rows.get(far.identity)!, nodes: [a.info.spiffeId] });
    for (const node of [a, b]) node.manager.identitiesChanged(new Set([far.identity]));
    expect(keysOf(a)).toEqual(['300>302', '302>300']);
  });

  test('a policy that required the pair', () => {
    world.required.clear();
    world.require(two, far);
    for (const node of [a, b]) node.manager.policyChanged(new Set([one.identity]));
    expect([keysOf(a), keysOf(b)]).toEqual([['301>400'], ['400>301']]);
    expect(a.reasons('auth.expired')).toEqual(['AUTH_NOT_REQUIRED', 'AUTH_NOT_REQUIRED', 'AUTH_NOT_REQUIRED']);
  });

  test('an endpoint: here at once, at the peer with the withdraw', async () => {
    a.manager.closeEndpoint(one.endpoint);
    expect(keysOf(a)).toEqual(['301>400']);
    await world.settle();
    expect(keysOf(b)).toEqual(['400>301']);
  });

  test('one of two endpoints of the same identity: nothing goes', async () => {
    a.manager.addEndpoint({ ...one, endpoint: 99, addresses: [near.ip.replace(/3$/, '77') as typeof near.ip] });
    await world.settle();
    a.manager.closeEndpoint(one.endpoint);
    expect(keysOf(a)).toEqual(['300>302', '300>400', '301>400', '302>300']);
  });

  test('a node that left the registry', () => {
    world.nodes.splice(world.nodes.indexOf(b), 1);
    a.manager.nodesChanged();
    expect(keysOf(a)).toEqual(['300>302', '302>300']);
  });

  test('a lease', async () => {
    world.cut('a', 'b');
    await world.pass(31_000);
    expect(keysOf(a)).toEqual(['300>302', '302>300']);
  });
});

test('an identity that talks with itself on its node is proven, and goes when its endpoint does', async () => {
  world.require(near, near);
  world.send(near, near);
  await world.settle();
  expect(keysOf(a)).toContain('302>302');
  a.manager.closeEndpoint(near.endpoint);
  expect(keysOf(a)).toEqual(['300>400', '301>400']);
});

describe('what failed', () => {
  test('is forgotten by the kernel when nobody tries again, so that its table stays small', async () => {
    world.ca.revoke({ spiffeId: far.spiffeId }, 'test');
    a.manager.revoked();
    expect(a.kernelRefused.size).toBe(2);
    await world.pass(130_000);
    expect(a.kernelRefused.size).toBe(0);
  });

  test('and is proven later, keeps its proof when the refusal would have been swept', async () => {
    world.intercept = (frame) => (frame.type === FrameType.FRAME_TYPE_PROVE_CHALLENGE ? undefined : [frame]);
    a.manager.flush();
    b.manager.bundlesChanged();
    world.send(one, far);
    await world.pass(5_100);
    expect(a.kernelRefused.size).toBe(1);
    world.intercept = undefined;
    await world.pass(2_000);
    world.send(one, far);
    await world.settle();
    expect(a.hasAuth(one.identity, far.identity, b.info.id)).toBe(true);
    await world.pass(130_000);
    expect(a.hasAuth(one.identity, far.identity, b.info.id)).toBe(true);
  });
});

describe('a renewal', () => {
  async function shortLived(lastUse: () => bigint) {
    world.close();
    world = await World.create();
    world.settings = { maxAuthAgeMs: 60_000 };
    a = world.node('a');
    b = world.node('b');
    for (const node of [a, b]) node.start({ lastUse });
    one = await world.workload('one', a, '10.0.1.1', 300);
    far = await world.workload('far', b, '10.0.2.1', 400);
    world.require(one, far);
    world.send(one, far);
    await world.settle();
    expect(a.hasAuth(one.identity, far.identity, b.info.id)).toBe(true);
  }

  test('happens while packets pass between the two nodes', async () => {
    await shortLived(() => world.time.bootNs());
    for (let i = 0; i < 15; i++) {
      await world.pass(10_000);
      expect(world.send(one, far)).toBe('passed');
    }
  });

  test('does not happen when none did: the entry ends, and the next packet proves it again', async () => {
    await shortLived(() => 0n);
    await world.pass(70_000);
    expect(keysOf(a)).toEqual([]);
    expect(world.send(one, far)).toBe('held');
    await world.settle();
    expect(a.released.length).toBeGreaterThan(0);
  });
});
