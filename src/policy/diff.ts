/**
 * Which verdicts change from one set of policies to another: for every pair of parties, along the port numbers, only at
 * the places where some rule of either set begins or ends.
 */
import { addressBytes, addressFromBytes, datapathPrefixLength, isIpv4, type Prefix } from '../model/address.ts';
import type { AuthType, Direction } from '../model/datapath.ts';
import type { IdentityRow, Labels } from '../model/identity.ts';
import {
  IDENTITY_HOST,
  IDENTITY_REMOTE_NODE,
  IDENTITY_WORLD,
  type IpAddress,
  type SecurityIdentity,
} from '../model/ids.ts';
import type { CompiledPolicy } from './compiled.ts';
import { effectOf } from './effect.ts';
import { plainLabels, selects } from './labels.ts';
import type { Policy, PolicySpec, PortMatch } from './rules.ts';

export interface PolicySet {
  readonly policies: readonly Policy[];
  readonly compiled: CompiledPolicy;
}

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

export interface DiffInputs {
  readonly before: PolicySet;
  readonly after: PolicySet;
  readonly rows: readonly IdentityRow[];
  nameOf(row: IdentityRow): string;
  readonly nodeLabels?: Labels | undefined;
}

/** One side of a packet: workloads that neither set tells apart, an entity, or a range of addresses. */
interface Party {
  readonly names: readonly string[];
  readonly row: IdentityRow | undefined;
  readonly before: SecurityIdentity;
  readonly after: SecurityIdentity;
  readonly specs: Readonly<Record<Direction, readonly PolicySpec[]>>;
  /** Some policy that selects it in this direction is not the same in both sets. */
  readonly differs: Readonly<Record<Direction, boolean>>;
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
      if (!from.differs.egress && !to.differs.ingress) continue;
      const changes = changesOf(inputs, from, to);
      if (changes.length === 0) continue;
      for (const a of from.names) for (const b of to.names) yield { from: a, to: b, changes };
    }
  }
}

function changesOf({ before, after }: DiffInputs, from: Party, to: Party): TrafficChange[] {
  const specs = [
    ...from.specs.egress.map((s) => [s, 'egress'] as const),
    ...to.specs.ingress.map((s) => [s, 'ingress'] as const),
  ];
  const cuts = new Map<number, Set<number>>();
  for (const [spec, direction] of specs) {
    for (const { direction: own, ports } of spec.rules) {
      if (own !== direction || ports === 'any') continue;
      for (const { protocol, first, last } of ports.flatMap((match) => rangesOf(match, to.row))) {
        const at = cuts.get(protocol) ?? new Set([0]);
        cuts.set(protocol, at.add(first).add(last + 1));
      }
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

function partiesOf({ before, after, rows, nameOf, nodeLabels }: DiffInputs): Party[] {
  const sets = [before, after].map((set) => ({
    ...set,
    specs: specsInForce(set.policies),
    classes: classesOf(set.compiled),
  }));
  const nodes = nodeLabels === undefined ? undefined : plainLabels(nodeLabels);
  const party = (names: readonly string[], row: IdentityRow | undefined, ids: readonly SecurityIdentity[]): Party => {
    const labels = row === undefined ? undefined : plainLabels(row.labels);
    const chosen = sets.map(({ specs }) =>
      specs.filter(({ subject }) => {
        if (subject.kind === 'workloads') return labels !== undefined && selects(subject.selector, labels);
        return ids[0] === IDENTITY_HOST && nodes !== undefined && selects(subject.selector, nodes);
      }),
    );
    const differs = (direction: Direction) => meaning(chosen[0]!, direction) !== meaning(chosen[1]!, direction);
    const both = chosen.flat();
    return {
      names,
      row,
      before: ids[0]!,
      after: ids[1]!,
      specs: { egress: both, ingress: both },
      differs: { egress: differs('egress'), ingress: differs('ingress') },
    };
  };
  const groups = new Map<string, IdentityRow[]>();
  for (const row of rows) {
    const key = sets.map(({ classes }) => classes.get(row.identity)).join(' ');
    groups.set(key, [...(groups.get(key) ?? []), row]);
  }
  const same = (identity: SecurityIdentity) => [identity, identity];
  return [
    ...[...groups.values()].map((alike) => party(alike.map(nameOf), alike[0], same(alike[0]!.identity))),
    party(['host'], undefined, same(IDENTITY_HOST)),
    party(['remote-node'], undefined, same(IDENTITY_REMOTE_NODE)),
    ...regionsOf(sets.flatMap(({ compiled }) => compiled.tables.cidrs.map(({ prefix }) => prefix))).map(
      ({ name, address }) =>
        party(
          [name],
          undefined,
          address === undefined ? same(IDENTITY_WORLD) : sets.map((set) => set.compiled.identityOfAddress(address)),
        ),
    ),
  ];
}

function specsInForce(policies: readonly Policy[]): PolicySpec[] {
  return policies.filter(({ enforcement }) => enforcement === 'enforce').flatMap(({ specs }) => specs);
}

/** Identities with the same classes get the same verdicts, whoever they talk to. */
function classesOf({ tables }: CompiledPolicy): Map<number, string> {
  return new Map(tables.classes.map(({ identity, local, remote }) => [identity, JSON.stringify([local, remote])]));
}

/** What the specs say of a direction, wherever they stand and in whatever order. */
function meaning(specs: readonly PolicySpec[], direction: Direction): string {
  const said = specs.map(({ rules, defaultDeny, requires }) =>
    JSON.stringify([
      rules
        .filter((rule) => rule.direction === direction)
        .map(({ action, peers, ports, mode }) => [action, peers, ports, mode]),
      defaultDeny[direction],
      requires[direction],
    ]),
  );
  return JSON.stringify([...new Set(said)].sort());
}

interface Region {
  readonly name: string;
  readonly v4: boolean;
  readonly first: bigint;
  readonly last: bigint;
  /** Prefixes right inside, by address. */
  readonly inside: Region[];
}

/** Addresses cut along the prefixes that either set names; one address stands for each piece. */
function regionsOf(prefixes: readonly Prefix[]): { name: string; address: IpAddress | undefined }[] {
  const byName = new Map(prefixes.map((prefix) => [`${prefix.address}/${prefix.length}`, prefix]));
  const regions = [...byName]
    .map(([name, prefix]): Region => ({ name, v4: isIpv4(prefix.address), ...boundsOf(prefix), inside: [] }))
    .sort((a, b) => Number(b.v4) - Number(a.v4) || compare(a.first, b.first) || compare(b.last, a.last));
  const around: Region[] = [];
  for (const region of regions) {
    while (around.length > 0 && (around.at(-1)!.v4 !== region.v4 || around.at(-1)!.last < region.first)) around.pop();
    around.at(-1)?.inside.push(region);
    around.push(region);
  }
  const pieces = regions.flatMap((region) => {
    const free = firstFree(region);
    return free === undefined ? [] : [{ name: nameOfPiece(region), address: addressOf(free, region.v4) }];
  });
  if (byName.has('0.0.0.0/0') && byName.has('::/0')) return pieces;
  return [...pieces, { name: byName.size === 0 ? 'world' : 'world (all other addresses)', address: undefined }];
}

/** The first address that is in none of the prefixes inside; undefined: they cover it. */
function firstFree({ first, last, inside }: Region): bigint | undefined {
  let at = first;
  for (const hole of inside) {
    if (hole.first > at) return at;
    at = hole.last + 1n;
  }
  return at <= last ? at : undefined;
}

const NAMED_HOLES = 3;

function nameOfPiece({ name, inside }: Region): string {
  if (inside.length === 0) return name;
  const named = inside.slice(0, NAMED_HOLES).map((hole) => hole.name);
  const more = inside.length > NAMED_HOLES ? ` and ${inside.length - NAMED_HOLES} more` : '';
  return `${name} but ${named.join(', ')}${more}`;
}

function compare(a: bigint, b: bigint): number {
  return a < b ? -1 : a > b ? 1 : 0;
}

function boundsOf(prefix: Prefix): { first: bigint; last: bigint } {
  const first = BigInt(`0x${addressBytes(prefix.address).toString('hex')}`);
  return { first, last: first + (1n << BigInt(128 - datapathPrefixLength(prefix))) - 1n };
}

function addressOf(number: bigint, v4: boolean): IpAddress {
  const bytes = Buffer.from(number.toString(16).padStart(32, '0'), 'hex');
  return addressFromBytes(v4 ? bytes.subarray(12) : bytes);
}
