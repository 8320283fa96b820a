/** What keeps the kernel's map small, and what is said when a policy does not fit all the same. */
import { describe, expect, it } from 'vitest';
import { type Prefix, parsePrefix } from '../../../src/model/address.ts';
import type { IdentityRow } from '../../../src/model/identity.ts';
import { compilePolicy, recompile } from '../../../src/policy/compile.ts';
import type { Peer, Policy, PortMatch, Requirement, Rule } from '../../../src/policy/rules.ts';
import { identityOf, rowOf } from './random-policies.ts';

const app = (name: string): Requirement => ({ key: 'app', operator: 'In', values: [name] });
const from = (name: string): Peer => ({ kind: 'workloads', selector: { requirements: [app(name)] } });

function policy(name: string, subject: readonly Requirement[], rules: readonly Partial<Rule>[]): Policy {
  const common = { file: `${name}.yaml`, line: 3, path: 'spec', direction: 'ingress', action: 'allow' } as const;
  return {
    file: `${name}.yaml`,
    line: 1,
    kind: 'CiliumNetworkPolicy',
    name,
    namespace: 'default',
    enforcement: 'enforce',
    specs: [
      {
        line: 2,
        description: '',
        subject: { kind: 'workloads', selector: { requirements: subject } },
        rules: rules.map((rule) => ({ ...common, peers: 'any', ports: 'any', mode: undefined, ...rule })),
        defaultDeny: { ingress: true, egress: false },
        requires: { ingress: [], egress: [] },
      },
    ],
  };
}

function rows(count: number): IdentityRow[] {
  return Array.from({ length: count }, (_, i) =>
    rowOf({ number: i, app: `a${i}`, tier: undefined, namespace: undefined, ports: [] }),
  );
}

const ids = (count: number) => Array.from({ length: count }, (_, i) => identityOf(i));
const names = (count: number) => Array.from({ length: count }, (_, i) => `a${i}`);
const port = (first: number, last = first): PortMatch => ({ protocol: 6, first, last });

describe('the number of entries', () => {
  it('does not grow with the endpoints that one policy selects', () => {
    const everybody = [
      policy(
        'all',
        [],
        names(500).map((name, i) => ({ peers: [from(name)], ports: [port(80 + i)] })),
      ),
    ];
    const few = compilePolicy(everybody, rows(500), ids(5));
    const many = compilePolicy(everybody, rows(500), ids(400));
    expect(many.entryCount).toBe(few.entryCount);
    expect(many.entryCount).toBeLessThan(1_100);
  });

  it('does not grow with the identities that a broad rule names', () => {
    const open = [policy('all', [], [{ peers: [{ kind: 'workloads', selector: { requirements: [] } }] }])];
    const each = names(400).map((name) => policy(name, [app(name)], [{ peers: [from('a0')], ports: [port(22)] }]));
    const small = compilePolicy([...open, ...each.slice(0, 10)], rows(400), ids(2));
    const large = compilePolicy([...open, ...each], rows(400), ids(2));
    expect(large.entryCount).toBe(small.entryCount);
  });

  it('does not grow with the peers that one rule lists', () => {
    const listing = (count: number) => [policy('list', [], [{ peers: names(count).map(from), ports: [port(22)] }])];
    const each = names(400).map((name) => policy(name, [app('nobody')], [{ peers: [from(name)] }]));
    const few = compilePolicy([...listing(300), ...each], rows(400), ids(1));
    const many = compilePolicy([...listing(400), ...each], rows(400), ids(1));
    expect(many.entryCount).toBeLessThanOrEqual(few.entryCount);
    expect(many.entryCount).toBeLessThan(20);
  });

  it('does not grow with the services that ask an endpoint for a proof', () => {
    const all: Peer = { kind: 'workloads', selector: { requirements: [] } };
    const asking = (count: number) =>
      names(count).map((name) => policy(name, [app(name)], [{ peers: [all], ports: [port(443)], mode: 'required' }]));
    const few = compilePolicy(asking(10), rows(400), ids(1));
    const many = compilePolicy(asking(400), rows(400), ids(1));
    expect(many.entryCount).toBeLessThanOrEqual(few.entryCount);
  });

  it('is small for a range of ports: prefixes, not ports', () => {
    const compiled = compilePolicy([policy('p', [], [{ ports: [port(1024, 65_535)] }])], rows(1), ids(1));
    expect(compiled.entryCount).toBeLessThan(8);
  });
});

describe('a policy that does not fit', () => {
  it('is refused with its name, its place and what to do', () => {
    const count = 300;
    const wide = { ports: Array.from({ length: 20 }, (_, i) => port(1_000 + 7 * i)) };
    const policies = [
      policy('modest', [app('a0')], [{ peers: [from('a1')] }]),
      ...names(count).map((name) =>
        policy(
          'greedy',
          [app(name)],
          names(100).map((peer) => ({ peers: [from(peer)], ...wide })),
        ),
      ),
    ];
    expect(() => compilePolicy(policies, rows(count), ids(count))).toThrow(
      /more than 262144 entries .* greedy\.yaml:3: default\/greedy alone takes \d+ of them: let its rules/,
    );
  });

  it('is refused for too many address prefixes, naming the policy that has most', () => {
    const prefix = (i: number): Prefix => parsePrefix(`10.${i >> 8}.${i & 255}.0/24`)!;
    const peers: Peer[] = Array.from({ length: 9_000 }, (_, i) => ({ kind: 'cidr', prefix: prefix(i), except: [] }));
    const small = policy('small', [], [{ peers: peers.slice(0, 10) }]);
    expect(() => compilePolicy([small, policy('large', [], [{ peers }])], rows(1), ids(1))).toThrow(
      /name 9000 address prefixes, .* large\.yaml:3: default\/large alone names 9000: let it name fewer/,
    );
  });

  it('is refused for thousands of peers named apart beside thousands of ports for everybody', () => {
    const count = 3_000;
    const mixed = policy(
      'mixed',
      [],
      [
        ...names(count).map((_, i) => ({ ports: [port(2 * i)] })),
        ...names(count).map((name, i) => ({ peers: [from(name)], ports: [port(2 * i + 1)] })),
      ],
    );
    expect(() => compilePolicy([mixed], rows(count), ids(1))).toThrow(
      /selected by 6000 rules .* mixed\.yaml:3: default\/mixed alone has 6000 rules: merge those/,
    );
  });

  it('is refused for too many identities', () => {
    const row = rows(1)[0]!;
    expect(() => compilePolicy([], new Array(70_000).fill(row), [])).toThrow('70000 identities');
  });
});

describe('longer port prefixes that come with a new identity', () => {
  it('are tried for it only when its row is there, and the old rows say so first', () => {
    const policies = [policy('p', [app('a0')], [{ peers: [from('a1')] }, { peers: [from('a2')], ports: [port(80)] }])];
    const [zero, one, two] = rows(3) as [IdentityRow, IdentityRow, IdentityRow];
    const compiled = compilePolicy(policies, [zero, one], [zero.identity]);
    const { delta } = recompile(compiled, [zero, one, two], [zero.identity]);
    expect(delta.putEntries).toHaveLength(1);
    expect(delta.putClasses.map(({ identity }) => identity)).toEqual([zero.identity, two.identity]);
    expect(delta.putClasses[0]!.portBits.ingress & (1 << 16)).not.toBe(0);
  });
});
