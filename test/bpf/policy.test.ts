/** Policy as the kernel looks it up: identity to class, then the narrowest entry that covers the packet, and nothing else. */
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { type Kernel, MARK_TUNNEL, stamped, unavailable } from './support/kernel.ts';
import { echoReply, echoRequest, ethernet, icmpProto, PROTO, sctp, TCP, tcp, udp } from './support/packets.ts';
import { A, B, EGRESS, families, HOST, INGRESS, makeWorld, R, REMOTE_NODE, settle, WORLD } from './support/world.ts';

describe.skipIf(unavailable)('policy', () => {
  let kernel: Kernel;
  beforeAll(() => {
    kernel = makeWorld();
  });
  beforeEach(() => settle(kernel));
  afterAll(() => kernel?.close());

  const drops = (reason: string) => ({ action: 'drop', reasons: [reason] });
  const passes = { action: 'pass', reasons: [] };

  describe.each(families)('$name', (f) => {
    const send = (packet: Buffer) => kernel.run('from_workload', ethernet(packet));
    const receive = (packet: Buffer, mark = MARK_TUNNEL) => kernel.run('to_workload', ethernet(packet), { mark });
    /** Sends to a port that no flow is open to yet. */
    let sport = 1024;
    const to = (port: number) => send(udp(f.a, f.r, sport++, port));

    describe('classes', () => {
      beforeEach(() => {
        kernel.policy({ local: A.identity, direction: EGRESS });
        kernel.policy({ local: A.identity, direction: INGRESS });
      });

      test('an identity that the policy does not know is dropped, though everybody may: a deny might have named it', () => {
        expect(to(53)).toMatchObject(passes);
        kernel.forgetIdentity(R.identity);
        expect(to(53)).toMatchObject(drops('POLICY_UNKNOWN_IDENTITY'));
        expect(receive(udp(f.r, f.a, 1, 53))).toMatchObject(drops('POLICY_UNKNOWN_IDENTITY'));
      });

      test('so is everything of an endpoint whose own identity it does not know', () => {
        kernel.forgetIdentity(A.identity);
        for (const remote of [f.r, f.b, f.host, f.world]) {
          expect(send(udp(f.a, remote, 1, 53))).toMatchObject(drops('POLICY_UNKNOWN_IDENTITY'));
        }
        expect(receive(udp(f.r, f.a, 1, 53))).toMatchObject(drops('POLICY_UNKNOWN_IDENTITY'));
      });

      test('and the world, the host and other nodes are identities like others', () => {
        for (const [address, identity] of [
          [f.world, WORLD],
          [f.host, HOST],
          [f.remoteNode, REMOTE_NODE],
        ] as const) {
          expect(send(udp(f.a, address, 2, 53))).toMatchObject(passes);
          kernel.forgetIdentity(identity);
          expect(send(udp(f.a, address, 3, 53))).toMatchObject(drops('POLICY_UNKNOWN_IDENTITY'));
        }
      });

      test('a row of the other half of the policy does not count', () => {
        kernel.forgetIdentity(R.identity, 1);
        expect(to(53)).toMatchObject(passes);
        kernel.config({ policy_slot: 1 });
        kernel.policy({ local: A.identity, direction: EGRESS, slot: 1 });
        expect(to(53)).toMatchObject(drops('POLICY_UNKNOWN_IDENTITY'));
      });

      test('identities of one class share its entries; another class has none of them', () => {
        kernel.clear('cs_policy');
        const row = { local: [0, 0], remote: [77, 0], portBits: [0, 0] } as const;
        for (const identity of [R.identity, B.identity]) kernel.classRow(identity, row);
        kernel.policy({ local: A.identity, remote: 77, direction: EGRESS });
        expect(send(udp(f.a, f.r, 4, 53))).toMatchObject(passes);
        expect(send(udp(f.a, f.b, 4, 53))).toMatchObject(passes);
        kernel.classRow(B.identity, { ...row, remote: [78, 77] });
        kernel.bump();
        expect(send(udp(f.a, f.b, 4, 53))).toMatchObject(drops('POLICY_DENIED'));
      });

      test('each direction and role has its own number', () => {
        kernel.clear('cs_policy');
        kernel.classRow(A.identity, { local: [11, 12], remote: [13, 14], portBits: [1, 1] });
        kernel.classRow(R.identity, { local: [21, 22], remote: [23, 24], portBits: [0, 0] });
        const allow = (local: number, remote: number, direction: number) => {
          kernel.policy({ local, remote, direction });
          // The helper keeps a row for each number it sees; these two stay as they are.
          kernel.classRow(A.identity, { local: [11, 12], remote: [13, 14], portBits: [1, 1] });
        };
        for (const local of [12, 13, 14, 21, 22]) allow(local, 23, EGRESS);
        for (const remote of [21, 22, 24]) allow(11, remote, EGRESS);
        expect(to(53)).toMatchObject(drops('POLICY_DENIED'));
        allow(11, 23, EGRESS);
        expect(to(53)).toMatchObject(passes);
        allow(11, 23, INGRESS);
        allow(12, 23, INGRESS);
        expect(receive(udp(f.r, f.a, 1, 53))).toMatchObject(drops('POLICY_DENIED'));
        allow(12, 24, INGRESS);
        expect(receive(udp(f.r, f.a, 1, 53))).toMatchObject(passes);
      });
    });

    describe('port prefixes', () => {
      const key = { local: A.identity, remote: R.identity, proto: PROTO.udp, direction: EGRESS };
      const prefixOf = (port: number, portBits: number) => ({ dport: port & (0xffff0000 >> portBits), portBits });

      test.each(Array.from({ length: 17 }, (_, n) => n))(
        'a prefix of %i bits covers its ports and no other',
        (portBits) => {
          const first = prefixOf(0xa5a5, portBits).dport & 0xffff;
          const last = first + 2 ** (16 - portBits) - 1;
          kernel.policy({ ...key, dport: first, portBits });
          for (const port of [first, last, 0xa5a5]) expect(to(port)).toMatchObject(passes);
          for (const port of [first - 1, last + 1]) {
            if (port >= 0 && port <= 0xffff) expect(to(port)).toMatchObject(drops('POLICY_DENIED'));
          }
        },
      );

      test('the longer prefix decides, whatever the shorter ones say', () => {
        const port = 0x1234;
        for (let portBits = 0; portBits <= 16; portBits++) {
          const deny = portBits % 2 === 0;
          kernel.policy({ ...key, ...prefixOf(port, portBits) }, { deny });
          kernel.bump();
          expect(send(udp(f.a, f.r, 9, port)).action, `${portBits}`).toBe(deny ? 'drop' : 'pass');
        }
      });

      test('a protocol beats any protocol, also with every port', () => {
        kernel.policy({ ...key, proto: 0 });
        kernel.policy(key, { deny: true });
        expect(to(53)).toMatchObject(drops('POLICY_DENY_RULE'));
        expect(send(tcp(f.a, f.r, 1, 53))).toMatchObject(passes);
      });

      test('the remote’s own class beats any remote, however long the prefix of that one is', () => {
        kernel.policy({ ...key, remote: 0, dport: 53 }, { deny: true });
        kernel.policy({ ...key, proto: 0 });
        expect(to(53)).toMatchObject(passes);
        expect(send(udp(f.a, f.b, 1, 53))).toMatchObject(drops('POLICY_DENY_RULE'));
      });

      test('port 0 is a port, not every port', () => {
        kernel.policy({ ...key, dport: 0, portBits: 16 });
        expect(to(0)).toMatchObject(passes);
        expect(to(1)).toMatchObject(drops('POLICY_DENIED'));
      });

      test('lengths of the other direction are not tried', () => {
        kernel.policy({ ...key, direction: INGRESS, dport: 53 });
        kernel.policy({ ...key, dport: 53 });
        kernel.classRow(A.identity, {
          local: [A.identity, A.identity],
          remote: [A.identity, A.identity],
          portBits: [0, 1 << 16],
        });
        expect(to(53)).toMatchObject(drops('POLICY_DENIED'));
        expect(receive(udp(f.r, f.a, 1, 53))).toMatchObject(passes);
      });

      test('SCTP has ports too', () => {
        kernel.policy({ ...key, proto: PROTO.sctp, dport: 3868 });
        expect(send(sctp(f.a, f.r, 1, 3868, 1, { tag: 0 }))).toMatchObject(passes);
        expect(send(sctp(f.a, f.r, 1, 3869, 1, { tag: 0 }))).toMatchObject(drops('POLICY_DENIED'));
      });
    });

    test('an ICMP rule names the message’s type, and the reply belongs to the request', () => {
      const type = f.name === 'IPv4' ? 8 : 128;
      const proto = icmpProto(f.a);
      kernel.policy({ local: A.identity, remote: R.identity, proto, dport: type + 1, direction: EGRESS });
      expect(send(echoRequest(f.a, f.r, 5))).toMatchObject(drops('POLICY_DENIED'));
      kernel.policy({ local: A.identity, remote: R.identity, proto, dport: type, direction: EGRESS });
      expect(send(echoRequest(f.a, f.r, 5))).toMatchObject(passes);
      expect(receive(echoReply(f.r, f.a, 5))).toMatchObject(passes);
      kernel.bump();
      // Judged anew, as the request was.
      expect(receive(echoReply(f.r, f.a, 5))).toMatchObject(passes);
      expect(receive(echoRequest(f.r, f.a, 5))).toMatchObject(drops('POLICY_DENIED'));
    });

    test('no rule that allows and a rule that denies are told apart by name', async () => {
      const key = { local: A.identity, remote: R.identity, direction: EGRESS };
      await kernel.drainEvents();
      kernel.policy(key, { deny: true, rule: 12 });
      expect(to(53)).toMatchObject(drops('POLICY_DENY_RULE'));
      kernel.policy(key, { deny: true, rule: 0 });
      expect(to(53)).toMatchObject(drops('POLICY_DENIED'));
      kernel.clear('cs_policy');
      expect(to(53)).toMatchObject(drops('POLICY_DENIED'));
      expect(await kernel.drainEvents()).toMatchObject([{ rule: 12 }, { rule: 0 }, { rule: 0 }]);
    });

    test('the agents’ port is closed before anybody’s class is asked for', () => {
      kernel.policy({ local: A.identity, direction: EGRESS });
      kernel.forgetIdentity(REMOTE_NODE);
      expect(send(tcp(f.a, f.remoteNode, 1, 4250))).toMatchObject(drops('CONTROL_PLANE'));
    });

    test('a class that an identity takes on is in force for its running flows after the revision rises', () => {
      kernel.policy({ local: A.identity, remote: R.identity, direction: EGRESS });
      expect(send(tcp(f.a, f.r, 40000, 80))).toMatchObject(passes);
      kernel.classRow(R.identity, { local: [0, 0], remote: [99, 99], portBits: [0, 0] });
      kernel.bump();
      expect(receive(tcp(f.r, f.a, 80, 40000, TCP.syn | TCP.ack))).toMatchObject(drops('POLICY_DENIED'));
    });

    test('a neighbour on the same node is judged by both sides’ classes', () => {
      kernel.policy({ local: A.identity, remote: B.identity, proto: PROTO.tcp, dport: 80, direction: INGRESS });
      expect(receive(tcp(f.b, f.a, 1, 80), stamped(B.endpoint))).toMatchObject(passes);
      expect(receive(tcp(f.b, f.a, 1, 81), stamped(B.endpoint))).toMatchObject(drops('POLICY_DENIED'));
    });
  });
});
