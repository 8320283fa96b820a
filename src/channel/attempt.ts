/** A connection on its way to be a channel: TCP, TLS, the node's certificate, both hellos, all under one deadline. */
import type { Socket } from 'node:net';
import type { TLSSocket } from 'node:tls';
import { Close, FrameType } from '../../proto/gen/countersign/peer/v1/peer.ts';
import type { Clock } from '../base/clock.ts';
import { err, type Result } from '../base/errors.ts';
import type { ReasonCode } from '../base/registry/reason-codes.ts';
import type { NodeInfo, Svid } from '../model/identity.ts';
import type { SpiffeId } from '../model/ids.ts';
import { presentedChain } from '../pki/presented-chain.ts';
import { Connection, type ConnectionHost, endSocket } from './connection.ts';
import { encodeFrame } from './frame.ts';
import type { ChannelLimits } from './limits.ts';
import type { NodeVerifier, ProvenNode } from './node-verifier.ts';
import type { ChannelRole } from './peer-channel.ts';
import type { RefusalLog } from './refusals.ts';
import { checkConnection, reasonOfError } from './tls.ts';

export interface NodeSelf {
  readonly info: NodeInfo;
  readonly svid: Svid;
}

/** What every attempt of a node shares. */
export interface AttemptContext {
  self(): NodeSelf;
  readonly limits: ChannelLimits;
  readonly clock: Clock;
  readonly verifier: NodeVerifier;
  readonly refusals: RefusalLog;
  readonly host: ConnectionHost;
  /** TLS groups. */
  readonly groups: string;
}

export interface AttemptParts {
  readonly role: ChannelRole;
  /** What is destroyed when time is up: the TCP socket that was accepted, or the TLS socket that dials. */
  readonly socket: Socket;
  readonly remote: { readonly address: string; readonly port: number };
  /** As presented in this handshake. */
  readonly self: NodeSelf;
  /** When dialing: the node dialed, and the channel to replace if this is a redial. */
  readonly expected?: NodeInfo;
  readonly succeeds?: Connection | undefined;
  /** Exactly once. undefined: the channel is open. `proven`: it failed after the peer had shown who it is. */
  done(reason: ReasonCode | undefined, proven: boolean): void;
}

/** over: there is a verdict, nothing is awaited any more. */
type Stage = 'connect' | 'handshake' | 'hello' | 'over';

const TIMEOUT: Readonly<Record<Exclude<Stage, 'over'>, ReasonCode>> = {
  connect: 'PEER_UNREACHABLE',
  handshake: 'PEER_HANDSHAKE_TIMEOUT',
  hello: 'PEER_HELLO_TIMEOUT',
};

/** Refusals that only the proven holder of a listed node's key can meet (NodeVerifier, from step 4 on). */
const TOLD: ReadonlySet<ReasonCode> = new Set(['PEER_CERTIFICATE_REJECTED', 'AUTH_REVOKED', 'PEER_INCARNATION_BARRED']);

let channels = 0;

export class Attempt {
  readonly #context: AttemptContext;
  readonly #parts: AttemptParts;
  #stage: Stage;
  #timer: NodeJS.Timeout;
  #connection: Connection | undefined;

  constructor(context: AttemptContext, parts: AttemptParts) {
    this.#context = context;
    this.#parts = parts;
    const { connectMs, handshakeMs } = context.limits;
    const dialing = parts.role === 'client';
    this.#stage = dialing ? 'connect' : 'handshake';
    this.#timer = setTimeout(() => this.#expire(), dialing ? connectMs : handshakeMs);
    parts.socket.on('error', (error) => this.broken(error));
    parts.socket.on('close', () => this.broken(undefined));
  }

  /** TCP stands; the deadline of the handshake begins. */
  connected(): void {
    if (this.#stage !== 'connect') return;
    this.#stage = 'handshake';
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#expire(), this.#context.limits.handshakeMs);
  }

  /** TLS stands: who is it? */
  secured(socket: TLSSocket): void {
    if (this.#stage !== 'handshake') {
      socket.destroy();
      return;
    }
    const proven = this.#judge(socket);
    if (!proven.ok) {
      // A listed node is told why it is refused. A stranger gets no octet: it has seen a certificate, and that is all.
      const { error: reason } = proven;
      const farewell = TOLD.has(reason)
        ? encodeFrame(FrameType.FRAME_TYPE_CLOSE, Close.encode({ reason }).finish())
        : undefined;
      endSocket(socket, farewell, this.#context.limits.lingerMs);
      this.#fail(proven.error);
      return;
    }
    const { role, remote, self, succeeds } = this.#parts;
    const { limits, clock, host } = this.#context;
    this.#stage = 'hello';
    this.#connection = new Connection({
      id: `${role === 'client' ? 'out' : 'in'}-${++channels}`,
      socket,
      role,
      remote,
      self: self.info,
      selfValidUntilMs: self.svid.notAfterMs,
      peer: proven.value,
      succeeds,
      limits,
      clock,
      host,
      settled: (reason) => this.#over(reason, true),
    });
    this.#connection.greet();
  }

  broken(error: Error | undefined): void {
    // From hello on the connection tells its own end.
    if (this.#stage === 'hello' || this.#stage === 'over') return;
    this.#parts.socket.destroy();
    this.#fail(this.#stage === 'connect' ? 'PEER_UNREACHABLE' : reasonOfError(error));
  }

  /** The node is shutting down. */
  abandon(): void {
    this.#stop('PEER_SHUTDOWN');
  }

  /** Nothing a peer presents may bring the agent down: what the parsers did not foresee is a refusal too. */
  #judge(socket: TLSSocket): Result<ProvenNode, ReasonCode> {
    try {
      const sound = checkConnection(socket);
      if (!sound.ok) return sound;
      const expected: SpiffeId | undefined = this.#parts.expected?.spiffeId;
      return this.#context.verifier.verify(presentedChain(socket), expected);
    } catch {
      return err('CERT_MALFORMED');
    }
  }

  #expire(): void {
    if (this.#stage !== 'over') this.#stop(TIMEOUT[this.#stage]);
  }

  #stop(reason: ReasonCode): void {
    if (this.#stage === 'over') return;
    if (this.#connection !== undefined) {
      this.#connection.close(reason);
      return;
    }
    this.#parts.socket.destroy();
    this.#fail(reason);
  }

  #fail(reason: ReasonCode): void {
    const { role, remote, expected } = this.#parts;
    const peer = { ...remote, ...(expected === undefined ? {} : { spiffeId: expected.spiffeId, node: expected.name }) };
    this.#over(reason, false);
    this.#context.refusals.refused(
      reason,
      remote.address,
      role === 'client' ? { destination: peer } : { source: peer },
    );
  }

  #over(reason: ReasonCode | undefined, proven: boolean): void {
    if (this.#stage === 'over') return;
    this.#stage = 'over';
    clearTimeout(this.#timer);
    this.#parts.done(reason, proven);
  }
}
