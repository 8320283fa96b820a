import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { status } from '@grpc/grpc-js';
import { pino } from 'pino';
import { expect, test } from 'vitest';
import { toServiceError } from '../../../identity/refusal.ts';
import { Store } from '../../../identity/store.ts';
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
