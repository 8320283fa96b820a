import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import type { Direction } from '../../../src/model/datapath.ts';
import type { IdentityRow } from '../../../src/model/identity.ts';
import { securityIdentity } from '../../../src/model/ids.ts';
import { spiffeId } from '../../../src/model/spiffe-id.ts';
import { type CompiledPolicy, compilePolicy } from '../../../src/policy/compile.ts';
import { parsePolicies } from '../../../src/policy/grammar/parse.ts';
import { loadPolicies } from '../../../src/policy/load.ts';
import { SimulatedKernel } from './simulated-kernel.ts';

const TCP = 6;
const UDP = 17;
const ICMP = 1;

function rows(...names: string[]): IdentityRow[] {
  return names.map((name, i) => ({
    identity: securityIdentity(256 + i),
    spiffeId: spiffeId(`spiffe://example.org/${name}`),
    labels: { app: name },
    nodes: [],
  }));
}

/** As the kernel finds it in the tables. */
function kernel(
  compiled: CompiledPolicy,
  direction: Direction,
  local: number,
  remote: number,
  protocol: number,
  port: number,
): string {
  const { verdict, authType } = new SimulatedKernel(compiled.tables).verdict(direction, local, remote, protocol, port);
  return `${verdict} ${authType}`;
}

const policy = (name: string, selected: string, rules: string) => `apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: ${name}}
spec: {endpointSelector: {matchLabels: {app: ${selected}}}, ${rules}}
`;
const from = (peer: string, port?: string, mode?: string) => rule('fromEndpoints', peer, port, mode);
const to = (peer: string, port?: string, mode?: string) => rule('toEndpoints', peer, port, mode);
function rule(field: string, peer: string, port?: string, mode?: string): string {
  const parts = [];
  if (peer !== '*') parts.push(`${field}: [{matchLabels: {app: ${peer}}}]`);
  if (port !== undefined) parts.push(`toPorts: [{ports: [{port: "${port}", protocol: TCP}]}]`);
  if (mode !== undefined) parts.push(`authentication: {mode: ${mode}}`);
  return `{${parts.join(', ')}}`;
}

const [a, b, c] = rows('a', 'b', 'c') as [IdentityRow, IdentityRow, IdentityRow];
function compile(...documents: string[]): CompiledPolicy {
  const { policies } = parsePolicies('p.yaml', documents.join('---\n'));
  return compilePolicy(policies, [a, b, c], [a.identity, b.identity, c.identity]);
}
const both = (compiled: CompiledPolicy, x: IdentityRow, y: IdentityRow, protocol: number, port: number) => [
  kernel(compiled, 'egress', x.identity, y.identity, protocol, port),
  kernel(compiled, 'ingress', y.identity, x.identity, protocol, port),
];

describe('compiled policy', () => {
  it('lets everything pass where no policy selects an endpoint', () => {
    expect(both(compile(), a, b, TCP, 80)).toEqual(['allow none', 'allow none']);
    expect(kernel(compile(), 'ingress', a.identity, 2, ICMP, 0)).toBe('allow none');
  });

  it('denies what no rule allows once a policy selects the endpoint, in that direction only', () => {
    const compiled = compile(policy('p', 'b', `ingress: [${from('a', '80')}]`));
    expect(both(compiled, a, b, TCP, 80)).toEqual(['allow none', 'allow none']);
    expect(both(compiled, a, b, TCP, 81)).toEqual(['allow none', 'deny none']);
    expect(both(compiled, a, b, ICMP, 0)).toEqual(['allow none', 'deny none']);
    expect(both(compiled, c, b, TCP, 80)).toEqual(['allow none', 'deny none']);
    expect(both(compiled, b, a, TCP, 80)).toEqual(['allow none', 'allow none']);
  });

  it('demands the proof already at the sender, for what the receiver requires, and for no more', () => {
    const compiled = compile(policy('p', 'b', `ingress: [${from('a', '80', 'required')}, ${from('a', '81')}]`));
    expect(both(compiled, a, b, TCP, 80)).toEqual(['allow spiffe', 'allow spiffe']);
    expect(both(compiled, a, b, TCP, 81)).toEqual(['allow none', 'allow none']);
    expect(both(compiled, a, c, TCP, 80)).toEqual(['allow none', 'allow none']);
  });

  it('demands the proof also at the receiver, for what the sender requires', () => {
    const compiled = compile(policy('p', 'a', `egress: [${to('b', '80', 'required')}]`));
    expect(both(compiled, a, b, TCP, 80)).toEqual(['allow spiffe', 'allow spiffe']);
    expect(both(compiled, c, b, TCP, 80)).toEqual(['allow none', 'allow none']);
  });

  it('keeps the narrower wildcard rules of the sender when the receiver adds a broad demand', () => {
    const compiled = compile(
      policy('p', 'a', `egress: [${to('*', '80')}, ${to('*', '443', 'test-always-fail')}]`),
      policy('q', 'b', `ingress: [${from('a', undefined, 'required')}]`),
    );
    expect(both(compiled, a, b, TCP, 80)).toEqual(['allow spiffe', 'allow spiffe']);
    expect(both(compiled, a, b, TCP, 443)).toEqual(['allow test-always-fail', 'allow test-always-fail']);
    expect(both(compiled, a, b, TCP, 22)).toEqual(['deny none', 'allow spiffe']);
    expect(both(compiled, a, c, TCP, 443)).toEqual(['allow test-always-fail', 'allow test-always-fail']);
  });

  it.each([
    [
      'a broad explicit rule covers a narrower one that names no mode',
      [from('a', undefined, 'required'), from('a', '80')],
      'spiffe',
    ],
    ['also the other way about in the file', [from('a', '80'), from('a', undefined, 'required')], 'spiffe'],
    ['a narrower explicit rule beats the broad one', [from('*', '0', 'required'), from('a', '80', 'disabled')], 'none'],
    [
      'of two explicit rules as narrow as each other the stronger wins',
      [from('a', '80', 'required'), from('a', '80', 'disabled')],
      'spiffe',
    ],
    [
      'test-always-fail is the strongest',
      [from('a', '80', 'required'), from('a', '80', 'test-always-fail')],
      'test-always-fail',
    ],
    [
      'of two of which neither covers the other the stronger wins',
      [from('*', '80', 'disabled'), from('a', undefined, 'required')],
      'spiffe',
    ],
    ['a rule for everybody covers a peer rule without mode', [from('*', '80', 'required'), from('a', '80')], 'spiffe'],
    ['no mode anywhere means none', [from('a', '80'), from('a')], 'none'],
  ])('%s', (_name, rules, authType) => {
    const compiled = compile(policy('p', 'b', `ingress: [${rules.join(', ')}]`));
    expect(both(compiled, a, b, TCP, 80)).toEqual([`allow ${authType}`, `allow ${authType}`]);
  });

  it('allows only workloads by an empty selector, and also the world by a rule without peers', () => {
    const everyone = compile(policy('p', 'b', 'ingress: [{fromEndpoints: [{}]}]'));
    expect(both(everyone, c, b, UDP, 5)[1]).toBe('allow none');
    expect(kernel(everyone, 'ingress', b.identity, 2, TCP, 80)).toBe('deny none');
    const open = compile(policy('p', 'b', 'ingress: [{toPorts: [{ports: [{port: "80", protocol: TCP}]}]}]'));
    expect(kernel(open, 'ingress', b.identity, 2, TCP, 80)).toBe('allow none');
  });

  it('denies all by an empty rule, and allows nobody by an empty list of peers', () => {
    expect(both(compile(policy('p', 'b', 'ingress: [{}]')), a, b, TCP, 80)[1]).toBe('deny none');
    expect(both(compile(policy('p', 'b', 'ingress: [{fromEndpoints: []}]')), a, b, TCP, 80)[1]).toBe('deny none');
  });

  it('gives no entry to a local identity that the identity table does not have: all of it is dropped', () => {
    const stranger = securityIdentity(999);
    const compiled = compilePolicy([], [a], [stranger]);
    expect(compiled.tables.entries).toEqual([]);
    expect(compiled.tables.classes.map(({ identity }) => identity)).not.toContain(stranger);
    expect(compiled.decide(stranger, a.identity, TCP, 80).verdict).toBe('deny');
  });

  it('keeps namespaces apart; labels without one stand in default', () => {
    const prod = { ...c, labels: { app: 'a', 'k8s:io.kubernetes.pod.namespace': 'prod' } };
    const text = policy('p', 'b', `ingress: [${from('a')}]`);
    const compiled = compilePolicy(parsePolicies('p.yaml', text).policies, [a, b, prod], [b.identity]);
    expect(kernel(compiled, 'ingress', b.identity, a.identity, TCP, 1)).toBe('allow none');
    expect(kernel(compiled, 'ingress', b.identity, prod.identity, TCP, 1)).toBe('deny none');
  });

  it('names the rule that decided by file and line, at the sender too', () => {
    const compiled = compile(policy('p', 'b', `ingress: [${from('a', '80', 'required')}]`));
    const { rule: index, egress } = compiled.decide(a.identity, b.identity, TCP, 80);
    expect(egress.rule).toBe(index);
    expect(compiled.rules[index]).toMatchObject({ file: 'p.yaml', line: 4, policy: 'default/p', direction: 'ingress' });
    expect(compiled.rules[0]).toMatchObject({ policy: '' });
  });

  it('lists the pairs that need a proof, from either side, and none that policy denies', () => {
    const compiled = compilePolicy(
      parsePolicies(
        'p.yaml',
        [
          policy('p', 'b', `ingress: [${from('a', '80', 'required')}, ${from('c', '80', 'required')}]`),
          policy('q', 'c', 'egress: [{}]'),
        ].join('---\n'),
      ).policies,
      [a, b, c],
      [b.identity],
    );
    expect([...compiled.requiredPairs()]).toEqual([{ local: b.identity, remote: a.identity, authType: 'spiffe' }]);
    expect(compiled.authTypesOf(a.identity, b.identity)).toEqual(['spiffe']);
    expect(compiled.authTypesOf(c.identity, b.identity)).toEqual([]);
  });

  it('agrees with the example policies of the tour', () => {
    const { policies } = loadPolicies(join(import.meta.dirname, '../../../deploy/examples/policies'));
    const names = ['backend', 'frontend', 'frontend6', 'monitor', 'reports', 'exports', 'imports', 'intruder'];
    const all = rows(...names);
    const compiled = compilePolicy(
      policies,
      all,
      all.map((r) => r.identity),
    );
    const verdict = (name: string, protocol: number, port: number) => {
      const { verdict, authType } = compiled.decide(
        all[names.indexOf(name)]!.identity,
        all[0]!.identity,
        protocol,
        port,
      );
      return `${verdict} ${authType}`;
    };
    for (const caller of names.slice(1, 7)) expect(verdict(caller, TCP, 8080)).toBe('allow spiffe');
    expect(verdict('intruder', TCP, 8080)).toBe('deny none');
    expect(verdict('frontend', UDP, 9999)).toBe('allow spiffe');
    expect(verdict('monitor', UDP, 9999)).toBe('allow spiffe');
    expect(verdict('reports', UDP, 9999)).toBe('deny none');
    expect(verdict('frontend', TCP, 22)).toBe('deny none');
  });
});
