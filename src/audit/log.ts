/**
 * The audit log: each event one line, each line a leaf of an RFC 6962 tree, the tree's root signed at an interval.
 * A line reaches the kernel at the end of the turn it was emitted in, so a killed process loses no more than that turn;
 * it reaches the disk within the flush interval, and before any checkpoint that covers it.
 */
import {
  closeSync,
  constants,
  fdatasync,
  ftruncateSync,
  mkdirSync,
  openSync,
  renameSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import type { Clock } from '../base/clock.ts';
import { asError, CountersignError } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import type { AuditEvent, AuditSink } from '../model/audit-event.ts';
import { type Certify, openLogKey, writeKeyCertificate } from './key.ts';
import { CHECKPOINT_FILE, CHECKPOINTS_FILE } from './layout.ts';
import { lockLog } from './lock.ts';
import { MerkleTree } from './merkle.ts';
import { type Checkpoint, encodeCheckpoint, isKeyName, signNote } from './note.ts';
import { encodeRecord } from './record.ts';
import { recoverLog } from './recover.ts';
import { removeTile, TileBuilder, writePartialTile, writeTile } from './tiles.ts';

const sync = promisify(fdatasync);

/** Written at once when this much waits, so that a burst in one turn needs no memory beyond it. */
const WRITE_AT_BYTES = 1 << 20;
/** The disk is failing when this much waits: what comes then is counted, and the count is logged when it recovers. */
const MAX_PENDING_BYTES = 16 << 20;
/** The wall clock was set, not merely read coarsely, when it and the boot clock disagree by more. */
const CLOCK_STEP_NS = 2_000_000n;

export interface AuditLogOptions {
  /** Made with mode 0700 if missing. */
  readonly dir: string;
  /** Name of the log and of its key: the SPIFFE ID of the node without its scheme, "example.org/node/node-a". */
  readonly origin: string;
  readonly clock: Clock;
  readonly log: Logger;
  /** The `node` field of each line. Default: the last segment of the origin. */
  readonly node?: string;
  /** Certifies the log's key at once; without it call `certify` when the node has its SVID. */
  readonly certify?: Certify;
  /** Default 10,000. */
  readonly checkpointIntervalMs?: number;
  /** The longest an event waits for fsync. Default 200. */
  readonly flushIntervalMs?: number;
}

export interface SignedCheckpoint extends Checkpoint {
  /** The C2SP signed note. */
  readonly note: string;
}

export interface AuditLog extends AuditSink {
  /** Events written so far. */
  readonly size: number;
  /** Events that could not be written because the disk failed for too long. */
  readonly lost: number;
  /** Has the node vouch for the log's key: at each start, with the SVID of the day. */
  certify(certify: Certify): void;
  /** Makes all events so far durable and signs them. */
  checkpoint(): Promise<SignedCheckpoint>;
  /** Signs what is there and lets go of the directory. Later events are counted as lost. */
  close(): Promise<void>;
}

/** @throws CountersignError if the directory is in use, not private, or the log is not what its checkpoint signs. */
export function openAuditLog(options: AuditLogOptions): AuditLog {
  if (!isKeyName(options.origin)) {
    throw new CountersignError('bad-input', `audit log origin ${JSON.stringify(options.origin)}: no spaces, no "+"`);
  }
  mkdirSync(options.dir, { recursive: true, mode: 0o700 });
  const unlock = lockLog(options.dir);
  try {
    return new FileAuditLog(options, unlock);
  } catch (error) {
    unlock();
    throw error;
  }
}

class FileAuditLog implements AuditLog {
  readonly #options: AuditLogOptions;
  readonly #node: string;
  readonly #unlock: () => void;
  readonly #key: ReturnType<typeof openLogKey>;
  readonly #tiles: TileBuilder;
  readonly #tree: MerkleTree;
  readonly #fd: number;
  readonly #historyFd: number;
  readonly #timers: NodeJS.Timeout[];
  #length: number;
  #pending: Buffer[] = [];
  #pendingBytes = 0;
  #nextSeq: number;
  #writeScheduled = false;
  #dirty = false;
  #lost = 0;
  #lostUntold = 0;
  #signed: SignedCheckpoint | Checkpoint | undefined;
  #queue: Promise<unknown> = Promise.resolve();
  #closed = false;
  #anchor = { unixNs: 0n, bootNs: 0n };

  constructor(options: AuditLogOptions, unlock: () => void) {
    this.#options = options;
    this.#unlock = unlock;
    this.#node = options.node ?? options.origin.slice(options.origin.lastIndexOf('/') + 1);
    this.#key = openLogKey(options.dir, options.origin);
    this.#tiles = new TileBuilder((tile) => writeTile(options.dir, tile));
    this.#tree = new MerkleTree((level, hash) => this.#tiles.add(level, hash));
    const found = recoverLog(options.dir, this.#key.verifier, this.#tree);
    this.#signed = found.lastCheckpoint;
    this.#length = found.length;
    this.#nextSeq = this.#tree.size;
    this.#fd = openSync(found.path, constants.O_RDWR | constants.O_CREAT, 0o600);
    this.#historyFd = openSync(join(options.dir, CHECKPOINTS_FILE), 'a', 0o600);
    if (found.repaired !== undefined) {
      for (const tile of this.#tiles.partial()) removeTile(options.dir, tile);
      options.log.warn(
        { ...found.repaired, dir: options.dir },
        'audit log: cut off what a crash left after the last line',
      );
      this.emit({ kind: 'audit.repaired', detail: { ...found.repaired } });
    }
    if (options.certify !== undefined) this.certify(options.certify);
    // A log without any checkpoint could be exchanged whole: the first one signs the empty tree.
    if (this.#signed === undefined) this.#background();
    this.#timers = [
      setInterval(() => this.#flush(), options.flushIntervalMs ?? 200),
      setInterval(() => this.#background(), options.checkpointIntervalMs ?? 10_000),
    ];
    for (const timer of this.#timers) timer.unref();
  }

  get size(): number {
    return this.#tree.size;
  }

  get lost(): number {
    return this.#lost;
  }

  emit(event: AuditEvent): void {
    if (this.#closed || this.#pendingBytes >= MAX_PENDING_BYTES) {
      this.#lost++;
      this.#lostUntold++;
      return;
    }
    const line = encodeRecord({ seq: this.#nextSeq, timeNs: this.#now(), node: this.#node }, event);
    this.#nextSeq++;
    this.#pending.push(line);
    this.#pendingBytes += line.length + 1;
    if (this.#pendingBytes >= WRITE_AT_BYTES) {
      this.#write();
    } else if (!this.#writeScheduled) {
      this.#writeScheduled = true;
      setImmediate(() => {
        this.#writeScheduled = false;
        this.#write();
      });
    }
  }

  certify(certify: Certify): void {
    writeKeyCertificate(this.#options.dir, this.#key.verifier, certify);
  }

  checkpoint(): Promise<SignedCheckpoint> {
    const done = this.#queue.then(() => this.#sign());
    this.#queue = done.catch(() => {});
    return done;
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    for (const timer of this.#timers) clearInterval(timer);
    try {
      await this.checkpoint();
    } finally {
      this.#closed = true;
      closeSync(this.#fd);
      closeSync(this.#historyFd);
      this.#unlock();
    }
  }

  /** Unix ns: the wall clock's milliseconds, refined by the boot clock for as long as both run alike. */
  #now(): bigint {
    const wall = BigInt(Math.trunc(this.#options.clock.nowMs())) * 1_000_000n;
    const boot = this.#options.clock.bootNs();
    const refined = this.#anchor.unixNs + (boot - this.#anchor.bootNs);
    const drift = refined - wall;
    if (drift > -CLOCK_STEP_NS && drift < CLOCK_STEP_NS) return refined;
    this.#anchor = { unixNs: wall, bootNs: boot };
    return wall;
  }

  /** All that waits, in one write. Only lines that are whole in the file enter the tree; a failed write is undone and tried again. */
  #write(): void {
    if (this.#pending.length === 0 || this.#closed) return;
    const lines = this.#pending;
    const data = Buffer.concat(lines.flatMap((line) => [line, NEWLINE]));
    try {
      for (let done = 0; done < data.length; ) {
        done += writeSync(this.#fd, data, done, data.length - done, this.#length + done);
      }
    } catch (error) {
      this.#options.log.error({ err: asError(error), waiting: lines.length }, 'audit log: cannot write');
      ftruncateSync(this.#fd, this.#length);
      return;
    }
    this.#pending = [];
    this.#pendingBytes = 0;
    this.#length += data.length;
    this.#dirty = true;
    for (const line of lines) this.#tree.append(line);
    if (this.#lostUntold > 0) {
      const count = this.#lostUntold;
      this.#lostUntold = 0;
      this.emit({ kind: 'audit.lost', detail: { count } });
    }
  }

  #flush(): void {
    this.#write();
    if (!this.#dirty) return;
    this.#queue = this.#queue.then(() => this.#sync()).catch((error) => this.#report(error));
  }

  async #sync(): Promise<void> {
    if (!this.#dirty || this.#closed) return;
    this.#dirty = false;
    try {
      await sync(this.#fd);
    } catch (error) {
      this.#dirty = true;
      throw error;
    }
  }

  #background(): void {
    this.#write();
    if (this.#signed?.size === this.#tree.size) return;
    this.checkpoint().catch((error) => this.#report(error));
  }

  #report(error: unknown): void {
    this.#options.log.error({ err: asError(error) }, 'audit log: cannot make events durable');
  }

  /** The order matters: events on disk, then the history, then the newest checkpoint. No checkpoint is ahead of its events. */
  async #sign(): Promise<SignedCheckpoint> {
    if (this.#closed) throw new CountersignError('unavailable', 'the audit log is closed');
    this.#write();
    if (this.#pending.length > 0) throw new CountersignError('unavailable', 'the audit log cannot be written');
    if (this.#signed?.size === this.#tree.size && 'note' in this.#signed) return this.#signed;
    const checkpoint = { origin: this.#options.origin, size: this.#tree.size, root: this.#tree.root() };
    const partial = this.#tiles.partial();
    await this.#sync();
    const note = signNote(encodeCheckpoint(checkpoint), this.#key.verifier, this.#key.privateKey);
    if (this.#signed?.size !== checkpoint.size) {
      writeSync(this.#historyFd, `${JSON.stringify(note)}\n`);
      await sync(this.#historyFd);
    }
    const path = join(this.#options.dir, CHECKPOINT_FILE);
    writeFileSync(`${path}.tmp`, note, { mode: 0o600, flush: true });
    renameSync(`${path}.tmp`, path);
    for (const tile of partial) writePartialTile(this.#options.dir, tile);
    this.#signed = { ...checkpoint, note };
    return this.#signed as SignedCheckpoint;
  }
}

const NEWLINE = Buffer.of(0x0a);
