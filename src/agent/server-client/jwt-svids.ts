/**
 * JWT-SVIDs for the workloads of this node. The identity server signs them; one that is asked for again comes from here until half of
 * its life has passed, and until its end while the server cannot be asked. They are bearer secrets: kept in memory, never logged.
 */
import type { Clock } from '../../base/clock.ts';
import { err, ok, type Result } from '../../base/errors.ts';
import type { Logger } from '../../base/log.ts';
import { type ReasonCode, reasonCodes } from '../../base/registry/reason-codes.ts';
import type { RegistrationEntry } from '../../model/entry.ts';
import type { TrustBundle } from '../../model/identity.ts';
import { audienceProblem, validateJwtSvid } from '../../pki/jwt.ts';
import type { IssuedJwtSvid } from '../../workload/feed.ts';
import { ServerError } from './transport.ts';

const MAX_CACHED = 4_096;
const MAX_CACHED_PER_ENTRY = 64;
const MAX_PENDING = 256;
const MAX_PENDING_PER_ENTRY = 16;
/** New ones for each entry: so many at once, and then per second. What the cache answers does not count. */
const BURST = 64;
const RATE = 20;

export interface JwtSvidsOptions {
  /** @throws ServerError if the server cannot be asked, or says no. */
  ask(entryId: string, audience: readonly string[]): Promise<IssuedJwtSvid>;
  /** Of the own trust domain. */
  bundle(): TrustBundle | undefined;
  readonly clock: Clock;
  readonly log: Logger;
}

interface Cached {
  readonly entryId: string;
  readonly svid: IssuedJwtSvid;
  readonly receivedMs: number;
  /** As it was asked for, so that a change of the bundle can be judged. */
  readonly audience: readonly string[];
}

interface Pending {
  readonly entryId: string;
  outcome: Promise<Result<IssuedJwtSvid, ReasonCode>>;
  /** The entry went, or was revoked, while it was under way. */
  isForgotten: boolean;
}

export class JwtSvids {
  readonly #options: JwtSvidsOptions;
  /** By entry and audiences; the least recently asked for first. */
  readonly #cache = new Map<string, Cached>();
  readonly #pending = new Map<string, Pending>();
  /** What each entry may still ask for, as of when (boot ns). */
  readonly #allowances = new Map<string, { left: number; atNs: bigint }>();

  constructor(options: JwtSvidsOptions) {
    this.#options = options;
  }

  async issue(entry: RegistrationEntry, audience: readonly string[]): Promise<Result<IssuedJwtSvid, ReasonCode>> {
    const wanted = [...new Set(audience)].sort();
    if (audienceProblem(wanted) !== undefined) return err('JWT_AUDIENCE');
    const key = JSON.stringify([entry.id, ...wanted]);
    const cached = this.#cached(key);
    if (cached !== undefined && this.#isFresh(cached)) return ok(cached.svid);
    const pending = this.#pending.get(key) ?? this.#begin(key, entry, wanted);
    if (pending === undefined) return cached === undefined ? err('JWT_TOO_MANY') : ok(cached.svid);
    const outcome = await pending.outcome;
    if (outcome.ok) return outcome;
    // What is held is good until its end, unless the server said no or the entry went: then it is not held any more.
    const held = this.#cached(key);
    return held === undefined ? outcome : ok(held.svid);
  }

  /** The entry went, or another identity is its, or that was revoked: nothing of it is given out any more. */
  forget(entryId: string): void {
    for (const [key, cached] of this.#cache) if (cached.entryId === entryId) this.#cache.delete(key);
    for (const [key, pending] of this.#pending) {
      if (pending.entryId !== entryId) continue;
      pending.isForgotten = true;
      this.#pending.delete(key);
    }
    this.#allowances.delete(entryId);
  }

  /** Tokens of keys that left the bundle are worth nothing; those of tainted ones are to be replaced now. */
  bundleChanged(): void {
    for (const [key, { svid, audience }] of this.#cache) {
      if (this.#refusal(svid, audience) !== undefined || this.#isTainted(svid)) this.#cache.delete(key);
    }
  }

  /** How many live, and when the first and the last of them end, Unix ms. */
  ends(): { readonly count: number; readonly firstMs: number; readonly lastMs: number } {
    const nowMs = this.#options.clock.nowMs();
    const ends = [...this.#cache.values()].map(({ svid }) => svid.expiresAtMs).filter((endMs) => endMs > nowMs);
    return { count: ends.length, firstMs: Math.min(...ends), lastMs: Math.max(...ends) };
  }

  #cached(key: string): Cached | undefined {
    const cached = this.#cache.get(key);
    if (cached === undefined) return undefined;
    this.#cache.delete(key);
    if (this.#options.clock.nowMs() >= cached.svid.expiresAtMs) return undefined;
    this.#cache.set(key, cached);
    return cached;
  }

  #isFresh({ receivedMs, svid }: Cached): boolean {
    const nowMs = this.#options.clock.nowMs();
    return receivedMs <= nowMs && nowMs < receivedMs + (svid.expiresAtMs - receivedMs) / 2;
  }

  /** undefined: too many are asked for. */
  #begin(key: string, entry: RegistrationEntry, audience: readonly string[]): Pending | undefined {
    let ofEntry = 0;
    for (const pending of this.#pending.values()) if (pending.entryId === entry.id) ofEntry += 1;
    if (this.#pending.size >= MAX_PENDING || ofEntry >= MAX_PENDING_PER_ENTRY) return undefined;
    if (!this.#spend(entry.id)) return undefined;
    const pending: Pending = { entryId: entry.id, outcome: Promise.resolve(err('JWT_TOO_MANY')), isForgotten: false };
    this.#pending.set(key, pending);
    pending.outcome = this.#ask(key, entry, audience, pending).finally(() => {
      if (this.#pending.get(key) === pending) this.#pending.delete(key);
    });
    return pending;
  }

  async #ask(
    key: string,
    entry: RegistrationEntry,
    audience: readonly string[],
    pending: Pending,
  ): Promise<Result<IssuedJwtSvid, ReasonCode>> {
    const { ask, clock, log } = this.#options;
    let svid: IssuedJwtSvid;
    try {
      svid = await ask(entry.id, audience);
    } catch (thrown) {
      if (!(thrown instanceof ServerError)) throw thrown;
      const { reason } = thrown;
      if (reason === 'ISSUE_REVOKED' || reason === 'ISSUE_NOT_YOUR_ENTRY') this.forget(entry.id);
      log.warn({ entry: entry.id, problem: thrown.message }, 'no JWT-SVID');
      return err(reason ?? 'SERVER_UNREACHABLE');
    }
    if (pending.isForgotten) return err('ISSUE_NOT_YOUR_ENTRY');
    // the server is proven, but what it sent is looked at all the same: a mistake shows here and not at every relying party
    const refusal = this.#refusal(svid, audience, entry);
    if (refusal !== undefined) {
      log.warn(
        { entry: entry.id, reason: refusal, why: reasonCodes[refusal] },
        'the server sent a JWT-SVID that is not ours',
      );
      return err(refusal);
    }
    this.#keep(key, { entryId: entry.id, svid, receivedMs: clock.nowMs(), audience });
    return ok(svid);
  }

  #keep(key: string, cached: Cached): void {
    this.#cache.set(key, cached);
    const ofEntry = [...this.#cache].filter(([, { entryId }]) => entryId === cached.entryId);
    if (ofEntry.length > MAX_CACHED_PER_ENTRY) this.#cache.delete(ofEntry[0]![0]);
    if (this.#cache.size > MAX_CACHED) this.#cache.delete(this.#cache.keys().next().value!);
  }

  /** Would somebody who trusts our bundle take it? */
  #refusal(svid: IssuedJwtSvid, audience: readonly string[], entry?: RegistrationEntry): ReasonCode | undefined {
    const bundle = this.#options.bundle();
    if (bundle === undefined) return 'JWT_UNTRUSTED';
    for (const name of audience) {
      const verified = validateJwtSvid(svid.token, name, [bundle], this.#options.clock.nowMs());
      if (!verified.ok) return verified.error;
      if (entry !== undefined && verified.value.spiffeId !== entry.spiffeId) return 'JWT_SUBJECT';
      if (verified.value.expiresAtMs !== svid.expiresAtMs) return 'JWT_EXPIRED';
    }
    return undefined;
  }

  #isTainted({ token }: IssuedJwtSvid): boolean {
    const tainted = this.#options.bundle()?.jwtAuthorities?.filter((authority) => authority.tainted === true) ?? [];
    if (tainted.length === 0) return false;
    const { kid } = JSON.parse(Buffer.from(token.slice(0, token.indexOf('.')), 'base64url').toString()) as {
      kid?: string;
    };
    return kid === undefined || tainted.some((authority) => authority.keyId === kid);
  }

  #spend(entryId: string): boolean {
    const nowNs = this.#options.clock.bootNs();
    const known = this.#allowances.get(entryId) ?? { left: BURST, atNs: nowNs };
    const left = Math.min(BURST, known.left + (Number(nowNs - known.atNs) / 1e9) * RATE);
    this.#allowances.set(entryId, { left: left < 1 ? left : left - 1, atNs: nowNs });
    return left >= 1;
  }
}
