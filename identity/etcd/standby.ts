/**
 * Waiting for the lead: follows the log into copies of the databases, answers the administrator with who serves, and ends when this
 * server leads. Its port stays closed meanwhile: an agent's next address is tried at once.
 */
import { existsSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type ServiceError, status, type UntypedServiceImplementation } from '@grpc/grpc-js';
import { BundleAdminService, CaAdminService, ServerAdminService } from '../../proto/gen/countersign/admin/v1/admin.ts';
import type { Clock } from '../../src/base/clock.ts';
import { asError, CountersignError } from '../../src/base/errors.ts';
import type { Logger } from '../../src/base/log.ts';
import { type AdminService, json } from '../admin/service.ts';
import { serveAdminSocket } from '../admin/socket.ts';
import type { ServerConfig } from '../config.ts';
import { serviceError } from '../refusal.ts';
import type { EtcdStore } from './client.ts';
import type { EtcdConfig } from './config.ts';
import { HEAD, LEADER, type LeaderInfo, leaderSchema, parseJson } from './layout.ts';
import { Leadership } from './leadership.ts';
import { Replica } from './replica.ts';

/** There since this server saw a state in etcd. */
const JOINED = 'etcd.joined';
/** Looked at so often, whatever the watch says. */
const LOOK_MS = 500;

export interface StandbyOptions {
  readonly config: ServerConfig & { readonly datastore: EtcdConfig };
  readonly etcd: EtcdStore;
  readonly clock: Clock;
  readonly log: Logger;
  readonly signal: AbortSignal;
}

/** What a leader begins with. */
export interface Term {
  readonly leadership: Leadership;
  /** It holds all that any leader before acknowledged. */
  readonly replica: Replica;
}

/** undefined: told to stop. @throws CountersignError for what waiting does not mend */
export async function standBy(options: StandbyOptions): Promise<Term | undefined> {
  const { config, etcd, clock, log, signal } = options;
  const replica = new Replica(etcd, join(config.dataDir, 'replica'));
  const seen: { leader: LeaderInfo | undefined; problem: string | undefined } = {
    leader: undefined,
    problem: undefined,
  };
  const closeDoor = await serveAdminSocket(config.adminSocket, standbyServices(config, replica, seen));
  let wake = () => {};
  const watches = [LEADER, HEAD].map((key) => etcd.watch(key, () => wake()));
  signal.addEventListener('abort', () => wake(), { once: true });
  log.info('standing by');
  try {
    while (!signal.aborted) {
      try {
        await replica.catchUp();
        const leader = await etcd.get(LEADER);
        seen.leader = leader === undefined ? undefined : parseJson(leaderSchema, leader);
        seen.problem = undefined;
        if (replica.snapshot !== undefined) writeFileSync(join(config.dataDir, JOINED), '', { mode: 0o600 });
        else refuseLostState(config.dataDir);
        if (leader === undefined) {
          const { address, port } = config.listen;
          const { leaseSeconds } = config.datastore;
          const leadership = await Leadership.attempt(etcd, leaseSeconds, `${address}:${port}`, clock.nowMs(), log);
          if (leadership !== undefined) return await take(leadership, replica, log);
        }
      } catch (thrown) {
        const problem = asError(thrown).message;
        if (seen.problem === undefined) log.error({ problem }, 'cannot follow; trying again');
        seen.problem = problem;
      }
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, LOOK_MS);
        wake = () => {
          clearTimeout(timer);
          resolve();
        };
      });
    }
    return undefined;
  } finally {
    for (const end of watches) end();
    closeDoor();
    replica.close();
  }
}

/**
 * An etcd that lost its data looks like one that never had any. Who began anew there would make a new authority, which no node trusts.
 * @throws CountersignError
 */
function refuseLostState(dataDir: string): void {
  const marker = join(dataDir, JOINED);
  if (!existsSync(marker) || existsSync(join(dataDir, 'identity.db'))) return;
  const message = `etcd holds no state, but it held one: restore a backup with countersign server restore; to begin anew, with a new authority, delete ${marker}`;
  throw new CountersignError('not-found', message);
}

/** Nobody else writes from here on: what is there now is all there is. */
async function take(leadership: Leadership, replica: Replica, log: Logger): Promise<Term> {
  try {
    await replica.catchUp();
  } catch (thrown) {
    await leadership.resign();
    throw thrown;
  }
  log.info({ sequence: replica.sequence }, 'this server leads');
  return { leadership, replica };
}

/** Of the administrator's API: who serves. Everything else is refused with the same words. */
function standbyServices(
  { trustDomain, dataDir, datastore }: ServerConfig,
  replica: Replica,
  seen: { readonly leader: LeaderInfo | undefined; readonly problem: string | undefined },
): AdminService[] {
  const refusal = (): ServiceError => {
    const { leader, problem } = seen;
    const who =
      problem !== undefined
        ? `and cannot follow: ${problem}`
        : leader === undefined
          ? 'and no server leads at this moment; try again'
          : `ask the one that serves: ${leader.server}, ${leader.address}`;
    return serviceError(status.UNAVAILABLE, `this server stands by, ${who}`);
  };
  const getStatus = () => ({
    trustDomain,
    datastore: datastore.type,
    role: 'standby',
    serving: seen.leader,
    followed: replica.sequence,
    ...(seen.problem === undefined ? {} : { problem: seen.problem }),
    ...(existsSync(join(dataDir, 'identity.db')) ? { unused: join(dataDir, 'identity.db') } : {}),
  });
  return [ServerAdminService, CaAdminService, BundleAdminService].map((definition) => {
    const implementation: UntypedServiceImplementation = {};
    for (const [name, { responseStream }] of Object.entries(definition)) {
      implementation[name] = responseStream
        ? (call: { emit(event: 'error', error: Error): void }) => call.emit('error', refusal())
        : (_: unknown, done: (error: Error | null, reply?: object) => void) =>
            name === 'getStatus' ? done(null, json(getStatus())) : done(refusal());
    }
    return { definition, implementation };
  });
}
