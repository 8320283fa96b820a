import { spawn } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { type OutputFile, replaceFiles } from '../../../src/workload/outputs/directory.ts';

let directory: string;
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'cs-outputs-'));
});
afterEach(() => rmSync(directory, { recursive: true }));

const generation = (n: number): OutputFile[] =>
  ['key.pem', 'svid.pem'].map((name) => ({ name, content: `${n}\n`.repeat(200), mode: 0o600 }));

/** Reads both files over and over: each through its own name, and both through one look at `current`. */
const READER = `
  const { readFileSync, realpathSync } = require('node:fs');
  const dir = process.argv[1];
  let reads = 0, torn = 0, changes = 0, last;
  process.stdin.on('end', () => { console.log(JSON.stringify({ reads, torn, changes })); process.exit(0); }).resume();
  const read = () => {
    for (let i = 0; i < 200; i++) {
      const at = realpathSync(dir + '/current');
      let key, svid;
      try { key = readFileSync(at + '/key.pem', 'utf8'); svid = readFileSync(at + '/svid.pem', 'utf8'); }
      catch (error) { continue; } // two generations on: looked at too late, and so looked at again
      const own = readFileSync(dir + '/key.pem', 'utf8');
      if (key !== svid || key.length < 400 || own.length < 400) torn++;
      if (key !== last) changes++;
      last = key;
      reads++;
    }
    setImmediate(read);
  };
  read();
`;

describe('the directory of an SVID', () => {
  it('changes as a whole: who reads meanwhile finds every file, and a key that is of the certificate', async () => {
    replaceFiles(directory, generation(0));
    const reader = spawn(process.execPath, ['-e', READER, directory], { stdio: ['pipe', 'pipe', 'inherit'] });
    let printed = '';
    reader.stdout.on('data', (chunk: Buffer) => {
      printed += chunk.toString();
    });
    const exited = new Promise((resolve) => reader.once('exit', resolve));
    for (let n = 1; n <= 300; n++) {
      replaceFiles(directory, generation(n));
      await new Promise((resolve) => setTimeout(resolve, 2));
    }
    reader.stdin.end();
    await exited;
    const { reads, torn, changes } = JSON.parse(printed);
    expect(torn).toBe(0);
    expect(reads).toBeGreaterThan(100);
    expect(changes).toBeGreaterThan(10);
  });

  it('takes the place of plain files, drops what is no longer written, and leaves what is not its own', () => {
    writeFileSync(join(directory, 'key.pem'), 'wide', { mode: 0o644 });
    writeFileSync(join(directory, 'notes'), 'mine');
    symlinkSync('/nonexistent', join(directory, 'mine'));
    const crl: OutputFile = { name: 'crl.pem', content: 'x', mode: 0o644 };
    const federated: OutputFile = { name: 'federated/example.com.pem', content: 'y', mode: 0o644 };
    replaceFiles(directory, [...generation(1), crl, federated]);
    expect(statSync(join(directory, 'key.pem')).mode & 0o777).toBe(0o600);
    expect(readFileSync(join(directory, 'federated/example.com.pem'), 'utf8')).toBe('y');
    for (const n of [2, 3, 4]) replaceFiles(directory, generation(n));
    const names = readdirSync(directory).sort();
    expect(names.filter((name) => !name.startsWith('.svid-'))).toEqual([
      'current',
      'key.pem',
      'mine',
      'notes',
      'svid.pem',
    ]);
    // this one and the one before
    expect(names.filter((name) => name.startsWith('.svid-'))).toHaveLength(2);
  });
});
