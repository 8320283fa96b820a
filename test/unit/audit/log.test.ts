import {
  appendFileSync,
  chmodSync,
  existsSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { eventsFileName } from '../../../src/audit/layout.ts';
import { readEvents } from '../../../src/audit/read.ts';
import { verifyAuditLog } from '../../../src/audit/verify.ts';
import { fill, filledLog, NOW_MS, openLog, StandingClock, temporaryDirectory } from './support.ts';

const EVENTS = eventsFileName(0);
const verified = (dir: string) => {
  const result = verifyAuditLog(dir, { nowMs: NOW_MS });
  if (!result.ok) throw new Error(`${result.error.line}: ${result.error.problem}`);
  return result.value;
};

describe('the audit log', () => {
  test('holds what was said, in order, and verifies', async () => {
    const dir = await filledLog(700, [3, 300]);
    expect([...readEvents(dir)].map((e) => e.seq)).toEqual(Array.from({ length: 700 }, (_, i) => i));
    expect(verified(dir)).toMatchObject({
      events: 700,
      size: 700,
      checkpoints: 3,
      unsignedTail: 0,
      keyTrust: 'nothing',
    });
    expect(existsSync(join(dir, 'tile/0/001'))).toBe(true);
    expect(existsSync(join(dir, 'tile/0/002.p/188'))).toBe(true);
  });

  test('goes on where it ended when it is opened again', async () => {
    const dir = await filledLog(300);
    await fill(openLog(dir), 300);
    expect(verified(dir)).toMatchObject({ events: 600, size: 600, checkpoints: 2 });
  });

  test('a log that was never written to is signed too', async () => {
    const dir = await filledLog(0);
    expect(verified(dir)).toMatchObject({ events: 0, size: 0, checkpoints: 1 });
  });

  test('reports what no checkpoint signs yet', async () => {
    const dir = temporaryDirectory();
    const log = openLog(dir);
    log.emit({ kind: 'agent.started' });
    await log.checkpoint();
    log.emit({ kind: 'agent.stopped' });
    await new Promise(setImmediate);
    expect(verified(dir)).toMatchObject({ events: 2, size: 1, unsignedTail: 1 });
    await log.close();
    expect(verified(dir)).toMatchObject({ events: 2, size: 2, unsignedTail: 0 });
  });

  test('signs at its interval by itself', async () => {
    const dir = temporaryDirectory();
    const log = openLog(dir, { checkpointIntervalMs: 5, flushIntervalMs: 5 });
    log.emit({ kind: 'agent.started' });
    await expect.poll(() => verified(dir).size).toBe(1);
    await log.close();
  });

  test('tells time to the nanosecond, and follows the wall clock when it is set', async () => {
    const dir = temporaryDirectory();
    const clock = new StandingClock();
    const log = openLog(dir, { clock });
    log.emit({ kind: 'agent.started' });
    clock.boot += 123_456n;
    log.emit({ kind: 'agent.started' });
    clock.wallMs += 3_600_000;
    clock.boot += 1_000n;
    log.emit({ kind: 'agent.started' });
    await log.close();
    expect([...readEvents(dir)].map((e) => e.time)).toEqual([
      '2025-11-21T05:25:40.000000000Z',
      '2025-11-21T05:25:40.000123456Z',
      '2025-11-21T06:25:40.000000000Z',
    ]);
  });

  test('events are found by kind, reason, correlation, SPIFFE ID and time', async () => {
    const dir = temporaryDirectory();
    const clock = new StandingClock();
    const log = openLog(dir, { clock });
    log.emit({ kind: 'auth.failed', reason: 'AUTH_NO_SVID', source: { spiffeId: 'spiffe://example.org/a' } });
    clock.wallMs += 1000;
    log.emit({ kind: 'auth.succeeded', correlation: 'x', destination: { spiffeId: 'spiffe://example.org/a' } });
    await log.close();
    const found = (filter: Parameters<typeof readEvents>[1]) => [...readEvents(dir, filter)].map((e) => e.seq);
    expect(found({ kinds: ['auth.failed'] })).toEqual([0]);
    expect(found({ reason: 'AUTH_NO_SVID' })).toEqual([0]);
    expect(found({ correlation: 'x' })).toEqual([1]);
    expect(found({ spiffeId: 'spiffe://example.org/a' })).toEqual([0, 1]);
    expect(found({ sinceMs: NOW_MS + 1 })).toEqual([1]);
    expect(found({ untilMs: NOW_MS + 1 })).toEqual([0]);
    expect(found({ fromSeq: 1 })).toEqual([1]);
    expect(found({ limit: 1 })).toEqual([0]);
  });

  test('its key and its events are for the owner only', async () => {
    const dir = await filledLog(1);
    for (const file of ['signing.key', EVENTS]) expect(statSync(join(dir, file)).mode & 0o077).toBe(0);
  });

  test('a signing key that others may read is refused', async () => {
    const dir = await filledLog(1);
    chmodSync(join(dir, 'signing.key'), 0o644);
    expect(() => openLog(dir)).toThrow(/others may read/);
  });

  test('has one writer at a time', async () => {
    const dir = temporaryDirectory();
    const log = openLog(dir);
    expect(() => openLog(dir)).toThrow(/writes this audit log/);
    await log.close();
    await openLog(dir).close();
  });

  test('a lock that a killed process left is taken over, also when its pid lives again', async () => {
    const dir = temporaryDirectory();
    writeFileSync(join(dir, 'lock'), `${process.pid} 1\n`);
    await openLog(dir).close();
  });

  test('what is said after the end is counted', async () => {
    const log = openLog(temporaryDirectory());
    await log.close();
    log.emit({ kind: 'agent.stopped' });
    expect(log.lost).toBe(1);
  });
});

describe('after a crash', () => {
  test('half a line is cut off, kept aside and noted', async () => {
    const dir = await filledLog(5);
    appendFileSync(join(dir, EVENTS), '{"v":1,"seq":5,"time":"2025');
    expect(verifyAuditLog(dir, { nowMs: NOW_MS })).toMatchObject({ ok: false, error: { line: 6 } });
    await openLog(dir).close();
    expect([...readEvents(dir, { kinds: ['audit.repaired'] })]).toMatchObject([
      { seq: 5, detail: { bytes: 27, keptIn: 'damaged-5.0' } },
    ]);
    expect(readFileSync(join(dir, 'damaged-5.0'), 'utf8')).toBe('{"v":1,"seq":5,"time":"2025');
    expect(verified(dir)).toMatchObject({ events: 6, size: 6 });
  });

  test('a hole of zeros behind the last checkpoint is cut off as well', async () => {
    const dir = await filledLog(5);
    appendFileSync(join(dir, EVENTS), Buffer.concat([Buffer.alloc(4096), Buffer.from('\n{}\n')]));
    await openLog(dir).close();
    expect(verified(dir).events).toBe(6);
  });

  test('half a line in the history of checkpoints is mended', async () => {
    const dir = await filledLog(5);
    appendFileSync(join(dir, 'checkpoints.jsonl'), '"example.org/no');
    expect(verified(dir).size).toBe(5);
    await fill(openLog(dir), 1);
    expect(verified(dir)).toMatchObject({ size: 6, checkpoints: 2 });
  });

  test('a tile that covers lines which are gone is written anew', async () => {
    const dir = await filledLog(255);
    const log = openLog(dir);
    log.emit({ kind: 'agent.started' });
    await new Promise(setImmediate);
    // As if power had failed: the tile was on disk, the line and everything later was not.
    const before = statSync(join(dir, EVENTS)).size;
    await log.close();
    expect(existsSync(join(dir, 'tile/0/000'))).toBe(true);
    const lines = readFileSync(join(dir, EVENTS), 'utf8').split('\n');
    truncateSync(join(dir, EVENTS), before - lines.at(-2)!.length - 1 + 10);
    const notes = readFileSync(join(dir, 'checkpoints.jsonl'), 'utf8').split('\n');
    writeFileSync(join(dir, 'checkpoints.jsonl'), `${notes[0]}\n`);
    writeFileSync(join(dir, 'checkpoint'), JSON.parse(notes[0]!));
    await openLog(dir).close();
    expect(verified(dir).size).toBe(256);
  });
});

describe('opening an altered log', () => {
  const cases: [string, (dir: string) => void, RegExp][] = [
    ['a changed line', (dir) => edit(dir, (l) => [l[0]!.replace('"c0"', '"cX"'), ...l.slice(1)]), /not those that/],
    ['a removed line', (dir) => edit(dir, (l) => l.slice(1)), /not event 0/],
    ['a log cut short', (dir) => edit(dir, (l) => l.slice(0, 3)), /holds 3 events.*signs 5/],
    ['a forged checkpoint', (dir) => writeFileSync(join(dir, 'checkpoint'), 'x\n0\n\n'), /checkpoint/],
    ['another key', (dir) => rmSync(join(dir, 'signing.key')), /another key/],
  ];
  test.each(cases)('%s is refused', async (_, alter, message) => {
    const dir = await filledLog(5);
    alter(dir);
    expect(() => openLog(dir)).toThrow(message);
  });
});

function edit(dir: string, change: (lines: string[]) => string[]): void {
  const lines = readFileSync(join(dir, EVENTS), 'utf8').split('\n').slice(0, -1);
  writeFileSync(
    join(dir, EVENTS),
    change(lines)
      .map((l) => `${l}\n`)
      .join(''),
  );
}
