/** The password of the keystores: from a file that only its owner reads, or made once and kept in such a file. Never an argument. */
import { randomBytes } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import { CountersignError } from '../../base/errors.ts';
import { readPrivateFile } from '../../base/private-file.ts';

/** What a JVM's keytool takes, in characters that every reader encodes alike. */
const PASSWORD = /^[\x20-\x7e]{6,128}$/;

/** @throws CountersignError bad-input, permission-denied or not-found, with the path */
export function readPassword(path: string): string {
  const password = readPrivateFile(path, 1024)
    .toString('utf8')
    .replace(/\r?\n$/, '');
  if (!PASSWORD.test(password)) {
    const rule = 'a keystore password is one line of 6 to 128 printable ASCII characters';
    throw new CountersignError('bad-input', `${path}: ${rule}; write another`);
  }
  return password;
}

/** That of the last time, or a new one: 256 random bits. @throws as readPassword */
export function keptPassword(path: string): string {
  try {
    writeFileSync(path, `${randomBytes(32).toString('base64url')}\n`, { mode: 0o600, flag: 'wx' });
  } catch (thrown) {
    if ((thrown as NodeJS.ErrnoException).code !== 'EEXIST') throw thrown;
  }
  return readPassword(path);
}
