/** What may reach a workload: only from where its source address may come, and only to its own address. */
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { CFG_ALLOW_UNBOUND, CFG_OBSERVE } from '../../src/datapath/layout.ts';
import { type Kernel, MARK_TUNNEL, MARK_UNDERLAY, stamped, unavailable } from './support/kernel.ts';
import { arp, echoRequest, ethernet, ip, neighbour, tcp, udp, WORKLOAD_MAC } from './support/packets.ts';
import { A, B, families, INGRESS, makeWorld, settle } from './support/world.ts';

describe.skipIf(unavailable)('to_workload', () => {
  let kernel: Kernel;
  beforeAll(() => {
    kernel = makeWorld();
  });
  beforeEach(() => {
    settle(kernel);
    // Whoever it is: only the origin decides here.
    kernel.policy({ local: A.identity, direction: INGRESS });
  });
  afterAll(() => kernel?.close());
  const receive = (packet: Buffer, mark: number, type?: number) =>
    kernel.run('to_workload', ethernet(packet, type === undefined ? {} : { type }), { mark });

  describe.each(families)('$name', (f) => {
    const marks = {
      none: 0,
      tunnel: MARK_TUNNEL,
      underlay: MARK_UNDERLAY,
      stampB: stamped(B.endpoint),
      stampA: stamped(A.endpoint),
      unknown: 0x90000000,
    };
    // Who sends × what vouches for the packet → the reason, '' for pass.
    const table: Record<'b' | 'r' | 'nobody' | 'host' | 'remoteNode' | 'world', Record<keyof typeof marks, string>> = {
      b: {
        none: 'NOT_STAMPED',
        tunnel: 'NOT_STAMPED',
        underlay: 'UNENCRYPTED',
        stampB: '',
        stampA: 'SPOOFED_STAMP',
        unknown: 'NOT_STAMPED',
      },
      r: {
        none: 'UNENCRYPTED',
        tunnel: '',
        underlay: 'UNENCRYPTED',
        stampB: 'SPOOFED_STAMP',
        stampA: 'SPOOFED_STAMP',
        unknown: 'NOT_STAMPED',
      },
      nobody: {
        none: 'UNENCRYPTED',
        tunnel: 'NO_VOUCH',
        underlay: 'UNENCRYPTED',
        stampB: 'SPOOFED_STAMP',
        stampA: 'SPOOFED_STAMP',
        unknown: 'NOT_STAMPED',
      },
      host: {
        none: '',
        tunnel: 'NOT_STAMPED',
        underlay: 'UNENCRYPTED',
        stampB: 'SPOOFED_STAMP',
        stampA: 'SPOOFED_STAMP',
        unknown: 'NOT_STAMPED',
      },
      remoteNode: {
        none: '',
        tunnel: '',
        underlay: 'UNENCRYPTED',
        stampB: 'SPOOFED_STAMP',
        stampA: 'SPOOFED_STAMP',
        unknown: 'NOT_STAMPED',
      },
      world: {
        none: '',
        tunnel: 'NOT_STAMPED',
        underlay: 'UNENCRYPTED',
        stampB: 'SPOOFED_STAMP',
        stampA: 'SPOOFED_STAMP',
        unknown: 'NOT_STAMPED',
      },
    };
    const rows = Object.entries(table).flatMap(([who, cells]) =>
      Object.entries(cells).map(
        ([mark, reason]) => [who, mark, reason] as [keyof typeof table, keyof typeof marks, string],
      ),
    );

    test.each(rows)('from %s with mark %s: %s', (who, mark, reason) => {
      const verdict = receive(udp(f[who], f.a, 40000, 53), marks[mark]);
      expect(verdict).toMatchObject(
        reason === '' ? { action: 'pass', reasons: [] } : { action: 'drop', reasons: [reason] },
      );
    });

    test('allowUnboundPath admits another node’s workload from the underlay, nobody else', () => {
      kernel.config({ flags: CFG_ALLOW_UNBOUND });
      expect(receive(udp(f.r, f.a, 1, 53), MARK_UNDERLAY).action).toBe('pass');
      expect(receive(udp(f.b, f.a, 1, 53), MARK_UNDERLAY).reasons).toEqual(['NOT_STAMPED']);
      expect(receive(udp(f.nobody, f.a, 1, 53), MARK_UNDERLAY).reasons).toEqual(['NO_VOUCH']);
      expect(receive(udp(f.host, f.a, 1, 53), MARK_UNDERLAY).reasons).toEqual(['NOT_STAMPED']);
      expect(receive(udp(f.r, f.a, 1, 53), 0).reasons).toEqual(['UNENCRYPTED']);
    });

    test('the stamp of an endpoint that has closed since is worth nothing', () => {
      kernel.endpoint({ ...B, open: false });
      expect(receive(udp(f.b, f.a, 1, 53), stamped(B.endpoint)).reasons).toEqual(['NOT_STAMPED']);
    });

    test('a packet for another address never enters, whoever’s it is', () => {
      for (const destination of [f.b, f.r, f.nobody, f.host, f.world]) {
        expect(receive(udp(f.host, destination, 1, 53), 0)).toMatchObject({
          action: 'drop',
          reasons: ['INVALID_DESTINATION_IP'],
        });
      }
    });

    test('a fenced endpoint receives nothing', () => {
      expect(receive(tcp(f.host, f.a, 1, 53), 0).action).toBe('pass');
      kernel.endpoint({ ...A, open: false });
      kernel.bump();
      expect(receive(tcp(f.host, f.a, 1, 53), 0).reasons).toEqual(['FENCED']);
    });

    test('an interface without an endpoint delivers nothing', () => {
      kernel.removeEndpoint();
      expect(receive(tcp(f.host, f.a, 1, 53), 0).reasons).toEqual(['NO_ENDPOINT']);
    });

    test('the destination port is the endpoint’s own', () => {
      kernel.clear('cs_policy');
      kernel.policy({ local: A.identity, dport: 80, proto: 6, direction: INGRESS });
      expect(receive(tcp(f.host, f.a, 5000, 80), 0).action).toBe('pass');
      expect(receive(tcp(f.host, f.a, 80, 5000), 0).reasons).toEqual(['POLICY_DENIED']);
    });

    test('a deny rule has its own reason', () => {
      kernel.policy({ local: A.identity, remote: 1, direction: INGRESS }, { deny: true });
      expect(receive(echoRequest(f.host, f.a, 3), 0).reasons).toEqual(['POLICY_DENY_RULE']);
    });

    test('observe mode lets denied and clear packets in, but no lie about their origin', () => {
      kernel.clear('cs_policy');
      kernel.config({ flags: CFG_OBSERVE });
      expect(receive(udp(f.host, f.a, 1, 53), 0)).toMatchObject({ action: 'pass', observed: ['POLICY_DENIED'] });
      expect(receive(udp(f.r, f.a, 1, 53), 0)).toMatchObject({ action: 'pass', observed: ['UNENCRYPTED'] });
      expect(receive(udp(f.r, f.a, 1, 53), stamped(B.endpoint))).toMatchObject({ action: 'drop' });
      expect(receive(udp(f.b, f.a, 1, 53), 0)).toMatchObject({ action: 'drop', reasons: ['NOT_STAMPED'] });
    });
  });

  describe('ARP and neighbour discovery', () => {
    const [v4, v6] = [families[0]!, families[1]!];

    test('this host may resolve the workload; what carries a mark came from elsewhere', () => {
      const request = arp(1, WORKLOAD_MAC, v4.host, v4.a);
      expect(receive(request, 0, 0x0806).action).toBe('pass');
      expect(receive(request, MARK_TUNNEL, 0x0806).reasons).toEqual(['NOT_STAMPED']);
      const solicitation = neighbour(135, v6.host, ip('ff02::1:ff00:a'), v6.a);
      expect(receive(solicitation, 0).action).toBe('pass');
      expect(receive(solicitation, stamped(B.endpoint)).reasons).toEqual(['NOT_STAMPED']);
    });

    test('only from this link, and no solicitation for routers', () => {
      expect(receive(neighbour(136, v6.host, v6.a, v6.host, 254), 0).reasons).toEqual(['ICMP_TYPE']);
      expect(receive(neighbour(133, ip('fe80::1'), ip('ff02::2')), 0).reasons).toEqual(['ICMP_TYPE']);
      expect(receive(neighbour(134, ip('fe80::1'), ip('ff02::1')), 0).action).toBe('pass');
    });
  });
});
