/**
 * Classes of identities, by role and way: as the endpoint here (local) all that its own policy and what others say of it
 * can tell apart, as the other side (remote) all that rules can. Numbers of different roles and ways are unrelated.
 */
import type { Profile } from './profiles.ts';
import { EGRESS, INGRESS, opposite, type Rulebook, type Way } from './rulebook.ts';

/** The remote class of what nothing may reach or come from. No identity keeps it: some pass through it on their way. */
export const NOBODY = 1;
const FIRST_REMOTE = 2;

export interface RemoteClass {
  readonly number: number;
  /** Of any of its identities. */
  readonly profile: Profile;
}

/** What tells identities apart in a role and a way. */
export interface Signatures {
  local(way: Way, profile: Profile): string;
  remote(way: Way, profile: Profile): string;
}

export function signatures(book: Rulebook): Signatures {
  const cached = { local: [[], []] as [string[], string[]], remote: [[], []] as [string[], string[]] };
  const remember = (cache: [string[], string[]], way: Way, profile: Profile, make: () => string) =>
    (cache[way][profile.number] ??= make());
  const peers = (way: Way, profile: Profile) =>
    profile.selectors.filter((selector) => book.isPeer[way][selector] === 1);
  const named = (profile: Profile) => (profile.ports.length === 0 ? '' : JSON.stringify(profile.ports));
  return {
    local: (way, profile) =>
      remember(cached.local, way, profile, () => {
        const other = opposite(way);
        const known = book.demands[other] ? peers(other, profile).join() : '';
        return `${profile.groups[way].join()} ${known} ${way === INGRESS ? named(profile) : ''}`;
      }),
    remote: (way, profile) =>
      remember(cached.remote, way, profile, () => {
        const groups = profile.groups[opposite(way)];
        const demands = groups.some((group) => book.groups[group]!.demands);
        return `${peers(way, profile).join()} ${demands ? groups.join() : ''} ${way === EGRESS ? named(profile) : ''}`;
      }),
  };
}

/** The remote classes of one way, with the questions that the compiler asks of all of them at once. */
export class RemoteClasses {
  readonly #book: Rulebook;
  readonly #way: Way;
  /** By number; holes where a class has gone. */
  readonly #list: (RemoteClass | undefined)[];
  /** By number: how many identities are of the class. */
  readonly #uses: number[];
  readonly #free: number[];
  readonly #bySignature: Map<string, RemoteClass>;
  readonly #byPeer = new Map<number, number[]>();
  readonly #byGroup = new Map<number, number[]>();
  #isIndexed = false;
  readonly #fewerByPeer = new Map<number, readonly number[]>();
  readonly #fewerByGroup = new Map<number, readonly number[]>();
  #byPorts: readonly (readonly number[])[] | undefined;
  readonly #demanders = new Map<number, readonly (readonly number[])[]>();

  constructor(book: Rulebook, way: Way, before?: RemoteClasses) {
    this.#book = book;
    this.#way = way;
    this.#list = before === undefined ? new Array(FIRST_REMOTE).fill(undefined) : before.#list.slice();
    this.#uses = before === undefined ? new Array(FIRST_REMOTE).fill(0) : before.#uses.slice();
    this.#free = before === undefined ? [] : before.#free.slice();
    this.#bySignature = before === undefined ? new Map() : new Map(before.#bySignature);
  }

  get count(): number {
    return this.#bySignature.size;
  }

  /** One more than the highest number. */
  get end(): number {
    return this.#list.length;
  }

  get(signature: string): RemoteClass | undefined {
    return this.#bySignature.get(signature);
  }

  at(number: number): RemoteClass | undefined {
    return this.#list[number];
  }

  all(): IterableIterator<RemoteClass> {
    return this.#bySignature.values();
  }

  /** One identity more. Before anything is asked. Returns the class if it is a new one. */
  enter(signature: string, profile: Profile): RemoteClass | undefined {
    const known = this.#bySignature.get(signature);
    if (known !== undefined) {
      this.#uses[known.number]!++;
      return undefined;
    }
    const made = { number: this.#free.pop() ?? this.#list.length, profile };
    this.#list[made.number] = made;
    this.#uses[made.number] = 1;
    this.#bySignature.set(signature, made);
    return made;
  }

  leave(signature: string): void {
    this.#uses[this.#bySignature.get(signature)!.number]!--;
  }

  /** Forgets the class if nobody is of it any more. Its number may be given again, by the next that is made from this one. */
  sweep(signature: string): RemoteClass | undefined {
    const known = this.#bySignature.get(signature);
    if (known === undefined || this.#uses[known.number]! > 0) return undefined;
    this.#bySignature.delete(signature);
    this.#list[known.number] = undefined;
    this.#free.push(known.number);
    return known;
  }

  /** Those that match the selector, or those that do not: whichever are fewer, for they part the classes in the same way. */
  partedBy(selector: number): readonly number[] {
    return this.#fewer(this.#fewerByPeer, this.#byPeer, selector);
  }

  partedByGroup(group: number): readonly number[] {
    return this.#fewer(this.#fewerByGroup, this.#byGroup, group);
  }

  /** By the ports they name. Without those that name none. */
  partedByPorts(): readonly (readonly number[])[] {
    if (this.#byPorts === undefined) {
      const lists = new Map<string, number[]>();
      for (const { number, profile } of this.all()) {
        if (profile.ports.length > 0) put(lists, JSON.stringify(profile.ports), number);
      }
      this.#byPorts = [...lists.values()];
    }
    return this.#byPorts;
  }

  /**
   * Parts the classes by what their own rules say of a peer that matches the selector (-1: of everybody), as far as it bears
   * on the proof. Rules of one shape are one here.
   */
  partedByDemands(selector: number): readonly (readonly number[])[] {
    let parts = this.#demanders.get(selector);
    if (parts !== undefined) return parts;
    this.#index();
    const other = opposite(this.#way);
    const rules =
      selector >= 0
        ? (this.#book.byPeer[other][selector] ?? [])
        : this.#book.groups.flatMap((group) => (group.way === other ? group.everyone : []));
    const byShape = new Map<number, Set<number>>();
    for (const rule of rules) {
      if (!rule.deny && rule.mode === undefined) continue;
      const members = this.#byGroup.get(rule.group);
      if (members === undefined) continue;
      let part = byShape.get(rule.shape);
      if (part === undefined) {
        part = new Set();
        byShape.set(rule.shape, part);
      }
      for (const member of members) part.add(member);
    }
    parts = [...byShape.values()].map((part) => this.#smaller([...part]));
    this.#demanders.set(selector, parts);
    return parts;
  }

  #fewer(cache: Map<number, readonly number[]>, index: Map<number, number[]>, key: number): readonly number[] {
    let fewer = cache.get(key);
    if (fewer === undefined) {
      this.#index();
      fewer = this.#smaller(index.get(key) ?? []);
      cache.set(key, fewer);
    }
    return fewer;
  }

  #smaller(members: readonly number[]): readonly number[] {
    if (members.length * 2 <= this.count) return members;
    const inside = new Set(members);
    return [...this.#bySignature.values()].flatMap(({ number }) => (inside.has(number) ? [] : [number]));
  }

  #index(): void {
    if (this.#isIndexed) return;
    this.#isIndexed = true;
    const other = opposite(this.#way);
    for (const { number, profile } of this.all()) {
      for (const selector of profile.selectors) {
        if (this.#book.isPeer[this.#way][selector] === 1) put(this.#byPeer, selector, number);
      }
      if (this.#book.demands[other]) {
        for (const group of profile.groups[other]) put(this.#byGroup, group, number);
      }
    }
  }
}

function put<K>(index: Map<K, number[]>, key: K, number: number): void {
  const list = index.get(key);
  if (list === undefined) index.set(key, [number]);
  else list.push(number);
}
