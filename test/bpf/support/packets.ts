/** Builds packets byte by byte, good ones and bad ones. Says nothing about what should happen to them. */
import { addressWireBytes, isIpv4 } from '../../../src/model/address.ts';
import type { IpAddress } from '../../../src/model/ids.ts';

export const PROTO = { icmp: 1, tcp: 6, udp: 17, icmpv6: 58 } as const;
export const TCP = { fin: 0x01, syn: 0x02, rst: 0x04, ack: 0x10 } as const;

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
}

export const WORKLOAD_MAC = '02:00:00:00:00:0a';
const HOST_MAC = '02:00:00:00:00:01';

export function ethernet(payload: Buffer, options: EthernetOptions = {}): Buffer {
  const type = options.type ?? (payload[0]! >> 4 === 6 ? 0x86dd : 0x0800);
  return Buffer.concat([mac(HOST_MAC), mac(options.sourceMac ?? WORKLOAD_MAC), u16(type), payload]);
}

export interface IpOptions {
  readonly hopLimit?: number;
  /** IPv4: flags and offset field. */
  readonly fragment?: number;
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
