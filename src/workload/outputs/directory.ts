/**
 * A directory whose files change all at once. They lie in a directory of their own, `current` is a symbolic link to it, and each
 * file's name is a link through `current`: one rename of `current` changes key, certificate and bundle together. A program that
 * opens several of them in turn can see a change between two; one that first resolves `current` never does.
 */
import { randomBytes } from 'node:crypto';
import {
  closeSync,
  fsyncSync,
  lstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readlinkSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { dirname, join } from 'node:path';
import { CountersignError } from '../../base/errors.ts';
import { syncDirectory } from '../../base/private-file.ts';

export interface OutputFile {
  /** A plain name, or `directory/name`. */
  readonly name: string;
  readonly content: string | Buffer;
  readonly mode: number;
}

const CURRENT = 'current';
const GENERATION = /^\.svid-[0-9a-f]{16}$/;

/**
 * Makes the directory if it is not there.
 * @throws CountersignError bad-input if others may write into it: they could put a key of theirs in its place
 */
export function checkOutputDirectory(directory: string): void {
  try {
    mkdirSync(directory, { recursive: true, mode: 0o755 });
    const found = statSync(directory);
    const uid = process.getuid!();
    if (found.uid !== uid && found.uid !== 0) {
      throw new CountersignError(
        'bad-input',
        `${directory} belongs to uid ${found.uid}; write to a directory of uid ${uid}`,
      );
    }
    if ((found.mode & 0o022) !== 0) {
      throw new CountersignError('bad-input', `others may write into ${directory}; chmod go-w it`);
    }
  } catch (thrown) {
    if (thrown instanceof CountersignError) throw thrown;
    const { code } = thrown as NodeJS.ErrnoException;
    throw new CountersignError('bad-input', `${directory} cannot be written to (${code}); name another directory`);
  }
}

/** Replaces what the last call wrote with these files, in one step. On disk when it returns. One writer for a directory. */
export function replaceFiles(directory: string, files: readonly OutputFile[]): void {
  const generation = `.svid-${randomBytes(8).toString('hex')}`;
  const within = join(directory, generation);
  mkdirSync(within, { mode: 0o755 });
  for (const { name, content, mode } of files) {
    mkdirSync(dirname(join(within, name)), { recursive: true, mode: 0o755 });
    const fd = openSync(join(within, name), 'wx', mode);
    try {
      writeFileSync(fd, content);
      fsyncSync(fd);
    } finally {
      closeSync(fd);
    }
  }
  syncDirectory(within);
  const previous = generationBefore(directory);
  link(generation, join(directory, CURRENT));
  const names = new Set(files.map(({ name }) => name.split('/')[0]!));
  for (const name of names) link(`${CURRENT}/${name}`, join(directory, name));
  removeStale(directory, names, [generation, previous]);
  syncDirectory(directory);
}

function generationBefore(directory: string): string | undefined {
  try {
    return readlinkSync(join(directory, CURRENT));
  } catch {
    return undefined;
  }
}

/** The link is there or was: never is there a moment without it. */
function link(target: string, path: string): void {
  try {
    if (readlinkSync(path) === target) return;
  } catch {
    // none yet, or a file of an earlier owner of the name: it is replaced
  }
  const temporary = `${path}.${randomBytes(8).toString('hex')}`;
  symlinkSync(target, temporary);
  renameSync(temporary, path);
}

/** Links to files that are no longer written, and generations that nobody can have just resolved. */
function removeStale(directory: string, names: ReadonlySet<string>, keep: readonly (string | undefined)[]): void {
  for (const entry of readdirSync(directory)) {
    const path = join(directory, entry);
    if (GENERATION.test(entry)) {
      if (!keep.includes(entry)) rmSync(path, { recursive: true, force: true });
    } else if (entry !== CURRENT && !names.has(entry) && lstatSync(path).isSymbolicLink()) {
      if (readlinkSync(path).startsWith(`${CURRENT}/`)) rmSync(path, { force: true });
    }
  }
}
