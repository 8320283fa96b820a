/**
 * Pairs that policy requires are proven as soon as both sides are known, before the first packet asks for it, what packets used last first;
 * so are the entries that an earlier life of the agent left behind, which nobody but their owner can confirm. Told of everything that
 * may make a pair known; looks at what the change concerns, not at all pairs. n identities on a pair of nodes cost n proofs: a few
 * exchanges prove each identity once, and all other pairs ride on them in batches.
 */
import type { Clock } from '../base/clock.ts';
import type { ReasonCode } from '../base/registry/reason-codes.ts';
import type { Timers } from '../base/timers.ts';
import type { AuthKey } from '../model/datapath.ts';
import { LOCAL_NODE, type NodeId, type SecurityIdentity } from '../model/ids.ts';
import { type AuthRecord, authKeyText, isAdopted } from './auth-entries.ts';
import type { Backoff } from './backoff.ts';
import type { Outcome } from './exchange-host.ts';
import type { PairAuthenticator } from './pair-authenticator.ts';
import { MAX_PAIRS } from './pair-batches.ts';
import type { PreAuthSettings } from './ports.ts';
import type { RecentPairs } from './recent-pairs.ts';
import { msOfNs } from './units.ts';

export interface PreAuthenticationOptions {
  readonly settings: PreAuthSettings;
  readonly pairs: PairAuthenticator;
  readonly recent: RecentPairs;
  /** Identities of open endpoints of this node. */
  hosted(): Iterable<SecurityIdentity>;
  /** Identities that the node vouches for now. */
  vouchedBy(node: NodeId): Iterable<SecurityIdentity>;
  /** Nodes with a channel; `isClient`: this side dialled it. */
  reachable(): readonly { readonly node: NodeId; readonly isClient: boolean }[];
  requires(a: SecurityIdentity, b: SecurityIdentity): boolean;
  canProve(identity: SecurityIdentity): boolean;
  /** Are both identities proven on the channel already? */
  isProven(key: AuthKey): boolean;
  proveAll(keys: readonly AuthKey[], node: NodeId): Promise<readonly Outcome[]>;
  /** What failed ahead of packets. */
  readonly backoff: Backoff;
  failed(key: AuthKey, reason: ReasonCode): void;
  readonly clock: Clock;
  readonly timers: Timers;
}

/** Which pairs a change concerns; left out: any. */
export interface Scope {
  readonly locals?: ReadonlySet<SecurityIdentity>;
  readonly remotes?: ReadonlySet<SecurityIdentity>;
}

/** The peer's side begins this much later: by then the client has proven what both know, and one exchange serves both. */
const SERVER_DELAY_MS = 500;
const SOON_MS = 1;
const MAX_SCOPES = 16;
/** Nodes worked on at a time, and exchanges of one node under way. */
const NODES_AT_ONCE = 8;
const EXCHANGES_AT_ONCE = 8;
/** Pairs without a proof of their own that count as one exchange. */
export const PAIRS_PER_EXCHANGE = 32;
/** Looked at once more when these are done. */
const MAX_CANDIDATES = 16_384;
/** Of the rate, so that a few pairs need not wait. */
const BURST_MS = 250;

/** What may be otherwise in a moment: the peer has not come back whole yet, or cannot be asked now. Anything else is its no. */
const passing: ReadonlySet<ReasonCode> = new Set([
  'PEER_CHANNEL_CLOSED',
  'AUTH_NO_SVID',
  'AUTH_NOT_VOUCHED',
  'AUTH_TIMEOUT',
  'AUTH_QUEUE_FULL',
  'AUTH_BACKOFF',
  'AUTH_EXPIRED',
  'AUTH_UNKNOWN_IDENTITY',
]);

export class PreAuthentication {
  readonly #options: PreAuthenticationOptions;
  readonly #scopes = new Map<NodeId, Scope[]>();
  readonly #armed = new Map<NodeId, { readonly atMs: number; readonly cancel: () => void }>();
  readonly #ready = new Set<NodeId>();
  readonly #working = new Set<NodeId>();
  #freeAtMs = 0;

  constructor(options: PreAuthenticationOptions) {
    this.#options = options;
  }

  /** Proven again before its entry ends, whether packets pass or not. */
  covers({ local, remote }: AuthRecord): boolean {
    return this.#options.settings.enabled && this.#options.requires(local, remote);
  }

  /** Something that pairs of this node and that one rest on has come. LOCAL_NODE: pairs of this node alone. */
  changed(node: NodeId, scope: Scope = {}): void {
    const { settings, pairs, reachable } = this.#options;
    if (!settings.enabled && pairs.entries.adopted === 0) return;
    const isClient = node === LOCAL_NODE || reachable().find((one) => one.node === node)?.isClient;
    if (isClient === undefined) return;
    const scopes = this.#scopes.get(node) ?? [];
    scopes.push(scope);
    this.#scopes.set(node, scopes.length > MAX_SCOPES ? [{}] : scopes);
    this.#arm(node, isClient ? SOON_MS : SERVER_DELAY_MS);
  }

  /** The same of every node with a channel, and of this one. */
  allChanged(scope: Scope = {}): void {
    const { settings, pairs, reachable } = this.#options;
    if (!settings.enabled && pairs.entries.adopted === 0) return;
    for (const node of [LOCAL_NODE, ...reachable().map((one) => one.node)]) this.changed(node, scope);
  }

  nodeRemoved(node: NodeId): void {
    this.#scopes.delete(node);
    this.#armed.get(node)?.cancel();
    this.#armed.delete(node);
    this.#ready.delete(node);
  }

  #arm(node: NodeId, waitMs: number): void {
    const { clock, timers } = this.#options;
    const atMs = msOfNs(clock.bootNs()) + waitMs;
    const armed = this.#armed.get(node);
    if (armed !== undefined && armed.atMs <= atMs) return;
    armed?.cancel();
    const cancel = timers.set(waitMs, () => {
      this.#armed.delete(node);
      this.#ready.add(node);
      this.#next();
    });
    this.#armed.set(node, { atMs, cancel });
  }

  #next(): void {
    const { recent } = this.#options;
    while (this.#working.size < NODES_AT_ONCE) {
      const waiting = [...this.#ready].filter((node) => !this.#working.has(node));
      if (waiting.length === 0) return;
      const node = waiting.reduce((a, b) => (recent.lastUseOf(b) > recent.lastUseOf(a) ? b : a));
      this.#ready.delete(node);
      this.#working.add(node);
      void this.#work(node).finally(() => {
        this.#working.delete(node);
        this.#next();
      });
    }
  }

  async #work(node: NodeId): Promise<void> {
    const scopes = this.#scopes.get(node) ?? [];
    this.#scopes.delete(node);
    const { keys, isMore, retryAtNs } = this.#candidates(node, scopes);
    for (const alone of node === LOCAL_NODE ? [keys] : this.#leading(keys)) {
      for (let at = 0; at < alone.length; at += EXCHANGES_AT_ONCE) {
        await this.#proveAlone(alone.slice(at, at + EXCHANGES_AT_ONCE));
      }
    }
    const { pairs } = this.#options;
    const riding = node === LOCAL_NODE ? [] : keys.filter((key) => !isProvenEntry(pairs, key) && this.#isDue(key));
    for (let at = 0; at < riding.length; at += MAX_PAIRS) {
      await this.#proveTogether(riding.slice(at, at + MAX_PAIRS), node);
    }
    if (isMore) this.changed(node);
    else if (retryAtNs !== undefined) this.#tryAgain(node, retryAtNs);
  }

  /**
   * The pairs whose exchanges prove every identity once: first those of two that are not proven on the channel yet, then those of one. No
   * two of a group share what is to be proven, so that they can be under way together.
   */
  #leading(keys: readonly AuthKey[]): AuthKey[][] {
    const locals = new Set<SecurityIdentity>();
    const remotes = new Set<SecurityIdentity>();
    const unproven = keys.filter((key) => !this.#options.isProven(key));
    const take = (isFit: (news: number) => boolean) =>
      unproven.filter((key) => {
        const news = Number(!locals.has(key.local)) + Number(!remotes.has(key.remote));
        if (!isFit(news)) return false;
        locals.add(key.local);
        remotes.add(key.remote);
        return true;
      });
    return [take((news) => news === 2), take((news) => news === 1)];
  }

  #isDue(key: AuthKey): boolean {
    return !this.#options.backoff.isWaiting(authKeyText(key), this.#options.clock.bootNs());
  }

  async #proveAlone(keys: readonly AuthKey[]): Promise<void> {
    await this.#turn(keys.length);
    await Promise.all(keys.map(async (key) => this.#ended(key, await this.#options.pairs.authenticateAhead(key))));
  }

  async #proveTogether(keys: readonly AuthKey[], node: NodeId): Promise<void> {
    await this.#turn(keys.length / PAIRS_PER_EXCHANGE);
    const { pairs, isProven, proveAll } = this.#options;
    // Those whose own exchange failed a moment ago have nothing to ride on.
    const present = keys.filter((key) => isProven(key) && !pairs.isPending(key));
    for (const key of keys) if (!isProven(key)) this.#ended(key, { ok: false, error: 'AUTH_EXPIRED' });
    if (present.length === 0) return;
    const outcomes = proveAll(present, node);
    const each = present.map((key, i) =>
      pairs.authenticateAhead(
        key,
        outcomes.then((all) => all[i]!),
      ),
    );
    const ended = await Promise.all(each);
    present.forEach((key, i) => {
      this.#ended(key, ended[i]!);
    });
  }

  #ended(key: AuthKey, outcome: Outcome): void {
    const { backoff, clock, pairs } = this.#options;
    const text = authKeyText(key);
    if (outcome.ok) {
      backoff.succeeded(text);
      return;
    }
    const isNews = backoff.last(text)?.reason !== outcome.error;
    backoff.failed(text, outcome.error, clock.bootNs(), clock.nowMs());
    if (isNews && !passing.has(outcome.error)) this.#options.failed(key, outcome.error);
    const record = pairs.entries.get(key);
    // The owner says no: what an earlier life of the agent knew is no longer so.
    if (record !== undefined && isAdopted(record) && !passing.has(outcome.error)) {
      pairs.entries.remove([record], { kind: 'auth.expired', reason: outcome.error });
    }
    this.#tryAgain(key.remoteNode, backoff.last(text)!.retryAtNs);
  }

  #tryAgain(node: NodeId, atNs: bigint): void {
    const { clock, reachable } = this.#options;
    if (node !== LOCAL_NODE && !reachable().some((one) => one.node === node)) return;
    this.#scopes.set(node, [{}]);
    this.#arm(node, Math.max(SOON_MS, Math.ceil(msOfNs(atNs - clock.bootNs()))));
  }

  /** Required, both sides known, not proven; what packets used last first. */
  #candidates(node: NodeId, scopes: readonly Scope[]) {
    const { settings, pairs, recent, hosted, vouchedBy, requires, canProve, backoff, clock } = this.#options;
    const nowNs = clock.bootNs();
    const found = new Map<string, AuthKey>();
    let retryAtNs: bigint | undefined;
    const consider = (local: SecurityIdentity, remote: SecurityIdentity) => {
      const key: AuthKey = { local, remote, remoteNode: node, authType: 'spiffe' };
      if (isProvenEntry(pairs, key)) return;
      if (!requires(local, remote) || pairs.isPending(key) || pairs.isWaiting(key)) return;
      const text = authKeyText(key);
      if (backoff.isWaiting(text, nowNs)) {
        const { retryAtNs: atNs } = backoff.last(text)!;
        if (retryAtNs === undefined || atNs < retryAtNs) retryAtNs = atNs;
      } else found.set(text, key);
    };
    const own = [...hosted()].filter(canProve);
    const theirs = node === LOCAL_NODE ? own : [...vouchedBy(node)];
    const known = { own: new Set(own), theirs: new Set(theirs) };
    for (const { local, remote } of pairs.entries.adoptedOf(node)) {
      if (known.own.has(local) && known.theirs.has(remote)) consider(local, remote);
    }
    for (const { locals, remotes } of settings.enabled ? scopes : []) {
      for (const local of locals === undefined ? own : own.filter((one) => locals.has(one))) {
        for (const remote of remotes === undefined ? theirs : theirs.filter((one) => remotes.has(one))) {
          if (found.size >= MAX_CANDIDATES) break;
          // On this node one direction proves both.
          if (node !== LOCAL_NODE || locals !== undefined || local <= remote) consider(local, remote);
        }
      }
    }
    const keys = [...found.values()];
    if (!recent.isEmpty) {
      const uses = new Map(keys.map((key) => [key, recent.lastUse(key)]));
      keys.sort((a, b) => Number(uses.get(b)! - uses.get(a)!));
    }
    return { keys, isMore: found.size >= MAX_CANDIDATES, retryAtNs };
  }

  /** Resolves when so much more may begin. */
  async #turn(exchanges: number): Promise<void> {
    const { clock, timers, settings } = this.#options;
    const nowMs = msOfNs(clock.bootNs());
    this.#freeAtMs = Math.max(this.#freeAtMs, nowMs) + (exchanges * 1_000) / settings.rate;
    const waitMs = this.#freeAtMs - nowMs - BURST_MS;
    if (waitMs <= 0) return;
    await new Promise<void>((resolve) => timers.set(waitMs, resolve));
  }
}

function isProvenEntry(pairs: PairAuthenticator, key: AuthKey): boolean {
  const entry = pairs.entries.get(key);
  return entry !== undefined && !isAdopted(entry);
}
