import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { readEvents } from '../../../src/audit/read.ts';
import { verifyAuditLog } from '../../../src/audit/verify.ts';
import { NOW_MS, openLog, temporaryDirectory } from './support.ts';

const writer = `
import { openAuditLog } from ${JSON.stringify(join(import.meta.dirname, '../../../src/audit/log.ts'))};
import { createLogger } from ${JSON.stringify(join(import.meta.dirname, '../../../src/base/log.ts'))};
const clock = { nowMs: () => Date.now(), bootNs: () => process.hrtime.bigint() };
const log = openAuditLog({ dir: process.argv[1], origin: 'example.org/node/node-a', clock,
  log: createLogger('writer', 'silent'), checkpointIntervalMs: 3, flushIntervalMs: 1 });
let n = 0;
function turn() {
  for (let i = 0; i < 50; i++) log.emit({ kind: 'auth.succeeded', detail: { n: n++, filler: 'x'.repeat(n % 700) } });
  setImmediate(() => { if (n % 1000 === 0) process.stdout.write(n + '\\n'); setImmediate(turn); });
}
turn();
`;

test('kill -9 in the middle of writing loses nothing that reached the log, again and again', async () => {
  const dir = temporaryDirectory();
  let said = 0;
  for (let round = 0; round < 4; round++) {
    const child = spawn(process.execPath, ['--input-type=module', '-e', writer, dir], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    let seen = 0;
    child.stdout.on('data', (data: Buffer) => {
      seen = Number(data.toString().trim().split('\n').at(-1));
      if (seen >= 4000 + round * 777) child.kill('SIGKILL');
    });
    await once(child, 'close');
    expect(child.signalCode).toBe('SIGKILL');
    said += seen;
    const log = openLog(dir);
    expect(log.size).toBeGreaterThanOrEqual(said);
    await log.close();
    const result = verifyAuditLog(dir, { nowMs: NOW_MS });
    expect(result).toMatchObject({ ok: true, value: { unsignedTail: 0 } });
  }
  const events = [...readEvents(dir)];
  expect(events.map((e) => e.seq)).toEqual(events.map((_, i) => i));
});
