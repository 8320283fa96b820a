/** Policies of every kind over a small world, so that rules meet: what property tests draw from. */
import fc from 'fast-check';
import { type Prefix, parsePrefix } from '../../../src/model/address.ts';
import type { IdentityRow, NamedPort } from '../../../src/model/identity.ts';
import { type SecurityIdentity, securityIdentity } from '../../../src/model/ids.ts';
import { spiffeId } from '../../../src/model/spiffe-id.ts';
import type {
  AuthMode,
  Entity,
  Peer,
  Policy,
  PolicySpec,
  PortMatch,
  Requirement,
  Rule,
  Selector,
} from '../../../src/policy/rules.ts';

const NAMESPACE = 'io.kubernetes.pod.namespace';

export interface Workload {
  readonly number: number;
  readonly app: string | undefined;
  readonly tier: string | undefined;
  readonly namespace: string | undefined;
  readonly ports: readonly NamedPort[];
}

export function identityOf(number: number): SecurityIdentity {
  return securityIdentity(256 + number);
}

export function rowOf({ number, app, tier, namespace, ports }: Workload): IdentityRow {
  const labels: Record<string, string> = {};
  if (app !== undefined) labels[number % 2 === 0 ? 'app' : 'k8s:app'] = app;
  if (tier !== undefined) labels.tier = tier;
  if (namespace !== undefined) labels[NAMESPACE] = namespace;
  const identity = identityOf(number);
  return { identity, spiffeId: spiffeId(`spiffe://example.org/w${number}`), labels, nodes: [], ports };
}

const namedPort: fc.Arbitrary<NamedPort> = fc.constantFrom(
  { name: 'web', protocol: 6, port: 80 },
  { name: 'web', protocol: 6, port: 8080 },
  { name: 'web', protocol: 17, port: 443 },
  { name: 'dns', protocol: 17, port: 53 },
);

export function workload(number: number): fc.Arbitrary<Workload> {
  return fc.record({
    number: fc.constant(number),
    app: fc.constantFrom('a', 'b', 'c', undefined),
    tier: fc.constantFrom('x', 'y', undefined),
    namespace: fc.constantFrom('prod', 'default', undefined),
    ports: fc.array(namedPort, { maxLength: 2 }),
  });
}

/** The second half has the labels of the first, but ports of its own: often these are all that tells two apart. */
export const workloads: fc.Arbitrary<Workload[]> = fc
  .tuple(fc.tuple(...[0, 1, 2].map(workload)), fc.tuple(...[4, 5, 6].map(workload)), fc.boolean())
  .map(([some, others, alike]) => [
    ...some,
    ...others.map((other, i) => (alike ? { ...some[i]!, number: other.number, ports: other.ports } : other)),
  ]);

const requirement: fc.Arbitrary<Requirement> = fc.oneof(
  fc.record({
    key: fc.constantFrom('app', 'app', 'tier', NAMESPACE),
    operator: fc.constantFrom('In' as const, 'In' as const, 'NotIn' as const),
    values: fc.uniqueArray(fc.constantFrom('a', 'b', 'c', 'x', 'y', 'prod', 'default'), { minLength: 1, maxLength: 3 }),
  }),
  fc.record({
    key: fc.constantFrom('app', 'tier', 'nothing'),
    operator: fc.constantFrom('Exists' as const, 'DoesNotExist' as const),
    values: fc.constant([]),
  }),
);
const selector: fc.Arbitrary<Selector> = fc.record({ requirements: fc.array(requirement, { maxLength: 2 }) });

const texts = [
  '0.0.0.0/0',
  '10.0.0.0/8',
  '10.1.0.0/16',
  '10.1.2.0/24',
  '10.1.2.3/32',
  '192.0.2.0/24',
  '::/0',
  '2001:db8::/32',
  '2001:db8::/64',
];
const prefixes = texts.map((text) => parsePrefix(text)!);
const broad = fc.constantFrom<Prefix>(...prefixes.filter(({ length }) => length < 64 && length !== 32));

const peer: fc.Arbitrary<Peer> = fc.oneof(
  { weight: 4, arbitrary: fc.record({ kind: fc.constant('workloads' as const), selector }) },
  {
    weight: 2,
    arbitrary: fc.record({
      kind: fc.constant('cidr' as const),
      prefix: fc.oneof(broad, fc.constantFrom<Prefix>(...prefixes)),
      except: fc.uniqueArray(fc.constantFrom<Prefix>(...prefixes), { maxLength: 2 }),
    }),
  },
  {
    weight: 1,
    arbitrary: fc.record({
      kind: fc.constant('entity' as const),
      entity: fc.constantFrom<Entity>(
        'all',
        'cluster',
        'host',
        'none',
        'remote-node',
        'world',
        'world-ipv4',
        'world-ipv6',
      ),
    }),
  },
);

const PORTS = [0, 1, 53, 79, 80, 81, 85, 90, 91, 443, 1000, 1023, 1024, 2000, 8080, 65_534, 65_535];
const range = fc
  .tuple(fc.constantFrom(...PORTS), fc.constantFrom(...PORTS))
  .map(([a, b]) => ({ first: Math.min(a, b), last: Math.max(a, b) }));
const single = fc.constantFrom(53, 80, 443).map((port) => ({ first: port, last: port }));
const transport = fc.constantFrom(6, 6, 17, 132);
const port: fc.Arbitrary<PortMatch> = fc.oneof(
  fc.record({ protocol: transport, ports: fc.constant('all' as const) }),
  fc.tuple(transport, fc.oneof(single, range)).map(([protocol, ports]) => ({ protocol, ...ports })),
  fc.tuple(fc.constantFrom(1, 58), fc.constantFrom(0, 3, 8, 128)).map(([protocol, type]) => {
    return { protocol, first: type, last: type };
  }),
  fc.record({
    protocols: fc.constantFrom<readonly number[]>([6], [17], [6, 17, 132]),
    name: fc.constantFrom('web', 'dns', 'other'),
  }),
);

const rule: fc.Arbitrary<Rule> = fc
  .record({
    file: fc.constant('p.yaml'),
    line: fc.constant(1),
    path: fc.constant('spec'),
    direction: fc.constantFrom('egress' as const, 'ingress' as const),
    action: fc.constantFrom('allow' as const, 'allow' as const, 'allow' as const, 'deny' as const),
    peers: fc.oneof(
      { weight: 1, arbitrary: fc.constant('any' as const) },
      { weight: 4, arbitrary: fc.array(peer, { maxLength: 3 }) },
    ),
    ports: fc.oneof(
      { weight: 1, arbitrary: fc.constant('any' as const) },
      { weight: 2, arbitrary: fc.array(port, { maxLength: 3 }) },
    ),
    mode: fc.constantFrom<AuthMode | undefined>(
      undefined,
      undefined,
      'disabled',
      'required',
      'required-connection',
      'test-always-fail',
    ),
  })
  .map((made) => (made.action === 'deny' ? { ...made, mode: undefined } : made));

const requires = fc.oneof(
  { weight: 6, arbitrary: fc.constant([]) },
  { weight: 1, arbitrary: fc.array(requirement, { maxLength: 2 }) },
);
const yes = fc.boolean();
const spec: fc.Arbitrary<PolicySpec> = fc.record({
  line: fc.constant(1),
  description: fc.constant(''),
  subject: fc.record({
    kind: fc.constantFrom('workloads' as const, 'workloads' as const, 'workloads' as const, 'nodes' as const),
    selector,
  }),
  rules: fc.array(rule, { maxLength: 4 }),
  defaultDeny: fc.record({ egress: yes, ingress: yes }),
  requires: fc.record({ egress: requires, ingress: requires }),
});

const policy: fc.Arbitrary<Policy> = fc.record({
  file: fc.constant('p.yaml'),
  line: fc.constant(1),
  kind: fc.constant('CiliumClusterwideNetworkPolicy' as const),
  name: fc.constant('p'),
  namespace: fc.constant(undefined),
  enforcement: fc.constantFrom('enforce' as const, 'enforce' as const, 'enforce' as const, 'observe' as const),
  specs: fc.array(spec, { minLength: 1, maxLength: 2 }),
});

export const policies = fc.array(policy, { maxLength: 5 });

export const NODE_LABELS = { app: 'a', zone: 'z' };

/** One on each side of every border that the ports above draw. */
export const PACKETS: readonly (readonly [protocol: number, port: number])[] = [
  ...[6, 17, 132].flatMap((protocol) =>
    [...new Set(PORTS.flatMap((at) => [at - 1, at, at + 1]))]
      .filter((at) => at >= 0 && at <= 65_535)
      .map((at) => [protocol, at] as const),
  ),
  ...[1, 58].flatMap((protocol) => [0, 3, 4, 8, 128].map((type) => [protocol, type] as const)),
  [47, 0],
];
