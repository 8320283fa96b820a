/**
 * Rule 6, Drain: what an earlier owner of an address sent, and what was sent to it, is gone before a successor opens. On this node by
 * flushing (DrainFlush: the hold queue dies with the endpoint, running programs end), on the path by time (DrainTime), counted from when
 * the queues were empty; what a delayer keeps longer dies with the tunnel's session.
 */
import type { Clock } from '../base/clock.ts';
import { asError } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import type { Timers } from '../base/timers.ts';
import type { IpAddress, NodeId } from '../model/ids.ts';
import { SESSION_LIFE_MS } from './ports.ts';
import { laterOf, nsOfMs } from './units.ts';
import type { VouchTrace } from './vouch-trace.ts';

export interface DrainsOptions {
  readonly drainMs: number;
  /** False: an earlier life of this agent, of the same incarnation, had endpoints that this one does not know. */
  readonly firstLife: boolean;
  /** Resolves when every program that runs now has ended. */
  quiesce(): Promise<void>;
  /** The queues of these addresses are empty. */
  flushed(addresses: readonly IpAddress[]): void;
  readonly clock: Clock;
  readonly timers: Timers;
  readonly log: Logger;
  readonly trace: VouchTrace;
}

interface Drain {
  /** undefined: still being flushed. */
  flushedNs: bigint | undefined;
  /** Peers that let go of an earlier owner, and when: until then they rightly sent to it. */
  readonly letGoNs: Map<NodeId, bigint>;
}

const RETRY_MS = 1_000;

export class Drains {
  readonly #options: DrainsOptions;
  readonly #drains = new Map<IpAddress, Drain>();
  readonly #startedNs: bigint;
  #sweptNs: bigint;

  constructor(options: DrainsOptions) {
    this.#options = options;
    this.#startedNs = options.clock.bootNs();
    this.#sweptNs = this.#startedNs;
  }

  /** The owner's interface is gone and its entries are out of the kernel's tables. `generation` undefined: it was another node's. */
  closed(addresses: readonly IpAddress[], generation: bigint | undefined): void {
    this.#sweep();
    const drains = addresses.map((address) => {
      if (generation !== undefined) this.#options.trace?.({ ev: 'close', ip: address, generation });
      const drain: Drain = { flushedNs: undefined, letGoNs: new Map() };
      this.#drains.set(address, drain);
      return drain;
    });
    this.#flush(addresses, drains, generation);
  }

  letGo(address: IpAddress, node: NodeId): void {
    const now = this.#options.clock.bootNs();
    let drain = this.#drains.get(address);
    // Its owner closed too long ago, or before this agent's start.
    if (drain === undefined) {
      drain = { flushedNs: this.#startedNs, letGoNs: new Map() };
      this.#drains.set(address, drain);
    }
    drain.letGoNs.set(node, now);
  }

  /** Peers that let go of an earlier owner lately, and since when. */
  lettingGo(address: IpAddress): ReadonlyMap<NodeId, bigint> {
    return this.#drains.get(address)?.letGoNs ?? new Map();
  }

  /** ns until a successor may open; undefined: the queues are not empty yet, `flushed` tells. */
  leftNs(address: IpAddress): bigint | undefined {
    const drain = this.#drains.get(address);
    if (drain === undefined && this.#options.firstLife) return 0n;
    const fromNs = drain === undefined ? this.#startedNs : drain.flushedNs;
    if (fromNs === undefined) return undefined;
    return fromNs + nsOfMs(this.#options.drainMs) - this.#options.clock.bootNs();
  }

  /** Since when no owner before the present one sends; undefined: too long ago for any session to hold packets of one. */
  recentNs(address: IpAddress): bigint | undefined {
    const drain = this.#drains.get(address);
    if (drain === undefined && this.#options.firstLife) return undefined;
    const now = this.#options.clock.bootNs();
    const fromNs = drain === undefined ? this.#startedNs : (drain.flushedNs ?? now);
    return now - fromNs < nsOfMs(SESSION_LIFE_MS) ? fromNs : undefined;
  }

  #flush(addresses: readonly IpAddress[], drains: readonly Drain[], generation: bigint | undefined): void {
    this.#options.quiesce().then(
      () => {
        for (const drain of drains) drain.flushedNs = this.#options.clock.bootNs();
        if (generation !== undefined)
          for (const ip of addresses) this.#options.trace?.({ ev: 'flushed', ip, generation });
        this.#options.flushed(addresses);
      },
      (thrown) => {
        this.#options.log.error({ err: asError(thrown) }, 'cannot wait for running programs; a successor waits');
        this.#options.timers.set(RETRY_MS, () => this.#flush(addresses, drains, generation));
      },
    );
  }

  #sweep(): void {
    const now = this.#options.clock.bootNs();
    const lifeNs = nsOfMs(SESSION_LIFE_MS);
    if (now - this.#sweptNs < lifeNs / 4n) return;
    this.#sweptNs = now;
    if (now - this.#startedNs < lifeNs) return;
    for (const [address, { flushedNs, letGoNs }] of this.#drains) {
      const lastNs = [...letGoNs.values()].reduce(laterOf, flushedNs ?? now);
      if (now - lastNs >= lifeNs) this.#drains.delete(address);
    }
  }
}
