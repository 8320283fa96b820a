import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { CountersignError } from '../../../src/base/errors.ts';
import { parsePolicies } from '../../../src/policy/grammar/parse.ts';
import { document, head, type Kind, refused, ruleOf } from './support/policies.ts';

const ingress = (rule: string) => refused(document(`  ingress:\n    - ${rule}`));
const egress = (rule: string) => refused(document(`  egress:\n    - ${rule}`));
const port = (text: string) => ingress(`toPorts: [{ports: [${text}]}]`).join('\n');

describe('what is known and not understood', () => {
  it.each([
    ['toFQDNs', egress('toFQDNs: [{matchName: a}]'), 'names are not resolved here; write the addresses'],
    ['toServices', egress('toServices: [{k8sService: {}}]'), 'services are known to a cluster only; write toEndpoints'],
    ['toGroups', egress('toGroups: [{aws: {}}]'), 'groups of a cloud provider are not looked up here; write'],
    ['toNodes', egress('toNodes: [{}]'), 'nodes are not told apart as peers here; write the entities'],
    ['toCIDRSet[0].cidrGroupRef', egress('toCIDRSet: [{cidr: 1.0.0.0/8, cidrGroupRef: g}]'), 'CiliumCIDRGroup objects'],
    [
      'toCIDRSet[0].cidrGroupSelector',
      egress('toCIDRSet: [{cidr: 1.0.0.0/8, cidrGroupSelector: {}}]'),
      'CiliumCIDRGroup',
    ],
    [
      'toPorts[0].listener',
      egress('toPorts: [{listener: {name: a}}]'),
      'traffic is not sent to an Envoy listener here',
    ],
    ['toPorts[0].originatingTLS', egress('toPorts: [{originatingTLS: {}}]'), 'TLS is not originated here'],
    ['toPorts[0].terminatingTLS', egress('toPorts: [{terminatingTLS: {}}]'), 'TLS is not terminated here'],
    ['toPorts[0].serverNames', egress('toPorts: [{serverNames: [a]}]'), 'server names in TLS are not looked at'],
    ['toPorts[0].rules.dns', egress('toPorts: [{rules: {dns: []}}]'), 'layer 7 rules are not enforced here'],
    ['toPorts[0].rules.http', egress('toPorts: [{rules: {http: [{}]}}]'), 'policies.l7: ignore-with-warning'],
  ])('is refused by name and path, with what to write instead: %s', (field, problems, message) => {
    expect(problems).toHaveLength(1);
    expect(problems[0]).toContain(`p.yaml:8: spec.egress[0].${field}: `);
    expect(problems[0]).toContain(message);
  });

  it.each([
    ['fromNodes', ingress('fromNodes: [{}]')],
    ['fromGroups', ingress('fromGroups: []')],
  ])('is refused for ingress as for egress: %s', (field, problems) => {
    expect(problems[0]).toContain(`p.yaml:8: spec.ingress[0].${field}: `);
  });

  it.each(['health', 'ingress', 'init', 'kube-apiserver', 'unmanaged'])(
    'is the entity %s, in a list or as a label',
    (name) => {
      const message = `the entity ${name} is not known without a cluster: `;
      expect(ingress(`fromEntities: [${name}]`)[0]).toContain(`p.yaml:8: spec.ingress[0].fromEntities[0]: ${message}`);
      expect(ingress(`fromEndpoints: [{matchLabels: {"reserved:${name}": ""}}]`)[0]).toContain(message);
      const subject = `endpointSelector: {matchLabels: {"reserved:${name}": ""}}`;
      expect(refused(document('  ingress: [{}]', 'CiliumNetworkPolicy', subject))[0]).toContain(message);
    },
  );

  it('is not hidden in a deny rule', () => {
    const deny = (rule: string) => refused(document(`  ingressDeny:\n    - ${rule}`))[0];
    expect(deny('toPorts: [{rules: {}}]')).toContain('ingressDeny[0].toPorts[0].rules: a deny rule has ports only');
    expect(deny('authentication: {mode: disabled}')).toContain('ingressDeny[0].authentication: what is denied is not');
    expect(deny('fromRequires: []')).toContain(
      'ingressDeny[0].fromRequires: requirements would make every denial narrower',
    );
  });
});

describe('rules that look into the traffic, when they may be passed over', () => {
  const options = { l7: 'ignore-with-warning' } as const;
  const http = '{ports: [{port: "80", protocol: TCP}, {port: "8000", endPort: 8080}], rules: {http: [{method: GET}]}}';

  it('allow the whole port, and the warning says so', () => {
    const text = document(`  ingress:\n    - toPorts: [${http}]`);
    expect(refused(text)).toHaveLength(1);
    const { policies, warnings } = parsePolicies('p.yaml', text, options);
    expect(policies[0]?.specs[0]?.rules[0]?.ports).toContainEqual({ protocol: 6, first: 80, last: 80 });
    expect(warnings).toEqual([
      {
        file: 'p.yaml',
        line: 8,
        message:
          'spec.ingress[0].toPorts[0].rules: layer 7 rules are not enforced here: all traffic of port 80/TCP, 8000-8080 is allowed, whatever this field would refuse',
        allowsMore: true,
      },
    ]);
  });

  it('are warned of each by itself', () => {
    const fields = 'rules: {dns: []}, serverNames: [a], listener: {}, terminatingTLS: {}, originatingTLS: {}';
    const { warnings } = parsePolicies('p.yaml', document(`  egress: [{toPorts: [{${fields}}]}]`), options);
    expect(warnings.map(({ message }) => message.split(':')[0])).toEqual(
      ['rules', 'terminatingTLS', 'originatingTLS', 'serverNames', 'listener'].map(
        (f) => `spec.egress[0].toPorts[0].${f}`,
      ),
    );
  });

  it('are no rules when they name no protocol', () => {
    const text = document('  egress: [{toPorts: [{ports: [{port: "1", protocol: TCP}], rules: {}}]}]');
    expect(ruleOf(text).ports).toEqual([{ protocol: 6, first: 1, last: 1 }]);
    expect(parsePolicies('p.yaml', text, options).warnings).toEqual([]);
  });

  it('do not take names, entities and misspelt fields with them', () => {
    const text = document(
      '  egress: [{toFQDNs: [{matchName: a}]}, {toPorts: [{rule: {}}]}, {toPorts: [{rules: {htp: []}}]}]',
    );
    expect(refused(text, options)).toEqual([
      'p.yaml:7: spec.egress[1].toPorts[0].rule: unknown field; did you mean rules?',
      'p.yaml:7: spec.egress[2].toPorts[0].rules.htp: unknown field; did you mean http?',
      'p.yaml:7: spec.egress[0].toFQDNs: names are not resolved here; write the addresses they stand for as toCIDR',
    ]);
  });
});

describe('what is wrong', () => {
  it('is told with a suggestion for a misspelt field', () => {
    expect(refused(document('  ingres: [{}]\n  egress: [{}]'))).toEqual([
      'p.yaml:7: spec.ingres: unknown field; did you mean ingress?',
    ]);
    expect(egress('fromEndpoints: [{}]')[0]).toContain('p.yaml:8: spec.egress[0].fromEndpoints: unknown field');
  });

  it.each([
    ['an unknown mode', ingress('authentication: {mode: require}'), 'use disabled or required or test-always-fail'],
    ['no mode', ingress('authentication: {}'), 'spec.ingress[0].authentication.mode: missing'],
    ['null instead of a list', ingress('fromEndpoints:'), 'fromEndpoints: must be a list, not null'],
    ['null instead of a rule', ingress(''), 'spec.ingress[0]: must be a map, not null'],
    ['a bad label key', ingress('fromEndpoints: [{matchLabels: {"a b": c}}]'), 'not a label key'],
    ['a bad label value', ingress('fromEndpoints: [{matchLabels: {a: "b c"}}]'), 'not a label value'],
    [
      'an address as a label',
      ingress('fromEndpoints: [{matchLabels: {"cidr:10.0.0.0/8": ""}}]'),
      'write fromCIDR or toCIDR',
    ],
    [
      'another label source',
      ingress('fromEndpoints: [{matchLabels: {"container:a": b}}]'),
      'this label source is not known',
    ],
    ['an unknown entity', ingress('fromEntities: [wrld]'), 'fromEntities[0]: cannot be "wrld"; use all, cluster, host'],
    [
      'an entity with labels',
      ingress('fromEndpoints: [{matchLabels: {"reserved:host": "", a: b}}]'),
      'an entity has no other labels',
    ],
    ['an entity with a value', ingress('fromEndpoints: [{matchLabels: {"reserved:host": a}}]'), 'with an empty value'],
    [
      'an entity left out',
      ingress('fromEndpoints: [{matchExpressions: [{key: "reserved:host", operator: DoesNotExist}]}]'),
      'an entity is named or not',
    ],
    [
      'an entity to apply to',
      refused(
        document('  ingress: [{}]', 'CiliumNetworkPolicy', 'endpointSelector: {matchLabels: {"reserved:host": ""}}'),
      ),
      'remove the reserved label',
    ],
    [
      'In without values',
      ingress('fromEndpoints: [{matchExpressions: [{key: a, operator: In}]}]'),
      'values: In needs values',
    ],
    [
      'Exists with values',
      ingress('fromEndpoints: [{matchExpressions: [{key: a, operator: Exists, values: [b]}]}]'),
      'values: Exists has no values',
    ],
    [
      'an unknown operator',
      ingress('fromEndpoints: [{matchExpressions: [{key: a, operator: Equals}]}]'),
      'use In or NotIn or Exists or DoesNotExist',
    ],
    ['no address', ingress('fromCIDR: [example.org]'), 'fromCIDR[0]: not a CIDR'],
    ['a prefix too long', ingress('fromCIDR: [10.0.0.0/33]'), 'fromCIDR[0]: not a CIDR'],
    ['an address alone in a set', ingress('fromCIDRSet: [{cidr: 10.0.0.1}]'), 'fromCIDRSet[0].cidr: not a CIDR'],
    ['no CIDR in a set', ingress('fromCIDRSet: [{}]'), 'fromCIDRSet[0].cidr: missing'],
    [
      'an exception outside',
      ingress('fromCIDRSet: [{cidr: 10.0.0.0/8, except: [11.0.0.0/9]}]'),
      'except[0]: not within 10.0.0.0/8',
    ],
    [
      'an exception around',
      ingress('fromCIDRSet: [{cidr: 10.0.0.0/8, except: [10.0.0.0/7]}]'),
      'except[0]: not within 10.0.0.0/8',
    ],
    [
      'an exception of the other family',
      ingress('fromCIDRSet: [{cidr: 0.0.0.0/0, except: ["::/0"]}]'),
      'except[0]: not within',
    ],
    [
      'an ICMP type too high',
      ingress('icmps: [{fields: [{type: 256}]}]'),
      'type: not a type of ICMP; use a number from 0 to 255',
    ],
    ['a fraction of a type', ingress('icmps: [{fields: [{type: 8.5}]}]'), 'type: not a type of ICMP'],
    ['a type of the other family', ingress('icmps: [{fields: [{type: PacketTooBig}]}]'), 'type: not a type of ICMP;'],
    ['no ICMP type', ingress('icmps: [{fields: [{family: IPv6}]}]'), 'icmps[0].fields[0].type'],
    [
      'a third family',
      ingress('icmps: [{fields: [{family: ipv4, type: 8}]}]'),
      'family: cannot be "ipv4"; use IPv4 or IPv6',
    ],
  ])('is told for %s', (_name, problems, message) => {
    expect(problems.join('\n')).toContain(message);
  });

  it.each([
    ['a number without quotes', '{port: 80}', 'must be a string, not 80; put it in quotes'],
    ['a number too high', '{port: "65536"}', 'not a port; write a number from 0'],
    ['a negative number', '{port: "-1"}', 'not a port'],
    ['a leading zero', '{port: "010"}', 'a leading zero makes the number octal'],
    ['a name too long', '{port: a-name-of-15-le}, {port: a-name-of-16-let}', 'ports[1].port: not a port'],
    ['hyphens in a row', '{port: a--b}', 'not a port'],
    ['ICMP as a protocol', '{port: "0", protocol: ICMP}', 'use icmps instead of toPorts'],
    ['another protocol', '{port: "0", protocol: VRRP}', 'cannot be "VRRP"; use TCP, UDP, SCTP, ANY'],
    ['a protocol in lower case', '{port: "1", protocol: tcp}', 'cannot be "tcp"'],
    ['a range that ends before it begins', '{port: "9", endPort: 8}', 'endPort: less than port 9; exchange the two'],
    ['a range of a name', '{port: http, endPort: 90}', 'endPort: a range begins with a number'],
    ['a range from every port', '{port: "0", endPort: 90}', 'endPort: port "0" is every port'],
    ['an end too high', '{port: "1", endPort: 65536}', 'endPort: must be at most 65535'],
  ])('is told for %s where a port should be', (_name, text, message) => {
    expect(port(text)).toContain(message);
    expect(port(text).split('\n')).toHaveLength(1);
  });

  it('is told for more than 40 ports or types in an item', () => {
    const many = (item: string) => Array.from({ length: 41 }, () => item).join(', ');
    expect(ingress(`toPorts: [{ports: [${many('{port: "1"}')}]}]`)[0]).toContain('ports: must have at most 40 items');
    expect(ingress(`icmps: [{fields: [${many('{type: 8}')}]}]`)[0]).toContain('fields: must have at most 40 items');
  });

  it('is told of name, namespace, kind and API version', () => {
    const text = document('  ingress: [{}]');
    expect(refused(head('CiliumNetworkPolicy'))[0]).toContain('spec: missing; write spec or specs');
    expect(refused(`${head('CiliumNetworkPolicy')}specs: []\n`)[0]).toContain('spec: missing; write spec or specs');
    expect(refused(text.replace('  name: p', '  labels: {}'))[0]).toContain('metadata.name: missing');
    expect(refused(text.replace('  name: p', '  generateName: p'))[0]).toContain('metadata');
    expect(refused(text.replace('name: p', 'name: P'))[0]).toContain('metadata.name: not a Kubernetes name');
    expect(refused(text.replace('/v2', '/v3'))[0]).toContain('p.yaml:1: apiVersion: cannot be');
    expect(refused(text.replace('kind: Cilium', 'kind: '))[0]).toContain(
      'p.yaml:1: apiVersion: cannot be "cilium.io/v2"',
    );
    expect(refused(text.replace('CiliumNetworkPolicy', 'Deployment'))).toEqual([
      'p.yaml:2: kind: cannot be "Deployment"; use CiliumNetworkPolicy, CiliumClusterwideNetworkPolicy, NetworkPolicy, AuthenticationPolicy, ClusterAuthenticationPolicy',
    ]);
    expect(refused('a: b\n')[0]).toContain('p.yaml:1: kind: missing; use CiliumNetworkPolicy');
    expect(refused('- a\n')[0]).toContain('p.yaml:1: not a policy, but a list or a single value');
    const placed = document('  ingress: [{}]', 'CiliumClusterwideNetworkPolicy').replace(
      'name: p',
      'name: p\n  namespace: x',
    );
    expect(refused(placed)).toEqual(['p.yaml:5: metadata.namespace: a clusterwide policy has no namespace; remove it']);
  });

  it('is told all at once, of every document of a file', () => {
    const bad = document(`  nodeSelector: {}
  ingress:
    - fromEndpoints: [{}]
      fromEntities: [world, wrld]
      toPorts: [{ports: [{port: 80}, {port: "9", endPort: 8, protocol: X}]}]
      icmps: [{fields: [{type: a}]}]
      authentication: {mode: no}
  egress: [{toFQDNs: []}]`);
    expect(refused(bad)).toHaveLength(10);
    expect(refused(`${bad}---\n${bad}`)).toHaveLength(20);
  });
});

describe('no input', () => {
  const word = fc.constantFrom<unknown>(
    null,
    true,
    3,
    '80',
    'TCP',
    'required',
    'world',
    '10.0.0.0/8',
    'In',
    '',
    '$',
    [],
    {},
  );
  const field = fc.constantFrom(
    ...[
      'fromEndpoints',
      'toEndpoints',
      'fromRequires',
      'fromCIDR',
      'toCIDRSet',
      'cidr',
      'except',
      'fromEntities',
      'toPorts',
    ],
    ...[
      'ports',
      'port',
      'endPort',
      'protocol',
      'rules',
      'http',
      'icmps',
      'fields',
      'type',
      'family',
      'matchLabels',
      'key',
    ],
    ...['matchExpressions', 'operator', 'values', 'authentication', 'mode', 'from', 'to', 'ipBlock', 'podSelector'],
    ...[
      'namespaceSelector',
      'policyTypes',
      'ingress',
      'egress',
      'ingressDeny',
      'enableDefaultDeny',
      'endpointSelector',
    ],
    ...[
      'nodeSelector',
      'spec',
      'specs',
      'metadata',
      'name',
      'annotations',
      '__proto__',
      'constructor',
      'reserved:host',
      'x',
    ],
  );
  const tree = fc.letrec((tie) => ({
    any: fc.oneof(
      { maxDepth: 5, withCrossShrink: true },
      word,
      fc.array(tie('any'), { maxLength: 3 }),
      fc.dictionary(field, tie('any'), { maxKeys: 5 }),
    ),
  })).any;
  const kinds: Kind[] = [
    'CiliumNetworkPolicy',
    'CiliumClusterwideNetworkPolicy',
    'NetworkPolicy',
    'AuthenticationPolicy',
    'ClusterAuthenticationPolicy',
  ];
  const check = (text: string) => {
    for (const l7 of ['refuse', 'ignore-with-warning'] as const) {
      try {
        parsePolicies('p.yaml', text, { l7 });
      } catch (thrown) {
        expect(thrown).toBeInstanceOf(CountersignError);
        expect((thrown as CountersignError).message).toMatch(/^p\.yaml:\d+: .+;/m);
      }
    }
  };

  it('that is a policy of any shape breaks the reader: it is read, or refused with its place and a fix', () => {
    fc.assert(
      fc.property(fc.constantFrom(...kinds), tree, fc.dictionary(field, tree), (kind, spec, more) => {
        check(`${head(kind)}spec: ${JSON.stringify(spec)}\n`);
        check(JSON.stringify({ ...more, apiVersion: 'cilium.io/v2', kind }));
      }),
      { numRuns: 500 },
    );
  });

  it('whose parts were exchanged breaks the reader', () => {
    fc.assert(
      fc.property(tree, tree, tree, (selector, ingressRules, egressRule) => {
        check(
          document(
            `  ingress: ${JSON.stringify(ingressRules)}\n  egress: [{}, ${JSON.stringify(egressRule)}]`,
            'CiliumNetworkPolicy',
            `endpointSelector: ${JSON.stringify(selector)}`,
          ),
        );
      }),
      { numRuns: 500 },
    );
  });

  it('that is any text breaks the reader', () => {
    fc.assert(
      fc.property(fc.string({ unit: 'binary', maxLength: 60 }), (text) => check(text)),
      { numRuns: 500 },
    );
  });
});
