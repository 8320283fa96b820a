/**
 * Is the log whole? Offline, from its directory and at most the trust bundle. In order: the key is the node's; each
 * checkpoint is signed by the key; each line is in its place; the tree over the lines is the one each checkpoint signs;
 * what was derived from it (tiles) agrees.
 */
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { err, ok, type Result } from '../base/errors.ts';
import type { TrustBundle } from '../model/identity.ts';
import { verifyKeyCertificate } from './key.ts';
import { CHECKPOINT_FILE, CHECKPOINTS_FILE, eventsFiles, readLines, VKEY_FILE } from './layout.ts';
import { HASH_SIZE, leafHash, MerkleTree } from './merkle.ts';
import { type Checkpoint, type NoteVerifier, openCheckpoint, parseVkey } from './note.ts';
import { linePrefix } from './record.ts';
import { noteOfLine } from './recover.ts';
import { readTile, type Tile, TileBuilder, tilePath } from './tiles.ts';

export interface VerifyOptions {
  /** With it the key must be certified by the node whose log this claims to be. */
  readonly bundle?: TrustBundle;
  /** A verifier key from elsewhere, which the log's must equal. */
  readonly vkey?: string;
  /** Unix ms. */
  readonly nowMs: number;
}

export interface VerifiedLog {
  readonly origin: string;
  /** What the key was held against; "nothing" means that whoever could exchange the whole directory is not found out. */
  readonly keyTrust: 'bundle' | 'vkey' | 'nothing';
  /** SPIFFE ID of the node that certified the key, if a bundle was given. */
  readonly signer: string | undefined;
  /** Lines, signed or not. */
  readonly events: number;
  /** Events that the newest checkpoint signs. */
  readonly size: number;
  /** Root of those, lower-case hex. */
  readonly root: string;
  readonly checkpoints: number;
  /** Events after the newest checkpoint: in their place, but nothing vouches for them yet. */
  readonly unsignedTail: number;
}

export interface LogProblem {
  /** Counted from 1 over the whole log, where one line can be named. */
  readonly line?: number;
  readonly problem: string;
}

/** Reads the log once, in constant memory. */
export function verifyAuditLog(dir: string, options: VerifyOptions): Result<VerifiedLog, LogProblem> {
  try {
    return new Verification(dir, options).run();
  } catch (thrown) {
    if (thrown instanceof Problem) return err(thrown.detail);
    const code = (thrown as NodeJS.ErrnoException).code;
    if (typeof code === 'string') return err({ problem: `${dir} cannot be read: ${code}` });
    throw thrown;
  }
}

/** How a step refuses; never leaves this file. */
class Problem extends Error {
  readonly detail: LogProblem;

  constructor(problem: string, line?: number) {
    super(problem);
    this.detail = line === undefined ? { problem } : { line, problem };
  }
}

class Verification {
  readonly #dir: string;
  readonly #options: VerifyOptions;
  readonly #tiles = new TileBuilder((tile) => this.#checkTile(tile));
  readonly #tree = new MerkleTree((level, hash) => this.#tiles.add(level, hash));
  #lastGood: Checkpoint | undefined;
  #tileProblem: Problem | undefined;

  constructor(dir: string, options: VerifyOptions) {
    this.#dir = dir;
    this.#options = options;
  }

  run(): Result<VerifiedLog, LogProblem> {
    const { verifier, keyTrust, signer } = this.#verifyKey();
    const newest = this.#newestCheckpoint(verifier);
    const history = this.#history(verifier);
    let next = history.next();
    let checkpoints = 0;
    const check = () => {
      for (; !next.done && next.value.size <= this.#tree.size; next = history.next()) {
        this.#holdAgainst(next.value);
        checkpoints++;
      }
      if (newest.size === this.#tree.size) this.#holdAgainst(newest);
    };
    check();
    for (const line of this.#lines(newest)) {
      this.#tree.append(line);
      check();
    }
    const signed = next.done || next.value.size < newest.size ? newest.size : next.value.size;
    if (this.#tree.size < signed) {
      throw new Problem(
        `cut short: a checkpoint signs ${signed} events, the log holds ${this.#tree.size}`,
        this.#tree.size + 1,
      );
    }
    for (const tile of this.#tiles.partial()) this.#checkTile(tile);
    if (this.#tileProblem !== undefined) throw this.#tileProblem;
    const last = this.#lastGood!;
    return ok({
      origin: verifier.name,
      keyTrust,
      signer,
      events: this.#tree.size,
      size: last.size,
      root: last.root.toString('hex'),
      checkpoints,
      unsignedTail: this.#tree.size - last.size,
    });
  }

  #verifyKey(): { verifier: NoteVerifier; keyTrust: VerifiedLog['keyTrust']; signer: string | undefined } {
    const path = join(this.#dir, VKEY_FILE);
    if (!existsSync(path)) throw new Problem(`no audit log: ${VKEY_FILE} is missing in ${this.#dir}`);
    const text = readFileSync(path, 'utf8').trimEnd();
    const verifier = parseVkey(text);
    if (!verifier.ok) throw new Problem(`${VKEY_FILE}: ${verifier.error}`);
    if (this.#options.vkey !== undefined && this.#options.vkey.trim() !== text) {
      throw new Problem('the log is signed with another key than the one given');
    }
    const keyTrust = this.#options.vkey !== undefined ? 'vkey' : 'nothing';
    if (this.#options.bundle === undefined) return { verifier: verifier.value, keyTrust, signer: undefined };
    const signer = verifyKeyCertificate(this.#dir, verifier.value, this.#options.bundle, this.#options.nowMs);
    if (!signer.ok) throw new Problem(signer.error);
    return { verifier: verifier.value, keyTrust: 'bundle', signer: signer.value };
  }

  #newestCheckpoint(verifier: NoteVerifier): Checkpoint {
    const path = join(this.#dir, CHECKPOINT_FILE);
    if (!existsSync(path)) throw new Problem('no checkpoint: nothing in this log is signed');
    const checkpoint = openCheckpoint(readFileSync(path, 'utf8'), verifier);
    if (!checkpoint.ok) throw new Problem(`${CHECKPOINT_FILE}: ${checkpoint.error}`);
    return checkpoint.value;
  }

  /** Every checkpoint ever signed, oldest first. A torn last line is one that was being written when the process was killed. */
  *#history(verifier: NoteVerifier): Generator<Checkpoint, undefined, void> {
    const path = join(this.#dir, CHECKPOINTS_FILE);
    if (!existsSync(path)) throw new Problem(`${CHECKPOINTS_FILE} is missing`);
    let last = -1;
    for (const line of readLines(path)) {
      if (!line.whole) return;
      const note = noteOfLine(line.bytes.toString());
      const checkpoint = note === undefined ? err('not a note') : openCheckpoint(note, verifier);
      if (!checkpoint.ok) throw new Problem(`${CHECKPOINTS_FILE}: after size ${last}: ${checkpoint.error}`);
      if (checkpoint.value.size < last) throw new Problem(`${CHECKPOINTS_FILE}: a checkpoint is out of order`);
      last = checkpoint.value.size;
      yield checkpoint.value;
    }
  }

  /** Lines in their place. Their bytes are the tree's matter up to the newest checkpoint; after it they must at least be events. */
  *#lines(newest: Checkpoint): Generator<Buffer, void, void> {
    for (const file of eventsFiles(this.#dir)) {
      if (file.firstSeq !== this.#tree.size) {
        throw new Problem(`events ${this.#tree.size} to ${file.firstSeq - 1} are missing`, this.#tree.size + 1);
      }
      for (const line of readLines(file.path)) {
        const seq = this.#tree.size;
        if (!line.whole) {
          throw new Problem(
            'an incomplete line: altered, or its writer was killed (it mends this at its start)',
            seq + 1,
          );
        }
        const prefix = linePrefix(seq);
        if (line.bytes.toString('latin1', 0, prefix.length) !== prefix) {
          throw new Problem(`not event ${seq}: lines were removed, added, moved or altered here`, seq + 1);
        }
        if (seq >= newest.size && !isJson(line.bytes)) throw new Problem('not an event', seq + 1);
        yield line.bytes;
      }
    }
  }

  #holdAgainst(checkpoint: Checkpoint): void {
    if (!this.#tree.root().equals(checkpoint.root)) throw this.#locate(checkpoint.size);
    if (this.#lastGood === undefined || checkpoint.size > this.#lastGood.size) this.#lastGood = checkpoint;
  }

  /** The first line between two checkpoints whose stored leaf hash is not its own, if the tiles still tell. */
  #locate(size: number): Problem {
    const from = this.#lastGood?.size ?? 0;
    let seq = 0;
    let tile: Buffer | undefined;
    for (const file of eventsFiles(this.#dir)) {
      for (const line of readLines(file.path)) {
        if (seq >= size) break;
        const at = seq % 256;
        if (at === 0 || tile === undefined) tile = readTile(this.#dir, 0, Math.floor(seq / 256));
        const stored = tile?.subarray(at * HASH_SIZE, (at + 1) * HASH_SIZE);
        if (seq >= from && stored?.length === HASH_SIZE && !stored.equals(leafHash(line.bytes))) {
          return new Problem('altered: the line is not the one that was signed', seq + 1);
        }
        seq++;
      }
    }
    return new Problem(`altered: lines ${from + 1} to ${size} are not those that the checkpoint of size ${size} signs`);
  }

  /** A tile of what is not signed yet, or one that is not stored, proves nothing and harms nothing. */
  #checkTile(tile: Tile): void {
    if (this.#tileProblem !== undefined) return;
    const stored = readTile(this.#dir, tile.level, tile.index);
    if (stored === undefined || (stored.length <= tile.hashes.length && tile.hashes.indexOf(stored) === 0)) return;
    this.#tileProblem = new Problem(`${tilePath(tile.level, tile.index)} does not match the log`);
  }
}

function isJson(bytes: Buffer): boolean {
  try {
    JSON.parse(bytes.toString());
    return true;
  } catch {
    return false;
  }
}
