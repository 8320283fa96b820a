import { describe, expect, test } from 'vitest';
import { Monitor, type MonitorFilter } from '../../../src/agent/monitor.ts';
import type { PacketEvent } from '../../../src/agent/packet-events.ts';
import type { AuditEvent } from '../../../src/model/audit-event.ts';

const all: MonitorFilter = {
  kinds: [],
  from: [],
  to: [],
  reasons: [],
  port: 0,
  protocol: '',
  verdicts: [],
  sample: 0,
};
const packet = (kind: PacketEvent['kind'], more: Partial<PacketEvent> = {}): PacketEvent => ({
  kind,
  source: { spiffeId: 'spiffe://example.org/shop/frontend', identity: 256, address: '10.77.1.10', port: 40_000 },
  destination: { spiffeId: 'spiffe://example.org/shop/backend', identity: 257, address: '10.77.2.10', port: 8080 },
  detail: { protocol: 'tcp' },
  ...more,
});
const dropped = packet('packet.dropped', { reason: 'POLICY_DENIED' }) as AuditEvent;

function stage() {
  const logged: string[] = [];
  const samples: number[] = [];
  let now = 1_795_242_532_938;
  const monitor = new Monitor(
    { emit: (event) => void logged.push(event.kind) },
    {
      workloadAt: (address) => (address === '10.77.1.10' ? 'frontend-1' : undefined),
      setSample: (oneOf) => void samples.push(oneOf),
      nowMs: () => now,
    },
  );
  const listen = (filter: Partial<MonitorFilter> = {}) => {
    const lines: Record<string, unknown>[] = [];
    const sink = { queued: 0, write: (json: string) => void lines.push(JSON.parse(json)) };
    return { lines, sink, listener: monitor.listen({ ...all, ...filter }, sink) };
  };
  return { monitor, logged, samples, listen, pass: (ms: number) => (now += ms) };
}

describe('what a listener hears', () => {
  test('every event goes to the log, and to listeners with the workloads by name and the verdict', () => {
    const { monitor, logged, listen } = stage();
    const { lines } = listen();
    monitor.emit(dropped);
    monitor.emit({ kind: 'policy.changed' });
    expect(logged).toEqual(['packet.dropped', 'policy.changed']);
    expect(lines).toMatchObject([
      {
        time: '2026-11-21T06:28:52.938Z',
        kind: 'packet.dropped',
        verdict: 'drop',
        source: { workload: 'frontend-1' },
        destination: { workload: 'backend' },
      },
      { kind: 'policy.changed' },
    ]);
  });

  test.each([
    ['its kind', { kinds: ['packet.dropped'] }, true],
    ['another kind', { kinds: ['auth.failed'] }, false],
    ['its source by name', { from: ['frontend-1'] }, true],
    ['its source by SPIFFE ID', { from: ['spiffe://example.org/shop/frontend'] }, true],
    ['its source by address', { from: ['10.77.1.10'] }, true],
    ['another source', { from: ['backend'] }, false],
    ['its destination, one of two', { to: ['nobody', 'backend'] }, true],
    ['its reason', { reasons: ['POLICY_DENIED'] }, true],
    ['another reason', { reasons: ['FENCED'] }, false],
    ['its destination port', { port: 8080 }, true],
    ['the port of its source', { port: 40_000 }, false],
    ['its protocol', { protocol: 'tcp' }, true],
    ['another protocol', { protocol: 'udp' }, false],
    ['its verdict', { verdicts: ['observed', 'drop'] }, true],
    ['another verdict', { verdicts: ['observed'] }, false],
    ['two fields of which one does not match', { port: 8080, protocol: 'udp' }, false],
  ] as const)('a filter on %s', (_, filter, told) => {
    const { monitor, listen } = stage();
    const { lines } = listen(filter);
    monitor.emit(dropped);
    expect(lines.length).toBe(told ? 1 : 0);
  });

  test('an event of no packet has no verdict, port or protocol to match', () => {
    const { monitor, listen } = stage();
    const heard = [listen({ verdicts: ['drop'] }), listen({ port: 8080 }), listen({ from: ['frontend-1'] })];
    monitor.emit({ kind: 'policy.changed' });
    expect(heard.map((h) => h.lines)).toEqual([[], [], []]);
  });
});

describe('a slow listener', () => {
  test('loses events, the others do not, and it is told how many when there is room', () => {
    const { monitor, listen } = stage();
    const slow = listen();
    const other = listen();
    slow.sink.queued = 1024;
    for (let i = 0; i < 5; i++) monitor.emit(dropped);
    expect(slow.lines).toEqual([]);
    expect(other.lines.length).toBe(5);
    slow.sink.queued = 10;
    slow.listener.writable();
    slow.listener.writable();
    expect(slow.lines).toMatchObject([{ kind: 'monitor.lost', detail: { events: 5 } }]);
    monitor.emit(dropped);
    expect(slow.lines.length).toBe(2);
  });
});

describe('sampled verdicts', () => {
  const allowed = packet('packet.allowed');

  test('the kernel samples while somebody listens for them, as often as who asks for most, and not for who wants only drops', () => {
    const { samples, listen } = stage();
    const plain = listen();
    const drops = listen({ sample: 1, verdicts: ['drop'] });
    expect(samples).toEqual([]);
    const ten = listen({ sample: 10 });
    const two = listen({ sample: 2 });
    expect(samples).toEqual([10, 2]);
    two.listener.stop();
    two.listener.stop();
    expect(samples).toEqual([10, 2, 10]);
    ten.listener.stop();
    expect(samples).toEqual([10, 2, 10, 0]);
    plain.listener.stop();
    drops.listener.stop();
    expect(samples).toEqual([10, 2, 10, 0]);
  });

  test('each hears as many as it asked for, and the log none', () => {
    const { monitor, logged, listen } = stage();
    const plain = listen();
    const every = listen({ sample: 1 });
    const fifth = listen({ sample: 5 });
    for (let i = 0; i < 100; i++) monitor.allowed(allowed);
    expect([plain, every, fifth].map((l) => l.lines.length)).toEqual([0, 100, 20]);
    expect(every.lines[0]).toMatchObject({ kind: 'packet.allowed', verdict: 'allow' });
    expect(logged).toEqual([]);
  });

  test('a flood makes the kernel sample more thinly, events say so, and quiet takes it back', () => {
    const { monitor, samples, listen, pass } = stage();
    const { lines } = listen({ sample: 1 });
    for (let i = 0; i < 450; i++) monitor.allowed(allowed);
    expect(samples).toEqual([1, 2, 4]);
    expect(lines.at(-1)).toMatchObject({ sampled: 4 });
    for (let i = 0; i < 6; i++) {
      pass(200);
      monitor.allowed(allowed);
    }
    expect(samples.at(-1)).toBe(1);
  });
});
