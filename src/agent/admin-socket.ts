/** The agent's admin socket: gRPC on a unix socket that only root may open. */
import { chmodSync, existsSync, mkdirSync, rmSync } from 'node:fs';
import { connect } from 'node:net';
import { dirname } from 'node:path';
import { Server, ServerCredentials } from '@grpc/grpc-js';
import {
  type AgentAdminServer,
  AgentAdminService,
  type JsonReply,
} from '../../proto/gen/countersign/admin/v1/admin.ts';
import { asError, CountersignError } from '../base/errors.ts';
import { grpcStatusOf } from '../base/exit-codes.ts';
import type { Listener, MonitorFilter, MonitorSink } from './monitor.ts';

export interface AdminHandlers {
  status(): Promise<unknown>;
  endpoints(): unknown;
  vouches(): unknown;
  auth(): unknown;
  flushAuth(request: { from: string; to: string; actor: string }): unknown;
  testAuth(request: { from: string; to: string; port: number; protocol: string }): Promise<unknown>;
  peers(): Promise<unknown>;
  drops(): unknown;
  /** By pair of identities. */
  dropPairs(): unknown;
  policy(): unknown;
  explain(request: { from: string; to: string; port: number; protocol: string }): unknown;
  reloadPolicy(): Promise<unknown>;
  /** @throws CountersignError bad-input: a filter that nothing can match */
  monitor(filter: MonitorFilter, sink: MonitorSink): Listener;
}

/** JSON with bigints as numbers where they fit, else as strings. */
export function toJson(value: unknown): string {
  return JSON.stringify(value, (_, v: unknown) =>
    typeof v === 'bigint' ? (v <= BigInt(Number.MAX_SAFE_INTEGER) ? Number(v) : String(v)) : v,
  );
}

type Callback = (error: { code: number; details: string } | null, reply?: JsonReply) => void;

function answer(callback: Callback, produce: () => unknown): void {
  Promise.resolve()
    .then(produce)
    .then(
      (value) => callback(null, { json: toJson(value) }),
      (thrown: unknown) => callback(refusal(thrown)),
    );
}

function refusal(thrown: unknown): { code: number; details: string } {
  const error = asError(thrown);
  return {
    code: grpcStatusOf(error instanceof CountersignError ? error.code : 'internal'),
    details: error.message,
  };
}

/** @throws CountersignError already-exists when a living process answers on the socket */
async function claim(path: string): Promise<void> {
  mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
  if (!existsSync(path)) return;
  const alive = await new Promise<boolean>((resolve) => {
    const probe = connect(path, () => {
      probe.destroy();
      resolve(true);
    });
    probe.once('error', () => resolve(false));
  });
  if (alive)
    throw new CountersignError(
      'already-exists',
      `${path}: another agent answers there; stop it, or set sockets.admin to another path`,
    );
  rmSync(path);
}

export async function serveAdmin(path: string, handlers: AdminHandlers): Promise<{ close(): void }> {
  await claim(path);
  const server = new Server();
  const service: AgentAdminServer = {
    getStatus: (_, done) => answer(done as Callback, () => handlers.status()),
    listEndpoints: (_, done) => answer(done as Callback, () => ({ endpoints: handlers.endpoints() })),
    listVouches: (_, done) => answer(done as Callback, () => ({ vouches: handlers.vouches() })),
    listAuth: (_, done) => answer(done as Callback, () => ({ entries: handlers.auth() })),
    flushAuth: (call, done) => answer(done as Callback, () => handlers.flushAuth(call.request)),
    testAuth: (call, done) => answer(done as Callback, () => handlers.testAuth(call.request)),
    listPeers: (_, done) => answer(done as Callback, async () => ({ peers: await handlers.peers() })),
    listDrops: (call, done) =>
      answer(done as Callback, () =>
        call.request.pairs ? { pairs: handlers.dropPairs() } : { drops: handlers.drops() },
      ),
    listPolicy: (_, done) => answer(done as Callback, () => handlers.policy()),
    explain: (call, done) => answer(done as Callback, () => handlers.explain(call.request)),
    reloadPolicy: (_, done) => answer(done as Callback, () => handlers.reloadPolicy()),
    monitor(call) {
      const sink: MonitorSink = {
        get queued() {
          return call.writableLength;
        },
        write: (json) => void call.write({ json }),
      };
      let listener: Listener;
      try {
        listener = handlers.monitor(call.request, sink);
      } catch (thrown) {
        call.emit('error', refusal(thrown));
        return;
      }
      call.on('drain', listener.writable);
      for (const end of ['cancelled', 'error', 'close']) call.on(end, listener.stop);
    },
  };
  server.addService(AgentAdminService, service);
  const before = process.umask(0o177);
  try {
    await new Promise<void>((resolve, reject) => {
      server.bindAsync(`unix:${path}`, ServerCredentials.createInsecure(), (error) =>
        error === null ? resolve() : reject(error),
      );
    });
  } finally {
    process.umask(before);
  }
  chmodSync(path, 0o600);
  return {
    close() {
      server.forceShutdown();
      rmSync(path, { force: true });
    },
  };
}
