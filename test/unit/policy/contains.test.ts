import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { parseAddress, parsePrefix, prefixContains } from '../../../src/model/address.ts';
import { contradiction, subjectContains, trafficContains } from '../../../src/policy/contains.ts';
import { selects } from '../../../src/policy/labels.ts';
import type { Peer, PortMatch, Requirement, Rule, Selector } from '../../../src/policy/rules.ts';

const APPS = ['a', 'b', 'c'];
const everybody = [undefined, ...APPS].flatMap((app) =>
  [undefined, 'p'].map((env) => {
    const labels: [string, string][] = [];
    if (app !== undefined) labels.push(['app', app]);
    if (env !== undefined) labels.push(['env', env]);
    return new Map(labels);
  }),
);

const requirement: fc.Arbitrary<Requirement> = fc.oneof(
  fc.record({
    key: fc.constant('app'),
    operator: fc.constantFrom('In' as const, 'NotIn' as const),
    values: fc.uniqueArray(fc.constantFrom(...APPS), { minLength: 1, maxLength: 3 }),
  }),
  fc.record({
    key: fc.constantFrom('app', 'env'),
    operator: fc.constantFrom('Exists' as const, 'DoesNotExist' as const),
    values: fc.constant([]),
  }),
);
const selector: fc.Arbitrary<Selector> = fc.record({ requirements: fc.array(requirement, { maxLength: 3 }) });

const PREFIXES = ['10.0.0.0/8', '10.0.0.0/16', '10.1.0.0/16', '10.1.2.0/24', '0.0.0.0/0', '2001:db8::/32'].map(
  (t) => parsePrefix(t)!,
);
const ADDRESSES = ['9.0.0.1', '10.0.0.1', '10.1.0.1', '10.1.2.3', '2001:db8::1'].map((t) => parseAddress(t)!);

const peer: fc.Arbitrary<Peer> = fc.oneof(
  fc.record({ kind: fc.constant('workloads' as const), selector }),
  fc.record({
    kind: fc.constant('cidr' as const),
    prefix: fc.constantFrom(...PREFIXES),
    except: fc.array(fc.constantFrom(...PREFIXES), { maxLength: 2 }),
  }),
  fc.record({
    kind: fc.constant('entity' as const),
    entity: fc.constantFrom(
      ...(['all', 'cluster', 'host', 'none', 'remote-node', 'world', 'world-ipv4', 'world-ipv6'] as const),
    ),
  }),
);
const port: fc.Arbitrary<PortMatch> = fc.oneof(
  fc
    .tuple(fc.constantFrom(6, 17), fc.nat({ max: 4 }), fc.nat({ max: 4 }))
    .map(([protocol, a, b]) => ({ protocol, first: Math.min(a, b), last: Math.max(a, b) })),
  fc.constantFrom<PortMatch>({ protocol: 6, ports: 'all' }, { protocol: 17, ports: 'all' }),
);
const rule: fc.Arbitrary<Rule> = fc
  .record({
    peers: fc.oneof(fc.constant('any' as const), fc.array(peer, { minLength: 1, maxLength: 3 })),
    ports: fc.oneof(fc.constant('any' as const), fc.array(port, { minLength: 1, maxLength: 2 })),
  })
  .map((said) => ({ ...said, file: '', line: 1, path: '', direction: 'ingress', action: 'allow', mode: undefined }));

type Someone = (typeof everybody)[number] | (typeof ADDRESSES)[number] | 'host' | 'remote-node';
const someone: Someone[] = [...everybody, ...ADDRESSES, 'host' as const, 'remote-node' as const];

function names(one: Peer, who: Someone): boolean {
  if (who instanceof Map) {
    if (one.kind === 'workloads') return selects(one.selector, who);
    return one.kind === 'entity' && (one.entity === 'all' || one.entity === 'cluster');
  }
  const isHost = who === 'host' || who === 'remote-node';
  if (one.kind === 'entity') {
    if (isHost) return one.entity === 'all' || one.entity === 'cluster' || one.entity === who;
    const family = who.includes(':') ? 'world-ipv6' : 'world-ipv4';
    return one.entity === 'all' || one.entity === 'world' || one.entity === family;
  }
  if (isHost || one.kind !== 'cidr') return false;
  const address = who as (typeof ADDRESSES)[number];
  return prefixContains(one.prefix, address) && !one.except.some((hole) => prefixContains(hole, address));
}

function matches({ peers, ports }: Rule, who: Someone, protocol: number, number: number): boolean {
  if (peers !== 'any' && !peers.some((one) => names(one, who))) return false;
  if (ports === 'any') return true;
  return ports.some((match) => {
    if ('name' in match || match.protocol !== protocol) return false;
    return 'ports' in match || (match.first <= number && number <= match.last);
  });
}

describe('containment', () => {
  it('of selectors is never claimed where a workload meets the inner and not the outer', () => {
    let claimed = 0;
    const property = fc.property(selector, selector, (a, b) => {
      if (!subjectContains({ kind: 'workloads', selector: a }, { kind: 'workloads', selector: b })) return;
      claimed++;
      expect(everybody.find((labels) => selects(b, labels) && !selects(a, labels))).toBeUndefined();
    });
    fc.assert(property, { numRuns: 2_000 });
    expect(claimed).toBeGreaterThan(200);
  });

  it('of traffic is never claimed where a packet matches the inner and not the outer', () => {
    let claimed = 0;
    const property = fc.property(rule, rule, (a, b) => {
      if (!trafficContains(a, b)) return;
      claimed++;
      const packets = someone.flatMap((who) =>
        [1, 6, 17].flatMap((protocol) => [0, 1, 2, 3, 4, 5].map((number) => [who, protocol, number] as const)),
      );
      expect(packets.find((packet) => matches(b, ...packet) && !matches(a, ...packet))).toBeUndefined();
    });
    fc.assert(property, { numRuns: 3_000 });
    expect(claimed).toBeGreaterThan(150);
  });

  it.each([
    ['10.0.0.0/8', '10.0.0.0/16', true],
    ['10.0.0.0/16', '10.0.0.0/8', false],
    ['10.0.0.0/8', '11.0.0.0/16', false],
    ['0.0.0.0/0', '10.0.0.0/8', true],
    ['::/0', '10.0.0.0/8', false],
    ['0.0.0.0/0', '2001:db8::/32', false],
  ])('of prefixes: %s and %s', (outer, inner, expected) => {
    const of = (text: string): Rule => ({
      ...fc.sample(rule, 1)[0]!,
      peers: [{ kind: 'cidr', prefix: parsePrefix(text)!, except: [] }],
      ports: 'any',
    });
    expect(trafficContains(of(outer), of(inner))).toBe(expected);
  });

  it('is claimed of everything by itself, and of anything by a rule without restriction', () => {
    const open: Rule = { ...fc.sample(rule, 1)[0]!, peers: 'any', ports: 'any' };
    fc.assert(
      fc.property(rule, (one) => {
        expect(trafficContains(one, one) && trafficContains(open, one)).toBe(true);
      }),
    );
  });

  it('calls requirements contradictory only if nobody meets them', () => {
    let found = 0;
    const property = fc.property(selector, (one) => {
      if (contradiction(one) === undefined) return;
      found++;
      expect(everybody.some((labels) => selects(one, labels))).toBe(false);
    });
    fc.assert(property, { numRuns: 1_000 });
    expect(found).toBeGreaterThan(50);
  });
});
