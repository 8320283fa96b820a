/** Files that are their owner's alone, read and written so that nobody else gets a look at them and a crash leaves all of one or nothing. */
import { closeSync, constants, fstatSync, fsyncSync, openSync, readSync, renameSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { CountersignError } from './errors.ts';

const GROUP_AND_WORLD = 0o077;

/**
 * The content of a secret's file. Not followed if it is a link, refused if group or others may read or write it, if it belongs to another user (root apart) or
 * is larger than `maxBytes`.
 * @throws CountersignError bad-input or permission-denied, with the path and what to do; never with the content.
 */
export function readPrivateFile(path: string, maxBytes = 64 * 1024): Buffer {
  // O_NONBLOCK: opening a pipe would wait for its writer
  const file = openFor(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
  try {
    const stats = fstatSync(file);
    if (!stats.isFile()) throw new CountersignError('bad-input', `${path}: not a file; put the file itself there`);
    if ((stats.mode & GROUP_AND_WORLD) !== 0) {
      throw new CountersignError('permission-denied', `${path}: group or others may read it; run chmod 600 ${path}`);
    }
    const self = process.geteuid?.();
    if (self !== undefined && stats.uid !== self && stats.uid !== 0) {
      throw new CountersignError('permission-denied', `${path}: it belongs to another user; run chown ${self} ${path}`);
    }
    return readBounded(path, file, maxBytes);
  } finally {
    closeSync(file);
  }
}

/** As readPrivateFile for what is no secret: a certificate. Links are followed. */
export function readPublicFile(path: string, maxBytes = 64 * 1024): Buffer {
  const file = openFor(path, constants.O_RDONLY | constants.O_NONBLOCK);
  try {
    if (!fstatSync(file).isFile()) throw new CountersignError('bad-input', `${path}: not a file; name the file itself`);
    return readBounded(path, file, maxBytes);
  } finally {
    closeSync(file);
  }
}

/** Writes beside the place and renames; on disk, 0600, when it returns. What stood there is replaced as a whole. */
export function writePrivateFile(path: string, content: Uint8Array | string): void {
  const fresh = `${path}.new`;
  const file = openSync(
    fresh,
    constants.O_WRONLY | constants.O_CREAT | constants.O_TRUNC | constants.O_NOFOLLOW,
    0o600,
  );
  try {
    writeFileSync(file, content);
    fsyncSync(file);
  } finally {
    closeSync(file);
  }
  renameSync(fresh, path);
  syncDirectory(dirname(path));
}

/** What was made, renamed or removed in it is on disk when this returns. */
export function syncDirectory(path: string): void {
  const directory = openSync(path, constants.O_RDONLY);
  try {
    fsyncSync(directory);
  } finally {
    closeSync(directory);
  }
}

function openFor(path: string, flags: number): number {
  try {
    return openSync(path, flags);
  } catch (thrown) {
    const { code } = thrown as NodeJS.ErrnoException;
    const what =
      code === 'ENOENT'
        ? 'there is no such file'
        : code === 'ELOOP'
          ? 'it is a link; put the file itself there'
          : `it cannot be read (${code})`;
    throw new CountersignError(code === 'ENOENT' ? 'not-found' : 'bad-input', `${path}: ${what}`, { cause: thrown });
  }
}

function readBounded(path: string, file: number, maxBytes: number): Buffer {
  const buffer = Buffer.alloc(maxBytes + 1);
  let length = 0;
  for (let got = -1; got !== 0 && length < buffer.length; length += got) {
    got = readSync(file, buffer, length, buffer.length - length, null);
  }
  if (length > maxBytes) throw new CountersignError('bad-input', `${path}: larger than ${maxBytes} bytes`);
  const content = Buffer.from(buffer.subarray(0, length));
  buffer.fill(0);
  return content;
}
