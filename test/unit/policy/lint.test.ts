import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { parseAddress } from '../../../src/model/address.ts';
import { IDENTITY_HOST, IDENTITY_WORLD, type SecurityIdentity } from '../../../src/model/ids.ts';
import { compilePolicy } from '../../../src/policy/compile.ts';
import { effectOf } from '../../../src/policy/effect.ts';
import { lintPolicies } from '../../../src/policy/lint.ts';
import type { Policy } from '../../../src/policy/rules.ts';
import { ADDRESSES, identities, PORTS, PROTOCOLS, somePolicies } from './arbitrary.ts';

const locals = identities.map(({ identity }) => identity);

/** Each verdict between everybody and everybody, in force and observed. */
function verdicts(policies: readonly Policy[]): string {
  const compiled = compilePolicy(policies, identities, locals);
  const others = [
    IDENTITY_HOST,
    IDENTITY_WORLD,
    ...ADDRESSES.map((text) => compiled.identityOfAddress(parseAddress(text)!)),
  ];
  const said: string[] = [];
  const ask = (from: SecurityIdentity, to: SecurityIdentity, areWorkloads: boolean) => {
    for (const protocol of PROTOCOLS) {
      for (const port of PORTS) {
        const decision = compiled.decide(from, to, protocol, port);
        for (const outcome of [decision, decision.observed ?? decision]) {
          const { verdict, authType } = effectOf(outcome, areWorkloads);
          said.push(verdict === 'deny' ? verdict : authType);
        }
      }
    }
  };
  for (const a of locals) {
    for (const b of locals) ask(a, b, true);
    for (const b of others) {
      ask(a, b, false);
      ask(b, a, false);
    }
  }
  return said.join();
}

function without(policies: readonly Policy[], line: number): Policy[] {
  return policies.map((policy) => ({
    ...policy,
    specs: policy.specs.map((spec) => ({ ...spec, rules: spec.rules.filter((rule) => rule.line !== line) })),
  }));
}

function withoutMode(policies: readonly Policy[], line: number): Policy[] {
  return policies.map((policy) => ({
    ...policy,
    specs: policy.specs.map((spec) => ({
      ...spec,
      rules: spec.rules.map((rule) => (rule.line === line ? { ...rule, mode: undefined } : rule)),
    })),
  }));
}

describe('lint', () => {
  it('calls only such rules idle as change no verdict when they are taken away', () => {
    fc.assert(
      fc.property(somePolicies, (policies) => {
        const idle = lintPolicies(policies).filter(({ message }) =>
          /says the same|can never allow|allows nothing/.test(message),
        );
        fc.pre(idle.length > 0);
        const all = verdicts(policies);
        for (const { line } of idle) expect(verdicts(without(policies, line)), `without line ${line}`).toBe(all);
      }),
      { numRuns: 40 },
    );
  });

  it('calls only such modes idle as change no verdict when they are taken away', () => {
    fc.assert(
      fc.property(somePolicies, (policies) => {
        const idle = lintPolicies(policies).filter(({ message }) => /has no effect/.test(message));
        fc.pre(idle.length > 0);
        const all = verdicts(policies);
        for (const { line } of idle) expect(verdicts(withoutMode(policies, line)), `line ${line}`).toBe(all);
      }),
      { numRuns: 30 },
    );
  });
});
