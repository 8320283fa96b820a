/** One table from error codes to exit statuses of commands and to gRPC statuses. Nothing else maps them. */
import type { ErrorCode } from './errors.ts';

/** ok; the answer is "no"; bad input; the other side cannot be reached; done in part. */
export const EXIT = { ok: 0, no: 1, badInput: 2, unreachable: 3, partly: 4 } as const;

export type ExitCode = (typeof EXIT)[keyof typeof EXIT];

interface Row {
  readonly exit: ExitCode;
  /** Number of the gRPC status (grpc/doc/statuscodes.md). */
  readonly grpc: number;
}

const table: Readonly<Record<ErrorCode, Row>> = {
  'bad-input': { exit: EXIT.badInput, grpc: 3 },
  'not-found': { exit: EXIT.no, grpc: 5 },
  'already-exists': { exit: EXIT.no, grpc: 6 },
  'permission-denied': { exit: EXIT.no, grpc: 7 },
  exhausted: { exit: EXIT.no, grpc: 8 },
  unsupported: { exit: EXIT.badInput, grpc: 12 },
  internal: { exit: EXIT.no, grpc: 13 },
  unavailable: { exit: EXIT.unreachable, grpc: 14 },
  unauthenticated: { exit: EXIT.no, grpc: 16 },
};

/** gRPC statuses that no code of ours is sent as, but that a peer or a library may send. */
const foreignStatuses: Readonly<Record<number, ErrorCode>> = {
  4: 'unavailable', // DEADLINE_EXCEEDED
  9: 'bad-input', // FAILED_PRECONDITION
  11: 'bad-input', // OUT_OF_RANGE
};

export function exitCodeOf(code: ErrorCode): ExitCode {
  return table[code].exit;
}

export function grpcStatusOf(code: ErrorCode): number {
  return table[code].grpc;
}

/** What a received gRPC status means here; 'internal' for one that says nothing more. */
export function errorCodeOfGrpcStatus(status: number): ErrorCode {
  for (const [code, row] of Object.entries(table)) {
    if (row.grpc === status) return code as ErrorCode;
  }
  return foreignStatuses[status] ?? 'internal';
}
