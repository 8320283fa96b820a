/** One Sync stream: messages in, acks out, and how it ended. */
import type { ServiceError } from '@grpc/grpc-js';
import { SyncRequest, type SyncResponse } from '../../../proto/gen/countersign/server/v1/server.ts';
import { systemTimers } from '../../base/timers.ts';
import { type Connection, ServerError } from './transport.ts';

/** The snapshot comes within this time, or the server is as good as gone. */
const SNAPSHOT_MS = 15_000;

export interface SyncStream {
  /** Resolves when the stream ended in order: true if after `handOver`. Rejects with ServerError. */
  readonly ended: Promise<boolean>;
  ack(version: bigint): void;
  /** The number of this stream is on disk. */
  confirm(session: bigint): void;
  /** Ends it so that the server lets go of this node's name before the next stream asks for it. */
  handOver(): void;
  cancel(): void;
}

/** @param receive throws if a message cannot be taken: the stream ends with it. */
export function openSync(
  connection: Connection,
  start: { readonly peerAddresses: readonly string[]; readonly session: bigint },
  receive: (message: SyncResponse) => void,
): SyncStream {
  const call = connection.rpc.sync();
  let handedOver = false;
  let done = false;
  let begun = false;
  const ended = new Promise<boolean>((resolve, reject) => {
    const cancelDeadline = systemTimers.set(SNAPSHOT_MS, () => {
      fail(new ServerError('unavailable', undefined, 'the identity server sent no snapshot in time'));
    });
    const settle = (settled: () => void) => {
      done = true;
      cancelDeadline();
      settled();
    };
    const fail = (error: Error) => {
      settle(() => reject(error));
      call.cancel();
    };
    call.on('data', (message: SyncResponse) => {
      if (done) return;
      try {
        if (message.snapshot === begun)
          throw new ServerError('internal', 'PEER_FRAME_UNEXPECTED', 'not one snapshot, first');
        begun = true;
        receive(message);
        cancelDeadline();
      } catch (thrown) {
        fail(thrown as Error);
      }
    });
    call.on('error', (error: ServiceError) => settle(() => reject(connection.errorOf(error))));
    call.on('end', () => settle(() => resolve(handedOver)));
  });
  const write = (request: SyncRequest) => {
    if (!done && !handedOver) call.write(request);
  };
  const { peerAddresses, session } = start;
  write(SyncRequest.create({ kind: { $case: 'start', value: { peerAddresses: [...peerAddresses], session } } }));
  return {
    ended,
    ack: (version) => write(SyncRequest.create({ kind: { $case: 'ack', value: { version } } })),
    confirm: (number) => write(SyncRequest.create({ kind: { $case: 'session', value: { session: number } } })),
    handOver() {
      handedOver = true;
      call.end();
    },
    cancel: () => call.cancel(),
  };
}
