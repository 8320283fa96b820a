/**
 * What the rules that meet at one hook say of each port of a protocol: deny before allow, then the authentication, the
 * stronger of both sides.
 */
import { AUTH_TYPE_CODE } from '../model/datapath.ts';
import type { NamedPort } from '../model/identity.ts';
import {
  AUTH_TYPE_OF,
  type Claim,
  decidingClaim,
  isStrongerCode,
  narrowestClaim,
  withoutIdleClaims,
} from './auth-mode.ts';
import type { BookRule } from './rulebook.ts';

/** A rule that names the peer. */
export interface MatchingRule {
  readonly rule: BookRule;
  /** By more than naming everybody. */
  readonly namesPeer: boolean;
}

/** Who says what: the endpoint's own rules, and those of the other side that bear on the proof it will ask for. */
export interface View {
  readonly own: readonly MatchingRule[];
  readonly defaultDeny: boolean;
  readonly other: readonly MatchingRule[];
}

/** An outcome in a number: rule, auth type, verdict. */
export type Packed = number;
export const DENIED: Packed = 1;
export const ALLOWED: Packed = 0;
const pack = (rule: number, authCode: number, deny: boolean): Packed => rule * 8 + authCode * 2 + Number(deny);
export const isDeny = (packed: Packed): boolean => (packed & 1) === 1;
export const authCodeOf = (packed: Packed): number => (packed >> 1) & 3;
export const ruleOf = (packed: Packed): number => Math.floor(packed / 8);

/** Ports that stand for the ones no rule names. */
export const ANY_CUT = 0;
const LAST_PORT = 65_535;

/** In place, each once. */
export function ascending(numbers: number[]): number[] {
  if (numbers.length < 2) return numbers;
  numbers.sort((a, b) => a - b);
  let kept = 1;
  for (const one of numbers) if (one !== numbers[kept - 1]) numbers[kept++] = one;
  numbers.length = kept;
  return numbers;
}

/** The rules that meet at one hook. */
export class HookRules {
  readonly #own: RuleList;
  readonly #other: RuleList;
  readonly #defaultDeny: boolean;

  constructor({ own, defaultDeny, other }: View, named: readonly NamedPort[]) {
    this.#own = new RuleList(own, named);
    this.#other = new RuleList(other, named);
    this.#defaultDeny = defaultDeny;
  }

  addProtocols(found: number[]): void {
    for (const list of [this.#own, this.#other]) found.push(...list.byProtocol.keys());
  }

  /** Where what is said of a port may change. */
  addCuts(protocol: number, found: number[]): void {
    for (const list of [this.#own, this.#other]) {
      for (const { first, last } of list.byProtocol.get(protocol) ?? []) {
        if (first > 0) found.push(first);
        if (last < LAST_PORT) found.push(last + 1);
      }
    }
  }

  /** At each cut; ascending. */
  outcomes(protocol: number, cuts: readonly number[]): Packed[] {
    const own = this.#own.outcomes(protocol, cuts, this.#defaultDeny ? DENIED : ALLOWED);
    if (this.#other.isEmpty) return own;
    const other = this.#other.outcomes(protocol, cuts, ALLOWED);
    return own.map((mine, i) => {
      const theirs = other[i]!;
      if (isDeny(mine) || isDeny(theirs) || !isStrongerCode(authCodeOf(theirs), authCodeOf(mine))) return mine;
      // Its own rule, not theirs: peers that only differ in who asks for the proof stay one to the kernel.
      return pack(ruleOf(mine), authCodeOf(theirs), false);
    });
  }
}

/** A mask as Behaviour.proofs: what flows need that the rules of both sides, the sender's and the receiver's, allow. */
export function proofsBetween(
  egress: Omit<View, 'other'>,
  ingress: Omit<View, 'other'>,
  named: readonly NamedPort[],
): number {
  const sides = [egress, ingress].map((side) => new HookRules({ ...side, other: [] }, named));
  let proofs = 0;
  const protocols = [0];
  for (const side of sides) side.addProtocols(protocols);
  for (const protocol of ascending(protocols)) {
    const cuts = [0];
    for (const side of sides) side.addCuts(protocol, cuts);
    ascending(cuts);
    const [out, into] = sides.map((side) => side.outcomes(protocol, cuts)) as [Packed[], Packed[]];
    cuts.forEach((_, i) => {
      const [theirs, mine] = [authCodeOf(out[i]!), authCodeOf(into[i]!)];
      const code = isStrongerCode(theirs, mine) ? theirs : mine;
      if (!isDeny(out[i]!) && !isDeny(into[i]!) && code > 0) proofs |= 1 << code;
    });
  }
  return proofs;
}

interface BookClaim extends Claim {
  readonly deny: boolean;
}

/** One side's rules as claims by protocol. */
class RuleList {
  /** Of rules that name no protocol. */
  readonly #always: BookClaim[] = [];
  readonly byProtocol = new Map<number, BookClaim[]>();

  constructor(rules: readonly MatchingRule[], named: readonly NamedPort[]) {
    for (const { rule, namesPeer } of rules) this.#add(rule, namesPeer, named);
  }

  get isEmpty(): boolean {
    return this.#always.length === 0 && this.byProtocol.size === 0;
  }

  outcomes(protocol: number, cuts: readonly number[], otherwise: Packed): Packed[] {
    const all: BookClaim[] = this.#always.slice();
    const some: BookClaim[] = [];
    for (const claim of this.byProtocol.get(protocol) ?? []) {
      (claim.first === 0 && claim.last === LAST_PORT ? all : some).push(claim);
    }
    const whole = summary(all);
    if (some.length === 0) return new Array(cuts.length).fill(verdictOf(whole, otherwise));
    some.sort((a, b) => a.first - b.first);
    let active: BookClaim[] = [];
    let next = 0;
    return cuts.map((cut) => {
      if (active.some(({ last }) => last < cut)) active = active.filter(({ last }) => last >= cut);
      while (next < some.length && some[next]!.first <= cut) active.push(some[next++]!);
      if (active.length === 0) return verdictOf(whole, otherwise);
      return verdictOf(summary([...whole.kept, ...active], whole.denied), otherwise);
    });
  }

  #add(rule: BookRule, namesPeer: boolean, named: readonly NamedPort[]): void {
    const { index, deny, mode } = rule;
    const claim = { rule: index, deny, mode, namesPeer, namesProtocol: true };
    if (rule.ports === 'any') {
      this.#always.push({ ...claim, namesProtocol: false, first: 0, last: LAST_PORT });
      return;
    }
    const put = (protocol: number, first: number, last: number) => {
      const list = this.byProtocol.get(protocol);
      if (list === undefined) this.byProtocol.set(protocol, [{ ...claim, first, last }]);
      else list.push({ ...claim, first, last });
    };
    for (const match of rule.ports) {
      if ('name' in match) {
        for (const { name, protocol, port } of named) {
          if (name === match.name && match.protocols.includes(protocol)) put(protocol, port, port);
        }
      } else if ('ports' in match) put(match.protocol, 0, LAST_PORT);
      else put(match.protocol, match.first, match.last);
    }
  }
}

interface Summary {
  /** The first rule that denies; Infinity: none. */
  readonly denied: number;
  readonly kept: readonly BookClaim[];
}

function summary(claims: readonly BookClaim[], denied = Number.POSITIVE_INFINITY): Summary {
  let first = denied;
  for (const { deny, rule } of claims) if (deny && rule < first) first = rule;
  if (first !== Number.POSITIVE_INFINITY) return { denied: first, kept: [] };
  return { denied: first, kept: withoutIdleClaims(claims) };
}

function verdictOf({ denied, kept }: Summary, otherwise: Packed): Packed {
  if (denied !== Number.POSITIVE_INFINITY) return pack(denied, 0, true);
  const narrowest = narrowestClaim(kept);
  if (narrowest === undefined) return otherwise;
  const decides = decidingClaim(kept);
  const authCode = decides?.mode === undefined ? 0 : AUTH_TYPE_CODE[AUTH_TYPE_OF[decides.mode]];
  return pack(authCode === 0 ? narrowest.rule : decides!.rule, authCode, false);
}
