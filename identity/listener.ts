/**
 * A door of the server: TCP to TLS 1.3 to a caller whose certificate chain was verified, or who is nobody, and only then
 * gRPC. Whatever goes wrong before that ends one connection and nothing else.
 */
import { constants } from 'node:crypto';
import { createServer, type Server, type Socket } from 'node:net';
import { createSecureContext, type SecureContext, TLSSocket } from 'node:tls';
import type { Clock } from '../src/base/clock.ts';
import { CountersignError, err, ok, type Result } from '../src/base/errors.ts';
import type { Logger } from '../src/base/log.ts';
import type { ReasonCode } from '../src/base/registry/reason-codes.ts';
import { systemTimers, type Timers } from '../src/base/timers.ts';
import type { AuditSink } from '../src/model/audit-event.ts';
import type { TrustBundle } from '../src/model/identity.ts';
import type { SpiffeId } from '../src/model/ids.ts';
import { privateKeyPem } from '../src/pki/keys.ts';
import { encodePem } from '../src/pki/pem.ts';
import { presentedChain } from '../src/pki/presented-chain.ts';
import { type VerifiedSvid, verifyX509Svid } from '../src/pki/verify.ts';
import type { ServerSvid } from './signer.ts';
import { Unproven } from './unproven.ts';

const HANDSHAKE_MS = 5_000;
/** Who shows no certificate came to attest; that does not take longer. */
const ANONYMOUS_MS = 30_000;

/** Connections of one SPIFFE ID. An agent has one, and for a moment two when its certificate is another. */
const MAX_PER_HOLDER = 64;

/** The other end of an accepted connection. */
export interface Caller {
  /** Unique in this process; what gRPC calls the peer. */
  readonly id: string;
  /** IP address. */
  readonly remote: string;
  /** undefined: no certificate was shown, or what was shown is refused. */
  readonly svid: VerifiedSvid | undefined;
  /** Why the certificate that was shown is refused: every call that needs one is told so, and may know by it what to do. */
  readonly refusal?: ReasonCode;
}

export interface ListenerOptions {
  /** Of the setting, for errors: "listen". */
  readonly field?: string;
  /** What the ids of its callers begin with. */
  readonly prefix?: string;
  readonly address: string;
  readonly port: number;
  readonly limits: { readonly connections: number; readonly handshakes: number };
  readonly bundle: () => TrustBundle;
  /** Is it one of the server's own authorities? By subject key identifier, lower-case hex. Left out: whatever the bundle vouches for is taken. */
  readonly isOwnKey?: (id: string) => boolean;
  readonly svid: () => ServerSvid;
  readonly clock: Clock;
  readonly timers?: Timers;
  readonly log: Logger;
  readonly audit: AuditSink;
  /** Takes the connection over. */
  readonly accept: (socket: TLSSocket) => void;
}

export class Listener {
  readonly #options: ListenerOptions;
  readonly #timers: Timers;
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();
  readonly #callers = new Map<string, Caller>();
  #context: { svid: ServerSvid; context: SecureContext } | undefined;
  /** Those before the end of their TLS handshake, and those who showed no certificate that verifies. */
  readonly #handshakes = new Unproven();
  readonly #anonymous = new Unproven();
  /** Connections of those who showed one that does, each ended by its function; the oldest first. */
  readonly #holders = new Map<SpiffeId, Set<() => void>>();
  #accepted = 0;

  constructor(options: ListenerOptions) {
    this.#options = options;
    this.#timers = options.timers ?? systemTimers;
    this.#server = createServer({ noDelay: true }, (socket) => this.#connected(socket));
  }

  /** The port it listens on. @throws CountersignError unavailable */
  async listen(): Promise<number> {
    const { field = 'listen', address, port } = this.#options;
    await new Promise<void>((resolve, reject) => {
      this.#server.once('error', (error: NodeJS.ErrnoException) => {
        const where = `${field}: ${address} port ${port}`;
        const message = `${where}: cannot listen (${error.code}); is another server running, is the address this host's?`;
        reject(new CountersignError('unavailable', message, { cause: error }));
      });
      this.#server.listen({ host: address, port }, resolve);
    });
    const bound = this.#server.address();
    return typeof bound === 'object' && bound !== null ? bound.port : port;
  }

  /** By gRPC's getPeer(); as of now, as the authorities of a chain may have left the bundle since it was shown. */
  caller(id: string): Caller | undefined {
    const caller = this.#callers.get(id);
    if (caller?.svid === undefined) return caller;
    const verified = this.#verify(caller.svid.chain.map((certificate) => certificate.der));
    return verified.ok ? { ...caller, svid: verified.value } : { ...caller, svid: undefined, refusal: verified.error };
  }

  get connections(): number {
    return this.#sockets.size;
  }

  close(): void {
    this.#server.close();
    for (const socket of this.#sockets) socket.destroy();
  }

  #connected(raw: Socket): void {
    const { limits } = this.#options;
    const remote = raw.remoteAddress ?? '';
    const isFull =
      (this.#handshakes.size >= limits.handshakes && !this.#handshakes.makeRoomFor(remote)) ||
      (this.#sockets.size >= limits.connections &&
        !this.#anonymous.makeRoomFor(remote) &&
        !this.#handshakes.makeRoomFor(remote));
    if (isFull) {
      raw.destroy();
      this.#refused(remote, 'PEER_TOO_MANY_CONNECTIONS');
      return;
    }
    this.#sockets.add(raw);
    raw.once('close', () => this.#sockets.delete(raw));
    const socket = new TLSSocket(raw, {
      isServer: true,
      secureContext: this.#secureContext(),
      requestCert: true,
      // OpenSSL's verdict is not ours: TLS still proves possession of the leaf's key, the chain is judged below
      rejectUnauthorized: false,
      ALPNProtocols: ['h2'],
    });
    let pending = true;
    const settle = () => {
      if (!pending) return;
      pending = false;
      leave();
      cancelDeadline();
    };
    const fail = (reason: ReasonCode) => {
      if (!pending) return;
      settle();
      this.#refused(remote, reason);
      this.#end(raw);
    };
    const leave = this.#handshakes.add(remote, () => fail('PEER_TOO_MANY_CONNECTIONS'));
    // node's own handshake timeout does not end the connection
    const cancelDeadline = this.#timers.set(HANDSHAKE_MS, () => fail('PEER_HANDSHAKE_TIMEOUT'));
    socket.on('error', () => fail('PEER_HANDSHAKE_FAILED'));
    socket.once('close', () => fail('PEER_HANDSHAKE_FAILED'));
    socket.once('secure', () => {
      const proven = this.#prove(socket);
      if (!proven.ok && !proven.error.startsWith('CERT_')) return fail(proven.error);
      settle();
      if (!proven.ok) this.#refused(remote, proven.error);
      this.#admit(raw, socket, remote, proven.ok ? proven.value : undefined, proven.ok ? undefined : proven.error);
    });
  }

  /** The named steps between a TLS handshake and the first byte of HTTP. */
  #prove(socket: TLSSocket): Result<VerifiedSvid | undefined, ReasonCode> {
    // 1. TLS 1.3, whatever the options say.
    if (socket.getProtocol() !== 'TLSv1.3') return err('PEER_HANDSHAKE_FAILED');
    // 2. A full handshake: a resumed session shows no certificate.
    if (socket.isSessionReused()) return err('PEER_RESUMPTION_REFUSED');
    // 3. HTTP/2 was agreed on; a client that offers nothing connects all the same.
    if (socket.alpnProtocol !== 'h2') return err('PEER_ALPN_MISMATCH');
    // 4. A certificate that is shown verifies. To show none is to be nobody, which is enough to attest. Who shows one that does not
    //    verify is nobody too, and told why: it may be a node that slept while the authorities changed.
    const chain = presentedChain(socket);
    if (chain.length === 0) return ok(undefined);
    return this.#verify(chain);
  }

  /** Other servers may issue SVIDs under the same root, above, below or beside; this one's nodes and administrators are its own to name. */
  #verify(chain: readonly Buffer[]): Result<VerifiedSvid, ReasonCode> {
    const { bundle, clock, isOwnKey } = this.#options;
    const verified = verifyX509Svid(chain, bundle(), clock.nowMs());
    if (!verified.ok || isOwnKey === undefined) return verified;
    const signer = verified.value.leaf.authorityKeyId?.toString('hex');
    return signer !== undefined && isOwnKey(signer) ? verified : err('CERT_DOWNSTREAM');
  }

  /** Its place is free at once, not only when the socket has closed. */
  #end(raw: Socket): void {
    this.#sockets.delete(raw);
    raw.destroy();
  }

  /** A holder of an SVID has a few connections; of one that wants all of them the oldest goes. Returns what gives the place back. */
  #hold(spiffeId: SpiffeId, giveWay: () => void): () => void {
    const held = this.#holders.get(spiffeId) ?? new Set();
    this.#holders.set(spiffeId, held.add(giveWay));
    const [oldest] = held;
    if (held.size > MAX_PER_HOLDER) oldest!();
    return () => {
      held.delete(giveWay);
      if (held.size === 0 && this.#holders.get(spiffeId) === held) this.#holders.delete(spiffeId);
    };
  }

  #admit(
    raw: Socket,
    socket: TLSSocket,
    remote: string,
    svid: VerifiedSvid | undefined,
    refusal: ReasonCode | undefined,
  ): void {
    const { clock, accept, prefix = 'connection' } = this.#options;
    this.#accepted += 1;
    const id = `${prefix}-${this.#accepted}`;
    this.#callers.set(id, { id, remote, svid, ...(refusal === undefined ? {} : { refusal }) });
    const lifeMs = svid === undefined ? ANONYMOUS_MS : svid.validUntilMs - clock.nowMs();
    const cancelEnd = this.#timers.set(lifeMs, () => socket.destroy());
    const giveWay = () => {
      leave();
      this.#refused(remote, 'PEER_TOO_MANY_CONNECTIONS');
      this.#end(raw);
    };
    const leave = svid === undefined ? this.#anonymous.add(remote, giveWay) : this.#hold(svid.spiffeId, giveWay);
    socket.once('close', () => {
      cancelEnd();
      leave();
      this.#callers.delete(id);
    });
    // gRPC tells handlers the remote address and nothing else of a connection: make it the caller's id
    Object.defineProperty(socket, 'remoteAddress', { value: id });
    Object.defineProperty(socket, 'remotePort', { value: undefined });
    // as tls.Server does with a socket it hands out; node:http2 would wait for it
    Object.assign(socket, { secureConnecting: false });
    accept(socket);
  }

  #secureContext(): SecureContext {
    const svid = this.#options.svid();
    if (this.#context?.svid !== svid) {
      const context = createSecureContext({
        key: privateKeyPem(svid.privateKey),
        cert: svid.chain.map((der) => encodePem('CERTIFICATE', der)).join(''),
        ca: [],
        minVersion: 'TLSv1.3',
        maxVersion: 'TLSv1.3',
        ecdhCurve: 'X25519MLKEM768',
        secureOptions: constants.SSL_OP_NO_TICKET,
      });
      this.#context = { svid, context };
    }
    return this.#context.context;
  }

  #refused(remote: string, reason: ReasonCode): void {
    const { log, audit } = this.#options;
    log.debug({ remote, reason }, 'connection refused');
    // a connection that never spoke TLS is noise; one that claimed to be somebody is an event
    if (reason.startsWith('CERT_')) audit.emit({ kind: 'peer.refused', reason, source: { address: remote } });
  }
}
