/** A map that is cheap to copy with few changes: they lie over a base that the copies share. */
export class LayeredMap<K, V> {
  readonly #base: ReadonlyMap<K, V>;
  /** undefined: taken away. */
  readonly #changes: ReadonlyMap<K, V | undefined>;
  readonly size: number;

  private constructor(base: ReadonlyMap<K, V>, changes: ReadonlyMap<K, V | undefined>, size: number) {
    this.#base = base;
    this.#changes = changes;
    this.size = size;
  }

  /** The map must not change any more. */
  static over<K, V>(base: ReadonlyMap<K, V>): LayeredMap<K, V> {
    return new LayeredMap(base, new Map(), base.size);
  }

  has(key: K): boolean {
    return this.get(key) !== undefined;
  }

  get(key: K): V | undefined {
    return this.#changes.size > 0 && this.#changes.has(key) ? this.#changes.get(key) : this.#base.get(key);
  }

  /** A copy with these changes; undefined takes away. */
  with(changes: Iterable<readonly [K, V | undefined]>): LayeredMap<K, V> {
    const merged = new Map(this.#changes);
    let size = this.size;
    for (const [key, value] of changes) {
      const known = merged.has(key) ? merged.get(key) : this.#base.get(key);
      size += Number(value !== undefined) - Number(known !== undefined);
      merged.set(key, value);
    }
    // Past this a new base costs less than what all the copies after it would.
    if (merged.size * 8 < this.#base.size) return new LayeredMap(this.#base, merged, size);
    const base = new Map(this.#base);
    for (const [key, value] of merged) {
      if (value === undefined) base.delete(key);
      else base.set(key, value);
    }
    return LayeredMap.over(base);
  }

  *entries(): Generator<readonly [K, V]> {
    for (const entry of this.#base) if (!this.#changes.has(entry[0])) yield entry;
    for (const [key, value] of this.#changes) if (value !== undefined) yield [key, value];
  }

  *keys(): Generator<K> {
    for (const [key] of this.entries()) yield key;
  }

  *values(): Generator<V> {
    for (const [, value] of this.entries()) yield value;
  }
}
