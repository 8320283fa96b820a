/** The exemptions: what passes without a policy when the configuration says so, and what tries to pass for it. */
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { EXEMPT_DHCP, EXEMPT_HOST_PROBES } from '../../src/datapath/layout.ts';
import { type Kernel, MARK_TUNNEL, MARK_UNDERLAY, stamped, unavailable } from './support/kernel.ts';
import { echoReply, echoRequest, ethernet, fragment, ip, mac, TCP, tcp, udp, WORKLOAD_MAC } from './support/packets.ts';
import { A, B, EGRESS, families, INGRESS, makeWorld, R, settle } from './support/world.ts';

const [v4, v6] = [families[0]!, families[1]!];
const NOWHERE = ip('0.0.0.0');
const EVERYBODY = ip('255.255.255.255');
const CLIENT = ip('fe80::a');
const SERVER = ip('fe80::1');
const SERVERS = ip('ff02::1:2');

describe.skipIf(unavailable)('exemptions', () => {
  let kernel: Kernel;
  beforeAll(() => {
    kernel = makeWorld();
  });
  beforeEach(() => {
    settle(kernel);
    kernel.config({ hold_ifindex: 0 });
  });
  afterAll(() => kernel?.close());

  const send = (packet: Buffer, sourceMac?: string) =>
    kernel.run('from_workload', ethernet(packet, sourceMac === undefined ? {} : { sourceMac }));
  const receive = (packet: Buffer, mark = 0) => kernel.run('to_workload', ethernet(packet), { mark });
  const passes = { action: 'pass', reasons: [], observed: undefined };

  describe('DHCP', () => {
    const outward = [
      ['a client without an address asks the link', () => udp(NOWHERE, EVERYBODY, 68, 67)],
      ['a client asks the link with the address it has', () => udp(v4.a, EVERYBODY, 68, 67)],
      ['a client renews with its own host', () => udp(v4.a, v4.host, 68, 67)],
      ['a DHCPv6 client asks the link', () => udp(CLIENT, SERVERS, 546, 547)],
    ] as const;
    const inward = [
      ['its host answers to everybody', () => udp(v4.host, EVERYBODY, 67, 68)],
      ['its host answers to its address', () => udp(v4.host, v4.a, 67, 68)],
      ['its host answers by DHCPv6', () => udp(SERVER, CLIENT, 547, 546)],
    ] as const;

    describe.each([
      ['off', 0],
      ['off, with probes exempt', EXEMPT_HOST_PROBES],
    ])('%s', (_, exempt) => {
      beforeEach(() => kernel.config({ exempt }));
      test.each(outward)('%s: dropped', (_, packet) => {
        expect(send(packet()).action).toBe('drop');
      });
      test.each(inward.slice(0, 1).concat(inward.slice(2)))('%s: dropped', (_, packet) => {
        expect(receive(packet()).action).toBe('drop');
      });
    });

    describe('on', () => {
      beforeEach(() => kernel.config({ exempt: EXEMPT_DHCP }));

      test.each(outward)('%s: passes with its stamp, and is no flow', (_, packet) => {
        expect(send(packet())).toMatchObject({ ...passes, mark: stamped(A.endpoint) });
        expect(kernel.flows()).toEqual([]);
      });

      test.each(inward)('%s: passes', (_, packet) => {
        expect(receive(packet())).toMatchObject(passes);
        expect(kernel.flows()).toEqual([]);
      });

      test.each([
        ['to another workload', () => udp(v4.a, v4.b, 68, 67)],
        ['to another node’s workload', () => udp(v4.a, v4.r, 68, 67)],
        ['to another node', () => udp(v4.a, v4.remoteNode, 68, 67)],
        ['to the internet', () => udp(v4.a, v4.world, 68, 67)],
        ['to an address nobody has', () => udp(v4.a, v4.nobody, 68, 67)],
        ['to the internet, without an address', () => udp(NOWHERE, v4.world, 68, 67)],
        ['to a multicast group', () => udp(v4.a, ip('224.0.0.251'), 68, 67)],
        ['to another subnet’s broadcast address', () => udp(v4.a, ip('8.0.2.255'), 68, 67)],
        ['to another port of the host', () => udp(v4.a, v4.host, 68, 53)],
        ['from another port', () => udp(v4.a, v4.host, 69, 67)],
        ['as a server', () => udp(v4.a, EVERYBODY, 67, 68)],
        ['as a server, in the host’s name', () => udp(v4.host, EVERYBODY, 67, 68)],
        ['from another’s address', () => udp(v4.b, EVERYBODY, 68, 67)],
        ['from the host’s address', () => udp(v4.host, EVERYBODY, 68, 67)],
        ['by TCP', () => tcp(v4.a, v4.host, 68, 67)],
        ['in fragments', () => fragment(udp(v4.a, v4.host, 68, 67), 0, 16)],
        ['DHCPv6 to another workload', () => udp(v6.a, v6.b, 546, 547)],
        ['DHCPv6 from the link to another workload', () => udp(CLIENT, v6.b, 546, 547)],
        ['DHCPv6 to another host of the link', () => udp(CLIENT, ip('fe80::b'), 546, 547)],
        ['DHCPv6 to all servers of the site', () => udp(CLIENT, ip('ff05::1:3'), 546, 547)],
        ['DHCPv6 as a server', () => udp(CLIENT, ip('fe80::b'), 547, 546)],
        ['DHCPv6 with the ports of DHCP', () => udp(CLIENT, SERVERS, 68, 67)],
        ['DHCPv6 from a routed address', () => udp(v6.a, SERVERS, 546, 547)],
      ])('a workload cannot use it %s', (_, packet) => {
        expect(send(packet()).action).toBe('drop');
      });

      test.each([
        ['another workload', () => udp(v4.b, v4.a, 67, 68), stamped(B.endpoint)],
        ['another workload, to everybody', () => udp(v4.b, EVERYBODY, 67, 68), stamped(B.endpoint)],
        ['another workload in the host’s name', () => udp(v4.host, v4.a, 67, 68), stamped(B.endpoint)],
        ['another workload’s question on a bridge', () => udp(NOWHERE, EVERYBODY, 68, 67), stamped(B.endpoint)],
        ['the tunnel', () => udp(v4.host, v4.a, 67, 68), MARK_TUNNEL],
        ['the underlay', () => udp(v4.host, EVERYBODY, 67, 68), MARK_UNDERLAY],
        ['another node', () => udp(v4.remoteNode, v4.a, 67, 68), 0],
        ['the internet', () => udp(v4.world, v4.a, 67, 68), 0],
        ['its host, from another port', () => udp(v4.host, v4.a, 66, 68), 0],
        ['its host, to another workload', () => udp(v4.host, v4.b, 67, 68), 0],
        ['another workload by DHCPv6', () => udp(SERVER, CLIENT, 547, 546), stamped(B.endpoint)],
        ['a routed address by DHCPv6', () => udp(v6.world, CLIENT, 547, 546), 0],
      ])('nor does it let in what comes from %s', (_, packet, mark) => {
        expect(receive(packet(), mark).action).toBe('drop');
      });

      test('its packets reach neither the underlay nor the tunnel, whatever bridge they meet', () => {
        for (const packet of [
          udp(NOWHERE, EVERYBODY, 68, 67),
          udp(v4.a, EVERYBODY, 68, 67),
          udp(CLIENT, SERVERS, 546, 547),
        ]) {
          expect(kernel.run('to_netdev', ethernet(packet), { mark: stamped(A.endpoint) })).toMatchObject({
            action: 'drop',
            reasons: ['UNENCRYPTED'],
          });
        }
        expect(kernel.run('to_tunnel', udp(NOWHERE, v4.host, 68, 67), { mark: stamped(A.endpoint) }).action).toBe(
          'drop',
        );
      });

      test('the source MAC address and the fence come first', () => {
        kernel.endpoint({ ...A, mac: mac(WORKLOAD_MAC) });
        const question = udp(NOWHERE, EVERYBODY, 68, 67);
        expect(send(question)).toMatchObject(passes);
        expect(send(question, '02:00:00:00:00:0b').reasons).toEqual(['INVALID_SOURCE_MAC']);
        kernel.endpoint({ ...A, open: false });
        expect(send(question).reasons).toEqual(['FENCED']);
        expect(receive(udp(v4.host, v4.a, 67, 68)).reasons).toEqual(['FENCED']);
      });
    });
  });

  describe.each(families)('probes of the own host, $name', (f) => {
    beforeEach(() => kernel.config({ exempt: EXEMPT_HOST_PROBES }));
    const denied = { action: 'drop', reasons: ['POLICY_DENIED'] };

    test('pass without a policy, and so do the answers', () => {
      expect(receive(tcp(f.host, f.a, 40000, 8080))).toMatchObject(passes);
      expect(send(tcp(f.a, f.host, 8080, 40000, TCP.syn | TCP.ack))).toMatchObject(passes);
      kernel.bump();
      expect(send(tcp(f.a, f.host, 8080, 40000, TCP.ack))).toMatchObject(passes);
      expect(receive(echoRequest(f.host, f.a, 7))).toMatchObject(passes);
      expect(send(echoReply(f.a, f.host, 7))).toMatchObject(passes);
    });

    test('also where a policy denies the host or asks it for a proof that no host has', () => {
      kernel.policy({ local: A.identity, direction: INGRESS }, { deny: true });
      expect(receive(tcp(f.host, f.a, 40000, 8080))).toMatchObject(passes);
      kernel.policy({ local: A.identity, direction: INGRESS }, { auth: 1 });
      expect(receive(tcp(f.host, f.a, 40001, 8080))).toMatchObject(passes);
    });

    test('are not there when the exemption is off, nor with another one', () => {
      for (const exempt of [0, EXEMPT_DHCP]) {
        kernel.config({ exempt });
        expect(receive(tcp(f.host, f.a, 40000, 8080))).toMatchObject(denied);
      }
    });

    test('open nothing for the workload: what it begins is judged', () => {
      expect(send(tcp(f.a, f.host, 40000, 22))).toMatchObject(denied);
      expect(send(udp(f.a, f.host, 40000, 53))).toMatchObject(denied);
      expect(receive(tcp(f.host, f.a, 40000, 8080))).toMatchObject(passes);
      // Over the probe's own ports.
      expect(send(tcp(f.a, f.host, 8080, 40000))).toMatchObject(denied);
      // And no answer where nothing was asked.
      expect(send(udp(f.a, f.host, 8080, 40001))).toMatchObject(denied);
    });

    test.each([
      ['another node', () => tcp(f.remoteNode, f.a, 1, 80), 0],
      ['the internet', () => tcp(f.world, f.a, 1, 80), 0],
      ['a neighbour', () => tcp(f.b, f.a, 1, 80), stamped(B.endpoint)],
      ['a neighbour in the host’s name', () => tcp(f.host, f.a, 1, 80), stamped(B.endpoint)],
      ['another node’s workload', () => tcp(f.r, f.a, 1, 80), MARK_TUNNEL],
      ['the tunnel in the host’s name', () => tcp(f.host, f.a, 1, 80), MARK_TUNNEL],
      ['the underlay in the host’s name', () => tcp(f.host, f.a, 1, 80), MARK_UNDERLAY],
    ])('are not what comes from %s', (_, packet, mark) => {
      expect(receive(packet(), mark).action).toBe('drop');
    });

    test('end with the exemption, in the middle of a flow', () => {
      receive(tcp(f.host, f.a, 40000, 8080));
      kernel.config({ exempt: 0 });
      kernel.bump();
      expect(send(tcp(f.a, f.host, 8080, 40000, TCP.syn | TCP.ack))).toMatchObject(denied);
    });

    test('the workload’s own policies for others go on', () => {
      kernel.policy({ local: A.identity, remote: R.identity, direction: EGRESS });
      expect(send(tcp(f.a, f.r, 1, 80))).toMatchObject(passes);
      expect(receive(tcp(f.r, f.a, 2, 80), MARK_TUNNEL)).toMatchObject(denied);
    });
  });
});
