/** Bundles of other trust domains, from the administrator to the workloads that federate, and to nobody else: real server, real agent, real streams. */
import { join } from 'node:path';
import { credentials } from '@grpc/grpc-js';
import { afterEach, expect, test } from 'vitest';
import { BundleAdminClient, type JsonReply } from '../../../proto/gen/countersign/admin/v1/admin.ts';
import type { TrustDomain } from '../../../src/model/ids.ts';
import { encodeSpiffeBundle } from '../../../src/pki/spiffe-bundle.ts';
import { verifyX509Svid } from '../../../src/pki/verify.ts';
import { TestServer, until } from '../identity/harness.ts';
import { ca, type Forged, leaf } from '../pki/support/forge.ts';
import { SELECTORS, type StagedAgent, stageAgent, Watch } from './rotation-stage.ts';

const PARTNER = 'partner.example' as TrustDomain;
let server: TestServer;
let rpc: BundleAdminClient;
afterEach(async () => {
  rpc.close();
  await server[Symbol.asyncDispose]();
});

const entry = (federatesWith: string[]) => ({
  ...{ id: 'web', spiffeId: 'spiffe://example.org/web', node: 'node-a', selectors: SELECTORS, federatesWith },
});

async function staged(federatesWith: string[]): Promise<StagedAgent> {
  server = await TestServer.start({}, [entry(federatesWith)]);
  rpc = new BundleAdminClient(`unix:${join(server.dir, 'admin.sock')}`, credentials.createInsecure());
  const token = await server.token('node-a');
  const agent = await stageAgent(server, 'node-a', { joinToken: async () => token });
  await until('its SVID', () => agent.svids.snapshot().svidOf('web'));
  return agent;
}

function setBundle(trustDomain: string, authorities: readonly Forged[], sequence: bigint): Promise<JsonReply> {
  const bundle = { trustDomain: trustDomain as TrustDomain, authorities: authorities.map(({ der }) => der), sequence };
  const document = encodeSpiffeBundle(bundle);
  return new Promise((resolve, reject) => {
    rpc.setBundle({ trustDomain, document }, (error, reply) => (error ? reject(error) : resolve(reply)));
  });
}

const now = () => {
  const nowMs = server.clock.nowMs();
  return { notBeforeMs: nowMs - 3_600_000, notAfterMs: nowMs + 3_600_000 };
};
const partnerRoot = () => ca({ uris: ['spiffe://partner.example'], ...now() });

test('the workload of an entry that federates gets the bundle, its changes and its end by push', async () => {
  const agent = await staged([PARTNER]);
  const watch = new Watch(agent.socketPath, () => {});
  await until('a message', () => watch.last);
  expect(watch.last!.federated).toEqual({});
  const [first, second] = [partnerRoot(), partnerRoot()];
  await setBundle(PARTNER, [first], 1n);
  await until('the bundle', () => watch.last!.federated[`spiffe://${PARTNER}`]?.equals(first.der));
  await setBundle(PARTNER, [first, second], 2n);
  await until(
    'the change',
    () => watch.last!.federated[`spiffe://${PARTNER}`]?.length === first.der.length + second.der.length,
  );
  server.writeEntries([entry([])]);
  await until('its end', () => Object.keys(watch.last!.federated).length === 0);
  expect(watch.failed).toBeUndefined();
  watch.close();
});

test('a workload that does not federate gets none, and nothing on the node takes it for our own', async () => {
  const agent = await staged([]);
  const root = partnerRoot();
  await setBundle(PARTNER, [root], 1n);
  const watch = new Watch(agent.socketPath, () => {});
  await until('a message', () => watch.last);
  // what comes later is there, so the bundle was
  server.writeEntries([entry([]), { ...entry([]), id: 'later', spiffeId: 'spiffe://example.org/later' }]);
  await until('the later entry', () => agent.svids.snapshot().svidOf('later'));
  expect(watch.last!.federated).toEqual({});
  expect(agent.client.bundles.bundleOf(PARTNER)).toBeUndefined();
  // an SVID of ours that the partner signs: refused by every bundle that this node judges by
  const forged = leaf(root, { uris: ['spiffe://example.org/web'], ...now() });
  const own = agent.client.bundles.bundleOf(watch.last!.bundle.trustDomain)!;
  expect(verifyX509Svid([forged.der], own, server.clock.nowMs())).toMatchObject({ error: 'CERT_UNTRUSTED' });
  watch.close();
});

test('an authority that bears our SPIFFE ID does not get in with a partner’s bundle', async () => {
  await staged([PARTNER]);
  const posing = ca({ uris: ['spiffe://example.org'], ...now() });
  await expect(setBundle(PARTNER, [posing], 1n)).rejects.toMatchObject({
    details: expect.stringContaining('another trust domain'),
  });
  await expect(setBundle('example.org', [posing], 1n)).rejects.toThrow();
});
