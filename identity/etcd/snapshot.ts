/** Copies of the databases, as a snapshot holds them: what is over for good is left out. */
import { createHash, randomUUID } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { promisify } from 'node:util';
import { zstdCompress, zstdDecompress } from 'node:zlib';
import { CountersignError } from '../../src/base/errors.ts';
import type { Condition, EtcdStore } from './client.ts';
import {
  chunksOf,
  DATABASES,
  type DatabaseName,
  parseJson,
  SNAPSHOT,
  type SnapshotInfo,
  snapshotChunkKey,
  snapshotSchema,
} from './layout.ts';

const compress = promisify(zstdCompress);
const decompress = promisify(zstdDecompress);

/** Records of certificates and tokens that have ended are kept by the servers that saw them issued. */
export const ENDED: Readonly<Record<string, string>> = { svid: 'not_after_ms', jwt_svid: 'expires_ms' };

export interface Copies {
  /** Compressed, by what they are copies of. */
  readonly bytes: Promise<Record<DatabaseName, Buffer>>;
  readonly schema: SnapshotInfo['schema'];
}

export function schemaOf(database: DatabaseSync): number {
  return Number(database.prepare('PRAGMA user_version').get()!.user_version);
}

/** Copies both as they are when it is called: what is written while they are compressed is not in them. */
export function copyDatabases(
  databases: Readonly<Record<DatabaseName, DatabaseSync>>,
  scratch: string,
  nowMs: number,
): Copies {
  const directory = mkdtempSync(join(scratch, 'snapshot.'));
  const path = (name: DatabaseName) => join(directory, `${name}.db`);
  const compressed = async (name: DatabaseName) => compress(await readFile(path(name)));
  try {
    for (const name of DATABASES) copyLive(databases[name], path(name), nowMs);
  } catch (thrown) {
    rmSync(directory, { recursive: true, force: true });
    throw thrown;
  }
  const bytes = Promise.all([compressed('identity'), compressed('ledger')])
    .then(([identity, ledger]) => ({ identity, ledger }))
    .finally(() => rmSync(directory, { recursive: true, force: true }));
  return { bytes, schema: { identity: schemaOf(databases.identity), ledger: schemaOf(databases.ledger) } };
}

function copyLive(source: DatabaseSync, path: string, nowMs: number): void {
  const made = source
    .prepare("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%'")
    .all();
  const target = new DatabaseSync(path);
  target.exec('PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;');
  for (const type of ['table', 'index']) for (const row of made) if (row.type === type) target.exec(row.sql as string);
  target.exec(`PRAGMA user_version = ${schemaOf(source)}`);
  target.close();
  source.prepare('ATTACH ? AS snapshot').run(path);
  try {
    for (const { type, name } of made) {
      if (type !== 'table') continue;
      const ended = ENDED[name as string];
      const live = ended === undefined ? '' : ` WHERE ${ended} >= ${Math.floor(nowMs)}`;
      source.exec(`INSERT INTO snapshot."${name}" SELECT * FROM main."${name}"${live}`);
    }
  } finally {
    source.exec('DETACH snapshot');
  }
}

/** Puts the data there; it holds once `info` is put under SNAPSHOT. undefined: this server leads no longer. */
export async function putCopies(
  etcd: EtcdStore,
  leads: Condition,
  sequence: number,
  { bytes, schema }: Copies,
): Promise<SnapshotInfo | undefined> {
  const id = `${sequence}-${randomUUID()}`;
  const contents = await bytes;
  const about = async (name: DatabaseName) => {
    const chunks = chunksOf(contents[name]);
    for (const [i, value] of chunks.entries()) {
      if ((await etcd.change([leads], [{ put: snapshotChunkKey(id, name, i), value }])) === undefined) return undefined;
    }
    return { chunks: chunks.length, bytes: contents[name].length, sha256: sha256(contents[name]) };
  };
  const [identity, ledger] = [await about('identity'), await about('ledger')];
  return identity === undefined || ledger === undefined
    ? undefined
    : { id, sequence, schema, parts: { identity, ledger } };
}

export async function currentSnapshot(etcd: EtcdStore): Promise<SnapshotInfo | undefined> {
  const bytes = await etcd.get(SNAPSHOT);
  return bytes === undefined ? undefined : parseJson(snapshotSchema, bytes);
}

/** False: a newer one took its place while it was read. @throws CountersignError internal: what etcd holds is not what was put there */
export async function loadSnapshot(
  etcd: EtcdStore,
  info: SnapshotInfo,
  paths: Readonly<Record<DatabaseName, string>>,
): Promise<boolean> {
  for (const name of DATABASES) {
    const { chunks, sha256: wanted } = info.parts[name];
    const read: Buffer[] = [];
    for (let i = 0; i < chunks; i++) {
      const chunk = await etcd.get(snapshotChunkKey(info.id, name, i));
      if (chunk === undefined) return false;
      read.push(chunk);
    }
    const bytes = Buffer.concat(read);
    if (sha256(bytes) !== wanted) {
      throw new CountersignError('internal', `the snapshot ${info.id} in etcd is damaged; restore a backup`);
    }
    await writeFile(paths[name], await decompress(bytes), { mode: 0o600 });
  }
  return true;
}

function sha256(bytes: Buffer): string {
  return createHash('sha256').update(bytes).digest('hex');
}
