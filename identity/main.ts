/** The identity server as a process: settings, clock and log in; an orderly end when it is told to stop. */
import { existsSync } from 'node:fs';
import type { Clock } from '../src/base/clock.ts';
import { fieldError, loadConfigFile } from '../src/base/config-file.ts';
import { createLogger } from '../src/base/log.ts';
import { type Restored, restoreBackup } from './backup/restore.ts';
import { serverConfigSchema } from './config.ts';
import { entriesFileSchema } from './entry-spec.ts';
import { refuseShared } from './etcd/restore.ts';
import { runInTurn } from './etcd/run.ts';
import { startServer } from './server.ts';

/** Nothing here is compared with a kernel's clock, so that the server needs no native code. */
const clock: Clock = { nowMs: () => Date.now(), bootNs: () => process.hrtime.bigint() };

/** Runs until `signal` is aborted. @throws CountersignError if it cannot start; then nothing is left running. */
export async function runServer(configPath: string, signal: AbortSignal): Promise<void> {
  const config = loadConfigFile(configPath, serverConfigSchema);
  const { entriesFile } = config;
  if (entriesFile !== undefined) {
    if (!existsSync(entriesFile)) {
      throw fieldError(configPath, ['entriesFile'], `${entriesFile} does not exist; create it or correct the path`);
    }
    // Before anything is made: a server does not start on entries it cannot read.
    loadConfigFile(entriesFile, entriesFileSchema);
  }
  const log = createLogger('server', config.logLevel);
  const { datastore } = config;
  if (datastore.type === 'etcd') return runInTurn({ ...config, datastore }, clock, log, signal);
  const server = await startServer(config, clock, log);
  await new Promise<void>((resolve) => {
    if (signal.aborted) resolve();
    signal.addEventListener('abort', () => resolve(), { once: true });
  });
  log.info('stopping');
  await server.close();
}

/** For a server that does not run. @throws CountersignError: nothing was changed then */
export async function restoreServer(configPath: string, file: string, force: boolean): Promise<Restored> {
  const config = loadConfigFile(configPath, serverConfigSchema);
  const { datastore } = config;
  const emptyEtcd = datastore.type === 'etcd' ? await refuseShared(datastore, force) : async () => {};
  const restored = await restoreBackup(config, file, force, clock.nowMs());
  // only now: a backup that does not check leaves what is there
  await emptyEtcd();
  return restored;
}
