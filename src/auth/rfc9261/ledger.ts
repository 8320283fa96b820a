/**
 * What makes a request and its answer count once on a channel (RFC 9261, sections 4 and 5.2): contexts are never used
 * twice, an answer is taken once and in time, and a peer's context is answered once.
 */
import { randomFillSync } from 'node:crypto';
import type { Clock } from '../../base/clock.ts';
import { err, ok, type Result } from '../../base/errors.ts';
import type { ReasonCode } from '../../base/registry/reason-codes.ts';
import type { ChannelRole } from '../../channel/peer-channel.ts';
import { type AuthenticatorOutcome, verifyAnswer } from './authenticator.ts';
import type { AuthenticatorKeys } from './keys.ts';
import { type AuthenticatorRequest, buildRequest, parseRequest } from './request.ts';

/**
 * Context: role of the requester (1), counter (8), random (16). The role keeps the two sides' contexts apart, the
 * counter makes them unique, the random part unpredictable (RFC 9261, section 4).
 */
const CONTEXT_OCTETS = 25;
/** Where it stands in a request: after type, length and its own length. */
const CONTEXT_AT = 5;
/** Contexts drawn from the random generator at a time. */
const CONTEXTS_AT_ONCE = 32;
const ROLE_OCTET: Readonly<Record<ChannelRole, number>> = { client: 1, server: 2 };

export interface LedgerLimits {
  /** Requests that may be open at once. */
  readonly open: number;
  /** How long an answer may take, ms. */
  readonly deadlineMs: number;
}

export const DEFAULT_LEDGER_LIMITS: LedgerLimits = { open: 4096, deadlineMs: 5_000 };

interface OpenRequest {
  readonly asked: AuthenticatorRequest;
  readonly deadlineNs: bigint;
}

/** One for each channel, on each side. */
export class RequestLedger {
  readonly #keys: AuthenticatorKeys;
  readonly #clock: Pick<Clock, 'bootNs'>;
  readonly #limits: LedgerLimits;
  readonly #open = new Map<string, OpenRequest>();
  #contexts = Buffer.alloc(0);
  #contextsAt = 0;
  #issued = 0n;
  #answered = 0n;

  constructor(keys: AuthenticatorKeys, clock: Pick<Clock, 'bootNs'>, limits: LedgerLimits = DEFAULT_LEDGER_LIMITS) {
    this.#keys = keys;
    this.#clock = clock;
    this.#limits = limits;
  }

  /** Open requests, those past their deadline included until the next sweep. */
  get size(): number {
    return this.#open.size;
  }

  /** A fresh request. AUTH_QUEUE_FULL when too many wait. */
  issue(): Result<Buffer, ReasonCode> {
    if (this.#open.size >= this.#limits.open) this.sweep();
    if (this.#open.size >= this.#limits.open) return err('AUTH_QUEUE_FULL');
    const asked = buildRequest(this.#keys, this.#nextContext());
    const deadlineNs = this.#clock.bootNs() + BigInt(this.#limits.deadlineMs) * 1_000_000n;
    this.#open.set(openKey(asked.octets), { asked, deadlineNs });
    return ok(asked.octets);
  }

  /**
   * Takes the answer to a request of this ledger and forgets the request, whatever the outcome: a second answer, or the
   * same one again, is AUTH_CONTEXT_REUSED. Past the deadline: AUTH_TIMEOUT. Otherwise as verifyAuthenticator.
   */
  answer(request: Buffer, authenticator: Buffer): Result<AuthenticatorOutcome, ReasonCode> {
    const open = this.#take(request);
    if (open === undefined) return err('AUTH_CONTEXT_REUSED');
    if (this.#clock.bootNs() >= open.deadlineNs) return err('AUTH_TIMEOUT');
    return verifyAnswer(this.#keys, open.asked, authenticator);
  }

  /** Gives a request up. False if it was not open. */
  cancel(request: Buffer): boolean {
    return this.#take(request) !== undefined;
  }

  /** Forgets what is past its deadline. Returns how many. */
  sweep(): number {
    const now = this.#clock.bootNs();
    let swept = 0;
    for (const [context, open] of this.#open) {
      // Insertion order is deadline order.
      if (open.deadlineNs > now) break;
      this.#open.delete(context);
      swept++;
    }
    return swept;
  }

  /**
   * May the peer's request be answered? Call once for each, in the order they arrive, before making an authenticator.
   * Its counter must have risen, so that no context is ever answered twice and none of ours comes back (AUTH_CONTEXT_REUSED).
   */
  admit(request: Buffer): Result<void, ReasonCode> {
    const requester = this.#keys.role === 'client' ? 'server' : 'client';
    const asked = parseRequest(request, requester);
    if (!asked.ok) return asked;
    const { context } = asked.value;
    if (context.length !== CONTEXT_OCTETS || context[0] !== ROLE_OCTET[requester]) return err('AUTH_BAD_REQUEST');
    const counter = context.readBigUInt64BE(1);
    if (counter <= this.#answered) return err('AUTH_CONTEXT_REUSED');
    this.#answered = counter;
    return ok(undefined);
  }

  #nextContext(): Buffer {
    if (this.#contextsAt === this.#contexts.length) {
      this.#contexts = randomFillSync(Buffer.alloc(CONTEXTS_AT_ONCE * CONTEXT_OCTETS));
      this.#contextsAt = 0;
    }
    const context = this.#contexts.subarray(this.#contextsAt, this.#contextsAt + CONTEXT_OCTETS);
    this.#contextsAt += CONTEXT_OCTETS;
    context[0] = ROLE_OCTET[this.#keys.role];
    context.writeBigUInt64BE(++this.#issued, 1);
    return context;
  }

  #take(request: Buffer): OpenRequest | undefined {
    const key = openKey(request);
    const open = this.#open.get(key);
    if (open === undefined || !open.asked.octets.equals(request)) return undefined;
    this.#open.delete(key);
    return open;
  }
}

/** The context of a request that this ledger made. Of any other octets: something it does not have. */
function openKey(request: Buffer): string {
  return request.toString('latin1', CONTEXT_AT, CONTEXT_AT + CONTEXT_OCTETS);
}
