/**
 * The policies as the compiler works with them: every selector once, with a number; rules grouped by whom they select; and
 * for each selector the rules that name it. Knows no identities.
 */
import type { Direction } from '../model/datapath.ts';
import type { CidrPeer } from './cidr.ts';
import { cidrKey, WORLD_IPV4, WORLD_IPV6 } from './cidr.ts';
import type { NumberedSpec } from './numbered.ts';
import type { AuthMode, Entity, Peer, PortMatch, Requirement, Rule, Subject } from './rules.ts';

export const DIRECTIONS = ['egress', 'ingress'] as const;
/** Index into DIRECTIONS. */
export type Way = 0 | 1;
export const WAYS: readonly Way[] = [0, 1];
export const EGRESS: Way = 0;
export const INGRESS: Way = 1;

export function wayOf(direction: Direction): Way {
  return direction === 'egress' ? EGRESS : INGRESS;
}

/** The other side's. */
export function opposite(way: Way): Way {
  return way === EGRESS ? INGRESS : EGRESS;
}

export type BookSelector =
  | { readonly kind: 'workloads' | 'nodes'; readonly requirements: readonly Requirement[] }
  | { readonly kind: 'cidr'; readonly peer: CidrPeer }
  | { readonly kind: 'entity'; readonly entity: Entity };

export interface BookRule {
  readonly index: number;
  readonly way: Way;
  readonly deny: boolean;
  readonly enforced: boolean;
  readonly mode: AuthMode | undefined;
  /** Selector numbers. `requires` of the subject narrow the workloads alone. */
  readonly workloads: readonly number[];
  readonly others: readonly number[];
  /** Names everybody, besides those. */
  readonly everyone: boolean;
  readonly ports: readonly PortMatch[] | 'any';
  readonly group: number;
  /** Rules that differ in nothing but whom they select and name have the same. */
  readonly shape: number;
}

/** What is said, in one direction, of those whom one selector selects. */
export interface RuleGroup {
  readonly number: number;
  readonly way: Way;
  readonly rules: BookRule[];
  /** Those of them that name everybody. */
  readonly everyone: BookRule[];
  /** By the policies in force; by all. */
  readonly defaultDeny: [boolean, boolean];
  /** Selector numbers that workload peers must match as well. */
  readonly requires: [number[], number[]];
  /** Some rule asks for a proof. */
  demands: boolean;
  /** Some rule calls a port by its name. */
  portNames: boolean;
}

export interface Rulebook {
  readonly selectors: readonly BookSelector[];
  readonly groups: readonly RuleGroup[];
  /** Group number by way and subject's selector; undefined: nothing is said. */
  readonly groupOf: readonly [readonly (number | undefined)[], readonly (number | undefined)[]];
  /** Rules by way and a selector of their peers. */
  readonly byPeer: readonly [
    readonly (readonly BookRule[] | undefined)[],
    readonly (readonly BookRule[] | undefined)[],
  ];
  /** Those selectors by way: peers and requires. */
  readonly isPeer: readonly [Uint8Array, Uint8Array];
  /** Some rule of that way asks for a proof: the other side must know what it says. */
  readonly demands: readonly [boolean, boolean];
  /** Some rule of that way that bears on the proof calls a port by its name. */
  readonly bearingPortNames: readonly [boolean, boolean];
  /** Names that ports are called by. */
  readonly portNames: ReadonlySet<string>;
}

/** Does the rule bear on what the other side's hook must ask for? Plain allowances do not. */
export function bearsOnProof(rule: BookRule): boolean {
  return rule.deny || rule.mode !== undefined;
}

const NOBODY: readonly number[] = [];

export function writeRulebook(specs: readonly NumberedSpec[]): Rulebook {
  const selectors: BookSelector[] = [];
  const numbers = new Map<string, number>();
  const groups: RuleGroup[] = [];
  const groupOf: [number[], number[]] = [[], []];
  const byPeer: [BookRule[][], BookRule[][]] = [[], []];
  const peers: [Set<number>, Set<number>] = [new Set(), new Set()];
  const demands: [boolean, boolean] = [false, false];
  const bearingPortNames: [boolean, boolean] = [false, false];
  const portNames = new Set<string>();

  const numberOf = (selector: BookSelector): number => {
    const key = keyOf(selector);
    let number = numbers.get(key);
    if (number === undefined) {
      number = selectors.push(selector) - 1;
      numbers.set(key, number);
    }
    return number;
  };
  const shapes = new Map<string, number>();
  const shapeOf = ({ action, mode, ports }: Rule, enforced: boolean): number => {
    const key = `${action} ${mode} ${enforced} ${ports === 'any' ? ports : ports.map(portKey).join()}`;
    let shape = shapes.get(key);
    if (shape === undefined) {
      shape = shapes.size;
      shapes.set(key, shape);
    }
    return shape;
  };
  const groupAt = (way: Way, subject: Subject): RuleGroup => {
    const selector = numberOf({ kind: subject.kind, requirements: subject.selector.requirements });
    const known = groupOf[way][selector];
    if (known !== undefined) return groups[known]!;
    const number = groups.length;
    const group: RuleGroup = {
      number,
      way,
      rules: [],
      everyone: [],
      defaultDeny: [false, false],
      requires: [[], []],
      demands: false,
      portNames: false,
    };
    groupOf[way][selector] = number;
    groups.push(group);
    return group;
  };

  for (const { spec, enforced, rules } of specs) {
    const views: readonly (0 | 1)[] = enforced ? [0, 1] : [1];
    for (const direction of DIRECTIONS) {
      const way = wayOf(direction);
      const requires = spec.requires[direction];
      if (!spec.defaultDeny[direction] && requires.length === 0) continue;
      const group = groupAt(way, spec.subject);
      for (const view of views) if (spec.defaultDeny[direction]) group.defaultDeny[view] = true;
      if (requires.length === 0) continue;
      const selector = numberOf({ kind: 'workloads', requirements: requires });
      peers[way].add(selector);
      for (const view of views) if (!group.requires[view].includes(selector)) group.requires[view].push(selector);
    }
    for (const { index, rule } of rules) {
      const way = wayOf(rule.direction);
      const group = groupAt(way, spec.subject);
      const named = rule.peers === 'any' ? [] : rule.peers;
      const numbersOf = (some: readonly Peer[]) =>
        some.length === 0 ? NOBODY : [...new Set(some.map((peer) => numberOf(selectorOf(peer))))];
      const made: BookRule = {
        index,
        way,
        deny: rule.action === 'deny',
        enforced,
        mode: rule.mode,
        workloads: numbersOf(named.filter(({ kind }) => kind === 'workloads')),
        others: numbersOf(named.filter((peer) => peer.kind !== 'workloads' && !isEveryone(peer))),
        everyone: rule.peers === 'any' || named.some(isEveryone),
        ports: rule.ports,
        group: group.number,
        shape: shapeOf(rule, enforced),
      };
      group.rules.push(made);
      if (made.everyone) group.everyone.push(made);
      if (rule.mode !== undefined && rule.mode !== 'disabled') {
        group.demands = true;
        demands[way] = true;
      }
      for (const selector of [...made.workloads, ...made.others]) {
        peers[way].add(selector);
        const list = byPeer[way][selector];
        if (list === undefined) byPeer[way][selector] = [made];
        else list.push(made);
      }
      for (const match of rule.ports === 'any' ? [] : rule.ports) {
        if (!('name' in match)) continue;
        portNames.add(match.name);
        group.portNames = true;
        if (bearsOnProof(made)) bearingPortNames[way] = true;
      }
    }
  }
  const flags = (way: Way) => Uint8Array.from(selectors, (_, selector) => Number(peers[way].has(selector)));
  return { selectors, groups, groupOf, byPeer, isPeer: [flags(0), flags(1)], demands, bearingPortNames, portNames };
}

function portKey(match: PortMatch): string {
  if ('name' in match) return `${match.protocols.join(' ')} ${match.name.length} ${match.name}`;
  return 'ports' in match ? `${match.protocol}` : `${match.protocol} ${match.first}-${match.last}`;
}

function isEveryone(peer: Peer): boolean {
  return peer.kind === 'entity' && peer.entity === 'all';
}

function selectorOf(peer: Peer): BookSelector {
  switch (peer.kind) {
    case 'workloads':
      return { kind: 'workloads', requirements: peer.selector.requirements };
    case 'cidr':
      return { kind: 'cidr', peer };
    case 'entity':
      if (peer.entity === 'world-ipv4') return { kind: 'cidr', peer: WORLD_IPV4 };
      if (peer.entity === 'world-ipv6') return { kind: 'cidr', peer: WORLD_IPV6 };
      return peer;
    default:
      return peer satisfies never;
  }
}

function keyOf(selector: BookSelector): string {
  switch (selector.kind) {
    case 'workloads':
    case 'nodes': {
      const parts = selector.requirements.map(requirementKey);
      return `${selector.kind} ${(parts.length < 2 ? parts : parts.sort()).join(' ')}`;
    }
    case 'cidr':
      return `cidr ${cidrKey(selector.peer.prefix)} ${selector.peer.except.map(cidrKey).sort().join(' ')}`;
    case 'entity':
      return `entity ${selector.entity}`;
    default:
      return selector satisfies never;
  }
}

/** Keys and values are any text: their lengths tell each from the next. */
function requirementKey({ key, operator, values }: Requirement): string {
  let text = `${operator} ${key.length} ${key}`;
  for (const value of values.length < 2 ? values : [...values].sort()) text += ` ${value.length} ${value}`;
  return text;
}
