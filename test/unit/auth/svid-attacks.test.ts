/** SVIDs that must not prove a workload, shown by a node that is what it says it is: each on the sender's side and on the receiver's. */
import { createPrivateKey } from 'node:crypto';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import type { ReasonCode } from '../../../src/base/registry/reason-codes.ts';
import type { TrustDomain } from '../../../src/model/ids.ts';
import { spiffeId } from '../../../src/model/spiffe-id.ts';
import { der, TAG } from '../../../src/pki/der.ts';
import { OID } from '../../../src/pki/oids.ts';
import { ca, extension, type Forged, type ForgeOptions, HOUR, KU, leaf } from '../pki/support/forge.ts';
import { type SimNode, type Workload, World } from './world.ts';

const domain = 'example.org' as TrustDomain;
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

/** An authority of the test's own, trusted beside the real one: it signs whatever it is told to. */
function corrupt(): { sign(workload: Workload, node: SimNode, options?: ForgeOptions): Forged } {
  const nowMs = world.time.nowMs();
  const times = { notBeforeMs: nowMs - HOUR, notAfterMs: nowMs + HOUR };
  const root = ca(times);
  const authorities = [...world.ca.bundle().authorities, root.der];
  world.bundles.set(domain, { trustDomain: domain, authorities });
  for (const node of world.nodes) node.manager.bundlesChanged();
  return {
    sign: (workload, node, options = {}) =>
      leaf(root, {
        ...times,
        uris: [workload.spiffeId],
        more: [extension(OID.nodeBinding, der(TAG.utf8String, Buffer.from(node.info.spiffeId)), false)],
        ...options,
      }),
  };
}

function show(workload: Workload, chain: readonly Forged[]) {
  const privateKey = createPrivateKey(chain[0]!.key.export({ type: 'pkcs8', format: 'pem' }) as string);
  const svid = {
    spiffeId: workload.spiffeId,
    chain: chain.map((certificate) => certificate.der),
    privateKey,
    notAfterMs: Number.MAX_SAFE_INTEGER,
  };
  workload.node.svids.set(workload.identity, { ok: true, value: svid });
}

async function refusedWith(reason: ReasonCode) {
  world.send(frontend, backend);
  await world.settle();
  expect(a.kernelAuth.size + b.kernelAuth.size).toBe(0);
  expect(a.released).toEqual([]);
  expect(a.reasons('auth.failed')).toEqual([reason]);
}

test('the corrupt authority’s SVID is taken when nothing is wrong with it', async () => {
  const authority = corrupt();
  show(frontend, [authority.sign(frontend, a)]);
  show(backend, [authority.sign(backend, b)]);
  world.send(frontend, backend);
  await world.settle();
  expect(a.released).toHaveLength(1);
});

type Case = [string, (authority: ReturnType<typeof corrupt>, workload: Workload) => Forged[], ReasonCode];
const cases: Case[] = [
  [
    'a second leaf in the chain',
    (authority, w) => [authority.sign(w, w.node), authority.sign(w, w.node)],
    'CERT_CHAIN_SECOND_LEAF',
  ],
  [
    'a leaf that is not valid yet',
    (authority, w) => [authority.sign(w, w.node, { notBeforeMs: world.time.nowMs() + 60_000 })],
    'CERT_NOT_YET_VALID',
  ],
  [
    'a leaf that has expired',
    (authority, w) => [authority.sign(w, w.node, { notAfterMs: world.time.nowMs() - 1 })],
    'CERT_EXPIRED',
  ],
  [
    'a leaf whose key may only encrypt keys',
    (authority, w) => [authority.sign(w, w.node, { keyUsage: [KU.keyEncipherment] })],
    'CERT_KEY_USAGE',
  ],
  [
    'a leaf whose key may sign certificates',
    (authority, w) => [authority.sign(w, w.node, { keyUsage: [KU.digitalSignature, KU.keyCertSign] })],
    'CERT_KEY_USAGE',
  ],
  [
    'a leaf for servers only',
    (authority, w) => [authority.sign(w, w.node, { extKeyUsage: [OID.serverAuth] })],
    'CERT_EXT_KEY_USAGE',
  ],
  ['a leaf that is bound to no node', (authority, w) => [authority.sign(w, w.node, { more: [] })], 'AUTH_WRONG_NODE'],
  [
    'a leaf that is bound to another node',
    (authority, w) => [authority.sign(w, w.node === a ? b : a)],
    'AUTH_WRONG_NODE',
  ],
  [
    'a leaf with two SPIFFE IDs',
    (authority, w) => [authority.sign(w, w.node, { uris: [w.spiffeId, 'spiffe://example.org/other'] })],
    'CERT_URI_SAN_COUNT',
  ],
];

describe.each(cases)('%s proves nothing', (_, chain, reason) => {
  test('at the sender’s', async () => {
    show(frontend, chain(corrupt(), frontend));
    await refusedWith(reason);
    expect(b.reasons('auth.failed')).toEqual([reason]);
    expect(b.log.filter((line) => line.startsWith('auth+'))).toEqual([]);
  });

  test('at the receiver’s', async () => {
    show(backend, chain(corrupt(), backend));
    await refusedWith(reason);
  });
});

test('an SVID of an identity that does not live on the node that shows it, though it is bound to that node', async () => {
  const row = world.rows.get(frontend.identity)!;
  const nodes = [spiffeId('spiffe://example.org/node/c')];
  // Only B's table has the news: A goes on as before.
  const identities = {
    ...world.identities,
    byIdentity: (id: typeof frontend.identity) => (id === frontend.identity ? { ...row, nodes } : world.rows.get(id)),
  };
  b.restart({ identities });
  b.manager.addEndpoint({ ...backend, addresses: [backend.ip] });
  world.connect(a, b);
  await world.pass(1_000);
  const outcome = a.manager.authenticate({
    local: frontend.identity,
    remote: backend.identity,
    remoteNode: b.info.id,
    authType: 'spiffe',
  });
  await world.settle();
  expect(await outcome).toMatchObject({ ok: false, error: 'AUTH_WRONG_NODE' });
  expect(a.kernelAuth.size + b.kernelAuth.size).toBe(0);
});
