/**
 * Expected outcomes are values (Result with a closed code); exceptions are for bugs and for the rim of a process.
 * A CountersignError's message is meant for a person: it says what is wrong, where, and what to do. It never holds a secret.
 */
export type Result<T, E> = { readonly ok: true; readonly value: T } | { readonly ok: false; readonly error: E };

export function ok<T>(value: T): { readonly ok: true; readonly value: T } {
  return { ok: true, value };
}

export function err<E>(error: E): { readonly ok: false; readonly error: E } {
  return { ok: false, error };
}

/** Stable codes a caller can switch on; exit statuses and gRPC statuses follow from them (base/exit-codes.ts). */
export type ErrorCode =
  | 'bad-input'
  | 'not-found'
  | 'already-exists'
  | 'permission-denied'
  | 'unauthenticated'
  | 'unavailable'
  | 'unsupported'
  | 'exhausted'
  | 'internal';

export class CountersignError extends Error {
  readonly code: ErrorCode;

  constructor(code: ErrorCode, message: string, options?: { cause?: unknown }) {
    super(message, options);
    this.name = 'CountersignError';
    this.code = code;
  }
}

/** The one door from `unknown`: whatever was thrown, as an Error. */
export function asError(thrown: unknown): Error {
  return thrown instanceof Error ? thrown : new Error(String(thrown));
}

/** For the default branch of a switch over a closed union. */
export function unreachable(value: never): never {
  throw new Error(`unreachable: ${JSON.stringify(value)}`);
}
