import { EventEmitter } from 'node:events';
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { afterEach, expect, test } from 'vitest';
import { openCertificateAuthority } from '../../../ca/api.ts';
import { EntryIndex } from '../../../identity/entry-index.ts';
import { Feed, type RegisteredEntry } from '../../../identity/feed.ts';
import { Nodes } from '../../../identity/nodes.ts';
import { Registry } from '../../../identity/registry.ts';
import { Signer } from '../../../identity/signer.ts';
import { Store } from '../../../identity/store.ts';
import { SyncHub } from '../../../identity/sync.ts';
import { SyncLog } from '../../../identity/sync-log.ts';
import { SyncRequest, type SyncResponse } from '../../../proto/gen/countersign/server/v1/server.ts';
import { Connection } from '../../../src/agent/server-client/transport.ts';
import type { NodeName } from '../../../src/model/ids.ts';
import { type SvidWatch, watchX509Svids } from '../../../src/workload/client.ts';
import { SELECTORS, stageAgent } from '../server-client/rotation-stage.ts';
import { collector, TestServer, TRUST_DOMAIN, until } from './harness.ts';

let server: TestServer;
afterEach(() => server?.[Symbol.asyncDispose]());

const entryOf = (id: string, fields: Partial<RegisteredEntry> = {}): RegisteredEntry =>
  ({ id, spiffeId: `spiffe://example.org/${id}`, node: 'node-a', selectors: ['unix:uid:1'], ...fields }) as never;

test('entries are listed page by page, by node, SPIFFE ID and selectors, and never twice', async () => {
  server = await TestServer.start({}, []);
  for (let i = 0; i < 25; i++) {
    await server.putEntry({
      id: `e-${String(i).padStart(2, '0')}`,
      spiffeId: `spiffe://example.org/s-${i % 5}`,
      node: i % 2 === 0 ? 'node-a' : 'node-b',
      selectors: [`unix:uid:${i % 3}`, 'unix:gid:1'],
    });
  }
  const page = (request: object) =>
    new Promise<{ entries: { id: string }[]; nextPageToken?: string }>((resolve, reject) => {
      const all = { node: '', spiffeId: '', selectors: [], pageSize: 0, pageToken: '', ...request };
      server.admin.listEntries(all, (error, reply) => (error ? reject(error) : resolve(JSON.parse(reply.json))));
    });
  const ids = async (request: object) => {
    const found: string[] = [];
    let pageToken = '';
    do {
      const reply = await page({ pageSize: 4, pageToken, ...request });
      expect(reply.entries.length).toBeLessThanOrEqual(4);
      found.push(...reply.entries.map(({ id }) => id));
      pageToken = reply.nextPageToken ?? '';
    } while (pageToken !== '');
    return found;
  };
  const expected = (keep: (i: number) => boolean) =>
    Array.from({ length: 25 }, (_, i) => i)
      .filter(keep)
      .map((i) => `e-${String(i).padStart(2, '0')}`);
  expect(await ids({})).toEqual(expected(() => true));
  expect(await ids({ node: 'node-b' })).toEqual(expected((i) => i % 2 === 1));
  expect(await ids({ spiffeId: 'spiffe://example.org/s-3' })).toEqual(expected((i) => i % 5 === 3));
  expect(await ids({ selectors: ['unix:gid:1', 'unix:uid:2'] })).toEqual(expected((i) => i % 3 === 2));
  expect(await ids({ node: 'node-a', spiffeId: 'spiffe://example.org/s-0', selectors: ['unix:uid:0'] })).toEqual(
    expected((i) => i % 2 === 0 && i % 5 === 0 && i % 3 === 0),
  );
  await expect(page({ node: '../x' })).rejects.toMatchObject({ code: 3 });
  await expect(page({ spiffeId: 'x' })).rejects.toMatchObject({ code: 3 });
});

test('to create is refused where the entry is there, to update where it is not', async () => {
  server = await TestServer.start();
  const entry = { id: 'one', spiffeId: 'spiffe://example.org/one', node: 'node-a', selectors: ['unix:uid:1'] };
  await expect(server.putEntry(entry, 'update')).rejects.toMatchObject({ code: 5 });
  await server.putEntry(entry, 'create');
  await expect(server.putEntry(entry, 'create')).rejects.toMatchObject({ code: 6 });
  expect(await server.putEntry({ ...entry, hint: 'h' }, 'update')).toMatchObject({ hint: 'h' });
  await expect(server.putEntry(entry, 'whatever')).rejects.toMatchObject({ code: 3 });
  await expect(server.putEntry({ ...entry, id: 'frontend' }, 'update')).rejects.toMatchObject({
    details: expect.stringContaining('entries file'),
  });
});

test('every field of an entry reaches its node, and is the same after a restart', async () => {
  server = await TestServer.start({}, []);
  const client = await server.joined('node-a');
  const entry = {
    id: 'full',
    spiffeId: 'spiffe://example.org/full',
    node: 'node-a',
    selectors: ['unix:uid:1', 'unix:gid:2'],
    labels: { app: 'full' },
    ports: [{ name: 'http', protocol: 'TCP', port: 80 }],
    hint: 'internal',
    ttlSeconds: 120,
    jwtTtlSeconds: 90,
    dnsNames: ['full.example.org'],
    federatesWith: ['b.org', 'a.org', 'b.org'],
    admin: true,
  };
  const made = await server.putEntry(entry);
  expect(made).toMatchObject({ federatesWith: ['a.org', 'b.org'], admin: true, jwtTtlSeconds: 90 });
  const known = await until('the entry', () => client.entries()[0]);
  expect(known).toMatchObject({
    ttlSeconds: 120,
    jwtTtlSeconds: 90,
    hint: 'internal',
    federatesWith: ['a.org', 'b.org'],
  });
  await server.down();
  await server.up();
  expect((await server.list('listEntries')).entries).toEqual([made]);
});

test('an entry that moves leaves one node and comes to the other; its row names both in between', async () => {
  server = await TestServer.start({}, []);
  const [a, b] = [await server.joined('node-a'), await server.joined('node-b')];
  const entry = { id: 'mover', spiffeId: 'spiffe://example.org/mover', node: 'node-a', selectors: ['unix:uid:1'] };
  const nodesOf = () => b.identities.bySpiffeId('spiffe://example.org/mover' as never)?.nodes.map((id) => id.slice(-1));
  await server.putEntry(entry);
  await until('it on a', () => a.entries().length === 1 && nodesOf()?.join() === 'a');
  await server.putEntry({ ...entry, id: 'mover-b', node: 'node-b' });
  await until('it on b too', () => b.entries().length === 1 && nodesOf()?.join() === 'a,b');
  await server.putEntry({ ...entry, node: 'node-b' });
  await until('it on b alone', () => a.entries().length === 0 && b.entries().length === 2 && nodesOf()?.join() === 'b');
  // other labels are another identity: the old row goes with the last entry that has them
  await expect(server.putEntry({ ...entry, node: 'node-b', labels: { app: 'x' } })).rejects.toMatchObject({ code: 3 });
});

test('an entry reaches a workload that waits on an open stream in less than a second', async () => {
  server = await TestServer.start({}, []);
  const entry = (id: string) => ({ id, spiffeId: `spiffe://example.org/${id}`, node: 'node-a', selectors: SELECTORS });
  await server.putEntry(entry('first'));
  const token = await server.token('node-a');
  const { socketPath } = await stageAgent(server, 'node-a', { joinToken: async () => token });
  let told = new Set<string>();
  let problem: Error | undefined;
  let stream: SvidWatch | undefined;
  const has = (id: string) => told.has(`spiffe://example.org/${id}`);
  await until('the first SVID', () => {
    // who has none yet is sent away, as the standard wants it, and asks again
    if (stream === undefined || problem !== undefined) {
      problem = undefined;
      stream = watchX509Svids(
        socketPath,
        (svids) => {
          told = new Set(svids.map(({ spiffeId }) => spiffeId));
        },
        (error) => {
          problem = error;
        },
      );
    }
    return has('first');
  });
  const times: number[] = [];
  for (let i = 0; i < 20; i++) {
    const begunMs = performance.now();
    await server.putEntry(entry(`later-${i}`));
    await until('the SVID', () => has(`later-${i}`));
    times.push(performance.now() - begunMs);
  }
  stream?.close();
  expect(problem).toBeUndefined();
  expect(Math.max(...times)).toBeLessThan(1000);
});

/** A Sync stream over a line that the test may hold up. */
async function rawStream(nodeName: string) {
  const client = await server.joined(nodeName);
  const svid = client.node.svid();
  await client.close();
  let line: Socket | undefined;
  let near: Socket | undefined;
  const proxy = createServer((socket) => {
    near = socket;
    line = connect(server.port, '127.0.0.1');
    for (const end of [socket, line]) end.on('error', () => {});
    socket.pipe(line).pipe(socket);
  });
  await new Promise<void>((resolve) => proxy.listen(0, '127.0.0.1', resolve));
  const bundle = { trustDomain: TRUST_DOMAIN, authorities: server.bundle };
  const addresses = [`127.0.0.1:${(proxy.address() as AddressInfo).port}`];
  const connection = new Connection({ addresses, bundle, svid, clock: server.clock });
  server.onClose(() => {
    connection.close();
    line?.destroy();
    proxy.close();
  });
  const call = connection.rpc.sync();
  const parts: SyncResponse[] = [];
  call.on('error', () => {});
  call.on('data', (part: SyncResponse) => parts.push(part));
  call.write(SyncRequest.create({ kind: { $case: 'start', value: { peerAddresses: [], session: 1n } } }));
  const hold = () => {
    line?.unpipe(near);
    line?.pause();
  };
  return { parts, hold, go: () => line?.pipe(near!), close: () => call.cancel() };
}

const many = (count: number, nodeOf = (_: number) => 'node-a') =>
  Array.from({ length: count }, (_, i) => ({
    id: `many-${i}`,
    spiffeId: `spiffe://example.org/many/${i}`,
    node: nodeOf(i),
    labels: Object.fromEntries(Array.from({ length: 8 }, (_, l) => [`label-${l}`, `${i}-${'x'.repeat(50)}`])),
  }));

test('a large snapshot comes in parts that are small, and is one change to the agent', async () => {
  server = await TestServer.start(
    {},
    many(1000, (i) => (i % 2 === 0 ? 'node-a' : 'node-b')),
  );
  const { parts, close } = await rawStream('node-a');
  await until('the last part', () => parts.length > 0 && parts.at(-1)!.more === false);
  expect(parts.length).toBeGreaterThan(5);
  expect(parts[0]).toMatchObject({ snapshot: true, more: true });
  for (const { identities, entries } of parts) {
    const bytes = identities.reduce((sum, { row, signature }) => sum + row.length + signature.length, 0);
    expect(bytes + entries.length * 150).toBeLessThan(100_000);
  }
  expect(parts.flatMap(({ identities }) => identities)).toHaveLength(1000);
  expect(parts.flatMap(({ entries }) => entries)).toHaveLength(500);
  close();

  const client = await server.joined('node-b');
  const changes: number[] = [];
  client.onChange((change) => void changes.push(change.identities.changed.length));
  await until('the change', () => changes.length === 1);
  expect(changes).toEqual([1000]);
  expect(client.status().refusedItems).toBe(0);
});

/** More than lies in the buffers between the two. */
const LARGE = 1300;

test('an agent that does not read holds nobody up, and gets what is so when it reads again', async () => {
  server = await TestServer.start({}, many(LARGE));
  const slow = await rawStream('node-a');
  const { parts } = slow;
  await until('the beginning', () => parts.length > 0);
  slow.hold();
  const quick = await server.joined('node-b');
  for (let i = 0; i < 30; i++) {
    const id = `changing-${i % 3}`;
    const entry = { id, spiffeId: `spiffe://example.org/${id}`, node: i % 2 === 0 ? 'node-a' : 'node-b' };
    await server.putEntry({ ...entry, selectors: [`unix:uid:${i}`] });
  }
  await new Promise<void>((resolve, reject) =>
    server.admin.deleteEntry({ id: 'changing-1' }, (error) => (error ? reject(error) : resolve())),
  );
  const ids = () => quick.entries().map(({ id }) => id);
  await until(
    'the quick one',
    () => ids().join() === 'changing-0,changing-2' || ids().join() === 'changing-2,changing-0',
  );
  const version = BigInt(((await server.list('getStatus')) as { version: number }).version);
  await until('the last change', () => quick.status().version === version);
  expect(parts.every(({ more }) => more)).toBe(true);
  slow.go();
  const ends = () => parts.filter(({ more }) => !more);
  await until('the slow one', () => parts.some((part) => part.version === version) && ends().length > 1);
  const after = parts.slice(parts.indexOf(ends()[0]!) + 1);
  // thirty-one changes, told as few
  expect(after.length).toBeLessThan(5);
  const told = new Map<string, string | undefined>();
  for (const { removedEntryIds, entries } of after) {
    for (const id of removedEntryIds) told.set(id, undefined);
    for (const { id, selectors } of entries) told.set(id, selectors[0]);
  }
  // each was here for a while, and is no more
  expect(told).toEqual(new Map([0, 1, 2].map((n) => [`changing-${n}`, undefined])));
  slow.close();
});

test('an agent that takes nothing for half a minute is sent away', async () => {
  server = new TestServer();
  const { clock, log } = server;
  const ca = await openCertificateAuthority({ directory: join(server.dir, 'ca'), trustDomain: TRUST_DOMAIN, clock });
  const store = new Store(join(server.dir, 'identity.db'));
  server.onClose(() => ca.close());
  server.onClose(() => store.close());
  const [feed, audit, name] = [new Feed(store), collector(), 'node-a' as NodeName];
  const nodes = new Nodes({ store, feed, ca, configured: [{ name, prefixes: [] }] });
  const registry = new Registry({ store, feed, trustDomain: TRUST_DOMAIN, nodeNames: nodes.names, audit });
  const signer = await Signer.create(ca);
  const timers = new Set<() => void>();
  const hub = new SyncHub({
    ...{ feed, registry, nodes, ca, signer, clock, log, audit },
    timers: {
      set(_, fire) {
        timers.add(fire);
        return () => timers.delete(fire);
      },
    },
  });
  server.onClose(() => hub.close());
  const pass = (ms: number) => {
    clock.offsetMs += ms;
    for (const fire of [...timers]) if (timers.delete(fire)) fire();
  };
  nodes.admit(nodes.attest(name, 'join_token', [], clock.nowMs()), clock.nowMs() + 1e6);
  /** What it is sent is taken when the test says so. */
  let take = () => {};
  const stream = Object.assign(new EventEmitter(), {
    write: (_: Buffer, taken: () => void) => {
      take = taken;
    },
    end() {},
  });
  const problems: { code: number; details: string }[] = [];
  stream.on('error', (problem) => problems.push(problem));
  hub.serve(stream as never, () => nodes.node(name)!);
  stream.emit('data', SyncRequest.create({ kind: { $case: 'start', value: { peerAddresses: [], session: 0n } } }));
  pass(29_000);
  take();
  // it has all there is: then it may be silent as long as it likes
  for (let i = 0; i < 20; i++) {
    take();
    pass(20_000);
  }
  expect(hub.live()).toEqual([name]);
  feed.publish({ removedNodes: ['node-b' as NodeName] });
  pass(29_000);
  expect(problems).toEqual([]);
  pass(2_000);
  expect(problems).toMatchObject([{ code: 8, details: expect.stringContaining('PEER_SEND_QUEUE_FULL') }]);
  expect(hub.live()).toEqual([]);
});

test('when every security identity has been given, no entry with another label set is taken, and nothing is changed', async () => {
  server = await TestServer.start();
  const entry = { id: 'last', spiffeId: 'spiffe://example.org/last', node: 'node-a', selectors: ['unix:uid:1'] };
  await server.down();
  const database = new DatabaseSync(join(server.dir, 'data/identity.db'));
  database.exec("UPDATE counters SET value = 65534 WHERE name = 'identity'");
  database.close();
  await server.up();
  expect(await server.putEntry(entry)).toMatchObject({ securityIdentity: 65_535 });
  const more = { ...entry, id: 'more', spiffeId: 'spiffe://example.org/more' };
  await expect(server.putEntry(more)).rejects.toMatchObject({ details: expect.stringContaining('65535') });
  // as often as one tries
  await expect(server.putEntry(more)).rejects.toMatchObject({ details: expect.stringContaining('65535') });
  const { entries } = (await server.list('listEntries')) as { entries: { id: string }[] };
  expect(entries.map(({ id }) => id)).toEqual(['backend', 'frontend', 'last']);
  // another entry of the same is no other identity
  expect(await server.putEntry({ ...entry, id: 'again', node: 'node-b' })).toMatchObject({ securityIdentity: 65_535 });
});

test('the log of changes says what is so now, not what was in between', () => {
  const log = new SyncLog(10);
  const [first, second] = [entryOf('e', { hint: '1' }), entryOf('e', { hint: '2' })];
  log.add(11, { entries: [first] });
  log.add(12, { removedEntries: [first] });
  log.add(13, { entries: [second] });
  log.add(14, { removedEntries: [second], entries: [{ ...second, node: 'node-b' as never }] });
  const since = (version: number) =>
    Object.fromEntries(
      [...log.since(version)!.entries].map(([node, changed]) => [node, [...changed.values()].map((e) => e?.hint)]),
    );
  expect(since(10)).toEqual({ 'node-a': [undefined], 'node-b': ['2'] });
  expect(since(12)).toEqual({ 'node-a': [undefined], 'node-b': ['2'] });
  expect(since(14)).toEqual({});
  log.forget(12);
  expect(log.length).toBe(2);
  expect(log.since(11)).toBeUndefined();
  expect(log.since(12)).toBeDefined();
});

test('who is too far behind is not told in part', () => {
  const log = new SyncLog(0);
  const entries = Array.from({ length: 100_000 }, (_, i) => entryOf(`e-${i}`));
  log.add(1, { entries });
  log.add(2, { entries });
  expect(log.since(0)).toBeDefined();
  log.add(3, { entries });
  expect(log.since(0)).toBeUndefined();
  expect(log.since(1)).toBeDefined();
});

test('the index keeps to what was put into it and taken out', () => {
  const index = new EntryIndex();
  for (let i = 0; i < 100; i++) index.set(entryOf(`e-${i % 40}`, { node: `node-${i % 3}` as never }));
  expect(index.size).toBe(40);
  const count = () => [0, 1, 2].reduce((sum, n) => sum + [...index.ofNode(`node-${n}` as never).values()].length, 0);
  expect(count()).toBe(40);
  for (let i = 0; i < 20; i++) index.delete(`e-${i}`);
  index.delete('no-such-entry');
  expect(count()).toBe(20);
  expect([...index.ofSpiffeId('spiffe://example.org/e-3' as never)]).toEqual([]);
  const page = index.page({}, '', 100);
  expect(page).toMatchObject({ more: false });
  expect(page.entries.map(({ id }) => id)).toEqual([...page.entries.map(({ id }) => id)].sort());
});
