/** The paths between nodes: the tunnel takes only stamped packets, the underlay carries no workload traffic in clear. */
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { CFG_ALLOW_UNBOUND, CFG_OBSERVE, IP_ENCRYPT, IP_RESERVED } from '../../src/datapath/layout.ts';
import {
  type Action,
  type Kernel,
  MARK_TUNNEL,
  MARK_UNDERLAY,
  type Program,
  stamped,
  unavailable,
} from './support/kernel.ts';
import { arp, ethernet, ip, ipPacket, neighbour, PROTO, tcp, udp, WORKLOAD_MAC } from './support/packets.ts';
import {
  A,
  type Addresses,
  B,
  EGRESS,
  families,
  INGRESS,
  makeWorld,
  R,
  REMOTE_NODE,
  settle,
  WORLD,
} from './support/world.ts';

/** No end of the lease that a test would live to see. */
const LONG = 1n << 62n;
const toR = (f: Addresses) => udp(f.a, f.r, 40000, 53);

describe.skipIf(unavailable)('paths between nodes', () => {
  let kernel: Kernel;
  beforeAll(() => {
    kernel = makeWorld();
  });
  beforeEach(() => settle(kernel));
  afterAll(() => kernel?.close());
  const drops = (reason: string) => ({ action: 'drop' as Action, reasons: [reason] });
  const passes = { action: 'pass' as Action, reasons: [] };
  const bare = (program: Program, packet: Buffer, mark = 0) => kernel.run(program, packet, { mark });
  const framed = (program: Program, packet: Buffer, mark = 0) => kernel.run(program, ethernet(packet), { mark });

  describe.each(families)('$name', (f) => {
    test('to_tunnel passes what a live endpoint sent under its own address', () => {
      expect(bare('to_tunnel', toR(f), stamped(A.endpoint))).toMatchObject(passes);
    });

    test.each([
      ['nothing', 0, 'NOT_STAMPED'],
      ['the tunnel', MARK_TUNNEL, 'NOT_STAMPED'],
      ['the underlay', MARK_UNDERLAY, 'NOT_STAMPED'],
      ['another endpoint', stamped(B.endpoint), 'SPOOFED_STAMP'],
      ['an endpoint that is not there', stamped(77), 'SPOOFED_STAMP'],
    ])('to_tunnel drops what carries the mark of %s', (_, mark, reason) => {
      expect(bare('to_tunnel', toR(f), mark)).toMatchObject(drops(reason));
    });

    test('to_tunnel drops the stamp of a fenced or vanished endpoint, and other sources under a good stamp', () => {
      expect(bare('to_tunnel', udp(f.host, f.r, 1, 2), stamped(A.endpoint))).toMatchObject(drops('SPOOFED_STAMP'));
      kernel.endpoint({ ...A, open: false });
      expect(bare('to_tunnel', toR(f), stamped(A.endpoint))).toMatchObject(drops('NOT_STAMPED'));
      kernel.removeEndpoint();
      expect(bare('to_tunnel', toR(f), stamped(A.endpoint))).toMatchObject(drops('NOT_STAMPED'));
    });

    test('from_tunnel says that it was the tunnel, whatever the mark said', () => {
      for (const mark of [0, 0xffff0000, stamped(A.endpoint), MARK_UNDERLAY]) {
        expect(bare('from_tunnel', udp(f.r, f.a, 1, 2), mark + 0x42)).toMatchObject({
          ...passes,
          mark: MARK_TUNNEL + 0x42,
        });
      }
    });

    test('from_netdev takes marks away', () => {
      for (const mark of [stamped(A.endpoint), MARK_TUNNEL, MARK_UNDERLAY]) {
        expect(framed('from_netdev', udp(f.world, f.a, 1, 2), mark + 7)).toMatchObject({ ...passes, mark: 7 });
      }
    });

    test('from_netdev drops workload traffic in clear', () => {
      expect(framed('from_netdev', udp(f.r, f.a, 1, 2))).toMatchObject(drops('UNENCRYPTED'));
      expect(framed('from_netdev', udp(f.nobody, f.a, 1, 2))).toMatchObject(drops('UNENCRYPTED'));
      expect(framed('from_netdev', udp(f.r, f.host, 1, 2))).toMatchObject(drops('UNENCRYPTED'));
    });

    test('from_netdev drops what says it is from this node', () => {
      kernel.config({ flags: CFG_ALLOW_UNBOUND });
      for (const source of [f.a, f.b, f.host]) {
        expect(framed('from_netdev', udp(source, f.a, 1, 2))).toMatchObject(drops('NOT_STAMPED'));
      }
    });

    test('from_netdev marks clear workload traffic where allowUnboundPath says so', () => {
      kernel.config({ flags: CFG_ALLOW_UNBOUND });
      expect(framed('from_netdev', udp(f.r, f.a, 1, 2), stamped(A.endpoint))).toMatchObject({
        ...passes,
        mark: MARK_UNDERLAY,
      });
    });

    test('from_netdev lets node traffic through: the tunnel’s own packets, the peer channel, fragments', () => {
      expect(framed('from_netdev', udp(f.remoteNode, f.host, 51871, 51871))).toMatchObject(passes);
      expect(framed('from_netdev', tcp(f.remoteNode, f.host, 40000, 4250))).toMatchObject(passes);
      expect(framed('from_netdev', ipPacket(f.remoteNode, f.host, 44, Buffer.alloc(16)))).toMatchObject(passes);
    });

    test('to_netdev lets nothing of a workload out in clear', () => {
      expect(framed('to_netdev', toR(f), stamped(A.endpoint))).toMatchObject(drops('UNENCRYPTED'));
      expect(framed('to_netdev', udp(f.a, f.nobody, 1, 2), stamped(A.endpoint))).toMatchObject(drops('UNENCRYPTED'));
      expect(framed('to_netdev', udp(f.host, f.r, 1, 2))).toMatchObject(drops('UNENCRYPTED'));
    });

    test('to_netdev asks for the stamp where a workload’s address leaves, wherever it goes', () => {
      const toWorld = udp(f.a, f.world, 1, 2);
      expect(framed('to_netdev', toWorld, stamped(A.endpoint))).toMatchObject(passes);
      expect(framed('to_netdev', toWorld)).toMatchObject(drops('NOT_STAMPED'));
      expect(framed('to_netdev', toWorld, MARK_TUNNEL)).toMatchObject(drops('NOT_STAMPED'));
      expect(framed('to_netdev', toWorld, stamped(B.endpoint))).toMatchObject(drops('SPOOFED_STAMP'));
      expect(framed('to_netdev', udp(f.r, f.world, 1, 2), MARK_TUNNEL)).toMatchObject(drops('NOT_STAMPED'));
      expect(framed('to_netdev', udp(f.nobody, f.world, 1, 2))).toMatchObject(drops('NOT_STAMPED'));
    });

    test('to_netdev with allowUnboundPath still asks for the stamp', () => {
      kernel.config({ flags: CFG_ALLOW_UNBOUND });
      expect(framed('to_netdev', toR(f), stamped(A.endpoint))).toMatchObject(passes);
      expect(framed('to_netdev', toR(f))).toMatchObject(drops('NOT_STAMPED'));
    });

    test('to_netdev lets node traffic through', () => {
      expect(framed('to_netdev', udp(f.host, f.remoteNode, 51871, 51871))).toMatchObject(passes);
      expect(framed('to_netdev', tcp(f.host, f.world, 40000, 443))).toMatchObject(passes);
    });

    test('observe mode counts clear traffic and lets it pass, not lies', () => {
      kernel.config({ flags: CFG_OBSERVE });
      expect(framed('to_netdev', toR(f), stamped(A.endpoint))).toMatchObject({
        action: 'pass',
        observed: ['UNENCRYPTED'],
      });
      expect(framed('from_netdev', udp(f.r, f.a, 1, 2))).toMatchObject({ action: 'pass', observed: ['UNENCRYPTED'] });
      expect(framed('to_netdev', toR(f), stamped(B.endpoint))).toMatchObject(drops('SPOOFED_STAMP'));
      expect(bare('to_tunnel', toR(f))).toMatchObject(drops('NOT_STAMPED'));
    });
  });

  describe.each(families)('encryption demanded, $name', (f) => {
    const enter = (packet: Buffer, mark: number) => kernel.run('to_workload', ethernet(packet), { mark });
    beforeEach(() => {
      kernel.config({ flags: CFG_ALLOW_UNBOUND });
      kernel.policy({ local: A.identity, direction: INGRESS });
      kernel.policy({ local: A.identity, direction: EGRESS });
    });

    test('of a workload’s address: in clear nothing goes there or comes from there, whatever allowUnboundPath says', () => {
      expect(framed('to_netdev', toR(f), stamped(A.endpoint))).toMatchObject(passes);
      expect(framed('from_netdev', udp(f.r, f.a, 1, 2))).toMatchObject(passes);
      kernel.address(f.r, { ...R, lease: LONG, flags: IP_ENCRYPT });
      expect(framed('to_netdev', toR(f), stamped(A.endpoint))).toMatchObject(drops('UNENCRYPTED'));
      expect(framed('to_netdev', udp(f.host, f.r, 1, 2))).toMatchObject(drops('UNENCRYPTED'));
      expect(framed('from_netdev', udp(f.r, f.a, 1, 2))).toMatchObject(drops('UNENCRYPTED'));
      expect(framed('from_netdev', udp(f.r, f.host, 1, 2))).toMatchObject(drops('UNENCRYPTED'));
      expect(enter(udp(f.r, f.a, 1, 2), MARK_UNDERLAY)).toMatchObject(drops('UNENCRYPTED'));
      expect(enter(udp(f.r, f.a, 1, 2), 0)).toMatchObject(drops('UNENCRYPTED'));
    });

    test('through the tunnel it goes, both ways, and the flow is the tunnel’s', () => {
      kernel.address(f.r, { ...R, lease: LONG, flags: IP_ENCRYPT });
      expect(kernel.run('from_workload', ethernet(toR(f))).action).toBe('pass');
      expect(bare('to_tunnel', toR(f), stamped(A.endpoint))).toMatchObject(passes);
      expect(kernel.flows()).toMatchObject([{ origin: MARK_TUNNEL >>> 16 }]);
      expect(enter(udp(f.r, f.a, 53, 40000), MARK_TUNNEL)).toMatchObject(passes);
      expect(enter(udp(f.r, f.a, 53, 40000), MARK_UNDERLAY)).toMatchObject(drops('UNENCRYPTED'));
    });

    test('of another address the demand is not asked', () => {
      kernel.address(f.r, { ...R, lease: LONG, flags: IP_ENCRYPT });
      expect(framed('to_netdev', udp(f.a, f.nobody, 1, 2), stamped(A.endpoint))).toMatchObject(passes);
      expect(framed('from_netdev', udp(f.nobody, f.a, 1, 2))).toMatchObject(passes);
    });

    test('of a prefix: for every address in it that has no entry of its own', () => {
      const [address, length] = f.prefix;
      kernel.prefix(address, length, { cluster: true, encrypt: true });
      expect(framed('to_netdev', udp(f.a, f.nobody, 1, 2), stamped(A.endpoint))).toMatchObject(drops('UNENCRYPTED'));
      expect(framed('from_netdev', udp(f.nobody, f.a, 1, 2))).toMatchObject(drops('UNENCRYPTED'));
      expect(framed('to_netdev', toR(f), stamped(A.endpoint))).toMatchObject(passes);
    });

    test('of a prefix outside the cluster, its hosts included', () => {
      const world = f.name === 'IPv4' ? 24 : 64;
      expect(framed('to_netdev', udp(f.a, f.world, 1, 2), stamped(A.endpoint))).toMatchObject(passes);
      kernel.prefix(f.world, world, { identity: WORLD, encrypt: true });
      expect(framed('to_netdev', udp(f.a, f.world, 1, 2), stamped(A.endpoint))).toMatchObject(drops('UNENCRYPTED'));
      expect(framed('to_netdev', udp(f.host, f.world, 1, 2))).toMatchObject(drops('UNENCRYPTED'));
      expect(framed('to_netdev', udp(f.world, f.remoteNode, 1, 2))).toMatchObject(drops('UNENCRYPTED'));
      expect(framed('from_netdev', udp(f.world, f.a, 1, 2))).toMatchObject(drops('UNENCRYPTED'));
      for (const mark of [0, MARK_UNDERLAY]) {
        expect(enter(udp(f.world, f.a, 1, 2), mark)).toMatchObject(drops('UNENCRYPTED'));
      }
      expect(enter(udp(f.world, f.a, 1, 2), MARK_TUNNEL)).toMatchObject(passes);
    });

    test('what the node itself says to others goes on', () => {
      kernel.address(f.remoteNode, { identity: REMOTE_NODE, node: R.node, flags: IP_RESERVED });
      kernel.address(f.r, { ...R, lease: LONG, flags: IP_ENCRYPT });
      expect(framed('to_netdev', udp(f.host, f.remoteNode, 51871, 51871))).toMatchObject(passes);
      expect(framed('from_netdev', udp(f.remoteNode, f.host, 51871, 51871))).toMatchObject(passes);
    });
  });

  describe.each(families)('another way across the underlay, $name', (f) => {
    const type = f.name === 'IPv4' ? '0800' : '86dd';
    const tagged = (packet: Buffer, ...tags: string[]) =>
      ethernet(
        Buffer.concat([
          ...tags.slice(1).map((t) => Buffer.from(`0064${t}`, 'hex')),
          Buffer.from(`0064${type}`, 'hex'),
          packet,
        ]),
        {
          type: Number.parseInt(tags[0]!, 16),
        },
      );

    test.each([
      ['one tag', ['8100']],
      ['a service tag', ['88a8']],
      ['two tags', ['88a8', '8100']],
      ['two tags of one kind', ['8100', '8100']],
    ])('%s hides nothing', (_, tags) => {
      const out = (packet: Buffer, mark = 0) => kernel.run('to_netdev', tagged(packet, ...tags), { mark });
      const into = (packet: Buffer) =>
        kernel.run('from_netdev', tagged(packet, ...tags), { mark: stamped(A.endpoint) });
      expect(out(toR(f), stamped(A.endpoint))).toMatchObject(drops('UNENCRYPTED'));
      expect(out(udp(f.a, f.world, 1, 2))).toMatchObject(drops('NOT_STAMPED'));
      expect(out(udp(f.host, f.remoteNode, 1, 2))).toMatchObject(passes);
      expect(into(udp(f.r, f.a, 1, 2))).toMatchObject(drops('UNENCRYPTED'));
      expect(into(udp(f.host, f.a, 1, 2))).toMatchObject(drops('NOT_STAMPED'));
      expect(into(udp(f.world, f.a, 1, 2))).toMatchObject({ ...passes, mark: 0 });
    });

    test('three tags are too many to look behind', () => {
      for (const program of ['to_netdev', 'from_netdev'] as const) {
        expect(kernel.run(program, tagged(udp(f.host, f.remoteNode, 1, 2), '8100', '8100', '8100'))).toMatchObject(
          drops('VLAN'),
        );
      }
    });

    test.each([
      ['MPLS', 0x8847],
      ['MPLS multicast', 0x8848],
      ['PPPoE', 0x8864],
      ['a frame in a frame', 0x6558],
      ['a provider’s backbone', 0x88e7],
      ['TRILL', 0x22f3],
      ['NSH', 0x894f],
      ['an old tag', 0x9100],
    ])('%s carries nothing past, tagged or not', (_, carrier) => {
      const frame = ethernet(Buffer.concat([Buffer.from('00001140', 'hex'), toR(f)]), { type: carrier });
      const behind = tagged(toR(f), '8100');
      behind.writeUInt16BE(carrier, 16);
      for (const program of ['to_netdev', 'from_netdev'] as const) {
        expect(kernel.run(program, frame)).toMatchObject(drops('UNKNOWN_L3'));
        expect(kernel.run(program, behind)).toMatchObject(drops('UNKNOWN_L3'));
      }
    });

    test.each([
      ['IPv4', 4],
      ['IPv6', 41],
      ['GRE', 47],
      ['EtherIP', 97],
      ['MPLS', 137],
      ['Ethernet', 143],
    ])('what an endpoint sent does not cross in clear as %s in IP, but by leave of allowUnboundPath', (_, proto) => {
      const wrapped = ipPacket(f.host, f.remoteNode, proto, toR(f));
      expect(framed('to_netdev', wrapped, stamped(A.endpoint))).toMatchObject(drops('UNENCRYPTED'));
      expect(framed('to_netdev', wrapped)).toMatchObject(passes); // the node's own
      expect(framed('to_netdev', udp(f.host, f.world, 1, 2), stamped(A.endpoint))).toMatchObject(passes); // masqueraded
      kernel.config({ flags: CFG_ALLOW_UNBOUND });
      expect(framed('to_netdev', wrapped, stamped(A.endpoint))).toMatchObject(passes);
    });
  });

  test('ARP, neighbour discovery and what is not IP pass on the underlay', () => {
    const [v4, v6] = [families[0]!, families[1]!];
    for (const program of ['from_netdev', 'to_netdev'] as const) {
      const request = ethernet(arp(1, WORKLOAD_MAC, v4.host, v4.remoteNode), { type: 0x0806 });
      expect(kernel.run(program, request)).toMatchObject(passes);
      expect(kernel.run(program, ethernet(Buffer.alloc(64), { type: 0x88cc }))).toMatchObject(passes);
      expect(framed(program, neighbour(135, ip('fe80::1'), ip('ff02::1:ff00:7'), v6.remoteNode))).toMatchObject(passes);
    }
  });

  test('an IPv4-mapped source does not pass for the world', () => {
    const [, v6] = families;
    const packet = ipPacket(v6!.world, v6!.host, PROTO.udp, Buffer.alloc(16));
    Buffer.from('00000000000000000000ffff0800021e', 'hex').copy(packet, 8);
    expect(framed('from_netdev', packet)).toMatchObject(drops('UNKNOWN_L3'));
    expect(framed('to_netdev', packet)).toMatchObject(drops('UNKNOWN_L3'));
  });
});
