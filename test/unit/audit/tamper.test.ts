import { createPrivateKey, createPublicKey, generateKeyPairSync } from 'node:crypto';
import { cpSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import type { Certify } from '../../../src/audit/key.ts';
import { eventsFileName } from '../../../src/audit/layout.ts';
import { encodeCheckpoint, noteVerifier, openCheckpoint, parseVkey, signNote } from '../../../src/audit/note.ts';
import { verifyAuditLog } from '../../../src/audit/verify.ts';
import { fill, filledLog, NOW_MS, nodeOf, openLog, temporaryDirectory } from './support.ts';

const EVENTS = eventsFileName(0);

/** A copy of a log of 20 events, checkpoints at 8 and 20. */
async function copyOfLog(): Promise<string> {
  return filledLog(20, [8]);
}

function edit(dir: string, change: (lines: string[]) => void): void {
  const lines = readFileSync(join(dir, EVENTS), 'utf8').split('\n').slice(0, -1);
  change(lines);
  writeFileSync(join(dir, EVENTS), lines.map((l) => `${l}\n`).join(''));
}

const problemOf = (dir: string) => {
  const result = verifyAuditLog(dir, { nowMs: NOW_MS });
  return result.ok ? undefined : result.error;
};

describe('a log that was tampered with', () => {
  test('one byte changed: the line is named', async () => {
    const dir = await copyOfLog();
    edit(dir, (lines) => {
      lines[9] = lines[9]!.replace('"c9"', '"cX"');
    });
    expect(problemOf(dir)).toEqual({ line: 10, problem: expect.stringContaining('not the one that was signed') });
  });

  test('one byte changed and no tiles left: the lines between two checkpoints are named', async () => {
    const dir = await copyOfLog();
    rmSync(join(dir, 'tile'), { recursive: true });
    edit(dir, (lines) => {
      lines[9] = lines[9]!.replace('"c9"', '"cX"');
    });
    expect(problemOf(dir)?.problem).toContain('lines 9 to 20');
  });

  test('one line removed', async () => {
    const dir = await copyOfLog();
    edit(dir, (lines) => lines.splice(4, 1));
    expect(problemOf(dir)).toEqual({ line: 5, problem: expect.stringContaining('not event 4') });
  });

  test('one line removed and all later ones numbered anew', async () => {
    const dir = await copyOfLog();
    edit(dir, (lines) => {
      lines.splice(4, 1);
      for (let i = 4; i < lines.length; i++) lines[i] = lines[i]!.replace(`"seq":${i + 1},`, `"seq":${i},`);
    });
    expect(problemOf(dir)).toEqual({ line: 5, problem: expect.stringContaining('not the one that was signed') });
  });

  test('two lines swapped', async () => {
    const dir = await copyOfLog();
    edit(dir, (lines) => {
      [lines[4], lines[5]] = [lines[5]!, lines[4]!];
    });
    expect(problemOf(dir)).toMatchObject({ line: 5 });
  });

  test('two lines swapped and numbered anew', async () => {
    const dir = await copyOfLog();
    edit(dir, (lines) => {
      [lines[4], lines[5]] = [lines[5]!.replace('"seq":5', '"seq":4'), lines[4]!.replace('"seq":4', '"seq":5')];
    });
    expect(problemOf(dir)).toMatchObject({ line: 5 });
  });

  test.each([0, 7, 8, 19])('cut short to %i lines', async (n) => {
    const dir = await copyOfLog();
    edit(dir, (lines) => lines.splice(n));
    expect(problemOf(dir)).toMatchObject({ line: n + 1, problem: expect.stringContaining('cut short') });
  });

  test('cut short together with its checkpoint, while the history is kept', async () => {
    const dir = await copyOfLog();
    const old = JSON.parse(readFileSync(join(dir, 'checkpoints.jsonl'), 'utf8').split('\n')[0]!);
    writeFileSync(join(dir, 'checkpoint'), old);
    edit(dir, (lines) => lines.splice(8));
    expect(problemOf(dir)?.problem).toContain('cut short');
  });

  test('a checkpoint with a changed root or size', async () => {
    const dir = await copyOfLog();
    const note = readFileSync(join(dir, 'checkpoint'), 'utf8');
    writeFileSync(join(dir, 'checkpoint'), note.replace('\n20\n', '\n19\n'));
    expect(problemOf(dir)?.problem).toBe('checkpoint: the signature does not verify');
  });

  test('a checkpoint signed by another key', async () => {
    const dir = await copyOfLog();
    const note = readFileSync(join(dir, 'checkpoint'), 'utf8');
    const vkey = parseVkey(readFileSync(join(dir, 'signing.vkey'), 'utf8').trim());
    if (!vkey.ok) throw new Error();
    const checkpoint = openCheckpoint(note, vkey.value);
    if (!checkpoint.ok) throw new Error();
    const other = generateKeyPairSync('ed25519').privateKey;
    writeFileSync(join(dir, 'checkpoint'), signNote(encodeCheckpoint(checkpoint.value), vkey.value, other));
    expect(problemOf(dir)?.problem).toBe('checkpoint: the signature does not verify');
  });

  test('a checkpoint in the history that signs another root, by the right key', async () => {
    const dir = await copyOfLog();
    const key = createPrivateKey(readFileSync(join(dir, 'signing.key')));
    const verifier = noteVerifier('example.org/node/node-a', createPublicKey(key));
    const lie = signNote(encodeCheckpoint({ origin: verifier.name, size: 8, root: Buffer.alloc(32) }), verifier, key);
    const [, last] = readFileSync(join(dir, 'checkpoints.jsonl'), 'utf8').split('\n');
    writeFileSync(join(dir, 'checkpoints.jsonl'), `${JSON.stringify(lie)}\n${last}\n`);
    expect(problemOf(dir)?.problem).toContain('size 8');
  });

  test('a missing checkpoint, key or history', async () => {
    for (const file of ['checkpoint', 'signing.vkey', 'checkpoints.jsonl']) {
      const dir = await copyOfLog();
      rmSync(join(dir, file));
      expect(problemOf(dir)?.problem).toMatch(/missing|no checkpoint/);
    }
  });

  test('a tile that does not match', async () => {
    const dir = await copyOfLog();
    const path = join(dir, 'tile/0/000.p/20');
    const tile = readFileSync(path);
    tile[40]! ^= 1;
    writeFileSync(path, tile);
    expect(problemOf(dir)?.problem).toBe('tile/0/000 does not match the log');
  });

  test('a directory that is none', () => {
    expect(verifyAuditLog('/nonexistent', { nowMs: NOW_MS })).toMatchObject({ ok: false });
  });

  test('any single change to the file of events is found', async () => {
    const dir = await copyOfLog();
    const copy = temporaryDirectory();
    cpSync(dir, copy, { recursive: true });
    const original = readFileSync(join(dir, EVENTS));
    const at = fc.nat(original.length - 1);
    const mutation = fc.oneof(
      fc.tuple(at, fc.integer({ min: 1, max: 255 })).map(([i, flip]) => {
        const out = Buffer.from(original);
        out[i]! ^= flip;
        return out;
      }),
      fc
        .tuple(at, fc.integer({ min: 1, max: 300 }))
        .map(([i, n]) => Buffer.concat([original.subarray(0, i), original.subarray(i + n)])),
      fc
        .tuple(fc.nat(original.length), fc.uint8Array({ minLength: 1, maxLength: 50 }))
        .map(([i, bytes]) => Buffer.concat([original.subarray(0, i), bytes, original.subarray(i)])),
      fc
        .tuple(at, fc.nat(original.length))
        .map(([i, j]) => Buffer.concat([original.subarray(0, i), original.subarray(i, j), original.subarray(i)])),
    );
    fc.assert(
      fc.property(mutation, (bytes) => {
        if (bytes.equals(original)) return;
        writeFileSync(join(copy, EVENTS), bytes);
        expect(verifyAuditLog(copy, { nowMs: NOW_MS }).ok).toBe(false);
      }),
      { numRuns: 500 },
    );
  });
});

describe('whose log it is', () => {
  async function certifiedLog(certify: Certify): Promise<string> {
    const dir = temporaryDirectory();
    await fill(openLog(dir, { certify }), 3);
    return dir;
  }

  test('the bundle alone proves it, also long after the SVID expired', async () => {
    const node = await nodeOf('example.org', 'node-a');
    const dir = await certifiedLog(node.certify);
    for (const nowMs of [NOW_MS, node.notAfterMs + 86_400_000]) {
      expect(verifyAuditLog(dir, { bundle: node.bundle, nowMs })).toMatchObject({
        ok: true,
        value: { keyTrust: 'bundle', signer: 'spiffe://example.org/node/node-a' },
      });
    }
  });

  test('a key that no node certified is refused', async () => {
    const node = await nodeOf('example.org', 'node-a');
    const dir = await filledLog(3);
    expect(verifyAuditLog(dir, { bundle: node.bundle, nowMs: NOW_MS })).toMatchObject({
      error: { problem: expect.stringContaining('key.cert is missing') },
    });
  });

  test('a log exchanged whole, with a key of its own and the old certification, is refused', async () => {
    const node = await nodeOf('example.org', 'node-a');
    const dir = await certifiedLog(node.certify);
    const forged = await filledLog(3);
    cpSync(join(dir, 'key.cert'), join(forged, 'key.cert'));
    expect(verifyAuditLog(forged, { bundle: node.bundle, nowMs: NOW_MS })).toMatchObject({
      error: { problem: expect.stringContaining('signature over the signing key') },
    });
  });

  test('a certification by another node of the domain is refused', async () => {
    const node = await nodeOf('example.org', 'node-b');
    const dir = await certifiedLog(node.certify);
    expect(verifyAuditLog(dir, { bundle: node.bundle, nowMs: NOW_MS })).toMatchObject({
      error: { problem: expect.stringContaining('not its own') },
    });
  });

  test('a certification by a node of the same name under another authority is refused', async () => {
    const node = await nodeOf('example.org', 'node-a');
    const other = await nodeOf('example.org', 'node-a');
    const dir = await certifiedLog(other.certify);
    expect(verifyAuditLog(dir, { bundle: node.bundle, nowMs: NOW_MS })).toMatchObject({ ok: false });
  });

  test("a verifier key from elsewhere must be the log's own", async () => {
    const dir = await filledLog(1);
    const other = await filledLog(1);
    const vkey = readFileSync(join(dir, 'signing.vkey'), 'utf8');
    expect(verifyAuditLog(dir, { vkey, nowMs: NOW_MS })).toMatchObject({ ok: true, value: { keyTrust: 'vkey' } });
    expect(verifyAuditLog(other, { vkey, nowMs: NOW_MS })).toMatchObject({ ok: false });
  });

  test('a malformed certification is refused, whatever it holds', async () => {
    const node = await nodeOf('example.org', 'node-a');
    const dir = await certifiedLog(node.certify);
    fc.assert(
      fc.property(fc.oneof(fc.string(), fc.json()), (text) => {
        writeFileSync(join(dir, 'key.cert'), text);
        expect(verifyAuditLog(dir, { bundle: node.bundle, nowMs: NOW_MS }).ok).toBe(false);
      }),
      { numRuns: 100 },
    );
  });
});
