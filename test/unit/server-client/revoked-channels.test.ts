/** What the identity server takes back ends peer channels by push: a real server, real agents' clients, real channels. */
import { join } from 'node:path';
import { afterEach, expect, test } from 'vitest';
import { openCertificateAuthority } from '../../../ca/api.ts';
import type { ServerClient } from '../../../src/agent/server-client/client.ts';
import { type StartedPeerChannels, startPeerChannels } from '../../../src/channel/peer-channels.ts';
import type { NodeName } from '../../../src/model/ids.ts';
import { quiet, TestServer, TRUST_DOMAIN, until } from '../identity/harness.ts';

let server: TestServer;
afterEach(() => server[Symbol.asyncDispose]());

interface TestAgent {
  readonly client: ServerClient;
  readonly channels: StartedPeerChannels;
  readonly closed: { readonly reason: string; readonly atMs: number }[];
}

/** A client with channels, wired as the agent wires them. */
async function agent(name: string, options: { bootId?: string; stateName?: string } = {}): Promise<TestAgent> {
  const token = await server.token(name);
  const host = `127.0.0.${name === 'node-a' ? 11 : 12}`;
  const peerAddresses = [`${host}:${4250 + (process.pid % 1000)}`];
  const client = await server.client(name, { joinToken: async () => token, peerAddresses, ...options });
  const closed: { reason: string; atMs: number }[] = [];
  const channels = await startPeerChannels({
    self: () => ({ info: client.node.info, svid: client.node.svid() }),
    nodes: client.nodes,
    bundles: client.bundles,
    revocations: client.revocations,
    trustDomain: TRUST_DOMAIN,
    listen: [{ address: host, port: 4250 + (process.pid % 1000) }],
    limits: { dialBackoffMinMs: 0, tickMs: 20 },
    clock: server.clock,
    audit: { emit: () => {} },
    log: quiet,
    events: {
      opened: () => {},
      frame: () => {},
      closed: (_, reason) => closed.push({ reason, atMs: performance.now() }),
    },
  });
  server.onClose(() => channels.close());
  client.onChange((change) => {
    const nodes = change.nodes.changed.length + change.nodes.removed.length;
    if (change.revocations.length + nodes > 0 || change.snapshot || change.bundle) channels.revokeCheck();
  });
  return { client, channels, closed };
}

async function pair(): Promise<[TestAgent, TestAgent]> {
  server = await TestServer.start();
  const a = await agent('node-a', { bootId: 'boot 1' });
  const b = await agent('node-b');
  const listed = await until('b to be known', () => a.client.nodes.byName('node-b' as NodeName));
  await until('a to be known', () => b.client.nodes.byName('node-a' as NodeName));
  await a.channels.open(listed);
  await until('the channel', () => b.channels.list().length === 1);
  return [a, b];
}

test('revoking a node ends its channels at its peers at once', async () => {
  const [a, b] = await pair();
  const begun = performance.now();
  const reply = await server.revoke({ $case: 'node', value: 'node-a' });
  expect(reply.inForce).toEqual(['node-b']);
  await until('the end', () => b.closed.length > 0);
  expect(b.closed[0]!.reason).toMatch(/AUTH_REVOKED|PEER_UNKNOWN_NODE/);
  expect(b.closed[0]!.atMs - begun).toBeLessThan(500);
  expect(b.channels.list()).toEqual([]);
  // and it does not come back, from whichever side
  const listedB = a.client.nodes.byName('node-b' as NodeName)!;
  await expect(a.channels.open(listedB)).rejects.toMatchObject({ code: 'unavailable' });
  expect(b.channels.list()).toEqual([]);
});

test('revoking the node certificate by its serial number ends the channel, and only what shows that certificate', async () => {
  const [a, b] = await pair();
  const { svids } = (await server.list('listSvids')) as { svids: { serial: string; node: string; profile: string }[] };
  const { serial } = svids.find((row) => row.profile === 'node' && row.node.endsWith('/node-a'))!;
  // nor does the server take its word any more, so it cannot say that the revocation is in force there
  await server.revoke({ $case: 'serial', value: serial }, 200);
  await until('the end', () => b.closed.length > 0);
  expect(b.closed.map(({ reason }) => reason)).toEqual(['AUTH_REVOKED']);
  await until('a to hear of it', () => a.closed.length > 0);
});

test('a node that was rebooted bars its own earlier life: peers end the channel that was left', async () => {
  const [a, b] = await pair();
  // the agent of before lost the server, its channel stands: as of a machine that was set back to a snapshot
  await a.client.close();
  const rebooted = await server.client('node-a', { bootId: 'boot 2' });
  expect(rebooted.node.info.incarnation).toBe(2n);
  await until('the end', () => b.closed.length > 0);
  expect(b.closed.map(({ reason }) => reason)).toEqual(['PEER_INCARNATION_BARRED']);
  await until('the other end', () => a.closed.length > 0);
  // what is left of the earlier life gets no channel any more
  const listedB = a.client.nodes.byName('node-b' as NodeName)!;
  await expect(a.channels.open(listedB)).rejects.toMatchObject({ reason: 'PEER_INCARNATION_BARRED' });
});

test('channels under an authority that is no longer in the bundle end when the bundle is there', async () => {
  const [, b] = await pair();
  const own = b.client.bundles.bundleOf(TRUST_DOMAIN)!;
  expect(own.authorities.length).toBe(1);
  await server.down();
  const other = await openCertificateAuthority({
    directory: join(server.dir, 'other-ca'),
    trustDomain: TRUST_DOMAIN,
    clock: server.clock,
  });
  const { authorities } = other.bundle();
  const bundles = { ...b.client.bundles, bundleOf: () => ({ trustDomain: TRUST_DOMAIN, authorities }) };
  other.close();
  Object.assign(b.client.bundles, bundles);
  b.channels.revokeCheck();
  expect(b.closed.map(({ reason }) => reason)).toEqual(['CERT_UNTRUSTED']);
  expect(b.channels.list()).toEqual([]);
});
