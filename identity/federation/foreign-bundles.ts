/**
 * Bundles of federated trust domains: fetched anew as their publishers advise, kept on disk, told to agents. A bundle is trusted for its
 * own trust domain alone and never for ours; it is replaced by a later one only, and what cannot be replaced stays in force.
 */
import type { Clock } from '../../src/base/clock.ts';
import { asError, CountersignError, err, ok, type Result } from '../../src/base/errors.ts';
import type { Logger } from '../../src/base/log.ts';
import type { ReasonCode } from '../../src/base/registry/reason-codes.ts';
import type { Timers } from '../../src/base/timers.ts';
import type { AuditSink } from '../../src/model/audit-event.ts';
import type { RevocationSubject, TrustBundle } from '../../src/model/identity.ts';
import type { TrustDomain } from '../../src/model/ids.ts';
import { trustDomainOf } from '../../src/model/spiffe-id.ts';
import { parseSpiffeBundle } from '../../src/pki/spiffe-bundle.ts';
import type { Feed } from '../feed.ts';
import type { FederatedBundleRecord, Store } from '../store.ts';
import type { ForeignTrustDomain } from './config.ts';
import { type FetchContext, type FetchFailure, fetchBundle } from './fetch.ts';

/** SPIFFE Federation, section 4.1: "five minutes is recommended". */
const DEFAULT_REFRESH_SECONDS = 300;
const MIN_REFRESH_SECONDS = 60;
const MAX_REFRESH_SECONDS = 3600;
/** Sooner by up to a tenth, so that many servers do not ask in the same moment. */
const JITTER = 0.1;

export interface ForeignBundlesOptions {
  readonly trustDomain: TrustDomain;
  readonly configured: readonly ForeignTrustDomain[];
  readonly ownBundle: () => TrustBundle;
  /** Of SVIDs of the own trust domain. */
  readonly isRevoked: (subject: RevocationSubject) => boolean;
  readonly store: Pick<Store, 'putFederatedBundle' | 'federatedBundles' | 'deleteFederatedBundle'>;
  readonly feed: Pick<Feed, 'publish'>;
  readonly clock: Clock;
  readonly timers: Timers;
  readonly audit: AuditSink;
  readonly log: Logger;
  /** From 0 up to 1; tests have their own. */
  readonly random?: () => number;
  readonly fetch?: typeof fetchBundle;
}

/** How it stands with one trust domain. */
export interface ForeignBundle {
  readonly trustDomain: TrustDomain;
  /** undefined: there is none yet. */
  readonly bundle: TrustBundle | undefined;
  readonly document: string | undefined;
  readonly origin: FederatedBundleRecord['origin'] | undefined;
  /** Unix ms: when it changed last here. */
  readonly changedAtMs: number | undefined;
  readonly endpoint: ForeignTrustDomain | undefined;
  /** Unix ms: when the endpoint answered last with a bundle that was taken, since this server runs. */
  readonly refreshedAtMs: number | undefined;
  readonly lastFailure: (FetchFailure & { readonly atMs: number; readonly count: number }) | undefined;
  /** Unix ms. */
  readonly nextRefreshMs: number | undefined;
}

interface Held {
  readonly stored: FederatedBundleRecord;
  readonly bundle: TrustBundle;
}

interface Follower {
  readonly endpoint: ForeignTrustDomain;
  refreshedAtMs: number | undefined;
  lastFailure: ForeignBundle['lastFailure'];
  nextRefreshMs: number | undefined;
  cancel: () => void;
  /** The fetch under way: who asks meanwhile waits for it. */
  running: Promise<FetchFailure | undefined> | undefined;
}

export class ForeignBundles {
  readonly #options: ForeignBundlesOptions;
  readonly #held = new Map<TrustDomain, Held>();
  readonly #followers = new Map<TrustDomain, Follower>();
  readonly #closing = new AbortController();

  /** Takes up what is on disk. @throws CountersignError never for what others published */
  constructor(options: ForeignBundlesOptions) {
    this.#options = options;
    for (const endpoint of options.configured) {
      this.#followers.set(endpoint.trustDomain, {
        endpoint,
        refreshedAtMs: undefined,
        lastFailure: undefined,
        nextRefreshMs: undefined,
        cancel: () => {},
        running: undefined,
      });
    }
    for (const stored of options.store.federatedBundles()) this.#load(stored);
  }

  /** Asks every configured endpoint now, then as often as its bundle says. */
  start(): void {
    for (const trustDomain of this.#followers.keys()) void this.#refresh(trustDomain);
  }

  close(): void {
    this.#closing.abort();
    for (const follower of this.#followers.values()) follower.cancel();
  }

  bundleOf(trustDomain: TrustDomain): TrustBundle | undefined {
    return this.#held.get(trustDomain)?.bundle;
  }

  /** Trust domains that have a bundle now. */
  trustDomains(): TrustDomain[] {
    return [...this.#held.keys()].sort();
  }

  /** Those configured and those that have a bundle. */
  list(): ForeignBundle[] {
    const names = new Set([...this.#followers.keys(), ...this.#held.keys()]);
    return [...names].sort().map((name) => this.#view(name));
  }

  find(trustDomain: TrustDomain): ForeignBundle | undefined {
    const known = this.#followers.has(trustDomain) || this.#held.has(trustDomain);
    return known ? this.#view(trustDomain) : undefined;
  }

  /** @throws CountersignError */
  set(trustDomain: TrustDomain, document: string, actor: string): ForeignBundle {
    const refused = this.#take(trustDomain, document, 'admin', actor);
    if (refused !== undefined) throw new CountersignError('bad-input', `${refused.reason}: ${refused.text}`);
    return this.#view(trustDomain);
  }

  /** Ends the relationship until a bundle is set or fetched again (SPIFFE Federation, section 6.3). @throws CountersignError not-found */
  delete(trustDomain: TrustDomain, actor: string): void {
    const { store, feed, audit } = this.#options;
    if (!this.#held.has(trustDomain))
      throw new CountersignError('not-found', `there is no bundle of ${trustDomain}; see: countersign bundle list`);
    store.deleteFederatedBundle(trustDomain);
    this.#held.delete(trustDomain);
    feed.publish({ federatedBundles: [trustDomain] });
    audit.emit({ kind: 'bundle.changed', actor, detail: { trustDomain, change: 'deleted' } });
  }

  /** Asks the endpoint now. @throws CountersignError not-found, or unavailable with the reason */
  async refresh(trustDomain: TrustDomain): Promise<ForeignBundle> {
    if (!this.#followers.has(trustDomain)) {
      const message = `${trustDomain} has no endpoint; list it under federation.trustDomains, or use: countersign bundle set`;
      throw new CountersignError('not-found', message);
    }
    const failed = await this.#refresh(trustDomain);
    if (failed !== undefined) throw new CountersignError('unavailable', `${failed.reason}: ${failed.text}`);
    return this.#view(trustDomain);
  }

  #load(stored: FederatedBundleRecord): void {
    const { trustDomain, store, log, audit } = this.#options;
    const name = stored.trustDomain;
    // what came from an endpoint is trusted as long as the configuration says that it may come from there
    if (name === trustDomain || (stored.origin === 'endpoint' && !this.#followers.has(name))) {
      store.deleteFederatedBundle(name);
      audit.emit({
        kind: 'bundle.changed',
        actor: 'server',
        detail: { trustDomain: name, change: 'no longer configured' },
      });
      return;
    }
    const parsed = parseSpiffeBundle(stored.document, name);
    if (parsed.ok) this.#held.set(name, { stored, bundle: parsed.value });
    else log.error({ trustDomain: name, problem: parsed.error }, 'a stored bundle cannot be read and is not used');
  }

  #view(trustDomain: TrustDomain): ForeignBundle {
    const held = this.#held.get(trustDomain);
    const follower = this.#followers.get(trustDomain);
    return {
      trustDomain,
      bundle: held?.bundle,
      document: held?.stored.document,
      origin: held?.stored.origin,
      changedAtMs: held?.stored.fetchedAtMs,
      endpoint: follower?.endpoint,
      refreshedAtMs: follower?.refreshedAtMs,
      lastFailure: follower?.lastFailure,
      nextRefreshMs: follower?.nextRefreshMs,
    };
  }

  /** The named steps from a document to a bundle in force. Undefined: it is, or it was already. */
  #take(
    trustDomain: TrustDomain,
    document: string,
    origin: FederatedBundleRecord['origin'],
    actor: string,
  ): FetchFailure | undefined {
    const { store, feed, clock, audit } = this.#options;
    const held = this.#held.get(trustDomain);
    const checked = this.#check(trustDomain, document, held?.bundle);
    if (!checked.ok) return checked.error;
    const bundle = checked.value;
    if (held?.stored.document === document && held.stored.origin === origin) return undefined;
    // on disk before anybody acts on it
    const stored = { trustDomain, document, origin, fetchedAtMs: clock.nowMs() };
    store.putFederatedBundle(stored);
    this.#held.set(trustDomain, { stored, bundle });
    feed.publish({ federatedBundles: [trustDomain] });
    audit.emit({
      kind: 'bundle.changed',
      actor,
      detail: {
        trustDomain,
        change: held === undefined ? 'first' : 'replaced',
        origin,
        x509Authorities: bundle.authorities.length,
        jwtAuthorities: bundle.jwtAuthorities?.length ?? 0,
        ...(bundle.sequence === undefined ? {} : { sequence: String(bundle.sequence) }),
      },
    });
    return undefined;
  }

  #check(name: TrustDomain, document: string, before: TrustBundle | undefined): Result<TrustBundle, FetchFailure> {
    const refuse = (reason: ReasonCode, text: string) => err({ reason, text });
    // 1. Nobody else vouches for our own trust domain, whoever says so.
    if (name === this.#options.trustDomain)
      return refuse('BUNDLE_OWN_TRUST_DOMAIN', `${name} is this server's own; nobody else vouches for it`);
    // 2. It is a bundle that may be this trust domain's.
    const parsed = parseSpiffeBundle(document, name);
    if (!parsed.ok) return refuse('BUNDLE_MALFORMED', parsed.error);
    // 3. It is not an earlier one (SPIFFE Federation, section 4.2), nor one whose place in the order cannot be told any more.
    const { sequence } = parsed.value;
    if (before?.sequence !== undefined && (sequence === undefined || sequence < before.sequence)) {
      const text = `its sequence number is ${sequence ?? 'missing'} after ${before.sequence}; if the trust domain began anew: countersign bundle delete ${name}, then set or refresh`;
      return refuse('BUNDLE_ROLLED_BACK', text);
    }
    return ok(parsed.value);
  }

  #refresh(trustDomain: TrustDomain): Promise<FetchFailure | undefined> {
    const follower = this.#followers.get(trustDomain)!;
    follower.running ??= this.#ask(follower).finally(() => {
      follower.running = undefined;
    });
    return follower.running;
  }

  async #ask(follower: Follower): Promise<FetchFailure | undefined> {
    const { clock, log } = this.#options;
    follower.cancel();
    follower.nextRefreshMs = undefined;
    let failed: FetchFailure | undefined;
    try {
      failed = await this.#fetchAndTake(follower.endpoint);
    } catch (thrown) {
      log.error({ err: asError(thrown) }, 'a bundle could not be refreshed');
      failed = { reason: 'BUNDLE_UNREACHABLE', text: 'an error of this server; its log says more' };
    }
    if (this.#closing.signal.aborted) return failed;
    if (failed === undefined) {
      follower.refreshedAtMs = clock.nowMs();
      follower.lastFailure = undefined;
    } else this.#failed(follower, failed);
    this.#plan(follower);
    return failed;
  }

  async #fetchAndTake(endpoint: ForeignTrustDomain): Promise<FetchFailure | undefined> {
    const { clock, timers, ownBundle, isRevoked, trustDomain, fetch = fetchBundle } = this.#options;
    const context: FetchContext = {
      // an endpoint may be of another trust domain than the bundle, and so of ours
      bundleOf: (name) => (name === trustDomain ? ownBundle() : this.bundleOf(name)),
      // serial numbers of others say nothing of ours
      isRevoked: (subject) => trustDomainOf(subject.spiffeId) === trustDomain && isRevoked(subject),
      nowMs: () => clock.nowMs(),
      timers,
      signal: this.#closing.signal,
    };
    const fetched = await fetch(endpoint, context);
    if (!fetched.ok) return fetched.error;
    if (this.#closing.signal.aborted) return undefined;
    return this.#take(endpoint.trustDomain, fetched.value, 'endpoint', 'server');
  }

  /** One event when it begins to fail and when it fails in another way, not one for each try. */
  #failed(follower: Follower, failure: FetchFailure): void {
    const { clock, audit, log } = this.#options;
    const { trustDomain } = follower.endpoint;
    const before = follower.lastFailure;
    follower.lastFailure = { ...failure, atMs: clock.nowMs(), count: (before?.count ?? 0) + 1 };
    if (before?.reason === failure.reason) return;
    log.warn(
      { trustDomain, ...failure },
      'the bundle of a trust domain could not be refreshed; the one before stays in force',
    );
    audit.emit({ kind: 'bundle.refused', reason: failure.reason, detail: { trustDomain, text: failure.text } });
  }

  /** At the hint; after failures at twice, four times … the hint (section 6.2: never sooner than without them). */
  #plan(follower: Follower): void {
    const { timers, clock, random = Math.random } = this.#options;
    const { trustDomain } = follower.endpoint;
    const hint = this.bundleOf(trustDomain)?.refreshHintSeconds ?? DEFAULT_REFRESH_SECONDS;
    const failures = Math.min(follower.lastFailure?.count ?? 0, 10);
    const seconds = Math.min(Math.max(hint, MIN_REFRESH_SECONDS) * 2 ** Math.max(failures - 1, 0), MAX_REFRESH_SECONDS);
    const waitMs = seconds * 1000 * (1 - JITTER * random());
    follower.nextRefreshMs = clock.nowMs() + waitMs;
    follower.cancel = timers.set(waitMs, () => void this.#refresh(trustDomain));
  }
}
