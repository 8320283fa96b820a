import { afterEach, expect, test } from 'vitest';
import type { SyncChange } from '../../../src/agent/server-client/client.ts';
import { openSync } from '../../../src/agent/server-client/sync-stream.ts';
import { Connection } from '../../../src/agent/server-client/transport.ts';
import { ENTRIES, TestServer, TRUST_DOMAIN, until } from './harness.ts';

let server: TestServer;
afterEach(() => server[Symbol.asyncDispose]());

test('a node gets its own entries, every identity, every node', async () => {
  server = await TestServer.start({}, [
    ...ENTRIES,
    { id: 'shared-a', spiffeId: 'spiffe://example.org/shared', node: 'node-a', labels: { app: 'shared' } },
    { id: 'shared-b', spiffeId: 'spiffe://example.org/shared', node: 'node-b', labels: { app: 'shared' } },
  ]);
  const a = await server.joined('node-a');
  await server.joined('node-b');
  expect(a.entries().map((entry) => entry.id)).toEqual(['frontend', 'shared-a']);
  const shared = a.identities.rows().find((row) => row.spiffeId.endsWith('/shared'))!;
  expect(shared.labels).toEqual({ app: 'shared' });
  expect(shared.nodes).toEqual(['spiffe://example.org/node/node-a', 'spiffe://example.org/node/node-b']);
  expect(a.identities.rows().map((row) => row.identity)).toEqual([256, 257, 258]);
  await until('node-b to be known', () => a.nodes.nodes().length === 2);
  const b = a.nodes.candidates('10.77.2.9' as never)[0];
  expect(b).toMatchObject({ name: 'node-b', id: 2, peerAddresses: ['127.0.0.1:4250'] });
  expect(a.nodes.candidates('10.99.0.1' as never)).toEqual([]);
});

test('changes come as deltas, and a bad entries file changes nothing', async () => {
  server = await TestServer.start();
  const client = await server.joined('node-a');
  const changes: SyncChange[] = [];
  client.onChange((change) => void changes.push(change));
  await until('the first change', () => changes.length === 1);
  expect(changes[0]).toMatchObject({ snapshot: true, entries: { changed: [{ id: 'frontend' }] } });

  const ports = [{ name: 'dns', protocol: 'UDP', port: 53 }];
  const added = { id: 'new', spiffeId: 'spiffe://example.org/new', node: 'node-a', labels: { app: 'new' }, ports };
  server.writeEntries([...ENTRIES, added]);
  await until('the new entry', () => changes.length === 2);
  expect(changes[1]).toMatchObject({
    snapshot: false,
    entries: { changed: [{ id: 'new', identity: 258 }], removed: [] },
    identities: {
      changed: [{ identity: 258, labels: { app: 'new' }, ports: [{ name: 'dns', protocol: 17, port: 53 }] }],
      removed: [],
    },
  });
  server.writeEntries([...ENTRIES, { ...added, spiffeId: 'not a SPIFFE ID' }]);
  await until('the refusal', () => server.logged.some((line) => line.includes('entries refused')));
  expect(client.entries().map((entry) => entry.id)).toEqual(['frontend', 'new']);

  server.writeEntries(ENTRIES);
  await until('the removal', () => changes.length === 3);
  expect(changes[2]).toMatchObject({
    entries: { removed: [{ id: 'new' }] },
    identities: { removed: [{ identity: 258 }] },
  });
  // the number is not given to anybody else
  server.writeEntries([...ENTRIES, { ...added, id: 'other', spiffeId: 'spiffe://example.org/other' }]);
  await until('the other', () => client.entries().some((entry) => entry.id === 'other' && entry.identity === 259));
});

test('a revocation is in force when every node says so, and it says so when its listeners are done', async () => {
  server = await TestServer.start();
  const a = await server.joined('node-a');
  const b = await server.joined('node-b');
  let release = () => {};
  a.onChange(async (change) => {
    if (change.revocations.length > 0) await new Promise<void>((resolve) => (release = resolve));
  });
  b.onChange(() => {});
  const revoking = server.revoke({ $case: 'spiffeId', value: 'spiffe://example.org/frontend' });
  const subject = {
    spiffeId: 'spiffe://example.org/frontend' as never,
    serial: '01',
    node: undefined,
    notBeforeMs: server.clock.nowMs() - 20_000,
  };
  await until('the revocation on both', () => a.revocations.isRevoked(subject) && b.revocations.isRevoked(subject));
  await until('b to say so', () => b.status().inForceVersion === b.status().version);
  expect(await Promise.race([revoking, new Promise((resolve) => setTimeout(resolve, 50, 'pending'))])).toBe('pending');
  release();
  expect(await revoking).toMatchObject({ sequence: 1n, inForce: ['node-a', 'node-b'], missing: [] });
  const kinds = server.auditLines().map((line) => line.kind);
  expect(kinds).toContain('svid.revoked');
  expect(kinds).toContain('revocation.in_force');
});

test('a node that is away or does not answer is named as missing', async () => {
  server = await TestServer.start();
  const a = await server.joined('node-a');
  const b = await server.joined('node-b');
  a.onChange(() => {});
  await b.close();
  const reply = await server.revoke({ $case: 'spiffeId', value: 'spiffe://example.org/backend' }, 2000);
  expect(reply).toMatchObject({ inForce: ['node-a'], missing: ['node-b'] });
  // it learns of it when it is back
  const again = await server.client('node-b');
  const revoked = { spiffeId: 'spiffe://example.org/backend' as never, serial: '', node: undefined, notBeforeMs: 0 };
  expect(again.revocations.isRevoked(revoked)).toBe(true);
});

test('only what exists can be revoked', async () => {
  server = await TestServer.start();
  await expect(server.revoke({ $case: 'serial', value: 'abcd' })).rejects.toMatchObject({ code: 5 });
  await expect(server.revoke({ $case: 'node', value: 'node-a' })).rejects.toMatchObject({ code: 5 });
  await expect(server.revoke({ $case: 'spiffeId', value: 'spiffe://elsewhere.org/x' })).rejects.toMatchObject({
    code: 3,
  });
});

test('a revoked node is sent away at once and comes back only with a fresh token and a higher incarnation', async () => {
  server = await TestServer.start();
  const a = await server.joined('node-a');
  const b = await server.joined('node-b');
  b.onChange(() => {});
  await until('both', () => b.nodes.nodes().length === 2);
  await server.revoke({ $case: 'node', value: 'node-a' }, 1000);
  await until('a to be sent away', () => !a.status().connected);
  await until('b to forget a', () => b.nodes.byName('node-a' as never) === undefined);
  await expect(a.issue([])).rejects.toThrow();
  await a.close();
  await expect(server.client('node-a')).rejects.toMatchObject({ code: 'unauthenticated' });
  server.clock.offsetMs += 1_000;
  const back = await server.joined('node-a');
  expect(back.node.info.incarnation).toBe(2n);
  await until('b to know a again', () => b.nodes.byName('node-a' as never)?.incarnation === 2n);
});

test('a second stream under the name of a live node is refused', async () => {
  server = await TestServer.start();
  const client = await server.joined('node-a');
  const bundle = { trustDomain: TRUST_DOMAIN, authorities: server.bundle };
  const svid = client.node.svid();
  const connection = new Connection({ addresses: [server.address], bundle, svid, clock: server.clock });
  const second = openSync(connection, { peerAddresses: [], session: 0n }, () => {});
  await expect(second.ended).rejects.toMatchObject({ code: 'already-exists', reason: 'ATTEST_NODE_EXISTS' });
  connection.close();
  expect(client.status().connected).toBe(true);
});

test('an agent that acks what it was never sent is sent away', async () => {
  server = await TestServer.start();
  const client = await server.joined('node-a');
  const svid = client.node.svid();
  await client.close();
  const bundle = { trustDomain: TRUST_DOMAIN, authorities: server.bundle };
  const connection = new Connection({ addresses: [server.address], bundle, svid, clock: server.clock });
  const stream = openSync(connection, { peerAddresses: ['127.0.0.1:4250'], session: 1n }, (message) =>
    stream.ack(message.version + 1000n),
  );
  await expect(stream.ended).rejects.toMatchObject({ reason: 'PEER_FRAME_UNEXPECTED' });
  connection.close();
});

test('after a restart of the server agents resume with the same numbers, and versions only rise', async () => {
  server = await TestServer.start();
  const client = await server.joined('node-a');
  client.onChange(() => {});
  const rows = () => client.identities.rows().toSorted((a, b) => a.identity - b.identity);
  const before = { rows: rows(), version: client.status().version, info: client.node.info };
  await server.down();
  await until('the loss', () => !client.status().connected);
  // the server gone: what is known stays
  expect(rows()).toEqual(before.rows);
  await server.up();
  await until('the agent to be back', () => client.status().connected);
  expect(rows()).toEqual(before.rows);
  expect(client.node.info).toEqual(before.info);
  expect(client.status().version).toBeGreaterThan(before.version);
  expect(client.status().refusedItems).toBe(0);
});
