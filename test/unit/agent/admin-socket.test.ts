import { mkdtempSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { credentials } from '@grpc/grpc-js';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { AgentAdminClient, MonitorRequest } from '../../../proto/gen/countersign/admin/v1/admin.ts';
import { type AdminHandlers, serveAdmin } from '../../../src/agent/admin-socket.ts';
import { checkFilter, Monitor } from '../../../src/agent/monitor.ts';

let dir: string;
let close: () => void;
let client: AgentAdminClient;
let monitor: Monitor;
const samples: number[] = [];

beforeEach(async () => {
  dir = mkdtempSync(join(tmpdir(), 'cs-admin-'));
  samples.length = 0;
  monitor = new Monitor(
    { emit: () => {} },
    { workloadAt: () => undefined, setSample: (n) => void samples.push(n), nowMs: () => Date.now() },
  );
  const handlers = {
    drops: () => [{ packets: 3n }],
    dropPairs: () => [],
    monitor: (filter, sink) => monitor.listen(checkFilter(filter), sink),
  } as Partial<AdminHandlers> as AdminHandlers;
  ({ close } = await serveAdmin(join(dir, 'admin.sock'), handlers));
  client = new AgentAdminClient(`unix:${join(dir, 'admin.sock')}`, credentials.createInsecure());
});
afterEach(() => {
  client.close();
  close();
  rmSync(dir, { recursive: true, force: true });
});

const drop = { kind: 'packet.dropped', reason: 'POLICY_DENIED', detail: { note: 'x'.repeat(1000) } } as const;

describe('the admin socket', () => {
  test('is for its user alone', () => {
    expect(statSync(join(dir, 'admin.sock')).mode & 0o777).toBe(0o600);
  });

  test('drops are asked for by reason or by pair', async () => {
    const ask = (pairs: boolean) =>
      new Promise<string>((resolve, reject) =>
        client.listDrops({ pairs }, (error, reply) => (error === null ? resolve(reply.json) : reject(error))),
      );
    expect(await ask(false)).toBe('{"drops":[{"packets":3}]}');
    expect(await ask(true)).toBe('{"pairs":[]}');
  });

  test.each([
    ['a reason that is none', { reasons: ['NO_SUCH'] }],
    ['a verdict that is none', { verdicts: ['maybe'] }],
    ['a protocol that is none', { protocol: 'carrier-pigeon' }],
    ['a port that is none', { port: 70_000 }],
  ])('a filter with %s is refused, not waited on', async (_, wrong) => {
    const stream = client.monitor(MonitorRequest.fromPartial(wrong));
    const error = await new Promise<{ code: number; details: string }>((resolve) =>
      stream.on('error', resolve as never),
    );
    expect(error.code).toBe(3);
    expect(error.details).toMatch(/--/);
  });

  test('a listener that leaves ends its samples', async () => {
    const stream = client.monitor(MonitorRequest.fromPartial({ sample: 7 }));
    stream.on('error', () => {});
    await vi.waitFor(() => expect(samples).toEqual([7]));
    stream.cancel();
    await vi.waitFor(() => expect(samples).toEqual([7, 0]));
  });

  test('a listener that does not read costs a bounded queue, and is told what it lost when it reads again', async () => {
    const stream = client.monitor(MonitorRequest.fromPartial({}));
    stream.on('error', () => {});
    let heard = 0;
    const first = () => {
      heard += 1;
    };
    stream.on('data', first);
    await vi.waitFor(() => {
      monitor.emit({ kind: 'policy.changed' });
      expect(heard).toBeGreaterThan(0);
    });
    stream.pause();
    stream.off('data', first);
    const before = process.memoryUsage().rss;
    const sent = 30_000;
    for (let i = 0; i < sent; i++) {
      monitor.emit(drop);
      if (i % 500 === 0) await new Promise((resolve) => setImmediate(resolve));
    }
    expect(process.memoryUsage().rss - before).toBeLessThan(100 << 20);
    let got = 0;
    let lost = 0;
    stream.on('data', ({ json }: { json: string }) => {
      const event = JSON.parse(json);
      if (event.kind === 'packet.dropped') got += 1;
      if (event.kind === 'monitor.lost') lost += event.detail.events;
    });
    stream.resume();
    await vi.waitFor(() => expect(got + lost).toBe(sent), { timeout: 10_000 });
    expect(lost).toBeGreaterThan(sent / 2);
    stream.cancel();
  }, 20_000);
});
