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
  type Flow,
  FrameType,
  ProveChallenge,
  ProveProof,
  ProveRequest,
  ProveResult,
} from '../../proto/gen/countersign/peer/v1/peer.ts';
import { err, ok, type Result } from '../base/errors.ts';
import { type ReasonCode, reasonCodes } from '../base/registry/reason-codes.ts';
import type { PeerChannel } from '../channel/peer-channel.ts';
import { addressFromBytes, addressWireBytes } from '../model/address.ts';
import { AUTH_TYPE_CODE, type FlowTuple } from '../model/datapath.ts';
import { type SecurityIdentity, securityIdentity } from '../model/ids.ts';
import type { AuthRecord } from './auth-entries.ts';
import type { ChannelProofs } from './channel-proofs.ts';
import { type ExchangeHost, lifeLeftMs, type Outcome, type Pair, type ProvenPair } from './exchange-host.ts';
import { flowText } from './flow-proofs.ts';
import type { Proof } from './verify-proof.ts';

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
  /** Begun again, because a proof that stood here did not stand there. */
  readonly again: boolean;
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

export class Exchanges {
  readonly #channel: PeerChannel;
  readonly #host: ExchangeHost;
  readonly #proofs: ChannelProofs;
  readonly #initiated = new Map<bigint, Initiated>();
  readonly #responded = new Map<bigint, Responded>();
  /** Odd for the TLS client, even for the server: one number names one exchange, whoever began it. */
  #nextId: bigint;
  #lastTheirs = 0n;

  constructor(channel: PeerChannel, host: ExchangeHost, proofs: ChannelProofs) {
    this.#channel = channel;
    this.#host = host;
    this.#proofs = proofs;
    this.#nextId = channel.role === 'client' ? 1n : 2n;
  }

  /** Proves the pair to the peer and the peer's to this node. Resolves when both entries are written, or with why not. */
  prove(pair: Pair): Promise<Outcome> {
    const { promise, resolve } = Promise.withResolvers<Outcome>();
    this.#begin(pair, resolve, false);
    return promise;
  }

  closed() {
    for (const id of [...this.#initiated.keys()]) this.#endInitiated(id, err('PEER_CHANNEL_CLOSED'));
    for (const id of [...this.#responded.keys()]) this.#endResponded(id, err('PEER_CHANNEL_CLOSED'));
  }

  #begin(pair: Pair, finish: Finish, again: boolean) {
    for (const exchange of this.#responded.values()) {
      if (isSame(exchange.pair, pair)) return void exchange.riders.push(finish);
    }
    const own = this.#host.own(pair.local);
    if (!own.ok) return finish(own);
    const epoch = this.#host.epoch();
    const { flow } = pair;
    const request = this.#proofs.ask(pair.remote, flow !== undefined);
    if (!request.ok) return finish(request);
    const id = this.#nextId;
    this.#nextId += 2n;
    this.#initiated.set(id, {
      pair,
      request: request.value,
      epoch,
      state: 'asked',
      proofSentMs: 0,
      finish,
      again,
      cancelTimeout: this.#deadline(() => this.#giveUp(id, 'AUTH_TIMEOUT')),
    });
    this.#send(
      FrameType.FRAME_TYPE_PROVE_REQUEST,
      ProveRequest.encode({
        exchange: id,
        localIdentity: pair.local,
        remoteIdentity: pair.remote,
        authType: AUTH_TYPE_CODE[typeOf(pair)],
        authenticatorRequest: request.value ?? NONE,
        flow: flow === undefined ? undefined : flowMessage(flow),
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
    const flow = message.flow === undefined ? undefined : this.#flowOf(message.flow);
    const identities = {
      local: securityIdentity(message.remoteIdentity),
      remote: securityIdentity(message.localIdentity),
    };
    const pair: Pair = flow === undefined ? identities : { ...identities, flow };
    const theirRequest = message.authenticatorRequest;
    if (theirRequest.length > 0) {
      const admitted = this.#proofs.admit(theirRequest);
      if (!admitted.ok) return this.#sayNo(id, admitted.error);
    }
    const isFresh = flow === undefined || theirRequest.length > 0;
    if (message.authType !== AUTH_TYPE_CODE[typeOf(pair)] || !isFresh) return this.#sayNo(id, 'AUTH_BAD_REQUEST');
    if (this.#responded.size >= this.#host.settings.queueSize) return this.#sayNo(id, 'AUTH_QUEUE_FULL');

    const riders: Finish[] = [];
    for (const [ownId, exchange] of this.#initiated) {
      if (!isSame(exchange.pair, pair)) continue;
      // Both began at once: the client's goes on. The client does not answer; the server's own rides on the client's.
      if (this.#channel.role === 'client') return;
      this.#takeInitiated(ownId);
      riders.push(exchange.finish);
    }
    const certificate = message.localCertificate;
    if (certificate.length > 0) this.#proofs.expect(pair.remote, certificate.toString('hex'));
    const epoch = this.#host.epoch();
    const request = this.#proofs.ask(pair.remote, flow !== undefined);
    if (!request.ok) {
      for (const finish of riders) finish(request);
      return this.#sayNo(id, request.error);
    }
    this.#responded.set(id, {
      pair,
      theirRequest: Buffer.from(theirRequest),
      request: request.value,
      epoch,
      state: 'challenged',
      record: undefined,
      riders,
      cancelTimeout: this.#deadline(() => this.#endResponded(id, err('AUTH_TIMEOUT'))),
    });
    this.#send(
      FrameType.FRAME_TYPE_PROVE_CHALLENGE,
      ProveChallenge.encode({ exchange: id, authenticatorRequest: request.value ?? NONE }),
    );
  }

  /** Initiator, message 2. An unknown number, or one past its turn, changes nothing. @throws on a malformed body. */
  onChallenge(body: Buffer) {
    const message = ProveChallenge.decode(body);
    const exchange = this.#initiated.get(message.exchange);
    if (exchange?.state !== 'asked') return;
    let authenticator: Buffer = NONE;
    if (message.authenticatorRequest.length > 0) {
      const admitted = this.#proofs.admit(message.authenticatorRequest);
      if (!admitted.ok) return this.#giveUp(message.exchange, admitted.error);
      const answer = this.#proofs.answer(exchange.pair.local, message.authenticatorRequest);
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
    if (reason === 'AUTH_EXPIRED' && exchange.request === undefined && !exchange.again) {
      // What was proven to this node is no longer what the peer proves itself with: asked anew, once.
      this.#takeInitiated(message.exchange);
      this.#proofs.forget(exchange.pair.remote);
      return this.#begin(exchange.pair, exchange.finish, true);
    }
    if (reason !== undefined) return this.#endInitiated(message.exchange, err(reason));
    if (exchange.state !== 'proved') return this.#channel.close('PEER_FRAME_UNEXPECTED');
    exchange.state = 'verifying';
    this.#whenSettled(exchange.pair.remote, () => {
      if (this.#initiated.get(message.exchange) === exchange) this.#conclude(message.exchange, exchange, message);
    });
  }

  #judge(id: bigint, exchange: Responded, authenticator: Buffer) {
    const { pair } = exchange;
    const proof = this.#take(pair, exchange, authenticator);
    if (!proof.ok) return this.#refuse(id, proof.error);
    // From here on the initiator has proved itself: it may learn what this node does and does not have.
    if (!this.#host.authTypesOf(pair.local, pair.remote).includes(typeOf(pair)))
      return this.#refuse(id, 'AUTH_NOT_REQUIRED');
    if (!this.#host.hosts(pair.local) || (pair.flow !== undefined && !this.#host.isFlowOf(pair)))
      return this.#refuse(id, 'AUTH_NOT_VOUCHED');
    let shown: Buffer = NONE;
    if (exchange.theirRequest.length > 0) {
      const answer = this.#proofs.answer(pair.local, exchange.theirRequest);
      if (!answer.ok) return this.#refuse(id, answer.error);
      shown = answer.value.authenticator;
      if (answer.value.refusal !== undefined) return this.#refuse(id, answer.value.refusal, shown);
    }
    const own = this.#host.own(pair.local);
    if (!own.ok) return this.#refuse(id, own.error);
    // The initiator relies on what was shown to it before: it must be what this node would show now.
    if (exchange.theirRequest.length === 0 && !this.#proofs.isShown(own.value)) return this.#refuse(id, 'AUTH_EXPIRED');
    const record = this.#write({
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
    const proof = this.#take(pair, exchange, message.authenticator);
    if (!proof.ok) return this.#giveUp(id, proof.error);
    const own = this.#host.own(pair.local);
    if (!own.ok) return this.#giveUp(id, own.error);
    if (!this.#host.hosts(pair.local)) return this.#giveUp(id, 'AUTH_NOT_VOUCHED');
    const record = this.#write({
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

  /** What a flow's authenticator proves, it proves for that flow. */
  #take(pair: Pair, { request, epoch }: Initiated | Responded, authenticator: Buffer): Result<Proof, ReasonCode> {
    return this.#proofs.take(pair.remote, request, epoch, authenticator, pair.flow === undefined);
  }

  /** As this side's endpoint sees it. @throws RangeError on what is no flow. */
  #flowOf({ localAddress, remoteAddress, protocol, localPort, remotePort }: Flow): FlowTuple {
    if (protocol > 0xff || localPort > 0xffff || remotePort > 0xffff) throw new RangeError('no flow');
    const near = addressFromBytes(remoteAddress);
    const far = addressFromBytes(localAddress);
    // Of an address that is not here it fits nobody, which is said once the initiator has proved itself.
    const endpoint = this.#host.endpointAt(near) ?? 0;
    return { endpoint, localAddress: near, remoteAddress: far, protocol, localPort: remotePort, remotePort: localPort };
  }

  #write(pair: ProvenPair): AuthRecord {
    return this.#host.write([pair])[0]!;
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
    if (exchange.request !== undefined) this.#proofs.cancel(exchange.request);
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
    if (exchange.request !== undefined) this.#proofs.cancel(exchange.request);
    if (!outcome.ok && exchange.record !== undefined)
      this.#host.erase([exchange.record], outcome.error, exchange.pair.flow);
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
    const validMs = lifeLeftMs(record, this.#host.clock);
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
  if (a.local !== b.local || a.remote !== b.remote) return false;
  if (a.flow === undefined || b.flow === undefined) return a.flow === b.flow;
  return flowText(a.flow) === flowText(b.flow);
}

/** undefined: ok. A code that this build does not know is a refusal all the same. */
export function reasonOf(message: { readonly ok: boolean; readonly reason: string }): ReasonCode | undefined {
  if (message.ok) return undefined;
  return Object.hasOwn(reasonCodes, message.reason) ? (message.reason as ReasonCode) : 'AUTH_REFUSED';
}

function typeOf({ flow }: Pair): 'spiffe' | 'spiffe-connection' {
  return flow === undefined ? 'spiffe' : 'spiffe-connection';
}

export function flowMessage({ localAddress, remoteAddress, protocol, localPort, remotePort }: FlowTuple): Flow {
  return {
    localAddress: addressWireBytes(localAddress),
    remoteAddress: addressWireBytes(remoteAddress),
    protocol,
    localPort,
    remotePort,
  };
}
