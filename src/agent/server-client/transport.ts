/**
 * How this node reaches the identity server: TLS 1.3, the server proven by its SPIFFE ID and the trust bundle, never by a
 * name or by being first (there is no trust on first use), and gRPC on top.
 */
import type { Socket } from 'node:net';
import { connect, createSecureContext, type TLSSocket } from 'node:tls';
import { type CallCredentials, ChannelCredentials, credentials, Metadata, type ServiceError } from '@grpc/grpc-js';
import { IdentityServerClient } from '../../../proto/gen/countersign/server/v1/server.ts';
import type { Clock } from '../../base/clock.ts';
import { CountersignError, type ErrorCode, err, ok, type Result } from '../../base/errors.ts';
import { errorCodeOfGrpcStatus } from '../../base/exit-codes.ts';
import { type ReasonCode, reasonCodes } from '../../base/registry/reason-codes.ts';
import { systemTimers } from '../../base/timers.ts';
import type { RevocationSubject, Svid, TrustBundle } from '../../model/identity.ts';
import { serverSpiffeId } from '../../model/spiffe-id.ts';
import { privateKeyPem } from '../../pki/keys.ts';
import { encodePem } from '../../pki/pem.ts';
import { presentedChain } from '../../pki/presented-chain.ts';
import { verifyX509Svid } from '../../pki/verify.ts';
import { targetOf } from './addresses.ts';

const HANDSHAKE_MS = 5_000;
const MAX_MESSAGE_BYTES = 64 << 20;
const KEEPALIVE_MS = 5_000;

/** A refusal by or of the server. `reason` is there when it is one of ours. */
export class ServerError extends CountersignError {
  readonly reason: ReasonCode | undefined;

  constructor(code: ErrorCode, reason: ReasonCode | undefined, message: string, cause?: unknown) {
    super(code, message, cause === undefined ? undefined : { cause });
    this.name = 'ServerError';
    this.reason = reason;
  }
}

export interface ConnectionOptions {
  /** "IP:port" or "[IPv6]:port". Of several servers the first that takes the connection is used: only their leader does. */
  readonly addresses: readonly string[];
  readonly bundle: TrustBundle;
  /** Undefined to attest: then this side is nobody. */
  readonly svid: Svid | undefined;
  readonly clock: Clock;
  /** Asked of the server's certificate. Left out: nothing is known of revocations yet. */
  readonly isRevoked?: (subject: RevocationSubject) => boolean;
}

/** One gRPC client over at most one connection at a time. */
export class Connection {
  readonly rpc: IdentityServerClient;
  readonly #address: string;
  readonly #credentials: PinnedCredentials;

  constructor(options: ConnectionOptions) {
    this.#address = options.addresses.join(', ');
    this.#credentials = new PinnedCredentials(options);
    this.rpc = new IdentityServerClient(targetOf(options.addresses), this.#credentials, {
      'grpc.use_local_subchannel_pool': 1,
      'grpc.enable_http_proxy': 0,
      'grpc.service_config_disable_resolution': 1,
      'grpc.enable_retries': 0,
      'grpc.enable_channelz': 0,
      'grpc.max_receive_message_length': MAX_MESSAGE_BYTES,
      'grpc.keepalive_time_ms': KEEPALIVE_MS,
      'grpc.keepalive_timeout_ms': KEEPALIVE_MS,
      // the server proves a SPIFFE ID, whatever it is called
      'grpc.default_authority': 'countersign',
    });
  }

  /** A gRPC error as what it means here. */
  errorOf(thrown: unknown): ServerError {
    const refused = this.#credentials.refusal;
    if (refused !== undefined) {
      const message = `the server at ${this.#address} is not the identity server of this trust domain: ${refused}: ${reasonCodes[refused]}; check server.addresses and server.bundleFile`;
      return new ServerError('unauthenticated', refused, message, thrown);
    }
    const { code, details } = thrown as Partial<ServiceError>;
    const reason = reasonIn(details ?? '');
    const message = `identity server at ${this.#address}: ${details ?? String(thrown)}`;
    return new ServerError(code === undefined ? 'internal' : errorCodeOfGrpcStatus(code), reason, message, thrown);
  }

  /** Would the server that was proven last be taken for the identity server now? Before there is one: yes. */
  stands(bundle: TrustBundle): boolean {
    return this.#credentials.stands(bundle);
  }

  /** A call with one answer. @throws ServerError */
  async unary<Request, Response>(
    method: 'issue' | 'issueJwt' | 'renew' | 'putCheckpoint',
    request: Request,
    timeoutMs: number,
  ): Promise<Response> {
    type Unary = (
      request: Request,
      metadata: object,
      options: { deadline: number },
      done: (error: ServiceError | null, response: Response) => void,
    ) => void;
    return new Promise<Response>((resolve, reject) => {
      (this.rpc[method] as unknown as Unary).call(
        this.rpc,
        request,
        new Metadata(),
        { deadline: Date.now() + timeoutMs },
        (error, response) => (error === null ? resolve(response) : reject(this.errorOf(error))),
      );
    });
  }

  close(): void {
    this.rpc.close();
  }
}

/** The server begins its messages with a reason code. */
export function reasonIn(text: string): ReasonCode | undefined {
  const code = /^([A-Z][A-Z0-9_]*): /.exec(text)?.[1];
  return code !== undefined && Object.hasOwn(reasonCodes, code) ? (code as ReasonCode) : undefined;
}

type SecureConnector = ReturnType<ChannelCredentials['_createSecureConnector']>;

/** gRPC gives the TCP connection, this makes it one to the proven server or fails. */
export class PinnedCredentials extends ChannelCredentials {
  /** Why the last server was not taken for the identity server. */
  refusal: ReasonCode | undefined;
  /** What the last server showed. */
  #shown: readonly Buffer[] | undefined;
  readonly #options: Omit<ConnectionOptions, 'addresses'>;

  constructor(options: Omit<ConnectionOptions, 'addresses'>) {
    super();
    this.#options = options;
  }

  override _isSecure(): boolean {
    return true;
  }

  override _equals(other: ChannelCredentials): boolean {
    return this === other;
  }

  override _createSecureConnector(
    _target: unknown,
    _options: unknown,
    callCredentials?: CallCredentials,
  ): SecureConnector {
    return {
      connect: async (socket) => ({ socket: await this.#handshake(socket), secure: true }),
      waitForReady: async () => {},
      getCallCredentials: () => callCredentials ?? credentials.createEmpty(),
      destroy() {},
    };
  }

  #handshake(raw: Socket): Promise<TLSSocket> {
    const { svid } = this.#options;
    const identity =
      svid === undefined
        ? {}
        : {
            key: privateKeyPem(svid.privateKey),
            cert: svid.chain.map((der) => encodePem('CERTIFICATE', der)).join(''),
          };
    return new Promise((resolve, reject) => {
      const socket = connect({
        socket: raw,
        secureContext: createSecureContext({
          ...identity,
          ca: [],
          minVersion: 'TLSv1.3',
          maxVersion: 'TLSv1.3',
          ecdhCurve: 'X25519MLKEM768',
        }),
        ALPNProtocols: ['h2'],
        // OpenSSL's verdict is not ours: TLS still proves possession of the leaf's key, the chain is judged below
        rejectUnauthorized: false,
      });
      const fail = (error: Error) => {
        cancel();
        socket.destroy();
        reject(error);
      };
      // tls.connect has no deadline of its own
      const cancel = systemTimers.set(HANDSHAKE_MS, () => fail(new Error(reasonCodes.PEER_HANDSHAKE_TIMEOUT)));
      socket.on('error', fail);
      socket.once('close', () => fail(new Error(reasonCodes.PEER_HANDSHAKE_FAILED)));
      socket.once('secureConnect', () => {
        const proven = this.#prove(socket);
        this.refusal = proven.ok ? undefined : proven.error;
        if (!proven.ok) return fail(new Error(`${proven.error}: ${reasonCodes[proven.error]}`));
        cancel();
        resolve(socket);
      });
    });
  }

  stands(bundle: TrustBundle): boolean {
    return this.#shown === undefined || this.#judge(this.#shown, bundle).ok;
  }

  #prove(socket: TLSSocket): Result<void, ReasonCode> {
    // 1. TLS 1.3, a full handshake, HTTP/2.
    if (socket.getProtocol() !== 'TLSv1.3') return err('PEER_HANDSHAKE_FAILED');
    if (socket.isSessionReused()) return err('PEER_RESUMPTION_REFUSED');
    if (socket.alpnProtocol !== 'h2') return err('PEER_ALPN_MISMATCH');
    this.#shown = presentedChain(socket);
    return this.#judge(this.#shown, this.#options.bundle);
  }

  #judge(chain: readonly Buffer[], bundle: TrustBundle): Result<void, ReasonCode> {
    const { clock, isRevoked } = this.#options;
    // 2. The chain ends in the bundle.
    const verified = verifyX509Svid(chain, bundle, clock.nowMs());
    if (!verified.ok) return verified;
    const { spiffeId, leaf, authorities } = verified.value;
    // 3. It is the identity server's, not a node's or a workload's.
    if (spiffeId !== serverSpiffeId(bundle.trustDomain)) return err('AUTH_WRONG_SPIFFE_ID');
    // 4. It was not taken back, nor a key above it that signed.
    const { serial, notBeforeMs } = leaf;
    const subject = { spiffeId, serial, node: undefined, notBeforeMs, authorities };
    return isRevoked?.(subject) === true ? err('AUTH_REVOKED') : ok(undefined);
  }
}
