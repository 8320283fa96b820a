/** `authentication: {mode: required, scope: connection}`: who may write it, and what it means beside other demands. */
import { describe, expect, it } from 'vitest';
import type { IdentityRow } from '../../../src/model/identity.ts';
import { type SecurityIdentity, securityIdentity } from '../../../src/model/ids.ts';
import { spiffeId } from '../../../src/model/spiffe-id.ts';
import { type CompiledPolicy, compilePolicy } from '../../../src/policy/compile.ts';
import { parsePolicies } from '../../../src/policy/grammar/parse.ts';
import { lintPolicies } from '../../../src/policy/lint.ts';
import { SimulatedKernel } from './simulated-kernel.ts';
import { document, type Kind, refused, specOf } from './support/policies.ts';

const TCP = 6;
const asking = (authentication: string, kind: Kind) =>
  document(`  ingress: [{fromEndpoints: [{}], authentication: ${authentication}}]`, kind);
const OWN = ['AuthenticationPolicy', 'ClusterAuthenticationPolicy'] as const;
const CILIUM = ['CiliumNetworkPolicy', 'CiliumClusterwideNetworkPolicy'] as const;

describe('scope', () => {
  it.each(OWN)('is a field of %s, and identity unless it says otherwise', (kind) => {
    const modeOf = (authentication: string) => specOf(asking(authentication, kind)).rules[0]!.mode;
    expect(modeOf('{mode: required, scope: connection}')).toBe('required-connection');
    expect(modeOf('{mode: required, scope: identity}')).toBe('required');
    expect(modeOf('{mode: required}')).toBe('required');
  });

  it.each(CILIUM)('is refused by name in %s, whose readers know no such field', (kind) => {
    const path = 'p.yaml:7: spec.ingress[0].authentication.scope';
    const message = 'not a field of this kind; write the rule in an AuthenticationPolicy';
    for (const scope of ['connection', 'identity', '1']) {
      expect(refused(asking(`{mode: required, scope: ${scope}}`, kind))).toEqual([`${path}: ${message}`]);
    }
  });

  it.each([
    ['{mode: disabled, scope: connection}', 'mode disabled asks for nothing that could be; remove it'],
    ['{mode: test-always-fail, scope: identity}', 'mode test-always-fail asks for nothing that could be; remove it'],
    ['{mode: required, scope: flow}', 'use identity or connection'],
    ['{mode: required, scopes: connection}', 'unknown field; did you mean scope?'],
    ['{scope: connection}', 'authentication.mode: missing'],
  ])('is not %s', (authentication, message) => {
    expect(refused(asking(authentication, 'AuthenticationPolicy')).join('\n')).toContain(message);
  });
});

const rows = ['a', 'b', 'c'].map(
  (name, i): IdentityRow => ({
    identity: securityIdentity(300 + i),
    spiffeId: spiffeId(`spiffe://example.org/${name}`),
    labels: { app: name },
    nodes: [],
    ports: [],
  }),
);
const [a, b, c] = [300, 301, 302].map(securityIdentity) as [SecurityIdentity, SecurityIdentity, SecurityIdentity];

type Demand = 'identity' | 'connection' | 'disabled' | 'test-always-fail';
const textOf = (demand: Demand) =>
  demand === 'identity' || demand === 'connection' ? `{mode: required, scope: ${demand}}` : `{mode: ${demand}}`;
const policy = (name: string, selected: string, rules: string) => `apiVersion: countersign.dev/v1alpha1
kind: AuthenticationPolicy
metadata: {name: ${name}}
spec: {endpointSelector: {matchLabels: {app: ${selected}}}, ${rules}}
`;
const rule = (field: string, peer: string, demand: Demand, port?: number) =>
  `{${field}: [{matchLabels: {app: ${peer}}}], authentication: ${textOf(demand)}${
    port === undefined ? '' : `, toPorts: [{ports: [{port: "${port}", protocol: TCP}]}]`
  }}`;
const egress = (demand: Demand, port?: number) =>
  policy('out', 'a', `egress: [${rule('toEndpoints', 'b', demand, port)}]`);
const ingress = (demand: Demand, port?: number) =>
  policy('in', 'b', `ingress: [${rule('fromEndpoints', 'a', demand, port)}]`);
const compiled = (...documents: string[]): CompiledPolicy =>
  compilePolicy(parsePolicies('p.yaml', documents.join('---\n')).policies, rows, [a, b, c]);
const atBothHooks = (policies: CompiledPolicy, port: number) => {
  const kernel = new SimulatedKernel(policies.tables);
  return [kernel.verdict('egress', a, b, TCP, port), kernel.verdict('ingress', b, a, TCP, port)].map((v) => v.authType);
};

describe('what it asks for', () => {
  it('is a proof for each flow, at both ends, whichever side asks', () => {
    for (const one of [egress('connection'), ingress('connection')]) {
      const policies = compiled(one);
      expect(atBothHooks(policies, 80)).toEqual(['spiffe-connection', 'spiffe-connection']);
      expect(policies.decide(a, b, TCP, 80).authType).toBe('spiffe-connection');
    }
  });

  it.each([
    ['identity', 'connection', 'spiffe-connection'],
    ['connection', 'identity', 'spiffe-connection'],
    ['connection', 'disabled', 'spiffe-connection'],
    ['connection', 'test-always-fail', 'test-always-fail'],
    ['test-always-fail', 'connection', 'test-always-fail'],
    ['identity', 'disabled', 'spiffe'],
  ] as const)('the sender %s, the receiver %s: %s', (sender, receiver, authType) => {
    const policies = compiled(egress(sender), ingress(receiver));
    expect(atBothHooks(policies, 80)).toEqual([authType, authType]);
    expect(policies.authTypesOf(a, b)).toEqual([authType]);
  });

  it('stands beside the pair’s proof where another port asks for that', () => {
    const policies = compiled(
      policy(
        'in',
        'b',
        `ingress: [${rule('fromEndpoints', 'a', 'identity')}, ${rule('fromEndpoints', 'a', 'connection', 443)}]`,
      ),
    );
    expect(atBothHooks(policies, 443)).toEqual(['spiffe-connection', 'spiffe-connection']);
    expect(atBothHooks(policies, 80)).toEqual(['spiffe', 'spiffe']);
    const types = policies.authTypesOf(a, b);
    expect([...types].sort()).toEqual(['spiffe', 'spiffe-connection']);
    expect(policies.requiredPeers('spiffe-connection')).toEqual(policies.requiredPeers('spiffe'));
    const pairs = [...policies.requiredPairs()].filter(({ local }) => local === a);
    expect(pairs.map(({ remote, authType }) => `${remote} ${authType}`).sort()).toEqual([
      `${b} spiffe`,
      `${b} spiffe-connection`,
    ]);
  });

  it('is the stronger of two rules that are as narrow, and the lint says which has no effect', () => {
    const both = policy(
      'in',
      'b',
      `ingress: [${rule('fromEndpoints', 'a', 'identity')}, ${rule('fromEndpoints', 'a', 'connection')}]`,
    );
    expect(atBothHooks(compiled(both), 80)).toEqual(['spiffe-connection', 'spiffe-connection']);
    const warnings = lintPolicies(parsePolicies('p.yaml', both).policies).map(({ message }) => message);
    expect(warnings).toEqual([
      expect.stringMatching(/authentication.mode required has no effect: .* asks for required with scope connection/),
    ]);
  });
});
