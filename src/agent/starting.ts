/** The admin socket while the start waits for the identity server: it says so, and that nothing is vouched for meanwhile. */
import { CountersignError } from '../base/errors.ts';
import { type AdminHandlers, serveAdmin } from './admin-socket.ts';

/** A start that waits for less is an ordinary one: whoever sees the socket then finds the agent behind it. */
const ORDINARY_MS = 2_000;

export class StartingStatus {
  readonly #path: string;
  readonly #node: string;
  readonly #begunMs = performance.now();
  #why = '';
  #served: Promise<{ close(): void } | undefined> | undefined;

  constructor(path: string, node: string) {
    this.#path = path;
    this.#node = node;
  }

  /** From the first call after a while on, the socket is there. */
  waiting(why: string): void {
    this.#why = why;
    if (performance.now() - this.#begunMs < ORDINARY_MS) return;
    this.#served ??= serveAdmin(this.#path, this.#handlers()).catch(() => undefined);
  }

  /** Makes way for the agent's own. */
  async close(): Promise<void> {
    const served = await this.#served;
    this.#served = undefined;
    served?.close();
  }

  #handlers(): AdminHandlers {
    const refuse = () => {
      const message = `node ${this.#node} is starting and vouches for nothing yet; flows that were proven before go on until they expire. It waits: ${this.#why}`;
      throw new CountersignError('unavailable', message);
    };
    return {
      status: async () => refuse(),
      endpoints: refuse,
      vouches: refuse,
      auth: refuse,
      flushAuth: refuse,
      testAuth: async () => refuse(),
      peers: async () => refuse(),
      drops: refuse,
      dropPairs: refuse,
      policy: refuse,
      explain: refuse,
      reloadPolicy: async () => refuse(),
      monitor: refuse,
    };
  }
}
