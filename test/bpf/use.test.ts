/** When was a node last spoken with? What the agent renews leases by. */
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { native } from '../../native/index.ts';
import { u32Key, u64Value } from '../../src/datapath/layout.ts';
import { type Kernel, MARK_TUNNEL, stamped, unavailable } from './support/kernel.ts';
import { ethernet, TCP, tcp, udp } from './support/packets.ts';
import { A, allowBoth, B, EGRESS, families, INGRESS, makeWorld, R, settle } from './support/world.ts';

const SECOND = 1_000_000_000n;

describe.skipIf(unavailable)('the last use of a node', () => {
  let kernel: Kernel;
  beforeAll(() => {
    kernel = makeWorld();
  });
  beforeEach(() => {
    settle(kernel);
    kernel.clear('cs_uses');
  });
  afterAll(() => kernel?.close());

  const out = (packet: Buffer) => kernel.run('from_workload', ethernet(packet)).action;
  const into = (packet: Buffer, mark = MARK_TUNNEL) => kernel.run('to_workload', ethernet(packet), { mark }).action;
  const lastUse = (node: number = R.node) => {
    const bytes = native().mapLookup(kernel.object.maps.cs_uses!.fd, u32Key.encode({ n: node }));
    return bytes === undefined ? undefined : u64Value.decode(bytes).n;
  };
  const uses = () => native().mapCount(kernel.object.maps.cs_uses!.fd);

  describe.each(families)('$name', (f) => {
    test('a flow that begins is a use, in either direction, and of that node only', () => {
      allowBoth(kernel);
      for (const begin of [() => out(udp(f.a, f.r, 1, 53)), () => into(udp(f.r, f.a, 2, 53))]) {
        kernel.clear('cs_uses');
        const before = kernel.now();
        expect(begin()).toBe('pass');
        expect(lastUse()).toBeGreaterThanOrEqual(before);
        expect(lastUse()).toBeLessThanOrEqual(kernel.now());
        expect(uses()).toBe(1);
      }
    });

    test.each([
      ['refused', () => out(udp(f.a, f.r, 1, 53)), 'drop'],
      ['held', () => out(udp(f.a, f.r, 2, 80)), 'hold'],
      ['lying about where it comes from', () => into(udp(f.r, f.a, 2, 80), 0), 'drop'],
    ] as const)('what is %s is none', (_, send, action) => {
      kernel.policy({ local: A.identity, remote: R.identity, direction: EGRESS, proto: 17, dport: 80 }, { auth: 1 });
      kernel.policy({ local: A.identity, remote: R.identity, direction: INGRESS });
      expect(send()).toBe(action);
      expect(uses()).toBe(0);
    });

    test('neighbours on this node are none', () => {
      kernel.policy({ local: A.identity, remote: B.identity, direction: EGRESS });
      expect(out(udp(f.a, f.b, 1, 53))).toBe('pass');
      expect(into(udp(f.b, f.a, 53, 1), stamped(B.endpoint))).toBe('pass');
      expect(uses()).toBe(0);
    });

    test('a flow that goes on is a use a second later, in either direction', () => {
      allowBoth(kernel);
      out(tcp(f.a, f.r, 40000, 80));
      into(tcp(f.r, f.a, 80, 40000, TCP.syn | TCP.ack));
      for (const go of [() => out(tcp(f.a, f.r, 40000, 80, TCP.ack)), () => into(tcp(f.r, f.a, 80, 40000, TCP.ack))]) {
        kernel.clear('cs_uses');
        expect(go()).toBe('pass');
        // Within the second nothing is written: it is in memory from before.
        expect(lastUse()).toBeUndefined();
        kernel.ageFlows(2n * SECOND);
        const before = kernel.now();
        expect(go()).toBe('pass');
        expect(lastUse()).toBeGreaterThan(before - 2n * SECOND);
      }
    });

    test('without flows every packet is one', () => {
      allowBoth(kernel);
      kernel.config({ revision: 0xffff_ffff_ffff_ffffn });
      expect(out(udp(f.a, f.r, 1, 53))).toBe('pass');
      expect(uses()).toBe(1);
      kernel.clear('cs_uses');
      expect(out(udp(f.a, f.r, 1, 53))).toBe('pass');
      expect(uses()).toBe(1);
    });
  });
});
