/** A policy changes its CIDR identities: at every step each address is judged by the old policy as before or by the new as after. */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { planPrefixChange } from '../../../src/datapath/policy-change.ts';
import { mergePrefixes, type PrefixEntry, type PrefixRow, PrefixSet } from '../../../src/datapath/prefix-table.ts';
import { addressBytes, datapathPrefixLength, parseAddress, parsePrefix } from '../../../src/model/address.ts';
import type { CidrIdentity } from '../../../src/model/datapath.ts';
import { IDENTITY_WORLD, type SecurityIdentity, securityIdentity } from '../../../src/model/ids.ts';

const CLUSTER = 1;
const ENCRYPT = 2;
const FIRST = 1 << 24;

const id = (n: number) => securityIdentity(n);
const cidr = (text: string, n: number): CidrIdentity => ({ prefix: parsePrefix(text)!, identity: id(n) });
const range = (text: string, o: Partial<PrefixEntry> = {}): PrefixEntry => ({
  prefix: parsePrefix(text)!,
  identity: IDENTITY_WORLD,
  cluster: true,
  ...o,
});
const whole = (address: string) => ({ prefixlen: 128, addr: addressBytes(parseAddress(address)!) });

describe('cluster ranges and CIDR identities in one table', () => {
  const at = (set: PrefixSet, address: string) => {
    const row = set.cover(whole(address));
    return row && { identity: row.identity, flags: row.flags };
  };

  test('a CIDR inside the cluster stays nobody’s; one around it is its own', () => {
    const set = mergePrefixes([range('10.1.0.0/16')], [cidr('10.0.0.0/8', FIRST), cidr('10.1.2.0/24', FIRST + 1)]);
    expect(at(set, '10.1.2.3')?.flags).toBe(CLUSTER);
    expect(at(set, '10.1.3.3')?.flags).toBe(CLUSTER);
    expect(at(set, '10.2.0.1')).toEqual({ identity: FIRST, flags: 0 });
    expect(at(set, '11.0.0.1')).toBeUndefined();
  });

  test('a CIDR that is a cluster range is that range', () => {
    expect(at(mergePrefixes([range('10.1.0.0/16')], [cidr('10.1.0.0/16', FIRST)]), '10.1.2.3')?.flags).toBe(CLUSTER);
  });

  test('what must be encrypted must be whoever names it, and belongs to whom names it', () => {
    const demand = range('198.51.100.0/24', { cluster: false, encrypt: true });
    const set = mergePrefixes([demand], [cidr('198.51.0.0/16', FIRST), cidr('198.51.100.128/25', FIRST + 1)]);
    expect(at(set, '198.51.100.1')).toEqual({ identity: FIRST, flags: ENCRYPT });
    expect(at(set, '198.51.100.200')).toEqual({ identity: FIRST + 1, flags: ENCRYPT });
    expect(at(set, '198.51.1.1')).toEqual({ identity: FIRST, flags: 0 });
  });

  test('a range inside a range is both', () => {
    const set = mergePrefixes([range('fd00::/16', { encrypt: true }), range('fd00:1::/32')], []);
    expect(at(set, 'fd00:1::1')).toEqual({ identity: IDENTITY_WORLD, flags: CLUSTER | ENCRYPT });
  });

  test('the families do not meet', () => {
    const set = mergePrefixes([], [cidr('0.0.0.0/0', FIRST), cidr('::/0', FIRST + 1)]);
    expect(at(set, '192.0.2.1')?.identity).toBe(FIRST);
    expect(at(set, '2001:db8::1')?.identity).toBe(FIRST + 1);
  });
});

describe('a change of CIDR identities', () => {
  type Classes = ReadonlyMap<SecurityIdentity, number>;
  const remote = (n: number | undefined) => (n === undefined ? undefined : { egress: n, ingress: -n });

  /** Walks through the change as the policy table makes it, write by write; what each address is, after each. */
  function* steps(before: PrefixSet, after: PrefixSet, oldClasses: Classes, newClasses: Classes, order: number) {
    const plan = planPrefixChange(
      before,
      after,
      (identity) => remote(oldClasses.get(identity)),
      (identity) => remote(newClasses.get(identity)),
    );
    const old = new Map(oldClasses);
    const coming = new Map(newClasses);
    for (const [identity, row] of plan.guestsOfNew) if (row !== undefined) coming.set(identity, row.egress);
    for (const [identity, row] of plan.guestsOfOld) if (row !== undefined) old.set(identity, row.egress);
    const rows = new Map<string, PrefixRow>();
    const nameOf = (row: PrefixRow) => `${row.prefixlen} ${row.addr.toString('hex')}`;
    for (const [, row] of before.rows()) rows.set(nameOf(row), row);
    const now = () => new PrefixSet([...rows.values()]);
    // No step depends on the order of the others of its kind.
    const turned = <T>(list: readonly T[]) => (order % 2 === 0 ? list : list.toReversed());
    yield { classes: old, prefixes: now(), half: 'old' as const };
    for (const row of turned(plan.during)) {
      rows.set(nameOf(row), row);
      yield { classes: old, prefixes: now(), half: 'old' as const };
    }
    yield { classes: coming, prefixes: now(), half: 'new' as const };
    for (const row of turned(plan.put)) {
      rows.set(nameOf(row), row);
      yield { classes: coming, prefixes: now(), half: 'new' as const };
    }
    for (const row of turned(plan.stale)) {
      rows.delete(nameOf(row));
      yield { classes: coming, prefixes: now(), half: 'new' as const };
    }
    expect(new Map([...rows].map(([name, { identity, flags }]) => [name, { identity, flags }]))).toEqual(
      new Map([...after.rows()].map(([, row]) => [nameOf(row), { identity: row.identity, flags: row.flags }])),
    );
  }

  // Few bits, so that prefixes meet, nest and swap identities often.
  const prefixes = [0, 1, 2, 3, 4].flatMap((length) =>
    Array.from({ length: 2 ** length }, (_, i) => `${(i << (8 - length)) & 255}.0.0.0/${length}`),
  );
  const addresses = Array.from({ length: 32 }, (_, i) => `${i * 8}.1.2.3`);
  const policy = fc
    .tuple(
      fc.uniqueArray(fc.constantFrom(...prefixes), { maxLength: 8 }),
      fc.array(fc.integer({ min: 0, max: 3 }), { minLength: 8, maxLength: 8 }),
      fc.array(fc.integer({ min: 1, max: 3 }), { minLength: 4, maxLength: 4 }),
      fc.integer({ min: 1, max: 3 }),
    )
    .map(([named, identities, classes, world]) => {
      const cidrs = named.map((text, i) => cidr(text, FIRST + identities[i]!));
      const used = new Set(cidrs.map(({ identity }) => identity));
      return {
        cidrs,
        classes: new Map([[IDENTITY_WORLD, world], ...[...used].map((n) => [n, classes[n - FIRST]!] as const)]),
      };
    });
  const ranges = fc.uniqueArray(fc.constantFrom(...prefixes.slice(7)), { maxLength: 2 });

  test('shows no address a class that it had neither before nor after, whatever numbers the identities have', () => {
    fc.assert(
      fc.property(policy, policy, ranges, fc.nat(1), (from, to, cluster, order) => {
        const own = cluster.map((text) => range(text));
        const before = mergePrefixes(own, from.cidrs);
        const after = mergePrefixes(own, to.cidrs);
        const classAt = (prefixes: PrefixSet, classes: Classes, address: string) => {
          const row = prefixes.cover(whole(address));
          if (row !== undefined && (row.flags & CLUSTER) !== 0) return 'nobody';
          return classes.get(row?.identity ?? IDENTITY_WORLD);
        };
        for (const step of steps(before, after, from.classes, to.classes, order)) {
          for (const address of addresses) {
            const wanted =
              step.half === 'old' ? classAt(before, from.classes, address) : classAt(after, to.classes, address);
            expect(classAt(step.prefixes, step.classes, address)).toBe(wanted);
          }
        }
      }),
      { numRuns: 500 },
    );
  });

  test('a policy that stays writes nothing', () => {
    const set = mergePrefixes([range('10.0.0.0/8')], [cidr('0.0.0.0/0', FIRST)]);
    const plan = planPrefixChange(
      set,
      set,
      () => remote(1),
      () => remote(2),
    );
    expect([plan.during, plan.put, plan.stale].flat()).toEqual([]);
    expect(plan.guestsOfOld.size + plan.guestsOfNew.size).toBe(0);
  });

  test('a new CIDR is the world’s to the old half and needs no stand-in', () => {
    const plan = planPrefixChange(
      new PrefixSet([]),
      mergePrefixes([], [cidr('192.0.2.0/24', FIRST)]),
      (identity) => (identity === IDENTITY_WORLD ? remote(5) : undefined),
      () => remote(6),
    );
    expect([...plan.guestsOfOld]).toEqual([[FIRST, remote(5)]]);
    expect(plan.during.map(({ prefixlen, identity }) => [prefixlen, identity])).toEqual([
      [datapathPrefixLength(parsePrefix('192.0.2.0/24')!), FIRST],
    ]);
    expect(plan.put).toEqual([]);
  });
});
