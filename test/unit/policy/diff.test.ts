import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { parseAddress } from '../../../src/model/address.ts';
import { IDENTITY_HOST, IDENTITY_REMOTE_NODE } from '../../../src/model/ids.ts';
import { compilePolicy } from '../../../src/policy/compile.ts';
import { diffPolicies } from '../../../src/policy/diff.ts';
import type { PolicySet } from '../../../src/policy/diff-parties.ts';
import { effectOf } from '../../../src/policy/effect.ts';
import type { Policy } from '../../../src/policy/rules.ts';
import { ADDRESSES, identities, PORTS, PROTOCOLS, somePolicies } from './arbitrary.ts';

const locals = identities.map(({ identity }) => identity);
const set = (policies: readonly Policy[]): PolicySet => ({
  policies,
  compiled: compilePolicy(policies, identities, locals),
});
const nameOf = ({ spiffeId }: { spiffeId: string }) => spiffeId;

/** Everybody by the name that the diff has for them; an address lies in a piece that it names in its own way. */
function everybody(before: PolicySet, after: PolicySet) {
  const workloads = identities.map((row) => ({
    name: nameOf(row),
    ids: [row.identity, row.identity] as const,
    isWorkload: true,
  }));
  const hosts = [
    { name: 'host', ids: [IDENTITY_HOST, IDENTITY_HOST] as const, isWorkload: false },
    { name: 'remote-node', ids: [IDENTITY_REMOTE_NODE, IDENTITY_REMOTE_NODE] as const, isWorkload: false },
  ];
  const addresses = ADDRESSES.map((text) => {
    const address = parseAddress(text)!;
    const ids = [before.compiled.identityOfAddress(address), after.compiled.identityOfAddress(address)] as const;
    return { name: undefined, ids, isWorkload: false };
  });
  return [...workloads, ...hosts, ...addresses];
}

describe('diff', () => {
  it('lists exactly the verdicts that differ', () => {
    fc.assert(
      fc.property(somePolicies, somePolicies, (a, b) => {
        const [before, after] = [set(a), set(b)];
        const changes = [...diffPolicies({ before, after, rows: identities, nameOf })];
        const told = new Map(changes.map((pair) => [`${pair.from} ${pair.to}`, pair.changes]));
        const parties = everybody(before, after);
        let outside = false;
        for (const from of parties) {
          for (const to of parties) {
            if (!from.isWorkload && !to.isWorkload) continue;
            for (const protocol of PROTOCOLS) {
              for (const port of PORTS) {
                if (protocol === 1 && port > 255) continue;
                const areWorkloads = from.isWorkload && to.isWorkload;
                const [old, now] = [before, after].map(({ compiled }, i) =>
                  effectOf(compiled.decide(from.ids[i as 0 | 1], to.ids[i as 0 | 1], protocol, port), areWorkloads),
                );
                const differs = old!.verdict !== now!.verdict || old!.authType !== now!.authType;
                if (from.name === undefined || to.name === undefined) {
                  outside ||= differs;
                  continue;
                }
                const found = told.get(`${from.name} ${to.name}`)?.find(({ traffic }) => {
                  if ('besides' in traffic) return !traffic.besides.includes(protocol);
                  return traffic.protocol === protocol && traffic.first <= port && port <= traffic.last;
                });
                expect(found !== undefined, `${from.name} ${to.name} ${protocol}/${port}`).toBe(differs);
                if (found !== undefined) {
                  expect(found.before).toEqual({ verdict: old!.verdict, authType: old!.authType });
                  expect(found.after).toEqual({ verdict: now!.verdict, authType: now!.authType });
                }
              }
            }
          }
        }
        const known = new Set([...identities.map(nameOf), 'host', 'remote-node']);
        const toldOutside = changes.some(({ from, to }) => !known.has(from) || !known.has(to));
        if (outside) expect(toldOutside).toBe(true);
      }),
      { numRuns: 30 },
    );
  });

  it('finds nothing between policies and themselves', () => {
    fc.assert(
      fc.property(somePolicies, (policies) => {
        expect([...diffPolicies({ before: set(policies), after: set(policies), rows: identities, nameOf })]).toEqual(
          [],
        );
      }),
      { numRuns: 50 },
    );
  });
});
