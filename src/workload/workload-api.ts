/**
 * The SPIFFE Workload Endpoint on a unix socket: a workload proves by being what it is, and is told who it is. Served are the
 * Workload API, Envoy's Secret Discovery Service over the same identities, and gRPC reflection and health, which say nothing of
 * workloads.
 */
import { Server, ServerCredentials } from '@grpc/grpc-js';
import { SecretDiscoveryServiceService } from '../../proto/gen/envoy/service/secret/v3/sds.ts';
import { SpiffeWorkloadAPIService } from '../../proto/gen/spiffe/workload/workload.ts';
import type { Clock } from '../base/clock.ts';
import type { Logger } from '../base/log.ts';
import type { AuditSink } from '../model/audit-event.ts';
import { type AttestationOptions, createAttestor } from './attest.ts';
import { createWorkloadAudit } from './audit.ts';
import { type Caller, type CallerLimits, listenForCallers } from './callers.ts';
import { type CallLimits, createRateLimit, guardCalls } from './calls.ts';
import type { IdentityFeed } from './feed.ts';
import { addIntrospection } from './introspection.ts';
import { createPushes } from './pushes.ts';
import { createRareLog } from './rare-log.ts';
import { REFUSALS } from './responses.ts';
import { secretDiscovery } from './sds.ts';
import { spiffeWorkloadApi } from './spiffe-service.ts';

export interface WorkloadApiLimits extends CallerLimits, CallLimits {
  /** JWT-SVIDs asked for a second, twice as many in a burst. */
  readonly jwtRatePerUid: number;
  /** A stream whose entry has no SVID at the moment is told so after this time only. */
  readonly issueWaitMs: number;
}

const DEFAULT_LIMITS: WorkloadApiLimits = {
  connections: 4_096,
  connectionsPerUid: 1_024,
  idleMs: 60_000,
  callsPerUid: 2_048,
  introspectionsPerUid: 64,
  callRatePerUid: 1_000,
  requestMs: 10_000,
  jwtRatePerUid: 200,
  issueWaitMs: 5_000,
};

export interface WorkloadApiOptions {
  readonly socketPath: string;
  readonly feed: IdentityFeed;
  readonly audit: AuditSink;
  readonly clock: Clock;
  readonly log: Logger;
  readonly attestation?: AttestationOptions;
  readonly limits?: Partial<WorkloadApiLimits>;
}

export interface WorkloadApi {
  /** Open connections, open calls, and those of them that are told of every change. */
  readonly load: { readonly connections: number; readonly calls: number; readonly streams: number };
  /** Ends every stream with Unavailable and removes the socket. */
  close(): Promise<void>;
}

/** @throws CountersignError already-exists or bad-input when the socket cannot be had. */
export async function startWorkloadApi(options: WorkloadApiOptions): Promise<WorkloadApi> {
  const { socketPath, feed, clock, log } = options;
  const limits = { ...DEFAULT_LIMITS, ...options.limits };
  const audit = createWorkloadAudit(options.audit, clock);
  const rareLog = createRareLog(log, clock);
  const pushes = createPushes();
  const guard = guardCalls(() => listener, limits, audit, clock);

  const server = new Server({
    interceptors: [guard.interceptor],
    'grpc.max_receive_message_length': 64 * 1024,
    'grpc.max_concurrent_streams': limits.callsPerUid,
    // first a GOAWAY, which a client that is there follows; whoever says nothing is cut off by the listener
    'grpc.max_connection_idle_ms': limits.idleMs / 2,
    // who does not read answers no ping either
    'grpc.keepalive_time_ms': 60_000,
    'grpc.keepalive_timeout_ms': 20_000,
    'grpc.enable_channelz': 0,
  });
  const injector = server.createConnectionInjector(ServerCredentials.createInsecure());
  const attestor = createAttestor(options.attestation ?? {}, rareLog);
  const context = {
    feed,
    attestor,
    clock,
    log,
    rareLog,
    audit,
    pushes,
    waitMs: limits.issueWaitMs,
    jwtRate: createRateLimit(limits.jwtRatePerUid, clock),
    callerNamed: (name: string) => listener.callerNamed(name),
    identified: (caller: Caller) => listener.identified(caller),
  };
  server.addService(SpiffeWorkloadAPIService, spiffeWorkloadApi(context));
  server.addService(SecretDiscoveryServiceService, secretDiscovery(context));
  const introspection = addIntrospection(server);
  const listener = await listenForCallers(socketPath, limits, log, rareLog, (socket) =>
    injector.injectConnection(socket),
  );

  introspection.serving(feed.snapshot() !== undefined);
  const unsubscribe = feed.subscribe(() => {
    introspection.serving(feed.snapshot() !== undefined);
    pushes.changed();
  });
  return {
    get load() {
      return { connections: listener.connections, calls: guard.open, streams: pushes.streams };
    },
    async close() {
      guard.stop();
      unsubscribe();
      introspection.serving(false);
      pushes.end(REFUSALS.stopping);
      injector.drain(100);
      await new Promise((resolve) => setImmediate(resolve)); // statuses leave before their connections
      await listener.close();
      server.forceShutdown();
    },
  };
}
