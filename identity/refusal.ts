/** How a call is refused: a gRPC status for programs, and in its message a reason code with its sentence for both. */
import { Metadata, type ServiceError, status } from '@grpc/grpc-js';
import { asError, CountersignError } from '../src/base/errors.ts';
import { grpcStatusOf } from '../src/base/exit-codes.ts';
import type { Logger } from '../src/base/log.ts';
import { type ReasonCode, reasonCodes } from '../src/base/registry/reason-codes.ts';

/** Thrown by handlers to refuse. */
export class Refusal extends Error {
  readonly reason: ReasonCode;
  readonly status: number;

  constructor(reason: ReasonCode, grpcStatus: number, advice?: string) {
    super(`${reason}: ${reasonCodes[reason]}${advice === undefined ? '' : `; ${advice}`}`);
    this.name = 'Refusal';
    this.reason = reason;
    this.status = grpcStatus;
  }
}

/** Everything a handler may throw, as what gRPC sends. Of a bug only the log learns more than that there was one. */
export function toServiceError(thrown: unknown, log: Logger): ServiceError {
  const error = asError(thrown);
  if (error instanceof Refusal) return serviceError(error.status, error.message);
  if (error instanceof CountersignError) {
    // not the caller's doing: a ledger that cannot be written, a token that is gone
    if (error.code === 'unavailable') log.warn({ err: error }, 'a call could not be served');
    return serviceError(grpcStatusOf(error.code), error.message);
  }
  log.error({ err: error }, 'a call failed');
  if (isDiskFault(error)) {
    return serviceError(
      status.UNAVAILABLE,
      `the server's disk cannot be written: ${error.message}; nothing was changed`,
    );
  }
  return serviceError(status.INTERNAL, 'internal error; the server log says more');
}

export function serviceError(code: number, details: string): ServiceError {
  return Object.assign(new Error(details), { code, details, metadata: new Metadata() });
}

/** Of SQLite (https://www.sqlite.org/rescode.html: IOERR, FULL, READONLY) and of the file system. */
function isDiskFault(error: Error): boolean {
  const { code, errcode } = error as { readonly code?: unknown; readonly errcode?: unknown };
  if (code === 'ERR_SQLITE_ERROR' && typeof errcode === 'number') return [8, 10, 13].includes(errcode & 0xff);
  return code === 'ENOSPC' || code === 'EDQUOT' || code === 'EROFS' || code === 'EIO';
}
