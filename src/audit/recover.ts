/** Opening a log: the tree is built anew from the file, held against the last checkpoint, and what a crash left is mended. */
import {
  closeSync,
  existsSync,
  fsyncSync,
  ftruncateSync,
  openSync,
  readFileSync,
  readSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { CountersignError } from '../base/errors.ts';
import { CHECKPOINT_FILE, CHECKPOINTS_FILE, eventsFileName, eventsFiles, readLines } from './layout.ts';
import type { MerkleTree } from './merkle.ts';
import { type Checkpoint, type NoteVerifier, openCheckpoint } from './note.ts';
import { linePrefix } from './record.ts';

export interface Recovered {
  readonly path: string;
  /** Bytes of the last events file that are in the tree: where the next line goes. */
  readonly length: number;
  readonly lastCheckpoint: Checkpoint | undefined;
  /** What was cut off behind the last good line, and the file that keeps it. */
  readonly repaired: { readonly bytes: number; readonly keptIn: string } | undefined;
}

/** Fills the tree. @throws CountersignError bad-input if the log is not what its last checkpoint signs. */
export function recoverLog(dir: string, verifier: NoteVerifier, tree: MerkleTree): Recovered {
  const signed = newestCheckpoint(dir, verifier);
  const check = () => {
    if (signed !== undefined && tree.size === signed.size && !tree.root().equals(signed.root)) {
      throw altered(dir, `its first ${signed.size} events are not those that the last checkpoint signs`);
    }
  };
  check();
  const files = eventsFiles(dir);
  const last = files.at(-1)?.path ?? join(dir, eventsFileName(0));
  let length = 0;
  let damaged = false;
  for (const file of files) {
    if (file.firstSeq !== tree.size) throw altered(dir, `events ${tree.size} to ${file.firstSeq - 1} are missing`);
    length = 0;
    for (const line of readLines(file.path)) {
      damaged = !line.whole || !isRecord(line.bytes, tree.size);
      if (damaged) break;
      tree.append(line.bytes);
      length = line.offset + line.bytes.length + 1;
      check();
    }
    if (damaged && (file.path !== last || tree.size < (signed?.size ?? 0))) {
      throw altered(dir, `line ${tree.size + 1} is not event ${tree.size}`);
    }
  }
  if (signed !== undefined && tree.size < signed.size) {
    throw altered(dir, `it holds ${tree.size} events and its last checkpoint signs ${signed.size}`);
  }
  const repaired = damaged ? cutTail(dir, last, length, tree.size) : undefined;
  return { path: last, length, lastCheckpoint: signed, repaired };
}

/** Only lines of this log's own making count; a crash may leave half a line or a hole of zeros behind the last synced one. */
function isRecord(line: Buffer, seq: number): boolean {
  const prefix = linePrefix(seq);
  return line.toString('latin1', 0, prefix.length) === prefix && line.at(-1) === 0x7d;
}

function newestCheckpoint(dir: string, verifier: NoteVerifier): Checkpoint | undefined {
  const found: Checkpoint[] = [];
  const add = (file: string, note: string) => {
    const checkpoint = openCheckpoint(note, verifier);
    if (!checkpoint.ok) throw altered(dir, `${file}: ${checkpoint.error}`);
    found.push(checkpoint.value);
  };
  const newest = join(dir, CHECKPOINT_FILE);
  if (existsSync(newest)) add(CHECKPOINT_FILE, readFileSync(newest, 'utf8'));
  const history = join(dir, CHECKPOINTS_FILE);
  if (existsSync(history)) {
    let last: string | undefined;
    let length = 0;
    for (const line of readLines(history)) {
      if (!line.whole) break;
      last = line.bytes.toString();
      length = line.offset + line.bytes.length + 1;
    }
    if (length < statSync(history).size) truncate(history, length);
    if (last !== undefined) add(CHECKPOINTS_FILE, noteOfLine(last) ?? '');
  }
  return found.sort((a, b) => a.size - b.size).at(-1);
}

/** A line of the checkpoint history is its note as a JSON string. */
export function noteOfLine(line: string): string | undefined {
  try {
    const note: unknown = JSON.parse(line);
    return typeof note === 'string' ? note : undefined;
  } catch {
    return undefined;
  }
}

/** Nothing is thrown away: what followed the last good line is kept beside the log. */
function cutTail(dir: string, path: string, length: number, seq: number): { bytes: number; keptIn: string } {
  const bytes = statSync(path).size - length;
  let keptIn = '';
  for (let n = 0; keptIn === '' || existsSync(join(dir, keptIn)); n++) keptIn = `damaged-${seq}.${n}`;
  const fd = openSync(path, 'r');
  // A tail beyond this is no half line of ours; its first bytes tell what it is.
  const tail = Buffer.alloc(Math.min(bytes, 1 << 24));
  try {
    readSync(fd, tail, 0, tail.length, length);
  } finally {
    closeSync(fd);
  }
  writeFileSync(join(dir, keptIn), tail, { mode: 0o600, flush: true });
  truncate(path, length);
  return { bytes, keptIn };
}

function truncate(path: string, length: number): void {
  const fd = openSync(path, 'r+');
  try {
    ftruncateSync(fd, length);
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}

function altered(dir: string, what: string): CountersignError {
  return new CountersignError(
    'bad-input',
    `the audit log in ${dir} was altered: ${what}; keep the directory as evidence and start with an empty one`,
  );
}
