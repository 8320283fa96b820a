/** The five calls of the SPIFFE Workload API. Streams answer at once, then whenever something changed, each time with the whole state. */
import type { handleServerStreamingCall } from '@grpc/grpc-js';
import {
  JWTBundlesResponse,
  type JWTSVIDRequest,
  type JWTSVIDResponse,
  type SpiffeWorkloadAPIServer,
  type ValidateJWTSVIDRequest,
  type ValidateJWTSVIDResponse,
  X509BundlesResponse,
  X509SVIDResponse,
} from '../../proto/gen/spiffe/workload/workload.ts';
import { asError, err, ok, type Result } from '../base/errors.ts';
import { reasonCodes } from '../base/registry/reason-codes.ts';
import type { RegistrationEntry } from '../model/entry.ts';
import { parseSpiffeId } from '../model/spiffe-id.ts';
import { AUDIENCE_LIMITS, audienceProblem, validateJwtSvid } from '../pki/jwt.ts';
import type { Caller } from './callers.ts';
import { identify, type ServiceContext, sayAttested, unary } from './context.ts';
import type { IdentitySnapshot } from './feed.ts';
import {
  bundlesToSee,
  composeJwtBundles,
  composeX509Bundles,
  composeX509Svids,
  REFUSALS,
  type Refusal,
  STATUS,
  uniqueHints,
} from './responses.ts';
import { pushState, type StateCall } from './state-stream.ts';

export function spiffeWorkloadApi(context: ServiceContext): SpiffeWorkloadAPIServer {
  const { clock } = context;
  return {
    fetchX509Svid: stream(
      context,
      'FetchX509SVID',
      (snapshot, entries) => composeX509Svids(snapshot, entries, clock.nowMs()),
      (response) => Buffer.from(X509SVIDResponse.encode(response).finish()),
      (response) => response.svids.map(({ spiffeId }) => spiffeId),
    ),
    fetchX509Bundles: stream(context, 'FetchX509Bundles', composeX509Bundles, (response) =>
      Buffer.from(X509BundlesResponse.encode(response).finish()),
    ),
    fetchJwtsvid: unary(context, 'FetchJWTSVID', (caller, request) => fetchJwtSvid(context, caller, request)),
    fetchJwtBundles: stream(context, 'FetchJWTBundles', composeJwtBundles, (response) =>
      Buffer.from(JWTBundlesResponse.encode(response).finish()),
    ),
    validateJwtsvid: unary(context, 'ValidateJWTSVID', (caller, request) => validate(context, caller, request)),
  };
}

/** @param idsIn the identities that an answer hands out, for the audit log */
function stream<R>(
  context: ServiceContext,
  method: string,
  compose: (snapshot: IdentitySnapshot, entries: readonly RegistrationEntry[]) => Result<R, Refusal>,
  encode: (response: R) => Buffer,
  idsIn: (response: R) => string[] = () => [],
): handleServerStreamingCall<unknown, R> {
  return (call) => {
    const caller = context.callerNamed(call.getPeer());
    const { code, message: details } = REFUSALS.internal;
    if (caller === undefined) return void call.emit('error', { code, details });
    let answered = false;
    const pushed = pushState<R, R>(call as unknown as StateCall<R>, {
      waitMs: context.waitMs,
      encode,
      message: (response) => response,
      async state() {
        const identified = await identify(context, caller);
        if (!identified.ok) return identified;
        const composed = compose(identified.value.snapshot, identified.value.entries);
        if (composed.ok && !answered) sayAttested(context, caller, method, idsIn(composed.value));
        answered ||= composed.ok;
        return composed;
      },
      ended(refusal) {
        context.pushes.remove(pushed);
        if (refusal !== undefined) context.audit.refused(caller, method, refusal);
      },
      failed: (thrown) => context.log.error({ err: asError(thrown), method }, 'a Workload API call failed'),
    });
    context.pushes.add(pushed);
    pushed.changed();
  };
}

/** Section 6.2.1: for all identities of the caller, or for the one it names. */
async function fetchJwtSvid(
  context: ServiceContext,
  caller: Caller,
  { audience, spiffeId }: JWTSVIDRequest,
): Promise<Result<JWTSVIDResponse, Refusal>> {
  if (audienceProblem(audience) !== undefined) return err(REFUSALS.audience);
  if (spiffeId !== '' && !parseSpiffeId(spiffeId).ok) return err(REFUSALS.spiffeId);
  const identified = await identify(context, caller);
  if (!identified.ok) return identified;
  const { entries } = identified.value;
  if (entries.length === 0) return err(REFUSALS.noIdentity);
  const identities = new Map<string, RegistrationEntry>();
  for (const entry of entries) {
    const wanted = spiffeId === '' || entry.spiffeId === spiffeId;
    if (wanted && !identities.has(entry.spiffeId)) identities.set(entry.spiffeId, entry);
  }
  if (identities.size === 0) return err(REFUSALS.otherIdentity);
  if (!context.jwtRate.take(caller.uid, identities.size)) return err(REFUSALS.tooOften);

  const issued = await Promise.all(
    [...identities.values()].map(async (entry) => ({ entry, result: await context.feed.issueJwt(entry.id, audience) })),
  );
  const hintOf = uniqueHints();
  const svids = [];
  for (const { entry, result } of issued) {
    if (result.ok) svids.push({ spiffeId: entry.spiffeId, svid: result.value.token, hint: hintOf(entry) });
    // a revoked identity is one less to be authorized for; anything else may be there the next time
    else if (result.error !== 'ISSUE_REVOKED' && result.error !== 'ISSUE_NOT_YOUR_ENTRY') {
      const why = { entry: entry.id, reason: result.error, why: reasonCodes[result.error] };
      context.rareLog.warn(`jwt ${entry.id}`, why, 'no JWT-SVID');
      return err(REFUSALS.jwtNotIssued);
    }
  }
  if (svids.length === 0) return err(REFUSALS.jwtRefused);
  // the process asked, and may have ended while the server answered
  if (!caller.isAlive()) return err(REFUSALS.noIdentity);
  const ids = svids.map((svid) => svid.spiffeId);
  sayAttested(context, caller, 'FetchJWTSVID', ids);
  return ok({ svids });
}

/** Section 6.2.3, by the bundles that FetchJWTBundles gives the same caller. */
async function validate(
  context: ServiceContext,
  caller: Caller,
  { audience, svid }: ValidateJWTSVIDRequest,
): Promise<Result<ValidateJWTSVIDResponse, Refusal>> {
  if (audience === '' || audience.length > AUDIENCE_LIMITS.length) return err(REFUSALS.audience);
  if (svid === '') return err(REFUSALS.svid);
  const identified = await identify(context, caller);
  if (!identified.ok) return identified;
  const bundles = bundlesToSee(identified.value.snapshot, identified.value.entries);
  if (!bundles.ok) return bundles;
  const verified = validateJwtSvid(svid, audience, bundles.value, context.clock.nowMs());
  if (!verified.ok) {
    const message = `the JWT-SVID is not valid: ${reasonCodes[verified.error]}`;
    return err({ code: STATUS.invalidArgument, message, reason: undefined });
  }
  return ok({ spiffeId: verified.value.spiffeId, claims: { ...verified.value.claims } });
}
