/** The administrator's door: gRPC on a unix socket that only the server's own user may open. */
import { chmodSync, existsSync, mkdirSync, rmSync } from 'node:fs';
import { connect, createServer } from 'node:net';
import { dirname } from 'node:path';
import { Server, ServerCredentials, type ServerInterceptor } from '@grpc/grpc-js';
import { CountersignError } from '../../src/base/errors.ts';
import type { AdminService } from './service.ts';

/** What gRPC's getPeer() says of a connection to the socket. */
export const UNIX_PEER = 'admin-socket';

/** @throws CountersignError if another server answers on the socket. */
export async function serveAdminSocket(
  path: string,
  services: readonly AdminService[],
  interceptors: readonly ServerInterceptor[] = [],
): Promise<() => void> {
  await clearSocket(path);
  const server = new Server({
    'grpc.max_receive_message_length': 1 << 20,
    'grpc.enable_channelz': 0,
    interceptors: [...interceptors],
  });
  for (const { definition, implementation } of services) server.addService(definition, implementation);
  const injector = server.createConnectionInjector(ServerCredentials.createInsecure());
  const listener = createServer((socket) => {
    // gRPC tells handlers the remote address and nothing else of a connection
    Object.defineProperty(socket, 'remoteAddress', { value: UNIX_PEER });
    Object.defineProperty(socket, 'remotePort', { value: undefined });
    injector.injectConnection(socket);
  });
  // there is no moment in which others may open it: it is bound within this call, under this mask
  const mask = process.umask(0o177);
  const listening = new Promise<void>((resolve, reject) => {
    listener.once('error', (error: NodeJS.ErrnoException) => {
      const message = `adminSocket: ${path}: cannot listen (${error.code}); check the directory and its owner`;
      reject(new CountersignError('unavailable', message, { cause: error }));
    });
    listener.listen(path, resolve);
  });
  process.umask(mask);
  await listening;
  chmodSync(path, 0o600);
  return () => {
    listener.close();
    server.forceShutdown();
  };
}

/** A socket nobody answers on is what a killed server left. */
async function clearSocket(path: string): Promise<void> {
  mkdirSync(dirname(path), { recursive: true, mode: 0o711 });
  if (!existsSync(path)) return;
  const alive = await new Promise<boolean>((resolve) => {
    const probe = connect(path);
    probe.once('connect', () => resolve(true));
    probe.once('error', () => resolve(false));
    probe.once('connect', () => probe.destroy());
  });
  if (alive) {
    const message = `adminSocket: ${path}: another server answers there; stop it or set another path`;
    throw new CountersignError('already-exists', message);
  }
  rmSync(path, { force: true });
}
