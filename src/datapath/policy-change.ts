/**
 * How CIDR identities change with the policy and no packet meets the new owner of an address beside the old rules, or the
 * other way round: while both halves of the policy are there, each prefix that changes hands belongs to an identity that is
 * to the old half what its owner was, and to the new half what its owner will be.
 */
import type { PolicyClassRow } from '../model/datapath.ts';
import { type SecurityIdentity, securityIdentity } from '../model/ids.ts';
import { isSamePair } from './class-table.ts';
import { PREFIX_CLUSTER } from './layout.ts';
import type { PrefixRow, PrefixSet } from './prefix-table.ts';

/** As whom others speak to it. undefined: it has no class there, and must not get one. */
type RemoteClass = PolicyClassRow['remote'] | undefined;
type ClassOf = (identity: SecurityIdentity) => RemoteClass;
type Guests = Map<SecurityIdentity, RemoteClass>;

export interface PrefixChange {
  /** Written before the halves change places. */
  readonly during: readonly PrefixRow[];
  /** Written and deleted after it. */
  readonly put: readonly PrefixRow[];
  readonly stale: readonly PrefixRow[];
  /** Class rows that only the change needs, by half. */
  readonly guestsOfOld: Guests;
  readonly guestsOfNew: Guests;
}

/** Numbers that no compiler gives; where neither the old nor the new owner can stand for both. */
const firstStandIn = 0xfff0_0000;

export function planPrefixChange(
  before: PrefixSet,
  after: PrefixSet,
  oldClass: ClassOf,
  newClass: ClassOf,
): PrefixChange {
  const during: PrefixRow[] = [];
  const put: PrefixRow[] = [];
  const stale: PrefixRow[] = [];
  const guestsOfOld: Guests = new Map();
  const guestsOfNew: Guests = new Map();
  let next = firstStandIn;

  /** True if the identity is (or may become, and then does) of this class in that half. */
  const joins = (guests: Guests, classOf: ClassOf, identity: SecurityIdentity, wanted: RemoteClass) => {
    const known = classOf(identity);
    if (known !== undefined) return isSame(known, wanted);
    if (guests.has(identity)) return isSame(guests.get(identity), wanted);
    guests.set(identity, wanted);
    return true;
  };
  const standIn = (old: RemoteClass, coming: RemoteClass) => {
    for (;;) {
      const identity = securityIdentity(next++);
      if (oldClass(identity) !== undefined || newClass(identity) !== undefined) continue;
      guestsOfOld.set(identity, old);
      guestsOfNew.set(identity, coming);
      return identity;
    }
  };

  const change = (row: PrefixRow, from: SecurityIdentity, to: SecurityIdentity): SecurityIdentity => {
    // Nobody's addresses are judged by no policy.
    if (from === to || (row.flags & PREFIX_CLUSTER) !== 0) return to;
    if (joins(guestsOfOld, oldClass, to, oldClass(from))) return to;
    if (joins(guestsOfNew, newClass, from, newClass(to))) return from;
    return standIn(oldClass(from), newClass(to));
  };

  for (const [name, row] of after.rows()) {
    const known = before.get(name);
    if (known?.identity === row.identity && known.flags === row.flags) continue;
    const identity = change(row, known?.identity ?? before.coverIdentity(row), row.identity);
    if (known?.identity !== identity || known.flags !== row.flags) during.push({ ...row, identity });
    if (identity !== row.identity) put.push(row);
  }
  for (const [name, row] of before.rows()) {
    if (after.get(name) !== undefined) continue;
    const identity = change(row, row.identity, after.coverIdentity(row));
    if (identity !== row.identity) during.push({ ...row, identity });
    stale.push(row);
  }
  return { during, put, stale, guestsOfOld, guestsOfNew };
}

function isSame(a: RemoteClass, b: RemoteClass): boolean {
  return a === undefined || b === undefined ? a === b : isSamePair(a, b);
}
