/** What may stand between addresses and ports: IPv4 options, IPv6 extension headers. They move the ports and never the verdict. */
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { FLOW_STATES } from '../../src/datapath/layout.ts';
import { type Kernel, MARK_TUNNEL, unavailable } from './support/kernel.ts';
import {
  type Extension,
  ethernet,
  icmp,
  ipPacket,
  ipv6With,
  PROTO,
  SCTP,
  sctp,
  TCP,
  tcp,
  tcpSegment,
  tooBig,
  udpDatagram,
} from './support/packets.ts';
import { A, EGRESS, families, makeWorld, R, settle } from './support/world.ts';

const [v4, v6] = [families[0]!, families[1]!];
const HOP_BY_HOP = 0;
const ROUTING = 43;
const DESTINATION = 60;

describe.skipIf(unavailable)('between addresses and ports', () => {
  let kernel: Kernel;
  beforeAll(() => {
    kernel = makeWorld();
  });
  beforeEach(() => {
    settle(kernel);
    kernel.policy({ local: A.identity, remote: R.identity, proto: PROTO.udp, dport: 53, direction: EGRESS });
  });
  afterAll(() => kernel?.close());

  const out = (packet: Buffer) => kernel.run('from_workload', ethernet(packet));
  const into = (packet: Buffer) => kernel.run('to_workload', ethernet(packet), { mark: MARK_TUNNEL });
  const drop = (reason: string) => ({ action: 'drop', reasons: [reason] });
  const pass = { action: 'pass', reasons: [] };

  describe('IPv4 options', () => {
    const send = (options: string, dport = 53) =>
      out(ipPacket(v4.a, v4.r, PROTO.udp, udpDatagram(40000, dport), { options: Buffer.from(options, 'hex') }));

    test.each([
      ['as many NOPs as fit', '01'.repeat(40)],
      ['an end at once', '00000000'],
      ['nothing after the end counts', '00831304'],
      ['record route', '0727041000000000'.padEnd(80, '0')],
      ['timestamp', `440c0500${'0'.repeat(16)}`],
      ['router alert', '94040000'],
      ['a security label', '860c0000000001060001000a'],
    ])('%s: the ports are found, and the verdict is theirs', (_, options) => {
      expect(send(options)).toMatchObject(pass);
      expect(send(options, 54)).toMatchObject(drop('POLICY_DENIED'));
    });

    test.each([
      ['loose source route', '83070408000101' + '00'],
      ['strict source route', '89070408000101' + '00'],
      ['one behind others', '01940400000183070408000101000000'],
      ['one as the last', `${'01'.repeat(37)}830304`],
      ['one without an address', '83030400'],
    ])('%s is dropped, whatever policy allows', (_, options) => {
      kernel.policy({ local: A.identity, direction: EGRESS });
      expect(send(options)).toMatchObject(drop('IP_OPTIONS'));
    });

    test.each([
      ['of length 0', '07000000'],
      ['of length 1', '07010000'],
      ['that reaches into the data', '07080400'],
      ['without its length', '01010107'],
    ])('an option %s makes the packet a damaged one', (_, options) => {
      expect(send(options)).toMatchObject(drop('INVALID_PACKET'));
    });

    test('a source route is dropped in a running flow, too, and coming in', () => {
      expect(send('01010101')).toMatchObject(pass);
      expect(send('83070408000101' + '00')).toMatchObject(drop('IP_OPTIONS'));
      const reply = ipPacket(v4.r, v4.a, PROTO.udp, udpDatagram(53, 40000), {
        options: Buffer.from('8907040800010100', 'hex'),
      });
      expect(into(reply)).toMatchObject(drop('IP_OPTIONS'));
    });
  });

  describe('IPv6 extension headers', () => {
    const send = (extensions: readonly Extension[], proto: number = PROTO.udp, payload = udpDatagram(40000, 53)) =>
      out(ipv6With(v6.a, v6.r, extensions, proto, payload));
    const routing = (type: number, left: number) => ({ type: ROUTING, body: Buffer.from([type, left, 0, 0, 0, 0]) });

    test.each<readonly [string, readonly Extension[]]>([
      ['hop-by-hop', [{ type: HOP_BY_HOP }]],
      ['destination options', [{ type: DESTINATION }]],
      ['a routing header that has arrived', [routing(4, 0)]],
      ['all of them', [{ type: HOP_BY_HOP }, { type: DESTINATION }, routing(2, 0), { type: DESTINATION }]],
      ['a long one', [{ type: DESTINATION, body: Buffer.alloc(6 + 8 * 60) }]],
      ['eight', Array.from({ length: 8 }, () => ({ type: DESTINATION }))],
    ])('%s: the ports are found, and the verdict is theirs', (_, extensions) => {
      expect(send(extensions)).toMatchObject(pass);
      expect(kernel.flows()).toHaveLength(1);
      expect(send(extensions, PROTO.udp, udpDatagram(40000, 54))).toMatchObject(drop('POLICY_DENIED'));
    });

    test.each<readonly [string, readonly Extension[], string]>([
      ['a source route', [routing(0, 1)], 'IP_OPTIONS'],
      ['a route of type 0 that has arrived', [routing(0, 0)], 'IP_OPTIONS'],
      ['a route that has somewhere to go', [routing(4, 2)], 'IP_OPTIONS'],
      ['one behind others', [{ type: HOP_BY_HOP }, { type: DESTINATION }, routing(3, 1)], 'IP_OPTIONS'],
      ['hop-by-hop that is not the first', [{ type: DESTINATION }, { type: HOP_BY_HOP }], 'IPV6_EXTENSION'],
      ['nine', Array.from({ length: 9 }, () => ({ type: DESTINATION })), 'IPV6_EXTENSION'],
      ['authentication', [{ type: 51 }], 'IPV6_EXTENSION'],
      ['mobility', [{ type: 135 }], 'IPV6_EXTENSION'],
      ['host identity', [{ type: 139 }], 'IPV6_EXTENSION'],
      ['shim6', [{ type: 140 }], 'IPV6_EXTENSION'],
      ['authentication behind others', [{ type: HOP_BY_HOP }, { type: 51 }], 'IPV6_EXTENSION'],
      [
        'two fragment headers',
        [44, 44].map((type) => ({ type, body: Buffer.alloc(6, 0) })).map(later),
        'IPV6_EXTENSION',
      ],
    ])('%s: dropped by name, whatever policy allows', (_, extensions, reason) => {
      kernel.policy({ local: A.identity, direction: EGRESS });
      expect(send(extensions)).toMatchObject(drop(reason));
    });

    test.each([
      ['nothing behind', 59],
      ['ESP', 50],
      ['IPv4 in IPv6', 4],
      ['ICMP of the other family', PROTO.icmp],
    ])('%s is no transport, also behind headers', (_, proto) => {
      kernel.policy({ local: A.identity, direction: EGRESS });
      expect(send([{ type: DESTINATION }], proto)).toMatchObject(drop('UNKNOWN_L4'));
    });

    test('a header past the end of the packet is a lie about lengths', () => {
      kernel.policy({ local: A.identity, direction: EGRESS });
      const packet = ipv6With(v6.a, v6.r, [{ type: HOP_BY_HOP }, { type: DESTINATION }], PROTO.udp, udpDatagram(1, 53));
      for (const at of [41, 49]) {
        const long = Buffer.from(packet);
        long[at] = 200;
        expect(out(long)).toMatchObject(drop('INVALID_PACKET'));
        // Nor into what follows the packet in its frame.
        long[at] = 8;
        expect(out(Buffer.concat([long, Buffer.alloc(400)]))).toMatchObject(drop('INVALID_PACKET'));
      }
    });

    test('cut at every byte, whatever policy allows, it is dropped', () => {
      kernel.policy({ local: A.identity, direction: EGRESS });
      const whole = ethernet(
        ipv6With(v6.a, v6.r, [{ type: HOP_BY_HOP }, { type: DESTINATION }], PROTO.tcp, tcpSegment(1, 2, TCP.syn)),
      );
      for (let length = 54; length < whole.length; length++) {
        expect(kernel.run('from_workload', whole.subarray(0, length)).reasons, `${length}`).toEqual(['INVALID_PACKET']);
        // Even if the IPv6 header claims no more than there is.
        const honest = Buffer.from(whole.subarray(0, length));
        honest.writeUInt16BE(length - 54, 18);
        const verdict = kernel.run('from_workload', honest);
        if (length < 54 + 16 + 20) expect(verdict, `${length}`).toMatchObject(drop('INVALID_PACKET'));
      }
    });

    test('TCP, SCTP and echo behind headers make the flows they make without', () => {
      kernel.policy({ local: A.identity, remote: R.identity, direction: EGRESS });
      const header = [{ type: DESTINATION }];
      expect(send(header, PROTO.tcp, tcpSegment(40000, 80, TCP.syn))).toMatchObject(pass);
      expect(into(tcp(v6.r, v6.a, 80, 40000, TCP.syn | TCP.ack))).toMatchObject(pass);
      expect(send(header, PROTO.tcp, tcpSegment(40000, 80, TCP.ack))).toMatchObject(pass);
      expect(send(header, PROTO.tcp, tcpSegment(40000, 80, TCP.syn | TCP.fin))).toMatchObject(drop('TCP_FLAGS'));
      expect(send(header, PROTO.sctp, sctp(v6.a, v6.r, 7, 8, SCTP.init).subarray(40))).toMatchObject(pass);
      expect(send(header, PROTO.icmpv6, icmp(128, Buffer.from([0, 7, 0, 1])))).toMatchObject(pass);
      const states = kernel.flows().map((flow) => flow.state);
      expect(states.toSorted()).toEqual(
        [FLOW_STATES.ESTABLISHED, FLOW_STATES.SCTP_COOKIE_WAIT, FLOW_STATES.ECHO].toSorted(),
      );
    });

    test('an error that quotes a packet with headers belongs to its flow', () => {
      const sent = ipv6With(
        v6.a,
        v6.r,
        [{ type: HOP_BY_HOP }, { type: DESTINATION }],
        PROTO.udp,
        udpDatagram(40000, 53),
      );
      expect(into(tooBig(v6.r, v6.a, sent))).toMatchObject(drop('ICMP_TYPE'));
      expect(out(sent)).toMatchObject(pass);
      expect(into(tooBig(v6.r, v6.a, sent))).toMatchObject(pass);
      const other = ipv6With(v6.a, v6.r, [{ type: HOP_BY_HOP }], PROTO.udp, udpDatagram(40001, 53));
      expect(into(tooBig(v6.r, v6.a, other))).toMatchObject(drop('ICMP_TYPE'));
    });

    test('neighbour discovery behind headers is judged as neighbour discovery', () => {
      const solicitation = icmp(136, Buffer.concat([Buffer.alloc(4), Buffer.from(v6bytes(v6.b))]));
      const packet = ipv6With(v6.a, v6.host, [{ type: DESTINATION }], PROTO.icmpv6, solicitation);
      packet[7] = 255;
      expect(out(packet).reasons).toEqual(['INVALID_SOURCE_IP']);
    });
  });
});

/** A fragment header: the first of several. */
function later(extension: { type: number; body: Buffer }): Extension {
  extension.body[2] = 0;
  extension.body[1] = 1;
  return extension;
}

function v6bytes(address: string): number[] {
  const [head = '', tail = ''] = address.split('::');
  const words = (text: string) => (text === '' ? [] : text.split(':').map((word) => Number.parseInt(word, 16)));
  const [a, b] = [words(head), words(tail)];
  return [...a, ...new Array<number>(8 - a.length - b.length).fill(0), ...b].flatMap((word) => [word >> 8, word & 255]);
}
