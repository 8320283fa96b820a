/**
 * What stands proven on one channel, in both directions: the peer's identities, verified once each, and with which certificate own ones
 * were shown. A proof serves every pair that has its identity, until something it rests on changes (verify-proof.ts), the
 * datapath's epoch rises, either side's SVID is another one, or the channel ends.
 */
import { err, ok, type Result } from '../base/errors.ts';
import type { ReasonCode } from '../base/registry/reason-codes.ts';
import type { PeerChannel } from '../channel/peer-channel.ts';
import type { SecurityIdentity } from '../model/ids.ts';
import type { ExchangeHost } from './exchange-host.ts';
import type { OwnProof } from './own-proof.ts';
import { createAuthenticator, createEmptyAuthenticator } from './rfc9261/authenticator.ts';
import { type AuthenticatorKeys, deriveAuthenticatorKeys } from './rfc9261/keys.ts';
import { RequestLedger } from './rfc9261/ledger.ts';
import { checkStanding, type Proof, verifyProof } from './verify-proof.ts';

export interface Answer {
  readonly authenticator: Buffer;
  /** Why the authenticator is an empty one (RFC 9261, section 6). */
  readonly refusal: ReasonCode | undefined;
}

/** A cached proof serves new entries for this part of its life, so that a renewal begins with a fresh one. */
const FRESH_PART = 0.7;

export class ChannelProofs {
  readonly #channel: PeerChannel;
  readonly #host: ExchangeHost;
  readonly #keys: AuthenticatorKeys;
  readonly #ledger: RequestLedger;
  readonly #theirs = new Map<SecurityIdentity, Proof>();
  /** Digest of the certificate that the peer was shown last. */
  readonly #shown = new Map<SecurityIdentity, string>();

  /** @throws when the channel is closed. */
  constructor(channel: PeerChannel, host: ExchangeHost) {
    this.#channel = channel;
    this.#host = host;
    this.#keys = deriveAuthenticatorKeys(channel);
    this.#ledger = new RequestLedger(this.#keys, host.clock, {
      open: 2 * host.settings.queueSize,
      deadlineMs: host.settings.authTimeoutMs,
    });
  }

  /** Fit to rest a new entry on: it stands, it is of this epoch, and most of its life is still to come. */
  standing(identity: SecurityIdentity): Proof | undefined {
    const proof = this.#theirs.get(identity);
    if (proof === undefined) return undefined;
    const freshUntilMs = proof.provenAtMs + FRESH_PART * (proof.validUntilMs - proof.provenAtMs);
    const isFit = proof.epoch === this.#host.epoch() && this.#host.clock.nowMs() < freshUntilMs;
    return isFit && checkStanding(this.#host.facts, proof) === undefined ? proof : undefined;
  }

  /** Has the peer been shown this very certificate? */
  isShown(own: OwnProof): boolean {
    return this.#shown.get(own.identity) === own.digest;
  }

  /** Proofs made before are verified anew from here on. */
  forget(identity?: SecurityIdentity): void {
    if (identity === undefined) this.#theirs.clear();
    else this.#theirs.delete(identity);
  }

  /** The peer proves the identity with this certificate from here on: what was proven with another one serves no more. */
  expect(identity: SecurityIdentity, certificate: string): void {
    const proof = this.#theirs.get(identity);
    if (proof !== undefined && proof.leaf.digest !== certificate) this.#theirs.delete(identity);
  }

  /** An authenticator request for the identity; undefined: a proof stands, nothing needs to be asked. `fresh`: whatever stands. */
  ask(identity: SecurityIdentity, fresh = false): Result<Buffer | undefined, ReasonCode> {
    return fresh || this.standing(identity) === undefined ? this.#ledger.issue() : ok(undefined);
  }

  cancel(request: Buffer): void {
    this.#ledger.cancel(request);
  }

  /** The peer's request, which counts once. */
  admit(request: Buffer): Result<void, ReasonCode> {
    return this.#ledger.admit(request);
  }

  /** The proof that stands, or the one that this authenticator is; `request`: what was asked, undefined: nothing. `isKept`: for other pairs too. */
  take(
    identity: SecurityIdentity,
    request: Buffer | undefined,
    epoch: number,
    authenticator: Buffer,
    isKept = true,
  ): Result<Proof, ReasonCode> {
    const { facts } = this.#host;
    if (request === undefined) {
      const known = this.#theirs.get(identity);
      if (known === undefined) return err('AUTH_EXPIRED');
      const refusal = checkStanding(facts, known);
      return refusal === undefined ? ok(known) : err(refusal);
    }
    const { id: node, spiffeId: nodeSpiffeId } = this.#channel.peer;
    const outcome = this.#ledger.answer(request, authenticator);
    const proof = verifyProof(facts, { identity, node, nodeSpiffeId, epoch }, outcome);
    if (proof.ok && isKept) this.#theirs.set(identity, proof.value);
    return proof;
  }

  /** An authenticator for our identity; an empty one, with the reason, if there is nothing to prove it with. */
  answer(identity: SecurityIdentity, request: Buffer): Result<Answer, ReasonCode> {
    const own = this.#host.own(identity);
    const made = own.ok ? createAuthenticator(this.#keys, request, own.value.svid) : own;
    if (own.ok && made.ok) {
      this.#shown.set(identity, own.value.digest);
      return ok({ authenticator: made.value, refusal: undefined });
    }
    const empty = createEmptyAuthenticator(this.#keys, request);
    if (!empty.ok) return empty;
    return ok({ authenticator: empty.value, refusal: made.ok ? 'AUTH_NO_SVID' : made.error });
  }
}
