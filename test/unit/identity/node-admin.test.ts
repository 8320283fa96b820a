import { afterEach, expect, test } from 'vitest';
import { createCsr } from '../../../src/pki/csr.ts';
import { generateKey } from '../../../src/pki/keys.ts';
import { TestServer, until } from './harness.ts';

let server: TestServer;
afterEach(() => server[Symbol.asyncDispose]());

const nodeA = async () =>
  ((await server.list('listNodes')).nodes as Record<string, unknown>[]).find(({ name }) => name === 'node-a')!;
const events = (kind: string) => server.auditLines().filter((line) => line.kind === kind);

test('an evicted node is sent away at once, its certificate lets it in no more, and a fresh token does', async () => {
  server = await TestServer.start();
  const a = await server.joined('node-a');
  const b = await server.joined('node-b');
  await until('both', () => b.nodes.nodes().length === 2);
  expect(await server.nodeAction('evictNode', 'node-a', 'moved out')).toEqual({ node: 'node-a', evicted: true });
  await until('a to be sent away', () => !a.status().connected);
  await until('b to forget a', () => b.nodes.byName('node-a' as never) === undefined);
  expect(await nodeA()).toMatchObject({ state: 'evicted', connected: false });
  await a.close();
  await expect(server.client('node-a')).rejects.toMatchObject({ code: 'unauthenticated' });
  expect(events('node.evicted')).toMatchObject([
    { actor: 'admin', source: { node: 'node-a' }, detail: { text: 'moved out' } },
  ]);
  const back = await server.joined('node-a');
  expect(back.node.info.incarnation).toBe(2n);
  expect(await nodeA()).toMatchObject({ state: 'attested' });
  // nothing was revoked: what it holds runs to its end
  expect((await server.list('getStatus')).revocations).toBe(0);
});

test('a banned node is sent away and revoked, and no proof lets it in before the ban is lifted', async () => {
  server = await TestServer.start();
  const a = await server.joined('node-a');
  const b = await server.joined('node-b');
  b.onChange(() => {});
  await until('both', () => b.nodes.nodes().length === 2);
  expect(await server.nodeAction('banNode', 'node-a', 'stolen')).toMatchObject({ banned: true, inForce: ['node-b'] });
  await until('a to be sent away', () => !a.status().connected);
  await a.close();
  const svid = { spiffeId: 'spiffe://example.org/node/node-a' as never, serial: '', notBeforeMs: 0 };
  expect(b.revocations.isRevoked({ ...svid, node: svid.spiffeId })).toBe(true);
  server.clock.offsetMs += 11_000;
  await expect(server.joined('node-a')).rejects.toMatchObject({ reason: 'ATTEST_NODE_BANNED' });
  expect(await nodeA()).toMatchObject({ state: 'banned', banned: { reason: 'stolen' } });
  // it holds over a restart
  await server.down();
  await server.up();
  await expect(server.joined('node-a')).rejects.toMatchObject({ reason: 'ATTEST_NODE_BANNED' });
  await server.nodeAction('unbanNode', 'node-a');
  await expect(server.joined('node-a')).resolves.toBeDefined();
  expect(events('node.banned')).toHaveLength(1);
  expect(events('node.unbanned')).toHaveLength(1);
});

test('a node that never attested can be banned; who has no proof is not told of it', async () => {
  server = await TestServer.start();
  const token = await server.token('node-a');
  await server.nodeAction('banNode', 'node-a');
  expect(await nodeA()).toMatchObject({ state: 'banned' });
  const joinWith = (text: string) => server.client('node-a', { joinToken: async () => text, stateName: 'x' });
  await expect(joinWith('A'.repeat(43))).rejects.toMatchObject({ reason: 'ATTEST_TOKEN_UNKNOWN' });
  await expect(joinWith(token)).rejects.toMatchObject({ reason: 'ATTEST_NODE_BANNED' });
  // the token was not used up by that
  await server.nodeAction('unbanNode', 'node-a');
  await expect(joinWith(token)).resolves.toBeDefined();
});

test('only what exists is evicted, banned or let in again', async () => {
  server = await TestServer.start();
  await expect(server.nodeAction('evictNode', 'node-a')).rejects.toMatchObject({ code: 5 });
  await expect(server.nodeAction('banNode', 'node-z')).rejects.toMatchObject({ code: 5 });
  await expect(server.nodeAction('unbanNode', 'node-a')).rejects.toMatchObject({ code: 5 });
  await expect(server.nodeAction('banNode', '../x')).rejects.toMatchObject({ code: 3 });
  await expect(server.nodeAction('banNode', 'node-a', 'x'.repeat(257))).rejects.toMatchObject({ code: 3 });
});

test('a reason that is too long is refused before anything is taken back', async () => {
  server = await TestServer.start();
  const a = await server.joined('node-a');
  const reason = 'x'.repeat(257);
  for (const act of ['evictNode', 'banNode'] as const) {
    await expect(server.nodeAction(act, 'node-a', reason)).rejects.toMatchObject({ code: 3 });
  }
  const whom = { $case: 'spiffeId', value: 'spiffe://example.org/frontend' } as const;
  await expect(server.revoke(whom, 5000, reason)).rejects.toMatchObject({ code: 3 });
  const [issued] = await a.issue([{ entryId: 'frontend', csr: createCsr(generateKey()) }]);
  expect(issued?.ok).toBe(true);
  expect(await nodeA()).toMatchObject({ state: 'attested', connected: true });
});
