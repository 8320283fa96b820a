/**
 * Which verdicts change from one set of policies to another: for every pair of parties, along the port numbers, only at
 * the places where some rule of either set begins or ends.
 */
import type { AuthType, Direction } from '../model/datapath.ts';
import type { IdentityRow } from '../model/identity.ts';
import { type DiffInputs, mayName, type Party, partiesOf } from './diff-parties.ts';
import { effectOf } from './effect.ts';
import type { PortMatch } from './rules.ts';

export interface VerdictText {
  readonly verdict: 'allow' | 'deny';
  readonly authType: AuthType;
}

/** Ports are message types where the protocol is ICMP. `besides`: every protocol but these. */
export type Traffic =
  | { readonly protocol: number; readonly first: number; readonly last: number }
  | { readonly besides: readonly number[] };

export interface TrafficChange {
  readonly traffic: Traffic;
  readonly before: VerdictText;
  readonly after: VerdictText;
}

export interface PairChange {
  readonly from: string;
  readonly to: string;
  readonly changes: readonly TrafficChange[];
}

/** Assigned to experiments (RFC 3692): no rule can name it. */
const UNNAMED_PROTOCOL = 253;
const LAST_PORT = 65_535;
const LAST_ICMP_TYPE = 255;
const ICMP_PROTOCOLS: readonly number[] = [1, 58];

/** @yields pairs with at least one change, in the order of the parties. Parties that are alike are given by each of their names. */
export function* diffPolicies(inputs: DiffInputs): Generator<PairChange> {
  const parties = partiesOf(inputs);
  for (const from of parties) {
    for (const to of parties) {
      if (!mayChange(from, 'egress', to) && !mayChange(to, 'ingress', from)) continue;
      const changes = changesOf(inputs, from, to);
      if (changes.length === 0) continue;
      for (const a of from.names) for (const b of to.names) yield { from: a, to: b, changes };
    }
  }
}

function mayChange({ changed }: Party, direction: Direction, peer: Party): boolean {
  const rules = changed[direction];
  return rules === 'all' || rules.some((rule) => mayName(rule, peer));
}

function changesOf({ before, after }: DiffInputs, from: Party, to: Party): TrafficChange[] {
  const rules = [
    ...from.rules.egress.filter((rule) => mayName(rule, to)),
    ...to.rules.ingress.filter((rule) => mayName(rule, from)),
  ];
  const cuts = new Map<number, Set<number>>();
  for (const { ports } of rules) {
    if (ports === 'any') continue;
    for (const { protocol, first, last } of ports.flatMap((match) => rangesOf(match, to.row))) {
      const at = cuts.get(protocol) ?? new Set([0]);
      cuts.set(protocol, at.add(first).add(last + 1));
    }
  }
  const changes: TrafficChange[] = [];
  const look = (protocol: number, first: number, last: number) => {
    const areWorkloads = from.row !== undefined && to.row !== undefined;
    const [old, now] = [
      effectOf(before.compiled.decide(from.before, to.before, protocol, first), areWorkloads),
      effectOf(after.compiled.decide(from.after, to.after, protocol, first), areWorkloads),
    ];
    if (old.verdict === now.verdict && old.authType === now.authType) return;
    const besides = [...cuts.keys()].sort((a, b) => a - b);
    const traffic: Traffic = protocol === UNNAMED_PROTOCOL ? { besides } : { protocol, first, last };
    add(changes, { traffic, before: textOf(old), after: textOf(now) });
  };
  for (const [protocol, at] of [...cuts].sort(([a], [b]) => a - b)) {
    const end = ICMP_PROTOCOLS.includes(protocol) ? LAST_ICMP_TYPE : LAST_PORT;
    const firsts = [...at].filter((port) => port <= end).sort((a, b) => a - b);
    firsts.forEach((first, i) => {
      look(protocol, first, (firsts[i + 1] ?? end + 1) - 1);
    });
  }
  look(UNNAMED_PROTOCOL, 0, LAST_PORT);
  return changes;
}

const textOf = ({ verdict, authType }: VerdictText): VerdictText => ({ verdict, authType });

/** Neighbours that change alike are one. */
function add(changes: TrafficChange[], change: TrafficChange): void {
  const last = changes.at(-1);
  const [a, b] = [last?.traffic, change.traffic];
  const isNext =
    a !== undefined && 'protocol' in a && 'protocol' in b && a.protocol === b.protocol && a.last + 1 === b.first;
  if (last !== undefined && isNext && verdictsOf(last) === verdictsOf(change))
    changes[changes.length - 1] = { ...last, traffic: { ...a, last: b.last } };
  else changes.push(change);
}

const verdictsOf = ({ before, after }: TrafficChange) => JSON.stringify([before, after]);

function rangesOf(
  match: PortMatch,
  receiver: IdentityRow | undefined,
): { protocol: number; first: number; last: number }[] {
  if ('ports' in match) return [{ protocol: match.protocol, first: 0, last: LAST_PORT }];
  if (!('name' in match)) return [match];
  return (receiver?.ports ?? [])
    .filter(({ name, protocol }) => name === match.name && match.protocols.includes(protocol))
    .map(({ protocol, port }) => ({ protocol, first: port, last: port }));
}
