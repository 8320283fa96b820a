/** ICMP: echoes make flows, errors belong to the flow they quote, and what a stack says to its link stays there. */
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { type Kernel, MARK_TUNNEL, stamped, unavailable } from './support/kernel.ts';
import {
  echoReply,
  echoRequest,
  ethernet,
  icmp,
  icmpProto,
  ip,
  ipPacket,
  ipv6With,
  PROTO,
  TCP,
  tcp,
  tooBig,
  udp,
} from './support/packets.ts';
import { A, EGRESS, families, INGRESS, makeWorld, R, settle } from './support/world.ts';

const [v4, v6] = [families[0]!, families[1]!];

describe.skipIf(unavailable)('ICMP', () => {
  let kernel: Kernel;
  beforeAll(() => {
    kernel = makeWorld();
  });
  beforeEach(() => {
    settle(kernel);
    kernel.policy({ local: A.identity, remote: R.identity, direction: EGRESS });
  });
  afterAll(() => kernel?.close());

  const out = (packet: Buffer) => kernel.run('from_workload', ethernet(packet));
  const into = (packet: Buffer, mark = MARK_TUNNEL) => kernel.run('to_workload', ethernet(packet), { mark });
  const drop = (reason: string) => ({ action: 'drop', reasons: [reason] });

  describe.each(families)('$name', (f) => {
    const request = f.name === 'IPv4' ? 8 : 128;

    test('a rule names an echo by its request’s type, for the answer as well', () => {
      kernel.clear('cs_policy');
      kernel.policy({ local: A.identity, proto: icmpProto(f.a), dport: request, direction: EGRESS });
      expect(out(echoRequest(f.a, f.r, 5)).action).toBe('pass');
      kernel.bump(); // the answer is judged in full
      expect(into(echoReply(f.r, f.a, 5)).action).toBe('pass');
      kernel.clear('cs_policy');
      kernel.policy({ local: A.identity, proto: icmpProto(f.a), dport: request + 1, direction: EGRESS });
      kernel.bump();
      expect(out(echoRequest(f.a, f.r, 6))).toMatchObject(drop('POLICY_DENIED'));
      expect(into(echoReply(f.r, f.a, 5))).toMatchObject(drop('POLICY_DENIED'));
    });

    const errors: readonly (readonly [string, number])[] =
      f.name === 'IPv4'
        ? [
            ['unreachable', 3],
            ['time exceeded', 11],
            ['parameter problem', 12],
          ]
        : [
            ['unreachable', 1],
            ['too big', 2],
            ['time exceeded', 3],
            ['parameter problem', 4],
          ];

    test.each(errors)('"%s" passes with the flow it quotes, whatever the flow’s protocol', (_, type) => {
      const error = (quoted: Buffer) =>
        ipPacket(f.r, f.a, icmpProto(f.a), icmp(type, Buffer.concat([Buffer.alloc(4), quoted])));
      for (const sent of [tcp(f.a, f.r, 40000, 80), udp(f.a, f.r, 40000, 53), echoRequest(f.a, f.r, 9)]) {
        expect(into(error(sent))).toMatchObject(drop('ICMP_TYPE'));
        expect(out(sent).action).toBe('pass');
        expect(into(error(sent)).action).toBe('pass');
        // The eight bytes that a router must quote are enough.
        expect(into(error(sent.subarray(0, (f.name === 'IPv4' ? 20 : 40) + 8))).action).toBe('pass');
      }
    });

    test('an error keeps no flow alive and moves none to another state', () => {
      const sent = tcp(f.a, f.r, 40000, 80);
      out(sent);
      const before = kernel.flows();
      into(tooBig(f.r, f.a, sent));
      into(tooBig(f.r, f.a, tcp(f.a, f.r, 40000, 80, TCP.rst)));
      expect(kernel.flows()).toEqual(before);
      kernel.ageFlows(125_000_000_000n);
      expect(into(tooBig(f.r, f.a, sent))).toMatchObject(drop('ICMP_TYPE'));
    });

    test('the quoted answer of an echo is not the quoted question', () => {
      out(echoRequest(f.a, f.r, 9));
      expect(into(tooBig(f.r, f.a, echoReply(f.a, f.r, 9)))).toMatchObject(drop('ICMP_TYPE'));
      expect(into(tooBig(f.r, f.a, echoRequest(f.a, f.r, 10)))).toMatchObject(drop('ICMP_TYPE'));
    });

    test('an error that goes out carries the stamp, and only about what came in', () => {
      kernel.policy({ local: A.identity, remote: R.identity, direction: INGRESS });
      const came = udp(f.r, f.a, 40000, 53);
      expect(out(tooBig(f.a, f.r, came))).toMatchObject(drop('ICMP_TYPE'));
      into(came);
      expect(out(tooBig(f.a, f.r, came))).toMatchObject({ action: 'pass', mark: stamped(A.endpoint) });
      expect(out(tooBig(f.b, f.r, came))).toMatchObject(drop('INVALID_SOURCE_IP'));
    });

    test('redirects, router discovery, timestamps and unknown types are dropped by name', () => {
      kernel.policy({ local: A.identity, direction: EGRESS });
      kernel.policy({ local: A.identity, direction: INGRESS });
      for (const type of f.name === 'IPv4' ? [4, 5, 9, 10, 13, 17, 40, 255] : [0, 5, 100, 127, 137, 138, 151, 255]) {
        const message = (src: typeof f.a, dst: typeof f.a) =>
          ipPacket(src, dst, icmpProto(f.a), icmp(type, Buffer.alloc(40)));
        expect(out(message(f.a, f.r)), `${type}`).toMatchObject(drop('ICMP_TYPE'));
        expect(into(message(f.r, f.a)), `${type}`).toMatchObject(drop('ICMP_TYPE'));
      }
    });
  });

  describe('group membership is dropped by name and counted, and nobody is told', () => {
    const membership = drop('MEMBERSHIP');

    test('IGMP, whatever its source, in both directions', async () => {
      await kernel.drainEvents();
      const report = (src: typeof v4.a) =>
        ipPacket(src, ip('224.0.0.22'), PROTO.igmp, Buffer.alloc(16, 0x22), {
          options: Buffer.from('94040000', 'hex'),
        });
      expect(out(report(v4.a))).toMatchObject(membership);
      expect(out(report(ip('8.0.200.5')))).toMatchObject(membership);
      expect(into(report(v4.host), 0)).toMatchObject(membership);
      expect(await kernel.drainEvents()).toEqual([]);
    });

    test('MLD of both versions, from a link-local address behind a hop-by-hop header', async () => {
      await kernel.drainEvents();
      for (const type of [130, 131, 132, 143]) {
        const message = (src: typeof v6.a) =>
          ipv6With(
            src,
            ip('ff02::16'),
            [{ type: 0, body: Buffer.from([5, 2, 0, 0, 1, 0]) }],
            PROTO.icmpv6,
            icmp(type, Buffer.alloc(24)),
          );
        expect(out(message(ip('fe80::a'))), `${type}`).toMatchObject(membership);
        expect(out(message(v6.a)), `${type}`).toMatchObject(membership);
        expect(into(message(ip('fe80::1')), 0), `${type}`).toMatchObject(membership);
      }
      expect(await kernel.drainEvents()).toEqual([]);
    });

    test('no policy and no flow lets it through, not even to a workload', () => {
      kernel.policy({ local: A.identity, direction: EGRESS });
      const report = ipPacket(v4.a, v4.r, PROTO.igmp, Buffer.alloc(32));
      expect(out(report)).toMatchObject(membership);
      expect(out(ipPacket(v6.a, v6.r, PROTO.igmp, Buffer.alloc(32)))).toMatchObject(drop('UNKNOWN_L4'));
    });
  });
});
