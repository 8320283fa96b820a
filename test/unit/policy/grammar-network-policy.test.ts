import { describe, expect, it } from 'vitest';
import { parsePolicies } from '../../../src/policy/grammar/parse.ts';
import { cidr, document, has, inNamespace, refused, ruleOf, specOf, workloads } from './support/policies.ts';

const policy = (yaml: string, subject = 'podSelector: {}') => document(yaml, 'NetworkPolicy', subject);
const from = (peers: string) => ruleOf(policy(`  ingress: [{from: [${peers}]}]`)).peers;
const ports = (list: string) => ruleOf(policy(`  ingress: [{ports: [${list}]}]`)).ports;

describe('a NetworkPolicy', () => {
  it('selects pods of its namespace, and has what is to be said of observing in an annotation', () => {
    const text = policy(
      '  ingress: [{}]',
      'podSelector: {matchLabels: {app: a}, matchExpressions: [{key: b, operator: Exists}]}',
    );
    const placed = text.replace(
      '  name: p\n',
      '  name: p\n  namespace: x\n  annotations: {countersign.dev/enforcement: observe}\n',
    );
    const [read] = parsePolicies('p.yaml', placed).policies;
    expect(read).toMatchObject({ namespace: 'x', kind: 'NetworkPolicy', enforcement: 'observe' });
    expect(read?.specs[0]?.subject).toEqual(
      workloads(inNamespace('x'), has('app', 'a'), { key: 'b', operator: 'Exists', values: [] }),
    );
    expect(specOf(policy('  ingress: [{}]', 'policyTypes: [Ingress]')).subject).toEqual(
      workloads(inNamespace('default')),
    );
  });

  it('makes default deny of what its policyTypes say, and without them of ingress and of egress rules', () => {
    const deny = (yaml: string) => specOf(policy(yaml)).defaultDeny;
    expect(deny('')).toEqual({ ingress: true, egress: false });
    expect(deny('  ingress: []\n  egress: []')).toEqual({ ingress: true, egress: false });
    expect(deny('  policyTypes: []')).toEqual({ ingress: true, egress: false });
    expect(deny('  egress: [{}]')).toEqual({ ingress: true, egress: true });
    expect(deny('  policyTypes: [Egress]')).toEqual({ ingress: false, egress: true });
    expect(deny('  policyTypes: [Ingress, Egress]\n  ingress: [{}]')).toEqual({ ingress: true, egress: true });
    expect(specOf(policy('  policyTypes: [Egress]')).rules).toEqual([]);
  });

  it('has no rules in a direction its policyTypes leave out, and says so', () => {
    const { policies, warnings } = parsePolicies('p.yaml', policy('  policyTypes: [Ingress]\n  egress: [{}]'));
    expect(policies[0]?.specs[0]?.rules).toEqual([]);
    expect(warnings).toEqual([
      {
        file: 'p.yaml',
        line: 8,
        message: 'spec.egress: has no effect, because policyTypes has no Egress; add it, or remove the rules',
      },
    ]);
  });

  it('restricts neither peers nor ports with lists that are empty or missing', () => {
    for (const rule of ['{}', '{from: [], ports: []}']) {
      expect(ruleOf(policy(`  ingress: [${rule}]`))).toEqual({ peers: 'any', ports: 'any' });
    }
    expect(ruleOf(policy('  egress: [{to: []}]'))).toEqual({ peers: 'any', ports: 'any' });
  });

  it('names pods of its own namespace, of others, of all, and addresses', () => {
    expect(from('{podSelector: {}}, {podSelector: {matchLabels: {app: a}}}')).toEqual([
      workloads(inNamespace('default')),
      workloads(inNamespace('default'), has('app', 'a')),
    ]);
    expect(from('{namespaceSelector: {}}, {namespaceSelector: {}, podSelector: {matchLabels: {app: a}}}')).toEqual([
      workloads(),
      workloads(has('app', 'a')),
    ]);
    const team = '{matchLabels: {team: a}, matchExpressions: [{key: example.org/b, operator: NotIn, values: [c]}]}';
    expect(from(`{namespaceSelector: ${team}}`)).toEqual([
      workloads(has('io.cilium.k8s.namespace.labels.team', 'a'), {
        key: 'io.cilium.k8s.namespace.labels.example.org/b',
        operator: 'NotIn',
        values: ['c'],
      }),
    ]);
    const named = '{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: x}}}';
    expect(from(named)).toEqual([workloads(inNamespace('x'))]);
    expect(from('{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}, {ipBlock: {cidr: "::/0"}}')).toEqual([
      cidr('10.0.0.0', 8, ['10.1.0.0', 16]),
      cidr('::', 0),
    ]);
  });

  it('takes a label of a pod for what it is, whatever it looks like', () => {
    expect(from('{podSelector: {matchLabels: {reserved.host: ""}}}')).toEqual([
      workloads(inNamespace('default'), has('reserved.host', '')),
    ]);
  });

  it('means TCP where it names no protocol, and every port where it names none', () => {
    expect(ports('{port: 80}, {protocol: UDP}, {}, {port: 1, endPort: 9, protocol: SCTP}, {port: http}')).toEqual([
      { protocol: 6, first: 80, last: 80 },
      { protocol: 17, ports: 'all' },
      { protocol: 6, ports: 'all' },
      { protocol: 132, first: 1, last: 9 },
      { protocols: [6], name: 'http' },
    ]);
  });

  it.each([
    ['a peer without a selector', '  ingress: [{from: [{}]}]', 'from[0]: names no peer'],
    [
      'an address beside a selector',
      '  ingress: [{from: [{ipBlock: {cidr: 1.0.0.0/8}, podSelector: {}}]}]',
      'a peer for each',
    ],
    [
      'an exception as large as its block',
      '  ingress: [{from: [{ipBlock: {cidr: 1.0.0.0/8, except: [1.0.0.0/8]}}]}]',
      'except[0]: must be smaller',
    ],
    ['an exception elsewhere', '  ingress: [{from: [{ipBlock: {cidr: 1.0.0.0/8, except: [2.0.0.0/9]}}]}]', 'within it'],
    ['a number in quotes', '  ingress: [{ports: [{port: "80"}]}]', 'port: a number in quotes is read as a name'],
    ['a name in capitals', '  ingress: [{ports: [{port: HTTP}]}]', 'port: not the name of a port'],
    ['port 0', '  ingress: [{ports: [{port: 0}]}]', 'ports[0].port'],
    ['a range of a name', '  ingress: [{ports: [{port: http, endPort: 9}]}]', 'endPort: a range begins with a number'],
    ['a range without a port', '  ingress: [{ports: [{endPort: 9}]}]', 'endPort: a range begins with a number'],
    [
      'a range that ends before it begins',
      '  ingress: [{ports: [{port: 9, endPort: 8}]}]',
      'endPort: less than port 9',
    ],
    [
      'a protocol that is none of its',
      '  ingress: [{ports: [{protocol: ICMP}]}]',
      'cannot be "ICMP"; use TCP or UDP or SCTP',
    ],
    ['a third policy type', '  policyTypes: [Ingress, Egress, Ingress]', 'policyTypes: must have at most 2 items'],
    ['a label with a source', '  ingress: [{from: [{podSelector: {matchLabels: {"k8s:a": b}}}]}]', 'not a label key'],
    ['a field of Cilium', '  ingress: [{fromEndpoints: [{}]}]', 'spec.ingress[0].fromEndpoints: unknown field'],
    ['null for a list', '  ingress: [{from: }]', 'from: must be a list, not null'],
  ])('is refused for %s', (_name, yaml, message) => {
    expect(refused(policy(yaml)).join('\n')).toContain(message);
  });
});
