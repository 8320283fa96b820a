/** What both services of the socket work with, and the one way from a call to the identities of its caller. */
import type { Clock } from '../base/clock.ts';
import { asError, err, ok, type Result } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import type { RegistrationEntry } from '../model/entry.ts';
import type { Attestor } from './attest.ts';
import type { WorkloadAudit } from './audit.ts';
import type { Caller } from './callers.ts';
import type { RateLimit } from './calls.ts';
import type { IdentityFeed, IdentitySnapshot } from './feed.ts';
import type { Pushes } from './pushes.ts';
import type { RareLog } from './rare-log.ts';
import { REFUSALS, type Refusal } from './responses.ts';

export interface ServiceContext {
  readonly feed: IdentityFeed;
  readonly attestor: Attestor;
  readonly clock: Clock;
  readonly log: Logger;
  readonly rareLog: RareLog;
  readonly audit: WorkloadAudit;
  readonly pushes: Pushes;
  readonly jwtRate: RateLimit;
  /** Of a stream, for what is likely to pass, ms. */
  readonly waitMs: number;
  callerNamed(name: string): Caller | undefined;
  /** The caller has an identity. */
  identified(caller: Caller): void;
}

export interface Identified {
  readonly snapshot: IdentitySnapshot;
  /** Those of the caller; maybe none. */
  readonly entries: readonly RegistrationEntry[];
}

/** Asked anew for each answer: what the caller is and what it may have can both have changed. */
export async function identify(context: ServiceContext, caller: Caller): Promise<Result<Identified, Refusal>> {
  const snapshot = context.feed.snapshot();
  if (snapshot === undefined) return err(REFUSALS.starting);
  const entries = await context.attestor.entriesOf(caller, snapshot.entries);
  if (!entries.ok) return err(REFUSALS.notAttested);
  if (entries.value.length > 0) context.identified(caller);
  return ok({ snapshot, entries: entries.value });
}

type UnaryCall<Q> = { readonly request: Q; getPeer(): string };
type UnaryCallback<R> = (error: { code: number; details: string } | null, response?: R) => void;

/** A call with one answer. */
export function unary<Q, R>(
  context: ServiceContext,
  method: string,
  answer: (caller: Caller, request: Q) => Promise<Result<R, Refusal>>,
): (call: UnaryCall<Q>, callback: UnaryCallback<R>) => void {
  return (call, callback) => {
    const caller = context.callerNamed(call.getPeer());
    const refuse = (refusal: Refusal) => {
      if (caller !== undefined) context.audit.refused(caller, method, refusal);
      callback({ code: refusal.code, details: refusal.message });
    };
    if (caller === undefined) return refuse(REFUSALS.internal);
    answer(caller, call.request).then(
      (result) => (result.ok ? callback(null, result.value) : refuse(result.error)),
      (thrown) => {
        context.log.error({ err: asError(thrown), method }, 'a Workload API call failed');
        refuse(REFUSALS.internal);
      },
    );
  };
}

export function sayAttested(context: ServiceContext, caller: Caller, method: string, ids: Iterable<string>): void {
  for (const spiffeId of new Set(ids)) {
    context.audit.say(caller, { kind: 'workload.attested', source: { spiffeId }, detail: { method } });
  }
}
