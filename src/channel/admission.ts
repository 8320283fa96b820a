/** Who may begin a handshake: counted per source before any cryptography is done for it. */
import { isIP } from 'node:net';
import type { Clock } from '../base/clock.ts';
import { addressBytes, parseAddress } from '../model/address.ts';
import type { ChannelLimits } from './limits.ts';

interface Source {
  halfOpen: number;
  tokens: number;
  refilledNs: bigint;
}

type AdmissionLimits = Pick<
  ChannelLimits,
  'halfOpen' | 'halfOpenPerSource' | 'acceptsPerSecond' | 'acceptBurst' | 'sources'
>;

export class Admission {
  readonly #limits: AdmissionLimits;
  readonly #clock: Pick<Clock, 'bootNs'>;
  readonly #isNode: (address: string) => boolean;
  readonly #sources = new Map<string, Source>();
  #halfOpen = 0;

  /** @param isNode the address is a listed node's: such a source finds room (as much again) when strangers have taken all of it. */
  constructor(limits: AdmissionLimits, clock: Pick<Clock, 'bootNs'>, isNode: (address: string) => boolean) {
    this.#limits = limits;
    this.#clock = clock;
    this.#isNode = isNode;
  }

  /** A lease on one half-open place, to be released exactly once; undefined: refused. */
  admit(address: string): { release(): void } | undefined {
    const room = this.#halfOpen < this.#limits.halfOpen;
    if (!room && !(this.#halfOpen < 2 * this.#limits.halfOpen && this.#isNode(address))) return undefined;
    const source = this.#source(sourceOf(address));
    if (source === undefined || source.halfOpen >= this.#limits.halfOpenPerSource || source.tokens < 1)
      return undefined;
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

  #source(key: string): Source | undefined {
    const now = this.#clock.bootNs();
    let source = this.#sources.get(key);
    if (source === undefined) {
      if (this.#sources.size >= this.#limits.sources && !this.#forgetOne(now)) return undefined;
      source = { halfOpen: 0, tokens: this.#limits.acceptBurst, refilledNs: now };
      this.#sources.set(key, source);
    }
    this.#refill(source, now);
    return source;
  }

  #refill(source: Source, now: bigint): void {
    const seconds = Number(now - source.refilledNs) / 1e9;
    source.tokens = Math.min(this.#limits.acceptBurst, source.tokens + seconds * this.#limits.acceptsPerSecond);
    source.refilledNs = now;
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

/** An IPv4 address, or the /64 of an IPv6 address: what one host can be expected to own. */
function sourceOf(address: string): string {
  if (isIP(address) !== 6) return address;
  const parsed = parseAddress(address);
  return parsed === undefined ? address : addressBytes(parsed).toString('hex', 0, 8);
}
