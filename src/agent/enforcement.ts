/**
 * Break-glass. What an operator wants lies in a file of the node's data directory, so that it needs no server, no running agent
 * and no socket, and outlives every restart: the agent follows it from the moment it has its datapath, and audits each
 * change, also those of a time when it was down. While it is down the change is written into the kernel at once as well.
 */
import {
  closeSync,
  existsSync,
  fdatasyncSync,
  mkdirSync,
  openSync,
  readFileSync,
  renameSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { dirname, join } from 'node:path';
import { z } from 'zod';
import { native } from '../../native/index.ts';
import { asError, CountersignError } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import type { AuditKind, AuditSink } from '../model/audit-event.ts';

const FILE = 'enforcement.json';
const AUDITED = 'enforcement-audited.json';
const LOCK = 'enforcement.lock';
/** Changes that are kept for the agent to audit: more than anybody makes while it is down. */
const KEPT = 256;
const POLL_MS = 200;

const change = z.object({
  seq: z.number().int().min(1),
  action: z.enum(['stop', 'start', 'detach', 'uninstall']),
  reason: z.string().max(1024),
  actor: z.string().max(256),
  atMs: z.number().int(),
});
const record = z.object({ stopped: z.boolean(), changes: z.array(change).max(KEPT) });

export type EnforcementChange = z.infer<typeof change>;

export interface EnforcementRecord {
  /** Until somebody starts it again. */
  readonly stopped: boolean;
  /** Oldest first, the newest 256. */
  readonly changes: readonly EnforcementChange[];
}

const never: EnforcementRecord = { stopped: false, changes: [] };

/** @throws CountersignError bad-input when the file is not what writeChange wrote. */
export function readEnforcement(dataDir: string): EnforcementRecord {
  const path = join(dataDir, FILE);
  if (!existsSync(path)) return never;
  try {
    return record.parse(JSON.parse(readFileSync(path, 'utf8')));
  } catch (cause) {
    throw new CountersignError(
      'bad-input',
      `${path} cannot be read (${asError(cause).message}); remove it: enforcement is on without it`,
      { cause },
    );
  }
}

/** What an agent begins with: what cannot be read stops nothing. */
export function enforcementAtStart(dataDir: string, log: Logger): EnforcementRecord {
  try {
    return readEnforcement(dataDir);
  } catch (thrown) {
    log.error({ error: asError(thrown).message }, 'enforcement is on');
    return never;
  }
}

/** The change that holds now: the last stop while it is stopped. */
export function lastStop({ stopped, changes }: EnforcementRecord): EnforcementChange | undefined {
  return stopped ? changes.findLast(({ action }) => action === 'stop') : undefined;
}

/** Detaching changes nothing for the next agent: it attaches and enforces. An uninstall ends a stop. */
export function writeChange(dataDir: string, made: Omit<EnforcementChange, 'seq'>): EnforcementRecord {
  mkdirSync(dataDir, { recursive: true, mode: 0o700 });
  const lock = openSync(join(dataDir, LOCK), 'a', 0o600);
  try {
    for (let tries = 0; !native().tryLock(lock); tries++) {
      if (tries > 100)
        throw new CountersignError('already-exists', `${join(dataDir, LOCK)} is held by another process`);
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 20);
    }
    const before = readEnforcement(dataDir);
    const next: EnforcementRecord = {
      stopped: made.action === 'stop' || (made.action === 'detach' && before.stopped),
      changes: [...before.changes, { ...made, seq: (before.changes.at(-1)?.seq ?? 0) + 1 }].slice(-KEPT),
    };
    writeDurably(join(dataDir, FILE), JSON.stringify(next));
    return next;
  } finally {
    closeSync(lock);
  }
}

function writeDurably(path: string, text: string): void {
  const fresh = `${path}.new`;
  const fd = openSync(fresh, 'w', 0o600);
  try {
    writeFileSync(fd, text);
    fdatasyncSync(fd);
  } finally {
    closeSync(fd);
  }
  renameSync(fresh, path);
  const directory = openSync(dirname(path), 'r');
  try {
    fdatasyncSync(directory);
  } finally {
    closeSync(directory);
  }
}

export interface EnforcementView {
  readonly stopped: boolean;
  readonly since?: string;
  readonly reason?: string;
  readonly actor?: string;
}

export function describeEnforcement(of: EnforcementRecord): EnforcementView {
  const stop = lastStop(of);
  if (stop === undefined) return { stopped: of.stopped };
  return { stopped: true, since: new Date(stop.atMs).toISOString(), reason: stop.reason, actor: stop.actor };
}

const kinds = {
  stop: 'enforcement.stopped',
  start: 'enforcement.started',
  detach: 'datapath.detached',
  uninstall: 'datapath.detached',
} as const satisfies Record<EnforcementChange['action'], AuditKind>;

/** The agent's side: puts the record in force whenever it changes, and audits each change once. */
export class Enforcement {
  readonly #options: EnforcementOptions;
  readonly #timer: NodeJS.Timeout;
  #record: EnforcementRecord;
  #audited: number;
  #seen = '';

  constructor(options: EnforcementOptions) {
    this.#options = options;
    this.#record = options.inForce;
    this.#audited = readAudited(options.dataDir);
    this.#follow();
    this.#timer = setInterval(() => this.#follow(), options.pollMs ?? POLL_MS);
    this.#timer.unref();
  }

  view(): EnforcementView {
    return describeEnforcement(this.#record);
  }

  close(): void {
    clearInterval(this.#timer);
  }

  #follow(): void {
    const { dataDir, log } = this.#options;
    const now = stampOf(join(dataDir, FILE));
    if (now === this.#seen) return;
    this.#seen = now;
    let next: EnforcementRecord;
    try {
      next = readEnforcement(dataDir);
    } catch (thrown) {
      // Neither opened nor closed by what cannot be read.
      log.error({ error: asError(thrown).message }, 'the enforcement record stays as it was');
      return;
    }
    // The kernel first: break-glass does not wait for a disk.
    if (next.stopped !== this.#record.stopped) this.#options.setStopped(next.stopped);
    this.#record = next;
    this.#audit(next.changes);
    if (next.stopped) log.warn(this.view(), 'ENFORCEMENT IS STOPPED: everything passes');
  }

  #audit(changes: readonly EnforcementChange[]): void {
    const { audit, node, dataDir, log } = this.#options;
    // A record that was removed or made anew counts from one again.
    if (this.#audited > (changes.at(-1)?.seq ?? 0)) this.#audited = 0;
    const news = changes.filter(({ seq }) => seq > this.#audited);
    if (news.length === 0) return;
    for (const { action, reason, actor, atMs, seq } of news) {
      audit.emit({
        kind: kinds[action],
        source: { node },
        actor,
        detail: { action, because: reason, at: new Date(atMs).toISOString(), sequence: seq },
      });
    }
    this.#audited = news.at(-1)!.seq;
    try {
      writeFileSync(join(dataDir, AUDITED), JSON.stringify({ seq: this.#audited }), { mode: 0o600 });
    } catch (thrown) {
      // Then they are audited once more at the next start.
      log.error({ error: asError(thrown).message }, 'cannot note which changes of enforcement are audited');
    }
  }
}

export interface EnforcementOptions {
  readonly dataDir: string;
  readonly node: string;
  /** What the datapath was opened with. */
  readonly inForce: EnforcementRecord;
  setStopped(stopped: boolean): void;
  readonly audit: AuditSink;
  readonly log: Logger;
  readonly pollMs?: number;
}

function readAudited(dataDir: string): number {
  try {
    const { seq } = JSON.parse(readFileSync(join(dataDir, AUDITED), 'utf8')) as { seq: unknown };
    return typeof seq === 'number' ? seq : 0;
  } catch {
    return 0;
  }
}

/** Changes whenever the file is replaced. */
function stampOf(path: string): string {
  const stat = statSync(path, { bigint: true, throwIfNoEntry: false });
  return stat === undefined ? 'none' : `${stat.ino} ${stat.mtimeNs} ${stat.size}`;
}
