/** A flow that is established vouches for its own packets only: what lies about itself is refused under its ports as under any. */
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { addressBytes } from '../../src/model/address.ts';
import { type Kernel, MARK_TUNNEL, MARK_UNDERLAY, stamped, unavailable } from './support/kernel.ts';
import { ethernet, ipPacket, PROTO, TCP, tcp, tcpSegment, udp, udpDatagram } from './support/packets.ts';
import { A, EGRESS, families, makeWorld, R, settle } from './support/world.ts';

const [v4, v6] = [families.find((f) => f.name === 'IPv4')!, families.find((f) => f.name === 'IPv6')!];
const PORTS = [40000, 80] as const;

function changed(packet: Buffer, change: (copy: Buffer) => void): Buffer {
  const copy = Buffer.from(packet);
  change(copy);
  return copy;
}

describe.skipIf(unavailable)('established flows', () => {
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
  const refused = (reason: string) => ({ action: 'drop', reasons: [reason] });

  describe.each(families)('$name', (f) => {
    const l4 = f.name === 'IPv4' ? 20 : 40;
    const ack = tcp(f.a, f.r, ...PORTS, TCP.ack);
    const answer = tcp(f.r, f.a, 80, 40000, TCP.ack);
    const datagram = udp(f.a, f.r, 40000, 53);
    beforeEach(() => {
      expect(out(tcp(f.a, f.r, ...PORTS)).action).toBe('pass');
      expect(into(tcp(f.r, f.a, 80, 40000, TCP.syn | TCP.ack)).action).toBe('pass');
      for (let n = 0; n < 2; n++) {
        expect(out(ack)).toMatchObject({ action: 'pass', mark: stamped(A.endpoint) });
        expect(into(answer).action).toBe('pass');
        expect(out(datagram)).toMatchObject({ action: 'pass', mark: stamped(A.endpoint) });
        expect(into(udp(f.r, f.a, 53, 40000)).action).toBe('pass');
      }
    });

    test('a TCP data offset below 5 or past the end is refused', () => {
      for (let offset = 0; offset < 16; offset++) {
        const packet = changed(ack, (copy) => {
          copy[l4 + 12] = offset << 4;
        });
        // 16 bytes of payload follow: up to 9 words of header are there.
        expect(out(packet), `${offset}`).toMatchObject(
          offset >= 5 && offset <= 9 ? { action: 'pass' } : refused('INVALID_PACKET'),
        );
      }
    });

    test('a header that only the frame’s padding completes is refused', () => {
      const cut = ipPacket(f.a, f.r, PROTO.tcp, tcpSegment(...PORTS, TCP.ack).subarray(0, 19));
      expect(out(Buffer.concat([cut, Buffer.alloc(60)]))).toMatchObject(refused('INVALID_PACKET'));
      const short = ipPacket(f.a, f.r, PROTO.udp, udpDatagram(40000, 53).subarray(0, 7));
      expect(out(Buffer.concat([short, Buffer.alloc(60)]))).toMatchObject(refused('INVALID_PACKET'));
    });

    test('a UDP length below 8 or past the packet is refused', () => {
      for (const [length, good] of [
        [0, false],
        [7, false],
        [8, true],
        [40, true],
        [41, false],
        [0xffff, false],
      ] as const) {
        const packet = changed(datagram, (copy) => copy.writeUInt16BE(length, l4 + 4));
        expect(out(packet), `${length}`).toMatchObject(good ? { action: 'pass' } : refused('INVALID_PACKET'));
      }
    });

    test('a packet shorter than its own length is refused', () => {
      const packet = changed(ack, (copy) => copy.writeUInt16BE(0x4000, f.name === 'IPv4' ? 2 : 4));
      expect(out(packet)).toMatchObject(refused('INVALID_PACKET'));
    });

    test('flags that no stack sends are refused', () => {
      for (const flags of [0, TCP.fin, TCP.syn | TCP.fin, TCP.psh, TCP.rst | TCP.syn | TCP.ack]) {
        expect(out(tcp(f.a, f.r, ...PORTS, flags)), `${flags}`).toMatchObject(refused('TCP_FLAGS'));
      }
    });

    test('an answer that came in elsewhere than the flow’s is refused', () => {
      expect(into(answer, MARK_UNDERLAY)).toMatchObject(refused('UNENCRYPTED'));
      expect(into(answer, stamped(A.endpoint))).toMatchObject(refused('SPOOFED_STAMP'));
      expect(into(answer).action).toBe('pass');
    });

    test('a change ends the flow with the next packet', () => {
      kernel.clear('cs_policy');
      kernel.config({ revision: 2n });
      expect(out(ack)).toMatchObject(refused('POLICY_DENIED'));
      expect(into(answer)).toMatchObject(refused('POLICY_DENIED'));
      expect(out(datagram)).toMatchObject(refused('POLICY_DENIED'));
    });

    test('what resets the flow is not overlooked: it can be opened anew', () => {
      expect(into(tcp(f.r, f.a, 80, 40000, TCP.rst)).action).toBe('pass');
      kernel.clear('cs_policy');
      expect(out(tcp(f.a, f.r, ...PORTS))).toMatchObject(refused('POLICY_DENIED'));
    });
  });

  test('an IPv6 packet with the mapped addresses of an IPv4 flow is none of its packets', () => {
    expect(out(tcp(v4.a, v4.r, ...PORTS)).action).toBe('pass');
    expect(into(tcp(v4.r, v4.a, 80, 40000, TCP.syn | TCP.ack)).action).toBe('pass');
    expect(out(tcp(v4.a, v4.r, ...PORTS, TCP.ack)).action).toBe('pass');
    const mapped = changed(tcp(v6.a, v6.r, ...PORTS, TCP.ack), (copy) => {
      Buffer.from(addressBytes(v4.a)).copy(copy, 8);
      Buffer.from(addressBytes(v4.r)).copy(copy, 24);
    });
    expect(out(mapped)).toMatchObject(refused('UNKNOWN_L3'));
  });

  test('IPv4 options are read in each packet of a flow', () => {
    const segment = tcpSegment(...PORTS, TCP.ack);
    expect(out(tcp(v4.a, v4.r, ...PORTS)).action).toBe('pass');
    expect(into(tcp(v4.r, v4.a, 80, 40000, TCP.syn | TCP.ack)).action).toBe('pass');
    expect(out(tcp(v4.a, v4.r, ...PORTS, TCP.ack)).action).toBe('pass');
    const route = Buffer.from([131, 7, 4, 10, 0, 0, 1, 0]);
    expect(out(ipPacket(v4.a, v4.r, PROTO.tcp, segment, { options: route }))).toMatchObject(refused('IP_OPTIONS'));
    expect(out(ipPacket(v4.a, v4.r, PROTO.tcp, segment, { options: Buffer.alloc(8, 1) })).action).toBe('pass');
    // Options that look like the flow's transport header.
    expect(out(ipPacket(v4.a, v4.r, PROTO.tcp, segment, { options: segment.subarray(0, 20) }))).toMatchObject(
      refused('INVALID_PACKET'),
    );
  });
});
