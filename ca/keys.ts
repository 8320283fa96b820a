/**
 * The authority on disk: `authority/` (0700) holds ca.key (PKCS#8, 0600) and ca.crt. It is written beside its place and renamed as a
 * whole, so that it is there entirely or not at all; what a crash leaves behind is cleared away, what is missing from it is refused.
 */

import type { KeyObject } from 'node:crypto';
import { constants } from 'node:fs';
import { type FileHandle, mkdir, open, rename, rm, stat } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { CountersignError } from '../src/base/errors.ts';
import { type Certificate, parseCertificate } from '../src/pki/certificate.ts';
import { privateKeyFromPem, privateKeyPem, publicKeyDer } from '../src/pki/keys.ts';
import { decodePem, encodePem } from '../src/pki/pem.ts';

const GROUP_AND_WORLD = 0o077;
const MAX_FILE_BYTES = 64 * 1024;
const KEY_FILE = 'ca.key';
const CERTIFICATE_FILE = 'ca.crt';

export interface Authority {
  readonly key: KeyObject;
  readonly certificate: Certificate;
}

/** Makes the state directory if it is not there. @throws CountersignError if others may write to it. */
export async function openStateDirectory(directory: string): Promise<void> {
  await mkdir(directory, { recursive: true, mode: 0o700 });
  const { mode } = await stat(directory);
  if ((mode & 0o022) !== 0) {
    throw new CountersignError('permission-denied', `${directory}: others may write to it; run chmod 700 ${directory}`);
  }
}

/** undefined: there is none yet. @throws CountersignError for one that is open to others, half there or does not fit together. */
export async function loadAuthority(directory: string): Promise<Authority | undefined> {
  const place = join(directory, 'authority');
  await rm(join(directory, 'authority.new'), { recursive: true, force: true });
  const found = await stat(place).catch(absent);
  if (found === undefined) return undefined;
  if ((found.mode & GROUP_AND_WORLD) !== 0) {
    throw new CountersignError('permission-denied', `${place}: group or others may enter; run chmod 700 ${place}`);
  }
  const keyPath = join(place, KEY_FILE);
  const certificatePath = join(place, CERTIFICATE_FILE);
  const key = inFile(keyPath, await readPrivate(keyPath), privateKeyFromPem);
  const certificate = inFile(certificatePath, await readPublic(certificatePath), certificateFromPem);
  if (!publicKeyDer(key).equals(certificate.spki)) {
    throw new CountersignError('bad-input', `${place}: ca.key is not the key of ca.crt; restore both from one backup`);
  }
  return { key, certificate };
}

/** Durable when it returns. */
export async function storeAuthority(directory: string, key: KeyObject, certificateDer: Buffer): Promise<void> {
  const place = join(directory, 'authority');
  const fresh = join(directory, 'authority.new');
  await mkdir(fresh, { mode: 0o700 });
  await writeDurably(join(fresh, KEY_FILE), privateKeyPem(key), 0o600);
  await writeDurably(join(fresh, CERTIFICATE_FILE), encodePem('CERTIFICATE', certificateDer), 0o644);
  await syncDirectory(fresh);
  await rename(fresh, place);
  await syncDirectory(directory);
}

/** Reads a secret from a file that is its owner's alone; a link is not followed. */
async function readPrivate(path: string): Promise<string> {
  const file = await open(path, constants.O_RDONLY | constants.O_NOFOLLOW).catch((thrown) =>
    refuseMissing(path, thrown),
  );
  try {
    const { mode, uid } = await file.stat();
    if ((mode & GROUP_AND_WORLD) !== 0) {
      throw new CountersignError(
        'permission-denied',
        `${path}: group or others may read the key; run chmod 600 ${path}`,
      );
    }
    const self = process.geteuid?.();
    if (self !== undefined && uid !== self && uid !== 0) {
      throw new CountersignError('permission-denied', `${path}: it belongs to another user; run chown ${self} ${path}`);
    }
    return await readBounded(path, file);
  } finally {
    await file.close();
  }
}

async function readPublic(path: string): Promise<string> {
  const file = await open(path, constants.O_RDONLY).catch((thrown) => refuseMissing(path, thrown));
  try {
    return await readBounded(path, file);
  } finally {
    await file.close();
  }
}

async function readBounded(path: string, file: FileHandle): Promise<string> {
  const { size } = await file.stat();
  if (size > MAX_FILE_BYTES) throw new CountersignError('bad-input', `${path}: too large for a key or a certificate`);
  return file.readFile('latin1');
}

function inFile<T>(path: string, text: string, read: (text: string) => T): T {
  try {
    return read(text);
  } catch (thrown) {
    if (!(thrown instanceof CountersignError)) throw thrown;
    throw new CountersignError(thrown.code, `${path}: ${thrown.message}; restore ${dirname(path)} from a backup`);
  }
}

function certificateFromPem(text: string): Certificate {
  const [bytes, ...more] = decodePem(text, 'CERTIFICATE');
  const parsed = parseCertificate(bytes!);
  if (!parsed.ok || more.length > 0) throw new CountersignError('bad-input', 'not one certificate');
  return parsed.value;
}

async function writeDurably(path: string, text: string, mode: number): Promise<void> {
  const file = await open(path, 'wx', mode);
  try {
    await file.writeFile(text);
    await file.sync();
  } finally {
    await file.close();
  }
}

async function syncDirectory(path: string): Promise<void> {
  const directory = await open(path, constants.O_RDONLY);
  try {
    await directory.sync();
  } finally {
    await directory.close();
  }
}

function absent(thrown: NodeJS.ErrnoException): undefined {
  if (thrown.code !== 'ENOENT') throw thrown;
  return undefined;
}

function refuseMissing(path: string, thrown: NodeJS.ErrnoException): never {
  const what =
    thrown.code === 'ENOENT'
      ? `it is missing, but ${dirname(path)} is there; restore it from a backup`
      : thrown.code === 'ELOOP'
        ? 'it is a link; put the file itself there'
        : `it cannot be read (${thrown.code})`;
  throw new CountersignError('bad-input', `${path}: ${what}`, { cause: thrown });
}
