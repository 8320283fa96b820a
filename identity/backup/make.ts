/**
 * A consistent copy of what the server must not forget, while it runs: both databases by SQLite's online backup (what is written
 * meanwhile goes into the copy too), then the files of the authority's keys, so that no key is missing that the databases name.
 */
import { existsSync, mkdtempSync, readdirSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { backup, type DatabaseSync } from 'node:sqlite';
import type { KeyBlobs } from '../../ca/api.ts';
import type { Clock } from '../../src/base/clock.ts';
import type { TrustDomain } from '../../src/model/ids.ts';
import { type BackupHeader, type BackupPart, writeArchive } from './archive.ts';

export interface BackupSources {
  readonly trustDomain: TrustDomain;
  readonly clock: Clock;
  readonly identity: DatabaseSync;
  readonly ledger: DatabaseSync;
  /** Where `keys/` and `authority/` are. */
  readonly caDirectory: string;
  /** Where servers share a store: keys that are there. */
  readonly keyBlobs: KeyBlobs | undefined;
  /** A place for the copies, which are removed again: it must hold the databases once more. */
  readonly scratchDirectory: string;
}

/** @param write resolves when more is wanted. Throws what it throws, and what SQLite throws: a full disk. */
export async function makeBackup(
  { trustDomain, clock, identity, ledger, caDirectory, keyBlobs, scratchDirectory }: BackupSources,
  write: (chunk: Buffer) => Promise<void>,
): Promise<BackupHeader> {
  const scratch = mkdtempSync(join(scratchDirectory, 'backup.'));
  try {
    const createdAt = new Date(clock.nowMs()).toISOString();
    const copies = { 'ca/ledger.db': join(scratch, 'ledger.db'), 'identity.db': join(scratch, 'identity.db') };
    // The ledger first: a certificate in it of an incarnation that the other does not know yet is taken as it is.
    await backup(ledger, copies['ca/ledger.db']);
    await backup(identity, copies['identity.db']);
    const parts: BackupPart[] = Object.entries(copies).map(([name, path]) => ({ name, content: { path } }));
    for (const folder of ['keys', 'authority']) parts.push(...filesIn(caDirectory, folder));
    for (const id of (await keyBlobs?.list()) ?? []) {
      const content = await keyBlobs?.get(id);
      if (content !== undefined) parts.push({ name: `ca/keys/${id}.key`, content });
    }
    return await writeArchive({ trustDomain, createdAt }, parts, write);
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
}

function filesIn(caDirectory: string, folder: string): BackupPart[] {
  const directory = join(caDirectory, folder);
  if (!existsSync(directory)) return [];
  return readdirSync(directory)
    .filter((name) => !name.endsWith('.new') && statSync(join(directory, name)).isFile())
    .map((name) => ({ name: `ca/${folder}/${name}`, content: { path: join(directory, name) } }));
}
