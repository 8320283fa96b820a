/** The paths between nodes: the tunnel takes only stamped packets, the underlay carries no workload traffic in clear. */
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { CFG_ALLOW_UNBOUND, CFG_OBSERVE } from '../../src/datapath/layout.ts';
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
import { A, B, families, makeWorld, settle } from './support/world.ts';

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
    const toR = udp(f.a, f.r, 40000, 53);

    test('to_tunnel passes what a live endpoint sent under its own address', () => {
      expect(bare('to_tunnel', toR, stamped(A.endpoint))).toMatchObject(passes);
    });

    test.each([
      ['nothing', 0, 'NOT_STAMPED'],
      ['the tunnel', MARK_TUNNEL, 'NOT_STAMPED'],
      ['the underlay', MARK_UNDERLAY, 'NOT_STAMPED'],
      ['another endpoint', stamped(B.endpoint), 'SPOOFED_STAMP'],
      ['an endpoint that is not there', stamped(77), 'SPOOFED_STAMP'],
    ])('to_tunnel drops what carries the mark of %s', (_, mark, reason) => {
      expect(bare('to_tunnel', toR, mark)).toMatchObject(drops(reason));
    });

    test('to_tunnel drops the stamp of a fenced or vanished endpoint, and other sources under a good stamp', () => {
      expect(bare('to_tunnel', udp(f.host, f.r, 1, 2), stamped(A.endpoint))).toMatchObject(drops('SPOOFED_STAMP'));
      kernel.endpoint({ ...A, open: false });
      expect(bare('to_tunnel', toR, stamped(A.endpoint))).toMatchObject(drops('NOT_STAMPED'));
      kernel.removeEndpoint();
      expect(bare('to_tunnel', toR, stamped(A.endpoint))).toMatchObject(drops('NOT_STAMPED'));
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
      expect(framed('to_netdev', toR, stamped(A.endpoint))).toMatchObject(drops('UNENCRYPTED'));
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
      expect(framed('to_netdev', toR, stamped(A.endpoint))).toMatchObject(passes);
      expect(framed('to_netdev', toR)).toMatchObject(drops('NOT_STAMPED'));
    });

    test('to_netdev lets node traffic through', () => {
      expect(framed('to_netdev', udp(f.host, f.remoteNode, 51871, 51871))).toMatchObject(passes);
      expect(framed('to_netdev', tcp(f.host, f.world, 40000, 443))).toMatchObject(passes);
    });

    test('observe mode counts clear traffic and lets it pass, not lies', () => {
      kernel.config({ flags: CFG_OBSERVE });
      expect(framed('to_netdev', toR, stamped(A.endpoint))).toMatchObject({
        action: 'pass',
        observed: ['UNENCRYPTED'],
      });
      expect(framed('from_netdev', udp(f.r, f.a, 1, 2))).toMatchObject({ action: 'pass', observed: ['UNENCRYPTED'] });
      expect(framed('to_netdev', toR, stamped(B.endpoint))).toMatchObject(drops('SPOOFED_STAMP'));
      expect(bare('to_tunnel', toR)).toMatchObject(drops('NOT_STAMPED'));
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
