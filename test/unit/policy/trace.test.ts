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
    let several = 0;
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
                const decisions = {
                  egress: compiled.decide(local, remote, protocol, port).egress,
                  ingress: compiled.decide(remote, local, protocol, port).ingress,
                };
                for (const direction of ['egress', 'ingress'] as const) {
                  const decided = decisions[direction];
                  const { because, matched } = trace(direction, local, remote, protocol, port);
                  const denies = /^(?:denied by|no rule allows it)/.test(because);
                  const rule = compiled.rules[decided.rule];
                  const isOwn = decided.rule !== 0 && rule?.direction === direction;
                  const names = !isOwn || because.includes(`(${rule.file}:${rule.line})`);
                  const lists = !isOwn || matched.some((m) => m.rule.line === rule.line);
                  if (matched.filter((m) => m.rule.action === 'deny').length > 1) several++;
                  if (denies !== (decided.verdict === 'deny') || !names || !lists)
                    wrong.push(
                      `${direction} ${local} ${remote} ${protocol}/${port}: ${decided.verdict}, but ${because}`,
                    );
                }
              }
            }
          }
        }
        expect(wrong).toEqual([]);
      }),
      { numRuns: 60 },
    );
    expect(several).toBeGreaterThan(0);
  });
});
