/** One open stream of state: the latest, never a backlog. A slow reader gets fewer messages, not older ones. */
import { createHash } from 'node:crypto';
import type { Result } from '../base/errors.ts';
import { REFUSALS, type Refusal } from './responses.ts';

/** What is used of a server's call of gRPC whose answers are a stream. */
export interface StateCall<M> {
  /** `sent` is called when the message has left this process. */
  write(message: M, sent: () => void): boolean;
  end(): void;
  emit(event: 'error', refusal: { code: number; details: string }): boolean;
  on(event: string, listener: () => void): unknown;
  once(event: string, listener: () => void): unknown;
  off(event: string, listener: () => void): unknown;
}

export interface StateStream {
  /** Something changed: compose anew, and send if the bytes differ from what was sent last. */
  changed(): void;
  /** Compose anew, and send whatever it is. */
  asked(): void;
  /** undefined: the caller has no more to ask. */
  end(refusal: Refusal | undefined): void;
}

export interface StateStreamOptions<S, M> {
  state(): Promise<Result<S, Refusal>>;
  /** What tells one state from another. */
  encode(state: S): Buffer;
  message(state: S): M;
  /** Once. undefined: the caller went away. */
  ended(refusal: Refusal | undefined): void;
  failed(thrown: unknown): void;
  /** How long a refusal that is passing is waited out, ms. */
  readonly waitMs: number;
}

export function pushState<S, M>(call: StateCall<M>, options: StateStreamOptions<S, M>): StateStream {
  /** Digest of the last message: the message itself holds private keys and is not kept. */
  let sent: string | undefined;
  let dirty = false;
  let busy = false;
  let over = false;
  let giveUp: NodeJS.Timeout | undefined;

  const finish = (refusal: Refusal | undefined) => {
    if (over) return;
    over = true;
    clearTimeout(giveUp);
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
        const { error } = state;
        if (error.passing !== true) finish(error);
        else giveUp ??= setTimeout(() => finish(error), options.waitMs);
        continue;
      }
      clearTimeout(giveUp);
      giveUp = undefined;
      const digest = createHash('sha256').update(options.encode(state.value)).digest('hex');
      if (digest === sent) continue;
      sent = digest;
      await sendTo(call, options.message(state.value));
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
  return {
    changed,
    asked() {
      sent = undefined;
      changed();
    },
    end(refusal) {
      if (refusal === undefined && !over) call.end();
      finish(refusal);
    },
  };
}

/** Until the caller has taken it: what changes meanwhile is told in the next message, and no message waits behind another. */
function sendTo<M>(call: StateCall<M>, message: M): Promise<void> {
  return new Promise((resolve) => {
    const done = () => {
      for (const event of ['cancelled', 'close']) call.off(event, done);
      resolve();
    };
    for (const event of ['cancelled', 'close']) call.on(event, done);
    call.write(message, done);
  });
}
