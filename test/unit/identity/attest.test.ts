import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { afterEach, expect, test } from 'vitest';
import { openCertificateAuthority } from '../../../ca/api.ts';
import { TestClock, TestServer, TRUST_DOMAIN } from './harness.ts';

let server: TestServer;
afterEach(async () => {
  await server[Symbol.asyncDispose]();
});

const joinWith = (token: string, nodeName = 'node-a', stateName?: string) =>
  server.client(nodeName, { joinToken: async () => token, stateName: stateName ?? `${nodeName}-${Math.random()}` });

test('a node joins with a token and gets an SVID, an id, an incarnation and its prefixes', async () => {
  server = await TestServer.start();
  const client = await server.joined('node-a');
  expect(client.node.info).toMatchObject({
    name: 'node-a',
    spiffeId: 'spiffe://example.org/node/node-a',
    id: 1,
    incarnation: 1n,
    peerAddresses: ['127.0.0.1:4250'],
  });
  expect(client.node.info.prefixes).toHaveLength(2);
  expect(client.node.svid().chain).not.toHaveLength(0);
  const { nodes } = await server.list('listNodes');
  expect(nodes).toMatchObject([
    { name: 'node-a', id: 1, incarnation: 1, connected: true },
    { name: 'node-b', connected: false },
  ]);
});

test('a token is good once', async () => {
  server = await TestServer.start();
  const token = await server.token('node-a');
  const client = await joinWith(token);
  await client.close();
  await expect(joinWith(token)).rejects.toMatchObject({ code: 'unauthenticated', reason: 'ATTEST_TOKEN_UNKNOWN' });
});

test('of two that use one token at the same time one joins', async () => {
  server = await TestServer.start();
  const token = await server.token('node-a');
  const results = await Promise.allSettled([joinWith(token), joinWith(token)]);
  expect(results.map((r) => r.status).sort()).toEqual(['fulfilled', 'rejected']);
});

test('a token that has run out, that nobody made, that is of another node, or that is not one lets nobody in', async () => {
  server = await TestServer.start();
  const expired = await server.token('node-a', 5);
  const ofOther = await server.token('node-b');
  server.clock.offsetMs = 5_000;
  const refused = { code: 'unauthenticated', reason: 'ATTEST_TOKEN_UNKNOWN' };
  await expect(joinWith(expired)).rejects.toMatchObject(refused);
  await expect(joinWith(ofOther)).rejects.toMatchObject(refused);
  await expect(joinWith('A'.repeat(43))).rejects.toMatchObject(refused);
  await expect(joinWith('x'.repeat(100_000))).rejects.toMatchObject(refused);
  await expect(joinWith(ofOther, 'node-b')).resolves.toBeDefined();
});

test('a token is made only for a node of the configuration', async () => {
  server = await TestServer.start();
  await expect(server.token('node-z')).rejects.toMatchObject({ code: 5, details: expect.stringContaining('node-z') });
});

test('while a node is live nobody else joins under its name, and the token stays good', async () => {
  server = await TestServer.start();
  const first = await server.joined('node-a');
  const token = await server.token('node-a');
  const signal = AbortSignal.timeout(300);
  await expect(
    server.client('node-a', { stateName: 'second', joinToken: async () => token, signal }),
  ).rejects.toThrow();
  const refusals = server.auditLines().filter((line) => line.kind === 'node.attest_refused');
  expect(refusals[0]).toMatchObject({ reason: 'ATTEST_NODE_EXISTS', source: { node: 'node-a' } });
  expect(first.status().connected).toBe(true);

  await first.close();
  const again = await joinWith(token);
  expect(again.node.info.incarnation).toBe(2n);
  expect(again.node.info.id).toBe(first.node.info.id);
});

test('the certificate of an earlier incarnation is barred', async () => {
  server = await TestServer.start();
  const first = await server.joined('node-a');
  await first.close();
  const second = await server.joined('node-a', { stateName: 'second' });
  expect(second.node.info.incarnation).toBe(2n);
  await second.close();
  await expect(server.client('node-a')).rejects.toMatchObject({ code: 'unauthenticated' });
});

test('an agent refuses a server that is not of its bundle', async () => {
  server = await TestServer.start();
  const other = await openCertificateAuthority({
    directory: join(server.dir, 'other-ca'),
    trustDomain: TRUST_DOMAIN,
    clock: new TestClock(),
  });
  const bundle = other.bundle().authorities;
  other.close();
  const token = await server.token('node-a');
  const joining = server.client('node-a', { bundle, joinToken: async () => token });
  await expect(joining).rejects.toMatchObject({ code: 'unauthenticated', reason: 'CERT_UNTRUSTED' });
  // it never got as far as showing the token
  await expect(joinWith(token)).resolves.toBeDefined();
});

test('only the hash of a token is stored; no file and no log line holds it', async () => {
  server = await TestServer.start();
  const token = await server.token('node-a');
  const unused = await server.token('node-b');
  const database = new DatabaseSync(join(server.dir, 'data/identity.db'), { readOnly: true });
  expect(database.prepare('SELECT length(hash) AS n FROM tokens').all()).toEqual([{ n: 32 }, { n: 32 }]);
  database.close();
  await joinWith(token);
  await expect(joinWith(token)).rejects.toThrow();
  await server.down();
  for (const secret of [token, unused]) {
    expect(server.filesWith(secret)).toEqual([]);
    expect(server.logged.filter((line) => line.includes(secret))).toEqual([]);
  }
});

test('what is secret is private, what is public is readable', async () => {
  server = await TestServer.start();
  await server.joined('node-a');
  expect(server.modeOf('data/identity.db')).toBe(0o600);
  expect(server.modeOf('data/ca')).toBe(0o700);
  expect(server.modeOf('admin.sock')).toBe(0o600);
  expect(server.modeOf('node-a')).toBe(0o700);
  expect(server.modeOf('node-a/node-identity.json')).toBe(0o600);
  expect(server.modeOf('data/bundle.pem')).toBe(0o644);
});
