import { describe, expect, it } from 'vitest';
import { parsePolicies, refuseDuplicates } from '../../../src/policy/grammar/parse.ts';
import {
  cidr,
  document,
  entity,
  has,
  head,
  inNamespace,
  problemsOf,
  refused,
  ruleOf,
  specOf,
  workloads,
} from './support/policies.ts';

const ingress = (rule: string) => ruleOf(document(`  ingress: [${rule}]`));
const egress = (rule: string) => ruleOf(document(`  egress: [${rule}]`));
const clusterwide = (rule: string) => ruleOf(document(`  ingress: [${rule}]`, 'CiliumClusterwideNetworkPolicy'));

describe('a policy in the Cilium grammar', () => {
  it('is read with its selectors, ports, mode, file, lines and paths', () => {
    const text = `# a comment
${head('CiliumNetworkPolicy')}  namespace: prod
  labels: {team: a}
spec:
  description: d
  endpointSelector:
    matchLabels:
      k8s:app: backend
  ingress:
    - fromEndpoints:
        - matchLabels: {"any:app": frontend}
      toPorts:
        - ports:
            - {port: "80", protocol: TCP}
            - {port: "53"}
      authentication: {mode: required}
`;
    expect(parsePolicies('p.yaml', text)).toEqual({
      policies: [
        {
          file: 'p.yaml',
          line: 2,
          kind: 'CiliumNetworkPolicy',
          name: 'p',
          namespace: 'prod',
          enforcement: 'enforce',
          specs: [
            {
              line: 8,
              description: 'd',
              subject: workloads(inNamespace('prod'), has('app', 'backend')),
              rules: [
                {
                  file: 'p.yaml',
                  line: 14,
                  path: 'spec.ingress[0]',
                  direction: 'ingress',
                  action: 'allow',
                  peers: [workloads(inNamespace('prod'), has('app', 'frontend'))],
                  ports: [
                    { protocol: 6, first: 80, last: 80 },
                    { protocol: 6, first: 53, last: 53 },
                    { protocol: 17, first: 53, last: 53 },
                    { protocol: 132, first: 53, last: 53 },
                  ],
                  mode: 'required',
                },
              ],
              defaultDeny: { ingress: true, egress: false },
              requires: { ingress: [], egress: [] },
            },
          ],
        },
      ],
      warnings: [],
    });
  });

  it('may hold several specs, and a file several documents', () => {
    const two = `${head('CiliumNetworkPolicy')}specs:\n  - endpointSelector: {}\n    ingress: [{}]\n  - endpointSelector: {}\n    egress: [{}]\n`;
    const { policies } = parsePolicies('p.yaml', `${two}---\n${two.replace('name: p', 'name: q')}`);
    expect(policies.map((p) => [p.name, p.specs.length, p.line])).toEqual([
      ['p', 2, 1],
      ['q', 2, 11],
    ]);
    expect(policies[0]?.specs[1]?.rules[0]?.path).toBe('specs[1].egress[0]');
  });

  it('is read with what an API server adds to it', () => {
    const added = document('  ingress: [{}]\n  labels: [{key: a, value: b}]').replace(
      '  name: p\n',
      '  name: p\n  uid: x\n  resourceVersion: "7"\n  generation: 2\n  creationTimestamp: null\n  managedFields: []\n',
    );
    expect(parsePolicies('p.yaml', `${added}status: {conditions: []}\n`).policies).toHaveLength(1);
  });

  it('is refused when another of its name is there', () => {
    const { policies } = parsePolicies('p.yaml', `${document('  ingress: [{}]')}---\n${document('  ingress: [{}]')}`);
    expect(problemsOf(() => refuseDuplicates(policies))).toEqual([
      'p.yaml:9: metadata.name: p stands in p.yaml:1 already; rename one of them',
    ]);
  });
});

describe('empty and missing lists', () => {
  it('of peers: an empty list is nobody, a missing one everybody the ports are for', () => {
    for (const field of ['fromEndpoints', 'fromCIDR', 'fromCIDRSet', 'fromEntities']) {
      expect(ingress(`{${field}: []}`).peers).toEqual([]);
      expect(ingress(`{${field}: [], toPorts: [{ports: [{port: "1"}]}]}`).peers).toEqual([]);
    }
    expect(ingress('{fromEndpoints: [], fromEntities: [world]}').peers).toEqual([]);
    expect(ingress('{}')).toEqual({ peers: [], ports: 'any' });
    expect(ingress('{toPorts: []}')).toEqual({ peers: [], ports: 'any' });
    expect(ingress('{toPorts: [{ports: [{port: "0", protocol: UDP}]}]}')).toEqual({
      peers: 'any',
      ports: [{ protocol: 17, ports: 'all' }],
    });
    expect(ingress('{icmps: [{fields: [{type: 8}]}]}').peers).toBe('any');
  });

  it('of ports: no item is every port, an item without ports matches none', () => {
    expect(ingress('{fromEntities: [all], toPorts: []}').ports).toBe('any');
    expect(ingress('{fromEntities: [all], icmps: []}').ports).toBe('any');
    expect(ingress('{fromEntities: [all], toPorts: [{}]}').ports).toEqual([]);
    expect(ingress('{fromEntities: [all], toPorts: [{ports: []}]}').ports).toEqual([]);
    expect(ingress('{fromEntities: [all], icmps: [{}]}').ports).toEqual([]);
  });

  it('of rules: default deny begins with a first item, of allow or deny, unless the policy says otherwise', () => {
    const deny = (yaml: string) => specOf(document(yaml)).defaultDeny;
    expect(deny('  ingress: []\n  egress: [{}]')).toEqual({ ingress: false, egress: true });
    expect(deny('  ingressDeny: [{fromEntities: [world]}]')).toEqual({ ingress: true, egress: false });
    expect(deny('  egressDeny: [{toEntities: [world]}]')).toEqual({ ingress: false, egress: true });
    expect(deny('  ingress: [{}]\n  enableDefaultDeny: {ingress: false, egress: true}')).toEqual({
      ingress: false,
      egress: true,
    });
    expect(refused(document('  ingress: []'))[0]).toContain('p.yaml:5: spec: has no rule; write `ingress: [{}]`');
    expect(refused(document('  enableDefaultDeny: {ingress: true}'))[0]).toContain('spec: has no rule');
  });
});

describe('whom a rule names', () => {
  it('are workloads of its own namespace, unless the selector speaks of namespaces', () => {
    const own = inNamespace('default');
    expect(ingress('{fromEndpoints: [{}]}').peers).toEqual([workloads(own)]);
    expect(ingress('{fromEndpoints: [{matchLabels: {"k8s:io.kubernetes.pod.namespace": x}}]}').peers).toEqual([
      workloads(inNamespace('x')),
    ]);
    const anywhere = '{key: io.kubernetes.pod.namespace, operator: Exists}';
    expect(ingress(`{fromEndpoints: [{matchExpressions: [${anywhere}]}]}`).peers).toEqual([
      workloads({ key: 'io.kubernetes.pod.namespace', operator: 'Exists', values: [] }),
    ]);
    const labelled = '"k8s:io.cilium.k8s.namespace.labels.team": a';
    expect(ingress(`{fromEndpoints: [{matchLabels: {${labelled}}}]}`).peers).toEqual([
      workloads(has('io.cilium.k8s.namespace.labels.team', 'a')),
    ]);
    const named = 'io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name: x';
    expect(ingress(`{fromEndpoints: [{matchLabels: {${named}}}]}`).peers).toEqual([workloads(inNamespace('x'))]);
  });

  it('are workloads of every namespace in a clusterwide policy', () => {
    expect(clusterwide('{fromEndpoints: [{}]}').peers).toEqual([workloads()]);
    const text = document('  ingress: [{}]', 'CiliumClusterwideNetworkPolicy', 'endpointSelector: {}');
    expect(parsePolicies('p.yaml', text).policies[0]).toMatchObject({ namespace: undefined });
    expect(specOf(text).subject).toEqual(workloads());
  });

  it('are found by labels and expressions, all of which must hold', () => {
    const selector = `{matchLabels: {app: a, io.cilium.k8s.policy.serviceaccount: s}, matchExpressions: [
      {key: any:tier, operator: In, values: [x, y, x]}, {key: b, operator: NotIn, values: [""]},
      {key: c, operator: Exists}, {key: "k8s:example.org/d", operator: DoesNotExist, values: []}]}`;
    expect(clusterwide(`{fromEndpoints: [${selector}]}`).peers).toEqual([
      workloads(
        has('app', 'a'),
        has('io.cilium.k8s.policy.serviceaccount', 's'),
        has('tier', 'x', 'y'),
        { key: 'b', operator: 'NotIn', values: [''] },
        { key: 'c', operator: 'Exists', values: [] },
        { key: 'example.org/d', operator: 'DoesNotExist', values: [] },
      ),
    ]);
  });

  it('are entities, by their names or by a reserved label', () => {
    const all = ['all', 'cluster', 'host', 'none', 'remote-node', 'world', 'world-ipv4', 'world-ipv6'];
    expect(ingress(`{fromEntities: [${all.join(', ')}]}`).peers).toEqual(all.map(entity));
    for (const label of ['{"reserved:host": ""}', '{reserved.host: ""}', '{$host: ""}']) {
      expect(ingress(`{fromEndpoints: [{matchLabels: ${label}}]}`).peers).toEqual([entity('host')]);
    }
    expect(egress('{toEndpoints: [{matchExpressions: [{key: "reserved:world", operator: Exists}]}]}').peers).toEqual([
      entity('world'),
    ]);
  });

  it('are addresses, of which a prefix may leave some out', () => {
    expect(
      egress('{toCIDR: [10.0.0.0/8, 10.1.2.3, "2001:db8::/32", "::1", 192.168.1.77/24, 0.0.0.0/0]}').peers,
    ).toEqual([
      cidr('10.0.0.0', 8),
      cidr('10.1.2.3', 32),
      cidr('2001:db8::', 32),
      cidr('::1', 128),
      cidr('192.168.1.0', 24),
      cidr('0.0.0.0', 0),
    ]);
    expect(egress('{toCIDRSet: [{cidr: 10.0.0.0/8, except: [10.96.0.0/12, 10.0.0.0/8]}]}').peers).toEqual([
      cidr('10.0.0.0', 8, ['10.96.0.0', 12], ['10.0.0.0', 8]),
    ]);
  });

  it('are narrowed by requirements, which allow nothing themselves', () => {
    const text = document('  ingress: [{fromRequires: [{matchLabels: {env: prod}}, {matchLabels: {team: a}}]}]');
    expect(specOf(text).requires).toEqual({
      ingress: [inNamespace('default'), has('env', 'prod'), inNamespace('default'), has('team', 'a')],
      egress: [],
    });
    expect(ruleOf(text)).toEqual({ peers: [], ports: 'any' });
  });

  it('cannot be told in two ways in one rule', () => {
    const cannot = (rule: string) => refused(document(`  egress: [${rule}]`));
    expect(cannot('{toEndpoints: [{}], toEntities: [world], toCIDR: [10.0.0.0/8]}')).toEqual([
      'p.yaml:7: spec.egress[0].toCIDR: cannot stand in one rule with toEndpoints; write a rule for each',
      'p.yaml:7: spec.egress[0].toEntities: cannot stand in one rule with toEndpoints; write a rule for each',
    ]);
    expect(cannot('{toPorts: [{}], icmps: [{}]}')[0]).toContain('spec.egress[0].icmps: cannot stand in one rule');
    expect(cannot('{toRequires: [{}], toPorts: [{}]}')[0]).toContain('toRequires: narrows toEndpoints only');
  });
});

describe('what a rule is for', () => {
  const ports = (port: string) => egress(`{toPorts: [{ports: [${port}]}]}`).ports;

  it('are ports, ranges, and names of ports', () => {
    expect(ports('{port: "0", protocol: TCP}, {port: "8000", endPort: 8999, protocol: TCP}')).toEqual([
      { protocol: 6, ports: 'all' },
      { protocol: 6, first: 8000, last: 8999 },
    ]);
    expect(ports('{port: "80", endPort: 0, protocol: TCP}, {port: "80", endPort: 80, protocol: SCTP}')).toEqual([
      { protocol: 6, first: 80, last: 80 },
      { protocol: 132, first: 80, last: 80 },
    ]);
    expect(ports('{port: HTTP-alt, protocol: TCP}, {port: dns}, {port: "0x50", protocol: UDP}')).toEqual([
      { protocols: [6], name: 'http-alt' },
      { protocols: [6, 17, 132], name: 'dns' },
      { protocols: [17], name: '0x50' },
    ]);
    expect(ports('{port: "0"}')).toEqual([6, 17, 132].map((protocol) => ({ protocol, ports: 'all' })));
  });

  it('are message types of ICMP and ICMPv6, by number or name', () => {
    const icmps = '{fields: [{type: 8}, {type: "0", family: IPv4}, {type: DestinationUnreachable}]}';
    const icmps6 = '{fields: [{type: EchoRequest, family: IPv6}, {type: 255, family: IPv6}]}';
    expect(ingress(`{icmps: [${icmps}, ${icmps6}]}`).ports).toEqual([
      { protocol: 1, first: 8, last: 8 },
      { protocol: 1, first: 0, last: 0 },
      { protocol: 1, first: 3, last: 3 },
      { protocol: 58, first: 128, last: 128 },
      { protocol: 58, first: 255, last: 255 },
    ]);
  });

  it('is denied by the deny lists, after the rules that allow', () => {
    const text = document(`  egressDeny: [{toCIDR: [10.0.0.0/8], toPorts: [{ports: [{port: "25", protocol: TCP}]}]}]
  ingressDeny: [{fromEntities: [world]}]
  egress: [{toEntities: [all]}]`);
    expect(
      specOf(text).rules.map(({ path, line, direction, action, mode }) => [path, line, direction, action, mode]),
    ).toEqual([
      ['spec.egress[0]', 9, 'egress', 'allow', undefined],
      ['spec.ingressDeny[0]', 8, 'ingress', 'deny', undefined],
      ['spec.egressDeny[0]', 7, 'egress', 'deny', undefined],
    ]);
  });

  it('is warned of when a denial can match nothing', () => {
    const { warnings } = parsePolicies('p.yaml', document('  ingressDeny: [{}, {fromEntities: [all], toPorts: [{}]}]'));
    expect(warnings.map(({ line, message }) => `${line}: ${message}`)).toEqual([
      '7: spec.ingressDeny[0]: denies nothing, because it names no peer or no port; name them, or remove the rule',
      '7: spec.ingressDeny[1]: denies nothing, because it names no peer or no port; name them, or remove the rule',
    ]);
  });
});

describe('whom a policy applies to', () => {
  it('are workloads of its own namespace only', () => {
    const text = document('  ingress: [{}]', 'CiliumNetworkPolicy', 'endpointSelector: {matchLabels: {app: a}}');
    expect(specOf(text).subject).toEqual(workloads(inNamespace('default'), has('app', 'a')));
    const own = 'endpointSelector: {matchLabels: {"any:io.kubernetes.pod.namespace": default}}';
    expect(specOf(document('  ingress: [{}]', 'CiliumNetworkPolicy', own)).subject).toEqual(
      workloads(inNamespace('default')),
    );
    const other = own.replace('default', 'other');
    expect(refused(document('  ingress: [{}]', 'CiliumNetworkPolicy', other))).toEqual([
      'p.yaml:6: spec.endpointSelector.matchLabels["any:io.kubernetes.pod.namespace"]: the policy stands in namespace default and selects only there; move it, or make it clusterwide',
    ]);
  });

  it('are nodes in a clusterwide policy', () => {
    const selector = 'nodeSelector: {matchLabels: {role: worker}}';
    const text = document('  ingress: [{}]', 'CiliumClusterwideNetworkPolicy', selector);
    expect(specOf(text).subject).toEqual({ kind: 'nodes', selector: { requirements: [has('role', 'worker')] } });
    expect(refused(document('  ingress: [{}]', 'CiliumNetworkPolicy', selector))[0]).toContain(
      'p.yaml:6: spec.nodeSelector: nodes are of no namespace; move the rules to a clusterwide policy',
    );
    const both = `${selector}\n  endpointSelector: {}`;
    expect(refused(document('  ingress: [{}]', 'CiliumClusterwideNetworkPolicy', both))).toEqual([
      'p.yaml:6: spec.nodeSelector: stands beside endpointSelector; write a spec for each',
    ]);
    expect(refused(`${head('CiliumNetworkPolicy')}spec:\n  ingress: [{}]\n`)[0]).toContain(
      'spec.endpointSelector: missing; set it to a map',
    );
  });
});

describe('whether a policy only observes', () => {
  it('is said by an annotation, or in the spec of our own kinds', () => {
    const annotated = (value: string) =>
      document('  ingress: [{}]').replace(
        '  name: p\n',
        `  name: p\n  annotations: {countersign.dev/enforcement: ${value}}\n`,
      );
    const enforcementOf = (text: string) => parsePolicies('p.yaml', text).policies[0]?.enforcement;
    expect(enforcementOf(annotated('observe'))).toBe('observe');
    expect(enforcementOf(annotated('enforce'))).toBe('enforce');
    const own = document('  ingress: [{}]\n  enforcement: observe', 'AuthenticationPolicy');
    expect(enforcementOf(own)).toBe('observe');
    expect(enforcementOf(own.replace('  enforcement: observe\n', ''))).toBe('enforce');
    expect(enforcementOf(document('  ingress: [{}]', 'ClusterAuthenticationPolicy'))).toBe('enforce');
  });

  it('cannot be misspelt, written in the wrong place, or differ from spec to spec', () => {
    const annotated = (text: string, annotation: string) =>
      refused(text.replace('  name: p\n', `  name: p\n  annotations: {${annotation}}\n`))[0];
    const text = document('  ingress: [{}]');
    expect(annotated(text, 'countersign.dev/enforcment: observe')).toContain(
      'unknown annotation; use countersign.dev/enf',
    );
    expect(annotated(text, 'countersign.dev/enforcement: true')).toContain('must be a string');
    expect(annotated(text, 'countersign.dev/enforcement: "off"')).toContain('must be enforce or observe');
    expect(
      annotated(document('  ingress: [{}]', 'AuthenticationPolicy'), 'countersign.dev/enforcement: observe'),
    ).toContain('of no effect on this kind; write spec.enforcement');
    expect(refused(document('  ingress: [{}]\n  enforcement: observe'))[0]).toContain(
      'p.yaml:8: spec.enforcement: not a field of this kind; write the annotation',
    );
    const spec = '{endpointSelector: {}, ingress: [{}]';
    const differ = `${head('AuthenticationPolicy')}specs: [${spec}}, ${spec}, enforcement: observe}]\n`;
    expect(refused(differ)[0]).toContain('p.yaml:5: specs: its specs differ in enforcement');
  });
});
