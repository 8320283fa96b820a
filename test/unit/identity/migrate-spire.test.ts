import { describe, expect, test } from 'vitest';
import { entriesFileSchema } from '../../../identity/entry-spec.ts';
import { migrateSpireEntries } from '../../../identity/migrate/spire.ts';
import type { TrustDomain } from '../../../src/model/ids.ts';

const AGENT = 'spiffe://example.org/spire/agent/x509pop/21b781e7';
const GROUP = 'spiffe://example.org/rack/7';

/** An entry as SPIRE 1.15 prints it: fields in protobuf's names, numbers of 64 bits as text, empty ones too. */
const entry = (changes: object = {}) => ({
  id: '3f0b1c9e-7c0a-4a55-9a3b-1f0e6a9f2a01',
  spiffe_id: { trust_domain: 'example.org', path: '/frontend' },
  parent_id: { trust_domain: 'example.org', path: '/spire/agent/x509pop/21b781e7' },
  selectors: [
    { type: 'unix', value: 'uid:1001' },
    { type: 'unix', value: 'path:/usr/bin/frontend' },
  ],
  x509_svid_ttl: 3600,
  federates_with: ['spiffe://partner.example'],
  hint: 'internal',
  admin: false,
  created_at: '1678731397',
  downstream: false,
  expires_at: '0',
  dns_names: ['frontend.example.org'],
  revision_number: '4',
  store_svid: false,
  jwt_svid_ttl: 0,
  ...changes,
});

const migrate = (entries: readonly unknown[], nodes: [string, string[]][] = [[AGENT, ['node-a']]]) =>
  migrateSpireEntries(JSON.stringify({ entries, next_page_token: '' }), 'example.org' as TrustDomain, new Map(nodes));

test('an entry keeps its id, SPIFFE ID, selectors, lives, names and federation; its parent becomes the node that was named for it', () => {
  const { entries, leftOut, changed } = migrate([entry()]);
  expect({ leftOut, changed }).toEqual({ leftOut: [], changed: [] });
  expect(entries).toEqual([
    {
      id: '3f0b1c9e-7c0a-4a55-9a3b-1f0e6a9f2a01',
      spiffeId: 'spiffe://example.org/frontend',
      node: 'node-a',
      selectors: ['unix:uid:1001', 'unix:path:/usr/bin/frontend'],
      labels: {},
      ports: [],
      hint: 'internal',
      ttlSeconds: 3600,
      dnsNames: ['frontend.example.org'],
      federatesWith: ['partner.example'],
      admin: false,
      downstream: false,
    },
  ]);
});

test('what comes out is an entries file that a server takes', () => {
  const { entries } = migrate([entry(), entry({ id: 'other', x509_svid_ttl: 0 })]);
  const document = { apiVersion: 'countersign.dev/v1alpha1', kind: 'RegistrationEntries', entries };
  const file = entriesFileSchema.safeParse(JSON.parse(JSON.stringify(document)));
  expect(file.error).toBeUndefined();
});

test('an entry below a group of nodes becomes one for each of them', () => {
  const parent = { trust_domain: 'example.org', path: '/rack/7' };
  const { entries } = migrate([entry({ parent_id: parent })], [[GROUP, ['node-a', 'node-b']]]);
  expect(entries.map(({ id, node }) => [id.slice(-7), node])).toEqual([
    ['.node-a', 'node-a'],
    ['.node-b', 'node-b'],
  ]);
});

describe('what has no counterpart is left out and said:', () => {
  const cases: [string, object, RegExp][] = [
    ['an SVID for a store', { store_svid: true }, /store_svid/],
    ['an entry that ends', { expires_at: '1900000000' }, /ends at 2030-03-17/],
    ['a group of nodes', { parent_id: { trust_domain: 'example.org', path: '/spire/server' } }, /group of nodes/],
    [
      'a parent that no node is given for',
      { parent_id: { trust_domain: 'example.org', path: '/x' } },
      /--parent spiffe:\/\/example\.org\/x=NODE/,
    ],
    ['another trust domain', { spiffe_id: { trust_domain: 'example.net', path: '/a' } }, /not of the trust domain/],
    ['a path of the server’s own', { spiffe_id: { trust_domain: 'example.org', path: '/node/a' } }, /kept for nodes/],
    ['a SPIFFE ID that is none', { spiffe_id: { trust_domain: 'example.org', path: '/a/../b' } }, /spiffeId/],
    ['no selector', { selectors: [] }, /selector/],
    ['a DNS name that is none', { dns_names: ['*.example.org'] }, /DNS name/],
    ['a field that is not known', { admin_of_everything: true }, /not understood.*admin_of_everything/],
  ];
  test.each(cases)('%s', (_, changes, why) => {
    const { entries, leftOut } = migrate([entry(changes), entry({ id: 'sound' })]);
    expect(entries.map(({ id }) => id)).toEqual(['sound']);
    expect(leftOut).toHaveLength(1);
    expect(leftOut[0]!.why).toMatch(why);
    expect(leftOut[0]!.id).toBe('3f0b1c9e-7c0a-4a55-9a3b-1f0e6a9f2a01');
  });
});

test('what is changed is said: a life beyond our bounds, selectors that no agent here attests', () => {
  const k8s = { id: 'pod', selectors: [{ type: 'k8s', value: 'ns:prod' }] };
  const { entries, changed } = migrate([entry({ x509_svid_ttl: 30, jwt_svid_ttl: 10 }), entry(k8s)]);
  expect(entries.map(({ ttlSeconds, jwtTtlSeconds }) => [ttlSeconds, jwtTtlSeconds])).toEqual([
    [60, 30],
    [3600, undefined],
  ]);
  expect(changed.map(({ what }) => what)).toEqual([
    'ttlSeconds is 60, it was 30',
    'jwtTtlSeconds is 30, it was 10',
    'kept, but matches nothing yet: no agent here attests k8s selectors',
  ]);
});

test('the entry of a server below may have an authority signed here, too', () => {
  expect(migrate([entry({ downstream: true })]).entries).toMatchObject([{ downstream: true }]);
});

test('every entry that goes in comes out on one side or the other', () => {
  const all = [entry(), entry({ id: 'b', downstream: true }), 7, null, {}, entry({ id: 'c' })];
  const { entries, leftOut } = migrate(all);
  expect(entries.length + leftOut.length).toBe(all.length);
});

test('text that SPIRE did not print, or a page of several, is refused', () => {
  const refused = (text: string) => () => migrateSpireEntries(text, 'example.org' as TrustDomain, new Map());
  expect(refused('Found 0 entries')).toThrow(/not JSON.*-output json/);
  expect(refused('[]')).toThrow(/not what spire-server entry show/);
  expect(refused('{"entries":[],"next_page_token":"abc"}')).toThrow(/or a part of it/);
});
