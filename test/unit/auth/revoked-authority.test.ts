/** A signing key that is taken back, or leaves the bundle: what rests on it goes from both kernels, and nothing new is proven with it. */
import { createPrivateKey } from 'node:crypto';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import type { RevocationSubject } from '../../../src/model/identity.ts';
import type { TrustDomain } from '../../../src/model/ids.ts';
import { der, TAG } from '../../../src/pki/der.ts';
import { OID } from '../../../src/pki/oids.ts';
import { extension } from '../pki/support/forge.ts';
import { type Upstream, upstream } from '../pki/support/upstream.ts';
import { type SimNode, type Workload, World } from './world.ts';

const domain = 'example.org' as TrustDomain;
let world: World;
let a: SimNode;
let b: SimNode;
/** Of the first upstream; `other` and `backend` of the second. */
let frontend: Workload;
let other: Workload;
let backend: Workload;
let first: Upstream;
let second: Upstream;
let revoked: Set<string>;
let tainted: Set<string>;
/** When a packet last passed between the nodes, for both. */
let lastUse: bigint;

beforeEach(async () => {
  world = await World.create();
  a = world.node('a');
  b = world.node('b');
  revoked = new Set();
  tainted = new Set();
  lastUse = 1n << 62n;
  first = upstream(world.time.nowMs(), 1);
  second = upstream(world.time.nowMs(), 2);
  trust(first, second);
  for (const node of [a, b]) start(node);
  frontend = await world.workload('frontend', a, '10.0.1.2', 300);
  other = await world.workload('other', a, '10.0.1.3', 302);
  backend = await world.workload('backend', b, '10.0.2.2', 301);
  give(frontend, first);
  give(other, second);
  give(backend, second);
  world.require(frontend, backend);
  world.require(other, backend);
  for (const node of [a, b]) node.manager.identitiesChanged();
});
afterEach(() => world.close());

function start(node: SimNode): void {
  node.start({
    revocations: {
      isRevoked: ({ authorities = [] }: RevocationSubject) => authorities.some((id) => revoked.has(id)),
    },
    tainted: () => tainted,
    lastUse: () => lastUse,
  });
}

function trust(...upstreams: Upstream[]): void {
  world.bundles.set(domain, { trustDomain: domain, authorities: upstreams.map(({ root }) => root.der) });
  for (const node of [a, b]) node.manager?.bundlesChanged();
}

function give(workload: Workload, by: Upstream): void {
  const { spiffeId, node, identity } = workload;
  const binding = extension(OID.nodeBinding, der(TAG.utf8String, Buffer.from(node.info.spiffeId)), false);
  const chain = by.sign({ uris: [spiffeId], more: [binding] });
  const privateKey = createPrivateKey(chain[0]!.key.export({ type: 'pkcs8', format: 'pem' }) as string);
  const notAfterMs = Number.MAX_SAFE_INTEGER;
  const svid = { spiffeId, chain: chain.map((certificate) => certificate.der), privateKey, notAfterMs };
  node.svids.set(identity, { ok: true, value: svid });
}

async function meet(): Promise<void> {
  world.send(frontend, backend);
  world.send(other, backend);
  await world.settle();
}

const keysOf = (node: SimNode) => [...node.kernelAuth.values()].map((e) => `${e.local}>${e.remote}`).sort();

test('chains with an intermediate prove workloads, across nodes', async () => {
  await meet();
  expect(keysOf(a)).toEqual(['300>301', '302>301']);
  expect(keysOf(b)).toEqual(['301>300', '301>302']);
});

describe.each([
  ['the intermediate that signed them', (by: Upstream) => by.intermediateKeyId],
  ['the root above it', (by: Upstream) => by.rootKeyId],
])('%s is taken back', (_, keyIdOf) => {
  test('exactly the entries that rest on it are gone from both kernels when the call returns', async () => {
    await meet();
    revoked.add(keyIdOf(first));
    expect([a.manager.revoked(), b.manager.revoked()]).toEqual([1, 1]);
    expect([keysOf(a), keysOf(b)]).toEqual([['302>301'], ['301>302']]);
    expect(a.reasons('auth.revoked')).toEqual(['AUTH_REVOKED']);
    expect(world.send(frontend, backend), 'at once, and not even held').toBe('dropped');
  });

  test('the own node shows nothing that rests on it', async () => {
    revoked.add(keyIdOf(first));
    await meet();
    expect(keysOf(a)).toEqual(['302>301']);
    expect(a.reasons('auth.failed')).toContain('AUTH_REVOKED');
  });

  test('a node that pretends not to know is refused its authenticator', async () => {
    a.start({ revocations: { isRevoked: () => false } });
    a.manager.addEndpoint({ ...frontend, addresses: [frontend.ip], endpoint: 77 });
    a.manager.addEndpoint({ ...other, addresses: [other.ip], endpoint: 78 });
    revoked.add(keyIdOf(first));
    await meet();
    expect([keysOf(a), keysOf(b)]).toEqual([['302>301'], ['301>302']]);
    expect(b.reasons('auth.failed').concat(a.reasons('auth.failed'))).toContain('AUTH_REVOKED');
  });

  test('a proof that stands on an open channel serves no new pair', async () => {
    const third = await world.workload('third', b, '10.0.2.3', 303);
    give(third, second);
    world.require(frontend, third);
    await meet();
    // the same channel, on which frontend was proven a moment ago
    revoked.add(keyIdOf(first));
    world.send(frontend, third);
    await world.settle();
    expect(keysOf(a)).not.toContain('300>303');
    expect(keysOf(b)).not.toContain('303>300');
  });

  test('a new SVID of another authority proves again', async () => {
    await meet();
    revoked.add(keyIdOf(first));
    for (const node of [a, b]) node.manager.revoked();
    give(frontend, second);
    a.manager.svidsChanged();
    await world.pass(2_000);
    world.send(frontend, backend);
    await world.settle();
    expect(keysOf(a)).toEqual(['300>301', '302>301']);
  });
});

describe('a key is tainted, and taken back when everybody has a new SVID', () => {
  /** Node after node, as they come. */
  async function renewed(): Promise<void> {
    for (const [node, own] of [
      [a, [frontend]],
      [b, [backend]],
    ] as const) {
      for (const workload of own) give(workload, second);
      node.manager.svidsChanged();
      await world.pass(1000);
    }
  }

  beforeEach(async () => {
    give(backend, first);
    await meet();
    expect(keysOf(a)).toEqual(['300>301', '302>301']);
  });

  test('what rests on it is proven anew before, so that nothing goes and no packet waits', async () => {
    tainted.add(first.intermediateKeyId);
    await renewed();
    revoked.add(first.intermediateKeyId);
    expect([a.manager.revoked(), b.manager.revoked()]).toEqual([0, 0]);
    trust(second);
    expect([keysOf(a), keysOf(b)]).toEqual([
      ['300>301', '302>301'],
      ['301>300', '301>302'],
    ]);
    expect(world.send(frontend, backend)).toBe('passed');
  });

  test('also of a pair that nobody used since: when the key goes, somebody may', async () => {
    tainted.add(first.intermediateKeyId);
    lastUse = 0n;
    await renewed();
    trust(second);
    expect(keysOf(a)).toEqual(['300>301', '302>301']);
  });

  test('another key: nothing is proven before its time', async () => {
    tainted.add('cc'.repeat(20));
    const frames = world.frames.length;
    await renewed();
    expect(world.frames.length).toBe(frames);
  });

  test('while the new SVID is not there yet nothing is tried', async () => {
    tainted.add(first.intermediateKeyId);
    const frames = world.frames.length;
    for (const node of [a, b]) node.manager.svidsChanged();
    await world.pass(1000);
    expect(world.frames.length).toBe(frames);
  });
});

describe('a root leaves the bundle', () => {
  test('what it vouched for is gone at once by the epoch, what another vouches for stays', async () => {
    await meet();
    const before = [a.epoch, b.epoch];
    trust(second);
    expect([a.epoch, b.epoch]).toEqual(before.map((epoch) => epoch + 1));
    expect([keysOf(a), keysOf(b)]).toEqual([['302>301'], ['301>302']]);
    expect(a.reasons('auth.revoked')).toEqual(['CERT_UNTRUSTED']);
  });

  test('an authenticator under it is refused, also on a channel on which it was taken before', async () => {
    await meet();
    trust(second);
    await world.pass(5_000);
    world.send(frontend, backend);
    await world.settle();
    expect(keysOf(a)).toEqual(['302>301']);
    expect(a.reasons('auth.failed')).toContain('CERT_UNTRUSTED');
  });
});

describe('an authority of another trust domain', () => {
  test('vouches for none of ours, whoever else trusts it', async () => {
    world.bundles.set('partner.example' as TrustDomain, {
      trustDomain: 'partner.example' as TrustDomain,
      authorities: [first.root.der],
    });
    trust(second);
    await meet();
    expect([keysOf(a), keysOf(b)]).toEqual([['302>301'], ['301>302']]);
    expect(a.reasons('auth.failed')).toContain('CERT_UNTRUSTED');
  });
});
