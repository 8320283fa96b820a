/**
 * A backup as one file: a line that says what it is, a JSON header that lists each part with its size and SHA-256, and the parts' bytes
 * one after the other. It is written as a stream and read with every length, name and digest checked before anything is believed.
 */
import { createHash } from 'node:crypto';
import { closeSync, constants, createReadStream, fstatSync, openSync, readSync, writeFileSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { z } from 'zod';
import { CountersignError } from '../../src/base/errors.ts';

const MAGIC = Buffer.from('countersign server backup v1\n');
const MAX_HEADER_BYTES = 1 << 20;
const CHUNK_BYTES = 256 * 1024;

/** The databases, and files of the authority's keys. Nothing that could name a place outside the data directory. */
const partName = z
  .string()
  .regex(/^(identity\.db|ca\/ledger\.db|ca\/(keys|authority)\/[A-Za-z0-9][A-Za-z0-9._-]{0,127})$/);

const headerSchema = z.strictObject({
  trustDomain: z.string().max(255),
  /** RFC 3339. */
  createdAt: z.iso.datetime(),
  parts: z
    .array(
      z.strictObject({
        name: partName,
        size: z.number().int().min(0),
        sha256: z.string().regex(/^[0-9a-f]{64}$/),
      }),
    )
    .max(10_000),
});
export type BackupHeader = z.infer<typeof headerSchema>;

/** A part that is to be written: a file, or bytes. */
export interface BackupPart {
  readonly name: string;
  readonly content: { readonly path: string } | Buffer;
}

/** @param write resolves when more is wanted */
export async function writeArchive(
  about: Pick<BackupHeader, 'trustDomain' | 'createdAt'>,
  parts: readonly BackupPart[],
  write: (chunk: Buffer) => Promise<void>,
): Promise<BackupHeader> {
  const listed: BackupHeader['parts'] = [];
  for (const { name, content } of parts) {
    const digest = createHash('sha256');
    let size = 0;
    for await (const chunk of bytesOf(content)) {
      digest.update(chunk);
      size += chunk.length;
    }
    listed.push({ name, size, sha256: digest.digest('hex') });
  }
  const header: BackupHeader = { ...about, parts: listed };
  const text = Buffer.from(JSON.stringify(header));
  const length = Buffer.alloc(4);
  length.writeUInt32BE(text.length);
  await write(Buffer.concat([MAGIC, length, text]));
  for (const { content } of parts) for await (const chunk of bytesOf(content)) await write(chunk);
  return header;
}

async function* bytesOf(content: BackupPart['content']): AsyncGenerator<Buffer> {
  if ('path' in content) yield* createReadStream(content.path, { highWaterMark: CHUNK_BYTES });
  else yield content;
}

/**
 * Reads a backup. Each part is written to the path that `place` gives for it (made, 0600), and is what the header says it is.
 * @throws CountersignError permission-denied: others may read it; bad-input: it is cut off, altered or no backup
 */
export async function readArchive(
  path: string,
  place: (name: string, header: BackupHeader) => string,
): Promise<BackupHeader> {
  const file = openPrivate(path);
  const wrong = (what: string) => new CountersignError('bad-input', `${path}: ${what}; use another backup`);
  try {
    let at = 0;
    const take = (length: number): Buffer => {
      const bytes = Buffer.alloc(length);
      const got = readSync(file, bytes, 0, length, at);
      if (got < length) throw wrong('it is cut off');
      at += length;
      return bytes;
    };
    const { size } = fstatSync(file);
    if (size < MAGIC.length + 4 || !take(MAGIC.length).equals(MAGIC)) throw wrong('it is no backup of a server');
    const length = take(4).readUInt32BE();
    if (length > MAX_HEADER_BYTES) throw wrong('its header is too large');
    const header = headerOf(take(length));
    if (header === undefined) throw wrong('its header does not check');
    if (size !== at + header.parts.reduce((sum, part) => sum + part.size, 0)) throw wrong('it is cut off or has more');
    for (const part of header.parts) {
      const target = await open(place(part.name, header), 'wx', 0o600);
      const digest = createHash('sha256');
      try {
        for (let left = part.size; left > 0; ) {
          const chunk = take(Math.min(left, CHUNK_BYTES));
          digest.update(chunk);
          writeFileSync(target.fd, chunk);
          left -= chunk.length;
        }
        await target.sync();
      } finally {
        await target.close();
      }
      if (digest.digest('hex') !== part.sha256) throw wrong(`${part.name} in it is not what was written`);
    }
    return header;
  } finally {
    closeSync(file);
  }
}

function headerOf(bytes: Buffer): BackupHeader | undefined {
  try {
    const header = headerSchema.parse(JSON.parse(bytes.toString('utf8')));
    const names = new Set(header.parts.map(({ name }) => name));
    const isWhole = names.size === header.parts.length && names.has('identity.db') && names.has('ca/ledger.db');
    return isWhole ? header : undefined;
  } catch {
    return undefined;
  }
}

function openPrivate(path: string): number {
  let file: number;
  try {
    file = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
  } catch (thrown) {
    const { code } = thrown as NodeJS.ErrnoException;
    throw new CountersignError('bad-input', `${path}: cannot be read (${code}); name a backup`, { cause: thrown });
  }
  const { mode } = fstatSync(file);
  if ((mode & 0o077) === 0) return file;
  closeSync(file);
  throw new CountersignError('permission-denied', `${path}: others may read it; run chmod 600 ${path}`);
}
