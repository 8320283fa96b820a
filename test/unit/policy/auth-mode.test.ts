/** Of rules that allow the same packet, whose authentication holds: held against rules written out as sets of packets. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { type Claim, decidingClaim, narrowestClaim, withoutIdleClaims } from '../../../src/policy/auth-mode.ts';
import type { AuthMode } from '../../../src/policy/rules.ts';

/** A packet of TCP port 2 from the named peer is asked about; each claim is a set of packets that holds it. */
const PEERS = ['named', 'another'];
const PROTOCOLS = ['tcp', 'udp'];
const PORTS = [0, 1, 2, 3, 4];
const LAST = 65_535;

function packets({ namesPeer, namesProtocol, first, last }: Claim): Set<string> {
  const found = new Set<string>();
  for (const peer of namesPeer ? ['named'] : PEERS) {
    for (const protocol of namesProtocol ? ['tcp'] : PROTOCOLS) {
      for (const port of PORTS) if (first <= port && port <= last) found.add(`${peer} ${protocol} ${port}`);
    }
  }
  return found;
}

const isInside = (inner: Set<string>, outer: Set<string>) =>
  inner.size < outer.size && [...inner].every((one) => outer.has(one));

const mode = fc.constantFrom<AuthMode | undefined>(
  undefined,
  'disabled',
  'required',
  'required-connection',
  'test-always-fail',
);
const ports = fc
  .constantFrom([2, 2], [1, 2], [2, 3], [1, 3], [0, LAST])
  .map(([first, last]) => ({ first: first!, last: last! }));
const claims = fc.array(fc.tuple(fc.boolean(), fc.boolean(), ports, mode), { maxLength: 7 }).map((drawn) =>
  drawn.map(([namesPeer, namesProtocol, range, mode], i): Claim => {
    const whole = namesProtocol ? range : { first: 0, last: LAST };
    return { rule: i + 1, mode, namesPeer, namesProtocol, ...whole };
  }),
);

const STRENGTH = ['disabled', 'required', 'required-connection', 'test-always-fail'];

function bySets(claims: readonly Claim[]): string | undefined {
  const explicit = claims.filter(({ mode }) => mode !== undefined);
  const narrowest = explicit.filter((one) => !explicit.some((other) => isInside(packets(other), packets(one))));
  return STRENGTH[Math.max(-1, ...narrowest.map(({ mode }) => STRENGTH.indexOf(mode!)))];
}

describe('the claim that decides', () => {
  it('is the strongest of those that no explicit one lies inside', () => {
    fc.assert(
      fc.property(claims, (drawn) => {
        expect(decidingClaim(drawn)?.mode).toBe(bySets(drawn));
      }),
      { numRuns: 2_000 },
    );
  });

  it('does not hang on the order, nor on claims that are left out as idle', () => {
    fc.assert(
      fc.property(claims, claims, (some, others) => {
        const more = others.map((claim) => ({ ...claim, rule: claim.rule + 100 }));
        const all = [...some, ...more];
        const fewer = [...more, ...withoutIdleClaims(some)];
        for (const list of [[...all].reverse(), fewer]) {
          expect(decidingClaim(list)?.rule).toBe(decidingClaim(all)?.rule);
          expect(narrowestClaim(list)?.rule).toBe(narrowestClaim(all)?.rule);
        }
      }),
      { numRuns: 2_000 },
    );
  });
});
