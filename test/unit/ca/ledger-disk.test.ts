/** The ledger on a disk that is full, and a ledger that the disk has damaged. */
import { spawn } from 'node:child_process';
import { hash } from 'node:crypto';
import { once } from 'node:events';
import { closeSync, mkdtempSync, openSync, readdirSync, readFileSync, rmSync, writeFileSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { describe, expect, it } from 'vitest';
import { createCsr } from '../../../src/pki/csr.ts';
import { generateKey } from '../../../src/pki/keys.ts';
import { SLOW } from '../../support/slow.ts';
import { withCa, workloadRequest } from './support.ts';

const CSR = createCsr(generateKey());
const PROGRAM = join(import.meta.dirname, 'programs/issue-until-full.ts');

/** @param limit in KiB: no file may become larger, which to SQLite is a disk that is full. */
async function runFull(directory: string, limit: number, room: boolean): Promise<string[]> {
  // the soft limit alone, so that room can be made
  const command = `ulimit -S -f ${limit * 2}; exec "$@"`;
  const child = spawn('sh', ['-c', command, 'sh', process.execPath, PROGRAM, directory], {
    stdio: ['pipe', 'pipe', 'inherit'],
  });
  let text = '';
  child.stdout.on('data', async (data: Buffer) => {
    text += data.toString();
    if (!text.includes('FULL\n')) return;
    child.stdout.removeAllListeners('data');
    child.stdout.on('data', (more: Buffer) => {
      text += more.toString();
    });
    if (room) {
      const raised = spawn('prlimit', ['--pid', String(child.pid), '--fsize=unlimited:'], { stdio: 'inherit' });
      await once(raised, 'close');
    }
    child.stdin.write('\n');
  });
  await once(child, 'close');
  return text.trimEnd().split('\n');
}

async function inDirectory(use: (directory: string) => Promise<void>): Promise<void> {
  const directory = mkdtempSync(join(tmpdir(), 'countersign-disk-'));
  try {
    await use(directory);
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

function rowsIn(directory: string): [serials: string[], revocations: number] {
  const database = new DatabaseSync(join(directory, 'ledger.db'));
  try {
    const serials = database.prepare('SELECT serial FROM svid').all();
    const revocations = database.prepare('SELECT count(*) AS n FROM revocation').get()!.n as number;
    return [serials.map(({ serial }) => serial as string), revocations];
  } finally {
    database.close();
  }
}

describe('a disk that is full', () => {
  it('stops issuing and revoking with an error, keeps all that left in the ledger, and goes on when there is room', {
    timeout: 60_000 * SLOW,
  }, async () => {
    await inDirectory(async (directory) => {
      const said = await runFull(directory, 400, true);
      const left = said.flatMap((line) => (line.startsWith('CERT') ? [line.slice(5)] : []));
      const refused = said.filter((line) => line.startsWith('REFUSED'));
      expect(left.length).toBeGreaterThan(50);
      expect(refused.length).toBeGreaterThanOrEqual(5);
      for (const line of refused)
        expect(line).toMatch(/^REFUSED the ledger could not be written: (disk I\/O error|database or disk is full)/);
      const notRevoked = said.filter((line) => line.startsWith('NOT REVOKED'));
      expect(notRevoked).toHaveLength(1);
      expect(notRevoked[0]).toMatch(/^NOT REVOKED (disk I\/O error|database or disk is full)/);
      expect(said.at(-1)).toBe('GOES ON');
      const [recorded, revoked] = rowsIn(directory);
      expect(revoked).toBe(said.filter((line) => line === 'REVOKED').length);
      expect(new Set(recorded).size).toBe(recorded.length);
      const known = new Set(recorded);
      expect(left.filter((serial) => !known.has(serial))).toEqual([]);
    });
  });
});

describe('a ledger that the disk has damaged', () => {
  const spoilers: [string, (path: string) => void][] = [
    ['whose first page is overwritten', (path) => overwrite(path, 0, 100)],
    ['with a page in the middle that holds something else', (path) => overwrite(path, 4096 * 9, 4096)],
    ['that was cut off', (path) => writeFileSync(path, readFileSync(path).subarray(0, 4096 * 10 + 123))],
    [
      'that is something else',
      (path) => writeFileSync(path, 'not a database, but long enough to be read as one'.repeat(100)),
    ],
  ];

  it.each(spoilers)('%s is refused by name, and left byte for byte as it is', async (_, spoil) => {
    await withCa(async ({ open, directory }) => {
      const ca = await open();
      await Promise.all(Array.from({ length: 300 }, () => ca.issueWorkloadSvid(workloadRequest(CSR))));
      ca.close();
      spoil(join(directory, 'ledger.db'));
      const before = contents(directory);
      await expect(open()).rejects.toThrow(/ledger\.db: .*; restore it from a backup/s);
      const after = contents(directory);
      expect(after).toEqual(before);
    });
  });

  it('and a killed process behind it is refused too, and what that one had not yet carried over is left as well', async () => {
    await withCa(async ({ open, directory }) => {
      const ca = await open();
      await Promise.all(Array.from({ length: 300 }, () => ca.issueWorkloadSvid(workloadRequest(CSR))));
      ca.close();
      // what a killed process leaves: rows that are in the -wal file alone
      const writer = new DatabaseSync(join(directory, 'ledger.db'));
      writer.exec("PRAGMA wal_autocheckpoint = 0; INSERT INTO counter VALUES ('test', 1)");
      const wal = readFileSync(join(directory, 'ledger.db-wal'));
      writer.close();
      writeFileSync(join(directory, 'ledger.db-wal'), wal);
      overwrite(join(directory, 'ledger.db'), 4096 * 9, 4096);
      const before = contents(directory);
      await expect(open()).rejects.toThrow(/ledger\.db: /);
      expect(contents(directory)).toEqual(before);
    });
  });
});

/** Digests of the ledger's files by name. SQLite's shared memory of readers holds nothing, nor does an empty file. */
function contents(directory: string): Record<string, string> {
  const files = readdirSync(directory)
    .filter((name) => name.startsWith('ledger.db') && !name.endsWith('-shm'))
    .map((name) => [name, readFileSync(join(directory, name))] as const);
  return Object.fromEntries(
    files.flatMap(([name, bytes]) => (bytes.length === 0 ? [] : [[name, hash('sha256', bytes)]])),
  );
}

function overwrite(path: string, at: number, length: number): void {
  const file = openSync(path, 'r+');
  writeSync(file, Buffer.alloc(length, 0x5a), 0, length, at);
  closeSync(file);
}
