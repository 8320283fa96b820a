/** The gRPC service that agents call: who may call what, and how an outcome becomes a gRPC status. */
import {
  Server,
  ServerCredentials,
  type ServerDuplexStream,
  type ServerInterceptor,
  type ServerUnaryCall,
  type sendUnaryData,
  status,
  type UntypedServiceImplementation,
} from '@grpc/grpc-js';
import {
  type AttestRequest,
  AttestResponse,
  type IdentityServerServer,
  IdentityServerService,
} from '../proto/gen/countersign/server/v1/server.ts';
import type { Clock } from '../src/base/clock.ts';
import type { Logger } from '../src/base/log.ts';
import { systemTimers } from '../src/base/timers.ts';
import type { NodeName } from '../src/model/ids.ts';
import { type AttestOptions, attest } from './attest.ts';
import { type CheckpointOptions, putCheckpoint } from './checkpoints.ts';
import { issue, renew } from './issue.ts';
import { type IssueJwtOptions, issueJwt } from './issue-jwt.ts';
import type { Caller } from './listener.ts';
import type { Nodes } from './nodes.ts';
import { Refusal, toServiceError } from './refusal.ts';
import type { NodeRecord } from './store.ts';
import type { SyncHub, SyncStream } from './sync.ts';

/** An attestation ends in this time, challenge and answer included. */
const ATTEST_MS = 10_000;
const MAX_MESSAGE_BYTES = 1 << 20;
/** Streams open at once on one connection. */
const MAX_STREAMS = 64;
/** A dead agent's connection, and with it its hold on the node's name, ends within the sum of the two. */
const KEEPALIVE_MS = 5_000;
const KEEPALIVE_TIMEOUT_MS = 5_000;

export interface ServiceOptions {
  readonly nodes: Nodes;
  readonly hub: SyncHub;
  readonly attest: AttestOptions;
  /** @throws Refusal */
  readonly takeShare: (node: NodeName, count: number) => void;
  readonly issue: IssueJwtOptions;
  readonly checkpoints: CheckpointOptions;
  readonly callerOf: (peer: string) => Caller | undefined;
  readonly interceptors: readonly ServerInterceptor[];
  readonly clock: Clock;
  readonly log: Logger;
}

/** What Sync sends comes encoded. */
const definition = {
  ...IdentityServerService,
  sync: { ...IdentityServerService.sync, responseSerialize: (message: Buffer) => message },
};
type Handlers = Omit<IdentityServerServer, 'sync'> & {
  sync: (call: SyncStream) => void;
} & UntypedServiceImplementation;

/** A gRPC server without a port: connections are handed to it once they are proven. */
export function createService(options: ServiceOptions) {
  const server = new Server({
    'grpc.max_receive_message_length': MAX_MESSAGE_BYTES,
    'grpc.max_concurrent_streams': MAX_STREAMS,
    'grpc.keepalive_time_ms': KEEPALIVE_MS,
    'grpc.keepalive_timeout_ms': KEEPALIVE_TIMEOUT_MS,
    'grpc.keepalive_permit_without_calls': 1,
    'grpc-node.max_session_memory': 10,
    'grpc.enable_channelz': 0,
    interceptors: [...options.interceptors],
  });
  server.addService(definition, handlers(options));
  const injector = server.createConnectionInjector(ServerCredentials.createInsecure());
  return { accept: injector.injectConnection, close: () => server.forceShutdown() };
}

function handlers(options: ServiceOptions): Handlers {
  const { nodes, hub, log, clock, takeShare } = options;

  const callerOf = (call: { getPeer(): string }): Caller => {
    const caller = options.callerOf(call.getPeer());
    if (caller === undefined) throw new Refusal('PEER_CHANNEL_CLOSED', status.UNAVAILABLE);
    return caller;
  };
  /** The node that calls, if its certificate still lets it in. */
  const nodeOf = (caller: Caller, renewing = false): NodeRecord => {
    if (caller.refusal !== undefined) throw new Refusal(caller.refusal, status.PERMISSION_DENIED);
    if (caller.svid === undefined) throw new Refusal('CERT_CHAIN_EMPTY', status.UNAUTHENTICATED);
    const node = nodes.verify(caller.svid, clock.nowMs(), renewing);
    if (!node.ok) throw new Refusal(node.error, status.PERMISSION_DENIED);
    return node.value;
  };
  const unary =
    <Request, Response>(
      work: (node: NodeRecord, request: Request) => Promise<Response> | Response,
      renewing: (request: Request) => boolean = () => false,
    ) =>
    (call: ServerUnaryCall<Request, Response>, done: sendUnaryData<Response>) => {
      Promise.resolve()
        .then(() => work(nodeOf(callerOf(call), renewing(call.request)), call.request))
        .then(
          (response) => done(null, response),
          (thrown: unknown) => done(toServiceError(thrown, log)),
        );
    };

  return {
    attest: (call: ServerDuplexStream<AttestRequest, AttestResponse>) => serveAttest(options, call, callerOf),
    sync(call) {
      try {
        nodeOf(callerOf(call));
        hub.serve(call, () => nodeOf(callerOf(call)));
      } catch (thrown) {
        call.emit('error', toServiceError(thrown, log));
      }
    },
    issue: unary(async (node, request) => {
      takeShare(node.name, request.csrs.length);
      return { results: await issue(options.issue, node, request.csrs) };
    }),
    issueJwt: unary((node, request) => {
      takeShare(node.name, 1);
      return issueJwt(options.issue, node, request);
    }),
    renew: unary(
      async (node, request) => {
        takeShare(node.name, 1);
        return { certificateChain: await renew(options.issue, hub, node, request) };
      },
      ({ newIncarnation }) => newIncarnation,
    ),
    putCheckpoint: unary((node, request) => {
      putCheckpoint(options.checkpoints, node, request.checkpoint);
      return { cosignature: Buffer.alloc(0) };
    }),
  };
}

/** One attestation per stream: the claim, then an answer to each challenge, nothing else. */
function serveAttest(
  { attest: attestOptions, log }: ServiceOptions,
  stream: ServerDuplexStream<AttestRequest, AttestResponse>,
  callerOf: (call: { getPeer(): string }) => Caller,
): void {
  let ended = false;
  let answer: ((response: Buffer) => void) | undefined;
  let begun = false;
  const fail = (thrown: unknown) => {
    if (ended) return;
    ended = true;
    cancelDeadline();
    stream.emit('error', toServiceError(thrown, log));
  };
  const cancelDeadline = systemTimers.set(ATTEST_MS, () =>
    fail(new Refusal('PEER_IDLE_TIMEOUT', status.DEADLINE_EXCEEDED)),
  );
  const challenge = (question: Buffer) =>
    new Promise<Buffer>((resolve) => {
      answer = resolve;
      stream.write(AttestResponse.create({ step: { $case: 'challenge', value: question } }));
    });
  stream.on('data', ({ step }: AttestRequest) => {
    try {
      if (step?.$case === 'challengeResponse' && answer !== undefined) {
        const give = answer;
        answer = undefined;
        give(step.value);
      } else if (step?.$case === 'params' && !begun) {
        begun = true;
        attest(attestOptions, step.value, callerOf(stream).remote, challenge).then((result) => {
          if (ended) return;
          ended = true;
          cancelDeadline();
          stream.write(AttestResponse.create({ step: { $case: 'result', value: result } }));
          stream.end();
        }, fail);
      } else {
        throw new Refusal('PEER_FRAME_UNEXPECTED', status.INVALID_ARGUMENT);
      }
    } catch (thrown) {
      fail(thrown);
    }
  });
  const gone = () => {
    ended = true;
    cancelDeadline();
  };
  stream.on('end', () => {
    if (!begun) fail(new Refusal('PEER_FRAME_UNEXPECTED', status.INVALID_ARGUMENT));
  });
  stream.on('cancelled', gone);
  stream.on('error', gone);
}
