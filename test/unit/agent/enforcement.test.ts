import { mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import {
  Enforcement,
  enforcementAtStart,
  lastStop,
  readEnforcement,
  writeChange,
} from '../../../src/agent/enforcement.ts';
import { createLogger } from '../../../src/base/log.ts';
import type { AuditEvent } from '../../../src/model/audit-event.ts';

const log = createLogger('test', 'silent');
const request = { actor: 'uid 0', atMs: 1_795_000_000_000 };
let dataDir: string;

beforeEach(() => {
  dataDir = mkdtempSync(join(tmpdir(), 'cs-enforcement-'));
});
afterEach(() => rmSync(dataDir, { recursive: true }));

function follow() {
  const events: AuditEvent[] = [];
  const stopped: boolean[] = [];
  const enforcement = new Enforcement({
    dataDir,
    node: 'node-a',
    inForce: enforcementAtStart(dataDir, log),
    setStopped: (now) => stopped.push(now),
    audit: { emit: (event) => events.push(event) },
    log,
    pollMs: 1,
  });
  return { enforcement, stopped, because: () => events.map(({ kind, detail }) => `${kind} ${detail?.because}`) };
}

describe('the enforcement record', () => {
  it('says nothing is stopped when there is none', () => {
    expect(readEnforcement(dataDir)).toEqual({ stopped: false, changes: [] });
  });

  it('keeps a stop until a start, over a detach; an uninstall ends it', () => {
    writeChange(dataDir, { action: 'stop', reason: 'fire', ...request });
    writeChange(dataDir, { action: 'detach', reason: 'smoke', ...request });
    expect(lastStop(readEnforcement(dataDir))).toMatchObject({ reason: 'fire', seq: 1 });
    expect(writeChange(dataDir, { action: 'start', reason: 'out', ...request }).stopped).toBe(false);
    writeChange(dataDir, { action: 'detach', reason: 'again', ...request });
    expect(readEnforcement(dataDir).stopped).toBe(false);
    writeChange(dataDir, { action: 'stop', reason: 'fire', ...request });
    expect(writeChange(dataDir, { action: 'uninstall', reason: 'bye', ...request }).stopped).toBe(false);
  });

  it('is closed to others and bounded', () => {
    for (let i = 0; i < 260; i++) writeChange(dataDir, { action: 'start', reason: `${i}`, ...request });
    expect(statSync(join(dataDir, 'enforcement.json')).mode & 0o077).toBe(0);
    const { changes } = readEnforcement(dataDir);
    expect([changes.length, changes[0]!.seq, changes.at(-1)!.seq]).toEqual([256, 5, 260]);
  });

  it('that cannot be read stops nothing at a start, and is named', () => {
    writeFileSync(join(dataDir, 'enforcement.json'), '{"stopped": true, "changes": "none"}');
    expect(() => readEnforcement(dataDir)).toThrow('enforcement.json cannot be read');
    expect(enforcementAtStart(dataDir, log).stopped).toBe(false);
  });
});

describe('an agent that follows it', () => {
  it('puts each change in force and audits it once, also over restarts', async () => {
    const first = follow();
    writeChange(dataDir, { action: 'stop', reason: 'fire', ...request });
    await vi.waitFor(() => expect(first.stopped).toEqual([true]));
    expect(first.enforcement.view()).toMatchObject({ stopped: true, reason: 'fire', actor: 'uid 0' });
    first.enforcement.close();
    expect(first.because()).toEqual(['enforcement.stopped fire']);

    const second = follow();
    expect(second.enforcement.view()).toMatchObject({ stopped: true, reason: 'fire' });
    expect(second.stopped).toEqual([]); // it was opened stopped
    writeChange(dataDir, { action: 'start', reason: 'out', ...request });
    await vi.waitFor(() => expect(second.stopped).toEqual([false]));
    second.enforcement.close();
    expect(second.because()).toEqual(['enforcement.started out']);
  });

  it('audits what was done while none ran, in order', () => {
    writeChange(dataDir, { action: 'stop', reason: 'one', ...request });
    writeChange(dataDir, { action: 'start', reason: 'two', ...request });
    writeChange(dataDir, { action: 'detach', reason: 'three', ...request });
    const { enforcement, because, stopped } = follow();
    enforcement.close();
    expect(because()).toEqual(['enforcement.stopped one', 'enforcement.started two', 'datapath.detached three']);
    expect(stopped).toEqual([]);
  });

  it('changes nothing for a record that it cannot read', async () => {
    writeChange(dataDir, { action: 'stop', reason: 'fire', ...request });
    const { enforcement, stopped } = follow();
    writeFileSync(join(dataDir, 'enforcement.json'), 'nonsense');
    await new Promise((resolve) => setTimeout(resolve, 20));
    expect(stopped).toEqual([]);
    expect(enforcement.view().stopped).toBe(true);
    enforcement.close();
  });

  it('begins to count anew when the record was removed', () => {
    for (const reason of ['one', 'two']) writeChange(dataDir, { action: 'stop', reason, ...request });
    follow().enforcement.close();
    rmSync(join(dataDir, 'enforcement.json'));
    writeChange(dataDir, { action: 'stop', reason: 'three', ...request });
    const { enforcement, because } = follow();
    enforcement.close();
    expect(because()).toEqual(['enforcement.stopped three']);
  });
});
