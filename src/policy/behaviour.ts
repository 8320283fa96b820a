/**
 * What one endpoint's hook does with everything to or from one peer: a verdict for each protocol and port, both sides'
 * rules already weighed against each other. Equal behaviours are one object.
 */
import { AUTH_TYPE_CODE } from '../model/datapath.ts';
import type { NamedPort } from '../model/identity.ts';
import { AUTH_TYPE_OF, type Claim, decidingClaim, narrowestClaim, withoutIdleClaims } from './auth-mode.ts';
import type { PortPrefix, Segments } from './ports.ts';
import { prefixesOver, prefixesUnder } from './ports.ts';
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
const DENIED: Packed = 1;
const ALLOWED: Packed = 0;
const pack = (rule: number, authCode: number, deny: boolean): Packed => rule * 8 + authCode * 2 + Number(deny);
export const isDeny = (packed: Packed): boolean => (packed & 1) === 1;
export const authCodeOf = (packed: Packed): number => (packed >> 1) & 3;
export const ruleOf = (packed: Packed): number => Math.floor(packed / 8);

/** In force, and what it would be with the policies that only observe; undefined: the same. */
export interface Value {
  readonly enforced: Packed;
  readonly observed: Packed | undefined;
}

export interface Behaviour {
  readonly number: number;
  /** The value for the protocols that are not listed. */
  readonly any: number;
  /** Those that are, ascending, with their values by port. */
  readonly protocols: readonly ProtocolPorts[];
  /** Bit n: some of it needs a proof of auth type code n. */
  readonly proofs: number;
}

interface ProtocolPorts {
  readonly protocol: number;
  readonly segments: Segments;
}

export interface EncodedEntry extends PortPrefix {
  readonly protocol: number;
}

/** One behaviour as kernel entries. */
export interface Encoding {
  readonly entries: readonly EncodedEntry[];
  /** Bit n: some entry has portBits n. */
  readonly bits: number;
}

const NOTHING: Encoding = { entries: [], bits: 0 };
/** The value that needs no entry where nothing else is found. */
const NO_ENTRY = 0;
/** Encodings are quickly made again; only those that many hooks share are worth their memory. */
const MAX_ENCODINGS = 4_096;

export class Behaviours {
  readonly values: Value[] = [{ enforced: DENIED, observed: undefined }];
  readonly #valueNumbers = new Map<Packed, number>([[DENIED, NO_ENTRY]]);
  readonly #observedNumbers = new Map<Packed, Map<Packed, number>>();
  readonly #known = new Map<number, Behaviour | Behaviour[]>();
  #count = 0;
  #detail = 0;
  readonly #encodings = new Map<number, Encoding>();
  readonly denyAll: Behaviour;
  readonly #allowAll: Behaviour;

  constructor() {
    this.denyAll = this.#intern(NO_ENTRY, []);
    this.#allowAll = this.#intern(this.#valueNumber(ALLOWED, ALLOWED), []);
  }

  /** How many numbers all behaviours are written with. */
  get detail(): number {
    return this.#detail;
  }

  /** `named`: the ports that the receiver gives names. `all` undefined: the same as in force. */
  of(inForce: View, all: View | undefined, named: readonly NamedPort[]): Behaviour {
    if (all === undefined && inForce.own.length === 0 && inForce.other.length === 0) {
      return inForce.defaultDeny ? this.denyAll : this.#allowAll;
    }
    const first = new HookRules(inForce, named);
    const second = all && new HookRules(all, named);
    const protocols = new Set([...first.protocols(), ...(second?.protocols() ?? [])]);
    const valueAt = (enforced: Packed, observed: Packed) => this.#valueNumber(enforced, observed);
    const outside = [ANY_CUT] as const;
    const anyEnforced = first.outcomes(0, outside)[0]!;
    const any = valueAt(anyEnforced, second === undefined ? anyEnforced : second.outcomes(0, outside)[0]!);
    const found: ProtocolPorts[] = [];
    for (const protocol of [...protocols].sort((a, b) => a - b)) {
      const cuts = cutsOf([...first.cuts(protocol), ...(second?.cuts(protocol) ?? [])]);
      const enforced = first.outcomes(protocol, cuts);
      const observed = second?.outcomes(protocol, cuts) ?? enforced;
      const segments: number[] = [];
      cuts.forEach((cut, i) => {
        const value = valueAt(enforced[i]!, observed[i]!);
        if (segments.length === 0 || segments.at(-1) !== value) segments.push(cut, value);
      });
      if (segments.length > 2 || segments[1] !== any) found.push({ protocol, segments });
    }
    return this.#intern(any, found);
  }

  /** As entries for any remote: what they leave out is denied. */
  encode(behaviour: Behaviour): Encoding {
    return this.#encoded(behaviour, undefined);
  }

  /** As entries for one remote, where `base` is found for what they leave out. */
  encodeOver(behaviour: Behaviour, base: Behaviour): Encoding {
    return behaviour === base ? NOTHING : this.#encoded(behaviour, base);
  }

  #encoded(behaviour: Behaviour, base: Behaviour | undefined): Encoding {
    const key = (base === undefined ? 0 : base.number + 1) * 2 ** 26 + behaviour.number;
    let encoding = this.#encodings.get(key);
    if (encoding === undefined) {
      encoding = encodingOf(behaviour, base);
      if (this.#encodings.size >= MAX_ENCODINGS) this.#encodings.clear();
      this.#encodings.set(key, encoding);
    }
    return encoding;
  }

  #valueNumber(enforced: Packed, observed: Packed): number {
    const isSame = (enforced & 7) === (observed & 7);
    let numbers = this.#valueNumbers;
    if (!isSame) {
      const known = this.#observedNumbers.get(enforced);
      numbers = known ?? new Map();
      if (known === undefined) this.#observedNumbers.set(enforced, numbers);
    }
    const key = isSame ? enforced : observed;
    let number = numbers.get(key);
    if (number === undefined) {
      number = this.values.push({ enforced, observed: isSame ? undefined : observed }) - 1;
      numbers.set(key, number);
    }
    return number;
  }

  #intern(any: number, protocols: readonly ProtocolPorts[]): Behaviour {
    let hash = any;
    for (const { protocol, segments } of protocols) {
      hash = Math.imul(hash ^ protocol, 0x01000193);
      for (const one of segments) hash = Math.imul(hash ^ one, 0x01000193);
    }
    const alike = this.#known.get(hash);
    const list = alike === undefined ? [] : Array.isArray(alike) ? alike : [alike];
    const known = list.find((one) => one.any === any && hasSameProtocols(one.protocols, protocols));
    if (known !== undefined) return known;
    let proofs = this.#proofsOf(any);
    for (const { segments } of protocols) {
      proofs |= this.#proofsIn(segments);
      this.#detail += segments.length;
    }
    const behaviour = { number: this.#count++, any, protocols, proofs };
    this.#known.set(hash, alike === undefined ? behaviour : [...list, behaviour]);
    return behaviour;
  }

  #proofsIn(segments: Segments): number {
    let proofs = 0;
    for (let i = 1; i < segments.length; i += 2) proofs |= this.#proofsOf(segments[i]!);
    return proofs;
  }

  #proofsOf(value: number): number {
    const { enforced } = this.values[value]!;
    return isDeny(enforced) || authCodeOf(enforced) === 0 ? 0 : 1 << authCodeOf(enforced);
  }
}

function hasSameProtocols(a: readonly ProtocolPorts[], b: readonly ProtocolPorts[]): boolean {
  return (
    a.length === b.length &&
    a.every(({ protocol, segments }, i) => {
      const other = b[i]!;
      return (
        other.protocol === protocol &&
        other.segments.length === segments.length &&
        segments.every((one, j) => one === other.segments[j])
      );
    })
  );
}

function segmentsOf({ any, protocols }: Behaviour, protocol: number): Segments {
  return protocols.find((one) => one.protocol === protocol)?.segments ?? [0, any];
}

function encodingOf(behaviour: Behaviour, base: Behaviour | undefined): Encoding {
  const entries: EncodedEntry[] = [];
  const put = (protocol: number, prefixes: readonly PortPrefix[]) => {
    for (const { port, portBits, value } of prefixes) entries.push({ protocol, port, portBits, value });
  };
  if (base !== undefined && base.any === behaviour.any) {
    for (const { protocol, segments } of behaviour.protocols) {
      put(protocol, prefixesOver(segments, segmentsOf(base, protocol)));
    }
    for (const { protocol, segments } of base.protocols) {
      if (behaviour.protocols.some((one) => one.protocol === protocol)) continue;
      put(protocol, prefixesOver([0, behaviour.any], segments));
    }
  } else {
    const isNeeded = base !== undefined || behaviour.any !== NO_ENTRY;
    if (isNeeded) entries.push({ protocol: 0, port: 0, portBits: 0, value: behaviour.any });
    for (const { protocol, segments } of behaviour.protocols) put(protocol, prefixesUnder(segments, behaviour.any));
  }
  return { entries, bits: entries.reduce((bits, { portBits }) => bits | (1 << portBits), 0) };
}

/** Ports that stand for the ones no rule names. */
const ANY_CUT = 0;

function cutsOf(ports: readonly number[]): number[] {
  const cuts = [...new Set([0, ...ports])].sort((a, b) => a - b);
  return cuts.at(-1) === 65_536 ? cuts.slice(0, -1) : cuts;
}

/** The rules that meet at one hook. */
class HookRules {
  readonly #own: RuleList;
  readonly #other: RuleList;
  readonly #defaultDeny: boolean;

  constructor({ own, defaultDeny, other }: View, named: readonly NamedPort[]) {
    this.#own = new RuleList(own, named);
    this.#other = new RuleList(other, named);
    this.#defaultDeny = defaultDeny;
  }

  protocols(): number[] {
    return [...this.#own.byProtocol.keys(), ...this.#other.byProtocol.keys()];
  }

  cuts(protocol: number): number[] {
    return [this.#own, this.#other].flatMap((list) =>
      (list.byProtocol.get(protocol) ?? []).flatMap(({ first, last }) => [first, last + 1]),
    );
  }

  /** At each cut; ascending. */
  outcomes(protocol: number, cuts: readonly number[]): Packed[] {
    const own = this.#own.outcomes(protocol, cuts, this.#defaultDeny ? DENIED : ALLOWED);
    if (this.#other.isEmpty) return own;
    const other = this.#other.outcomes(protocol, cuts, ALLOWED);
    return own.map((mine, i) => {
      const theirs = other[i]!;
      if (isDeny(mine) || isDeny(theirs) || authCodeOf(theirs) <= authCodeOf(mine)) return mine;
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
  for (const protocol of new Set([0, ...sides.flatMap((side) => side.protocols())])) {
    const cuts = cutsOf(sides.flatMap((side) => side.cuts(protocol)));
    const [out, into] = sides.map((side) => side.outcomes(protocol, cuts)) as [Packed[], Packed[]];
    cuts.forEach((_, i) => {
      const code = Math.max(authCodeOf(out[i]!), authCodeOf(into[i]!));
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
      (claim.first === 0 && claim.last === 65_535 ? all : some).push(claim);
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
      this.#always.push({ ...claim, namesProtocol: false, first: 0, last: 65_535 });
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
      } else if ('ports' in match) put(match.protocol, 0, 65_535);
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
