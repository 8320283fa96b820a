/** Who may begin a handshake: counted per source before any cryptography is done for it. */
import type { Clock } from '../base/clock.ts';
import { fullBucket, refill, type TokenBucket } from '../base/token-bucket.ts';
import { sourceOf } from '../model/address.ts';
import type { ChannelLimits } from './limits.ts';

interface Source extends TokenBucket {
  halfOpen: number;
}

type AdmissionLimits = Pick<
  ChannelLimits,
  | 'halfOpen'
  | 'halfOpenPerSource'
  | 'acceptsPerSecond'
  | 'acceptBurst'
  | 'sources'
  | 'handshakesPerSecond'
  | 'handshakeBurst'
>;

export class Admission {
  readonly #limits: AdmissionLimits;
  readonly #clock: Pick<Clock, 'bootNs'>;
  readonly #isNode: (address: string) => boolean;
  readonly #sources = new Map<string, Source>();
  /** What handshakes cost this node is bounded whatever the number of sources: channels that stand go on meanwhile. */
  readonly #forAll: TokenBucket;
  readonly #forNodes: TokenBucket;
  #halfOpen = 0;

  /** @param isNode the address is a listed node's: such a source finds room (as much again) when strangers have taken all of it. */
  constructor(limits: AdmissionLimits, clock: Pick<Clock, 'bootNs'>, isNode: (address: string) => boolean) {
    this.#limits = limits;
    this.#clock = clock;
    this.#isNode = isNode;
    this.#forAll = fullBucket(limits.handshakeBurst, clock.bootNs());
    this.#forNodes = { ...this.#forAll };
  }

  /** A lease on one half-open place, to be released exactly once; undefined: refused. */
  admit(address: string): { release(): void } | undefined {
    const room = this.#halfOpen < this.#limits.halfOpen;
    if (!room && !(this.#halfOpen < 2 * this.#limits.halfOpen && this.#isNode(address))) return undefined;
    const source = this.#source(sourceOf(address));
    if (source === undefined || source.halfOpen >= this.#limits.halfOpenPerSource || source.tokens < 1)
      return undefined;
    const pace = this.#paceOf(address);
    if (pace === undefined) return undefined;
    pace.tokens -= 1;
    source.tokens -= 1;
    source.halfOpen += 1;
    this.#halfOpen += 1;
    let held = true;
    return {
      release: () => {
        if (!held) return;
        held = false;
        source.halfOpen -= 1;
        this.#halfOpen -= 1;
      },
    };
  }

  /** The bucket that has a handshake left for the address. */
  #paceOf(address: string): TokenBucket | undefined {
    const { handshakesPerSecond, handshakeBurst } = this.#limits;
    const now = this.#clock.bootNs();
    refill(this.#forAll, now, handshakesPerSecond, handshakeBurst);
    if (this.#forAll.tokens >= 1) return this.#forAll;
    refill(this.#forNodes, now, handshakesPerSecond, handshakeBurst);
    return this.#forNodes.tokens >= 1 && this.#isNode(address) ? this.#forNodes : undefined;
  }

  #source(key: string): Source | undefined {
    const now = this.#clock.bootNs();
    let source = this.#sources.get(key);
    if (source === undefined) {
      if (this.#sources.size >= this.#limits.sources && !this.#forgetOne(now)) return undefined;
      source = { halfOpen: 0, ...fullBucket(this.#limits.acceptBurst, now) };
      this.#sources.set(key, source);
    }
    this.#refill(source, now);
    return source;
  }

  #refill(source: Source, now: bigint): void {
    refill(source, now, this.#limits.acceptsPerSecond, this.#limits.acceptBurst);
  }

  /** Makes room by forgetting a source that a fresh entry would not treat otherwise. Looks at a few only, oldest first. */
  #forgetOne(now: bigint): boolean {
    let looked = 0;
    for (const [key, source] of this.#sources) {
      this.#refill(source, now);
      if (source.halfOpen === 0 && source.tokens >= this.#limits.acceptBurst) return this.#sources.delete(key);
      // Busy ones move to the end, so that the next call looks at others.
      this.#sources.delete(key);
      this.#sources.set(key, source);
      if (++looked === 16) return false;
    }
    return false;
  }
}
