/** One Sync stream: messages in, acks out, and how it ended. */
import type { ServiceError } from '@grpc/grpc-js';
import { SyncRequest, SyncResponse } from '../../../proto/gen/countersign/server/v1/server.ts';
import { systemTimers } from '../../base/timers.ts';
import { type Connection, ServerError } from './transport.ts';

/** The next message of the snapshot comes within this time, or the server is as good as gone. */
const SNAPSHOT_MS = 15_000;
/** Messages of one change. */
const MAX_PARTS = 100_000;

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
  const parts: SyncResponse[] = [];
  const ended = new Promise<boolean>((resolve, reject) => {
    let cancelDeadline = () => {};
    const setDeadline = () => {
      cancelDeadline();
      cancelDeadline = systemTimers.set(SNAPSHOT_MS, () => {
        fail(new ServerError('unavailable', undefined, 'the identity server sent no snapshot in time'));
      });
    };
    setDeadline();
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
        if (parts.length === 0 && message.snapshot === begun)
          throw new ServerError('internal', 'PEER_FRAME_UNEXPECTED', 'not one snapshot, first');
        if (parts.push(message) > MAX_PARTS)
          throw new ServerError('internal', 'PEER_FRAME_TOO_LARGE', 'a change of too many parts');
        if (message.more) {
          if (!begun) setDeadline();
          return;
        }
        begun = true;
        cancelDeadline();
        receive(merged(parts.splice(0)));
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

/** The parts of one change: their lists joined, the rest as the first part has it. */
function merged(parts: readonly SyncResponse[]): SyncResponse {
  const first = parts[0]!;
  if (parts.length === 1) return first;
  const joined = <K extends ListField>(field: K) => ({ [field]: parts.flatMap((part) => part[field] as unknown[]) });
  return SyncResponse.create({ ...first, more: false, ...Object.assign({}, ...LIST_FIELDS.map(joined)) });
}

const LIST_FIELDS = [
  'entries',
  'removedEntryIds',
  'identities',
  'removedIdentities',
  'nodes',
  'removedNodes',
  'revocations',
  'signerChain',
  'federatedBundles',
  'removedFederatedBundles',
] as const;
type ListField = (typeof LIST_FIELDS)[number];
