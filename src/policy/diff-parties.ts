/**
 * Between whom verdicts may differ from one set of policies to another: workloads that neither set tells apart taken together,
 * nodes, and the addresses outside cut into pieces along the prefixes of both sets.
 */
import { addressBytes, addressFromBytes, datapathPrefixLength, isIpv4, type Prefix } from '../model/address.ts';
import type { Direction } from '../model/datapath.ts';
import type { IdentityRow, Labels } from '../model/identity.ts';
import {
  IDENTITY_HOST,
  IDENTITY_REMOTE_NODE,
  IDENTITY_WORLD,
  type IpAddress,
  type SecurityIdentity,
} from '../model/ids.ts';
import type { CompiledPolicy } from './compiled.ts';
import { plainLabels, selects } from './labels.ts';
import type { Policy, PolicySpec, Rule } from './rules.ts';

export interface PolicySet {
  readonly policies: readonly Policy[];
  readonly compiled: CompiledPolicy;
}

export interface DiffInputs {
  readonly before: PolicySet;
  readonly after: PolicySet;
  readonly rows: readonly IdentityRow[];
  nameOf(row: IdentityRow): string;
  readonly nodeLabels?: Labels | undefined;
}

/** One side of a packet. */
export interface Party {
  readonly names: readonly string[];
  readonly row: IdentityRow | undefined;
  /** Without their source; undefined: no workload. */
  readonly labels: ReadonlyMap<string, string> | undefined;
  readonly before: SecurityIdentity;
  readonly after: SecurityIdentity;
  /** Those in force, of either set, that are about it. */
  readonly rules: Readonly<Record<Direction, readonly Rule[]>>;
  /** Those that only one of the sets has. 'all': something is different that concerns every peer. */
  readonly changed: Readonly<Record<Direction, readonly Rule[] | 'all'>>;
}

/** False only if it certainly does not. */
export function mayName({ peers }: Rule, { labels }: Party): boolean {
  if (peers === 'any') return true;
  return peers.some((peer) => {
    if (peer.kind === 'workloads') return labels !== undefined && selects(peer.selector, labels);
    return peer.kind === 'entity' || labels === undefined;
  });
}

export function partiesOf({ before, after, rows, nameOf, nodeLabels }: DiffInputs): Party[] {
  const sets = [before, after].map(({ policies, compiled }) => ({
    compiled,
    specs: specsInForce(policies),
    classes: classesOf(compiled),
  }));
  const nodes = nodeLabels === undefined ? undefined : plainLabels(nodeLabels);
  const party = (names: readonly string[], row: IdentityRow | undefined, ids: readonly SecurityIdentity[]): Party => {
    const labels = row === undefined ? undefined : plainLabels(row.labels);
    const [old, now] = sets.map(({ specs }) =>
      specs.filter(({ subject }) => {
        if (subject.kind === 'workloads') return labels !== undefined && selects(subject.selector, labels);
        return ids[0] === IDENTITY_HOST && nodes !== undefined && selects(subject.selector, nodes);
      }),
    ) as [PolicySpec[], PolicySpec[]];
    const each = <T>(of: (direction: Direction) => T) => ({ egress: of('egress'), ingress: of('ingress') });
    return {
      names,
      row,
      labels,
      before: ids[0]!,
      after: ids[1]!,
      rules: each((direction) => [...rulesOf(old, direction), ...rulesOf(now, direction)]),
      changed: each((direction) => changedRules(old, now, direction)),
    };
  };
  const groups = new Map<string, IdentityRow[]>();
  for (const row of rows) {
    const key = sets.map(({ classes }) => classes.get(row.identity)).join(' ');
    const group = groups.get(key);
    if (group === undefined) groups.set(key, [row]);
    else group.push(row);
  }
  const same = (identity: SecurityIdentity) => [identity, identity];
  const prefixes = sets.flatMap(({ compiled }) => compiled.tables.cidrs.map(({ prefix }) => prefix));
  return [
    ...[...groups.values()].map((alike) => party(alike.map(nameOf), alike[0], same(alike[0]!.identity))),
    party(['host'], undefined, same(IDENTITY_HOST)),
    party(['remote-node'], undefined, same(IDENTITY_REMOTE_NODE)),
    ...piecesOf(prefixes).map(({ name, address }) => {
      if (address === undefined) return party([name], undefined, same(IDENTITY_WORLD));
      return party(
        [name],
        undefined,
        sets.map(({ compiled }) => compiled.identityOfAddress(address)),
      );
    }),
  ];
}

function specsInForce(policies: readonly Policy[]): PolicySpec[] {
  return policies.filter(({ enforcement }) => enforcement === 'enforce').flatMap(({ specs }) => specs);
}

/** Identities with the same classes get the same verdicts, whoever they talk to. */
function classesOf({ tables }: CompiledPolicy): Map<number, string> {
  return new Map(tables.classes.map(({ identity, local, remote }) => [identity, JSON.stringify([local, remote])]));
}

function rulesOf(specs: readonly PolicySpec[], direction: Direction): Rule[] {
  return specs.flatMap(({ rules }) => rules.filter((rule) => rule.direction === direction));
}

/** Wherever the rules stand and in whatever order. */
function changedRules(old: readonly PolicySpec[], now: readonly PolicySpec[], direction: Direction): Rule[] | 'all' {
  const around = [old, now].map((specs) => {
    const requires = new Set(specs.flatMap((spec) => spec.requires[direction].map((one) => JSON.stringify(one))));
    return JSON.stringify([specs.some((spec) => spec.defaultDeny[direction]), [...requires].sort()]);
  });
  if (around[0] !== around[1]) return 'all';
  const [before, after] = [old, now].map(
    (specs) => new Map(rulesOf(specs, direction).map((rule) => [meaningOf(rule), rule])),
  ) as [Map<string, Rule>, Map<string, Rule>];
  return [
    ...[...before].filter(([meaning]) => !after.has(meaning)),
    ...[...after].filter(([meaning]) => !before.has(meaning)),
  ].map(([, rule]) => rule);
}

function meaningOf({ action, peers, ports, mode }: Rule): string {
  return JSON.stringify([action, peers, ports, mode]);
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
function piecesOf(prefixes: readonly Prefix[]): { name: string; address: IpAddress | undefined }[] {
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
