/** Authentication with scope connection, between the kernel and the agent: what is signalled, what is written, what is lost. */
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { createAuthTable } from '../../src/datapath/auth-table.ts';
import { ConfigWriter } from '../../src/datapath/config.ts';
import { eventStruct } from '../../src/datapath/layout.ts';
import { openMaps } from '../../src/datapath/maps.ts';
import { decodeSignal } from '../../src/datapath/signals.ts';
import { AUTH_TYPE_CODE, type AuthTable, type DatapathSignal } from '../../src/model/datapath.ts';
import { nodeId, securityIdentity } from '../../src/model/ids.ts';
import { type Kernel, MARK_TUNNEL, unavailable } from './support/kernel.ts';
import { echoRequest, ethernet, TCP, tcp, udp } from './support/packets.ts';
import { A, allowBoth, families, makeWorld, R, settle } from './support/world.ts';

const HOUR = 3_600_000_000_000n;
const pair = { local: securityIdentity(A.identity), remote: securityIdentity(R.identity), remoteNode: nodeId(R.node) };
const EACH = AUTH_TYPE_CODE['spiffe-connection'];

describe.skipIf(unavailable)('a proof for each flow', () => {
  let kernel: Kernel;
  let auth: AuthTable;
  const start = (sizes?: Readonly<Record<string, number>>) => {
    kernel = makeWorld(sizes);
    const maps = openMaps(kernel.object.maps);
    auth = createAuthTable(maps, new ConfigWriter(maps));
  };
  beforeAll(() => start());
  beforeEach(async () => {
    await kernel.drainEvents();
    settle(kernel);
    kernel.clear('cs_flow_auth');
    allowBoth(kernel, EACH);
  });
  afterAll(() => kernel?.close());

  const out = (packet: Buffer) => kernel.run('from_workload', ethernet(packet)).action;
  const into = (packet: Buffer) => kernel.run('to_workload', ethernet(packet), { mark: MARK_TUNNEL }).action;
  const signals = async () =>
    (await kernel.drainEvents()).map((event) => decodeSignal(eventStruct.encode(event))) as DatapathSignal[];
  /** As the agent does when the exchange has ended well. */
  const prove = (signal: DatapathSignal) =>
    auth.putFlow(
      {
        local: signal.localIdentity,
        remote: signal.remoteIdentity,
        remoteNode: signal.remoteNode,
        authType: 'spiffe-connection',
        expiresAtNs: kernel.now() + HOUR,
        epoch: 1,
      },
      signal,
    );
  const settled = () => kernel.returnHeld(A.identity, kernel.hold('cs_hold_taken', A.identity));

  describe.each(families)('$name', (f) => {
    test.each([
      ['TCP', () => tcp(f.a, f.r, 40000, 80), () => tcp(f.a, f.r, 40001, 80)],
      ['UDP', () => udp(f.a, f.r, 40000, 53), () => udp(f.a, f.r, 40000, 54)],
      ['an echo', () => echoRequest(f.a, f.r, 7), () => echoRequest(f.a, f.r, 8)],
    ])(
      '%s: what a miss says is what a proof is written for, and lets that flow pass alone',
      async (_, packet, other) => {
        expect(out(packet())).toBe('hold');
        const [signal, ...more] = await signals();
        expect(more).toEqual([]);
        expect(signal).toMatchObject({ kind: 'auth-miss', held: true, authType: 'spiffe-connection' });
        prove(signal!);
        settled();
        expect(auth.listFlows()).toMatchObject([{ taken: false, remote: R.identity, remoteNode: R.node }]);
        expect(out(packet())).toBe('pass');
        expect(auth.listFlows()).toMatchObject([{ taken: true }]);
        expect(out(other())).toBe('hold');
      },
    );

    test('on the way in too', async () => {
      expect(into(tcp(f.r, f.a, 40000, 80))).toBe('drop');
      const [signal] = await signals();
      expect(signal).toMatchObject({ kind: 'auth-miss', held: false, localPort: 80, remotePort: 40000 });
      prove(signal!);
      expect(into(tcp(f.r, f.a, 40000, 80))).toBe('pass');
      expect(out(tcp(f.a, f.r, 80, 40000, TCP.syn | TCP.ack))).toBe('pass');
    });

    test('each flow is asked for once in an interval, not each pair', async () => {
      kernel.config({ signal_interval_ns: HOUR });
      for (const port of [1, 2, 1, 3, 2, 1]) out(udp(f.a, f.r, port, 53));
      expect((await signals()).map(({ localPort }) => localPort)).toEqual([1, 2, 3]);
      allowBoth(kernel, AUTH_TYPE_CODE.spiffe);
      for (const port of [4, 5, 6]) out(udp(f.a, f.r, port, 53));
      expect((await signals()).map(({ localPort }) => localPort)).toEqual([4]);
    });

    test('a scan over ports is told of as often as any scan', async () => {
      kernel.config({ signal_interval_ns: HOUR, hold_ifindex: 0 });
      for (let port = 1; port <= 300; port++) out(udp(f.a, f.r, port, 53));
      expect(await signals()).toHaveLength(256);
    });

    test('when the pair’s proofs are deleted, a flow that runs ends with the next packet', async () => {
      out(udp(f.a, f.r, 1, 53));
      prove((await signals())[0]!);
      settled();
      kernel.config({ hold_ifindex: 0 });
      expect(out(udp(f.a, f.r, 1, 53))).toBe('pass');
      const [entry] = auth.listFlows();
      expect(auth.deleteFlows([entry!])).toBe(1);
      kernel.bump();
      expect(out(udp(f.a, f.r, 1, 53))).toBe('drop');
      expect(into(udp(f.r, f.a, 53, 1))).toBe('drop');
    });
  });

  test('what a full table loses waits for another proof: nothing passes without one', () => {
    kernel.close();
    start({ cs_flow_auth: 128, cs_flows: 4096 });
    allowBoth(kernel, EACH);
    const [f] = families;
    const flows = 600;
    for (let port = 1; port <= flows; port++) {
      auth.putFlow(
        { ...pair, authType: 'spiffe-connection', expiresAtNs: kernel.now() + HOUR, epoch: 1 },
        {
          endpoint: A.endpoint,
          localAddress: f!.a,
          remoteAddress: f!.r,
          protocol: 17,
          localPort: port,
          remotePort: 53,
        },
      );
    }
    const kept = new Set(auth.listFlows().map(({ flow }) => flow.localPort));
    expect(kept.size).toBeLessThan(flows);
    kernel.config({ hold_ifindex: 0 });
    const passed = Array.from({ length: flows }, (_, i) => i + 1).filter(
      (port) => out(udp(f!.a, f!.r, port, 53)) === 'pass',
    );
    expect(passed.length).toBeGreaterThan(0);
    expect(passed.every((port) => kept.has(port))).toBe(true);
  });
});
