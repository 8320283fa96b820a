/**
 * What the auth manager hears from outside while it runs. Once it is closed, no timer fires and no promise settles: nothing begun before
 * goes on to write tables that are closed after it.
 */
import type { Timers } from '../base/timers.ts';
import type { PeerChannels } from '../channel/peer-channel.ts';
import type { TunnelBinding } from './ports.ts';

export class Outside {
  readonly #cancels = new Set<() => void>();
  #isClosed = false;

  get isClosed(): boolean {
    return this.#isClosed;
  }

  close(): void {
    this.#isClosed = true;
    for (const cancel of this.#cancels) cancel();
    this.#cancels.clear();
  }

  timers(timers: Timers): Timers {
    return {
      set: (ms, fn) => {
        if (this.#isClosed) return () => {};
        const cancelTimer = timers.set(ms, () => {
          this.#cancels.delete(cancel);
          fn();
        });
        const cancel = () => {
          this.#cancels.delete(cancel);
          cancelTimer();
        };
        this.#cancels.add(cancel);
        return cancel;
      },
    };
  }

  channels(channels: PeerChannels): PeerChannels {
    return {
      open: (node) => this.#hear(channels.open(node)),
      get: (node) => channels.get(node),
      list: () => channels.list(),
    };
  }

  tunnel(tunnel: TunnelBinding): TunnelBinding {
    return {
      whenReady: (node) => this.#hear(tunnel.whenReady(node)),
      allow: (node, address) => this.#hear(tunnel.allow(node, address)),
      disallow: (address) => this.#hear(tunnel.disallow(address)),
      endSession: (node) => this.#hear(tunnel.endSession(node)),
    };
  }

  quiesce(quiesce: () => Promise<void>): () => Promise<void> {
    return () => this.#hear(quiesce());
  }

  #hear<T>(promise: Promise<T>): Promise<T> {
    return new Promise((resolve, reject) => {
      promise.then(
        (value) => (this.#isClosed ? undefined : resolve(value)),
        (thrown: unknown) => (this.#isClosed ? undefined : reject(thrown)),
      );
    });
  }
}
