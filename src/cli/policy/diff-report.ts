/** `countersign policy diff`: changed verdicts, those who share a change together. */
import type { IdentityRow, Labels } from '../../model/identity.ts';
import { compilePolicy } from '../../policy/compile.ts';
import { diffPolicies, type PairChange, type TrafficChange } from '../../policy/diff.ts';
import type { Policy } from '../../policy/rules.ts';
import type { Workloads } from './sources.ts';
import { MODE_OF, trafficText } from './words.ts';

interface Change {
  readonly traffic: readonly string[];
  readonly old: SideOfChange;
  readonly new: SideOfChange;
}
interface SideOfChange {
  readonly verdict: 'allow' | 'deny';
  readonly authentication: string;
}

export interface DiffReport {
  readonly workloads: number;
  readonly pairs: {
    readonly changed: number;
    readonly opened: number;
    readonly closed: number;
    readonly authentication: number;
  };
  readonly changes: readonly {
    readonly from: readonly string[];
    readonly to: readonly string[];
    readonly verdicts: readonly Change[];
  }[];
}

/** A diff of more pairs than this is no diff any more. */
const MAX_PAIRS = 1_000_000;

export function diffReport(
  before: readonly Policy[],
  after: readonly Policy[],
  workloads: Workloads,
  nodeLabels: Labels | undefined,
): DiffReport {
  const set = (policies: readonly Policy[]) => ({ policies, compiled: compile(policies, workloads.rows, nodeLabels) });
  const pairs: PairChange[] = [];
  const inputs = { before: set(before), after: set(after), rows: workloads.rows, nameOf: workloads.nameOf, nodeLabels };
  for (const pair of diffPolicies(inputs)) if (pairs.push(pair) >= MAX_PAIRS) break;
  const has = (test: (change: TrafficChange) => boolean) => pairs.filter(({ changes }) => changes.some(test)).length;
  return {
    workloads: workloads.rows.length,
    pairs: {
      changed: pairs.length,
      opened: has((c) => c.before.verdict === 'deny' && c.after.verdict === 'allow'),
      closed: has((c) => c.before.verdict === 'allow' && c.after.verdict === 'deny'),
      authentication: has((c) => c.before.verdict === c.after.verdict),
    },
    changes: together(pairs),
  };
}

function compile(policies: readonly Policy[], rows: readonly IdentityRow[], nodeLabels: Labels | undefined) {
  return compilePolicy(
    policies,
    rows,
    rows.map(({ identity }) => identity),
    { nodeLabels },
  );
}

/** First the receivers that change alike for one sender, then the senders whose receivers do. */
function together(pairs: readonly PairChange[]): DiffReport['changes'] {
  const bySender = new Map<string, { from: string; to: string[]; changes: readonly TrafficChange[] }>();
  for (const { from, to, changes } of pairs) {
    const key = JSON.stringify([from, changes]);
    const group = bySender.get(key);
    if (group === undefined) bySender.set(key, { from, to: [to], changes });
    else group.to.push(to);
  }
  const groups = new Map<string, { from: string[]; to: string[]; changes: readonly TrafficChange[] }>();
  for (const { from, to, changes } of bySender.values()) {
    const key = JSON.stringify([to, changes]);
    const group = groups.get(key);
    if (group === undefined) groups.set(key, { from: [from], to, changes });
    else group.from.push(from);
  }
  return [...groups.values()].map(({ from, to, changes }) => ({ from, to, verdicts: byVerdict(changes) }));
}

function byVerdict(changes: readonly TrafficChange[]): Change[] {
  const groups = new Map<string, TrafficChange[]>();
  for (const change of changes) {
    const key = JSON.stringify([change.before, change.after]);
    groups.set(key, [...(groups.get(key) ?? []), change]);
  }
  return [...groups.values()].map((same) => {
    const { before, after } = same[0]!;
    return {
      traffic: same.map(({ traffic }) => trafficText(traffic)),
      old: { verdict: before.verdict, authentication: MODE_OF[before.authType] },
      new: { verdict: after.verdict, authentication: MODE_OF[after.authType] },
    };
  });
}

export function diffText({ workloads, pairs, changes }: DiffReport): string {
  const count = `${workloads} ${workloads === 1 ? 'workload' : 'workloads'}`;
  if (changes.length === 0) return `no verdict changes between ${count} and everybody else`;
  const blocks = changes.map(({ from, to, verdicts }) =>
    [
      `${from.join(', ')} -> ${to.join(', ')}`,
      ...verdicts.map((change) => `  ${change.traffic.join(', ')}: ${said(change.old)} => ${said(change.new)}`),
    ].join('\n'),
  );
  const { changed, opened, closed, authentication } = pairs;
  const total = `${changed} ${changed === 1 ? 'pair changes' : 'pairs change'}: ${opened} opened, ${closed} closed, ${authentication} in authentication`;
  return [...blocks, total].join('\n');
}

function said({ verdict, authentication }: SideOfChange): string {
  return authentication === 'none' ? verdict : `${verdict}, authentication ${authentication}`;
}
