/**
 * What every call passes before its service sees it: a known caller, his limits and, for the Workload API itself, its
 * security header (SPIFFE Workload Endpoint, section 3). A call holds its place until its status is sent or it is cancelled.
 */
import { ServerInterceptingCall, type ServerInterceptor } from '@grpc/grpc-js';
import type { Clock } from '../base/clock.ts';
import { fullBucket, refill, type TokenBucket, take } from '../base/token-bucket.ts';
import type { WorkloadAudit } from './audit.ts';
import type { Caller, CallerListener } from './callers.ts';
import { REFUSALS, type Refusal } from './responses.ts';

export interface CallLimits {
  /** Open calls, streams among them. */
  readonly callsPerUid: number;
  /** Open calls of reflection and health. */
  readonly introspectionsPerUid: number;
  /** A call whose request is not there after this time is ended. */
  readonly requestMs: number;
  /** New calls, and messages in open ones, a second; twice as many in a burst. */
  readonly callRatePerUid: number;
}

export interface CallGuard {
  readonly interceptor: ServerInterceptor;
  readonly open: number;
  /** From now on everybody is told to come again. */
  stop(): void;
}

const WORKLOAD_API = '/SpiffeWorkloadAPI/';
const INTROSPECTION = '/grpc.';

/** @param listener by reference: it begins to listen only when the guard is in place. */
export function guardCalls(
  listener: () => CallerListener,
  limits: CallLimits,
  audit: WorkloadAudit,
  clock: Clock,
): CallGuard {
  const identities = createTally();
  const introspections = createTally();
  const rate = createRateLimit(limits.callRatePerUid, clock);
  let open = 0;
  let stopping = false;

  const begin = (caller: Caller, tally: Tally): (() => void) => {
    const connectionCall = listener().callBegan(caller);
    tally.add(caller.uid, 1);
    open++;
    let over = false;
    return () => {
      if (over) return;
      over = true;
      open--;
      tally.add(caller.uid, -1);
      connectionCall();
    };
  };
  const refusalOf = (caller: Caller | undefined, tally: Tally, limit: number): Refusal | undefined => {
    if (stopping) return REFUSALS.stopping;
    // Its connection has closed meanwhile, or it never came through the listener: nobody is there to be told.
    if (caller === undefined) return REFUSALS.internal;
    if (tally.of(caller.uid) >= limit) return REFUSALS.tooManyCalls;
    return rate.take(caller.uid, 1) ? undefined : REFUSALS.tooOften;
  };

  const interceptor: ServerInterceptor = ({ path }, call) => {
    const caller = listener().callerNamed(call.getPeer());
    const aside = path.startsWith(INTROSPECTION);
    const [tally, limit] = aside ? [introspections, limits.introspectionsPerUid] : [identities, limits.callsPerUid];
    const refusal = refusalOf(caller, tally, limit);
    const end = caller === undefined || refusal !== undefined ? () => {} : begin(caller, tally);
    let messages = 0;
    let late: NodeJS.Timeout | undefined;
    const over = () => {
      clearTimeout(late);
      end();
    };
    const refuse = (reason: Refusal) => {
      if (caller !== undefined) audit.refused(caller, path.slice(path.lastIndexOf('/') + 1), reason);
      call.sendStatus({ code: reason.code, details: reason.message });
      over();
    };
    return new ServerInterceptingCall(call, {
      start: (next) =>
        next({
          onReceiveMetadata(metadata, pass) {
            const header = metadata.get('workload.spiffe.io');
            const missing = path.startsWith(WORKLOAD_API) && (header.length !== 1 || header[0] !== 'true');
            const reason = refusal ?? (missing ? REFUSALS.header : undefined);
            if (reason !== undefined) return refuse(reason);
            late = setTimeout(() => refuse(REFUSALS.noRequest), limits.requestMs);
            pass(metadata);
          },
          // the first is part of the call; each further one in a stream counts as a call
          onReceiveMessage(message, pass) {
            clearTimeout(late);
            if (messages++ === 0 || rate.take(caller!.uid, 1)) pass(message);
            else refuse(REFUSALS.tooOften);
          },
          onCancel: over,
        }),
      sendStatus(status, next) {
        next(status);
        over();
      },
    });
  };
  return {
    interceptor,
    get open() {
      return open;
    },
    stop() {
      stopping = true;
    },
  };
}

interface Tally {
  of(uid: number): number;
  add(uid: number, change: 1 | -1): void;
}

function createTally(): Tally {
  const counts = new Map<number, number>();
  const of = (uid: number) => counts.get(uid) ?? 0;
  return {
    of,
    add(uid, change) {
      const count = of(uid) + change;
      if (count === 0) counts.delete(uid);
      else counts.set(uid, count);
    },
  };
}

export interface RateLimit {
  /** False: not now. */
  take(uid: number, tokens: number): boolean;
}

/** Users remembered; beyond it the one that was quiet longest is forgotten, and has his burst again. */
const MAX_USERS = 4_096;

/** A bucket for each user: `perSecond` tokens flow in, and it holds what flows in during two seconds. */
export function createRateLimit(perSecond: number, clock: Clock): RateLimit {
  const buckets = new Map<number, TokenBucket>();
  const size = 2 * perSecond;
  return {
    take(uid, tokens) {
      const now = clock.bootNs();
      const bucket = buckets.get(uid) ?? fullBucket(size, now);
      buckets.delete(uid);
      if (buckets.size >= MAX_USERS) buckets.delete(buckets.keys().next().value!);
      buckets.set(uid, bucket);
      refill(bucket, now, perSecond, size);
      return take(bucket, tokens);
    },
  };
}
