/** Node SVIDs under an intermediate: channels carry the chain, and end, or never open, when a key above it is taken back. */
import { createPrivateKey } from 'node:crypto';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { OID_NODE_INCARNATION } from '../../../src/base/registry/oids.ts';
import type { RevocationSubject } from '../../../src/model/identity.ts';
import { spiffeId } from '../../../src/model/spiffe-id.ts';
import { der, TAG } from '../../../src/pki/der.ts';
import { bundleOf, extension, HOUR } from '../pki/support/forge.ts';
import { type Upstream, upstream } from '../pki/support/upstream.ts';
import type { LeafOptions, TestAuthority } from './certificates.ts';
import { eventually, TestCluster, type TestNode } from './node.ts';
import { greetedTls, rawTls } from './raw-peer.ts';

let first: Upstream;
let second: Upstream;
let cluster: TestCluster;
let a: TestNode;
let b: TestNode;

/** An authority of the first upstream; both roots are trusted. */
function authorityOf(by: Upstream): TestAuthority {
  return {
    bundle: bundleOf(first.root, second.root),
    issue: ({ spiffeId: id, incarnation = '1' }: LeafOptions) => {
      const number = extension(OID_NODE_INCARNATION, der(TAG.utf8String, Buffer.from(incarnation)), false);
      const chain = by.sign({ uris: [id], more: [number] });
      return {
        spiffeId: spiffeId(id),
        chain: chain.map((certificate) => certificate.der),
        privateKey: createPrivateKey(chain[0]!.key.export({ type: 'pkcs8', format: 'pem' }) as string),
        notAfterMs: Date.now() + HOUR,
      };
    },
    close: () => {},
  };
}

beforeEach(async () => {
  first = upstream(Date.now(), 1);
  second = upstream(Date.now(), 2);
  cluster = new TestCluster(authorityOf(first));
  a = await cluster.start('a');
  b = await cluster.start('b');
});
afterEach(() => cluster.close());

const revoking =
  (keyId: string) =>
  ({ authorities = [] }: RevocationSubject) =>
    authorities.includes(keyId);

it('the chain with its intermediate is shown and taken, from both sides', async () => {
  const channel = await a.channels.open(b.info);
  expect(channel.peer.spiffeId).toBe(b.info.spiffeId);
  await eventually(() => expect(b.opened).toHaveLength(1));
});

it('without its intermediate a node proves nothing', async () => {
  const svid = cluster.svidOf(b.info);
  const peer = rawTls(a.port, { ...svid, chain: svid.chain.slice(0, 1) });
  await eventually(() => expect(a.refusals()).toEqual(['CERT_UNTRUSTED']));
  peer.socket.destroy();
});

describe.each([
  ['the intermediate', () => first.intermediateKeyId],
  ['the root', () => first.rootKeyId],
])('%s is taken back', (_, keyId) => {
  it('a channel that stands ends at once', async () => {
    await a.channels.open(b.info);
    a.revoked = revoking(keyId());
    a.channels.revokeCheck();
    expect(a.closed.map(({ reason }) => reason)).toEqual(['AUTH_REVOKED']);
    await eventually(() => expect(b.closed.map(({ reason }) => reason)).toEqual(['AUTH_REVOKED']));
  });

  it('no new one opens, whoever dials', async () => {
    a.revoked = revoking(keyId());
    await expect(a.channels.open(b.info)).rejects.toMatchObject({ reason: 'AUTH_REVOKED' });
    await expect(b.channels.open(a.info)).rejects.toMatchObject({ reason: 'AUTH_REVOKED' });
    expect(a.opened).toEqual([]);
  });

  it('what another authority signed for the same node is taken', async () => {
    a.revoked = revoking(keyId());
    await greetedTls(a.port, authorityOf(second).issue({ spiffeId: b.info.spiffeId, incarnation: '1' }));
    expect(a.refusals()).toEqual([]);
  });
});

it('a revocation of another signing key ends nothing', async () => {
  await a.channels.open(b.info);
  a.revoked = revoking(second.intermediateKeyId);
  a.channels.revokeCheck();
  expect(a.closed).toEqual([]);
});

it('a root that leaves the bundle takes channels with it, and its nodes get no new ones', async () => {
  await a.channels.open(b.info);
  a.bundle = bundleOf(second.root);
  a.channels.revokeCheck();
  expect(a.closed.map(({ reason }) => reason)).toEqual(['CERT_UNTRUSTED']);
  await expect(a.channels.open(b.info)).rejects.toMatchObject({ reason: 'CERT_UNTRUSTED' });
});
