/** What the agent hears: each miss and drop once per key and interval, with what was left out counted; and the counters. */
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { addressBytes } from '../../src/model/address.ts';
import { type Kernel, MARK_TUNNEL, unavailable } from './support/kernel.ts';
import { ethernet, ip, ipPacket, tcp, udp } from './support/packets.ts';
import { A, allowBoth, B, EGRESS, families, HOST, INGRESS, makeWorld, R, settle } from './support/world.ts';

const VOUCH_MISS = 1;
const AUTH_MISS = 2;
const DROP = 3;
const VERDICT = 4;
const HOUR = 3_600_000_000_000n;

describe.skipIf(unavailable)('events and counters', () => {
  let kernel: Kernel;
  beforeAll(() => {
    kernel = makeWorld();
  });
  beforeEach(async () => {
    await kernel.drainEvents();
    settle(kernel);
  });
  afterAll(() => kernel?.close());
  const send = (packet: Buffer) => kernel.run('from_workload', ethernet(packet));
  const receive = (packet: Buffer) => kernel.run('to_workload', ethernet(packet), { mark: MARK_TUNNEL });

  describe.each(families)('$name', (f) => {
    test('a miss that is held tells all the agent needs to mend it', async () => {
      kernel.policy({ local: A.identity, remote: R.identity, direction: EGRESS }, { auth: 1, rule: 42 });
      const before = kernel.now();
      send(tcp(f.a, f.r, 40000, 80));
      const [event, ...more] = await kernel.drainEvents();
      expect(more).toEqual([]);
      expect(event).toMatchObject({
        suppressed: 0n,
        local: addressBytes(f.a),
        remote: addressBytes(f.r),
        local_identity: A.identity,
        remote_identity: R.identity,
        remote_node: R.node,
        endpoint: A.endpoint,
        rule: 42,
        lport: 40000,
        rport: 80,
        kind: AUTH_MISS,
        reason: 0,
        direction: EGRESS,
        proto: 6,
        auth_type: 1,
        held: 1,
      });
      expect(event!.time_ns).toBeGreaterThan(before);
      expect(event!.time_ns).toBeLessThan(kernel.now());
    });

    test('a miss on the way in is a drop with its reason', async () => {
      allowBoth(kernel, 1);
      receive(udp(f.r, f.a, 40000, 53));
      kernel.removeAddress(f.r);
      receive(udp(f.r, f.a, 40000, 53));
      expect(await kernel.drainEvents()).toMatchObject([
        { kind: AUTH_MISS, reason: 128, held: 0, direction: INGRESS, lport: 53, rport: 40000 },
        { kind: VOUCH_MISS, reason: 68, held: 0, direction: INGRESS, remote_identity: 0 },
      ]);
    });

    test('a drop that nobody can mend is a drop', async () => {
      kernel.policy({ local: A.identity, remote: R.identity, direction: EGRESS }, { deny: true, rule: 7 });
      send(udp(f.a, f.r, 40000, 53));
      send(udp(f.b, f.r, 40000, 53));
      expect(await kernel.drainEvents()).toMatchObject([
        { kind: DROP, reason: 97, rule: 7, remote_identity: R.identity },
        { kind: DROP, reason: 64, local: addressBytes(f.b), endpoint: A.endpoint },
      ]);
    });

    test('a full hold queue is still a miss that the agent can mend', async () => {
      allowBoth(kernel, 1);
      kernel.config({ hold_limit_total: 0 });
      send(udp(f.a, f.r, 40000, 53));
      expect(await kernel.drainEvents()).toMatchObject([{ kind: AUTH_MISS, reason: 192, held: 0 }]);
    });

    test('a packet that only queues behind held ones makes no event', async () => {
      allowBoth(kernel, 1);
      send(udp(f.a, f.r, 40000, 53));
      kernel.auth({ local: A.identity, remote: R.identity, node: R.node });
      await kernel.drainEvents();
      expect(send(udp(f.a, f.r, 40000, 53)).action).toBe('hold');
      expect(await kernel.drainEvents()).toEqual([]);
    });

    test('2,000 packets of one key make one event; the next interval says how many were left out', async () => {
      allowBoth(kernel, 1);
      kernel.config({ signal_interval_ns: HOUR, hold_limit_identity: 1_000_000, hold_limit_total: 1_000_000 });
      for (let i = 0; i < 2000; i++) kernel.fire('from_workload', ethernet(udp(f.a, f.r, 1024 + i, 53)));
      expect(await kernel.drainEvents()).toHaveLength(1);
      kernel.config({ signal_interval_ns: 0n });
      send(udp(f.a, f.r, 40000, 53));
      expect(await kernel.drainEvents()).toMatchObject([{ kind: AUTH_MISS, suppressed: 1999n }]);
    });

    test('another peer, protocol, direction, reason or kind is another key', async () => {
      allowBoth(kernel, 1);
      kernel.config({ signal_interval_ns: HOUR });
      for (let twice = 0; twice < 2; twice++) {
        send(udp(f.a, f.r, 1, 53));
        send(tcp(f.a, f.r, 1, 53));
        receive(udp(f.r, f.a, 1, 53));
        send(udp(f.a, f.world, 1, 53));
        send(udp(f.a, f.nobody, 1, 53));
        send(udp(f.b, f.r, 1, 53));
      }
      expect(await kernel.drainEvents()).toHaveLength(6);
    });

    test('an endpoint that knocks at 2,000 addresses gets its share of events, and another endpoint its own', async () => {
      kernel.config({ signal_interval_ns: HOUR });
      const at = (i: number) =>
        ip(f.name === 'IPv4' ? `8.0.${2 + (i >> 8)}.${i & 255}` : `fd00:0:86dd:3::${i.toString(16)}`);
      kernel.config({ hold_ifindex: 0 });
      for (let i = 0; i < 2000; i++) kernel.fire('from_workload', ethernet(udp(f.a, at(i), 1, 53)));
      const events = await kernel.drainEvents();
      expect(events.length).toBeGreaterThanOrEqual(250);
      expect(events.length).toBeLessThanOrEqual(257);
      kernel.endpoint({ endpoint: 8, identity: A.identity });
      send(udp(f.a, f.r, 1, 53));
      expect(await kernel.drainEvents()).toHaveLength(1);
    });

    test('every drop is counted, with event or without', () => {
      kernel.config({ signal_interval_ns: HOUR });
      const before = kernel.drops().get('POLICY_DENIED') ?? 0n;
      for (let i = 0; i < 50; i++) send(udp(f.a, f.r, 1, 53));
      expect(kernel.drops().get('POLICY_DENIED')).toBe(before + 50n);
    });

    test('every drop is counted for its pair of identities too, what is held or allowed is not', () => {
      kernel.policy({ local: A.identity, remote: B.identity, direction: EGRESS });
      kernel.policy({ local: A.identity, remote: HOST, direction: EGRESS }, { deny: true });
      for (let i = 0; i < 3; i++) send(udp(f.a, f.r, 1, 53));
      send(udp(f.a, f.b, 1, 53));
      send(udp(f.a, f.host, 1, 53));
      send(udp(f.b, f.r, 1, 53));
      receive(udp(f.r, f.a, 1, 53));
      const pairs = kernel.pairDrops();
      expect(pairs).toHaveLength(4);
      expect(pairs).toEqual(
        expect.arrayContaining([
          { local: A.identity, remote: R.identity, reason: 'POLICY_DENIED', direction: EGRESS, packets: 3n },
          { local: A.identity, remote: HOST, reason: 'POLICY_DENY_RULE', direction: EGRESS, packets: 1n },
          { local: A.identity, remote: 0, reason: 'INVALID_SOURCE_IP', direction: EGRESS, packets: 1n },
          { local: A.identity, remote: R.identity, reason: 'POLICY_DENIED', direction: INGRESS, packets: 1n },
        ]),
      );
    });

    test('of all verdicts none is told, of one in n about each nth, of one in one each', async () => {
      allowBoth(kernel);
      let port = 1024;
      const allow = (n: number) => {
        for (let i = 0; i < n; i++) kernel.fire('from_workload', ethernet(udp(f.a, f.r, port++, 53)));
      };
      allow(100);
      expect(await kernel.drainEvents()).toEqual([]);
      kernel.config({ verdict_sample: 1 });
      allow(100);
      const [event, ...more] = await kernel.drainEvents();
      expect(more).toHaveLength(99);
      expect(event).toMatchObject({
        kind: VERDICT,
        reason: 0,
        held: 0,
        direction: EGRESS,
        local: addressBytes(f.a),
        remote: addressBytes(f.r),
        local_identity: A.identity,
        remote_identity: R.identity,
        lport: 1124,
        rport: 53,
      });
      kernel.config({ verdict_sample: 10 });
      allow(2000);
      const { length } = await kernel.drainEvents();
      expect(length).toBeGreaterThan(100);
      expect(length).toBeLessThan(330);
    });

    test('packets of a running flow are no new verdicts', async () => {
      allowBoth(kernel);
      kernel.config({ verdict_sample: 1 });
      for (let i = 0; i < 5; i++) send(udp(f.a, f.r, 1, 53));
      expect(await kernel.drainEvents()).toHaveLength(1);
    });

    test('a flood of samples takes no room from drops and misses', async () => {
      allowBoth(kernel);
      kernel.config({ verdict_sample: 1, signal_interval_ns: HOUR });
      const at = (i: number) =>
        ip(f.name === 'IPv4' ? `8.0.${2 + (i >> 8)}.${i & 255}` : `fd00:0:86dd:3::${i.toString(16)}`);
      for (let i = 0; i < 600; i++) {
        kernel.address(at(i), { identity: R.identity, node: R.node });
        kernel.fire('from_workload', ethernet(udp(f.a, at(i), 1, 53)));
      }
      expect((await kernel.drainEvents()).length).toBeLessThanOrEqual(257);
      send(udp(f.a, f.world, 1, 53));
      expect(await kernel.drainEvents()).toMatchObject([{ kind: DROP }]);
    });

    test('chatter to the link is dropped and counted, without an event', async () => {
      const chatter = f.name === 'IPv4' ? ip('224.0.0.22') : ip('ff02::16');
      expect(send(ipPacket(f.a, chatter, f.name === 'IPv4' ? 2 : 0, Buffer.alloc(32))).action).toBe('drop');
      expect(send(udp(f.nobody, f.name === 'IPv4' ? ip('224.0.0.251') : ip('ff02::fb'), 5353, 5353)).action).toBe(
        'drop',
      );
      expect(await kernel.drainEvents()).toEqual([]);
    });
  });

  test('a full ring buffer loses events, never verdicts', () => {
    const [v4] = families;
    // Nothing reads here: the loop below gives the event loop no turn. 4 MiB hold fewer than 50,000 records.
    kernel.fire('from_workload', ethernet(udp(v4!.a, v4!.r, 1, 53)), 60_000);
    expect(send(udp(v4!.a, v4!.r, 1, 53))).toMatchObject({ action: 'drop', reasons: ['POLICY_DENIED'] });
  });
});
