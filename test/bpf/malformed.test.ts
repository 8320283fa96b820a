/** Packets that lie about themselves: every length, every bit. None is allowed that a whole one of its kind would not be. */
import fc from 'fast-check';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { SLOW } from '../support/slow.ts';
import { type Kernel, MARK_TUNNEL, type Program, unavailable, type Verdict } from './support/kernel.ts';
import {
  echoRequest,
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
  tcp,
  tooBig,
  udp,
  udpDatagram,
} from './support/packets.ts';
import { A, EGRESS, families, INGRESS, makeWorld, R, settle } from './support/world.ts';

/** A frame's header and an IPv4 header: BPF_PROG_TEST_RUN itself refuses what is shorter. */
const SHORTEST = { IPv4: 34, IPv6: 54 } as const;

describe.skipIf(unavailable)('malformed packets', () => {
  let kernel: Kernel;
  beforeAll(() => {
    kernel = makeWorld();
  });
  beforeEach(() => settle(kernel));
  afterAll(() => kernel?.close());
  /** Undefined: the kernel did not take it for a packet at all. */
  const run = (program: Program, packet: Buffer, mark = 0): Verdict | undefined => {
    try {
      return kernel.run(program, packet, { mark });
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'EINVAL') return undefined;
      throw error;
    }
  };

  describe.each(families)('$name', (f) => {
    const whole = {
      tcp: ethernet(tcp(f.a, f.r, 40000, 80)),
      udp: ethernet(udp(f.a, f.r, 40000, 53)),
      echo: ethernet(echoRequest(f.a, f.r, 5)),
      error: ethernet(tooBig(f.a, f.r, tcp(f.r, f.a, 80, 40000))),
      sctp: ethernet(sctp(f.a, f.r, 40000, 5001, SCTP.init)),
      'a first fragment': ethernet(fragment(tcp(f.a, f.r, 40000, 80), 0, 32)),
      'a later fragment': ethernet(fragment(tcp(f.a, f.r, 40000, 80), 24, 36)),
      'headers before the transport': ethernet(
        f.name === 'IPv4'
          ? ipPacket(f.a, f.r, PROTO.udp, udpDatagram(1, 53), { options: Buffer.alloc(40, 1) })
          : ipv6With(f.a, f.r, [{ type: 0 }, { type: 60 }], PROTO.udp, udpDatagram(1, 53)),
      ),
    };

    test.each(Object.entries(whole))('%s cut at every byte is dropped, whatever policy allows', (_, packet) => {
      kernel.policy({ local: A.identity, direction: EGRESS });
      for (let length = SHORTEST[f.name]; length < packet.length; length++) {
        const verdict = run('from_workload', packet.subarray(0, length));
        expect(verdict, `${length} bytes`).toMatchObject({ action: 'drop', reasons: ['INVALID_PACKET'] });
      }
    });

    test.each(Object.entries(whole))(
      '%s whose header claims more or less than there is does not confuse',
      (_, packet) => {
        kernel.policy({ local: A.identity, direction: EGRESS });
        if (packet === whole['headers before the transport'] || packet === whole['a first fragment']) return; // have tests of their own
        const at = f.name === 'IPv4' ? 16 : 18;
        const fixed = f.name === 'IPv4' ? 0 : 40;
        const real = packet.length - 14;
        for (let claim = 0; claim < real + 40; claim++) {
          const copy = Buffer.from(packet);
          copy.writeUInt16BE(claim, at);
          const verdict = run('from_workload', copy);
          if (claim + fixed > real) expect(verdict, `${claim}`).toMatchObject({ reasons: ['INVALID_PACKET'] });
          // 8 bytes are the least of any transport.
          else if (claim + fixed < 48 - (f.name === 'IPv4' ? 20 : 0)) expect(verdict?.action, `${claim}`).toBe('drop');
          else expect(['pass', 'drop']).toContain(verdict?.action);
        }
      },
    );

    test('a transport header shorter than itself is dropped', () => {
      kernel.policy({ local: A.identity, direction: EGRESS });
      for (const proto of [PROTO.tcp, PROTO.udp, icmpProto(f.a)]) {
        const least = proto === PROTO.tcp ? 20 : 8;
        for (let length = 0; length < least; length++) {
          // The frame is padded: what counts is what the IP header says.
          const head = ipPacket(f.a, f.r, proto, Buffer.alloc(length));
          const verdict = run('from_workload', ethernet(Buffer.concat([head, Buffer.alloc(60)])));
          expect(verdict).toMatchObject({ action: 'drop', reasons: ['INVALID_PACKET'] });
        }
      }
    });

    test('a TCP data offset below 5 or past the end is dropped', () => {
      kernel.policy({ local: A.identity, direction: EGRESS });
      const at = 14 + (f.name === 'IPv4' ? 20 : 40) + 12;
      for (let offset = 0; offset < 16; offset++) {
        const copy = Buffer.from(whole.tcp);
        copy[at] = offset << 4;
        // 16 bytes of payload follow: up to 9 words of header are there.
        expect(run('from_workload', copy)?.action).toBe(offset >= 5 && offset <= 9 ? 'pass' : 'drop');
      }
    });

    test('a UDP length below 8 or past the packet is dropped', () => {
      kernel.policy({ local: A.identity, direction: EGRESS });
      const at = 14 + (f.name === 'IPv4' ? 20 : 40) + 4;
      const real = whole.udp.length - at + 4;
      for (const length of [0, 1, 7, 8, 9, real, real + 1, 0xffff]) {
        const copy = Buffer.from(whole.udp);
        copy.writeUInt16BE(length, at);
        const good = length >= 8 && length <= real;
        expect(run('from_workload', copy), `${length}`).toMatchObject(
          good ? { action: 'pass' } : { action: 'drop', reasons: ['INVALID_PACKET'] },
        );
      }
    });

    test('neighbour discovery cut short is dropped', () => {
      if (f.name === 'IPv4') return;
      const packet = neighbour(136, f.a, f.host, f.a);
      const cut = ipPacket(f.a, f.host, PROTO.icmpv6, packet.subarray(40, 40 + 20), { hopLimit: 255 });
      expect(run('from_workload', ethernet(cut))).toMatchObject({ action: 'drop', reasons: ['ICMP_TYPE'] });
    });

    test('an ICMP error that quotes nothing, half a header or garbage is dropped', () => {
      kernel.policy({ local: A.identity, remote: R.identity, direction: EGRESS });
      const sent = tcp(f.a, f.r, 40000, 80);
      expect(run('from_workload', ethernet(sent))?.action).toBe('pass');
      const header = (f.name === 'IPv4' ? 20 : 40) + 8;
      for (let length = 0; length < header; length++) {
        const packet = tooBig(f.r, f.a, sent.subarray(0, length));
        expect(run('to_workload', ethernet(packet), MARK_TUNNEL)?.action).toBe('drop');
      }
      expect(run('to_workload', ethernet(tooBig(f.r, f.a, sent)), MARK_TUNNEL)?.action).toBe('pass');
      const type = f.name === 'IPv4' ? 3 : 1;
      const garbage = ipPacket(f.r, f.a, icmpProto(f.a), icmp(type, Buffer.alloc(64, 0xff)));
      expect(run('to_workload', ethernet(garbage), MARK_TUNNEL)?.action).toBe('drop');
    });

    test('random bytes after a true address pair never pass where no rule allows anything', () => {
      kernel.config({ hold_ifindex: 0 });
      fc.assert(
        fc.property(fc.uint8Array({ minLength: 8, maxLength: 120 }), fc.nat(255), (bytes, proto) => {
          const packet = ethernet(ipPacket(f.a, f.r, proto, Buffer.from(bytes)));
          const nd = f.name === 'IPv6' && proto === PROTO.icmpv6 && bytes[0]! >= 133 && bytes[0]! <= 136;
          if (!nd) expect(run('from_workload', packet)?.action ?? 'drop').toBe('drop');
          expect(run('to_workload', packet, MARK_TUNNEL)?.action ?? 'drop').toBe('drop');
        }),
        { numRuns: Math.ceil(1500 / SLOW) },
      );
    });

    test('any bit flipped in an allowed packet: it passes only if it still says who it is and where it goes', () => {
      kernel.policy({ local: A.identity, remote: R.identity, proto: PROTO.udp, dport: 53, direction: EGRESS });
      kernel.config({ hold_ifindex: 0 });
      const packet = whole.udp;
      const ipAt = 14;
      const v4 = f.name === 'IPv4';
      // Bytes whose change may pass: MAC addresses, traffic class, id, TTL, checksums, source port, payload.
      const free = new Set<number>();
      const add = (from: number, to: number) => {
        for (let i = from; i < to; i++) free.add(i);
      };
      add(0, 12);
      const transport = ipAt + (v4 ? 20 : 40);
      if (v4) {
        free.add(ipAt + 1);
        add(ipAt + 2, ipAt + 6); // length (checked by its own test) and id
        free.add(ipAt + 6); // "don't fragment", reserved bit
        add(ipAt + 8, ipAt + 9);
        add(ipAt + 10, ipAt + 12);
      } else {
        add(ipAt, ipAt + 6); // the version's nibble has its own test
        add(ipAt + 7, ipAt + 8);
      }
      add(transport, transport + 2);
      add(transport + 4, packet.length);
      for (let bit = 0; bit < packet.length * 8; bit++) {
        if (free.has(bit >> 3)) continue;
        const copy = Buffer.from(packet);
        copy[bit >> 3]! ^= 0x80 >> (bit & 7);
        expect(run('from_workload', copy)?.action ?? 'drop', `bit ${bit & 7} of byte ${bit >> 3}`).toBe('drop');
      }
    });

    test('any other version nibble is dropped', () => {
      kernel.policy({ local: A.identity, direction: EGRESS });
      kernel.policy({ local: A.identity, direction: INGRESS });
      for (let version = 0; version < 16; version++) {
        if (version === (f.name === 'IPv4' ? 4 : 6)) continue;
        const copy = Buffer.from(whole.udp);
        copy[14] = (copy[14]! & 0x0f) | (version << 4);
        expect(run('from_workload', copy)?.action ?? 'drop').toBe('drop');
      }
    });

    test('no program crashes or allows on random frames', () => {
      const programs = ['from_workload', 'to_workload', 'from_hold', 'to_tunnel'] as const;
      fc.assert(
        fc.property(
          fc.constantFrom(...programs),
          fc.uint8Array({ minLength: 14, maxLength: 200 }),
          fc.boolean(),
          (program, bytes, asIp) => {
            const packet = Buffer.from(bytes);
            if (asIp) packet.writeUInt16BE(f.name === 'IPv4' ? 0x0800 : 0x86dd, 12);
            expect(run(program, packet)?.action ?? 'drop').toBe('drop');
          },
        ),
        { numRuns: Math.ceil(1500 / SLOW) },
      );
    });
  });
});
