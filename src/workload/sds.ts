/**
 * Envoy's Secret Discovery Service (xDS protocol, state of the world): the caller's X.509-SVIDs and bundles as secrets, pushed on
 * every rotation. A request acknowledges or refuses the last answer by its nonce, and may change what is asked for.
 */
import { randomBytes } from 'node:crypto';
import type { handleBidiStreamingCall } from '@grpc/grpc-js';
import type { BuildVersion } from '../../proto/gen/envoy/config/core/v3/base.ts';
import { type DiscoveryRequest, DiscoveryResponse } from '../../proto/gen/envoy/service/discovery/v3/discovery.ts';
import type { SecretDiscoveryServiceServer } from '../../proto/gen/envoy/service/secret/v3/sds.ts';
import type { Any } from '../../proto/gen/google/protobuf/any.ts';
import { asError, err, ok, type Result } from '../base/errors.ts';
import type { Caller } from './callers.ts';
import { identify, type ServiceContext, sayAttested, unary } from './context.ts';
import { REFUSALS, type Refusal, STATUS } from './responses.ts';
import { composeSecrets, SECRET_TYPE } from './secrets.ts';
import { pushState, type StateCall } from './state-stream.ts';

const MAX_NAMES = 256;
/** Of a client's own words in the log. */
const MAX_SAID = 256;

/** What a client asked for last. */
interface Wish {
  readonly names: readonly string[];
  /** Of Envoy, from the first request that says it: later ones need not. */
  readonly version: BuildVersion | undefined;
}

export function secretDiscovery(context: ServiceContext): SecretDiscoveryServiceServer {
  return {
    streamSecrets: streamSecrets(context),
    fetchSecrets: unary(context, 'FetchSecrets', async (caller: Caller, request: DiscoveryRequest) => {
      const wish = readWish(request, undefined);
      if (!wish.ok) return wish;
      const secrets = await compose(context, caller, wish.value);
      if (!secrets.ok) return secrets;
      sayAttested(context, caller, 'FetchSecrets', secrets.value.spiffeIds);
      return ok({ versionInfo: '', resources: secrets.value.resources, typeUrl: SECRET_TYPE, nonce: '' });
    }),
    deltaSecrets(call) {
      call.emit('error', { code: STATUS.unimplemented, details: 'DeltaSecrets is not served; use StreamSecrets' });
    },
  };
}

function streamSecrets(context: ServiceContext): handleBidiStreamingCall<DiscoveryRequest, DiscoveryResponse> {
  const method = 'StreamSecrets';
  return (call) => {
    const caller = context.callerNamed(call.getPeer());
    const { code, message: details } = REFUSALS.internal;
    if (caller === undefined) return void call.emit('error', { code, details });
    let wish: Wish | undefined;
    let version = 0;
    let nonce: string | undefined;
    let answered = false;
    const pushed = pushState<{ resources: Any[]; spiffeIds: string[] }, DiscoveryResponse>(
      call as unknown as StateCall<DiscoveryResponse>,
      {
        waitMs: context.waitMs,
        encode: ({ resources }) => Buffer.from(DiscoveryResponse.encode(response(resources, '', '')).finish()),
        message({ resources }) {
          nonce = randomBytes(8).toString('hex');
          return response(resources, String(++version), nonce);
        },
        async state() {
          const composed = await compose(context, caller, wish!);
          if (composed.ok && !answered) sayAttested(context, caller, method, composed.value.spiffeIds);
          answered ||= composed.ok;
          return composed;
        },
        ended(refusal) {
          context.pushes.remove(pushed);
          if (refusal !== undefined) context.audit.refused(caller, method, refusal);
        },
        failed: (thrown) => context.log.error({ err: asError(thrown), method }, 'a Secret Discovery call failed'),
      },
    );
    call.on('data', (request: DiscoveryRequest) => {
      if (request.errorDetail !== undefined) {
        const said = request.errorDetail.message.slice(0, MAX_SAID);
        const { uid, pid } = caller;
        context.rareLog.warn(`nack ${uid}`, { uid, pid, said }, 'a client refused the secrets it was sent');
      }
      // It answers an earlier response than the last: what it says was said before it had seen that one.
      if (nonce !== undefined && request.responseNonce !== nonce) return;
      const next = readWish(request, wish?.version);
      if (!next.ok) return pushed.end(next.error);
      const before = wish;
      wish = next.value;
      if (before === undefined) context.pushes.add(pushed);
      if (before === undefined || !sameNames(before.names, wish.names)) pushed.asked();
    });
    call.on('end', () => pushed.end(undefined));
  };
}

function response(resources: Any[], versionInfo: string, nonce: string): DiscoveryResponse {
  return { versionInfo, resources, typeUrl: SECRET_TYPE, nonce };
}

function readWish(request: DiscoveryRequest, known: BuildVersion | undefined): Result<Wish, Refusal> {
  const refuse = (message: string) => err({ code: STATUS.invalidArgument, message, reason: undefined });
  if (request.typeUrl !== '' && request.typeUrl !== SECRET_TYPE) return refuse(`type_url must be ${SECRET_TYPE}`);
  const names = [...new Set(request.resourceNames.filter((name) => name !== ''))];
  if (names.length > MAX_NAMES) return refuse(`at most ${MAX_NAMES} resource names may be asked for in one stream`);
  const version = request.node?.userAgentVersionType;
  return ok({ names, version: version?.$case === 'userAgentBuildVersion' ? version.value : known });
}

function sameNames(a: readonly string[], b: readonly string[]): boolean {
  return a.length === b.length && a.every((name) => b.includes(name));
}

async function compose(context: ServiceContext, caller: Caller, { names, version }: Wish) {
  const identified = await identify(context, caller);
  if (!identified.ok) return identified;
  const { snapshot, entries } = identified.value;
  return composeSecrets(snapshot, entries, context.clock.nowMs(), names, version?.version);
}
