/** What may leave a workload: its own address, its own MAC address, and what policy allows. */
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { type Kernel, stamped, unavailable } from './support/kernel.ts';
import {
  arp,
  echoReply,
  echoRequest,
  ethernet,
  icmp,
  icmpProto,
  ip,
  ipPacket,
  mac,
  neighbour,
  PROTO,
  tcp,
  udp,
  udpDatagram,
  WORKLOAD_MAC,
} from './support/packets.ts';
import {
  A,
  allowBoth,
  B,
  EGRESS,
  families,
  HOST,
  INGRESS,
  makeWorld,
  R,
  REMOTE_NODE,
  settle,
  WORLD,
} from './support/world.ts';

describe.skipIf(unavailable)('from_workload', () => {
  let kernel: Kernel;
  beforeAll(() => {
    kernel = makeWorld();
  });
  beforeEach(() => settle(kernel));
  afterAll(() => kernel?.close());
  const send = (packet: Buffer, options: Parameters<typeof ethernet>[1] & { mark?: number } = {}) =>
    kernel.run('from_workload', ethernet(packet, options), options.mark === undefined ? {} : { mark: options.mark });

  describe.each(families)('$name', (f) => {
    test('an allowed packet passes with the stamp of its endpoint', () => {
      allowBoth(kernel);
      expect(send(tcp(f.a, f.r, 40000, 80))).toEqual({ action: 'pass', mark: stamped(A.endpoint), reasons: [] });
    });

    test('the stamp replaces whatever mark was there and leaves the lower 16 bits alone', () => {
      allowBoth(kernel);
      expect(send(udp(f.a, f.r, 40000, 53), { mark: 0xffff1234 }).mark).toBe(stamped(A.endpoint) + 0x1234);
    });

    test('without a rule nothing passes', () => {
      expect(send(tcp(f.a, f.r, 40000, 80))).toMatchObject({ action: 'drop', reasons: ['POLICY_DENIED'] });
    });

    test('an interface without an endpoint passes nothing', () => {
      allowBoth(kernel);
      kernel.removeEndpoint();
      expect(send(tcp(f.a, f.r, 40000, 80))).toMatchObject({ action: 'drop', reasons: ['NO_ENDPOINT'] });
    });

    test('a fenced endpoint sends nothing, not even in a running flow', () => {
      allowBoth(kernel);
      expect(send(tcp(f.a, f.r, 40000, 80)).action).toBe('pass');
      kernel.endpoint({ ...A, open: false });
      expect(send(tcp(f.a, f.r, 40001, 80))).toMatchObject({ action: 'drop', reasons: ['FENCED'] });
      kernel.bump();
      expect(send(tcp(f.a, f.r, 40000, 80))).toMatchObject({ action: 'drop', reasons: ['FENCED'] });
    });

    test.each([
      ['the neighbour endpoint', 'b'],
      ['a workload of another node', 'r'],
      ['an address nobody has', 'nobody'],
      ['the host', 'host'],
      ['the internet', 'world'],
    ] as const)('a packet with the source address of %s is dropped', (_, who) => {
      kernel.policy({ local: A.identity, direction: EGRESS });
      expect(send(udp(f[who], f.r, 40000, 53))).toMatchObject({ action: 'drop', reasons: ['INVALID_SOURCE_IP'] });
    });

    test('the source MAC address must be the endpoint’s where it is known', () => {
      allowBoth(kernel);
      kernel.endpoint({ ...A, mac: mac(WORKLOAD_MAC) });
      const packet = tcp(f.a, f.r, 40000, 80);
      expect(send(packet).action).toBe('pass');
      expect(send(tcp(f.a, f.r, 40001, 80), { sourceMac: '02:00:00:00:00:0b' })).toMatchObject({
        action: 'drop',
        reasons: ['INVALID_SOURCE_MAC'],
      });
    });

    test('an address inside a cluster prefix that nobody vouches for is never taken for the world', () => {
      kernel.policy({ local: A.identity, remote: WORLD, direction: EGRESS });
      kernel.config({ hold_ifindex: 0 });
      expect(send(udp(f.a, f.world, 40000, 53)).action).toBe('pass');
      expect(send(udp(f.a, f.nobody, 40000, 53))).toMatchObject({ action: 'drop', reasons: ['NO_VOUCH'] });
    });

    test('a CIDR identity is found by the longest prefix', () => {
      const cidr = 1 << 24;
      kernel.prefix(f.world, f.name === 'IPv4' ? 24 : 64, { identity: cidr });
      kernel.policy({ local: A.identity, remote: cidr, direction: EGRESS });
      expect(send(udp(f.a, f.world, 40000, 53)).action).toBe('pass');
      kernel.prefix(f.world, f.name === 'IPv4' ? 32 : 128, { identity: cidr + 1 });
      kernel.bump();
      expect(send(udp(f.a, f.world, 40000, 53)).reasons).toEqual(['POLICY_DENIED']);
    });

    test('no policy lets a workload reach the peer channel’s port on a node', () => {
      for (const remote of [HOST, REMOTE_NODE]) kernel.policy({ local: A.identity, remote, direction: EGRESS });
      for (const node of [f.host, f.remoteNode]) {
        expect(send(tcp(f.a, node, 40000, 4250))).toMatchObject({ action: 'drop', reasons: ['CONTROL_PLANE'] });
        expect(send(tcp(f.a, node, 40000, 4251)).action).toBe('pass');
        expect(send(udp(f.a, node, 40000, 4250)).action).toBe('pass');
      }
    });

    test('an echo request is judged by the rule for its protocol, an echo reply by nothing but its flow', () => {
      kernel.policy({ local: A.identity, remote: R.identity, proto: icmpProto(f.a), direction: EGRESS });
      expect(send(echoReply(f.a, f.r, 9))).toMatchObject({ action: 'drop', reasons: ['STRAY'] });
      expect(send(echoRequest(f.a, f.r, 9)).action).toBe('pass');
      expect(send(tcp(f.a, f.r, 40000, 80)).reasons).toEqual(['POLICY_DENIED']);
    });

    test.each([
      ['GRE', 47, 'UNKNOWN_L4'],
      ['UDP-Lite', 136, 'UNKNOWN_L4'],
      ['DCCP', 33, 'UNKNOWN_L4'],
      ['the other family inside', 41, 'UNKNOWN_L4'],
      ['ESP', 50, 'UNKNOWN_L4'],
    ])('%s is dropped by name', (_, proto, reason) => {
      kernel.policy({ local: A.identity, direction: EGRESS });
      expect(send(ipPacket(f.a, f.r, proto, Buffer.alloc(64)))).toMatchObject({ action: 'drop', reasons: [reason] });
    });

    test('ICMP of the other family is not understood', () => {
      kernel.policy({ local: A.identity, direction: EGRESS });
      const other = icmpProto(f.a) === PROTO.icmp ? PROTO.icmpv6 : PROTO.icmp;
      expect(send(ipPacket(f.a, f.r, other, icmp(8, Buffer.alloc(4)))).reasons).toEqual(['UNKNOWN_L4']);
    });

    test('an ICMP type that is neither echo, error nor neighbour discovery is dropped', () => {
      kernel.policy({ local: A.identity, direction: EGRESS });
      for (const type of [5, 13, 137, 160, 200]) {
        expect(send(ipPacket(f.a, f.r, icmpProto(f.a), icmp(type, Buffer.alloc(32)))).reasons).toEqual(['ICMP_TYPE']);
      }
    });

    describe('policy', () => {
      const key = { local: A.identity, remote: R.identity, proto: PROTO.udp, dport: 53, direction: EGRESS };
      const levels = [
        key,
        { ...key, dport: 0 },
        { ...key, dport: 0, proto: 0 },
        { ...key, remote: 0 },
        { ...key, remote: 0, dport: 0 },
        { ...key, remote: 0, dport: 0, proto: 0 },
      ];
      const dns = udp(f.a, f.r, 40000, 53);

      test.each(levels.map((_, i) => i))('an allow at level %i of six is enough', (i) => {
        kernel.policy(levels[i]!);
        expect(send(dns).action).toBe('pass');
      });

      test.each(levels.slice(1).map((_, i) => i))('level %i beats the wider next one, both ways', (i) => {
        kernel.policy(levels[i]!, { deny: true });
        kernel.policy(levels[i + 1]!);
        expect(send(dns)).toMatchObject({ action: 'drop', reasons: ['POLICY_DENY_RULE'] });
        kernel.policy(levels[i]!);
        kernel.policy(levels[i + 1]!, { deny: true });
        kernel.bump();
        expect(send(dns).action).toBe('pass');
      });

      test('a rule for another port, protocol, peer, direction, endpoint or slot does not count', () => {
        kernel.policy({ ...key, dport: 54 });
        kernel.policy({ ...key, proto: PROTO.tcp });
        kernel.policy({ ...key, remote: B.identity });
        kernel.policy({ ...key, direction: INGRESS });
        kernel.policy({ ...key, local: B.identity });
        kernel.policy({ ...key, slot: 1 });
        expect(send(dns).reasons).toEqual(['POLICY_DENIED']);
      });

      test('the slot in force decides', () => {
        kernel.policy({ ...key, slot: 1 });
        kernel.config({ policy_slot: 1 });
        expect(send(dns).action).toBe('pass');
      });

      test('the destination port counts, not the source port', () => {
        kernel.policy(key);
        expect(send(udp(f.a, f.r, 53, 40000)).reasons).toEqual(['POLICY_DENIED']);
      });
    });
  });

  describe('what is not plain IP', () => {
    const [v4, v6] = [families[0]!, families[1]!];
    beforeEach(() => kernel.policy({ local: A.identity, direction: EGRESS }));

    test.each([
      ['LLDP', 0x88cc],
      ['an EtherType of its own', 0x9999],
      ['MPLS', 0x8847],
    ])('%s is dropped', (_, type) => {
      expect(send(udp(v4.a, v4.r, 1, 2), { type }).reasons).toEqual(['UNKNOWN_L3']);
    });

    test('a frame of one family that says it is the other is dropped', () => {
      const long = ipPacket(v4.a, v4.r, PROTO.udp, udpDatagram(1, 2, Buffer.alloc(64)));
      expect(send(long, { type: 0x86dd }).action).toBe('drop');
      expect(send(udp(v6.a, v6.r, 1, 2), { type: 0x0800 }).action).toBe('drop');
    });

    test('an IPv4 address inside an IPv6 header is nobody’s', () => {
      kernel.config({ hold_ifindex: 0 });
      const spoof = udp(v6.a, v6.r, 1, 2);
      Buffer.from('00000000000000000000ffff0800010a', 'hex').copy(spoof, 8);
      expect(send(spoof)).toMatchObject({ action: 'drop', reasons: ['UNKNOWN_L3'] });
      const toMapped = udp(v6.a, v6.r, 1, 2);
      Buffer.from('00000000000000000000ffff0800021e', 'hex').copy(toMapped, 24);
      expect(send(toMapped)).toMatchObject({ action: 'drop', reasons: ['UNKNOWN_L3'] });
    });

    test('"don’t fragment" is no fragment', () => {
      expect(send(ipPacket(v4.a, v4.r, PROTO.udp, udpDatagram(1, 2), { fragment: 0x4000 })).action).toBe('pass');
    });
  });

  describe('ARP and neighbour discovery', () => {
    const [v4, v6] = [families[0]!, families[1]!];
    const linkLocal = ip('fe80::a');
    const allNodes = ip('ff02::1');
    const passes = { action: 'pass', mark: 0, reasons: [] };
    const sendArp = (packet: Buffer, sourceMac = WORKLOAD_MAC) => send(packet, { type: 0x0806, sourceMac });

    test('an endpoint may ask and answer with its own address, and carries no stamp', () => {
      expect(sendArp(arp(1, WORKLOAD_MAC, v4.a, v4.host))).toEqual(passes);
      expect(sendArp(arp(2, WORKLOAD_MAC, v4.a, v4.host))).toEqual(passes);
      expect(sendArp(arp(1, WORKLOAD_MAC, ip('0.0.0.0'), v4.a))).toEqual(passes);
    });

    test('it may not answer for another address', () => {
      for (const sender of [v4.b, v4.r, v4.host, v4.nobody]) {
        for (const operation of [1, 2]) {
          expect(sendArp(arp(operation, WORKLOAD_MAC, sender, v4.host)).reasons).toEqual(['INVALID_SOURCE_IP']);
        }
      }
      expect(sendArp(arp(2, WORKLOAD_MAC, ip('0.0.0.0'), v4.a)).reasons).toEqual(['INVALID_SOURCE_IP']);
    });

    test('nor with another MAC address, nor in an unknown form', () => {
      kernel.endpoint({ ...A, mac: mac(WORKLOAD_MAC) });
      expect(sendArp(arp(2, '02:00:00:00:00:0b', v4.a, v4.host)).reasons).toEqual(['INVALID_SOURCE_MAC']);
      expect(sendArp(arp(3, WORKLOAD_MAC, v4.a, v4.host)).reasons).toEqual(['UNKNOWN_L3']);
      expect(sendArp(arp(1, WORKLOAD_MAC, v4.a, v4.host).subarray(0, 27)).reasons).toEqual(['INVALID_PACKET']);
    });

    test('solicitations and advertisements in its own name pass to the link', () => {
      expect(send(neighbour(135, v6.a, ip('ff02::1:ff00:1'), v6.host))).toEqual(passes);
      expect(send(neighbour(135, linkLocal, ip('fe80::1'), ip('fe80::1')))).toEqual(passes);
      expect(send(neighbour(135, ip('::'), ip('ff02::1:ff00:a'), v6.a))).toEqual(passes);
      expect(send(neighbour(133, linkLocal, ip('ff02::2')))).toEqual(passes);
      expect(send(neighbour(136, v6.a, allNodes, v6.a))).toEqual(passes);
      expect(send(neighbour(136, v6.a, v6.host, v6.a))).toEqual(passes);
    });

    test('an advertisement for another address is dropped', () => {
      for (const target of [v6.b, v6.r, v6.host, v6.nobody]) {
        expect(send(neighbour(136, v6.a, allNodes, target)).reasons).toEqual(['INVALID_SOURCE_IP']);
      }
    });

    test('from another address, past the link, with a lowered hop limit or as a router it is dropped', () => {
      expect(send(neighbour(135, v6.b, ip('ff02::1:ff00:1'), v6.host)).reasons).toEqual(['INVALID_SOURCE_IP']);
      expect(send(neighbour(136, ip('::'), allNodes, v6.a)).reasons).toEqual(['INVALID_SOURCE_IP']);
      expect(send(neighbour(135, v6.a, v6.r, v6.r)).reasons).toEqual(['ICMP_TYPE']);
      expect(send(neighbour(135, v6.a, ip('ff05::1'), v6.host)).reasons).toEqual(['ICMP_TYPE']);
      expect(send(neighbour(135, v6.a, allNodes, v6.host, 64)).reasons).toEqual(['ICMP_TYPE']);
      expect(send(neighbour(134, linkLocal, allNodes, v6.a)).reasons).toEqual(['ICMP_TYPE']);
    });

    test('a fenced endpoint is silent on the link too', () => {
      kernel.endpoint({ ...A, open: false });
      expect(sendArp(arp(1, WORKLOAD_MAC, v4.a, v4.host)).reasons).toEqual(['FENCED']);
      expect(send(neighbour(135, v6.a, allNodes, v6.host)).reasons).toEqual(['FENCED']);
    });
  });
});
