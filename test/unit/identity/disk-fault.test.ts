import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { DatabaseSync } from 'node:sqlite';
import { status } from '@grpc/grpc-js';
import { pino } from 'pino';
import { expect, test } from 'vitest';
import { stringify } from 'yaml';
import { serverConfigSchema } from '../../../identity/config.ts';
import { localDatastore } from '../../../identity/datastore.ts';
import { toServiceError } from '../../../identity/refusal.ts';
import { startServer } from '../../../identity/server.ts';
import { Store } from '../../../identity/store.ts';
import { parseConfig } from '../../../src/base/config-file.ts';
import type { NodeName } from '../../../src/model/ids.ts';

const log = pino({ level: 'silent' });

function thrownBy(act: () => void): unknown {
  try {
    act();
  } catch (thrown) {
    return thrown;
  }
  throw new Error('nothing was thrown');
}

test('a full disk is told to the administrator as what it is, and the change is not half there', () => {
  const dir = mkdtempSync(join(tmpdir(), 'cs-full-'));
  const store = new Store(join(dir, 'identity.db'), (database) => {
    // as if no page more could be had: SQLite answers as it does on a full disk
    const { page_count: pages } = database.prepare('PRAGMA page_count').get() as { page_count: number };
    database.exec(`PRAGMA max_page_count = ${pages}`);
  });
  try {
    const add = () =>
      store.transaction(() => {
        for (let i = 0; i < 1000; i++) {
          const hash = Buffer.alloc(32);
          hash.writeUInt32BE(i);
          store.addToken({ hash, node: 'node-a' as NodeName, expiresAtMs: 1 });
        }
      });
    const error = toServiceError(thrownBy(add), log);
    expect(error).toMatchObject({ code: status.UNAVAILABLE });
    expect(error.details).toMatch(/disk cannot be written: database or disk is full; nothing was changed/);
    expect(store.tokensOf('node-a')).toEqual([]);
  } finally {
    store.close();
    rmSync(dir, { recursive: true });
  }
});

test('an error that is none of the disk’s tells nothing of itself', () => {
  const error = toServiceError(new Error('a secret detail'), log);
  expect(error).toMatchObject({ code: status.INTERNAL, details: 'internal error; the server log says more' });
});

test('a data directory that cannot be made or written is named at the start, with what to do', async () => {
  const dir = mkdtempSync(join(tmpdir(), 'cs-full-'));
  const clock = { nowMs: () => Date.now(), bootNs: () => process.hrtime.bigint() };
  try {
    writeFileSync(join(dir, 'file'), '');
    expect(() => localDatastore(join(dir, 'file', 'data'))).toThrow(
      /^dataDir: \S+\/file\/data: cannot be made \(ENOTDIR\); make it, or name one that this user may write$/,
    );
    const dataDir = join(dir, 'data');
    const common = { apiVersion: 'countersign.dev/v1alpha1', kind: 'ServerConfig', trustDomain: 'example.org' };
    const places = { adminSocket: join(dir, 'admin.sock'), audit: { dir: join(dir, 'audit') } };
    const settings = { ...common, ...places, dataDir, listen: { address: '127.0.0.1', port: 0 } };
    const config = parseConfig('server.yaml', stringify(settings), serverConfigSchema);
    const opened = (_: string, database: DatabaseSync) => database.exec('PRAGMA query_only = 1');
    await expect(startServer(config, clock, log, { ...localDatastore(dataDir), opened })).rejects.toMatchObject({
      code: 'unavailable',
      message: expect.stringMatching(/^dataDir: \S+\/data: attempt to write a readonly database; make room/),
    });
  } finally {
    rmSync(dir, { recursive: true });
  }
});
