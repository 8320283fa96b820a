/**
 * Who is at the other end of the socket: the kernel's word (SO_PEERCRED), taken when the connection is accepted and before
 * a byte of it is read. gRPC gets the connection afterwards and names it by a made-up remote address.
 */
import { chmodSync, lstatSync, mkdirSync, unlinkSync } from 'node:fs';
import { connect, createServer, type Server, type Socket } from 'node:net';
import { dirname } from 'node:path';
import { native, type PeerCredentials } from '../../native/index.ts';
import { asError, CountersignError } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';

export interface Caller extends PeerCredentials {
  /** Unique among all connections of this process; what gRPC reports as the peer. */
  readonly name: string;
  /** While this is open the pid cannot come to mean another process without isAlive() turning false. */
  isAlive(): boolean;
}

export interface CallerLimits {
  readonly connections: number;
  readonly connectionsPerUid: number;
}

export interface CallerListener {
  callerNamed(name: string): Caller | undefined;
  /** Open connections. */
  readonly connections: number;
  close(): Promise<void>;
}

/** sun_path of sockaddr_un, with its closing zero. */
const MAX_SOCKET_PATH = 107;

/**
 * Listens with mode 0666: who may ask is decided by who asks, not by who can open the file.
 * @throws CountersignError already-exists if another process serves there, bad-input if the path cannot be a socket.
 */
export async function listenForCallers(
  path: string,
  limits: CallerLimits,
  log: Logger,
  accept: (socket: Socket) => void,
): Promise<CallerListener> {
  if (Buffer.byteLength(path) > MAX_SOCKET_PATH) {
    throw new CountersignError(
      'bad-input',
      `${path}: a socket's path has at most ${MAX_SOCKET_PATH} bytes; shorten it`,
    );
  }
  mkdirSync(dirname(path), { recursive: true, mode: 0o755 });
  await removeStale(path);
  const callers = new Map<string, Caller>();
  const sockets = new Set<Socket>();
  const perUid = new Map<number, number>();
  let count = 0;

  const server = createServer({ pauseOnConnect: true }, (socket) => {
    socket.on('error', (error) => log.debug({ err: error }, 'workload connection failed'));
    const identified = identify(socket, `caller-${++count}`);
    if (identified === undefined) return void socket.destroy();
    const { caller, release } = identified;
    const sameUid = perUid.get(caller.uid) ?? 0;
    if (sockets.size >= limits.connections || sameUid >= limits.connectionsPerUid) {
      log.warn({ uid: caller.uid, connections: sockets.size }, 'too many workload connections; one was refused');
      release();
      return void socket.destroy();
    }
    callers.set(caller.name, caller);
    sockets.add(socket);
    perUid.set(caller.uid, sameUid + 1);
    socket.once('close', () => {
      callers.delete(caller.name);
      sockets.delete(socket);
      const left = (perUid.get(caller.uid) ?? 1) - 1;
      if (left === 0) perUid.delete(caller.uid);
      else perUid.set(caller.uid, left);
      release();
    });
    Object.defineProperty(socket, 'remoteAddress', { value: caller.name });
    accept(socket);
    socket.resume();
  });
  await listen(server, path);
  const inode = lstatSync(path).ino;
  return {
    callerNamed: (name) => callers.get(name),
    get connections() {
      return sockets.size;
    },
    async close() {
      const closed = new Promise<void>((resolve) => server.close(() => resolve()));
      for (const socket of sockets) socket.destroy();
      await closed;
      removeOwn(path, inode);
    },
  };
}

/** undefined: the process has gone, or is in a pid namespace that cannot be seen from here. */
function identify(socket: Socket, name: string): { caller: Caller; release: () => void } | undefined {
  const fd = (socket as unknown as { _handle?: { fd?: number } })._handle?.fd;
  if (fd === undefined || fd < 0) return undefined;
  try {
    const { pid, uid, gid } = native().peerCredentials(fd);
    const pidfd = native().pidfdOpen(pid);
    let open = true;
    const release = () => {
      if (open) native().closeFd(pidfd);
      open = false;
    };
    return { caller: { name, pid, uid, gid, isAlive: () => open && native().pidfdAlive(pidfd) }, release };
  } catch {
    return undefined;
  }
}

function listen(server: Server, path: string): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once('error', (error) => {
      const code = (error as NodeJS.ErrnoException).code ?? error.message;
      reject(new CountersignError('bad-input', `${path}: cannot listen there (${code}); choose another path`));
    });
    server.listen(path, () => {
      chmodSync(path, 0o666);
      resolve();
    });
  });
}

/** A socket file that nobody answers at is what a killed agent leaves. Anything else is left alone. */
async function removeStale(path: string): Promise<void> {
  let isSocket: boolean;
  try {
    isSocket = lstatSync(path).isSocket();
  } catch {
    return;
  }
  if (!isSocket) throw new CountersignError('bad-input', `${path}: a file that is no socket is there; move it away`);
  const answered = await new Promise<boolean>((resolve) => {
    const probe = connect(path);
    probe.once('connect', () => {
      probe.destroy();
      resolve(true);
    });
    probe.once('error', (error) => resolve((error as NodeJS.ErrnoException).code !== 'ECONNREFUSED'));
  });
  if (answered) {
    throw new CountersignError(
      'already-exists',
      `${path}: another process serves there; stop it or choose another path`,
    );
  }
  unlinkSync(path);
}

/** Not the socket of a successor that has taken the path meanwhile. */
function removeOwn(path: string, inode: number): void {
  try {
    if (lstatSync(path).ino === inode) unlinkSync(path);
  } catch (thrown) {
    if ((asError(thrown) as NodeJS.ErrnoException).code !== 'ENOENT') throw thrown;
  }
}
