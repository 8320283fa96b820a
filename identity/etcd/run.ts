/** A server among several that share etcd: it stands by, serves while it leads, and stands by again when it lost the lead. */
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Clock } from '../../src/base/clock.ts';
import { asError, CountersignError } from '../../src/base/errors.ts';
import type { Logger } from '../../src/base/log.ts';
import type { ServerConfig } from '../config.ts';
import { type Datastore, makeDataDir } from '../datastore.ts';
import { startServer } from '../server.ts';
import { EtcdStore } from './client.ts';
import type { EtcdConfig } from './config.ts';
import { gate } from './gate.ts';
import { etcdKeyBlobs } from './key-blobs.ts';
import { LeaderLog } from './leader-log.ts';
import { seed, setAside } from './seed.ts';
import { standBy, type Term } from './standby.ts';

const PAUSE_MS = 1000;

export type SharedConfig = ServerConfig & { readonly datastore: EtcdConfig };

/** Runs until `signal` is aborted. @throws CountersignError for what waiting does not mend: settings, files */
export async function runInTurn(config: SharedConfig, clock: Clock, log: Logger, signal: AbortSignal): Promise<void> {
  makeDataDir(config.dataDir);
  while (!signal.aborted) {
    const etcd = new EtcdStore(config.datastore);
    try {
      const term = await standBy({ config, etcd, clock, log, signal });
      if (term !== undefined) await serve(config, etcd, term, clock, log, signal);
    } catch (thrown) {
      if (!(thrown instanceof CountersignError) || thrown.code !== 'unavailable') throw thrown;
      log.error({ problem: thrown.message }, 'could not serve; standing by again');
      await sleep(PAUSE_MS, undefined, { signal }).catch(() => {});
    } finally {
      etcd.close();
    }
  }
}

async function serve(
  config: SharedConfig,
  etcd: EtcdStore,
  { leadership, replica }: Term,
  clock: Clock,
  log: Logger,
  signal: AbortSignal,
): Promise<void> {
  const { dataDir } = config;
  const changes = new LeaderLog({
    etcd,
    leadership,
    head: replica.sequence,
    snapshot: replica.snapshot,
    scratch: dataDir,
    nowMs: () => clock.nowMs(),
    log,
  });
  const keyBlobs = config.ca.keys.type === 'disk' ? etcdKeyBlobs(etcd, leadership.condition) : undefined;
  const durable = () => changes.durable();
  const datastore: Datastore = {
    directory: join(dataDir, 'replica'),
    keyBlobs,
    interceptors: [gate(durable)],
    opened: (name, database) => changes.opened(name, database),
    durable,
  };
  try {
    const isSeeded =
      replica.snapshot === undefined && (await seed(dataDir, replica, etcdKeyBlobs(etcd, leadership.condition)));
    const server = await startServer(config, clock, log, datastore);
    if (isSeeded) log.info({ movedTo: setAside(dataDir, clock.nowMs()) }, 'the state of this disk is in etcd now');
    await aborted(AbortSignal.any([signal, leadership.lost]));
    // what was changed and not asked about, such as the confirmation of a stream
    if (!leadership.lost.aborted) await changes.durable().catch(() => {});
    else log.error({ problem: asError(leadership.lost.reason).message }, 'the lead is lost: this server stops serving');
    changes.close();
    await server.close();
  } finally {
    changes.close();
    await leadership.resign();
  }
}

function aborted(signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) resolve();
    else signal.addEventListener('abort', () => resolve(), { once: true });
  });
}
