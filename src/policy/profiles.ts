/**
 * Which selectors an identity matches, and which ports it names: its profile. Nothing else of an identity bears on policy,
 * and identities with the same profile are one to it.
 */
import type { IdentityRow, NamedPort } from '../model/identity.ts';
import { type CidrPeer, cidrKey, lineage } from './cidr.ts';
import type { Party } from './evaluate.ts';
import { plainLabels, selects } from './labels.ts';
import type { Rulebook, Way } from './rulebook.ts';
import type { Entity, Requirement } from './rules.ts';

export interface Profile {
  readonly number: number;
  /** Ascending. */
  readonly selectors: readonly number[];
  /** Those that a policy names. */
  readonly ports: readonly NamedPort[];
  readonly isWorkload: boolean;
  /** By way: numbers of the rule groups that select it. */
  readonly groups: readonly [readonly number[], readonly number[]];
}

export type WorkloadParty = Extract<Party, { kind: 'workload' }>;

export function workloadParty(row: IdentityRow): WorkloadParty {
  return { kind: 'workload', labels: plainLabels(row.labels), ports: row.ports ?? [] };
}

export class Profiles {
  readonly #book: Rulebook;
  readonly #hostSelectors: readonly number[];
  readonly #entities: ReadonlyMap<Entity, number>;
  /** By prefix: the selectors that begin there, with what they leave out. */
  readonly #cidrs: ReadonlyMap<string, readonly { selector: number; peer: CidrPeer }[]>;
  /** By "key=value": selectors that need it. The others must be tried on every workload. */
  readonly #needing = new Map<string, WorkloadSelector[]>();
  readonly #untied: WorkloadSelector[] = [];
  readonly #known = new Map<string, Profile>();

  constructor(book: Rulebook, nodeLabels: ReadonlyMap<string, string> | undefined) {
    this.#book = book;
    const entities = new Map<Entity, number>();
    const byPrefix = new Map<string, { selector: number; peer: CidrPeer }[]>();
    const host: number[] = [];
    const workloads: WorkloadSelector[] = [];
    book.selectors.forEach((selector, number) => {
      switch (selector.kind) {
        case 'workloads':
          workloads.push({ number, requirements: selector.requirements });
          break;
        case 'nodes':
          if (nodeLabels !== undefined && selects(selector, nodeLabels)) host.push(number);
          break;
        case 'cidr': {
          const key = cidrKey(selector.peer.prefix);
          const list = byPrefix.get(key) ?? [];
          list.push({ selector: number, peer: selector.peer });
          byPrefix.set(key, list);
          break;
        }
        case 'entity':
          entities.set(selector.entity, number);
          break;
        default:
          selector satisfies never;
      }
    });
    this.#entities = entities;
    this.#cidrs = byPrefix;
    this.#hostSelectors = host;
    this.#tie(workloads);
  }

  of(party: Party): Profile {
    const selectors = this.#matching(party).sort((a, b) => a - b);
    const ports = party.kind === 'workload' ? party.ports.filter(({ name }) => this.#book.portNames.has(name)) : [];
    const isWorkload = party.kind === 'workload';
    const key = `${isWorkload}${selectors.join()}${ports.length === 0 ? '' : JSON.stringify(ports.map(portKey).sort())}`;
    let profile = this.#known.get(key);
    if (profile === undefined) {
      const groupsOf = (way: Way) => selectors.flatMap((selector) => this.#book.groupOf[way][selector] ?? []);
      profile = { number: this.#known.size, selectors, ports, isWorkload, groups: [groupsOf(0), groupsOf(1)] };
      this.#known.set(key, profile);
    }
    return profile;
  }

  #matching(party: Party): number[] {
    const found: number[] = [];
    const entity = (name: Entity) => {
      const selector = this.#entities.get(name);
      if (selector !== undefined) found.push(selector);
    };
    switch (party.kind) {
      case 'workload':
        entity('cluster');
        this.#workload(party.labels, found);
        break;
      case 'host':
        entity('cluster');
        entity('host');
        found.push(...this.#hostSelectors);
        break;
      case 'remote-node':
        entity('cluster');
        entity('remote-node');
        break;
      case 'world':
        entity('world');
        break;
      case 'cidr': {
        entity('world');
        const around = lineage(party.node);
        const keys = new Set(around.map(({ key }) => key));
        for (const { key } of around) {
          for (const { selector, peer } of this.#cidrs.get(key) ?? []) {
            if (!peer.except.some((hole) => keys.has(cidrKey(hole)))) found.push(selector);
          }
        }
        break;
      }
      default:
        party satisfies never;
    }
    return found;
  }

  #workload(labels: ReadonlyMap<string, string>, found: number[]): void {
    for (const [key, value] of labels) {
      const selectors = this.#needing.get(`${key}=${value}`);
      if (selectors === undefined) continue;
      for (const selector of selectors) if (selects(selector, labels)) found.push(selector.number);
    }
    for (const selector of this.#untied) if (selects(selector, labels)) found.push(selector.number);
  }

  /** Each selector to the requirement that fewest others share, so that an identity meets few that do not select it. */
  #tie(selectors: readonly WorkloadSelector[]): void {
    const shared = new Map<string, number>();
    const ties = (requirement: Requirement) => requirement.values.map((value) => `${requirement.key}=${value}`);
    for (const { requirements } of selectors) {
      for (const requirement of requirements) {
        if (requirement.operator !== 'In') continue;
        for (const tie of ties(requirement)) shared.set(tie, (shared.get(tie) ?? 0) + 1);
      }
    }
    for (const selector of selectors) {
      let best: string[] | undefined;
      let least = Number.POSITIVE_INFINITY;
      for (const requirement of selector.requirements) {
        if (requirement.operator !== 'In') continue;
        const tied = [...new Set(ties(requirement))];
        const cost = tied.reduce((sum, tie) => sum + shared.get(tie)!, 0);
        if (cost < least) [best, least] = [tied, cost];
      }
      if (best === undefined) this.#untied.push(selector);
      for (const tie of best ?? []) {
        const list = this.#needing.get(tie);
        if (list === undefined) this.#needing.set(tie, [selector]);
        else list.push(selector);
      }
    }
  }
}

interface WorkloadSelector {
  readonly number: number;
  readonly requirements: readonly Requirement[];
}

function portKey({ name, protocol, port }: NamedPort): string {
  return JSON.stringify([name, protocol, port]);
}
