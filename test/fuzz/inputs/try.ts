/** One input by its seed: made, checked, timed. */
import { Random } from '../random.ts';
import type { Target } from './target.ts';

export interface Failure {
  readonly target: string;
  readonly seed: number;
  readonly problem: string;
  readonly input: string;
}

export interface Tried {
  readonly accepted: boolean;
  readonly ms: number;
}

/** An input that takes longer is a fault of its own: bytes that cost more to refuse than to send. */
export const LIMIT_MS = 1_000;

/** @returns what did not hold, or how it went. */
export function tryInput(target: Target, seed: number): Failure | Tried {
  const input = target.make(new Random(seed));
  const fail = (problem: string): Failure => ({ target: target.name, seed, problem, input: shown(input) });
  const started = performance.now();
  let accepted: boolean;
  try {
    accepted = target.check(input);
  } catch (thrown) {
    return fail(thrown instanceof Error ? (thrown.stack ?? thrown.message) : String(thrown));
  }
  const ms = performance.now() - started;
  // a machine that was busy meanwhile is not the parser's fault: it must be slow twice
  if (ms > LIMIT_MS && again(target, input) > LIMIT_MS) return fail(`took ${ms.toFixed(0)} ms`);
  return { accepted, ms };
}

function again(target: Target, input: Buffer | string): number {
  const started = performance.now();
  target.check(input);
  return performance.now() - started;
}

export function shown(input: Buffer | string): string {
  return Buffer.isBuffer(input) ? `hex ${input.toString('hex')}` : JSON.stringify(input);
}
