/** What a parser of untrusted input is tried with: inputs made from a seed, and what must hold whatever comes out. */
import type { Random } from '../random.ts';

export interface Target {
  readonly name: string;
  /** The same seed, the same input: samples are data, and nothing else is drawn than from `random`. */
  make(random: Random): Buffer | string;
  /** Parses it. Returns whether it was accepted. @throws Error when the parser threw, or when something does not hold */
  check(input: Buffer | string): boolean;
}

/** @throws Error that names the property which does not hold */
export function hold(what: string, holds: boolean): void {
  if (!holds) throw new Error(`does not hold: ${what}`);
}
