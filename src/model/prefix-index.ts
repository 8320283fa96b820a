/** Which prefixes cover an address: looked up by length, so that it does not cost more with more prefixes. */
import { addressBytes, datapathPrefixLength, isIpv4, type Prefix } from './address.ts';
import type { IpAddress } from './ids.ts';

/** Nodes whose prefixes cover one address: so many may be asked who lives there. */
export const MAX_NODES_PER_ADDRESS = 8;

/** Values filed under prefixes. A value is told from another by ===. */
export class PrefixIndex<T> {
  readonly #ipv4: Family<T>;
  readonly #ipv6: Family<T>;

  /** @param order of the values of one and the same prefix. */
  constructor(order: (a: T, b: T) => number) {
    this.#ipv4 = new Family(order);
    this.#ipv6 = new Family(order);
  }

  add(prefix: Prefix, value: T): void {
    this.#familyOf(prefix.address).add(prefix, value);
  }

  remove(prefix: Prefix, value: T): void {
    this.#familyOf(prefix.address).remove(prefix, value);
  }

  /** The values of every prefix that contains the address, the most specific prefix first. One with two such prefixes comes twice. */
  covering(address: IpAddress): T[] {
    return this.#familyOf(address).covering(addressBytes(address), 128);
  }

  /** The values of every prefix that contains this one, itself among them. */
  containing(prefix: Prefix): T[] {
    return this.#familyOf(prefix.address).covering(addressBytes(prefix.address), datapathPrefixLength(prefix));
  }

  #familyOf(address: IpAddress): Family<T> {
    return isIpv4(address) ? this.#ipv4 : this.#ipv6;
  }
}

class Family<T> {
  readonly #order: (a: T, b: T) => number;
  readonly #byKey = new Map<string, T[]>();
  /** How many prefixes there are of each length. */
  readonly #counts = new Map<number, number>();
  /** Lengths in use, longest first. */
  #lengths: number[] = [];

  constructor(order: (a: T, b: T) => number) {
    this.#order = order;
  }

  add(prefix: Prefix, value: T): void {
    const length = datapathPrefixLength(prefix);
    const key = keyOf(addressBytes(prefix.address), length);
    const values = this.#byKey.get(key);
    if (values === undefined) this.#byKey.set(key, [value]);
    else this.#byKey.set(key, [...values, value].sort(this.#order));
    this.#count(length, 1);
  }

  remove(prefix: Prefix, value: T): void {
    const length = datapathPrefixLength(prefix);
    const key = keyOf(addressBytes(prefix.address), length);
    const values = this.#byKey.get(key) ?? [];
    const at = values.indexOf(value);
    if (at < 0) return;
    values.splice(at, 1);
    if (values.length === 0) this.#byKey.delete(key);
    this.#count(length, -1);
  }

  covering(bytes: Buffer, atMost: number): T[] {
    const found: T[] = [];
    for (const length of this.#lengths) {
      const values = length > atMost ? undefined : this.#byKey.get(keyOf(bytes, length));
      if (values !== undefined) found.push(...values);
    }
    return found;
  }

  #count(length: number, by: 1 | -1): void {
    const count = (this.#counts.get(length) ?? 0) + by;
    if (count === 0) this.#counts.delete(length);
    else this.#counts.set(length, count);
    if (count === 0 || (count === 1 && by === 1)) this.#lengths = [...this.#counts.keys()].sort((a, b) => b - a);
  }
}

/** The first `length` bits and how many they are. */
function keyOf(bytes: Buffer, length: number): string {
  const whole = length >> 3;
  const rest = length & 7;
  const head = bytes.toString('latin1', 0, whole);
  return `${length} ${head}${rest === 0 ? '' : String.fromCharCode(bytes[whole]! & (0xff00 >> rest) & 0xff)}`;
}
