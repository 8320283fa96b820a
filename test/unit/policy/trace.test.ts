import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { parseAddress } from '../../../src/model/address.ts';
import { IDENTITY_HOST, IDENTITY_WORLD } from '../../../src/model/ids.ts';
import { compilePolicy } from '../../../src/policy/compile.ts';
import { createTracer } from '../../../src/policy/trace.ts';
import { ADDRESSES, identities, PORTS, PROTOCOLS, somePolicies } from './arbitrary.ts';

const locals = identities.map(({ identity }) => identity);

describe('a trace', () => {
  it('says of each side what the decision says, and names the rule that decided', () => {
    fc.assert(
      fc.property(somePolicies, (policies) => {
        const compiled = compilePolicy(policies, identities, locals);
        const trace = createTracer(policies, identities, undefined);
        const others = [
          IDENTITY_HOST,
          IDENTITY_WORLD,
          ...ADDRESSES.map((text) => compiled.identityOfAddress(parseAddress(text)!)),
        ];
        const wrong: string[] = [];
        for (const local of locals) {
          for (const remote of [...locals, ...others]) {
            for (const protocol of PROTOCOLS) {
              for (const port of PORTS) {
                const { egress } = compiled.decide(local, remote, protocol, port);
                const { because, matched } = trace('egress', local, remote, protocol, port);
                const denies = /^(?:denied by|no rule allows it)/.test(because);
                const rule = compiled.rules[egress.rule];
                const isOwn = egress.rule !== 0 && rule?.direction === 'egress';
                const names = !isOwn || because.includes(`(${rule.file}:${rule.line})`);
                const lists = !isOwn || matched.some((m) => m.rule.line === rule.line);
                if (denies !== (egress.verdict === 'deny') || !names || !lists)
                  wrong.push(`${local} ${remote} ${protocol}/${port}: ${egress.verdict}, but ${because}`);
              }
            }
          }
        }
        expect(wrong).toEqual([]);
      }),
      { numRuns: 60 },
    );
  });
});
