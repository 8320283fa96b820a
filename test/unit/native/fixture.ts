/** Compiles the test programs once per test file, and says whether this user may load them. */

import { execFileSync } from 'node:child_process';
import { mkdtempSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { clang } from './clang.ts';

export const privileged = process.geteuid?.() === 0;

const directory = mkdtempSync(join(tmpdir(), 'cs-t-native-'));

export function compileFixture(...defines: string[]): string {
  const out = join(directory, `fixture${defines.join('')}.bpf.o`);
  const source = join(import.meta.dirname, 'fixture.bpf.c');
  const include = `/usr/include/${execFileSync('gcc', ['-dumpmachine']).toString().trim()}`;
  execFileSync(clang(), [
    '-O2',
    '-g',
    '-target',
    'bpf',
    `-I${include}`,
    ...defines.map((d) => `-D${d}`),
    '-c',
    source,
    '-o',
    out,
  ]);
  return out;
}

export function u32(n: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(n);
  return bytes;
}

export function u64(n: bigint): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(n);
  return bytes;
}

/** What a call threw, with the addon's fields. */
export function thrownBy(fn: () => unknown): NodeJS.ErrnoException {
  try {
    fn();
  } catch (error) {
    return error as NodeJS.ErrnoException;
  }
  throw new Error('nothing was thrown');
}
