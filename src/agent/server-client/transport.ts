/** How this node reaches the identity server: gRPC over a connection to the proven server (src/pki/server-credentials.ts). */
import { Metadata, type ServiceError } from '@grpc/grpc-js';
import { IdentityServerClient } from '../../../proto/gen/countersign/server/v1/server.ts';
import { CountersignError, type ErrorCode } from '../../base/errors.ts';
import { errorCodeOfGrpcStatus } from '../../base/exit-codes.ts';
import { type ReasonCode, reasonCodes } from '../../base/registry/reason-codes.ts';
import { targetOf } from '../../base/server-target.ts';
import type { TrustBundle } from '../../model/identity.ts';
import { PinnedCredentials, type PinnedOptions } from '../../pki/server-credentials.ts';

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

export interface ConnectionOptions extends PinnedOptions {
  /** "IP:port" or "[IPv6]:port". Of several servers the first that takes the connection is used: only their leader does. */
  readonly addresses: readonly string[];
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
