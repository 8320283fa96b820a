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
import type { RareLog } from './rare-log.ts';

export interface Caller extends PeerCredentials {
  /** Unique among all connections of this process; what gRPC reports as the peer. */
  readonly name: string;
  /** False once the process that connected has ended: its pid may then be anybody's. */
  isAlive(): boolean;
}

export interface CallerLimits {
  readonly connections: number;
  readonly connectionsPerUid: number;
  /** A connection on which nothing was asked for this long is closed. */
  readonly idleMs: number;
}

export interface CallerListener {
  callerNamed(name: string): Caller | undefined;
  /** A call began on this caller's connection; what is returned tells that it ended, and may be called again. */
  callBegan(caller: Caller): () => void;
  /** He has an identity: while a call of his is open, this connection gives way to none. */
  identified(caller: Caller): void;
  /** Open connections. */
  readonly connections: number;
  close(): Promise<void>;
}

interface Connection {
  readonly caller: Caller;
  readonly socket: Socket;
  calls: number;
  identified: boolean;
  /** Set while there is no call. */
  idleTimer: NodeJS.Timeout | undefined;
}

/** One user's connections. */
interface Holder {
  readonly all: Set<Connection>;
  /** Those without a call, or of somebody who is not known to have an identity; the first has been so for longest. */
  readonly yielding: Set<Connection>;
}

/** sun_path of sockaddr_un, with its closing zero. */
const MAX_SOCKET_PATH = 107;

/**
 * Listens with mode 0666: who may ask is decided by who asks, not by who can open the file. At a limit, a connection on
 * which nothing is being asked, or only by somebody without an identity, gives way to a new one: of the same user, or else of
 * the user who has most of them. Connections that say nothing keep nobody out, of however many users they are.
 * @throws CountersignError already-exists if another process serves there, bad-input if the path cannot be a socket.
 */
export async function listenForCallers(
  path: string,
  limits: CallerLimits,
  log: Logger,
  rareLog: RareLog,
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
  const connections = new Map<string, Connection>();
  const holders = new Map<number, Holder>();
  let count = 0;

  const becomeIdle = (connection: Connection) => {
    holders.get(connection.caller.uid)?.yielding.add(connection);
    connection.idleTimer = setTimeout(() => connection.socket.destroy(), limits.idleMs);
  };
  const forget = (connection: Connection) => {
    const { name, uid } = connection.caller;
    clearTimeout(connection.idleTimer);
    connections.delete(name);
    const holder = holders.get(uid);
    holder?.yielding.delete(connection);
    holder?.all.delete(connection);
    if (holder?.all.size === 0) holders.delete(uid);
  };
  /** False: each of them is in use by somebody with an identity. */
  const evictFrom = (holder: Holder): boolean => {
    const [longest] = holder.yielding;
    if (longest === undefined) return false;
    forget(longest);
    longest.socket.destroy();
    return true;
  };
  const makeRoom = (uid: number): boolean => {
    const own = holders.get(uid);
    if (own !== undefined && own.all.size >= limits.connectionsPerUid) return evictFrom(own);
    if (connections.size < limits.connections) return true;
    return evictFrom([...holders.values()].reduce((a, b) => (b.yielding.size > a.yielding.size ? b : a)));
  };

  const server = createServer({ pauseOnConnect: true }, (socket) => {
    socket.on('error', (error) => log.debug({ err: error }, 'workload connection failed'));
    const identified = identify(socket, `caller-${++count}`);
    if (identified === undefined) return void socket.destroy();
    const { caller, release } = identified;
    if (!makeRoom(caller.uid)) {
      const { uid } = caller;
      rareLog.warn(
        `full ${uid}`,
        { uid, connections: connections.size },
        'too many workload connections; one was refused',
      );
      release();
      return void socket.destroy();
    }
    const connection: Connection = { caller, socket, calls: 0, identified: false, idleTimer: undefined };
    const holder = holders.get(caller.uid) ?? { all: new Set(), yielding: new Set() };
    holders.set(caller.uid, holder);
    connections.set(caller.name, connection);
    holder.all.add(connection);
    becomeIdle(connection);
    socket.once('close', () => {
      forget(connection);
      release();
    });
    Object.defineProperty(socket, 'remoteAddress', { value: caller.name });
    accept(socket);
    socket.resume();
  });
  await listen(server, path);
  const inode = lstatSync(path).ino;
  return {
    callerNamed: (name) => connections.get(name)?.caller,
    callBegan(caller) {
      const connection = connections.get(caller.name);
      if (connection === undefined) return () => {};
      if (connection.calls++ === 0) {
        clearTimeout(connection.idleTimer);
        if (connection.identified) holders.get(caller.uid)?.yielding.delete(connection);
      }
      let over = false;
      return () => {
        if (over) return;
        over = true;
        if (--connection.calls === 0 && connections.has(caller.name)) becomeIdle(connection);
      };
    },
    identified({ name, uid }) {
      const connection = connections.get(name);
      if (connection === undefined || connection.identified) return;
      connection.identified = true;
      if (connection.calls > 0) holders.get(uid)?.yielding.delete(connection);
    },
    get connections() {
      return connections.size;
    },
    async close() {
      const closed = new Promise<void>((resolve) => server.close(() => resolve()));
      for (const { socket } of connections.values()) socket.destroy();
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
    const pidfd = pidfdOf(fd, pid);
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

/** Of the process that connected, by the socket itself; before Linux 6.5 of whoever has its pid a moment later. */
function pidfdOf(fd: number, pid: number): number {
  try {
    return native().peerPidfd(fd);
  } catch (thrown) {
    if ((thrown as NodeJS.ErrnoException).code !== 'ENOPROTOOPT') throw thrown;
    return native().pidfdOpen(pid);
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
