/**
 * One class of local endpoints in one way, with what its hook does for every class of remotes: one behaviour for most of
 * them, and its own for each of the others.
 */
import type { Behaviour, Behaviours, Encoding } from './behaviour.ts';
import { NOBODY, type RemoteClass, type RemoteClasses } from './classes.ts';
import type { PolicyRule } from './compiled.ts';
import { MAX_DETAIL, refuseDetail } from './limits.ts';
import type { Matcher } from './matching.ts';
import type { Profile } from './profiles.ts';
import { EGRESS, INGRESS, opposite, type Rulebook, type Way } from './rulebook.ts';

export interface Hook {
  readonly way: Way;
  /** Number of the class. */
  readonly local: number;
  /** Of any of its identities. */
  readonly profile: Profile;
  /** Where nothing is said of the remote class. */
  readonly usual: Behaviour;
  /** By remote class: those that are not treated as usual. */
  readonly others: ReadonlyMap<number, Behaviour>;
  /** Bit n: some entry has portBits n. */
  readonly portBits: number;
  readonly entryCount: number;
}

export class HookMaker {
  readonly #book: Rulebook;
  readonly #rules: readonly PolicyRule[];
  readonly #matcher: Matcher;
  readonly #behaviours: Behaviours;
  /** Scratch, by remote class: which block it is in. 0: none has parted it from the rest. */
  #blocks = new Uint32Array(0);
  readonly #selectorSeen: Uint32Array;
  #turn = 0;

  constructor(book: Rulebook, rules: readonly PolicyRule[], matcher: Matcher, behaviours: Behaviours) {
    this.#book = book;
    this.#rules = rules;
    this.#matcher = matcher;
    this.#behaviours = behaviours;
    this.#selectorSeen = new Uint32Array(book.selectors.length);
  }

  behaviour(way: Way, local: Profile, remote: Profile): Behaviour {
    const { inForce, all } = this.#matcher.views(way, local, remote);
    return this.#behaviours.of(inForce, all, (way === INGRESS ? local : remote).ports);
  }

  /** @throws CountersignError exhausted, if its rules say too much */
  make(way: Way, local: number, profile: Profile, remotes: RemoteClasses): Hook {
    const byBehaviour = this.#sort(way, profile, remotes);
    let usual = this.#behaviours.denyAll;
    let most: number | undefined;
    for (const [behaviour, { count }] of byBehaviour) {
      // Each class that is treated in another way than usual costs the entries that say so. Those that no rule parts from
      // the rest come first: later ones will mostly be like them.
      const saved = count * (1 + behaviour.protocols.length);
      if (most === undefined || saved > 2 * most + 8) [usual, most] = [behaviour, saved];
    }
    const others = new Map<number, Behaviour>();
    for (const [behaviour, { members }] of byBehaviour) {
      if (behaviour !== usual) for (const member of members()) others.set(member, behaviour);
    }
    if (usual !== this.#behaviours.denyAll) others.set(NOBODY, this.#behaviours.denyAll);
    const own = this.usualEncoding({ usual });
    let portBits = own.bits;
    let entryCount = own.entries.length;
    for (const behaviour of others.values()) {
      const { entries, bits } = this.encoding({ usual }, behaviour);
      portBits |= bits;
      entryCount += entries.length;
    }
    return { way, local, profile, usual, others, portBits, entryCount };
  }

  /** The same hook when remote classes come and go. It keeps what is usual, so no entry of the other classes changes. */
  adapt(hook: Hook, gone: readonly RemoteClass[], come: readonly RemoteClass[]): Hook {
    const changes: [number, Behaviour][] = [];
    for (const { number, profile } of come) {
      const behaviour = this.behaviour(hook.way, hook.profile, profile);
      if (behaviour !== hook.usual) changes.push([number, behaviour]);
    }
    const lost = gone.filter(({ number }) => hook.others.has(number));
    if (changes.length === 0 && lost.length === 0) return hook;
    const others = new Map(hook.others);
    let { portBits, entryCount } = hook;
    for (const { number } of lost) {
      entryCount -= this.encoding(hook, others.get(number)!).entries.length;
      others.delete(number);
    }
    for (const [number, behaviour] of changes) {
      const { entries, bits } = this.encoding(hook, behaviour);
      entryCount += entries.length;
      portBits |= bits;
      others.set(number, behaviour);
    }
    return { ...hook, others, portBits, entryCount };
  }

  /** What is found for a remote class, beyond the usual. */
  encoding(hook: Pick<Hook, 'usual'>, behaviour: Behaviour): Encoding {
    return this.#behaviours.encodeOver(behaviour, hook.usual);
  }

  usualEncoding(hook: Pick<Hook, 'usual'>): Encoding {
    return this.#behaviours.encode(hook.usual);
  }

  /** The remote classes by what the hook does with them. */
  #sort(way: Way, profile: Profile, remotes: RemoteClasses): Map<Behaviour, Sorted> {
    const parts = this.#parts(way, profile, remotes);
    const found = new Map<Behaviour, { count: number; lists: (() => readonly number[])[] }>();
    for (const { count, members, one } of parts) {
      const behaviour = this.behaviour(way, profile, remotes.at(one)!.profile);
      if (this.#behaviours.detail > MAX_DETAIL) {
        const selecting = this.#matcher.groupsOf(way, profile).flatMap(({ rules }) => rules.map(({ index }) => index));
        refuseDetail(selecting, this.#rules);
      }
      const known = found.get(behaviour);
      if (known === undefined) found.set(behaviour, { count, lists: [members] });
      else {
        known.count += count;
        known.lists.push(members);
      }
    }
    return new Map(
      [...found].map(([behaviour, { count, lists }]) => [
        behaviour,
        { count, members: () => lists.flatMap((list) => list()) },
      ]),
    );
  }

  #readsPortNames(way: Way, profile: Profile): boolean {
    const other = opposite(way);
    if (this.#book.demands[other] && this.#book.bearingPortNames[other]) return true;
    return this.#matcher.groupsOf(way, profile).some(({ portNames }) => portNames);
  }

  /** Blocks of remote classes that the hook cannot tell apart; first the rest, of which it says nothing in particular. */
  #parts(way: Way, profile: Profile, remotes: RemoteClasses): Part[] {
    if (remotes.count === 0) return [];
    if (this.#blocks.length < remotes.end) this.#blocks = new Uint32Array(remotes.end * 2);
    const blocks = this.#blocks;
    const touched: number[] = [];
    let blockCount = 1;
    const part = (list: readonly number[]) => {
      const splits = new Map<number, number>();
      for (const number of list) {
        const block = blocks[number]!;
        if (block === 0) touched.push(number);
        let into = splits.get(block);
        if (into === undefined) {
          into = blockCount++;
          splits.set(block, into);
        }
        blocks[number] = into;
      }
    };
    const turn = ++this.#turn;
    const partOnce = (selector: number) => {
      if (this.#selectorSeen[selector] === turn) return;
      this.#selectorSeen[selector] = turn;
      part(remotes.partedBy(selector));
    };
    for (const { rules, requires } of this.#matcher.groupsOf(way, profile)) {
      for (const { workloads, others } of rules) {
        for (const selector of workloads) partOnce(selector);
        for (const selector of others) partOnce(selector);
      }
      for (const selector of requires[1]) partOnce(selector);
    }
    const other = opposite(way);
    if (this.#book.demands[other]) {
      for (const selector of [-1, ...profile.selectors])
        for (const list of remotes.partedByDemands(selector)) part(list);
      for (const group of this.#book.groups) {
        if (group.way === other && group.requires[1].length > 0) part(remotes.partedByGroup(group.number));
      }
    }
    if (way === EGRESS && this.#readsPortNames(way, profile)) for (const list of remotes.partedByPorts()) part(list);
    const members = new Map<number, number[]>();
    for (const number of touched) {
      const block = blocks[number]!;
      const list = members.get(block);
      if (list === undefined) members.set(block, [number]);
      else list.push(number);
    }
    const found: Part[] = [];
    const isTouched = new Set(touched);
    if (touched.length < remotes.count) {
      const rest = () => [...remotes.all()].flatMap(({ number }) => (isTouched.has(number) ? [] : [number]));
      let one = 0;
      for (const { number } of remotes.all()) {
        if (blocks[number] !== 0) continue;
        one = number;
        break;
      }
      found.push({ count: remotes.count - touched.length, one, members: rest });
    }
    for (const list of members.values()) found.push({ count: list.length, one: list[0]!, members: () => list });
    for (const number of touched) blocks[number] = 0;
    return found;
  }
}

interface Sorted {
  readonly count: number;
  members(): readonly number[];
}

interface Part {
  readonly count: number;
  /** One of them. */
  readonly one: number;
  members(): readonly number[];
}
