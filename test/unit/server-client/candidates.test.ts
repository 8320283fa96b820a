/** Which nodes may host an address: from their prefixes, which may overlap. */
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { Nodes } from '../../../src/agent/server-client/tables.ts';
import { prefixContains } from '../../../src/model/address.ts';
import { type IpAddress, nodeId, type TrustDomain } from '../../../src/model/ids.ts';

const node = (name: string, id: number, prefixes: string[]) => ({
  name,
  spiffeId: `spiffe://example.org/node/${name}`,
  nodeId: id,
  incarnation: 1n,
  peerAddresses: [],
  prefixes,
});
const table = () => new Nodes('example.org' as TrustDomain);
const none = (what: string, why: string) => expect.fail(`${what}: ${why}`);
const names = (nodes: Nodes, address: string) => nodes.candidates(address as IpAddress).map(({ name }) => name);

test('the most specific prefix comes first, then the lower name, each node once, 8 at most', () => {
  const nodes = table();
  nodes.update(
    true,
    [
      node('wide', 1, ['10.0.0.0/8', '10.1.0.0/16']),
      node('b', 2, ['10.1.1.0/24']),
      node('a', 3, ['10.1.1.0/24', 'fd00::/64']),
      node('host', 4, ['10.1.1.7/32']),
    ],
    [],
    none,
  );
  expect(names(nodes, '10.1.1.7')).toEqual(['host', 'a', 'b', 'wide']);
  expect(names(nodes, '10.1.2.7')).toEqual(['wide']);
  expect(names(nodes, 'fd00::1')).toEqual(['a']);
  expect(names(nodes, '192.0.2.1')).toEqual([]);
  nodes.update(
    false,
    Array.from({ length: 20 }, (_, i) => node(`m${10 + i}`, 10 + i, ['192.0.2.0/24'])),
    [],
    none,
  );
  expect(names(nodes, '192.0.2.1')).toEqual(['m10', 'm11', 'm12', 'm13', 'm14', 'm15', 'm16', 'm17']);
});

test('an IPv6 prefix of length 0 does not cover IPv4, nor the other way round', () => {
  const nodes = table();
  nodes.update(true, [node('six', 1, ['::/0']), node('four', 2, ['0.0.0.0/0'])], [], none);
  expect(names(nodes, '10.0.0.1')).toEqual(['four']);
  expect(names(nodes, 'fd00::1')).toEqual(['six']);
});

test('after any changes the answer is that of a walk over all nodes', () => {
  const prefix = fc.constantFrom('10.0.0.0/8', '10.1.0.0/16', '10.1.1.0/24', '10.1.1.7/32', 'fd00::/48', '10.1.1.0/29');
  const change = fc.record({
    name: fc.constantFrom('a', 'b', 'c', 'd'),
    prefixes: fc.uniqueArray(prefix, { maxLength: 4 }),
    remove: fc.boolean(),
    snapshot: fc.boolean(),
  });
  fc.assert(
    fc.property(fc.array(change, { maxLength: 12 }), (changes) => {
      const nodes = table();
      for (const { name, prefixes, remove, snapshot } of changes) {
        const id = name.charCodeAt(0);
        if (remove) nodes.update(snapshot, [], [name], none);
        else nodes.update(snapshot, [node(name, id, prefixes)], [], none);
        expect(nodes.byId(nodeId(id))?.name).toBe(remove ? undefined : name);
      }
      for (const text of ['10.1.1.7', '10.1.1.9', '10.2.0.1', 'fd00::1']) {
        const address = text as IpAddress;
        const walked = nodes.nodes().flatMap((known) => {
          const lengths = known.prefixes.filter((p) => prefixContains(p, address)).map(({ length }) => length);
          return lengths.length === 0 ? [] : [{ name: known.name, length: Math.max(...lengths) }];
        });
        walked.sort((x, y) => y.length - x.length || (x.name < y.name ? -1 : 1));
        expect(names(nodes, text)).toEqual(walked.map(({ name }) => name));
      }
    }),
  );
});

test('with 5,000 nodes an answer costs no walk, and a change of one node no rebuild', () => {
  const nodes = table();
  const all = Array.from({ length: 5_000 }, (_, i) =>
    node(`n${i}`, i + 1, [`10.${i >> 8}.${i & 255}.0/24`, `fd00:0:0:${i.toString(16)}::/64`]),
  );
  nodes.update(true, all, [], none);
  const begun = performance.now();
  for (let i = 0; i < 50_000; i++) {
    const at = i % 5_000;
    if (nodes.candidates(`10.${at >> 8}.${at & 255}.9` as IpAddress)[0]?.id !== at + 1) expect.fail('wrong node');
  }
  for (let i = 0; i < 2_000; i++) nodes.update(false, [{ ...all[i]!, incarnation: 2n }], [], none);
  // a walk over all nodes takes more than 20 s for the first loop alone
  expect(performance.now() - begun).toBeLessThan(2_000);
});
