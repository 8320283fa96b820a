/** The first start on an empty etcd of a server that had its state on its own disk: that state is what the servers share from now on. */
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync } from 'node:fs';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import type { KeyBlobs } from '../../ca/api.ts';
import { isSealed } from '../../ca/keys/seal.ts';
import { CountersignError } from '../../src/base/errors.ts';
import type { Replica } from './replica.ts';

const STATE = ['identity.db', 'identity.db-wal', 'identity.db-shm', 'ca'];

/** Whether there was one. @throws CountersignError: its keys are not sealed */
export async function seed(dataDir: string, replica: Replica, blobs: KeyBlobs): Promise<boolean> {
  const sources = { identity: join(dataDir, 'identity.db'), ledger: join(dataDir, 'ca/ledger.db') };
  if (!existsSync(sources.identity) || !existsSync(sources.ledger)) return false;
  const keys = join(dataDir, 'ca/keys');
  const files = existsSync(keys) ? readdirSync(keys).filter((name) => name.endsWith('.key')) : [];
  for (const name of files) {
    if (isSealed(readFileSync(join(keys, name)))) continue;
    const message = `${join(keys, name)} is not encrypted, so it is not given to etcd; start the server once with datastore sqlite and ca.keys.passphraseFile or ca.keys.keyFile, which encrypts it`;
    throw new CountersignError('bad-input', message);
  }
  for (const name of ['identity', 'ledger'] as const) {
    const database = new DatabaseSync(sources[name]);
    try {
      database.prepare('VACUUM INTO ?').run(replica.paths[name]);
    } finally {
      database.close();
    }
  }
  for (const name of files) await blobs.create(name.slice(0, -'.key'.length), readFileSync(join(keys, name)));
  return true;
}

/** It must not be taken for the state a second time. Returns where it went. */
export function setAside(dataDir: string, nowMs: number): string {
  const place = join(dataDir, `before-etcd-${new Date(nowMs).toISOString().replaceAll(/[:.]/g, '-')}`);
  mkdirSync(place, { mode: 0o700 });
  for (const name of STATE) if (existsSync(join(dataDir, name))) renameSync(join(dataDir, name), join(place, name));
  return place;
}
