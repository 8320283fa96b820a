/** The ledger and the journal of signing keys against kill -9: real processes, killed while they issue. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { afterAll, describe, expect, it } from 'vitest';
import { SLOW } from '../../support/slow.ts';
import { START } from './support.ts';

const compiled = mkdtempSync(join(tmpdir(), 'countersign-compiled-'));
afterAll(() => rmSync(compiled, { recursive: true, force: true }));
const PROGRAM = join(import.meta.dirname, 'programs/issue-and-rotate.ts');

interface Run {
  readonly certificates: { readonly serial: string; readonly chain: string }[];
  readonly bad: string[];
}

/** Lets it issue for a while after it began, then kills it. */
async function run(
  directory: string,
  beginsMs: number,
  mode: string,
  earlier: string[],
  killAfterMs: number,
): Promise<Run> {
  const child = spawn(process.execPath, [PROGRAM, directory, String(beginsMs), mode, ...earlier], {
    stdio: ['ignore', 'pipe', 'inherit'],
    // two hundred starts: what is compiled once is compiled for all
    env: { ...process.env, NODE_COMPILE_CACHE: compiled },
  });
  let text = '';
  let doomed = false;
  // whatever it does instead of issuing, it does not do for ever
  const deadline = setTimeout(() => child.kill('SIGKILL'), 60_000 * SLOW);
  child.stdout.on('data', (data: Buffer) => {
    text += data.toString('latin1');
    if (doomed || !text.includes('CERT')) return;
    doomed = true;
    setTimeout(() => child.kill('SIGKILL'), killAfterMs);
  });
  await once(child, 'close');
  clearTimeout(deadline);
  expect(text.slice(0, 2000)).toContain('CERT');
  expect(child.signalCode).toBe('SIGKILL');
  const lines = text.split('\n').slice(0, -1);
  return {
    certificates: lines.flatMap((line) => {
      const [word, serial, chain] = line.split(' ');
      return word === 'CERT' ? [{ serial: serial!, chain: chain! }] : [];
    }),
    bad: lines.filter((line) => line.startsWith('BAD')),
  };
}

function ledgerOf(directory: string): string[] {
  const database = new DatabaseSync(join(directory, 'ledger.db'));
  try {
    return database
      .prepare('SELECT serial FROM svid')
      .all()
      .map((row) => row.serial as string);
  } finally {
    database.close();
  }
}

async function inDirectory(use: (directory: string) => Promise<void>): Promise<void> {
  const directory = mkdtempSync(join(tmpdir(), 'countersign-kill-'));
  try {
    await use(directory);
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

describe('kill -9', () => {
  it('in a loop while certificates are issued: every one that left is in the ledger, exactly once', {
    timeout: 300_000 * SLOW,
  }, async () => {
    const rounds = async (directory: string, count: number) => {
      const said: string[] = [];
      for (let round = 0; round < count; round++) {
        const { certificates, bad } = await run(directory, START + round * 1000, 'issue', [], (round * 7) % 23);
        expect(bad).toEqual([]);
        said.push(...certificates.map(({ serial }) => serial));
      }
      const recorded = ledgerOf(directory);
      expect(new Set(said).size).toBe(said.length);
      expect(said.length).toBeGreaterThan(count);
      expect(new Set(recorded).size).toBe(recorded.length);
      const known = new Set(recorded);
      expect(said.filter((serial) => !known.has(serial))).toEqual([]);
    };
    // two at a time, 200 in all
    await Promise.all([1, 2].map(() => inDirectory((directory) => rounds(directory, 100))));
  });

  it('while signing keys rotate: each certificate verifies when it is issued and after the restart, and no key is left over', {
    timeout: 180_000 * SLOW,
  }, async () => {
    await inDirectory(async (directory) => {
      let beginsMs = START;
      let earlier: string[] = [];
      for (let round = 0; round < 25; round++) {
        const began = performance.now();
        const { certificates, bad } = await run(directory, beginsMs, 'rotate', earlier, 20 + ((round * 31) % 130));
        // its clock runs a thousand times as fast, and is not to go back
        beginsMs += Math.ceil((performance.now() - began) * 1000);
        expect(bad).toEqual([]);
        earlier = certificates.slice(-10).map(({ chain }) => chain);
      }
      const database = new DatabaseSync(join(directory, 'ledger.db'));
      const slots = database.prepare('SELECT key_id, state FROM authority').all();
      const serials = database.prepare('SELECT count(*) AS n, count(DISTINCT serial) AS d FROM svid').get()!;
      database.close();
      expect(serials.n).toBe(serials.d);
      expect(slots.filter(({ state }) => state === 'active')).toHaveLength(2);
      const keys = readdirSync(join(directory, 'keys')).map((name) => name.replace(/\.key(\.new)?$/, ''));
      const known = new Set(slots.map(({ key_id }) => key_id));
      expect(keys.filter((id) => !known.has(id))).toEqual([]);
    });
  });
});
