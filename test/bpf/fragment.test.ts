/** Fragments: later ones go where the first one went, each judged by the state of now, and nothing else gets past under their cover. */
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { FLOW_STATES } from '../../src/datapath/layout.ts';
import { isIpv4 } from '../../src/model/address.ts';
import type { IpAddress } from '../../src/model/ids.ts';
import { type Kernel, MARK_TUNNEL, stamped, unavailable } from './support/kernel.ts';
import {
  ethernet,
  fragment,
  icmp,
  icmpProto,
  ipPacket,
  ipv6With,
  neighbour,
  PROTO,
  SCTP,
  sctp,
  TCP,
  tcpSegment,
  tooBig,
  udpDatagram,
} from './support/packets.ts';
import { A, allowBoth, B, EGRESS, families, INGRESS, makeWorld, R, settle } from './support/world.ts';

const SECOND = 1_000_000_000n;
const big = (src: IpAddress, dst: IpAddress, sport = 40000, dport = 53, size = 400) =>
  ipPacket(src, dst, PROTO.udp, udpDatagram(sport, dport, Buffer.alloc(size, 0x55)));

describe.skipIf(unavailable)('fragments', () => {
  let kernel: Kernel;
  beforeAll(() => {
    kernel = makeWorld();
  });
  beforeEach(() => {
    settle(kernel);
    kernel.clear('cs_fragments');
    kernel.policy({ local: A.identity, remote: R.identity, proto: PROTO.udp, dport: 53, direction: EGRESS });
    kernel.policy({ local: A.identity, remote: R.identity, proto: PROTO.udp, dport: 53, direction: INGRESS });
  });
  afterAll(() => kernel?.close());

  const out = (packet: Buffer) => kernel.run('from_workload', ethernet(packet));
  const into = (packet: Buffer, mark = MARK_TUNNEL) => kernel.run('to_workload', ethernet(packet), { mark });
  const drop = (reason: string) => ({ action: 'drop', reasons: [reason] });

  describe.each(families)('$name', (f) => {
    const whole = big(f.a, f.r);
    const first = fragment(whole, 0, 200);
    const middle = fragment(whole, 200, 304);
    const last = fragment(whole, 304, 408);

    test('all of an allowed datagram leave with the stamp, and make one flow', () => {
      for (const part of [first, middle, last]) {
        expect(out(part)).toEqual({ action: 'pass', mark: stamped(A.endpoint), reasons: [] });
      }
      expect(kernel.flows()).toMatchObject([{ state: FLOW_STATES.UDP_UNREPLIED }]);
    });

    test('all of an allowed datagram enter, also as the answer to a flow', () => {
      const request = big(f.r, f.a);
      for (const [from, to] of [
        [0, 200],
        [200, 304],
        [304, 408],
      ] as const) {
        expect(into(fragment(request, from, to)).action).toBe('pass');
      }
      kernel.clear('cs_policy');
      kernel.policy({ local: A.identity, remote: R.identity, dport: 53, proto: PROTO.udp, direction: INGRESS });
      const answer = big(f.a, f.r, 53, 40000);
      for (const [from, to] of [
        [0, 200],
        [200, 408],
      ] as const) {
        expect(out(fragment(answer, from, to)).action).toBe('pass');
      }
      expect(kernel.flows()).toMatchObject([{ state: FLOW_STATES.UDP_REPLIED, direction: INGRESS }]);
    });

    test('later ones in another order than they were made', () => {
      for (const part of [first, last, middle]) expect(out(part).action).toBe('pass');
    });

    test('the same number again is the next datagram', () => {
      for (let i = 0; i < 3; i++) for (const part of [first, middle, last]) expect(out(part).action).toBe('pass');
      const other = big(f.a, f.r, 40001);
      expect(out(fragment(other, 0, 200)).action).toBe('pass');
      expect(out(fragment(other, 200, 408)).action).toBe('pass');
    });

    test('without a first, or before it, none passes', () => {
      expect(out(middle)).toMatchObject(drop('FRAGMENT_NO_FIRST'));
      expect(out(last)).toMatchObject(drop('FRAGMENT_NO_FIRST'));
      expect(into(fragment(big(f.r, f.a), 200, 408))).toMatchObject(drop('FRAGMENT_NO_FIRST'));
      expect(out(first).action).toBe('pass');
      expect(out(middle).action).toBe('pass');
    });

    test('a first that is refused opens nothing for the rest', () => {
      const denied = big(f.a, f.r, 40000, 54);
      expect(out(fragment(denied, 0, 200))).toMatchObject(drop('POLICY_DENIED'));
      expect(out(fragment(denied, 200, 408))).toMatchObject(drop('FRAGMENT_NO_FIRST'));
    });

    test('a change of policy is in force for the next fragment', () => {
      out(first);
      kernel.clear('cs_policy');
      kernel.bump();
      expect(out(middle)).toMatchObject(drop('POLICY_DENIED'));
    });

    test('so is a closed endpoint, and one that took its place', () => {
      out(first);
      kernel.endpoint({ ...A, open: false });
      kernel.bump();
      expect(out(middle)).toMatchObject(drop('FENCED'));
      kernel.endpoint({ endpoint: 9, identity: A.identity });
      expect(out(last)).toMatchObject(drop('INVALID_SOURCE_IP'));
    });

    test.each([
      ['another number', () => fragment(whole, 200, 304, { id: 0x1235 })],
      ['another destination', () => fragment(big(f.a, f.b), 200, 304)],
      ['another source', () => fragment(big(f.b, f.r), 200, 304)],
    ])('another datagram does not follow: %s', (_, packet) => {
      out(first);
      expect(out(packet()).action).toBe('drop');
    });

    test('neither another direction nor another endpoint’s interface shares a datagram', () => {
      out(first);
      kernel.address(f.r, { identity: R.identity, node: R.node });
      expect(into(middle, MARK_TUNNEL).reasons).toEqual(['INVALID_DESTINATION_IP']);
      expect(into(fragment(big(f.r, f.a), 200, 304))).toMatchObject(drop('FRAGMENT_NO_FIRST'));
      kernel.endpoint({ ...B });
      const elsewhere = kernel.run('from_workload', ethernet(middle), { ifindex: 1 });
      expect(elsewhere.action).toBe('pass'); // the same interface: the same datagram
    });

    test('a fragment that comes with another mark than the flow’s is dropped', () => {
      const request = big(f.r, f.a);
      expect(into(fragment(request, 0, 200)).action).toBe('pass');
      expect(into(fragment(request, 200, 408), 0)).toMatchObject(drop('UNENCRYPTED'));
      expect(into(fragment(request, 200, 408), stamped(B.endpoint))).toMatchObject(drop('SPOOFED_STAMP'));
      expect(into(fragment(request, 200, 408)).action).toBe('pass');
    });

    test('a second first that names another flow is dropped, a repeated one is not', () => {
      kernel.policy({ local: A.identity, remote: R.identity, direction: EGRESS });
      out(first);
      expect(out(first).action).toBe('pass');
      expect(out(fragment(big(f.a, f.r, 40000, 22), 0, 200))).toMatchObject(drop('FRAGMENT_OVERLAP'));
      expect(out(fragment(big(f.a, f.r, 40001, 53), 0, 200))).toMatchObject(drop('FRAGMENT_OVERLAP'));
      // What follows is still the first one's.
      expect(out(middle).action).toBe('pass');
      expect(kernel.flows()).toHaveLength(1);
    });

    test('nor one with a shorter header, behind which more could be overwritten', () => {
      kernel.policy({ local: A.identity, remote: R.identity, direction: EGRESS });
      const segment = (words: number) => {
        const bytes = tcpSegment(40000, 80, TCP.ack, Buffer.alloc(80));
        bytes[12] = words << 4;
        return ipPacket(f.a, f.r, PROTO.tcp, bytes);
      };
      expect(out(fragment(segment(15), 0, 64)).action).toBe('pass');
      expect(out(fragment(segment(5), 0, 64))).toMatchObject(drop('FRAGMENT_OVERLAP'));
      expect(out(fragment(segment(5), 24, 100))).toMatchObject(drop('FRAGMENT_OVERLAP'));
    });

    test('a refused second first takes nothing over', () => {
      out(first);
      out(last);
      expect(out(fragment(big(f.a, f.r, 40000, 22), 0, 200))).toMatchObject(drop('POLICY_DENIED'));
      expect(out(middle).action).toBe('pass'); // of the flow to port 53
      expect(kernel.flows()).toHaveLength(1);
    });

    test('a first that does not hold its whole transport header is dropped', () => {
      kernel.policy({ local: A.identity, remote: R.identity, direction: EGRESS });
      const tcp = ipPacket(f.a, f.r, PROTO.tcp, tcpSegment(40000, 80, TCP.syn, Buffer.alloc(80)));
      for (const size of [8, 16]) {
        expect(out(fragment(tcp, 0, size)), `${size}`).toMatchObject(drop('FRAGMENT'));
        expect(out(fragment(tcp, size, 100)).action).toBe('drop');
      }
      expect(out(fragment(tcp, 0, 24)).action).toBe('pass');
      const options = tcpSegment(40000, 81, TCP.syn, Buffer.alloc(80));
      options[12] = 15 << 4;
      const long = ipPacket(f.a, f.r, PROTO.tcp, options);
      expect(out(fragment(long, 0, 56))).toMatchObject(drop('FRAGMENT'));
      expect(out(fragment(long, 0, 64, { id: 77 })).action).toBe('pass');
      const association = sctp(f.a, f.r, 5000, 5001, SCTP.init);
      expect(out(fragment(association, 0, 8, { id: 78 }))).toMatchObject(drop('FRAGMENT'));
      expect(out(fragment(association, 0, 16, { id: 79 })).action).toBe('pass');
    });

    test('none may overwrite the header of the first', () => {
      kernel.policy({ local: A.identity, remote: R.identity, direction: EGRESS });
      const tcp = ipPacket(f.a, f.r, PROTO.tcp, tcpSegment(40000, 80, TCP.syn, Buffer.alloc(80)));
      expect(out(fragment(tcp, 0, 48)).action).toBe('pass');
      expect(out(fragment(tcp, 8, 100))).toMatchObject(drop('FRAGMENT_OVERLAP'));
      expect(out(fragment(tcp, 16, 100))).toMatchObject(drop('FRAGMENT_OVERLAP'));
      expect(out(fragment(tcp, 24, 100)).action).toBe('pass'); // overlaps data only: the receiver's to refuse
      const options = tcpSegment(40000, 81, TCP.syn, Buffer.alloc(80));
      options[12] = 15 << 4;
      const long = ipPacket(f.a, f.r, PROTO.tcp, options);
      expect(out(fragment(long, 0, 72, { id: 77 })).action).toBe('pass');
      for (const from of [8, 24, 56]) {
        expect(out(fragment(long, from, 100, { id: 77 }))).toMatchObject(drop('FRAGMENT_OVERLAP'));
      }
      expect(out(fragment(long, 64, 140, { id: 77 })).action).toBe('pass');
    });

    test('fragments whose lengths cannot be are dropped', () => {
      expect(out(fragment(whole, 0, 201))).toMatchObject(drop('INVALID_PACKET'));
      out(first);
      expect(out(fragment(whole, 200, 303, { more: true }))).toMatchObject(drop('INVALID_PACKET'));
      const end = Buffer.from(fragment(whole, 200, 304));
      // Its last byte would lie past 65,535.
      if (f.name === 'IPv4') end.writeUInt16BE(0x1fff, 6);
      else end.writeUInt16BE(0xfff8, 42);
      expect(out(end)).toMatchObject(drop('INVALID_PACKET'));
    });

    test('a datagram that takes longer than 30 s is forgotten', () => {
      out(first);
      kernel.ageFragments(29n * SECOND);
      expect(out(middle).action).toBe('pass');
      kernel.ageFragments(2n * SECOND);
      expect(out(last)).toMatchObject(drop('FRAGMENT_NO_FIRST'));
    });

    test('however many datagrams are begun, what is forgotten is dropped', () => {
      const small = makeWorld({ cs_fragments: 64, cs_flows: 4096 });
      try {
        small.policy({ local: A.identity, remote: R.identity, proto: PROTO.udp, dport: 53, direction: EGRESS });
        const send = (packet: Buffer) => small.run('from_workload', ethernet(packet));
        expect(send(fragment(whole, 0, 200, { id: 1 })).action).toBe('pass');
        for (let id = 2; id <= 1000; id++) small.fire('from_workload', ethernet(fragment(whole, 0, 200, { id })));
        let passed = 0;
        for (let id = 1; id <= 1000; id += id < 800 ? 10 : 1) {
          const verdict = send(fragment(whole, 200, 408, { id }));
          if (verdict.action === 'pass') passed++;
          else expect(verdict).toMatchObject(drop('FRAGMENT_NO_FIRST'));
        }
        expect(passed).toBeGreaterThan(0);
        expect(passed).toBeLessThanOrEqual(128);
        for (let id = 2000; id < 2020; id++) expect(send(fragment(whole, 200, 408, { id })).action).toBe('drop');
      } finally {
        small.close();
      }
    });

    test('the state of a TCP flow is the first fragment’s doing alone', () => {
      kernel.policy({ local: A.identity, remote: R.identity, direction: EGRESS });
      const segment = (flags: number) => ipPacket(f.a, f.r, PROTO.tcp, tcpSegment(40000, 80, flags, Buffer.alloc(80)));
      out(segment(TCP.syn));
      into(ipPacket(f.r, f.a, PROTO.tcp, tcpSegment(80, 40000, TCP.syn | TCP.ack)));
      out(segment(TCP.ack));
      const fin = segment(TCP.fin | TCP.ack);
      for (const [from, to] of [
        [0, 24],
        [24, 48],
        [48, 100],
      ] as const) {
        expect(out(fragment(fin, from, to)).action).toBe('pass');
      }
      expect(kernel.flows()).toMatchObject([{ state: FLOW_STATES.FIN_WAIT }]);
    });

    test('an echo in fragments is answered in fragments', () => {
      kernel.policy({ local: A.identity, remote: R.identity, proto: icmpProto(f.a), direction: EGRESS });
      const echo = (src: IpAddress, dst: IpAddress, type: number) =>
        ipPacket(src, dst, icmpProto(src), icmp(type, Buffer.concat([Buffer.from([0, 9, 0, 1]), Buffer.alloc(200)])));
      const [request, reply] = isIpv4(f.a) ? [8, 0] : [128, 129];
      for (const [from, to] of [
        [0, 104],
        [104, 208],
      ] as const) {
        expect(into(fragment(echo(f.r, f.a, reply), from, to)).action).toBe('drop');
      }
      for (const [from, to] of [
        [0, 104],
        [104, 208],
      ] as const) {
        expect(out(fragment(echo(f.a, f.r, request), from, to)).action).toBe('pass');
        expect(into(fragment(echo(f.r, f.a, reply), from, to)).action).toBe('pass');
      }
      expect(kernel.flows()).toMatchObject([{ state: FLOW_STATES.ECHO, direction: EGRESS }]);
    });

    test('ICMP errors and neighbour messages do not come in fragments', () => {
      const sent = big(f.a, f.r);
      out(sent);
      expect(into(tooBig(f.r, f.a, sent)).action).toBe('pass');
      expect(into(fragment(tooBig(f.r, f.a, sent), 0, 104))).toMatchObject(drop('FRAGMENT'));
      if (f.name === 'IPv6') {
        const solicitation = neighbour(135, f.a, f.host, f.host);
        expect(out(fragment(solicitation, 0, 24, { more: true }))).toMatchObject(drop('FRAGMENT'));
      }
    });

    test('an error about a later fragment belongs to the flow of its first', () => {
      expect(into(tooBig(f.r, f.a, middle))).toMatchObject(drop('ICMP_TYPE'));
      out(first);
      expect(into(tooBig(f.r, f.a, middle)).action).toBe('pass');
      expect(into(tooBig(f.r, f.a, first)).action).toBe('pass');
      expect(into(tooBig(f.r, f.a, fragment(whole, 200, 304, { id: 9 })))).toMatchObject(drop('ICMP_TYPE'));
      const request = big(f.r, f.a);
      into(fragment(request, 0, 200));
      expect(out(tooBig(f.a, f.r, fragment(request, 200, 304))).action).toBe('pass');
    });

    test('the paths between nodes ask who sent them, not where their first one is', () => {
      const mark = stamped(A.endpoint);
      for (const part of [first, middle, last]) {
        expect(kernel.run('to_tunnel', part, { mark })).toMatchObject({ action: 'pass', reasons: [] });
        expect(kernel.run('to_tunnel', part)).toMatchObject(drop('NOT_STAMPED'));
        expect(kernel.run('to_netdev', ethernet(part), { mark })).toMatchObject(drop('UNENCRYPTED'));
        expect(kernel.run('from_netdev', ethernet(fragment(big(f.r, f.a), 200, 304)))).toMatchObject(
          drop('UNENCRYPTED'),
        );
      }
    });

    describe('that wait', () => {
      const giveBack = (packet: Buffer) => kernel.run('from_hold', packet);
      beforeEach(() => allowBoth(kernel, 1));
      const held = (sport: number) => {
        const datagram = big(f.a, f.r, sport, 80);
        return [fragment(datagram, 0, 200), fragment(datagram, 200, 304), fragment(datagram, 304, 408)] as const;
      };

      test('the later ones are held behind the first, in order, and pass after it', () => {
        const [one, two, three] = held(40000);
        expect(out(one).action).toBe('hold');
        expect(out(two).action).toBe('hold');
        kernel.auth({ local: A.identity, remote: R.identity, node: R.node });
        expect(out(three).action).toBe('hold'); // must not overtake
        for (const part of [one, two, three]) expect(giveBack(part)).toMatchObject({ action: 'pass', reasons: [] });
        expect(kernel.flows()).toHaveLength(1);
        for (const part of held(40000)) expect(out(part).action).toBe('pass');
      });

      test('a later one that comes back alone is dropped', () => {
        const [one, two] = held(40000);
        out(one);
        out(two);
        kernel.clear('cs_fragments');
        kernel.auth({ local: A.identity, remote: R.identity, node: R.node });
        expect(giveBack(two)).toMatchObject(drop('FRAGMENT_NO_FIRST'));
      });

      test('without a proof none of them comes through', () => {
        const [one, two] = held(40000);
        out(one);
        out(two);
        expect(giveBack(one)).toMatchObject(drop('AUTH_REQUIRED'));
        expect(giveBack(two)).toMatchObject(drop('AUTH_REQUIRED'));
      });
    });
  });

  test('IPv4: the protocol is part of the datagram’s name', () => {
    const [v4] = families;
    kernel.policy({ local: A.identity, remote: R.identity, direction: EGRESS });
    out(fragment(big(v4!.a, v4!.r), 0, 200));
    const other = ipPacket(v4!.a, v4!.r, PROTO.tcp, tcpSegment(1, 2, TCP.ack, Buffer.alloc(400)));
    expect(out(fragment(other, 200, 304))).toMatchObject(drop('FRAGMENT_NO_FIRST'));
  });

  test('IPv6: what the next header of a later fragment says does not count', () => {
    const [, v6] = families;
    kernel.policy({ local: A.identity, remote: R.identity, direction: EGRESS });
    out(fragment(big(v6!.a, v6!.r), 0, 200));
    const lie = Buffer.from(fragment(big(v6!.a, v6!.r), 200, 304));
    lie[40] = PROTO.tcp;
    expect(out(lie).action).toBe('pass');
    expect(kernel.flows()).toHaveLength(1);
  });

  test('IPv6: a fragment of nothing but one is a whole packet', () => {
    const [, v6] = families;
    const atomic = fragment(big(v6!.a, v6!.r), 0, 408, { more: false });
    expect(out(atomic).action).toBe('pass');
    expect(out(fragment(big(v6!.a, v6!.r), 200, 408))).toMatchObject(drop('FRAGMENT_NO_FIRST'));
  });

  test('IPv6: headers behind the fragment header are the first fragment’s, and none may overwrite them', () => {
    const [, v6] = families;
    const datagram = udpDatagram(40000, 53, Buffer.alloc(400));
    const inner = ipv6With(v6!.a, v6!.r, [{ type: 60 }], PROTO.udp, datagram);
    expect(out(fragment(inner, 0, 8))).toMatchObject(drop('FRAGMENT'));
    expect(out(fragment(inner, 0, 200)).action).toBe('pass');
    expect(out(fragment(inner, 8, 104))).toMatchObject(drop('FRAGMENT_OVERLAP'));
    expect(out(fragment(inner, 200, 416)).action).toBe('pass');
  });
});
