/** Where the server's state is, and when a change of it is safe: on this machine's disk, or where the next leader finds it (identity/etcd). */
import { chmodSync, existsSync, mkdirSync } from 'node:fs';
import type { DatabaseSync } from 'node:sqlite';
import type { ServerInterceptor } from '@grpc/grpc-js';
import type { KeyBlobs } from '../ca/api.ts';
import { CountersignError } from '../src/base/errors.ts';

export interface Datastore {
  /** Holds identity.db and ca/. */
  readonly directory: string;
  /** Where the authority's private keys are shared; undefined: they are files in `directory`, or in a token. */
  readonly keyBlobs: KeyBlobs | undefined;
  /** Stand before every gRPC service, so that no answer and no push leaves before what it rests on is safe. */
  readonly interceptors: readonly ServerInterceptor[];
  /** To be called with each database as it is opened, before its first write. */
  opened(name: 'identity' | 'ledger', database: DatabaseSync): void;
  /** Resolves when all that was written before the call is safe. @throws CountersignError unavailable */
  durable(): Promise<void>;
}

/** One server with its own disk: SQLite has written through before a statement returns. */
export function localDatastore(directory: string): Datastore {
  makeDataDir(directory);
  return { directory, keyBlobs: undefined, interceptors: [], opened() {}, durable: async () => {} };
}

/** Others may pass through it to bundle.pem; everything else in it keeps itself private. @throws CountersignError bad-input */
export function makeDataDir(path: string): void {
  if (existsSync(path)) return;
  try {
    mkdirSync(path, { recursive: true, mode: 0o711 });
    chmodSync(path, 0o711);
  } catch (thrown) {
    const { code } = thrown as NodeJS.ErrnoException;
    const message = `dataDir: ${path}: cannot be made (${code}); make it, or name one that this user may write`;
    throw new CountersignError('bad-input', message, { cause: thrown });
  }
}
