/** Observing: a policy, or the node, says what it would drop and drops nothing; and break-glass, which lets everything pass. */
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { CFG_OBSERVE, CFG_STOPPED } from '../../src/datapath/layout.ts';
import { SLOW } from '../support/slow.ts';
import { type Kernel, MARK_TUNNEL, type Program, stamped, unavailable } from './support/kernel.ts';
import { arp, ethernet, mac, neighbour, TCP, tcp, udp, WORKLOAD_MAC } from './support/packets.ts';
import { A, allowBoth, B, EGRESS, families, HOST, makeWorld, R, settle } from './support/world.ts';

const AUTH_MISS = 2;
const VOUCH_MISS = 1;
const OBSERVED = 5;
const SPIFFE = 1;
/** Long enough for a few packets, short enough to wait for. */
const SOON_NS = 40_000_000n * BigInt(SLOW);

describe.skipIf(unavailable)('observing', () => {
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
  const receive = (packet: Buffer, mark = MARK_TUNNEL) => kernel.run('to_workload', ethernet(packet), { mark });
  const drops = (reason: string) => ({ action: 'drop', reasons: [reason], observed: undefined });
  const passes = { action: 'pass', reasons: [], observed: undefined };
  const observes = (reason: string) => ({ action: 'pass', reasons: [], observed: [reason] });

  describe.each(families)('$name', (f) => {
    const request = tcp(f.a, f.r, 40000, 80);
    const reply = tcp(f.r, f.a, 80, 40000, TCP.syn | TCP.ack);

    describe('a policy', () => {
      const key = { local: A.identity, remote: R.identity, direction: EGRESS };

      test('that would deny lets each packet pass, counted, with its rule', async () => {
        kernel.policy(key, { rule: 3, observed: { deny: true, rule: 9 } });
        for (let n = 0; n < 3; n++) {
          expect(send(request)).toEqual({ ...observes('POLICY_DENY_RULE'), mark: stamped(A.endpoint) });
        }
        const events = await kernel.drainEvents();
        expect(events).toHaveLength(3);
        for (const event of events) {
          expect(event).toMatchObject({ kind: OBSERVED, reason: 97, rule: 9, held: 0, direction: EGRESS });
        }
      });

      test('that would not allow is told from one that would deny', () => {
        kernel.policy(key, { rule: 3, observed: { deny: true, rule: 0 } });
        expect(send(request)).toMatchObject(observes('POLICY_DENIED'));
      });

      test('does not disturb the flow: replies pass, and count too', () => {
        kernel.policy(key, { observed: { deny: true, rule: 9 } });
        send(request);
        expect(receive(reply)).toMatchObject(observes('POLICY_DENY_RULE'));
        expect(send(tcp(f.a, f.r, 40000, 80, TCP.ack))).toMatchObject(observes('POLICY_DENY_RULE'));
        expect(receive(tcp(f.r, f.a, 80, 40001, TCP.syn | TCP.ack))).toMatchObject(drops('STRAY'));
      });

      test('never lets pass what the policies in force refuse', () => {
        kernel.policy(key, { deny: true, rule: 4, observed: { rule: 9 } });
        expect(send(request)).toMatchObject(drops('POLICY_DENY_RULE'));
        kernel.policy(key, { auth: SPIFFE, observed: { auth: 0, rule: 9 } });
        expect(send(request).action).toBe('hold');
      });

      test('that would allow what is allowed says nothing, and the flow is an ordinary one', () => {
        kernel.policy(key, { observed: { rule: 9 } });
        expect(send(request)).toMatchObject(passes);
        expect(kernel.flows()).toMatchObject([{ flags: 0 }]);
      });

      test('that would require a proof makes the agent try, and holds nothing', async () => {
        kernel.policy(key, { rule: 3, observed: { auth: SPIFFE, rule: 9 } });
        expect(send(request)).toMatchObject(observes('AUTH_REQUIRED'));
        expect(kernel.hold('cs_hold_taken', 0)).toBe(0n);
        expect(await kernel.drainEvents()).toMatchObject([
          { kind: OBSERVED, reason: 128, auth_type: SPIFFE, rule: 9 },
          { kind: AUTH_MISS, reason: 0, auth_type: SPIFFE, held: 0, remote_node: R.node, remote_identity: R.identity },
        ]);
      });

      test('is satisfied by the proof, until it ends', () => {
        const end = kernel.now() + SOON_NS;
        kernel.policy(key, { observed: { auth: SPIFFE, rule: 9 } });
        kernel.auth({ local: A.identity, remote: R.identity, node: R.node }, { expires: end });
        expect(send(request)).toMatchObject(passes);
        expect(send(request)).toMatchObject(passes);
        while (kernel.now() < end);
        expect(send(request)).toMatchObject(observes('AUTH_EXPIRED'));
      });

      test('a refused pair is told, and asks nobody', async () => {
        kernel.policy(key, { observed: { auth: SPIFFE, rule: 9 } });
        kernel.auth({ local: A.identity, remote: R.identity, node: R.node }, { refused: true });
        expect(send(request)).toMatchObject(observes('AUTH_REFUSED'));
        expect(await kernel.drainEvents()).toMatchObject([{ kind: OBSERVED, reason: 133 }]);
      });

      test('once in force, drops the running flow’s next packet', () => {
        kernel.policy(key, { observed: { deny: true, rule: 9 } });
        send(request);
        kernel.policy(key, { deny: true, rule: 9 });
        kernel.bump();
        expect(receive(reply)).toMatchObject(drops('POLICY_DENY_RULE'));
      });
    });

    describe('the node', () => {
      beforeEach(() => kernel.config({ flags: CFG_OBSERVE }));

      test('passes what policy denies: the answer is its flow’s, no stray, and counts as that', () => {
        expect(send(request)).toMatchObject(observes('POLICY_DENIED'));
        expect(receive(reply)).toMatchObject(observes('POLICY_DENIED'));
        expect(receive(tcp(f.r, f.a, 80, 40001, TCP.syn | TCP.ack))).toMatchObject(observes('STRAY'));
      });

      test('drops it with the next packet when it enforces again, whatever flows were seen meanwhile', () => {
        send(request);
        receive(reply);
        kernel.config({ flags: 0 });
        kernel.bump();
        expect(send(tcp(f.a, f.r, 40000, 80, TCP.ack))).toMatchObject(drops('POLICY_DENIED'));
        expect(receive(reply)).toMatchObject(drops('POLICY_DENIED'));
      });

      test('also without a new revision: an observed flow lets nothing pass by itself', () => {
        send(request);
        kernel.config({ flags: 0 });
        expect(receive(reply)).toMatchObject(drops('POLICY_DENIED'));
      });

      test('asks for the vouch that is missing, and holds nothing', async () => {
        kernel.removeAddress(f.r);
        expect(send(request)).toMatchObject(observes('NO_VOUCH'));
        expect(await kernel.drainEvents()).toMatchObject([
          { kind: OBSERVED, reason: 68 },
          { kind: VOUCH_MISS, reason: 0, held: 0 },
        ]);
      });

      test.each([
        ['another source address', () => send(udp(f.b, f.r, 1, 2)), 'INVALID_SOURCE_IP'],
        ['the agents’ port', () => send(tcp(f.a, f.host, 1, 4250)), 'CONTROL_PLANE'],
        ['a stamp of another', () => receive(udp(f.r, f.a, 1, 2), stamped(B.endpoint)), 'SPOOFED_STAMP'],
        ['a cut packet', () => send(request.subarray(0, -10)), 'INVALID_PACKET'],
      ])('still drops %s', (_, run, reason) => {
        kernel.policy({ local: A.identity, remote: HOST, direction: EGRESS });
        expect(run()).toMatchObject(drops(reason));
      });
    });

    describe('enforcement stopped', () => {
      beforeEach(() => {
        kernel.config({ flags: CFG_STOPPED });
        kernel.endpoint({ ...A, mac: mac(WORKLOAD_MAC) });
      });
      const run = (program: Program, packet: Buffer, mark = 0) => kernel.run(program, packet, { mark });
      const attempts: readonly (readonly [string, () => ReturnType<typeof send>, string])[] = [
        ['what policy denies', () => send(request), 'POLICY_DENIED'],
        ['the agents’ port', () => send(tcp(f.a, f.host, 1, 4250)), 'CONTROL_PLANE'],
        ['another source address', () => send(udp(f.b, f.r, 1, 2)), 'INVALID_SOURCE_IP'],
        ['a cut packet', () => send(request.subarray(0, -10)), 'INVALID_PACKET'],
        ['a stray', () => receive(reply), 'STRAY'],
        ['a packet for another', () => receive(udp(f.r, f.b, 1, 2)), 'INVALID_DESTINATION_IP'],
        ['clear traffic', () => receive(udp(f.r, f.a, 1, 2), 0), 'UNENCRYPTED'],
        ['a lie of the underlay', () => run('from_netdev', ethernet(udp(f.a, f.b, 1, 2))), 'NOT_STAMPED'],
        ['clear traffic of another node', () => run('from_netdev', ethernet(udp(f.r, f.a, 1, 2))), 'UNENCRYPTED'],
        [
          'clear traffic to another node',
          () => run('to_netdev', ethernet(udp(f.a, f.r, 1, 2)), stamped(5)),
          'UNENCRYPTED',
        ],
        ['an unstamped packet into the tunnel', () => run('to_tunnel', udp(f.a, f.r, 1, 2)), 'NOT_STAMPED'],
        ['what comes back from the queue', () => run('from_hold', udp(f.a, f.r, 1, 2)), 'POLICY_DENIED'],
        [
          'another source MAC',
          () => kernel.run('from_workload', ethernet(request, { sourceMac: '02:00:00:00:00:0b' })),
          'INVALID_SOURCE_MAC',
        ],
        [
          'another’s ARP',
          () =>
            kernel.run(
              'from_workload',
              ethernet(arp(2, WORKLOAD_MAC, families[0]!.b, families[0]!.host), { type: 0x0806 }),
            ),
          'INVALID_SOURCE_IP',
        ],
        [
          'another’s advertisement',
          () => send(neighbour(136, families[1]!.a, families[1]!.host, families[1]!.b)),
          'INVALID_SOURCE_IP',
        ],
        [
          'an EtherType of its own',
          () => kernel.run('from_workload', ethernet(request, { type: 0x9999 })),
          'UNKNOWN_L3',
        ],
      ];

      test.each(attempts)('lets pass %s, counted as observed', (_, attempt, reason) => {
        expect(attempt()).toMatchObject(observes(reason));
        kernel.config({ flags: 0 });
        kernel.clear('cs_flows');
        expect(attempt()).toMatchObject(drops(reason));
      });

      test('lets pass what a fenced endpoint, or none, sends and is to receive', () => {
        kernel.endpoint({ ...A, open: false });
        expect(send(request)).toMatchObject({ ...observes('FENCED'), mark: stamped(A.endpoint) });
        expect(receive(reply)).toMatchObject(observes('FENCED'));
        kernel.removeEndpoint();
        expect(send(request)).toMatchObject({ ...observes('NO_ENDPOINT'), mark: 0 });
        expect(receive(reply)).toMatchObject(observes('NO_ENDPOINT'));
      });

      test('holds nothing, and asks for what is missing', async () => {
        allowBoth(kernel, SPIFFE);
        expect(send(request)).toMatchObject(observes('AUTH_REQUIRED'));
        expect(await kernel.drainEvents()).toMatchObject([{ kind: OBSERVED }, { kind: AUTH_MISS, reason: 0, held: 0 }]);
        kernel.removeAddress(f.r);
        expect(send(request)).toMatchObject(observes('NO_VOUCH'));
      });

      test('stamps go on, so that nothing else changes when it ends', () => {
        for (const packet of [request, udp(f.b, f.r, 1, 2), request.subarray(0, -10)]) {
          expect(send(packet).mark).toBe(stamped(A.endpoint));
        }
        expect(run('from_tunnel', udp(f.r, f.a, 1, 2)).mark).toBe(MARK_TUNNEL);
        expect(kernel.run('from_netdev', ethernet(udp(f.world, f.a, 1, 2)), { mark: stamped(A.endpoint) }).mark).toBe(
          0,
        );
      });

      test('counts no drop of a pair', () => {
        send(request);
        expect(kernel.pairDrops()).toEqual([]);
      });

      test('ends with the next packet', () => {
        send(request);
        receive(reply);
        kernel.config({ flags: 0 });
        expect(send(tcp(f.a, f.r, 40000, 80, TCP.ack))).toMatchObject(drops('POLICY_DENIED'));
        expect(receive(reply)).toMatchObject(drops('POLICY_DENIED'));
      });
    });
  });
});
