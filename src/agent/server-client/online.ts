/** The connection that calls go over: it ends with each node SVID and comes back at once, so whoever calls meanwhile waits a moment for it. */
import { systemTimers } from '../../base/timers.ts';
import { type Connection, ServerError } from './transport.ts';

/** After this time without a server, calls fail at once. */
const RETURN_MS = 2_000;

export class Online {
  readonly #addresses: readonly string[];
  readonly #waiting = new Set<() => void>();
  #connection: Connection | undefined;
  /** When it went, by performance.now(). */
  #downSince = Number.NEGATIVE_INFINITY;

  constructor(addresses: readonly string[]) {
    this.#addresses = addresses;
  }

  get isUp(): boolean {
    return this.#connection !== undefined;
  }

  up(connection: Connection): void {
    this.#connection = connection;
    for (const go of [...this.#waiting]) go();
  }

  down(): void {
    if (this.#connection !== undefined) this.#downSince = performance.now();
    this.#connection = undefined;
  }

  /** @throws ServerError unavailable */
  async connection(): Promise<Connection> {
    const leftMs = this.#downSince + RETURN_MS - performance.now();
    if (this.#connection === undefined && leftMs > 0) await this.#change(leftMs);
    if (this.#connection !== undefined) return this.#connection;
    const message = `identity server at ${this.#addresses.join(', ')}: not connected`;
    throw new ServerError('unavailable', undefined, message);
  }

  #change(timeoutMs: number): Promise<void> {
    return new Promise((resolve) => {
      const go = () => {
        cancel();
        this.#waiting.delete(go);
        resolve();
      };
      const cancel = systemTimers.set(timeoutMs, go);
      this.#waiting.add(go);
    });
  }
}
