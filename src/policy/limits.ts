/** What the kernel's maps hold. A policy that is too large is refused before anything is written, and by name. */
import { CountersignError } from '../base/errors.ts';
import type { PolicyRule } from './compiled.ts';

/** Half of cs_policy: while one version is put in force, the one before is still there. */
export const MAX_ENTRIES = 262_144;
/** Half of cs_classes. */
export const MAX_IDENTITIES = 65_536;
/** Of cs_prefixes, beside the cluster's own and those of the version before. */
export const MAX_CIDRS = 8_000;

/** Numbers that behaviours are written with: 64 MB. What rules say of ports is kept once for each peer they treat differently. */
export const MAX_DETAIL = 8_000_000;

/** `byRule`: how many entries each rule has so far. @throws CountersignError always */
export function refuseEntries(byRule: ReadonlyMap<number, number>, rules: readonly PolicyRule[]): never {
  const worst = largest(byRule, rules);
  const who =
    worst === undefined
      ? ''
      : `; ${worst.file}:${worst.line}: ${worst.policy} alone takes ${worst.count} of them: let its rules name their peers by fewer, broader selectors and their ports as ranges, or let it select fewer of this node's endpoints`;
  throw new CountersignError(
    'exhausted',
    `the policies need more than ${MAX_ENTRIES} entries in the kernel's policy map, which is what fits${who}`,
  );
}

/** `selecting`: the rules of the endpoint that was too much. @throws CountersignError always */
export function refuseDetail(selecting: readonly number[], rules: readonly PolicyRule[]): never {
  const worst = largest(new Map(selecting.map((rule) => [rule, 1])), rules);
  const who =
    worst === undefined ? '' : `; ${worst.file}:${worst.line}: ${worst.policy} alone has ${worst.count} rules`;
  throw new CountersignError(
    'exhausted',
    `one endpoint is selected by ${selecting.length} rules that say too much to weigh against each other${who}: merge those that differ only in their ports, and those that differ only in their peers`,
  );
}

/** @throws CountersignError if there are too many identities or prefixes */
export function checkSizes(
  identities: number,
  cidrsByRule: () => ReadonlyMap<number, number>,
  cidrs: number,
  rules: readonly PolicyRule[],
): void {
  if (cidrs <= MAX_CIDRS && identities + cidrs <= MAX_IDENTITIES) return;
  const worst = largest(cidrsByRule(), rules);
  const who =
    worst === undefined
      ? ''
      : `; ${worst.file}:${worst.line}: ${worst.policy} alone names ${worst.count}: let it name fewer, broader prefixes`;
  throw new CountersignError(
    'exhausted',
    cidrs > MAX_CIDRS
      ? `the policies name ${cidrs} address prefixes, and the kernel's map holds ${MAX_CIDRS}${who}`
      : `${identities} identities and ${cidrs} address prefixes are more than the ${MAX_IDENTITIES} that the kernel's map of classes holds${who}`,
  );
}

function largest(byRule: ReadonlyMap<number, number>, rules: readonly PolicyRule[]) {
  const byPolicy = new Map<string, { file: string; line: number; policy: string; count: number }>();
  for (const [index, count] of byRule) {
    const rule = rules[index];
    if (index === 0 || rule === undefined) continue;
    const key = `${rule.file} ${rule.policy}`;
    const known = byPolicy.get(key) ?? { file: rule.file, line: rule.line, policy: rule.policy, count: 0 };
    known.count += count;
    byPolicy.set(key, known);
  }
  return [...byPolicy.values()].sort((a, b) => b.count - a.count)[0];
}
