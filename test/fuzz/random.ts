/** A seeded source of choices: the same seed, the same scenario. */

export class Random {
  #a: number;
  #b: number;

  constructor(seed: number) {
    this.#a = seed >>> 0 || 1;
    this.#b = Math.imul(seed ^ 0x9e3779b9, 0x85ebca6b) >>> 0 || 2;
    for (let i = 0; i < 8; i++) this.#next();
  }

  /** xorshift64, in two halves. */
  #next(): number {
    let t = this.#a;
    const s = this.#b;
    this.#a = s;
    t ^= t << 23;
    t ^= t >>> 17;
    t ^= s ^ (s >>> 26);
    this.#b = t >>> 0;
    return (this.#b + s) >>> 0;
  }

  /** From 0 to n - 1. */
  below(n: number): number {
    return this.#next() % n;
  }

  /** True once in n. */
  oneIn(n: number): boolean {
    return this.below(n) === 0;
  }

  percent(p: number): boolean {
    return this.below(100) < p;
  }

  pick<T>(list: readonly T[]): T {
    return list[this.below(list.length)]!;
  }

  /** Choices and how often each is taken, relative to the others. */
  weighted<T>(choices: readonly (readonly [T, number])[]): T {
    let at = this.below(choices.reduce((sum, [, weight]) => sum + weight, 0));
    for (const [value, weight] of choices) {
      if (at < weight) return value;
      at -= weight;
    }
    throw new Error('unreachable');
  }
}
