/** What is where below the prefix in etcd, and how a log entry and a snapshot are written. */
import { z } from 'zod';

/** Of an etcd request are 1.5 MB allowed. */
export const CHUNK_BYTES = 512 * 1024;

export const DATABASES = ['identity', 'ledger'] as const;
export type DatabaseName = (typeof DATABASES)[number];

/** Held with a lease by the server that serves; every write depends on who made it. */
export const LEADER = 'leader';
/** Number of the last change. */
export const HEAD = 'head';
/** Which snapshot holds. */
export const SNAPSHOT = 'snapshot/current';
export const KEYS = 'keys/';

const padded = (n: number) => String(n).padStart(16, '0');
export const logKey = (sequence: number) => `log/${padded(sequence)}`;
/** What of an entry did not fit into it. */
export const logChunkKey = (sequence: number, i: number) => `log-chunk/${padded(sequence)}/${padded(i)}`;
export const snapshotChunkKey = (id: string, name: DatabaseName, i: number) =>
  `snapshot/data/${id}/${name}/${padded(i)}`;

export const leaderSchema = z.object({ server: z.string(), address: z.string(), since: z.string() });
export type LeaderInfo = z.infer<typeof leaderSchema>;

const part = z.object({ chunks: z.number().int().min(0), bytes: z.number().int().min(0), sha256: z.string() });
export const snapshotSchema = z.object({
  id: z.string(),
  /** It holds every change up to this one. */
  sequence: z.number().int().min(0),
  /** user_version of each database. */
  schema: z.object({ identity: z.number().int(), ledger: z.number().int() }),
  parts: z.object({ identity: part, ledger: part }),
});
export type SnapshotInfo = z.infer<typeof snapshotSchema>;

/** Changesets of SQLite's session extension, taken at one moment from both databases. */
export type Changes = Readonly<Record<DatabaseName, Uint8Array>>;

/** Length of the first, the first, the second. */
export function encodeChanges({ identity, ledger }: Changes): Buffer {
  const length = Buffer.alloc(4);
  length.writeUInt32BE(identity.length);
  return Buffer.concat([length, identity, ledger]);
}

export function decodeChanges(bytes: Buffer): Changes {
  const length = bytes.readUInt32BE();
  return { identity: bytes.subarray(4, 4 + length), ledger: bytes.subarray(4 + length) };
}

export function chunksOf(bytes: Buffer): Buffer[] {
  const chunks: Buffer[] = [];
  for (let at = 0; at < bytes.length; at += CHUNK_BYTES) chunks.push(bytes.subarray(at, at + CHUNK_BYTES));
  return chunks;
}

export function parseJson<T>(schema: z.ZodType<T>, bytes: Buffer): T {
  return schema.parse(JSON.parse(bytes.toString('utf8')));
}
