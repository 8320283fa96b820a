/** Builds packets byte by byte, good ones and bad ones. Says nothing about what should happen to them. */
import { addressWireBytes, isIpv4 } from '../../../src/model/address.ts';
import type { IpAddress } from '../../../src/model/ids.ts';

export const PROTO = { icmp: 1, igmp: 2, tcp: 6, udp: 17, icmpv6: 58, sctp: 132 } as const;
export const TCP = { fin: 0x01, syn: 0x02, rst: 0x04, psh: 0x08, ack: 0x10, urg: 0x20, ece: 0x40, cwr: 0x80 } as const;

export const ip = (text: string): IpAddress => text as IpAddress;

function u16(...values: number[]): Buffer {
  const out = Buffer.alloc(values.length * 2);
  values.forEach((value, i) => {
    out.writeUInt16BE(value, i * 2);
  });
  return out;
}

export function mac(text: string): Buffer {
  return Buffer.from(text.replaceAll(':', ''), 'hex');
}

export interface EthernetOptions {
  readonly sourceMac?: string;
  readonly type?: number;
  /** VLAN tags before the EtherType, the outermost first. */
  readonly tags?: readonly { readonly type: number; readonly vlan: number }[];
}

export const WORKLOAD_MAC = '02:00:00:00:00:0a';
const HOST_MAC = '02:00:00:00:00:01';

export function ethernet(payload: Buffer, options: EthernetOptions = {}): Buffer {
  const type = options.type ?? (payload[0]! >> 4 === 6 ? 0x86dd : 0x0800);
  const tags = (options.tags ?? []).map((tag) => u16(tag.type, tag.vlan));
  return Buffer.concat([mac(HOST_MAC), mac(options.sourceMac ?? WORKLOAD_MAC), ...tags, u16(type), payload]);
}

export interface IpOptions {
  readonly hopLimit?: number;
  /** IPv4: flags and offset field. */
  readonly fragment?: number;
  /** IPv4. */
  readonly id?: number;
  /** IPv4: option bytes, padded to 4. */
  readonly options?: Buffer;
  /** Instead of the true one. */
  readonly length?: number;
}

export function ipPacket(src: IpAddress, dst: IpAddress, proto: number, payload: Buffer, o: IpOptions = {}): Buffer {
  const addresses = Buffer.concat([addressWireBytes(src), addressWireBytes(dst)]);
  if (isIpv4(src)) {
    const options = o.options ?? Buffer.alloc(0);
    const words = 5 + options.length / 4;
    const head = Buffer.alloc(12);
    head[0] = 0x40 | words;
    head.writeUInt16BE(o.length ?? words * 4 + payload.length, 2);
    head.writeUInt16BE(o.id ?? 0, 4);
    head.writeUInt16BE(o.fragment ?? 0, 6);
    head[8] = o.hopLimit ?? 64;
    head[9] = proto;
    return Buffer.concat([head, addresses, options, payload]);
  }
  const head = Buffer.alloc(8);
  head[0] = 0x60;
  head.writeUInt16BE(o.length ?? payload.length, 4);
  head[6] = proto;
  head[7] = o.hopLimit ?? 64;
  return Buffer.concat([head, addresses, payload]);
}

export function tcpSegment(sport: number, dport: number, flags: number, payload = Buffer.alloc(16)): Buffer {
  const head = Buffer.alloc(20);
  head.writeUInt16BE(sport, 0);
  head.writeUInt16BE(dport, 2);
  head[12] = 5 << 4;
  head[13] = flags;
  return Buffer.concat([head, payload]);
}

// Payloads are long enough for BPF_PROG_TEST_RUN, which refuses IP packets shorter than a frame's and their own header.
export function udpDatagram(sport: number, dport: number, payload = Buffer.alloc(32, 'hello ')): Buffer {
  return Buffer.concat([u16(sport, dport, 8 + payload.length, 0), payload]);
}

export function icmp(type: number, rest: Buffer, code = 0): Buffer {
  return Buffer.concat([Buffer.from([type, code, 0, 0]), rest]);
}

export const icmpProto = (address: IpAddress): number => (isIpv4(address) ? PROTO.icmp : PROTO.icmpv6);

export function echoRequest(src: IpAddress, dst: IpAddress, id: number): Buffer {
  return ipPacket(src, dst, icmpProto(src), icmp(isIpv4(src) ? 8 : 128, u16(id, 1)));
}

export function echoReply(src: IpAddress, dst: IpAddress, id: number): Buffer {
  return ipPacket(src, dst, icmpProto(src), icmp(isIpv4(src) ? 0 : 129, u16(id, 1)));
}

/** "Too big" of either family, quoting the first bytes of a packet. */
export function tooBig(src: IpAddress, dst: IpAddress, quoted: Buffer): Buffer {
  const rest = Buffer.concat([u16(0, 1280), quoted.subarray(0, 128)]);
  return ipPacket(src, dst, icmpProto(src), isIpv4(src) ? icmp(3, rest, 4) : icmp(2, rest));
}

export const tcp = (src: IpAddress, dst: IpAddress, sport: number, dport: number, flags: number = TCP.syn): Buffer =>
  ipPacket(src, dst, PROTO.tcp, tcpSegment(sport, dport, flags));

export const udp = (src: IpAddress, dst: IpAddress, sport: number, dport: number): Buffer =>
  ipPacket(src, dst, PROTO.udp, udpDatagram(sport, dport));

export function arp(operation: number, senderMac: string, senderIp: IpAddress, targetIp: IpAddress): Buffer {
  return Buffer.concat([
    u16(1, 0x0800),
    Buffer.from([6, 4]),
    u16(operation),
    mac(senderMac),
    addressWireBytes(senderIp),
    Buffer.alloc(6),
    addressWireBytes(targetIp),
  ]);
}

/** A neighbour solicitation (135) or advertisement (136) for a target; router solicitation (133) without. */
export function neighbour(type: number, src: IpAddress, dst: IpAddress, target?: IpAddress, hopLimit = 255): Buffer {
  const rest = Buffer.concat([Buffer.alloc(4), target === undefined ? Buffer.alloc(0) : addressWireBytes(target)]);
  return ipPacket(src, dst, PROTO.icmpv6, icmp(type, rest), { hopLimit });
}

export interface FragmentOptions {
  readonly id?: number;
  /** More fragments follow. Default: unless these are the last bytes. */
  readonly more?: boolean;
}

/** Bytes `from` to `to` of what follows a packet's IP header, as a fragment. */
export function fragment(packet: Buffer, from: number, to: number, o: FragmentOptions = {}): Buffer {
  const v4 = packet[0]! >> 4 === 4;
  const headLength = v4 ? (packet[0]! & 0xf) * 4 : 40;
  const head = Buffer.from(packet.subarray(0, headLength));
  const whole = packet.subarray(headLength);
  const data = whole.subarray(from, to);
  const more = (o.more ?? to < whole.length) ? 1 : 0;
  const id = o.id ?? 0x1234;
  if (v4) {
    head.writeUInt16BE(headLength + data.length, 2);
    head.writeUInt16BE(id, 4);
    head.writeUInt16BE((more << 13) | (from >> 3), 6);
    return Buffer.concat([head, data]);
  }
  head.writeUInt16BE(8 + data.length, 4);
  const next = head[6]!;
  head[6] = 44;
  return Buffer.concat([head, Buffer.from([next, 0]), u16(from | more, id >>> 16, id & 0xffff), data]);
}

/** An IPv6 extension header of 8 bytes and what `body` has more than 6; `next` is filled in by `ipv6With`. */
export interface Extension {
  readonly type: number;
  readonly body?: Buffer;
}

/** An IPv6 packet with extension headers, the outermost first. */
export function ipv6With(
  src: IpAddress,
  dst: IpAddress,
  extensions: readonly Extension[],
  proto: number,
  payload: Buffer,
) {
  const headers = extensions.map((extension, i) => {
    const body = extension.body ?? Buffer.from([1, 4, 0, 0, 0, 0]); // PadN
    const next = extensions[i + 1]?.type ?? proto;
    return Buffer.concat([Buffer.from([next, (body.length - 6) / 8]), body]);
  });
  return ipPacket(src, dst, extensions[0]?.type ?? proto, Buffer.concat([...headers, payload]));
}

export const SCTP = {
  data: 0,
  init: 1,
  initAck: 2,
  sack: 3,
  heartbeat: 4,
  heartbeatAck: 5,
  abort: 6,
  shutdown: 7,
  shutdownAck: 8,
  error: 9,
  cookieEcho: 10,
  cookieAck: 11,
  shutdownComplete: 14,
  iData: 64,
} as const;

export interface SctpOptions {
  /** Verification tag. Default: 0 with INIT, else some. */
  readonly tag?: number;
  /** Of the first chunk, instead of the true one. */
  readonly length?: number;
  /** After the first chunk. */
  readonly more?: Buffer;
}

/** One SCTP packet whose first chunk has 28 bytes of value. */
export function sctp(src: IpAddress, dst: IpAddress, sport: number, dport: number, chunk: number, o: SctpOptions = {}) {
  const common = Buffer.alloc(12);
  common.writeUInt16BE(sport, 0);
  common.writeUInt16BE(dport, 2);
  common.writeUInt32BE(o.tag ?? (chunk === SCTP.init ? 0 : 0x01020304), 4);
  const value = Buffer.alloc(28, 1);
  const first = Buffer.concat([Buffer.from([chunk, 0]), u16(o.length ?? 4 + value.length), value]);
  return ipPacket(src, dst, PROTO.sctp, Buffer.concat([common, first, o.more ?? Buffer.alloc(0)]));
}
