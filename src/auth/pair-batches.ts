/**
 * Many pairs in one exchange, on one channel, when both sides hold proofs of all their identities already: no signature is made or
 * verified, so that n identities on a pair of nodes cost n proofs however many pairs policy makes of them.
 *
 *   initiator                                   responder
 *   ProvePairs                          →       checks each as it would alone, writes what stands
 *                                       ←       PairsResult (a verdict for each)
 *   checks again, writes
 *   PairsResult (what it has)           →       deletes what the initiator does not have
 */
import { FrameType, PairsResult, ProvePairs } from '../../proto/gen/countersign/peer/v1/peer.ts';
import { err, ok, type Result } from '../base/errors.ts';
import type { ReasonCode } from '../base/registry/reason-codes.ts';
import type { PeerChannel } from '../channel/peer-channel.ts';
import { AUTH_TYPE_CODE } from '../model/datapath.ts';
import { securityIdentity } from '../model/ids.ts';
import type { AuthRecord } from './auth-entries.ts';
import type { ChannelProofs } from './channel-proofs.ts';
import { reasonOf } from './exchange.ts';
import { type ExchangeHost, lifeLeftMs, type Outcome, type Pair, type ProvenPair } from './exchange-host.ts';

/** With a verdict of at most 48 octets for each, the answer fits into one frame. */
export const MAX_PAIRS = 512;
/** Of each side, on one channel. */
const MAX_OPEN = 8;

interface Initiated {
  readonly pairs: readonly Pair[];
  readonly sentMs: number;
  readonly finish: (outcomes: readonly Outcome[]) => void;
  readonly cancelTimeout: () => void;
  answered: boolean;
}

interface Responded {
  readonly pairs: readonly Pair[];
  /** Unset while vouches for them are on their way. */
  outcomes: readonly Outcome[] | undefined;
  readonly cancelTimeout: () => void;
}

export class PairBatches {
  readonly #channel: PeerChannel;
  readonly #host: ExchangeHost;
  readonly #proofs: ChannelProofs;
  readonly #initiated = new Map<bigint, Initiated>();
  readonly #responded = new Map<bigint, Responded>();
  #nextId: bigint;
  #lastTheirs = 0n;

  constructor(channel: PeerChannel, host: ExchangeHost, proofs: ChannelProofs) {
    this.#channel = channel;
    this.#host = host;
    this.#proofs = proofs;
    this.#nextId = channel.role === 'client' ? 1n : 2n;
  }

  /** One outcome for each of at most MAX_PAIRS pairs, in their order. AUTH_EXPIRED: it takes an exchange of its own. */
  prove(pairs: readonly Pair[]): Promise<readonly Outcome[]> {
    if (pairs.length > MAX_PAIRS) throw new RangeError('too many pairs');
    if (this.#initiated.size >= MAX_OPEN) return Promise.resolve(pairs.map(() => err('AUTH_QUEUE_FULL')));
    const id = this.#nextId;
    this.#nextId += 2n;
    const { promise, resolve } = Promise.withResolvers<readonly Outcome[]>();
    this.#initiated.set(id, {
      pairs,
      sentMs: this.#host.clock.nowMs(),
      finish: resolve,
      cancelTimeout: this.#deadline(() => this.#fail(id, 'AUTH_TIMEOUT')),
      answered: false,
    });
    const message = ProvePairs.encode({
      exchange: id,
      authType: AUTH_TYPE_CODE.spiffe,
      pairs: pairs.map(({ local, remote }) => ({ localIdentity: local, remoteIdentity: remote })),
    });
    this.#channel.send(FrameType.FRAME_TYPE_PROVE_PAIRS, message.finish());
    return promise;
  }

  closed(): void {
    for (const id of [...this.#initiated.keys()]) this.#fail(id, 'PEER_CHANNEL_CLOSED');
    for (const id of [...this.#responded.keys()]) this.#confirm(id, (outcomes) => outcomes.map(() => false));
  }

  /** Responder. @throws on a malformed body. */
  onPairs(body: Buffer) {
    const message = ProvePairs.decode(body);
    const id = message.exchange;
    if (message.pairs.length > MAX_PAIRS) throw new RangeError('too many pairs');
    const isTheirs = id % 2n === (this.#channel.role === 'client' ? 0n : 1n);
    const isInTurn = isTheirs && id > this.#lastTheirs && message.pairs.length > 0;
    if (!isInTurn || message.authType !== AUTH_TYPE_CODE.spiffe) return this.#channel.close('PEER_FRAME_UNEXPECTED');
    this.#lastTheirs = id;
    const pairs = message.pairs.map(({ localIdentity, remoteIdentity }) => ({
      local: securityIdentity(remoteIdentity),
      remote: securityIdentity(localIdentity),
    }));
    if (this.#responded.size >= MAX_OPEN) {
      return this.#reply(
        id,
        pairs.map(() => err('AUTH_QUEUE_FULL')),
      );
    }
    const batch: Responded = {
      pairs,
      outcomes: undefined,
      cancelTimeout: this.#deadline(() => this.#confirm(id, (outcomes) => outcomes.map(() => false))),
    };
    this.#responded.set(id, batch);
    this.#whenSettled(pairs, () => {
      if (this.#responded.get(id) !== batch) return;
      batch.outcomes = this.#write(pairs, (pair) => this.#judge(pair, id));
      this.#reply(id, batch.outcomes);
    });
  }

  /** Either way. An unknown number, or one past its turn, changes nothing. @throws on a malformed body. */
  onResult(body: Buffer) {
    const message = PairsResult.decode(body);
    const id = message.exchange;
    const answered = this.#responded.get(id);
    if (answered !== undefined) {
      const isWhole = answered.outcomes !== undefined && message.verdicts.length === answered.pairs.length;
      if (!isWhole) return this.#channel.close('PEER_FRAME_UNEXPECTED');
      return this.#confirm(id, () => message.verdicts.map((verdict) => verdict.ok));
    }
    const batch = this.#initiated.get(id);
    if (batch === undefined || batch.answered) return;
    if (message.verdicts.length !== batch.pairs.length) return this.#channel.close('PEER_FRAME_UNEXPECTED');
    batch.answered = true;
    this.#whenSettled(batch.pairs, () => {
      if (this.#initiated.get(id) !== batch) return;
      const outcomes = this.#write(batch.pairs, (pair, i) => this.#conclude(pair, id, batch, message.verdicts[i]!));
      this.#reply(id, outcomes);
      this.#end(id, outcomes);
    });
  }

  /** Responder: as for one pair. Nothing is said of own workloads to who has not proved the other one. */
  #judge(pair: Pair, id: bigint): Result<ProvenPair, ReasonCode> {
    const remoteProof = this.#proofs.standing(pair.remote);
    if (remoteProof === undefined) return err('AUTH_EXPIRED');
    if (!this.#host.authTypesOf(pair.local, pair.remote).includes('spiffe')) return err('AUTH_NOT_REQUIRED');
    if (!this.#host.hosts(pair.local)) return err('AUTH_NOT_VOUCHED');
    const own = this.#host.own(pair.local);
    if (!own.ok) return own;
    if (!this.#proofs.isShown(own.value)) return err('AUTH_EXPIRED');
    const correlation = this.#correlation(id);
    return ok({ ...pair, own: own.value, remoteProof, initiated: false, correlation, peerUntilMs: undefined });
  }

  #conclude(
    pair: Pair,
    id: bigint,
    { sentMs }: Initiated,
    verdict: { readonly ok: boolean; readonly reason: string; readonly validMs: bigint },
  ): Result<ProvenPair, ReasonCode> {
    const reason = reasonOf(verdict);
    // What stands here does not stand there: next time it is asked for.
    if (reason === 'AUTH_EXPIRED') this.#proofs.forget(pair.remote);
    if (reason !== undefined) return err(reason);
    const remoteProof = this.#proofs.standing(pair.remote);
    if (remoteProof === undefined) return err('AUTH_EXPIRED');
    const own = this.#host.own(pair.local);
    if (!own.ok) return own;
    if (!this.#host.hosts(pair.local)) return err('AUTH_NOT_VOUCHED');
    if (!this.#proofs.isShown(own.value)) return err('AUTH_EXPIRED');
    // Counted from before the peer can have written: never later than its end.
    const peerUntilMs = sentMs + Number(verdict.validMs);
    const correlation = this.#correlation(id);
    return ok({ ...pair, own: own.value, remoteProof, initiated: true, correlation, peerUntilMs });
  }

  /** Those that are proven, in one call. */
  #write(pairs: readonly Pair[], judge: (pair: Pair, i: number) => Result<ProvenPair, ReasonCode>): Outcome[] {
    const verdicts = pairs.map(judge);
    const records = this.#host.write(verdicts.flatMap((verdict) => (verdict.ok ? [verdict.value] : [])));
    let next = 0;
    return verdicts.map((verdict) => (verdict.ok ? ok(records[next++]!) : verdict));
  }

  #whenSettled(pairs: readonly Pair[], next: () => void): void {
    const remotes = new Set(pairs.map(({ remote }) => remote));
    const pending = [...remotes].flatMap((remote) => this.#host.settled(remote) ?? []);
    if (pending.length === 0) next();
    else void Promise.all(pending).then(next, next);
  }

  #reply(id: bigint, outcomes: readonly Outcome[]): void {
    const verdicts = outcomes.map((outcome) =>
      outcome.ok
        ? { ok: true, reason: '', validMs: lifeLeftMs(outcome.value, this.#host.clock) }
        : { ok: false, reason: outcome.error, validMs: 0n },
    );
    this.#channel.send(FrameType.FRAME_TYPE_PAIRS_RESULT, PairsResult.encode({ exchange: id, verdicts }).finish());
  }

  /** Responder: without the initiator's yes, what was written for it goes again. */
  #confirm(id: bigint, isYes: (outcomes: readonly Outcome[]) => readonly boolean[]): void {
    const batch = this.#responded.get(id);
    if (batch === undefined) return;
    this.#responded.delete(id);
    batch.cancelTimeout();
    const outcomes = batch.outcomes ?? [];
    const confirmed = isYes(outcomes);
    const unwanted: AuthRecord[] = [];
    outcomes.forEach((outcome, i) => {
      const isLost = outcome.ok && confirmed[i] !== true;
      if (isLost) unwanted.push(outcome.value);
      this.#host.answered(batch.pairs[i]!, this.#correlation(id), isLost ? err('AUTH_REFUSED') : outcome);
    });
    if (unwanted.length > 0) this.#host.erase(unwanted, 'AUTH_REFUSED');
  }

  #fail(id: bigint, reason: ReasonCode): void {
    const batch = this.#initiated.get(id);
    if (batch === undefined) return;
    const outcomes = batch.pairs.map(() => err(reason));
    // The peer deletes what it may have written.
    this.#reply(id, outcomes);
    this.#end(id, outcomes);
  }

  #end(id: bigint, outcomes: readonly Outcome[]): void {
    const batch = this.#initiated.get(id);
    if (batch === undefined) return;
    this.#initiated.delete(id);
    batch.cancelTimeout();
    batch.finish(outcomes);
  }

  #deadline(fn: () => void): () => void {
    return this.#host.timers.set(this.#host.settings.authTimeoutMs, fn);
  }

  #correlation(id: bigint): string {
    return `${this.#channel.id}/pairs-${id}`;
  }
}
