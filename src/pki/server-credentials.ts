/**
 * gRPC's connection to an identity server: TLS 1.3, the server proven by its SPIFFE ID and the trust bundle, never by a
 * name or by being first (there is no trust on first use). For agents, the command line and servers below another.
 */
import type { Socket } from 'node:net';
import { connect, createSecureContext, type TLSSocket } from 'node:tls';
import { type CallCredentials, ChannelCredentials, credentials } from '@grpc/grpc-js';
import type { Clock } from '../base/clock.ts';
import { err, ok, type Result } from '../base/errors.ts';
import { type ReasonCode, reasonCodes } from '../base/registry/reason-codes.ts';
import { systemTimers } from '../base/timers.ts';
import type { RevocationSubject, Svid, TrustBundle } from '../model/identity.ts';
import { serverSpiffeId } from '../model/spiffe-id.ts';
import { privateKeyPem } from './keys.ts';
import { encodePem } from './pem.ts';
import { presentedChain } from './presented-chain.ts';
import { verifyX509Svid } from './verify.ts';

const HANDSHAKE_MS = 5_000;

export interface PinnedOptions {
  readonly bundle: TrustBundle;
  /** Undefined to attest: then this side is nobody. */
  readonly svid: Svid | undefined;
  readonly clock: Pick<Clock, 'nowMs'>;
  /** Asked of the server's certificate. Left out: nothing is known of revocations yet. */
  readonly isRevoked?: (subject: RevocationSubject) => boolean;
}

type SecureConnector = ReturnType<ChannelCredentials['_createSecureConnector']>;

/** gRPC gives the TCP connection, this makes it one to the proven server or fails. */
export class PinnedCredentials extends ChannelCredentials {
  /** Why the last server was not taken for the identity server. */
  refusal: ReasonCode | undefined;
  /** What the last server showed. */
  #shown: readonly Buffer[] | undefined;
  readonly #options: PinnedOptions;

  constructor(options: PinnedOptions) {
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
