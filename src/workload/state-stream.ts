/** One open stream of the Workload API: the latest state, never a backlog. A slow reader gets fewer messages, not older ones. */
import { createHash } from 'node:crypto';
import type { ServerWritableStream } from '@grpc/grpc-js';
import type { Result } from '../base/errors.ts';
import { REFUSALS, type Refusal } from './responses.ts';

// biome-ignore lint/suspicious/noExplicitAny: requests carry nothing that is read here
export type StateCall<T> = ServerWritableStream<any, T>;

export interface StateStream {
  /** Something changed: compose anew, and send if the bytes differ from what was sent last. */
  changed(): void;
  end(refusal: Refusal): void;
}

export interface StateStreamOptions<T> {
  state(): Promise<Result<T, Refusal>>;
  encode(state: T): Buffer;
  /** Once. undefined: the caller went away. */
  ended(refusal: Refusal | undefined): void;
  failed(thrown: unknown): void;
}

export function pushState<T>(call: StateCall<T>, options: StateStreamOptions<T>): StateStream {
  /** Digest of the last message: the message itself holds private keys and is not kept. */
  let sent: string | undefined;
  let dirty = false;
  let busy = false;
  let over = false;

  const finish = (refusal: Refusal | undefined) => {
    if (over) return;
    over = true;
    if (refusal !== undefined) call.emit('error', { code: refusal.code, details: refusal.message });
    options.ended(refusal);
  };
  const run = async () => {
    busy = true;
    while (dirty && !over) {
      dirty = false;
      const state = await options.state();
      if (over) break;
      if (!state.ok) {
        finish(state.error);
        break;
      }
      const digest = createHash('sha256').update(options.encode(state.value)).digest('hex');
      if (digest === sent) continue;
      sent = digest;
      if (!call.write(state.value)) await drained(call);
    }
    busy = false;
  };
  const changed = () => {
    dirty = true;
    if (busy || over) return;
    run().catch((thrown) => {
      options.failed(thrown);
      finish(REFUSALS.internal);
    });
  };
  call.once('cancelled', () => finish(undefined));
  call.once('close', () => finish(undefined));
  return { changed, end: finish };
}

function drained(call: StateCall<unknown>): Promise<void> {
  const events = ['drain', 'cancelled', 'close'];
  return new Promise((resolve) => {
    const done = () => {
      for (const event of events) call.off(event, done);
      resolve();
    };
    for (const event of events) call.on(event, done);
  });
}
