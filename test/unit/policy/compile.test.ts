import { join } from 'node:path';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type { Direction } from '../../../src/model/datapath.ts';
import type { IdentityRow } from '../../../src/model/identity.ts';
import { type SecurityIdentity, securityIdentity } from '../../../src/model/ids.ts';
import { spiffeId } from '../../../src/model/spiffe-id.ts';
import { type CompiledPolicy, compilePolicy } from '../../../src/policy/compile.ts';
import { loadPolicies } from '../../../src/policy/load.ts';
import { parsePolicies } from '../../../src/policy/parse.ts';

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

/** The kernel's lookup, written from bpf/abi/abi.h and not from the compiler. */
function kernel(
  compiled: CompiledPolicy,
  direction: Direction,
  local: number,
  remote: number,
  protocol: number,
  port: number,
): string {
  const order: [number, number, number][] = [
    [remote, protocol, port],
    [remote, protocol, 0],
    [remote, 0, 0],
    [0, protocol, port],
    [0, protocol, 0],
    [0, 0, 0],
  ];
  for (const [r, p, q] of order) {
    const entry = compiled.entries.find(
      (e) => e.direction === direction && e.local === local && e.remote === r && e.protocol === p && e.port === q,
    );
    if (entry !== undefined) return `${entry.verdict} ${entry.authType}`;
  }
  return 'deny none';
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
  const policies = parsePolicies('p.yaml', documents.join('---\n'));
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
    expect(compiled.entries).toEqual([]);
    expect(compiled.decide(stranger, a.identity, TCP, 80).verdict).toBe('deny');
  });

  it('keeps namespaces apart; labels without one stand in default', () => {
    const prod = { ...c, labels: { app: 'a', 'k8s:io.kubernetes.pod.namespace': 'prod' } };
    const text = policy('p', 'b', `ingress: [${from('a')}]`);
    const compiled = compilePolicy(parsePolicies('p.yaml', text), [a, b, prod], [b.identity]);
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
      ),
      [a, b, c],
      [b.identity],
    );
    expect(compiled.requiredPairs()).toEqual([{ local: b.identity, remote: a.identity, authType: 'spiffe' }]);
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

// --- the property: entries, looked up as the kernel does, mean what the policies say ---

interface PlainRule {
  peers: string[] | undefined;
  ports: { protocol: 'TCP' | 'UDP' | 'ANY'; port: number }[] | undefined;
  mode: 'disabled' | 'required' | 'test-always-fail' | undefined;
}
interface PlainPolicy {
  subject: string;
  ingress: PlainRule[];
  egress: PlainRule[];
}

const STRENGTH = ['disabled', 'required', 'test-always-fail'];

/** What the text of the policies says, slowly: every rule is a set of packets, narrower when it is a proper subset. */
function reference(
  policies: PlainPolicy[],
  direction: Direction,
  local: string,
  remote: string,
  protocol: number,
  port: number,
) {
  const rules = policies.filter((p) => p.subject === local || p.subject === '*').flatMap((p) => p[direction]);
  if (rules.length === 0) return { verdict: 'allow', mode: 0 };
  const claims: { peer: boolean; protocol: boolean; port: boolean; mode: string | undefined }[] = [];
  for (const rule of rules) {
    if (rule.peers === undefined && rule.ports === undefined) continue;
    if (rule.peers !== undefined && !rule.peers.includes(remote) && !rule.peers.includes('*')) continue;
    const base = { peer: rule.peers !== undefined, mode: rule.mode };
    if (rule.ports === undefined) claims.push({ ...base, protocol: false, port: false });
    for (const p of rule.ports ?? []) {
      const numbers = { TCP: [6], UDP: [17], ANY: [6, 17, 132] }[p.protocol];
      if (!numbers.includes(protocol) || (p.port !== 0 && p.port !== port)) continue;
      claims.push({ ...base, protocol: true, port: p.port !== 0 });
    }
  }
  if (claims.length === 0) return { verdict: 'deny', mode: 0 };
  const explicit = claims.filter((claim) => claim.mode !== undefined);
  const narrower = (x: (typeof claims)[0], y: (typeof claims)[0]) =>
    x.peer >= y.peer &&
    x.protocol >= y.protocol &&
    x.port >= y.port &&
    (x.peer > y.peer || x.protocol > y.protocol || x.port > y.port);
  const narrowest = explicit.filter((claim) => !explicit.some((other) => narrower(other, claim)));
  return { verdict: 'allow', mode: Math.max(0, ...narrowest.map((claim) => STRENGTH.indexOf(claim.mode!))) };
}

function referenceAt(
  policies: PlainPolicy[],
  direction: Direction,
  local: string,
  remote: string,
  protocol: number,
  port: number,
) {
  const own = reference(policies, direction, local, remote, protocol, port);
  const opposite = direction === 'egress' ? 'ingress' : 'egress';
  const other = reference(policies, opposite, remote, local, protocol, port);
  const mode = own.verdict === 'allow' && other.verdict === 'allow' ? Math.max(own.mode, other.mode) : own.mode;
  return `${own.verdict} ${['none', 'spiffe', 'test-always-fail'][mode]}`;
}

function yamlOf({ subject, ingress, egress }: PlainPolicy, i: number): string {
  const selector = (name: string) => (name === '*' ? {} : { matchLabels: { app: name } });
  const rule = (field: string) => (r: PlainRule) => ({
    ...(r.peers === undefined ? {} : { [field]: r.peers.map(selector) }),
    ...(r.ports === undefined
      ? {}
      : { toPorts: [{ ports: r.ports.map((p) => ({ port: String(p.port), protocol: p.protocol })) }] }),
    ...(r.mode === undefined ? {} : { authentication: { mode: r.mode } }),
  });
  return JSON.stringify({
    apiVersion: 'cilium.io/v2',
    kind: 'CiliumNetworkPolicy',
    metadata: { name: `p${i}` },
    spec: {
      endpointSelector: selector(subject),
      ingress: ingress.map(rule('fromEndpoints')),
      egress: egress.map(rule('toEndpoints')),
    },
  });
}

describe('the entries, looked up as the kernel does', () => {
  const names = ['a', 'b', 'c'];
  const plainRule: fc.Arbitrary<PlainRule> = fc.record({
    peers: fc.option(fc.uniqueArray(fc.constantFrom('a', 'b', 'c', '*'), { maxLength: 3 }), { nil: undefined }),
    ports: fc.option(
      fc.array(
        fc.record({
          protocol: fc.constantFrom('TCP' as const, 'UDP' as const, 'ANY' as const),
          port: fc.constantFrom(0, 80, 81),
        }),
        { minLength: 1, maxLength: 3 },
      ),
      { nil: undefined },
    ),
    mode: fc.constantFrom(undefined, undefined, 'disabled' as const, 'required' as const, 'test-always-fail' as const),
  });
  const plainPolicy: fc.Arbitrary<PlainPolicy> = fc
    .record({
      subject: fc.constantFrom('a', 'b', 'c', '*'),
      ingress: fc.array(plainRule, { maxLength: 3 }),
      egress: fc.array(plainRule, { maxLength: 3 }),
    })
    .filter((p) => p.ingress.length + p.egress.length > 0);

  it('equal decide() and a slow reading of the policies, in both directions, for every pair, protocol and port', () => {
    fc.assert(
      fc.property(fc.array(plainPolicy, { maxLength: 4 }), (plain) => {
        const all = rows(...names);
        const policies = plain.flatMap((p, i) => parsePolicies('p.yaml', yamlOf(p, i)));
        const compiled = compilePolicy(
          policies,
          all,
          all.map((r) => r.identity),
        );
        for (const x of all) {
          for (const y of all) {
            const needed = new Set<string>();
            for (const [protocol, port] of [
              [TCP, 80],
              [TCP, 81],
              [TCP, 9],
              [UDP, 80],
              [UDP, 9],
              [132, 81],
              [ICMP, 0],
            ] as const) {
              const decision = compiled.decide(x.identity, y.identity, protocol, port);
              const out = kernel(compiled, 'egress', x.identity, y.identity, protocol, port);
              const into = kernel(compiled, 'ingress', y.identity, x.identity, protocol, port);
              expect(out).toBe(`${decision.egress.verdict} ${decision.egress.authType}`);
              expect(into).toBe(`${decision.ingress.verdict} ${decision.ingress.authType}`);
              expect(out).toBe(referenceAt(plain, 'egress', x.labels.app!, y.labels.app!, protocol, port));
              expect(into).toBe(referenceAt(plain, 'ingress', y.labels.app!, x.labels.app!, protocol, port));
              expect(decision.verdict).toBe(out.startsWith('allow') && into.startsWith('allow') ? 'allow' : 'deny');
              if (decision.verdict === 'allow' && decision.authType !== 'none') needed.add(decision.authType);
            }
            for (const authType of needed) expect(compiled.authTypesOf(x.identity, y.identity)).toContain(authType);
          }
        }
      }),
      { numRuns: 400 },
    );
  });

  it('never hold a denial, nor two entries for one key', () => {
    fc.assert(
      fc.property(fc.array(plainPolicy, { maxLength: 4 }), (plain) => {
        const all = rows(...names);
        const policies = plain.flatMap((p, i) => parsePolicies('p.yaml', yamlOf(p, i)));
        const { entries } = compilePolicy(policies, all, [all[0]!.identity as SecurityIdentity]);
        expect(entries.every((e) => e.verdict === 'allow')).toBe(true);
        const keys = entries.map((e) => `${e.direction} ${e.remote} ${e.protocol} ${e.port}`);
        expect(new Set(keys).size).toBe(keys.length);
      }),
      { numRuns: 200 },
    );
  });
});
