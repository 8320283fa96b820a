/** Which rules one endpoint's hook has for a peer: those of its own side, and those of the other side that bear on the proof. */
import type { MatchingRule, View } from './outcomes.ts';
import type { Profile } from './profiles.ts';
import { type BookRule, bearsOnProof, opposite, type Rulebook, type RuleGroup, type Way } from './rulebook.ts';

export interface Views {
  readonly inForce: View;
  /** With the policies that only observe; undefined: the same. */
  readonly all: View | undefined;
}

interface Matches {
  readonly inForce: readonly MatchingRule[];
  readonly all: readonly MatchingRule[];
  readonly isSame: boolean;
}

const NO_MATCHES: Matches = { inForce: [], all: [], isSame: true };

export class Matcher {
  readonly #book: Rulebook;
  /** What is marked with the turn's number matches the peer, is one of the subject's, was seen. */
  readonly #selectorMarks: Uint32Array;
  readonly #groupMarks: Uint32Array;
  readonly #ruleMarks: Uint32Array;
  #turn = 0;
  /** By profile and way: how many rules its selectors lead to. */
  readonly #reach: readonly [number[], number[]] = [[], []];

  constructor(book: Rulebook, ruleCount: number) {
    this.#book = book;
    this.#selectorMarks = new Uint32Array(book.selectors.length);
    this.#groupMarks = new Uint32Array(book.groups.length);
    this.#ruleMarks = new Uint32Array(ruleCount);
  }

  views(way: Way, local: Profile, remote: Profile): Views {
    const own = this.rulesFor(way, local, remote);
    const other = this.#demands(opposite(way), remote, local);
    const groups = this.groupsOf(way, local);
    const defaultDeny = [0, 1].map((view) => groups.some((group) => group.defaultDeny[view as 0 | 1]));
    const inForce = { own: own.inForce, defaultDeny: defaultDeny[0]!, other: other.inForce };
    if (own.isSame && other.isSame && defaultDeny[0] === defaultDeny[1]) return { inForce, all: undefined };
    return { inForce, all: { own: own.all, defaultDeny: defaultDeny[1]!, other: other.all } };
  }

  groupsOf(way: Way, profile: Profile): RuleGroup[] {
    return profile.groups[way].map((number) => this.#book.groups[number]!);
  }

  /** Rules that select `subject` and name `peer`. */
  rulesFor(way: Way, subject: Profile, peer: Profile): Matches {
    const groups = this.groupsOf(way, subject);
    if (groups.length === 0) return NO_MATCHES;
    const turn = ++this.#turn;
    for (const selector of peer.selectors) this.#selectorMarks[selector] = turn;
    const meets = (requires: readonly number[]) => requires.every((one) => this.#selectorMarks[one] === turn);
    const meetsInForce = groups.every(({ requires }) => meets(requires[0]));
    const meetsAll = groups.every(({ requires }) => meets(requires[1]));
    const inForce: MatchingRule[] = [];
    const all: MatchingRule[] = [];
    let isSame = true;
    const add = (rule: BookRule) => {
      const byOthers = this.#isMarked(rule.others, turn);
      const byLabels = !byOthers && this.#isMarked(rule.workloads, turn);
      const named = byOthers || (byLabels && (rule.deny || meetsInForce));
      const namedByAll = byOthers || (byLabels && (rule.deny || meetsAll));
      const matching = { rule, namesPeer: named };
      const takes = rule.enforced && (named || rule.everyone);
      const takesAll = namedByAll || rule.everyone;
      if (takes) inForce.push(matching);
      if (takesAll) all.push(named === namedByAll ? matching : { rule, namesPeer: namedByAll });
      if (takes !== takesAll || (takes && named !== namedByAll)) isSame = false;
    };
    const size = groups.reduce((sum, { rules }) => sum + rules.length, 0);
    if (size <= this.#reachOf(way, peer)) {
      for (const { rules } of groups) for (const rule of rules) add(rule);
    } else {
      for (const { number } of groups) this.#groupMarks[number] = turn;
      const addOnce = (rule: BookRule) => {
        if (this.#groupMarks[rule.group] !== turn || this.#ruleMarks[rule.index] === turn) return;
        this.#ruleMarks[rule.index] = turn;
        add(rule);
      };
      for (const selector of peer.selectors) this.#book.byPeer[way][selector]?.forEach(addOnce);
      for (const { everyone } of groups) everyone.forEach(addOnce);
    }
    return { inForce, all, isSame };
  }

  /** What `subject`'s side says of `peer` that bears on the proof; nothing if it asks for none. */
  #demands(way: Way, subject: Profile, peer: Profile): Matches {
    if (!this.#book.demands[way] || !this.groupsOf(way, subject).some(({ demands }) => demands)) return NO_MATCHES;
    const { inForce, all, isSame } = this.rulesFor(way, subject, peer);
    if (!all.some(asks) && !inForce.some(asks)) return NO_MATCHES;
    const bearing = ({ rule }: MatchingRule) => bearsOnProof(rule);
    return { inForce: inForce.filter(bearing), all: all.filter(bearing), isSame };
  }

  #isMarked(selectors: readonly number[], turn: number): boolean {
    for (const selector of selectors) if (this.#selectorMarks[selector] === turn) return true;
    return false;
  }

  #reachOf(way: Way, peer: Profile): number {
    const known = this.#reach[way][peer.number];
    if (known !== undefined) return known;
    let reach = 0;
    for (const selector of peer.selectors) reach += this.#book.byPeer[way][selector]?.length ?? 0;
    this.#reach[way][peer.number] = reach;
    return reach;
  }
}

export function asks({ rule }: MatchingRule): boolean {
  return rule.mode !== undefined && rule.mode !== 'disabled';
}
