/**
 * The SPIFFE Workload API on a unix socket: a workload proves by being what it is, and is told who it is. Streams answer
 * at once, then whenever something changed, each time with the whole state.
 */
import { type handleServerStreamingCall, type Metadata, Server, ServerCredentials } from '@grpc/grpc-js';
import {
  type SpiffeWorkloadAPIServer,
  SpiffeWorkloadAPIService,
  X509BundlesResponse,
  type X509SVID,
  X509SVIDResponse,
} from '../../proto/gen/spiffe/workload/workload.ts';
import type { Clock } from '../base/clock.ts';
import { asError, err, ok, type Result } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import type { AuditSink } from '../model/audit-event.ts';
import type { RegistrationEntry } from '../model/entry.ts';
import { createAttestor } from './attest.ts';
import { createWorkloadAudit } from './audit.ts';
import { type Caller, listenForCallers } from './callers.ts';
import type { IdentityFeed, IdentitySnapshot } from './feed.ts';
import { composeX509Bundles, composeX509Svids, REFUSALS, type Refusal } from './responses.ts';
import { pushState, type StateCall, type StateStream } from './state-stream.ts';

export interface WorkloadApiLimits {
  readonly connections: number;
  readonly connectionsPerUid: number;
  readonly streamsPerUid: number;
}

const DEFAULT_LIMITS: WorkloadApiLimits = { connections: 1_024, connectionsPerUid: 128, streamsPerUid: 256 };

export interface WorkloadApiOptions {
  readonly socketPath: string;
  readonly feed: IdentityFeed;
  readonly audit: AuditSink;
  readonly clock: Clock;
  readonly log: Logger;
  readonly limits?: Partial<WorkloadApiLimits>;
}

export interface WorkloadApi {
  /** Open connections and streams. */
  readonly load: { readonly connections: number; readonly streams: number };
  /** Ends every stream with Unavailable and removes the socket. */
  close(): Promise<void>;
}

/** @throws CountersignError already-exists or bad-input when the socket cannot be had. */
export async function startWorkloadApi(options: WorkloadApiOptions): Promise<WorkloadApi> {
  const { socketPath, feed, clock, log } = options;
  const limits = { ...DEFAULT_LIMITS, ...options.limits };
  const audit = createWorkloadAudit(options.audit, clock);
  const attestor = createAttestor();
  const streams = new Set<StateStream>();
  const streamsByUid = new Map<number, number>();
  let stopping = false;

  const server = new Server({
    'grpc.max_receive_message_length': 64 * 1024,
    'grpc.max_concurrent_streams': limits.streamsPerUid,
    'grpc.max_connection_idle_ms': 10 * 60 * 1000,
    'grpc.enable_channelz': 0,
  });
  const injector = server.createConnectionInjector(ServerCredentials.createInsecure());
  const listener = await listenForCallers(socketPath, limits, log, (socket) => injector.injectConnection(socket));

  const admit = (
    metadata: Metadata,
    peer: string,
  ): Result<Caller, { refusal: Refusal; caller: Caller | undefined }> => {
    const caller = listener.callerNamed(peer);
    if (stopping) return err({ refusal: REFUSALS.stopping, caller });
    // Its connection has closed meanwhile, or it never came through the listener: nobody is there to be told.
    if (caller === undefined) return err({ refusal: REFUSALS.internal, caller });
    const header = metadata.get('workload.spiffe.io');
    if (header.length !== 1 || header[0] !== 'true') return err({ refusal: REFUSALS.header, caller });
    return ok(caller);
  };
  const refuse = (caller: Caller | undefined, method: string, refusal: Refusal) => {
    if (caller === undefined || refusal.reason === undefined) return;
    audit.say(caller, { kind: 'workload.refused', reason: refusal.reason, detail: { method } });
  };

  type Compose<T> = (snapshot: IdentitySnapshot, entries: readonly RegistrationEntry[]) => Result<T, Refusal>;
  function serve<T>(
    method: string,
    compose: Compose<T>,
    encode: (response: T) => Buffer,
    attested: (caller: Caller, response: T) => void,
  ): handleServerStreamingCall<unknown, T> {
    return (call) => {
      const admitted = admit(call.metadata, call.getPeer());
      if (!admitted.ok) {
        refuse(admitted.error.caller, method, admitted.error.refusal);
        return endWith(call, admitted.error.refusal);
      }
      const caller = admitted.value;
      const held = streamsByUid.get(caller.uid) ?? 0;
      if (held >= limits.streamsPerUid) return endWith(call, REFUSALS.tooManyStreams);
      streamsByUid.set(caller.uid, held + 1);

      let answered = false;
      const stream = pushState<T>(call, {
        encode,
        async state() {
          const snapshot = feed.snapshot();
          if (snapshot === undefined) return err(REFUSALS.starting);
          const composed = compose(snapshot, await attestor.entriesOf(caller, snapshot.entries));
          if (composed.ok && !answered) attested(caller, composed.value);
          answered ||= composed.ok;
          return composed;
        },
        ended(refusal) {
          streams.delete(stream);
          const left = (streamsByUid.get(caller.uid) ?? 1) - 1;
          if (left === 0) streamsByUid.delete(caller.uid);
          else streamsByUid.set(caller.uid, left);
          if (refusal !== undefined) refuse(caller, method, refusal);
        },
        failed: (thrown) => log.error({ err: asError(thrown), method }, 'a Workload API call failed'),
      });
      streams.add(stream);
      stream.changed();
    };
  }

  const saySvids = (caller: Caller, svids: readonly X509SVID[]) => {
    for (const { spiffeId } of svids) {
      audit.say(caller, { kind: 'workload.attested', source: { spiffeId }, detail: { method: 'FetchX509SVID' } });
    }
  };
  const noJwt = (method: string) => (call: { metadata: Metadata; getPeer(): string }) => {
    const admitted = admit(call.metadata, call.getPeer());
    if (!admitted.ok) refuse(admitted.error.caller, method, admitted.error.refusal);
    return admitted.ok ? REFUSALS.jwt : admitted.error.refusal;
  };
  const implementation: SpiffeWorkloadAPIServer = {
    fetchX509Svid: serve(
      'FetchX509SVID',
      (snapshot, entries) => composeX509Svids(snapshot, entries, clock.nowMs()),
      (response) => Buffer.from(X509SVIDResponse.encode(response).finish()),
      (caller, response) => saySvids(caller, response.svids),
    ),
    fetchX509Bundles: serve(
      'FetchX509Bundles',
      composeX509Bundles,
      (response) => Buffer.from(X509BundlesResponse.encode(response).finish()),
      () => {},
    ),
    fetchJwtsvid: unary(noJwt('FetchJWTSVID')),
    fetchJwtBundles: (call: StateCall<unknown>) => endWith(call, noJwt('FetchJWTBundles')(call)),
    validateJwtsvid: unary(noJwt('ValidateJWTSVID')),
  };
  server.addService(SpiffeWorkloadAPIService, implementation);

  const unsubscribe = feed.subscribe(() => {
    for (const stream of streams) stream.changed();
  });
  return {
    get load() {
      return { connections: listener.connections, streams: streams.size };
    },
    async close() {
      stopping = true;
      unsubscribe();
      for (const stream of [...streams]) stream.end(REFUSALS.stopping);
      injector.drain(100);
      await new Promise((resolve) => setImmediate(resolve)); // statuses leave before their connections
      await listener.close();
      server.forceShutdown();
    },
  };
}

type UnaryCall = { metadata: Metadata; getPeer(): string };

function unary(answer: (call: UnaryCall) => Refusal) {
  return (call: UnaryCall, callback: (error: { code: number; details: string }) => void) => {
    const { code, message } = answer(call);
    callback({ code, details: message });
  };
}

function endWith(call: StateCall<never> | StateCall<unknown>, { code, message }: Refusal): void {
  (call as StateCall<unknown>).emit('error', { code, details: message });
}
