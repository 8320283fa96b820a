/**
 * Who leads: the server that made the key `leader` with a lease of its own. Each write names the revision in which that key was made,
 * so a leader that was followed by another one writes nothing more, whatever its clock says.
 */
import { hostname } from 'node:os';
import { EtcdLeaseInvalidError, type Lease } from 'etcd3';
import { asError } from '../../src/base/errors.ts';
import type { Logger } from '../../src/base/log.ts';
import type { Condition, EtcdStore } from './client.ts';
import { LEADER, type LeaderInfo } from './layout.ts';

const RETRY_MS = 200;

export class Leadership {
  readonly #etcd: EtcdStore;
  readonly #lease: Lease;
  readonly #leaseMs: number;
  readonly #log: Logger;
  readonly #lost = new AbortController();
  #timer: NodeJS.Timeout | undefined;
  /** Of a monotonic clock, before the last request to keep it alive that was granted. */
  #keptMs: number;
  /** Holds as long as this server leads. */
  readonly condition: Condition;

  private constructor(
    etcd: EtcdStore,
    lease: Lease,
    leaseSeconds: number,
    revision: string,
    keptMs: number,
    log: Logger,
  ) {
    this.#etcd = etcd;
    this.#lease = lease;
    this.#leaseMs = leaseSeconds * 1000;
    this.#log = log;
    this.#keptMs = keptMs;
    this.condition = [LEADER, 'Create', revision];
    this.#plan(this.#leaseMs / 3);
  }

  /** One attempt. undefined: another server leads. @throws CountersignError unavailable */
  static async attempt(
    etcd: EtcdStore,
    leaseSeconds: number,
    address: string,
    nowMs: number,
    log: Logger,
  ): Promise<Leadership | undefined> {
    const keptMs = performance.now();
    const lease = await etcd.lease(leaseSeconds);
    const info: LeaderInfo = { server: hostname(), address, since: new Date(nowMs).toISOString() };
    const put = { put: LEADER, value: JSON.stringify(info), lease: String(await lease.grant()) };
    const revision = await etcd.change([[LEADER, 'Version', 0]], [put]);
    if (revision !== undefined) return new Leadership(etcd, lease, leaseSeconds, revision, keptMs, log);
    await etcd.revoke(lease);
    return undefined;
  }

  /** Aborted, with why, as soon as this server no longer leads or cannot know. */
  get lost(): AbortSignal {
    return this.#lost.signal;
  }

  get leaseMs(): number {
    return this.#leaseMs;
  }

  lose(why: Error): void {
    clearTimeout(this.#timer);
    this.#lost.abort(why);
  }

  /** Lets another server lead at once. */
  async resign(): Promise<void> {
    this.lose(new Error('this server gave up the lead'));
    await this.#etcd.revoke(this.#lease).catch(() => {});
  }

  #plan(waitMs: number): void {
    if (this.#lost.signal.aborted) return;
    this.#timer = setTimeout(() => void this.#keep(), waitMs);
    this.#timer.unref();
  }

  async #keep(): Promise<void> {
    const sentMs = performance.now();
    try {
      await this.#etcd.keepAlive(this.#lease);
      this.#keptMs = sentMs;
      this.#plan(this.#leaseMs / 3);
    } catch (thrown) {
      const error = asError(thrown);
      const hasEnded =
        error.cause instanceof EtcdLeaseInvalidError || performance.now() - this.#keptMs >= this.#leaseMs;
      if (hasEnded) this.lose(error);
      else {
        this.#log.warn({ problem: error.message }, 'the lead could not be kept alive yet');
        this.#plan(RETRY_MS);
      }
    }
  }
}
