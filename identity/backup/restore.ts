/**
 * Puts a backup in the place of a server's state. What was there is moved aside, never deleted; numbers that nodes may have seen since
 * the backup was made are jumped over, so that none is given twice.
 */
import { existsSync, mkdirSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { asError, CountersignError } from '../../src/base/errors.ts';
import { syncDirectory } from '../../src/base/private-file.ts';
import { checkWhole, openDatabase } from '../store/database.ts';
import { readArchive } from './archive.ts';

/** There from the first rename to the last. */
const MARKER = 'restore.unfinished';
/**
 * How many of each a server may have given between the backup and its loss. A version that an agent has seen must not come back with
 * another content, nor a node id or security identity with another holder: kernels may still believe the earlier one.
 */
const JUMPS = { version: 1_000_000_000, node_id: 10_000, identity: 1024 } as const;

export interface RestorePlace {
  readonly trustDomain: string;
  readonly dataDir: string;
  readonly adminSocket: string;
}

export interface Restored {
  readonly createdAt: string;
  /** Where the state is that was there before. undefined: there was none. */
  readonly movedTo: string | undefined;
  readonly keys: number;
}

/**
 * @param force also where there is state already
 * @throws CountersignError already-exists, unavailable: a server runs on it; bad-input: the backup does not check. Nothing was changed then.
 */
export async function restoreBackup(
  place: RestorePlace,
  file: string,
  force: boolean,
  nowMs: number,
): Promise<Restored> {
  const { dataDir, trustDomain } = place;
  const [fresh, marker] = [join(dataDir, 'restore.new'), join(dataDir, MARKER)];
  const state = ['identity.db', 'identity.db-wal', 'identity.db-shm', 'ca'];
  await refuseRunning(place);
  const isThere = state.some((name) => existsSync(join(dataDir, name)));
  if (isThere && !force && !existsSync(marker)) {
    const message = `${dataDir} holds a server's state already; to put the backup in its place use --force, what is there is moved aside`;
    throw new CountersignError('already-exists', message);
  }
  mkdirSync(dataDir, { recursive: true, mode: 0o711 });
  rmSync(fresh, { recursive: true, force: true });
  for (const folder of ['', 'ca', 'ca/keys', 'ca/authority']) mkdirSync(join(fresh, folder), { mode: 0o700 });
  try {
    const header = await readArchive(file, (name, { trustDomain: of }) => {
      if (of === trustDomain) return join(fresh, name);
      throw new CountersignError('bad-input', `${file}: it is of the trust domain ${of}, not ${trustDomain}`);
    });
    const keys = header.parts.filter(({ name }) => name.startsWith('ca/keys/') || name.endsWith('.key')).length;
    for (const folder of ['keys', 'authority'] as const) {
      const isEmpty = !header.parts.some(({ name }) => name.startsWith(`ca/${folder}/`));
      if (isEmpty) rmSync(join(fresh, 'ca', folder), { recursive: true });
    }
    prepare(fresh, file, nowMs);
    const movedTo = isThere ? join(dataDir, `before-restore-${stamp(nowMs)}`) : undefined;
    writeFileSync(marker, 'countersign server restore was broken off here; run it again\n', { mode: 0o600 });
    syncDirectory(dataDir);
    if (movedTo !== undefined) {
      mkdirSync(movedTo, { mode: 0o700 });
      for (const name of state)
        if (existsSync(join(dataDir, name))) renameSync(join(dataDir, name), join(movedTo, name));
    }
    for (const name of ['identity.db', 'ca']) renameSync(join(fresh, name), join(dataDir, name));
    syncDirectory(dataDir);
    rmSync(marker);
    syncDirectory(dataDir);
    return { createdAt: header.createdAt, movedTo, keys };
  } finally {
    rmSync(fresh, { recursive: true, force: true });
  }
}

/** @throws CountersignError if a restore did not come to its end. */
export function refuseUnfinishedRestore(dataDir: string): void {
  if (!existsSync(join(dataDir, MARKER))) return;
  const message = `${dataDir}: countersign server restore was broken off and left half of a state; run it again`;
  throw new CountersignError('bad-input', message);
}

/** Of this program's tables, whole, and with its counters beyond all that was given. */
function prepare(fresh: string, file: string, nowMs: number): void {
  try {
    checkWhole(join(fresh, 'ca/ledger.db'));
    raiseBundle(join(fresh, 'ca/ledger.db'), nowMs);
    const database = openDatabase(join(fresh, 'identity.db'));
    const jump = database.prepare('UPDATE counters SET value = min(value + ?, ?) WHERE name = ?');
    const LAST = { version: Number.MAX_SAFE_INTEGER, node_id: 0xffff_ffff, identity: 65_535 } as const;
    for (const name of ['version', 'node_id', 'identity'] as const) jump.run(JUMPS[name], LAST[name], name);
    database.exec('PRAGMA wal_checkpoint(TRUNCATE)');
    database.close();
  } catch (thrown) {
    if (thrown instanceof CountersignError) throw thrown;
    const message = `${file}: a database in it does not check: ${asError(thrown).message}; use another backup`;
    throw new CountersignError('bad-input', message, { cause: thrown });
  }
}

/** Agents take no bundle that is older than one they have seen, and keys may have changed since the backup. The numbers grow with the clock. */
function raiseBundle(ledger: string, nowMs: number): void {
  const database = new DatabaseSync(ledger);
  try {
    const counter = database.prepare("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'counter'").get();
    // a ledger of before keys changed: its only bundle is the first one
    if (counter === undefined) return;
    database
      .prepare("INSERT INTO counter VALUES ('bundle', ?1) ON CONFLICT (name) DO UPDATE SET value = max(value + 1, ?1)")
      // several changes of one second go beyond it
      .run(Math.floor(nowMs / 1000) + 60);
    database.exec('PRAGMA wal_checkpoint(TRUNCATE)');
  } finally {
    database.close();
  }
}

/** By its socket, and by its hold on the ledger. */
async function refuseRunning({ dataDir, adminSocket }: RestorePlace): Promise<void> {
  const answers = await new Promise<boolean>((resolve) => {
    const probe = connect(adminSocket);
    probe.once('connect', () => {
      probe.destroy();
      resolve(true);
    });
    probe.once('error', () => resolve(false));
  });
  if (answers || isHeld(join(dataDir, 'ca/ledger.db'))) {
    throw new CountersignError('unavailable', `a server runs on ${dataDir}; stop it first`);
  }
}

function isHeld(ledger: string): boolean {
  if (!existsSync(ledger)) return false;
  // read only: what is there stays as it is
  const database = new DatabaseSync(ledger, { readOnly: true });
  try {
    database.prepare('SELECT 1 FROM sqlite_master').get();
    return false;
  } catch (thrown) {
    // one that is damaged is held by nobody
    return asError(thrown).message.includes('locked');
  } finally {
    database.close();
  }
}

function stamp(nowMs: number): string {
  return new Date(nowMs).toISOString().replaceAll(/[:.]/g, '-');
}
