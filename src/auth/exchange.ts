/**
 * A packet's story, where two nodes prove a pair of workloads to each other, on one channel, in four messages:
 *
 *   initiator                                   responder
 *   ProveRequest (its request)          →
 *                                       ←       ProveChallenge (its request; it shows nothing yet)
 *   ProveProof (authenticator)          →       verifies, writes its auth entry
 *                                       ←       ProveResult (ok, authenticator)
 *   verifies, writes its entry, releases
 *   ProveResult (ok, or why not)        →       keeps its entry, or deletes it
 *
 * The responder says nothing about its workloads, not even why it refuses, before the initiator has proved itself. A proof is verified
 * once for each identity and channel: the next pair with the same identity exchanges no authenticator for it.
 * Both may begin at once: the TLS client's exchange goes on, the TLS server lets its own ride on it.
 */
import {
  FrameType,
  ProveChallenge,
  ProveProof,
  ProveRequest,
  ProveResult,
} from '../../proto/gen/countersign/peer/v1/peer.ts';
import type { Clock } from '../base/clock.ts';
import { err, ok, type Result } from '../base/errors.ts';
import { type ReasonCode, reasonCodes } from '../base/registry/reason-codes.ts';
import type { Timers } from '../base/timers.ts';
import type { PeerChannel } from '../channel/peer-channel.ts';
import { AUTH_TYPE_CODE, type AuthType } from '../model/datapath.ts';
import { type SecurityIdentity, securityIdentity } from '../model/ids.ts';
import type { AuthRecord } from './auth-entries.ts';
import type { OwnProof } from './own-proof.ts';
import type { AuthSettings } from './ports.ts';
import { createAuthenticator, createEmptyAuthenticator } from './rfc9261/authenticator.ts';
import { type AuthenticatorKeys, deriveAuthenticatorKeys } from './rfc9261/keys.ts';
import { RequestLedger } from './rfc9261/ledger.ts';
import { nsOfMs } from './units.ts';
import { checkStanding, type Proof, type ProofFacts, verifyProof } from './verify-proof.ts';

export interface Pair {
  readonly local: SecurityIdentity;
  readonly remote: SecurityIdentity;
}

/** Both sides' proofs of one pair, on this channel, ready to be written. */
export interface ProvenPair extends Pair {
  readonly own: OwnProof;
  readonly remoteProof: Proof;
  readonly initiated: boolean;
  readonly correlation: string;
  /** Unix ms: the peer's entry lives no longer. */
  readonly peerUntilMs: number | undefined;
}

/** What an exchange needs of its node. */
export interface ExchangeHost {
  readonly facts: ProofFacts;
  /** The datapath's epoch now. */
  epoch(): number;
  own(identity: SecurityIdentity): Result<OwnProof, ReasonCode>;
  /** Does an open endpoint of this node have the identity? */
  hosts(identity: SecurityIdentity): boolean;
  authTypesOf(a: SecurityIdentity, b: SecurityIdentity): readonly AuthType[];
  /** undefined: no vouch for it is on its way into the tables. */
  settled(remote: SecurityIdentity): Promise<unknown> | undefined;
  /** Writes the kernel's entry. */
  write(pair: ProvenPair): AuthRecord;
  erase(record: AuthRecord, reason: ReasonCode): void;
  /** A responder's exchange ended: its own held packets may go, or not. */
  answered(pair: Pair, correlation: string, outcome: Result<AuthRecord, ReasonCode>): void;
  readonly settings: Pick<AuthSettings, 'authTimeoutMs' | 'queueSize'>;
  readonly clock: Clock;
  readonly timers: Timers;
}

type Outcome = Result<AuthRecord, ReasonCode>;
type Finish = (outcome: Outcome) => void;

interface Initiated {
  readonly pair: Pair;
  /** undefined: a proof of theirs stands already. */
  readonly request: Buffer | undefined;
  readonly epoch: number;
  state: 'asked' | 'proved' | 'verifying';
  proofSentMs: number;
  readonly finish: Finish;
  readonly cancelTimeout: () => void;
}

interface Responded {
  readonly pair: Pair;
  /** Theirs, to be answered; empty: they need none. */
  readonly theirRequest: Buffer;
  readonly request: Buffer | undefined;
  readonly epoch: number;
  state: 'challenged' | 'verifying' | 'written';
  record: AuthRecord | undefined;
  readonly riders: Finish[];
  cancelTimeout: () => void;
}

const NONE = Buffer.alloc(0);
/** A cached proof serves new entries for this part of its life, so that a renewal begins with a fresh one. */
const FRESH_PART = 0.7;

export class Exchanges {
  readonly #channel: PeerChannel;
  readonly #host: ExchangeHost;
  readonly #keys: AuthenticatorKeys;
  readonly #ledger: RequestLedger;
  readonly #proofs = new Map<SecurityIdentity, Proof>();
  readonly #initiated = new Map<bigint, Initiated>();
  readonly #responded = new Map<bigint, Responded>();
  /** Odd for the TLS client, even for the server: one number names one exchange, whoever began it. */
  #nextId: bigint;
  #lastTheirs = 0n;

  /** @throws when the channel is closed. */
  constructor(channel: PeerChannel, host: ExchangeHost) {
    this.#channel = channel;
    this.#host = host;
    this.#keys = deriveAuthenticatorKeys(channel);
    this.#ledger = new RequestLedger(this.#keys, host.clock, {
      open: 2 * host.settings.queueSize,
      deadlineMs: host.settings.authTimeoutMs,
    });
    this.#nextId = channel.role === 'client' ? 1n : 2n;
  }

  /** Proves the pair to the peer and the peer's to this node. Resolves when both entries are written, or with why not. */
  prove(pair: Pair): Promise<Outcome> {
    const { promise, resolve } = Promise.withResolvers<Outcome>();
    this.#begin(pair, resolve);
    return promise;
  }

  /** Proofs made before are verified anew from here on: a bundle changed, or something was revoked. */
  forgetProofs() {
    this.#proofs.clear();
  }

  closed() {
    for (const id of [...this.#initiated.keys()]) this.#endInitiated(id, err('PEER_CHANNEL_CLOSED'));
    for (const id of [...this.#responded.keys()]) this.#endResponded(id, err('PEER_CHANNEL_CLOSED'));
  }

  #begin(pair: Pair, finish: Finish) {
    for (const exchange of this.#responded.values()) {
      if (isSame(exchange.pair, pair)) return void exchange.riders.push(finish);
    }
    const own = this.#host.own(pair.local);
    if (!own.ok) return finish(own);
    const epoch = this.#host.epoch();
    const request = this.#standingProof(pair.remote) === undefined ? this.#ledger.issue() : undefined;
    if (request !== undefined && !request.ok) return finish(request);
    const id = this.#nextId;
    this.#nextId += 2n;
    this.#initiated.set(id, {
      pair,
      request: request?.value,
      epoch,
      state: 'asked',
      proofSentMs: 0,
      finish,
      cancelTimeout: this.#deadline(() => this.#giveUp(id, 'AUTH_TIMEOUT')),
    });
    this.#send(
      FrameType.FRAME_TYPE_PROVE_REQUEST,
      ProveRequest.encode({
        exchange: id,
        localIdentity: pair.local,
        remoteIdentity: pair.remote,
        authType: AUTH_TYPE_CODE.spiffe,
        authenticatorRequest: request?.value ?? NONE,
        flow: undefined,
        localCertificate: Buffer.from(own.value.digest, 'hex'),
      }),
    );
  }

  /** Responder, message 1. @throws on a malformed body. */
  onRequest(body: Buffer) {
    const message = ProveRequest.decode(body);
    const id = message.exchange;
    const isTheirs = id % 2n === (this.#channel.role === 'client' ? 0n : 1n);
    if (!isTheirs || id <= this.#lastTheirs) return this.#channel.close('PEER_FRAME_UNEXPECTED');
    this.#lastTheirs = id;
    const pair = { local: securityIdentity(message.remoteIdentity), remote: securityIdentity(message.localIdentity) };
    const theirRequest = message.authenticatorRequest;
    if (theirRequest.length > 0) {
      const admitted = this.#ledger.admit(theirRequest);
      if (!admitted.ok) return this.#sayNo(id, admitted.error);
    }
    if (message.authType !== AUTH_TYPE_CODE.spiffe) return this.#sayNo(id, 'AUTH_BAD_REQUEST');
    if (this.#responded.size >= this.#host.settings.queueSize) return this.#sayNo(id, 'AUTH_QUEUE_FULL');

    const riders: Finish[] = [];
    for (const [ownId, exchange] of this.#initiated) {
      if (!isSame(exchange.pair, pair)) continue;
      // Both began at once: the client's goes on. The client does not answer; the server's own rides on the client's.
      if (this.#channel.role === 'client') return;
      this.#takeInitiated(ownId);
      riders.push(exchange.finish);
    }
    const epoch = this.#host.epoch();
    const request = this.#standingProof(pair.remote) === undefined ? this.#ledger.issue() : undefined;
    if (request !== undefined && !request.ok) {
      for (const finish of riders) finish(request);
      return this.#sayNo(id, request.error);
    }
    this.#responded.set(id, {
      pair,
      theirRequest: Buffer.from(theirRequest),
      request: request?.value,
      epoch,
      state: 'challenged',
      record: undefined,
      riders,
      cancelTimeout: this.#deadline(() => this.#endResponded(id, err('AUTH_TIMEOUT'))),
    });
    this.#send(
      FrameType.FRAME_TYPE_PROVE_CHALLENGE,
      ProveChallenge.encode({ exchange: id, authenticatorRequest: request?.value ?? NONE }),
    );
  }

  /** Initiator, message 2. An unknown number, or one past its turn, changes nothing. @throws on a malformed body. */
  onChallenge(body: Buffer) {
    const message = ProveChallenge.decode(body);
    const exchange = this.#initiated.get(message.exchange);
    if (exchange?.state !== 'asked') return;
    let authenticator: Buffer = NONE;
    if (message.authenticatorRequest.length > 0) {
      const answer = this.#answer(exchange.pair.local, message.authenticatorRequest, true);
      if (!answer.ok) return this.#giveUp(message.exchange, answer.error);
      authenticator = answer.value.authenticator;
      if (answer.value.refusal !== undefined) {
        this.#sendProof(message.exchange, authenticator);
        return this.#endInitiated(message.exchange, err(answer.value.refusal));
      }
    }
    exchange.state = 'proved';
    exchange.proofSentMs = this.#host.clock.nowMs();
    this.#sendProof(message.exchange, authenticator);
  }

  /** Responder, message 3: verifies, writes, and only then shows something. @throws on a malformed body. */
  onProof(body: Buffer) {
    const message = ProveProof.decode(body);
    const exchange = this.#responded.get(message.exchange);
    if (exchange?.state !== 'challenged') return;
    exchange.state = 'verifying';
    this.#whenSettled(exchange.pair.remote, () => {
      if (this.#responded.get(message.exchange) === exchange)
        this.#judge(message.exchange, exchange, message.authenticator);
    });
  }

  /** Message 4, either way. @throws on a malformed body. */
  onResult(body: Buffer) {
    const message = ProveResult.decode(body);
    const reason = reasonOf(message);
    const answered = this.#responded.get(message.exchange);
    if (answered !== undefined) return this.#confirmed(message.exchange, answered, reason);
    const exchange = this.#initiated.get(message.exchange);
    if (exchange === undefined || exchange.state === 'verifying') return;
    if (reason !== undefined) return this.#endInitiated(message.exchange, err(reason));
    if (exchange.state !== 'proved') return this.#channel.close('PEER_FRAME_UNEXPECTED');
    exchange.state = 'verifying';
    this.#whenSettled(exchange.pair.remote, () => {
      if (this.#initiated.get(message.exchange) === exchange) this.#conclude(message.exchange, exchange, message);
    });
  }

  #judge(id: bigint, exchange: Responded, authenticator: Buffer) {
    const { pair } = exchange;
    const proof = this.#proofOf(pair.remote, exchange.request, exchange.epoch, authenticator);
    if (!proof.ok) return this.#refuse(id, proof.error);
    // From here on the initiator has proved itself: it may learn what this node does and does not have.
    if (!this.#host.authTypesOf(pair.local, pair.remote).includes('spiffe'))
      return this.#refuse(id, 'AUTH_NOT_REQUIRED');
    if (!this.#host.hosts(pair.local)) return this.#refuse(id, 'AUTH_NOT_VOUCHED');
    let shown: Buffer = NONE;
    if (exchange.theirRequest.length > 0) {
      const answer = this.#answer(pair.local, exchange.theirRequest, false);
      if (!answer.ok) return this.#refuse(id, answer.error);
      shown = answer.value.authenticator;
      if (answer.value.refusal !== undefined) return this.#refuse(id, answer.value.refusal, shown);
    }
    const own = this.#host.own(pair.local);
    if (!own.ok) return this.#refuse(id, own.error);
    const record = this.#host.write({
      ...pair,
      own: own.value,
      remoteProof: proof.value,
      initiated: false,
      correlation: this.#correlation(id),
      peerUntilMs: undefined,
    });
    exchange.record = record;
    exchange.state = 'written';
    this.#sendResult(id, { record, authenticator: shown });
  }

  #conclude(id: bigint, exchange: Initiated, message: ProveResult) {
    const { pair } = exchange;
    const proof = this.#proofOf(pair.remote, exchange.request, exchange.epoch, message.authenticator);
    if (!proof.ok) return this.#giveUp(id, proof.error);
    const own = this.#host.own(pair.local);
    if (!own.ok) return this.#giveUp(id, own.error);
    if (!this.#host.hosts(pair.local)) return this.#giveUp(id, 'AUTH_NOT_VOUCHED');
    const record = this.#host.write({
      ...pair,
      own: own.value,
      remoteProof: proof.value,
      initiated: true,
      correlation: this.#correlation(id),
      // Counted from before the peer can have written: never later than its end.
      peerUntilMs: exchange.proofSentMs + Number(message.validMs),
    });
    this.#sendResult(id, { record, authenticator: NONE });
    this.#endInitiated(id, ok(record));
  }

  /** Responder: the initiator verified, or it did not and the entry goes. */
  #confirmed(id: bigint, exchange: Responded, reason: ReasonCode | undefined) {
    if (reason !== undefined) return this.#endResponded(id, err(reason));
    if (exchange.record === undefined) return this.#channel.close('PEER_FRAME_UNEXPECTED');
    this.#endResponded(id, ok(exchange.record));
  }

  /** The proof that stands on this channel, or the one that this authenticator is. */
  #proofOf(
    identity: SecurityIdentity,
    request: Buffer | undefined,
    epoch: number,
    authenticator: Buffer,
  ): Result<Proof, ReasonCode> {
    const { facts } = this.#host;
    if (request === undefined) {
      const cached = this.#proofs.get(identity);
      if (cached === undefined) return err('AUTH_EXPIRED');
      const refusal = checkStanding(facts, cached);
      return refusal === undefined ? ok(cached) : err(refusal);
    }
    const { id: node, spiffeId: nodeSpiffeId } = this.#channel.peer;
    const outcome = this.#ledger.answer(request, authenticator);
    const proof = verifyProof(facts, { identity, node, nodeSpiffeId, epoch }, outcome);
    if (proof.ok) this.#proofs.set(identity, proof.value);
    return proof;
  }

  /** Fit to rest a new entry on: it stands, it is of this epoch, and most of its life is still to come. */
  #standingProof(identity: SecurityIdentity): Proof | undefined {
    const proof = this.#proofs.get(identity);
    if (proof === undefined) return undefined;
    const freshUntilMs = proof.provenAtMs + FRESH_PART * (proof.validUntilMs - proof.provenAtMs);
    const isFit = proof.epoch === this.#host.epoch() && this.#host.clock.nowMs() < freshUntilMs;
    return isFit && checkStanding(this.#host.facts, proof) === undefined ? proof : undefined;
  }

  /** An authenticator for our identity; an empty one, with the reason, if there is nothing to prove it with. */
  #answer(
    identity: SecurityIdentity,
    request: Buffer,
    admit: boolean,
  ): Result<{ authenticator: Buffer; refusal: ReasonCode | undefined }, ReasonCode> {
    if (admit) {
      const admitted = this.#ledger.admit(request);
      if (!admitted.ok) return admitted;
    }
    const own = this.#host.own(identity);
    const made = own.ok ? createAuthenticator(this.#keys, request, own.value.svid) : own;
    if (made.ok) return ok({ authenticator: made.value, refusal: undefined });
    const empty = createEmptyAuthenticator(this.#keys, request);
    return empty.ok ? ok({ authenticator: empty.value, refusal: made.error }) : empty;
  }

  #whenSettled(remote: SecurityIdentity, next: () => void) {
    const pending = this.#host.settled(remote);
    if (pending === undefined) next();
    else void pending.then(next, next);
  }

  /** Initiator: ends it and tells the peer, which deletes what it wrote. */
  #giveUp(id: bigint, reason: ReasonCode) {
    this.#sayNo(id, reason);
    this.#endInitiated(id, err(reason));
  }

  #refuse(id: bigint, reason: ReasonCode, authenticator: Buffer = NONE) {
    this.#sayNo(id, reason, authenticator);
    this.#endResponded(id, err(reason));
  }

  #takeInitiated(id: bigint): Initiated | undefined {
    const exchange = this.#initiated.get(id);
    if (exchange === undefined) return undefined;
    this.#initiated.delete(id);
    exchange.cancelTimeout();
    if (exchange.request !== undefined) this.#ledger.cancel(exchange.request);
    return exchange;
  }

  #endInitiated(id: bigint, outcome: Outcome) {
    this.#takeInitiated(id)?.finish(outcome);
  }

  /** Without the initiator's yes, what was written for it goes again. */
  #endResponded(id: bigint, outcome: Outcome) {
    const exchange = this.#responded.get(id);
    if (exchange === undefined) return;
    this.#responded.delete(id);
    exchange.cancelTimeout();
    if (exchange.request !== undefined) this.#ledger.cancel(exchange.request);
    if (!outcome.ok && exchange.record !== undefined) this.#host.erase(exchange.record, outcome.error);
    this.#host.answered(exchange.pair, this.#correlation(id), outcome);
    for (const finish of exchange.riders) finish(outcome);
  }

  #deadline(fn: () => void): () => void {
    return this.#host.timers.set(this.#host.settings.authTimeoutMs, fn);
  }

  #correlation(id: bigint): string {
    return `${this.#channel.id}/${id}`;
  }

  #sayNo(id: bigint, reason: ReasonCode, authenticator: Buffer = NONE) {
    this.#send(
      FrameType.FRAME_TYPE_PROVE_RESULT,
      ProveResult.encode({ exchange: id, ok: false, reason, validMs: 0n, authenticator }),
    );
  }

  #sendResult(id: bigint, result: { record: AuthRecord; authenticator: Buffer }) {
    const { record, authenticator } = result;
    const leftNs = record.expiresAtNs - this.#host.clock.bootNs();
    const validMs = leftNs > 0n ? leftNs / nsOfMs(1) : 0n;
    this.#send(
      FrameType.FRAME_TYPE_PROVE_RESULT,
      ProveResult.encode({ exchange: id, ok: true, reason: '', validMs, authenticator }),
    );
  }

  #sendProof(id: bigint, authenticator: Buffer) {
    this.#send(FrameType.FRAME_TYPE_PROVE_PROOF, ProveProof.encode({ exchange: id, authenticator }));
  }

  #send(type: FrameType, message: { finish(): Uint8Array }) {
    this.#channel.send(type, message.finish());
  }
}

function isSame(a: Pair, b: Pair): boolean {
  return a.local === b.local && a.remote === b.remote;
}

/** undefined: ok. A code that this build does not know is a refusal all the same. */
function reasonOf(message: ProveResult): ReasonCode | undefined {
  if (message.ok) return undefined;
  return Object.hasOwn(reasonCodes, message.reason) ? (message.reason as ReasonCode) : 'AUTH_REFUSED';
}
