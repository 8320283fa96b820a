/**
 * Pairs of identities and their auth entries: one authentication for each key at a time, by the method of its type; renewed before the
 * entry ends, with jitter, while it is used; after a failure left alone for a while, with its packets dropped at once.
 */
import type { Clock } from '../base/clock.ts';
import { err } from '../base/errors.ts';
import type { ReasonCode } from '../base/registry/reason-codes.ts';
import type { Timers } from '../base/timers.ts';
import type { AuthKey, AuthTable, AuthType } from '../model/datapath.ts';
import { LOCAL_NODE, type NodeId, type SecurityIdentity } from '../model/ids.ts';
import type { AuthAudit } from './auth-audit.ts';
import { AuthEntries, type AuthRecord, authKeyText, isAdopted, type WhyGone } from './auth-entries.ts';
import type { AuthMethod } from './auth-method.ts';
import type { Backoff } from './backoff.ts';
import { Deadlines } from './deadlines.ts';
import type { Outcome, Pair } from './exchange-host.ts';
import type { AuthSettings } from './ports.ts';
import { Refusals } from './refusals.ts';
import { msOfNs } from './units.ts';

export interface PairAuthenticatorOptions {
  readonly table: AuthTable;
  hosts(identity: SecurityIdentity): boolean;
  /** undefined: the type is of another kind, or none. */
  methodOf(authType: AuthType, node: NodeId): AuthMethod | undefined;
  /** Is the pair still to be proven when its entry ends? */
  isWanted(record: AuthRecord): boolean;
  /** A packet or a person asked for the pair. */
  asked(key: AuthKey): void;
  lost(record: AuthRecord, why: WhyGone): void;
  readonly backoff: Backoff;
  readonly settings: AuthSettings;
  /** Uniform in [0, 1). */
  readonly random: () => number;
  readonly audit: AuthAudit;
  readonly clock: Clock;
  readonly timers: Timers;
}

export interface Success {
  /** Unix ms. */
  readonly atMs: number;
  readonly handshakeMs: number;
  readonly correlation: string;
}

interface Pending {
  readonly outcome: Promise<Outcome>;
  /** A packet waits for it: a failure makes the kernel drop what follows. Nobody asked for what is proven ahead. */
  isAsked: boolean;
}

/** Successes for `explain`: beyond this the oldest is forgotten. */
const MAX_REMEMBERED = 16_384;
const SWEEP_MS = 60_000;

export class PairAuthenticator {
  readonly entries: AuthEntries;
  readonly #options: PairAuthenticatorOptions;
  readonly #refusals: Refusals;
  readonly #pending = new Map<string, Pending>();
  /** Renewal, then end. */
  readonly #deadlines: Deadlines<AuthRecord>;
  readonly #successes = new Map<string, Success>();
  /** Those whose renewal does not wait for its time. */
  readonly #hastened = new WeakSet<AuthRecord>();
  #isSweepArmed = false;

  constructor(options: PairAuthenticatorOptions) {
    this.#options = options;
    this.#refusals = new Refusals(options.table);
    this.#deadlines = new Deadlines({
      timers: options.timers,
      nowMs: () => msOfNs(options.clock.bootNs()),
      isWanted: (record) => this.entries.get(record) === record,
      due: (records) => this.#due(records),
    });
    this.entries = new AuthEntries({
      table: options.table,
      written: (record) => this.#written(record),
      gone: (record, why) => {
        options.audit.gone(record, why);
        options.lost(record, why);
      },
    });
    this.entries.adopt(options.clock.bootNs());
  }

  /** For `explain`. */
  successesOf(concerns: (local: number, remote: number) => boolean): Success[] {
    return [...this.#successes].flatMap(([key, success]) => {
      const [local, remote] = key.split('/').map(Number) as [number, number];
      return concerns(local, remote) ? [success] : [];
    });
  }

  get refused(): number {
    return this.#refusals.size;
  }

  isPending(key: AuthKey): boolean {
    return this.#pending.has(authKeyText(key));
  }

  isWaiting(key: AuthKey): boolean {
    return this.#options.backoff.isWaiting(authKeyText(key), this.#options.clock.bootNs());
  }

  /**
   * Proves a pair, or joins the authentication of this key that is under way. `sinceNs`: when its packet met the miss.
   * On a failure the key is left alone for a while (AUTH_BACKOFF).
   */
  authenticate(key: AuthKey, sinceNs: bigint): Promise<Outcome> {
    this.#options.asked(key);
    return this.#authenticate(key, sinceNs);
  }

  #authenticate(key: AuthKey, sinceNs: bigint): Promise<Outcome> {
    const text = authKeyText(key);
    const pending = this.#pending.get(text);
    if (pending !== undefined) {
      pending.isAsked = true;
      return pending.outcome;
    }
    if (this.isWaiting(key)) return Promise.resolve(err('AUTH_BACKOFF'));
    if (this.#isFull()) {
      this.#options.audit.failed(key, 'AUTH_QUEUE_FULL', undefined);
      return Promise.resolve(err('AUTH_QUEUE_FULL'));
    }
    return this.#begin(key, this.#prove(key), sinceNs, true);
  }

  /**
   * The same before any packet asks. A failure is told, and only that: the first packet gets its own try. `proof`: of a batch that the
   * key is part of.
   */
  authenticateAhead(key: AuthKey, proof?: Promise<Outcome>): Promise<Outcome> {
    const pending = this.#pending.get(authKeyText(key));
    if (pending !== undefined) return pending.outcome;
    if (this.#isFull()) return Promise.resolve(err('AUTH_QUEUE_FULL'));
    return this.#begin(key, proof ?? this.#prove(key), this.#options.clock.bootNs(), false);
  }

  /** What failures rested on may be gone: the next try of the key, or of all, need not wait, and its packets are held again. */
  forgive(key?: AuthKey): void {
    const isConcerned = (one: AuthKey) =>
      (key === undefined || authKeyText(one) === authKeyText(key)) && this.entries.get(one) === undefined;
    this.#refusals.forgive(isConcerned);
    if (key === undefined) this.#options.backoff.relent();
    else this.#options.backoff.relent((text) => text === authKeyText(key));
  }

  /** Their entries were taken away because of a revocation, and the kernel drops their packets until then. */
  banned(records: readonly AuthRecord[], untilNs: bigint): void {
    const { backoff, clock } = this.#options;
    for (const record of records) {
      this.#refuse(record, untilNs, true);
      backoff.failed(authKeyText(record), 'AUTH_REVOKED', clock.bootNs(), clock.nowMs());
    }
  }

  /** Proves them anew at once, used or not; many one after the other. What is there stays until then. */
  renew(records: readonly AuthRecord[]): void {
    const nowMs = msOfNs(this.#options.clock.bootNs());
    for (const record of records) {
      if (this.#hastened.has(record)) continue;
      this.#hastened.add(record);
      this.#deadlines.add(record, nowMs + this.#options.random() * records.length);
    }
  }

  /** The peer began. */
  answered(node: NodeId, pair: Pair, correlation: string, outcome: Outcome): void {
    const { clock, backoff, audit } = this.#options;
    const key: AuthKey = { ...pair, remoteNode: node, authType: 'spiffe' };
    const text = authKeyText(key);
    if (!outcome.ok) {
      backoff.note(text, outcome.error, clock.nowMs());
      if (!this.#pending.has(text)) audit.failed(key, outcome.error, correlation);
      return;
    }
    backoff.succeeded(text);
    const handshakeMs = msOfNs(clock.bootNs() - outcome.value.writtenAtNs);
    this.#remember(text, { atMs: clock.nowMs(), handshakeMs, correlation });
    if (!this.#pending.has(text)) audit.succeeded(outcome.value, undefined);
  }

  #isFull(): boolean {
    return this.#pending.size >= this.#options.settings.queueSize;
  }

  #begin(key: AuthKey, proof: Promise<Outcome>, sinceNs: bigint, isAsked: boolean): Promise<Outcome> {
    const text = authKeyText(key);
    const outcome = proof.then((outcome) => {
      this.#pending.delete(text);
      if (outcome.ok) this.#succeeded(key, outcome.value, sinceNs);
      else if (pending.isAsked) this.#failed(key, outcome.error);
      else this.#options.backoff.note(text, outcome.error, this.#options.clock.nowMs());
      return outcome;
    });
    const pending: Pending = { outcome, isAsked };
    this.#pending.set(text, pending);
    return outcome;
  }

  async #prove(key: AuthKey): Promise<Outcome> {
    const method = this.#options.methodOf(key.authType, key.remoteNode);
    if (method === undefined) return err('AUTH_NOT_REQUIRED');
    if (!this.#options.hosts(key.local)) return err('AUTH_NOT_VOUCHED');
    return method.prove(key);
  }

  #written(record: AuthRecord): void {
    this.#refusals.replaced(record);
    this.#arm(record);
  }

  /** Who began renews at three quarters of its life; the other a little later, if that did not happen. */
  #arm(record: AuthRecord): void {
    const { clock, random, settings } = this.#options;
    const endMs = endMsOf(record);
    const nowMs = msOfNs(clock.bootNs());
    if (isAdopted(record)) {
      // One lease: what its node vouches for has ended by then too, unless the node says it again.
      this.#deadlines.add(record, Math.min(endMs, nowMs + settings.leaseMs));
      return;
    }
    const part = (record.initiated ? 0.75 : 0.85) + 0.05 * random();
    this.#deadlines.add(record, nowMs + (endMs - nowMs) * part);
  }

  #due(records: readonly AuthRecord[]): void {
    const { clock, isWanted } = this.#options;
    const nowNs = clock.bootNs();
    const ended = records.filter((record) => nowNs >= record.expiresAtNs);
    this.entries.remove(ended, { kind: 'auth.expired', reason: 'AUTH_EXPIRED' });
    const unconfirmed: AuthRecord[] = [];
    for (const record of records) {
      if (nowNs >= record.expiresAtNs) continue;
      if (isAdopted(record) && !this.#isConfirmedHere(record)) {
        unconfirmed.push(record);
        continue;
      }
      this.#deadlines.add(record, endMsOf(record));
      if (!isAdopted(record) && (this.#hastened.has(record) || isWanted(record))) {
        void this.#authenticate(record, nowNs);
      }
    }
    this.entries.remove(unconfirmed, { kind: 'auth.expired', reason: 'AUTH_NOT_CONFIRMED' });
  }

  /** Of a pair on this node this node is the owner: its endpoints have come back. */
  #isConfirmedHere({ remoteNode, local, remote }: AuthRecord): boolean {
    const { hosts } = this.#options;
    return remoteNode === LOCAL_NODE && hosts(local) && hosts(remote);
  }

  #succeeded(key: AuthKey, record: AuthRecord, sinceNs: bigint): void {
    const { backoff, clock, audit } = this.#options;
    const text = authKeyText(key);
    const handshakeMs = msOfNs(clock.bootNs() - sinceNs);
    backoff.succeeded(text);
    this.#remember(text, { atMs: clock.nowMs(), handshakeMs, correlation: record.correlation });
    audit.succeeded(record, handshakeMs);
  }

  /** While the key is left alone, its packets drop at once: a flood of them must not fill the hold queue. */
  #failed(key: AuthKey, reason: ReasonCode): void {
    const { backoff, clock, audit } = this.#options;
    const text = authKeyText(key);
    backoff.failed(text, reason, clock.bootNs(), clock.nowMs());
    // A renewal that failed takes nothing away: the entry lives to its end.
    if (this.entries.get(key) === undefined) this.#refuse(key, backoff.last(text)!.retryAtNs, false);
    audit.failed(key, reason, undefined);
  }

  #refuse(key: AuthKey, untilNs: bigint, isWritten: boolean): void {
    this.#refusals.add(key, untilNs, isWritten);
    this.#armSweep();
  }

  #armSweep(): void {
    if (this.#isSweepArmed || this.#refusals.size === 0) return;
    this.#isSweepArmed = true;
    this.#options.timers.set(SWEEP_MS, () => {
      this.#isSweepArmed = false;
      this.#refusals.sweep(this.#options.clock.bootNs());
      this.#armSweep();
    });
  }

  #remember(text: string, success: Success): void {
    this.#successes.delete(text);
    this.#successes.set(text, success);
    if (this.#successes.size > MAX_REMEMBERED) this.#successes.delete(this.#successes.keys().next().value!);
  }
}

/** The first whole ms at which it is over, on CLOCK_BOOTTIME. */
function endMsOf(record: AuthRecord): number {
  return Math.ceil(msOfNs(record.expiresAtNs));
}
