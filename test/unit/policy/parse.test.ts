import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { CountersignError } from '../../../src/base/errors.ts';
import { parsePolicies, refuseDuplicates } from '../../../src/policy/parse.ts';

const head = 'apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata:\n  name: p\n';

function problemsOf(act: () => unknown): string[] {
  try {
    act();
  } catch (thrown) {
    expect(thrown).toBeInstanceOf(CountersignError);
    expect((thrown as CountersignError).code).toBe('bad-input');
    return (thrown as CountersignError).message.split('\n');
  }
  throw new Error('nothing was refused');
}
const refused = (text: string) => problemsOf(() => parsePolicies('p.yaml', text));
const spec = (yaml: string) => `${head}spec:\n  endpointSelector: {}\n${yaml}`;
const rulesOf = (yaml: string) => parsePolicies('p.yaml', spec(yaml))[0]!.specs[0]!;

describe('a policy document', () => {
  it('is read with its selectors, ports, mode, file and lines', () => {
    const text = `# a comment
${head}  namespace: prod
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
    expect(parsePolicies('p.yaml', text)).toEqual([
      {
        file: 'p.yaml',
        line: 2,
        kind: 'CiliumNetworkPolicy',
        name: 'p',
        namespace: 'prod',
        specs: [
          {
            line: 8,
            description: 'd',
            subject: { labels: { app: 'backend' }, namespace: 'prod' },
            ingress: [
              {
                file: 'p.yaml',
                line: 14,
                direction: 'ingress',
                peers: [{ labels: { app: 'frontend' }, namespace: 'prod' }],
                ports: [
                  { protocol: 6, port: 80 },
                  { protocol: 6, port: 53 },
                  { protocol: 17, port: 53 },
                  { protocol: 132, port: 53 },
                ],
                mode: 'required',
              },
            ],
            egress: [],
          },
        ],
      },
    ]);
  });

  it('may hold several specs, and a file several documents', () => {
    const two = `${head}specs:\n  - endpointSelector: {}\n    ingress: [{}]\n  - endpointSelector: {}\n    egress: [{}]\n`;
    const policies = parsePolicies('p.yaml', `${two}---\n${two.replace('name: p', 'name: q')}`);
    expect(policies.map((p) => [p.name, p.specs.length, p.line])).toEqual([
      ['p', 2, 1],
      ['q', 2, 11],
    ]);
  });

  it.each([
    ['nodeSelector', '  nodeSelector: {}\n  ingress: [{}]', 7, 'spec.nodeSelector'],
    ['ingressDeny', '  ingressDeny: [{}]\n  ingress: [{}]', 7, 'spec.ingressDeny'],
    ['enableDefaultDeny', '  ingress: [{}]\n  enableDefaultDeny: {ingress: false}', 8, 'spec.enableDefaultDeny'],
    ['fromCIDR', '  ingress:\n    - fromCIDR: [10.0.0.0/8]', 8, 'spec.ingress[0].fromCIDR'],
    ['toEntities', '  egress:\n    - toEntities: [world]', 8, 'spec.egress[0].toEntities'],
    ['toFQDNs', '  egress:\n    - toFQDNs: [{matchName: a}]', 8, 'spec.egress[0].toFQDNs'],
    ['icmps', '  ingress:\n    - icmps: []', 8, 'spec.ingress[0].icmps'],
    [
      'endPort',
      '  ingress:\n    - toPorts:\n        - ports:\n            - port: "1"\n              endPort: 9',
      11,
      'spec.ingress[0].toPorts[0].ports[0].endPort',
    ],
    [
      'rules',
      '  ingress:\n    - toPorts:\n        - ports: [{port: "1"}]\n          rules: {http: []}',
      10,
      'spec.ingress[0].toPorts[0].rules',
    ],
    [
      'matchExpressions',
      '  ingress:\n    - fromEndpoints:\n        - matchExpressions: []',
      9,
      'spec.ingress[0].fromEndpoints[0].matchExpressions',
    ],
  ])('is refused by name, path and line for %s, which is not supported', (_name, yaml, line, path) => {
    expect(refused(spec(yaml))).toEqual([
      `p.yaml:${line}: ${path}: unknown field; not supported yet, and never ignored: remove it`,
    ]);
  });

  it('is refused with a suggestion for a misspelt field', () => {
    expect(refused(spec('  ingres: [{}]\n  egress: [{}]'))).toEqual([
      'p.yaml:7: spec.ingres: unknown field; did you mean ingress?',
    ]);
    expect(refused(spec('  egress:\n    - fromEndpoints: [{}]'))[0]).toContain('spec.egress[0].fromEndpoints: unknown');
  });

  it.each([
    [
      'an unknown mode',
      '  ingress:\n    - authentication: {mode: require}',
      'use disabled or required or test-always-fail',
    ],
    ['no mode', '  ingress:\n    - authentication: {}', 'spec.ingress[0].authentication.mode: missing'],
    [
      'a port without quotes',
      '  ingress:\n    - toPorts: [{ports: [{port: 80}]}]',
      'must be a string, not 80; put it in',
    ],
    ['a port too high', '  ingress:\n    - toPorts: [{ports: [{port: "65536"}]}]', 'not a port; write a number from 0'],
    ['a negative port', '  ingress:\n    - toPorts: [{ports: [{port: "-1"}]}]', 'not a port'],
    ['a named port', '  ingress:\n    - toPorts: [{ports: [{port: http}]}]', 'named ports are not supported yet'],
    [
      'ICMP as a protocol',
      '  ingress:\n    - toPorts: [{ports: [{port: "0", protocol: ICMP}]}]',
      'use TCP, UDP, SCTP, ANY',
    ],
    [
      'a protocol in lower case',
      '  ingress:\n    - toPorts: [{ports: [{port: "1", protocol: tcp}]}]',
      'cannot be "tcp"',
    ],
    ['an empty list of ports', '  ingress:\n    - toPorts: [{ports: []}]', 'must have at least 1 item'],
    ['null instead of a list', '  ingress:\n    - fromEndpoints:', 'fromEndpoints: must be a list, not null'],
    ['a bad label key', '  ingress:\n    - fromEndpoints: [{matchLabels: {"a b": c}}]', 'not a label key'],
    ['a bad label value', '  ingress:\n    - fromEndpoints: [{matchLabels: {a: "b c"}}]', 'not a label value'],
    [
      'another label source',
      '  ingress:\n    - fromEndpoints: [{matchLabels: {"reserved:host": ""}}]',
      'this label source',
    ],
    [
      'one label twice',
      '  ingress:\n    - fromEndpoints: [{matchLabels: {"k8s:a": b, a: c}}]',
      'the same label as k8s:a',
    ],
    ['no rule at all', '  ingress: []', 'has neither an ingress nor an egress rule'],
  ])('is refused for %s', (_name, yaml, message) => {
    expect(refused(spec(yaml)).join('\n')).toContain(message);
  });

  it('is refused without an endpointSelector, spec, name, or of another kind or API', () => {
    expect(refused(`${head}spec:\n  ingress: [{}]\n`)[0]).toContain('spec.endpointSelector: missing');
    expect(refused(head)[0]).toContain('spec: missing; write spec or specs');
    expect(refused(spec('  ingress: [{}]').replace('  name: p', '  labels: {}'))[0]).toContain(
      'metadata.name: missing',
    );
    expect(refused(spec('  ingress: [{}]').replace('kind: Cilium', 'kind: '))[0]).toContain(
      'p.yaml:2: kind: cannot be',
    );
    expect(refused(spec('  ingress: [{}]').replace('/v2', '/v3'))[0]).toContain('p.yaml:1: apiVersion: cannot be');
  });

  it('cannot select endpoints of another namespace, and has none when clusterwide', () => {
    const elsewhere = 'endpointSelector: {matchLabels: {"k8s:io.kubernetes.pod.namespace": other}}';
    const text = spec('  ingress: [{}]').replace('endpointSelector: {}', elsewhere);
    expect(refused(text)[0]).toContain(
      'p.yaml:6: spec.endpointSelector.matchLabels["k8s:io.kubernetes.pod.namespace"]',
    );
    const clusterwide = text.replace('CiliumNetwork', 'CiliumClusterwideNetwork');
    expect(parsePolicies('p.yaml', clusterwide)[0]?.namespace).toBeUndefined();
    expect(refused(clusterwide.replace('name: p', 'name: p\n  namespace: x'))[0]).toContain('has no namespace');
  });

  it('is refused together with every other problem of the file', () => {
    const bad = spec('  ingress:\n    - icmps: []\n      authentication: {mode: no}');
    expect(refused(`${bad}\n---\n${bad}`).length).toBe(4);
  });

  it('is refused when another of its name is there', () => {
    const policies = parsePolicies('p.yaml', `${spec('  ingress: [{}]')}\n---\n${spec('  ingress: [{}]')}`);
    expect(problemsOf(() => refuseDuplicates(policies))).toEqual([
      'p.yaml:9: metadata.name: p stands in p.yaml:1 already; rename one of them',
    ]);
  });

  it('means what Cilium means by empty rules and lists', () => {
    expect(rulesOf('  ingress: [{}]').ingress[0]?.peers).toEqual([]);
    expect(rulesOf('  ingress: [{fromEndpoints: []}]').ingress[0]?.peers).toEqual([]);
    expect(rulesOf('  ingress: [{fromEndpoints: [{}]}]').ingress[0]?.peers).toEqual([
      { labels: {}, namespace: 'default' },
    ]);
    expect(rulesOf('  ingress: [{toPorts: [{ports: [{port: "1"}]}]}]').ingress[0]?.peers).toBe('any');
    expect(rulesOf('  ingress: []\n  egress: [{}]').ingress).toEqual([]);
  });

  it('is read or refused as bad input, whatever is put in place of a part of it', () => {
    const value = fc.letrec((tie) => ({
      any: fc.oneof(
        { maxDepth: 3 },
        fc.constantFrom<unknown>(null, true, 3, '80', 'TCP', 'required', [], {}),
        fc.array(tie('any'), { maxLength: 3 }),
        fc.dictionary(
          fc.constantFrom('fromEndpoints', 'toPorts', 'ports', 'port', 'matchLabels', 'mode', '__proto__', 'x'),
          tie('any'),
          { maxKeys: 4 },
        ),
      ),
    })).any;
    fc.assert(
      fc.property(value, value, (selector, ingress) => {
        try {
          const json = `  ingress: ${JSON.stringify(ingress)}`;
          parsePolicies('p.yaml', spec(json).replace('{}', JSON.stringify(selector)));
        } catch (thrown) {
          expect(thrown).toBeInstanceOf(CountersignError);
        }
      }),
      { numRuns: 500 },
    );
  });
});
