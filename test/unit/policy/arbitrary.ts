/** Small random policies: few labels, prefixes and ports, so that rules meet, cover and contradict each other. */
import fc from 'fast-check';
import { parsePrefix } from '../../../src/model/address.ts';
import type { IdentityRow, Labels } from '../../../src/model/identity.ts';
import { securityIdentity } from '../../../src/model/ids.ts';
import { spiffeId } from '../../../src/model/spiffe-id.ts';
import type { Peer, Policy, PolicySpec, PortMatch, Requirement, Rule, Selector } from '../../../src/policy/rules.ts';

export const PORTS = [0, 7, 8, 80, 255, 65_535];
export const PROTOCOLS = [6, 1, 47];
export const ADDRESSES = ['10.0.0.1', '10.1.0.1', '10.1.2.3', '11.0.0.1'];

const APPS = ['a', 'b'];
export const identities: readonly IdentityRow[] = APPS.flatMap((app, i) =>
  ([{ app }, { app, env: 'prod' }] as Labels[]).map((labels, j) => ({
    identity: securityIdentity(256 + 2 * i + j),
    spiffeId: spiffeId(`spiffe://example.org/${app}${j}`),
    labels,
    nodes: [],
    ports: i === 0 ? [{ name: 'http', protocol: 6, port: 80 }] : [],
  })),
);

const requirement: fc.Arbitrary<Requirement> = fc.oneof(
  fc.record({
    key: fc.constant('app'),
    operator: fc.constantFrom('In' as const, 'NotIn' as const),
    values: fc.uniqueArray(fc.constantFrom(...APPS), { minLength: 1, maxLength: 2 }),
  }),
  fc.record({
    key: fc.constant('env'),
    operator: fc.constantFrom('Exists' as const, 'DoesNotExist' as const),
    values: fc.constant([]),
  }),
);
const selector: fc.Arbitrary<Selector> = fc.record({ requirements: fc.array(requirement, { maxLength: 2 }) });

const prefix = (text: string) => parsePrefix(text)!;
const cidr: fc.Arbitrary<Peer> = fc.constantFrom(
  { kind: 'cidr' as const, prefix: prefix('10.0.0.0/8'), except: [] },
  { kind: 'cidr' as const, prefix: prefix('10.0.0.0/8'), except: [prefix('10.1.0.0/16')] },
  { kind: 'cidr' as const, prefix: prefix('10.1.0.0/16'), except: [] },
  { kind: 'cidr' as const, prefix: prefix('10.1.0.0/16'), except: [prefix('10.1.2.0/24')] },
  { kind: 'cidr' as const, prefix: prefix('0.0.0.0/0'), except: [] },
);
const peer: fc.Arbitrary<Peer> = fc.oneof(
  { weight: 3, arbitrary: selector.map((s): Peer => ({ kind: 'workloads', selector: s })) },
  { weight: 1, arbitrary: cidr },
  {
    weight: 1,
    arbitrary: fc
      .constantFrom(
        'all' as const,
        'cluster' as const,
        'world' as const,
        'host' as const,
        'none' as const,
        'world-ipv4' as const,
      )
      .map((entity): Peer => ({ kind: 'entity', entity })),
  },
);

const portMatch: fc.Arbitrary<PortMatch> = fc.oneof(
  fc
    .tuple(fc.constantFrom(6, 17), fc.constantFrom(...PORTS), fc.constantFrom(...PORTS))
    .map(([protocol, a, b]): PortMatch => ({ protocol, first: Math.min(a, b), last: Math.max(a, b) })),
  fc.constantFrom<PortMatch>(
    { protocol: 6, ports: 'all' },
    { protocol: 1, first: 8, last: 8 },
    { protocols: [6, 17, 132], name: 'http' },
  ),
);

const rule: fc.Arbitrary<Omit<Rule, 'file' | 'line' | 'path'>> = fc
  .record({
    direction: fc.constantFrom('ingress' as const, 'egress' as const),
    action: fc.constantFrom('allow' as const, 'allow' as const, 'deny' as const),
    peers: fc.oneof(fc.constant('any' as const), fc.array(peer, { maxLength: 2 })),
    ports: fc.oneof(fc.constant('any' as const), fc.array(portMatch, { minLength: 1, maxLength: 2 })),
    mode: fc.constantFrom(undefined, 'disabled' as const, 'required' as const, 'required-connection' as const),
  })
  .map((one) => (one.action === 'deny' ? { ...one, mode: undefined } : one));

const spec: fc.Arbitrary<Omit<PolicySpec, 'line' | 'rules'> & { rules: Omit<Rule, 'file' | 'line' | 'path'>[] }> =
  fc.record({
    description: fc.constant(''),
    subject: selector.map((s) => ({ kind: 'workloads' as const, selector: s })),
    rules: fc.array(rule, { maxLength: 4 }),
    defaultDeny: fc.record({ ingress: fc.boolean(), egress: fc.boolean() }),
    requires: fc.record({
      ingress: fc.oneof(
        { weight: 4, arbitrary: fc.constant([]) },
        { weight: 1, arbitrary: fc.array(requirement, { maxLength: 1 }) },
      ),
      egress: fc.constant([]),
    }),
  });

/** Every rule on a line of its own. */
export const somePolicies: fc.Arbitrary<Policy[]> = fc
  .array(
    fc.record({ spec, enforcement: fc.constantFrom('enforce' as const, 'enforce' as const, 'observe' as const) }),
    { maxLength: 3 },
  )
  .map((all) => {
    let line = 0;
    return all.map(({ spec: { rules, ...rest }, enforcement }, i): Policy => {
      const placed = rules.map(
        (one, j): Rule => ({ ...one, file: 'p.yaml', line: ++line, path: `spec.${one.direction}[${j}]` }),
      );
      return {
        file: 'p.yaml',
        line: 1000 + i,
        kind: 'CiliumNetworkPolicy',
        name: `p${i}`,
        namespace: 'default',
        enforcement,
        specs: [{ ...rest, line: 1000 + i, rules: placed }],
      };
    });
  });
