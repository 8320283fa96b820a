import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { afterEach, expect, test } from 'vitest';
import { stringify } from 'yaml';
import { allocateIdentity } from '../../../identity/allocate.ts';
import { serverConfigSchema } from '../../../identity/config.ts';
import { entriesFileSchema } from '../../../identity/entry-spec.ts';
import { Store } from '../../../identity/store.ts';
import { loadConfigFile, parseConfig } from '../../../src/base/config-file.ts';
import { spiffeId } from '../../../src/model/spiffe-id.ts';
import { ENTRIES, TestServer } from './harness.ts';

const example = (name: string) => join(import.meta.dirname, '../../../deploy/examples', name);
const dirs: string[] = [];
afterEach(() => {
  for (const dir of dirs.splice(0)) rmSync(dir, { recursive: true, force: true });
});
function temporary(): string {
  const dir = mkdtempSync(join(tmpdir(), 'cs-identity-'));
  dirs.push(dir);
  return dir;
}

const base = {
  apiVersion: 'countersign.dev/v1alpha1',
  kind: 'ServerConfig',
  trustDomain: 'example.org',
  dataDir: '/tmp/x',
  listen: { address: '127.0.0.1' },
  audit: { dir: '/tmp/x/audit' },
};
const check = (change: object) => () =>
  parseConfig('server.yaml', stringify({ ...base, ...change }), serverConfigSchema);

test('the examples are valid', () => {
  expect(loadConfigFile(example('server.yaml'), serverConfigSchema).nodes).toHaveLength(2);
  expect(loadConfigFile(example('entries.yaml'), entriesFileSchema).entries.length).toBeGreaterThan(5);
});

test('what is wrong in the settings is named by line and field', () => {
  expect(check({})).not.toThrow();
  expect(check({ trustDomian: 'x' })).toThrow(/server\.yaml:\d+: trustDomian: unknown field/);
  expect(check({ listen: { address: 'localhost' } })).toThrow(/listen\.address/);
  expect(check({ ca: { workloadTtl: '1y' } })).toThrow(/ca\.workloadTtl/);
  expect(check({ ca: { workloadTtl: '48h' } })).toThrow(/60s to 24h/);
  const nodes = (...prefixes: string[][]) => prefixes.map((p, i) => ({ name: `n${i}`, prefixes: p }));
  expect(check({ nodes: nodes(['10.0.1.1/24']) })).toThrow(/nodes\[0\]\.prefixes\[0\]/);
  expect(check({ nodes: [{ name: 'n' }, { name: 'n' }] })).toThrow(/list each node once/);
});

test('nodes may share addresses, at most 8 of them each', () => {
  const nodes = (...prefixes: string[][]) => ({ nodes: prefixes.map((p, i) => ({ name: `n${i}`, prefixes: p })) });
  const wide = Array.from({ length: 7 }, () => ['10.0.0.0/16', 'fd00::/48', '10.0.0.0/8']);
  expect(check(nodes(...wide, ['10.0.1.0/24'], ['10.0.2.0/24'], ['10.1.0.0/16']))).not.toThrow();
  const one = check(nodes(...wide, ['10.0.1.0/24'], ['10.2.0.0/16', '10.0.1.7/32']));
  expect(one).toThrow(
    /nodes\[8\]\.prefixes\[1\]: 9 nodes cover it, such as n8, n7, n0; at most 8 may cover one address/,
  );
  expect(one).not.toThrow(/nodes\[7\]/);
  expect(check(nodes(...wide, ['fd00::/48'], ['fd00:0:0:1::/64']))).toThrow(/nodes\[8\]\.prefixes\[0\]/);
  expect(check(nodes(...wide, ['10.0.0.0/8'], ['0.0.0.0/0', '::/0']))).toThrow(/nodes\[0\]\.prefixes\[0\]/);
});

test.each([
  ['of another trust domain', { spiffeId: 'spiffe://elsewhere.org/x' }, 'trust domain'],
  ["that is a node's", { spiffeId: 'spiffe://example.org/node/node-a' }, 'kept for nodes and the server'],
  ["that is the server's", { spiffeId: 'spiffe://example.org/countersign/server' }, 'kept for nodes and the server'],
  ['without a path', { spiffeId: 'spiffe://example.org' }, 'needs a path'],
  ['for a node nobody configured', { node: 'node-z' }, 'not a node of the server'],
  ['without a selector', { selectors: [] }, 'at least one selector'],
  ['with a selector that is none', { selectors: ['everything'] }, 'type:value'],
  [
    'with labels that differ from those of the same SPIFFE ID',
    { spiffeId: 'spiffe://example.org/frontend' },
    'different labels',
  ],
  [
    'with ports that differ from those of the same SPIFFE ID',
    { spiffeId: 'spiffe://example.org/frontend', labels: { app: 'frontend' }, ports: [{ name: 'http', port: 80 }] },
    'different ports',
  ],
  [
    'with two ports of one name',
    {
      ports: [
        { name: 'http', port: 80 },
        { name: 'http', port: 81 },
      ],
    },
    'same name and protocol',
  ],
  ['with a port name that is none', { ports: [{ name: '80', port: 80 }] }, 'service name'],
])('an entry %s is refused', async (_, change, problem) => {
  const bad = { id: 'bad', spiffeId: 'spiffe://example.org/bad', node: 'node-a', selectors: ['unix:uid:1'], ...change };
  await using server = await TestServer.start();
  await expect(server.putEntry(bad)).rejects.toMatchObject({ code: 3, details: expect.stringContaining(problem) });
  const { entries } = await server.list('listEntries');
  expect(entries).toHaveLength(ENTRIES.length);
  await expect(TestServer.start({}, [...ENTRIES, bad])).rejects.toThrow(problem);
});

test('an entry of the file is not changed through the admin socket', async () => {
  await using server = await TestServer.start();
  await expect(server.putEntry({ ...ENTRIES[0], selectors: ['unix:uid:1'] })).rejects.toMatchObject({ code: 6 });
});

test('a security identity stays that of its SPIFFE ID and labels over restarts and is never given again', () => {
  const path = join(temporary(), 'identity.db');
  const ids = ['a', 'b'].map((name) => spiffeId(`spiffe://example.org/${name}`));
  const allocate = (i: number, labels: Record<string, string>) => {
    const store = new Store(path);
    try {
      return store.transaction(() => allocateIdentity(store, ids[i]!, labels));
    } finally {
      store.close();
    }
  };
  expect(allocate(0, { app: 'x', tier: 'y' })).toBe(256);
  expect(allocate(1, {})).toBe(257);
  expect(allocate(0, { tier: 'y', app: 'x' })).toBe(256);
  expect(allocate(0, { app: 'x' })).toBe(258);
  expect(allocate(1, { app: 'x' })).toBe(259);
  expect(allocate(1, {})).toBe(257);
});

test('a database of the version without ports and sessions is taken over', () => {
  const path = join(temporary(), 'identity.db');
  const old = new DatabaseSync(path);
  old.exec(`CREATE TABLE entries (
    id TEXT PRIMARY KEY, origin TEXT NOT NULL, spiffe_id TEXT NOT NULL, node TEXT NOT NULL, selectors TEXT NOT NULL,
    hint TEXT NOT NULL, labels TEXT NOT NULL, ttl_seconds INTEGER NOT NULL, dns_names TEXT NOT NULL, barred INTEGER NOT NULL
  ) STRICT;
  CREATE TABLE nodes (
    name TEXT PRIMARY KEY, node_id INTEGER NOT NULL UNIQUE, incarnation INTEGER NOT NULL,
    attested_at_ms INTEGER NOT NULL, not_after_ms INTEGER NOT NULL, evicted INTEGER NOT NULL, peer_addresses TEXT NOT NULL
  ) STRICT;
  PRAGMA user_version = 1;
  INSERT INTO nodes VALUES ('node-a', 1, 3, 0, 0, 0, '[]');
  INSERT INTO entries VALUES ('a', 'admin', 'spiffe://example.org/a', 'node-a', '[]', '', '{}', 0, '[]', 0);`);
  old.close();
  for (let start = 0; start < 2; start++) {
    const store = new Store(path);
    const [entry] = store.entries();
    expect(entry).toMatchObject({ id: 'a', ports: [], barred: false });
    store.putEntry(entry!);
    // its certificate is in use, and its agent has no number of a stream yet
    expect(store.node('node-a')).toMatchObject({
      ...{ incarnation: 3, usedIncarnation: 3, sessionIssued: 0, sessionConfirmed: 0 },
    });
    store.close();
  }
});

test('when all security identities are used the next is refused, not wrapped around', () => {
  const store = new Store(join(temporary(), 'identity.db'));
  store.next('identity', 65_534);
  const labels = (n: number) => ({ n: String(n) });
  expect(allocateIdentity(store, spiffeId('spiffe://example.org/a'), labels(1))).toBe(65_535);
  expect(() => allocateIdentity(store, spiffeId('spiffe://example.org/a'), labels(2))).toThrow(/65535/);
  store.close();
});

test('a second server on the same admin socket does not start and harms nothing', async () => {
  await using server = await TestServer.start();
  await using other = new TestServer();
  other.writeEntries(ENTRIES);
  other.overrides = { adminSocket: join(server.dir, 'admin.sock') };
  await expect(other.up()).rejects.toMatchObject({ code: 'already-exists' });
  await expect(server.list('getStatus')).resolves.toMatchObject({ trustDomain: 'example.org' });
});

test.each(['/node/node-a', '/node', '/countersign/server'])(
  '%s has no role: who lets nodes in could become it',
  (path) => {
    const roles = [{ spiffeId: `spiffe://example.org${path}`, role: 'admin' }];
    expect(check({ admin: { roles } })).toThrow(/admin\.roles\[0\]\.spiffeId: the path \/\w+ is kept/);
  },
);

test('etcd on another machine is reached by TLS only', () => {
  const etcd = (endpoint: string, more = {}) => check({ datastore: { type: 'etcd', endpoints: [endpoint], ...more } });
  for (const host of ['10.0.0.1', 'etcd.example.org', 'localhost.example.org', '127.0.0.1.example.org'])
    expect(etcd(`http://${host}:2379`)).toThrow(/datastore\.endpoints\[0\]: http: only to this machine/);
  for (const host of ['127.0.0.1', 'localhost', '[::1]'])
    expect(etcd(`http://${host}:2379`)).not.toThrow(/only to this machine/);
  const tls = { caFile: '/ca.pem', certFile: '/cert.pem', keyFile: '/key.pem' };
  expect(etcd('https://10.0.0.1:2379', { tls })).not.toThrow(/datastore/);
});
