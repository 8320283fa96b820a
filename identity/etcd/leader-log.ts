/**
 * The leader's side of the log: what its databases changed since the last entry is put as the next one, in a transaction that says
 * who leads and which entry was the last. `durable` resolves when the change is there and this server led at a moment after the call.
 */
import type { DatabaseSync, Session } from 'node:sqlite';
import { asError, CountersignError } from '../../src/base/errors.ts';
import type { Logger } from '../../src/base/log.ts';
import type { Change, Condition, EtcdStore } from './client.ts';
import {
  type Changes,
  chunksOf,
  type DatabaseName,
  decodeChanges,
  encodeChanges,
  HEAD,
  logChunkKey,
  logKey,
  SNAPSHOT,
  type SnapshotInfo,
} from './layout.ts';
import type { Leadership } from './leadership.ts';
import { type Copies, copyDatabases, putCopies, schemaOf } from './snapshot.ts';

/** How long an answer is held back for etcd before its caller is told to ask again. */
const ANSWER_MS = 4_000;
const RETRY_MS = 100;
/** Changes that nobody waits for are put after this time, and the lead is looked at. */
const IDLE_MS = 500;

export interface LeaderLogOptions {
  readonly etcd: EtcdStore;
  readonly leadership: Leadership;
  /** Number of the last entry. */
  readonly head: number;
  readonly snapshot: SnapshotInfo | undefined;
  /** Where copies for snapshots are made. */
  readonly scratch: string;
  readonly nowMs: () => number;
  readonly log: Logger;
  /** A snapshot is made after so many entries or bytes; left out: 10,000 and 64 MiB. */
  readonly snapshotAfter?: { readonly entries: number; readonly bytes: number };
}

interface Waiting {
  readonly promise: Promise<void>;
  readonly resolve: () => void;
  readonly reject: (error: Error) => void;
}

export class LeaderLog {
  readonly #options: LeaderLogOptions;
  readonly #databases: Partial<Record<DatabaseName, DatabaseSync>> = {};
  readonly #sessions: Partial<Record<DatabaseName, Session>> = {};
  readonly #idle: NodeJS.Timeout;
  #head: number;
  #snapshot: SnapshotInfo | undefined;
  #sinceSnapshot = { entries: 0, bytes: 0 };
  #next: Waiting | undefined;
  #running = false;

  constructor(options: LeaderLogOptions) {
    this.#options = options;
    this.#head = options.head;
    this.#snapshot = options.snapshot;
    this.#sinceSnapshot.entries = options.head - (options.snapshot?.sequence ?? 0);
    this.#idle = setInterval(() => {
      if (this.#ready) this.durable().catch(() => {});
    }, IDLE_MS);
    this.#idle.unref();
  }

  opened(name: DatabaseName, database: DatabaseSync): void {
    this.#databases[name] = database;
    this.#sessions[name] = database.createSession();
  }

  /** @throws CountersignError unavailable: it is not known to be there, and never will be if this server lost the lead */
  async durable(): Promise<void> {
    const { lost } = this.#options.leadership;
    if (lost.aborted) throw notLeading(lost.reason);
    this.#next ??= Promise.withResolvers<void>();
    const waiting = this.#next;
    if (!this.#running) {
      this.#running = true;
      setImmediate(() => void this.#run());
    }
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<never>((_, reject) => {
      timer = setTimeout(() => reject(notRecorded()), ANSWER_MS);
    });
    try {
      await Promise.race([waiting.promise, late]);
    } finally {
      clearTimeout(timer);
    }
  }

  /** From now on nothing is put. */
  close(): void {
    clearInterval(this.#idle);
    this.#options.leadership.lose(new Error('this server was stopped'));
  }

  get #ready(): boolean {
    return this.#sessions.identity !== undefined && this.#sessions.ledger !== undefined;
  }

  /** One after the other; what comes while one is on its way goes together in the next. */
  async #run(): Promise<void> {
    const { leadership, log } = this.#options;
    while (this.#next !== undefined) {
      const waiting = this.#next;
      this.#next = undefined;
      // a rejection that only the timer's loser would have seen
      waiting.promise.catch(() => {});
      try {
        await this.#flush();
        waiting.resolve();
      } catch (thrown) {
        const error = asError(thrown);
        // what was taken from the sessions is in no log: this server's databases are not what its successor will see
        log.error({ problem: error.message }, 'the lead is lost; nothing is answered any more');
        leadership.lose(error);
        waiting.reject(notLeading(error));
      }
    }
    this.#running = false;
  }

  async #flush(): Promise<void> {
    if (!this.#ready) throw new Error('the databases are not open');
    const databases = this.#databases as Record<DatabaseName, DatabaseSync>;
    // All in one turn: between its parts nothing is written.
    const changes = this.#take();
    const { identity, ledger } = this.#snapshot?.schema ?? {};
    const isOtherSchema = identity !== schemaOf(databases.identity) || ledger !== schemaOf(databases.ledger);
    const { entries, bytes } = this.#options.snapshotAfter ?? { entries: 10_000, bytes: 64 << 20 };
    const isDue = this.#sinceSnapshot.entries >= entries || this.#sinceSnapshot.bytes >= bytes;
    const copies = isOtherSchema || isDue ? this.#copy(databases) : undefined;
    // Changes to the tables themselves are in no changeset: then only the snapshot tells of them.
    if (isOtherSchema && copies !== undefined) await this.#putSnapshot(copies, this.#head + 1);
    else {
      if (changes === undefined) await this.#confirm();
      else await this.#putEntry(changes);
      if (copies !== undefined) await this.#putSnapshot(copies, this.#head);
    }
  }

  #copy(databases: Readonly<Record<DatabaseName, DatabaseSync>>): Copies {
    const { scratch, nowMs } = this.#options;
    return copyDatabases(databases, scratch, nowMs());
  }

  #take(): Changes | undefined {
    const changes = { identity: this.#changesOf('identity'), ledger: this.#changesOf('ledger') };
    return changes.identity.length + changes.ledger.length === 0 ? undefined : changes;
  }

  #changesOf(name: DatabaseName): Uint8Array {
    const session = this.#sessions[name]!;
    const changes = session.changeset();
    if (changes.length > 0) {
      session.close();
      this.#sessions[name] = this.#databases[name]!.createSession();
    }
    return changes;
  }

  async #confirm(): Promise<void> {
    await this.#change([], []);
  }

  async #putEntry(changes: Changes): Promise<void> {
    const sequence = this.#head + 1;
    const bytes = encodeChanges(changes);
    const [last, ...rest] = chunksOf(bytes).toReversed();
    for (const [i, value] of rest.toReversed().entries()) {
      await this.#change([], [{ put: logChunkKey(sequence, i), value }]);
    }
    const count = Buffer.alloc(4);
    count.writeUInt32BE(rest.length);
    await this.#advance(sequence, [{ put: logKey(sequence), value: Buffer.concat([count, last!]) }]);
    this.#sinceSnapshot.entries += 1;
    this.#sinceSnapshot.bytes += bytes.length;
  }

  async #putSnapshot(copies: Copies, sequence: number): Promise<void> {
    const { etcd, leadership, log } = this.#options;
    const info = await this.#untilAnswered(() => putCopies(etcd, leadership.condition, sequence, copies));
    if (info === undefined) throw notLeading(new Error('another server leads'));
    const before = this.#snapshot;
    const put = { put: SNAPSHOT, value: JSON.stringify(info) };
    if (sequence > this.#head) await this.#advance(sequence, [put]);
    else await this.#change([], [put]);
    this.#snapshot = info;
    this.#sinceSnapshot = { entries: 0, bytes: 0 };
    log.info({ sequence, bytes: info.parts.identity.bytes + info.parts.ledger.bytes }, 'snapshot put into etcd');
    await this.#change(
      [],
      [
        { deleteRange: [logKey(0), logKey(sequence + 1)] },
        { deleteRange: [logChunkKey(0, 0), logChunkKey(sequence + 1, 0)] },
        ...(before === undefined
          ? []
          : [{ deleteRange: [`snapshot/data/${before.id}/`, `snapshot/data/${before.id}0`] as const }]),
      ],
    );
  }

  /** The one place where the head moves. */
  async #advance(sequence: number, changes: readonly Change[]): Promise<void> {
    const was: Condition = this.#head === 0 ? [HEAD, 'Version', 0] : [HEAD, 'Value', String(this.#head)];
    await this.#change([was], [...changes, { put: HEAD, value: String(sequence) }], sequence);
    this.#head = sequence;
  }

  /** Repeated until etcd answers or the lead is lost. @param sequence what the head is if an attempt without an answer got through */
  async #change(conditions: readonly Condition[], changes: readonly Change[], sequence?: number): Promise<void> {
    const { etcd, leadership } = this.#options;
    const done = await this.#untilAnswered(async () => {
      if ((await etcd.change([leadership.condition, ...conditions], changes)) !== undefined) return true;
      if (sequence === undefined) return false;
      // nobody but this server writes while it leads
      const head = (await etcd.get(HEAD))?.toString();
      return head === String(sequence) && (await etcd.change([leadership.condition], [])) !== undefined;
    });
    if (!done) throw notLeading(new Error('another server leads'));
  }

  async #untilAnswered<T>(ask: () => Promise<T>): Promise<T> {
    const { leadership, log } = this.#options;
    const deadline = performance.now() + leadership.leaseMs;
    for (;;) {
      try {
        return await ask();
      } catch (thrown) {
        const isPassing = thrown instanceof CountersignError && thrown.code === 'unavailable';
        if (!isPassing || leadership.lost.aborted || performance.now() > deadline) throw thrown;
        log.warn({ problem: thrown.message }, 'etcd does not answer; asking again');
        await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
      }
    }
  }
}

/** The whole of an entry. undefined: parts of it are gone, a snapshot took its place. */
export async function readEntry(etcd: EtcdStore, sequence: number, value: Buffer): Promise<Changes | undefined> {
  const chunks: Buffer[] = [];
  for (let i = 0; i < value.readUInt32BE(); i++) {
    const chunk = await etcd.get(logChunkKey(sequence, i));
    if (chunk === undefined) return undefined;
    chunks.push(chunk);
  }
  return decodeChanges(Buffer.concat([...chunks, value.subarray(4)]));
}

function notRecorded(): CountersignError {
  const message = 'etcd does not answer: whether this was recorded is not known; ask again';
  return new CountersignError('unavailable', message);
}

function notLeading(cause: unknown): CountersignError {
  const message = `this server does not lead (${asError(cause).message}): ask again, another one answers`;
  return new CountersignError('unavailable', message, { cause });
}
