/** Calls to the agent or the server over its admin socket. A refusal becomes a CountersignError with the code it stands for. */
import { existsSync } from 'node:fs';
import { type ChannelCredentials, credentials, type ServiceError } from '@grpc/grpc-js';
import {
  AgentAdminClient,
  BundleAdminClient,
  CaAdminClient,
  ServerAdminClient,
} from '../../proto/gen/countersign/admin/v1/admin.ts';
import { CountersignError } from '../base/errors.ts';
import { errorCodeOfGrpcStatus } from '../base/exit-codes.ts';

export const AGENT_SOCKET = '/run/countersign/agent-admin.sock';
export const SERVER_SOCKET = '/run/countersign/server-admin.sock';

const OPTIONS = { 'grpc.enable_http_proxy': 0, 'grpc.max_receive_message_length': 256 << 20 };

function checkSocket(path: string, whose: string): void {
  if (!existsSync(path)) throw new CountersignError('unavailable', nobodyListens(path, whose));
}

function nobodyListens(path: string, whose: string): string {
  return `no ${whose} listens on ${path}: start it, or name its socket with --socket`;
}

export function agentClient(socket: string): AgentAdminClient {
  checkSocket(socket, 'agent');
  return new AgentAdminClient(`unix:${socket}`, credentials.createInsecure(), OPTIONS);
}

/** Another machine's identity server, over TLS. */
export interface RemoteServer {
  /** Of gRPC. */
  readonly target: string;
  readonly credentials: ChannelCredentials;
}

/** Whom to ask: the server whose socket it is, or a remote one. */
export interface ServerDoor {
  readonly socket: string;
  readonly remote?: RemoteServer;
}

type ClientOf<T> = new (target: string, credentials: ChannelCredentials, options: object) => T;

function clientOf<T>(make: ClientOf<T>, { socket, remote }: ServerDoor): T {
  if (remote !== undefined) {
    // the server proves a SPIFFE ID, whatever it is called
    return new make(remote.target, remote.credentials, {
      ...OPTIONS,
      'grpc.default_authority': 'countersign',
    });
  }
  checkSocket(socket, 'identity server');
  return new make(`unix:${socket}`, credentials.createInsecure(), OPTIONS);
}

export function serverClient(door: ServerDoor): ServerAdminClient {
  return clientOf(ServerAdminClient, door);
}

export function bundleClient(door: ServerDoor): BundleAdminClient {
  return clientOf(BundleAdminClient, door);
}

export function caClient(door: ServerDoor): CaAdminClient {
  return clientOf(CaAdminClient, door);
}

export type Done<R> = (error: ServiceError | null, reply: R) => void;

/** One unary call, then the client is closed. */
export async function call<R>(client: { close(): void }, ask: (done: Done<R>) => unknown): Promise<R> {
  try {
    return await new Promise<R>((resolve, reject) => {
      ask((error, reply) => (error === null ? resolve(reply) : reject(fromGrpc(error))));
    });
  } finally {
    client.close();
  }
}

export function fromGrpc(error: ServiceError): CountersignError {
  // The socket outlives a process that was killed. What an agent says of others that refuse it names no path.
  const refused = /ECONNREFUSED (\/\S+?)\.?(?:\s|$)/.exec(error.details)?.[1];
  if (refused !== undefined)
    return new CountersignError('unavailable', nobodyListens(refused, 'agent or identity server'), { cause: error });
  const closed = /EACCES (\/\S+?)\.?(?:\s|$)/.exec(error.details)?.[1];
  if (closed !== undefined) {
    const message = `${closed}: only the user that it runs as may ask there; ask as that user or as root`;
    return new CountersignError('permission-denied', message, { cause: error });
  }
  return new CountersignError(errorCodeOfGrpcStatus(error.code), error.details || error.message, { cause: error });
}
