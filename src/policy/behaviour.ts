/**
 * What one endpoint's hook does with everything to or from one peer: a verdict for each protocol and port, both sides'
 * rules already weighed against each other. Equal behaviours are one object.
 */
import type { NamedPort } from '../model/identity.ts';
import {
  ALLOWED,
  ANY_CUT,
  ascending,
  authCodeOf,
  DENIED,
  HookRules,
  isDeny,
  type Packed,
  type View,
} from './outcomes.ts';
import type { PortPrefix, Segments } from './ports.ts';
import { prefixesOver, prefixesUnder } from './ports.ts';

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
    const protocols: number[] = [];
    first.addProtocols(protocols);
    second?.addProtocols(protocols);
    const valueAt = (enforced: Packed, observed: Packed) => this.#valueNumber(enforced, observed);
    const outside = [ANY_CUT] as const;
    const anyEnforced = first.outcomes(0, outside)[0]!;
    const any = valueAt(anyEnforced, second === undefined ? anyEnforced : second.outcomes(0, outside)[0]!);
    const found: ProtocolPorts[] = [];
    for (const protocol of ascending(protocols)) {
      const cuts = [0];
      first.addCuts(protocol, cuts);
      second?.addCuts(protocol, cuts);
      ascending(cuts);
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
