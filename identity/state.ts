/** What an identity server must not forget, opened: the certificate authority with its ledger, and the database of nodes and entries. */
import { join } from 'node:path';
import type { DatabaseSync } from 'node:sqlite';
import { type CertificateAuthority, openCertificateAuthority } from '../ca/api.ts';
import { openUpstream } from '../ca/upstream/upstream.ts';
import type { Clock } from '../src/base/clock.ts';
import type { Logger } from '../src/base/log.ts';
import type { BackupSources } from './backup/make.ts';
import { refuseUnfinishedRestore } from './backup/restore.ts';
import type { ServerConfig } from './config.ts';
import type { Datastore } from './datastore.ts';
import { Store } from './store.ts';

export interface State {
  readonly ca: CertificateAuthority;
  readonly store: Store;
  /** What a backup is made of. */
  readonly sources: BackupSources;
}

/** @throws CountersignError; what was opened is in `closers` then. */
export async function openState(
  config: ServerConfig,
  datastore: Datastore,
  clock: Clock,
  log: Logger,
  closers: (() => unknown)[],
): Promise<State> {
  const { trustDomain, dataDir } = config;
  const limits = (seconds: number) => ({ defaultTtlSeconds: seconds, maxTtlSeconds: Math.max(seconds, 86_400) });
  refuseUnfinishedRestore(dataDir);
  const databases: Partial<Record<'identity' | 'ledger', DatabaseSync>> = {};
  const opened = (name: 'identity' | 'ledger') => (database: DatabaseSync) => {
    databases[name] = database;
    datastore.opened(name, database);
  };
  const caDirectory = join(datastore.directory, 'ca');
  const { keyBlobs } = datastore;
  const { upstream } = config.ca;
  const ca = await openCertificateAuthority({
    directory: caDirectory,
    trustDomain,
    clock,
    keys: config.ca.keys,
    ...(keyBlobs === undefined ? {} : { keyBlobs }),
    upstream: upstream === undefined ? undefined : openUpstream(upstream, trustDomain, clock),
    keyType: config.ca.keyType,
    jwtKeyType: config.ca.jwtKeyType,
    authorityTtlSeconds: config.ca.rootTtl,
    jwtKeyTtlSeconds: config.ca.jwtKeyTtl,
    replaceLostKeys: config.ca.replaceLostKeys,
    workloadTtl: limits(config.ca.workloadTtl),
    nodeTtl: limits(config.ca.nodeTtl),
    serverTtl: limits(config.ca.serverTtl),
    downstreamTtl: { defaultTtlSeconds: config.ca.downstreamTtl, maxTtlSeconds: config.ca.downstreamTtl },
    jwtTtl: { defaultTtlSeconds: config.ca.jwtTtl, maxTtlSeconds: Math.max(config.ca.jwtTtl, 3600) },
    onDatabase: opened('ledger'),
    onError: (error) => log.error({ err: error }, 'the certificate authority could not do what was due'),
  });
  closers.push(() => ca.close());
  const store = new Store(join(datastore.directory, 'identity.db'), opened('identity'));
  closers.push(() => store.close());
  const { identity, ledger } = databases as Record<'identity' | 'ledger', DatabaseSync>;
  const scratchDirectory = dataDir;
  return { ca, store, sources: { trustDomain, clock, identity, ledger, caDirectory, keyBlobs, scratchDirectory } };
}
