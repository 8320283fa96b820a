/** Packets as a line of text, as the table writes them:
 *
 *     A>R tcp 40000>80 S              A, B here; R on node 7; N in the cluster's prefix, nobody's; H this host; M node 7
 *     R>A sctp 80>40000 init-ack      itself; W the world; any address in full
 *     R>A toobig [A>R udp 1>53]       an ICMP error and what it quotes
 *     A>R proto 17 frag=32 id=7       the middle of a datagram; `frag=0+` its first piece
 *     arp request A>H                 frame 0x88cc
 *
 * What follows as name=value changes one thing: see `Modifiers`. */
import { addressWireBytes, isIpv4, parseAddress } from '../../../src/model/address.ts';
import type { IpAddress } from '../../../src/model/ids.ts';
import { MARK_TUNNEL, MARK_UNDERLAY, stamped } from '../support/kernel.ts';
import { arp, mac, WORKLOAD_MAC } from '../support/packets.ts';
import { A, type Addresses, B } from '../support/world.ts';

interface Modifiers {
  /** What the packet comes with: tunnel, underlay, stamp:A, stamp:77, or a number. */
  mark?: string;
  /** Source MAC address. */
  mac?: string;
  /** EtherType instead of the true one. */
  type?: string;
  /** VLAN ids in front of the IP header, outer first; `s100` is a service tag (802.1ad). */
  vlan?: string;
  ttl?: string;
  /** Offset in bytes; with + more follow. */
  frag?: string;
  /** Of the datagram. */
  id?: string;
  /** IPv4 options: nop, rr, lsrr, ssrr, or hexadecimal. */
  opts?: string;
  /** IPv6 extension headers: hop, dst, route, route0, routeleft, ah, mobility, fragment, or NUMBER. */
  ext?: string;
  /** Likewise, behind the fragment header. */
  ext2?: string;
  /** Payload bytes behind the transport header. */
  size?: string;
  /** The IP header's claim: total length of IPv4, payload length of IPv6; +1 and -1 are relative to the truth. */
  length?: string;
  /** IPv4 header length in words; IP version. */
  ihl?: string;
  version?: string;
  /** TCP data offset in words; length of UDP or of the SCTP chunk; SCTP tag; ICMP code. */
  doff?: string;
  udplen?: string;
  chunklen?: string;
  tag?: string;
  code?: string;
  /** Only so many bytes of the frame are there. */
  cut?: string;
  /** Zeros behind the packet, as Ethernet pads. */
  pad?: string;
  /** One byte of the packet: AT:VALUE, counted from the IP header. */
  set?: string;
}

export interface TextPacket {
  /** From the Ethernet header on. */
  readonly frame: Buffer;
  /** Bare, for the hold and tunnel programs. */
  readonly bare: Buffer;
  readonly mark: number;
}

export function packetOf(text: string, family: Addresses): TextPacket {
  const { words, modifiers: m } = tokens(text);
  if (words[0] === 'frame') {
    const frame = ethernet(Buffer.alloc(Number(m.size ?? 64)), Number(words[1]), m);
    return { frame, bare: frame, mark: markOf(m.mark) };
  }
  if (words[0] === 'arp') {
    const [from, to] = pair(words[2]!, family);
    const operation = words[1] === 'request' ? 1 : words[1] === 'reply' ? 2 : Number(words[1]);
    const body = arp(operation, m.mac ?? WORKLOAD_MAC, from, to);
    for (const change of m.set?.split(',') ?? []) setByte(body, change);
    const frame = cut(ethernet(body, 0x0806, m), m);
    return { frame, bare: body, mark: markOf(m.mark) };
  }
  const [source, destination] = pair(words[0]!, family);
  const ip = ipPacket(source, destination, words.slice(1), m, family);
  const bare = Buffer.concat([ip, Buffer.alloc(Number(m.pad ?? 0))]);
  const frame = cut(ethernet(bare, isIpv4(source) ? 0x0800 : 0x86dd, m), m);
  return { frame, bare: cut(bare, m), mark: markOf(m.mark) };
}

const cut = (bytes: Buffer, m: Modifiers): Buffer => (m.cut === undefined ? bytes : bytes.subarray(0, Number(m.cut)));

/** Words, then name=value; what stands in brackets is one word. */
function tokens(text: string): { words: string[]; modifiers: Modifiers } {
  const words: string[] = [];
  const modifiers: Record<string, string> = {};
  for (const token of text.match(/\[.*\]|\S+/g) ?? []) {
    const [, name, value] = /^([a-z0-9]+)=(.+)$/.exec(token) ?? [];
    if (name === undefined) words.push(token);
    else modifiers[name] = value!;
  }
  return { words, modifiers };
}

export function addressOf(name: string, family: Addresses): IpAddress {
  const named: Record<string, IpAddress> = {
    A: family.a,
    B: family.b,
    R: family.r,
    N: family.nobody,
    H: family.host,
    M: family.remoteNode,
    W: family.world,
  };
  const address = named[name] ?? parseAddress(name);
  if (address === undefined) throw new Error(`${name} is no address`);
  return address;
}

function pair(text: string, family: Addresses): [IpAddress, IpAddress] {
  const [from, to] = text.split('>');
  return [addressOf(from!, family), addressOf(to!, family)];
}

function markOf(text: string | undefined): number {
  if (text === undefined) return 0;
  if (text === 'tunnel') return MARK_TUNNEL;
  if (text === 'underlay') return MARK_UNDERLAY;
  if (!text.startsWith('stamp:')) return Number(text) >>> 0;
  const who = text.slice('stamp:'.length);
  return stamped(who === 'A' ? A.endpoint : who === 'B' ? B.endpoint : Number(who));
}

function ethernet(payload: Buffer, type: number, m: Modifiers): Buffer {
  const tags = (m.vlan?.split(',') ?? []).map((tag) => ({
    type: tag.startsWith('s') ? 0x88a8 : 0x8100,
    id: Number(tag.replace('s', '')),
  }));
  const types = [...tags.map((t) => t.type), m.type === undefined ? type : Number(m.type)];
  const inner = tags.map((t, i) => u16(t.id, types[i + 1]!));
  return Buffer.concat([mac('02:00:00:00:00:01'), mac(m.mac ?? WORKLOAD_MAC), u16(types[0]!), ...inner, payload]);
}

export function u16(...values: number[]): Buffer {
  const out = Buffer.alloc(values.length * 2);
  values.forEach((value, i) => {
    out.writeUInt16BE(value & 0xffff, i * 2);
  });
  return out;
}

// ---- IP ------------------------------------------------------------------------------------------------------------

function ipPacket(source: IpAddress, destination: IpAddress, words: string[], m: Modifiers, family: Addresses): Buffer {
  const v4 = isIpv4(source);
  const { protocol, bytes, ttl } = transport(v4, words, m, family);
  const packet = v4
    ? ipv4(source, destination, protocol, bytes, m, m.ttl ?? ttl)
    : ipv6(source, destination, protocol, bytes, m, m.ttl ?? ttl);
  if (m.version !== undefined) packet[0] = (Number(m.version) << 4) | (packet[0]! & 15);
  for (const change of m.set?.split(',') ?? []) setByte(packet, change);
  return packet;
}

function setByte(bytes: Buffer, change: string): void {
  const [at, value] = change.split(':');
  bytes[Number(at)] = Number(value);
}

function claim(truth: number, text: string | undefined): number {
  if (text === undefined) return truth;
  return /^[+-]/.test(text) ? truth + Number(text) : Number(text);
}

function fragmentOf(m: Modifiers): { offset: number; more: boolean } | undefined {
  if (m.frag === undefined) return undefined;
  return { offset: Number.parseInt(m.frag, 10), more: m.frag.endsWith('+') };
}

const OPTIONS: Readonly<Record<string, string>> = {
  nop: '01010100',
  rr: '07070400000000' + '00',
  lsrr: '8307040a000001' + '00',
  ssrr: '8907040a000001' + '00',
  // The source route stands behind others.
  late: '0101010101018307040a00000100000000',
};

function ipv4(
  source: IpAddress,
  destination: IpAddress,
  protocol: number,
  payload: Buffer,
  m: Modifiers,
  ttl: string | undefined,
): Buffer {
  const options = Buffer.from(m.opts === undefined ? '' : (OPTIONS[m.opts] ?? m.opts), 'hex');
  const padded = Buffer.concat([options, Buffer.alloc((4 - (options.length % 4)) % 4)]);
  const head = Buffer.alloc(12);
  head[0] = 0x40 | (m.ihl === undefined ? 5 + padded.length / 4 : Number(m.ihl));
  head.writeUInt16BE(claim(20 + padded.length + payload.length, m.length), 2);
  head.writeUInt16BE(Number(m.id ?? 0), 4);
  const fragment = fragmentOf(m);
  if (fragment !== undefined) head.writeUInt16BE((fragment.offset / 8) | (fragment.more ? 0x2000 : 0), 6);
  head[8] = Number(ttl ?? 64);
  head[9] = protocol;
  return Buffer.concat([head, addressWireBytes(source), addressWireBytes(destination), padded, payload]);
}

/** [header number, bytes behind "next header"] */
const EXTENSIONS: Readonly<Record<string, [number, string]>> = {
  hop: [0, '00010400000000'],
  hoplong: [0, '01010c000000000000000000000000'],
  hoppast: [0, 'ff010400000000'],
  dst: [60, '00010400000000'],
  route: [43, '00040000000000'],
  route0: [43, '00000000000000'],
  routeleft: [43, '00040100000000'],
  ah: [51, '0400000000000000000000000000000000000000000000'],
  mobility: [135, '00000000000000'],
  hip: [139, '00000000000000'],
  fragment: [44, '00000000000063'],
};

function ipv6(
  source: IpAddress,
  destination: IpAddress,
  protocol: number,
  payload: Buffer,
  m: Modifiers,
  ttl: string | undefined,
): Buffer {
  const named = (list: string | undefined) =>
    list?.split(',').map((name) => EXTENSIONS[name] ?? [Number(name), '']) ?? [];
  const fragment = fragmentOf(m);
  const chain = [...(named(m.ext) as [number, string][])];
  if (fragment !== undefined) {
    const id = Number(m.id ?? 0)
      .toString(16)
      .padStart(8, '0');
    chain.push([44, `00${u16(fragment.offset | (fragment.more ? 1 : 0)).toString('hex')}${id}`]);
  }
  chain.push(...(named(m.ext2) as [number, string][]));
  const headers = chain.map(([, rest], i) =>
    Buffer.concat([Buffer.from([chain[i + 1]?.[0] ?? protocol]), Buffer.from(rest, 'hex')]),
  );
  const body = Buffer.concat([...headers, payload]);
  const head = Buffer.alloc(8);
  head[0] = 0x60;
  head.writeUInt16BE(claim(body.length, m.length), 4);
  head[6] = chain[0]?.[0] ?? protocol;
  head[7] = Number(ttl ?? 64);
  return Buffer.concat([head, addressWireBytes(source), addressWireBytes(destination), body]);
}

// ---- what IP carries -----------------------------------------------------------------------------------------------

interface Transport {
  readonly protocol: number;
  readonly bytes: Buffer;
  readonly ttl?: string;
}

const FLAGS: Readonly<Record<string, number>> = { F: 1, S: 2, R: 4, P: 8, A: 16, U: 32, E: 64, C: 128, '-': 0 };

export const CHUNKS: Readonly<Record<string, number>> = {
  data: 0,
  init: 1,
  'init-ack': 2,
  sack: 3,
  heartbeat: 4,
  'heartbeat-ack': 5,
  abort: 6,
  shutdown: 7,
  'shutdown-ack': 8,
  error: 9,
  'cookie-echo': 10,
  'cookie-ack': 11,
  'shutdown-complete': 14,
  'i-data': 64,
};

function transport(v4: boolean, words: string[], m: Modifiers, family: Addresses): Transport {
  const [kind, first, second] = words;
  const size = (usual: number) => Buffer.alloc(Number(m.size ?? usual), 0x61);
  const ports = () => u16(...first!.split('>').map(Number));
  const icmp = (type: number, rest: Buffer, ttl?: string): Transport => ({
    protocol: v4 ? 1 : 58,
    bytes: Buffer.concat([Buffer.from([type, Number(m.code ?? 0), 0, 0]), rest]),
    ...(ttl === undefined ? {} : { ttl }),
  });
  const quoting = (type: number): Transport => {
    const quoted = packetOf(first!.slice(1, -1), family).bare;
    return icmp(type, Buffer.concat([u16(0, 1280), quoted.subarray(0, Number(m.size ?? 128))]));
  };
  const target = () => Buffer.concat([Buffer.alloc(4), addressWireBytes(addressOf(first!, family))]);
  switch (kind) {
    case 'tcp': {
      const flags = [...second!].reduce((all, letter) => all | FLAGS[letter]!, 0);
      const words = Number(m.doff ?? 5);
      const head = Buffer.concat([ports(), Buffer.alloc(8), Buffer.from([words << 4, flags]), Buffer.alloc(6)]);
      return { protocol: 6, bytes: Buffer.concat([head, size(16)]) };
    }
    case 'udp': {
      const payload = size(32);
      return { protocol: 17, bytes: Buffer.concat([ports(), u16(claim(8 + payload.length, m.udplen), 0), payload]) };
    }
    case 'sctp': {
      const type = CHUNKS[second!] ?? Number(second);
      const tag = Number(m.tag ?? (type === 1 ? 0 : 1));
      const payload = size(16);
      const chunk = Buffer.concat([Buffer.from([type, 0]), u16(claim(4 + payload.length, m.chunklen)), payload]);
      return { protocol: 132, bytes: Buffer.concat([ports(), u16(tag >>> 16, tag), Buffer.alloc(4), chunk]) };
    }
    case 'echo':
      return icmp(v4 ? 8 : 128, Buffer.concat([u16(Number(first), 1), size(16)]));
    case 'echo-reply':
      return icmp(v4 ? 0 : 129, Buffer.concat([u16(Number(first), 1), size(16)]));
    case 'icmp':
      return icmp(Number(first), size(20));
    case 'toobig':
      return v4 ? { ...quoting(3) } : quoting(2);
    case 'unreachable':
      return quoting(v4 ? 3 : 1);
    case 'time-exceeded':
      return quoting(v4 ? 11 : 3);
    case 'rs':
      return icmp(133, size(8), '255');
    case 'ra':
      return icmp(134, size(12), '255');
    case 'ns':
      return icmp(135, target(), '255');
    case 'na':
      return icmp(136, target(), '255');
    case 'proto':
      return { protocol: Number(first), bytes: size(32) };
    default:
      throw new Error(`no packet is called ${kind}`);
  }
}
