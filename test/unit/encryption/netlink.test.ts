import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  attribute,
  cString,
  decodeAttributeList,
  decodeAttributes,
  decodeMessages,
  encodeMessage,
  nested,
  u16,
  u32,
} from '../../../src/base/netlink.ts';
import {
  decodeLink,
  encodeAddAddress,
  encodeAddRoute,
  encodeCreateLink,
  encodeDeleteLink,
  encodeGetLink,
  encodeSetUp,
  Links,
} from '../../../src/encryption/rtnetlink.ts';
import {
  decodeDevice,
  decodeFamilyId,
  encodeGetDevice,
  encodeGetFamily,
  encodeSetDevice,
} from '../../../src/encryption/wireguard-netlink.ts';
import { parseAddress } from '../../../src/model/address.ts';

const ip = (text: string) => parseAddress(text)!;
const hex = (bytes: Buffer) => bytes.toString('hex');
/** Written out by hand from the kernel's headers: spaces and comments are for the reader. */
const bytes = (text: string) => text.replace(/\/\/.*$/gm, '').replace(/\s/g, '');

describe('rtnetlink messages, byte for byte', () => {
  test('a WireGuard device is created, exclusively', () => {
    expect(hex(encodeCreateLink('cs-wg0', 'wireguard'))).toBe(
      bytes(`
        40000000 1000 0506 01000000 00000000   // 64 bytes, RTM_NEWLINK, REQUEST|ACK|EXCL|CREATE, seq 1
        00000000 00000000 00000000 00000000   // ifinfomsg
        0b00 0300 63732d77673000 00            // IFLA_IFNAME "cs-wg0"
        1400 1280                              // IFLA_LINKINFO, nested
        0d00 0100 776972656775617264 000000    // IFLA_INFO_KIND "wireguard"
      `),
    );
  });

  test('a device goes up with its MTU and without an IPv6 link-local address', () => {
    expect(hex(encodeSetUp(7, 1400))).toBe(
      bytes(`
        38000000 1000 0500 01000000 00000000
        00000000 07000000 01000000 01000000   // index 7, IFF_UP, change IFF_UP
        0800 0400 78050000                    // IFLA_MTU 1400
        1000 1a80 0c00 0a80 0500 0800 01000000 // IFLA_AF_SPEC { AF_INET6 { ADDR_GEN_MODE none } }
      `),
    );
  });

  test('a device is removed', () => {
    expect(hex(encodeDeleteLink(7))).toBe(
      bytes('20000000 1100 0500 01000000 00000000  00000000 07000000 00000000 00000000'),
    );
  });

  test('an IPv4 host route leads through the device', () => {
    expect(hex(encodeAddRoute(7, ip('10.0.1.2')))).toBe(
      bytes(`
        34000000 1800 0505 01000000 00000000  // RTM_NEWROUTE, REQUEST|ACK|REPLACE|CREATE
        02 20 00 00 fe c5 fd 01 00000000      // AF_INET /32, main table, our protocol, link scope, unicast
        0800 0100 0a000102                    // RTA_DST
        0800 0400 07000000                    // RTA_OIF
        0800 0600 00100000                    // RTA_PRIORITY 4096
      `),
    );
  });

  test('an IPv6 address is added without duplicate address detection', () => {
    expect(hex(encodeAddAddress(7, ip('fd00::1'), 64))).toBe(
      bytes(`
        48000000 1400 0505 01000000 00000000
        0a 40 00 00 07000000                  // AF_INET6 /64, index 7
        1400 0200 fd000000000000000000000000000001
        1400 0100 fd000000000000000000000000000001
        0800 0800 02000000                    // IFA_F_NODAD
      `),
    );
  });

  test('the answer for a link is read', () => {
    const info = nested(18, attribute(1, cString('wireguard')));
    const header = Buffer.alloc(16);
    header.writeInt32LE(9, 4);
    header.writeUInt32LE(1, 8);
    const answer = encodeMessage(16, 0, header, attribute(3, cString('cs-wg0')), attribute(4, u32(1400)), info);
    expect(decodeLink(answer)).toEqual({ ifindex: 9, name: 'cs-wg0', mtu: 1400, up: true, kind: 'wireguard' });
    expect(hex(encodeGetLink('lo'))).toBe(
      bytes('28000000 1200 0100 01000000 00000000  00000000 00000000 00000000 00000000  0700 0300 6c6f00 00'),
    );
  });

  test('what is gone already is no error, and anything else is', () => {
    const failing = (code: string) =>
      new Links(() => {
        throw Object.assign(new Error(code), { code });
      });
    expect(failing('ENODEV').delete(7)).toBe(false);
    expect(failing('ESRCH').deleteRoute(7, ip('10.0.0.1'))).toBe(false);
    expect(failing('ENODEV').get('x')).toBeUndefined();
    expect(() => failing('EPERM').delete(7)).toThrow('EPERM');
  });
});

describe('WireGuard generic netlink messages, byte for byte', () => {
  const FAMILY = 0x1c;
  const key = (n: number) => Buffer.alloc(32, n);

  test('the family is asked for by name, and its number read', () => {
    expect(hex(encodeGetFamily('wireguard'))).toBe(
      bytes(`
        24000000 1000 0100 01000000 00000000  // GENL_ID_CTRL, REQUEST
        03 01 0000                            // CTRL_CMD_GETFAMILY, version 1
        0e00 0200 77697265677561726400 0000   // CTRL_ATTR_FAMILY_NAME
      `),
    );
    expect(decodeFamilyId(encodeMessage(0x10, 0, Buffer.of(1, 2, 0, 0), attribute(1, u16(FAMILY))))).toBe(FAMILY);
  });

  test("the device's own settings go in one message", () => {
    const [message, ...rest] = encodeSetDevice(FAMILY, 7, {
      privateKey: key(0xaa),
      listenPort: 51871,
      fwmark: 0x10000,
    });
    expect(rest).toEqual([]);
    expect(hex(message!)).toBe(
      bytes(`
        50000000 1c00 0500 01000000 00000000  // REQUEST|ACK
        01 01 0000                            // WG_CMD_SET_DEVICE, version 1
        0800 0100 07000000                    // WGDEVICE_A_IFINDEX
        2400 0300 ${'aa'.repeat(32)}          // WGDEVICE_A_PRIVATE_KEY
        0600 0600 9fca 0000                   // WGDEVICE_A_LISTEN_PORT 51871
        0800 0700 00000100                    // WGDEVICE_A_FWMARK
      `),
    );
  });

  test('a peer with its preshared key, endpoint, keepalive and allowed IPs', () => {
    const [message] = encodeSetDevice(FAMILY, 7, {
      peers: [
        {
          publicKey: key(0xbb),
          presharedKey: key(0xcc),
          endpoint: { address: ip('192.0.2.1'), port: 51871 },
          keepalive: 25,
          addresses: [ip('10.0.1.2'), ip('fd00::2')],
        },
      ],
    });
    expect(hex(message!)).toBe(
      bytes(`
        d0000000 1c00 0500 01000000 00000000
        01 01 0000
        0800 0100 07000000
        b400 0880                             // WGDEVICE_A_PEERS, nested
        b000 0080                             // one peer, nested
        2400 0100 ${'bb'.repeat(32)}          // WGPEER_A_PUBLIC_KEY
        2400 0200 ${'cc'.repeat(32)}          // WGPEER_A_PRESHARED_KEY
        1400 0400 0200 ca9f c0000201 0000000000000000  // WGPEER_A_ENDPOINT, sockaddr_in
        0600 0500 1900 0000                   // WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL 25
        4800 0980                             // WGPEER_A_ALLOWEDIPS, nested
        1c00 0080 0600 0100 0200 0000 0800 0200 0a000102 0500 0300 20 000000
        2800 0080 0600 0100 0a00 0000 1400 0200 fd000000000000000000000000000002 0500 0300 80 000000
      `),
    );
    expect(message!.length).toBe(message!.readUInt32LE(0));
  });

  test('a removed peer is named with nothing but the flag, in its own message and in order', () => {
    const messages = encodeSetDevice(FAMILY, 7, {
      peers: [
        { publicKey: key(1), remove: true },
        { publicKey: key(1), presharedKey: key(2) },
      ],
    });
    expect(messages).toHaveLength(2);
    expect(hex(messages[0]!)).toContain(`24000100${'01'.repeat(32)}0800030001000000`);
    expect(hex(messages[1]!)).not.toContain('08000300');
  });

  test('many allowed IPs are spread over messages', () => {
    const addresses = Array.from({ length: 2500 }, (_, i) => ip(`fd00::${(i + 1).toString(16)}`));
    const messages = encodeSetDevice(FAMILY, 7, { peers: [{ publicKey: key(1), presharedKey: key(2), addresses }] });
    expect(messages).toHaveLength(3);
    const answer = Buffer.concat(messages);
    expect(decodeDevice(FAMILY, answer).peers).toMatchObject([{ publicKey: key(1), addresses }]);
  });

  test('a dump is read over all its messages, without its secrets', () => {
    const timespec = Buffer.alloc(16);
    timespec.writeBigInt64LE(1_763_702_740n);
    const peer = (...more: Buffer[]) => nested(0, attribute(1, key(5)), attribute(2, key(6)), ...more);
    const allowed = (address: string) =>
      nested(
        9,
        nested(
          0,
          attribute(1, u16(2)),
          attribute(2, Buffer.from(address.split('.').map(Number))),
          attribute(3, Buffer.of(32)),
        ),
      );
    const rx = Buffer.alloc(8);
    rx.writeBigUInt64LE(77n);
    const message = (...parts: Buffer[]) => encodeMessage(FAMILY, 2, Buffer.of(0, 1, 0, 0), ...parts);
    const endpoint = Buffer.from('0a00ca9f00000000fd00000000000000000000000000000100000000', 'hex');
    const answer = Buffer.concat([
      message(
        attribute(3, key(9)),
        attribute(4, key(4)),
        attribute(6, u16(51871)),
        nested(8, peer(attribute(4, endpoint), attribute(6, timespec), attribute(7, rx), allowed('10.0.0.1'))),
      ),
      message(nested(8, peer(allowed('10.0.0.2')))),
      encodeMessage(3, 2, Buffer.alloc(4)),
    ]);
    expect(decodeDevice(FAMILY, answer)).toEqual({
      publicKey: key(4),
      listenPort: 51871,
      peers: [
        {
          publicKey: key(5),
          endpoint: '[fd00::1]:51871',
          addresses: ['10.0.0.1', '10.0.0.2'],
          lastHandshake: 1_763_702_740,
          rxBytes: 77n,
          txBytes: 0n,
        },
      ],
    });
    expect(hex(encodeGetDevice(FAMILY, 7))).toBe(
      bytes('1c000000 1c00 0503 01000000 00000000  00 01 0000  0800 0100 07000000'),
    );
  });
});

describe('untrusted bytes', () => {
  const arbitrary = fc.uint8Array({ maxLength: 200 }).map((a) => Buffer.from(a));
  test.each([
    ['messages', decodeMessages],
    ['attributes', decodeAttributes],
    ['attribute lists', decodeAttributeList],
    ['links', decodeLink],
    ['devices', (b: Buffer) => decodeDevice(1, b)],
  ])('%s: read or refused with a RangeError', (_, decode: (b: Buffer) => unknown) => {
    fc.assert(
      fc.property(arbitrary, (input) => {
        try {
          decode(input);
        } catch (error) {
          expect(error).toBeInstanceOf(RangeError);
        }
      }),
    );
  });

  test('attributes round-trip in order', () => {
    fc.assert(
      fc.property(fc.array(fc.tuple(fc.integer({ min: 0, max: 0x3fff }), arbitrary)), (list) => {
        const decoded = decodeAttributeList(Buffer.concat(list.map(([type, payload]) => attribute(type, payload))));
        expect(decoded.map((a) => [a.type, Buffer.from(a.payload)])).toEqual(list);
      }),
    );
  });
});
