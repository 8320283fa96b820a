/** What a packet says of itself, read byte by byte and believed only as far as its lengths cover. */
import type { Address, Reason } from './state.ts';

export const ETHERTYPE = { ipv4: 0x0800, arp: 0x0806, vlan: 0x8100, vlanService: 0x88a8, ipv6: 0x86dd } as const;
export const PROTOCOL = {
  hopByHop: 0,
  icmp: 1,
  igmp: 2,
  tcp: 6,
  udp: 17,
  routing: 43,
  fragment: 44,
  icmpv6: 58,
  sctp: 132,
} as const;
const DESTINATION_OPTIONS = 60;
const WALKED: readonly number[] = [PROTOCOL.hopByHop, PROTOCOL.routing, PROTOCOL.fragment, DESTINATION_OPTIONS];
/** AH, mobility, HIP, Shim6: extension headers (RFC 8200 and later) that are not walked. */
const OTHER_EXTENSIONS = [51, 135, 139, 140];
/** So many extension headers are walked. */
const MAX_EXTENSIONS = 8;

export type Role =
  /** Begins a flow, is never a reply: TCP SYN, SCTP INIT, an echo request. */
  | 'opens'
  /** Never begins a flow: SYN-ACK, RST, INIT-ACK, an echo reply. */
  | 'answers'
  /** An ICMP error: belongs to the flow it quotes. */
  | 'error'
  /** RFC 4861. */
  | 'neighbour'
  /** IGMP, MLD: what a host says to its multicast router, which a workload's node is not. */
  | 'membership'
  /** All else: part of a flow, or its beginning. */
  | 'plain';

export interface Fragment {
  readonly id: number;
  /** In bytes. */
  readonly offset: number;
  readonly more: boolean;
  /** Its part of the datagram. */
  readonly data: Buffer;
}

export interface Packet {
  readonly version: 4 | 6;
  readonly source: Address;
  readonly destination: Address;
  readonly hopLimit: number;
  readonly protocol: number;
  /** ICMP echo: the identifier on the side that asks, the type of the request on the side that answers. */
  readonly sourcePort: number;
  readonly destinationPort: number;
  readonly role: Role;
  readonly icmpType?: number;
  readonly tcpFlags?: number;
  /** Of the transport header, TCP's with its options, SCTP's with that of the first chunk. */
  readonly headerLength: number;
  /** Of the first chunk. */
  readonly sctpChunk?: number;
  /** From the transport header on, no more than the IP header covers. */
  readonly payload: Buffer;
  readonly fragment?: Fragment;
  /** The addresses are good; this is why the rest is not. */
  readonly refusal?: Reason;
}

/** Not even the addresses are known. */
export interface Unreadable {
  readonly unreadable: Reason;
}

const unreadable = (reason: Reason): Unreadable => ({ unreadable: reason });

export function readIp(etherType: number, bytes: Buffer): Packet | Unreadable {
  if (etherType === ETHERTYPE.ipv4) return readIpv4(bytes);
  if (etherType === ETHERTYPE.ipv6) return readIpv6(bytes);
  if (etherType === ETHERTYPE.vlan || etherType === ETHERTYPE.vlanService) return unreadable('VLAN');
  return unreadable('UNKNOWN_L3');
}

const MAPPED = `${'00'.repeat(10)}ffff`;
const isMapped = (address: Address) => address.startsWith(MAPPED);

/** RFC 791, section 3.1. */
function readIpv4(bytes: Buffer): Packet | Unreadable {
  if (bytes.length < 20 || bytes[0]! >> 4 !== 4) return unreadable('INVALID_PACKET');
  const header = (bytes[0]! & 15) * 4;
  const total = bytes.readUInt16BE(2);
  if (header < 20 || total < header || total > bytes.length) return unreadable('INVALID_PACKET');
  const flagsAndOffset = bytes.readUInt16BE(6);
  const payload = bytes.subarray(header, total);
  const fragment: Fragment = {
    id: bytes.readUInt16BE(4),
    offset: (flagsAndOffset & 0x1fff) * 8,
    more: (flagsAndOffset & 0x2000) !== 0,
    data: payload,
  };
  const base: Packet = {
    version: 4,
    source: MAPPED + bytes.toString('hex', 12, 16),
    destination: MAPPED + bytes.toString('hex', 16, 20),
    hopLimit: bytes[8]!,
    protocol: bytes[9]!,
    sourcePort: 0,
    destinationPort: 0,
    role: 'plain',
    headerLength: 0,
    payload,
    ...(fragment.offset > 0 || fragment.more ? { fragment } : {}),
  };
  const refusal = refusalOfFragment(base) ?? refusalOfOptions(bytes.subarray(20, header));
  return refusal === undefined ? readTransport(base) : { ...base, refusal };
}

/** RFC 791, RFC 8200: all but the last are multiples of 8 bytes, and the whole is no longer than a packet can be. */
function refusalOfFragment({ fragment, protocol, version }: Packet): Reason | undefined {
  if (fragment === undefined) return undefined;
  const { offset, more, data } = fragment;
  if (data.length === 0 || (more && data.length % 8 !== 0) || offset + data.length > 65535) return 'INVALID_PACKET';
  // It would overwrite the header of whatever came first. In IPv6 only the first one says which protocol it is.
  const least = version === 4 ? (leastHeader(protocol, version) ?? 8) : 8;
  return offset > 0 && offset < least ? 'FRAGMENT_OVERLAP' : undefined;
}

/** Loose and strict source routes lead a packet past the address that was judged. */
function refusalOfOptions(options: Buffer): Reason | undefined {
  for (let at = 0; at < options.length; ) {
    const type = options[at]!;
    if (type === 0) return undefined; // end of the list
    if (type === 1) {
      at += 1;
      continue;
    }
    const length = options[at + 1];
    if (length === undefined || length < 2 || at + length > options.length) return 'INVALID_PACKET';
    if (type === 131 || type === 137) return 'IP_OPTIONS';
    at += length;
  }
  return undefined;
}

/** RFC 8200, sections 3 and 4. */
function readIpv6(bytes: Buffer): Packet | Unreadable {
  if (bytes.length < 40 || bytes[0]! >> 4 !== 6) return unreadable('INVALID_PACKET');
  const length = bytes.readUInt16BE(4);
  if (length > bytes.length - 40) return unreadable('INVALID_PACKET');
  const source = bytes.toString('hex', 8, 24);
  const destination = bytes.toString('hex', 24, 40);
  // On the wire a mapped address is nobody's; here it would pass for an IPv4 address.
  if (isMapped(source) || isMapped(destination)) return unreadable('UNKNOWN_L3');
  const chain = walkExtensions(bytes[6]!, bytes.subarray(40, 40 + length));
  const base: Packet = {
    version: 6,
    source,
    destination,
    hopLimit: bytes[7]!,
    protocol: chain.protocol,
    sourcePort: 0,
    destinationPort: 0,
    role: 'plain',
    headerLength: 0,
    payload: chain.rest,
    ...(chain.fragment === undefined ? {} : { fragment: chain.fragment }),
  };
  const refusal = chain.refusal ?? refusalOfFragment(base);
  return refusal === undefined ? readTransport(base) : { ...base, refusal };
}

export interface Chain {
  /** Of the transport, or of whatever could not be walked. */
  readonly protocol: number;
  /** From that header on. */
  readonly rest: Buffer;
  readonly fragment?: Fragment;
  readonly refusal?: Reason;
}

/** From the first header behind IPv6's own to the transport, or into the middle of a fragment that is not the first. */
export function walkExtensions(first: number, bytes: Buffer): Chain {
  let protocol = first;
  let rest = bytes;
  let fragment: Fragment | undefined;
  let fragmentHeaders = 0;
  const chain = (): Chain => ({ protocol, rest, ...(fragment === undefined ? {} : { fragment }) });
  const refused = (refusal: Reason): Chain => ({ ...chain(), refusal });
  for (let walked = 0; ; walked++) {
    if (!WALKED.includes(protocol) && !OTHER_EXTENSIONS.includes(protocol)) return chain();
    if (walked === MAX_EXTENSIONS) return refused('IPV6_EXTENSION');
    if (rest.length < 8) return refused('INVALID_PACKET');
    if (OTHER_EXTENSIONS.includes(protocol)) return refused('IPV6_EXTENSION');
    // Section 4.1: only right behind the IPv6 header.
    if (protocol === PROTOCOL.hopByHop && walked > 0) return refused('IPV6_EXTENSION');
    if (protocol === PROTOCOL.fragment) {
      fragmentHeaders += 1;
      if (fragmentHeaders > 1) return refused('IPV6_EXTENSION');
      const field = rest.readUInt16BE(2);
      const data = rest.subarray(8);
      const found = { id: rest.readUInt32BE(4), offset: field & 0xfff8, more: (field & 1) !== 0, data };
      protocol = rest[0]!;
      rest = data;
      // Offset 0 and nothing more: a whole packet (RFC 6946).
      if (found.offset > 0 || found.more) fragment = found;
      // What follows a later fragment's header is the middle of something.
      if (found.offset > 0) return chain();
      continue;
    }
    // Segments left: the packet is not for the address that was judged. Type 0 is deprecated (RFC 5095).
    if (protocol === PROTOCOL.routing && (rest[3] !== 0 || rest[2] === 0)) return refused('IP_OPTIONS');
    const size = 8 + rest[1]! * 8;
    if (size > rest.length) return refused('INVALID_PACKET');
    protocol = rest[0]!;
    rest = rest.subarray(size);
  }
}

function readTransport(packet: Packet): Packet {
  const { protocol, payload, fragment, version } = packet;
  const refused = (refusal: Reason): Packet => ({ ...packet, refusal });
  // The middle of a datagram: whose flow it is, the first fragment said.
  if (fragment !== undefined && fragment.offset > 0) return packet;
  if (protocol === PROTOCOL.igmp && version === 4) return { ...packet, role: 'membership', refusal: 'MEMBERSHIP' };
  const least = leastHeader(protocol, version);
  if (least === undefined) return refused('UNKNOWN_L4');
  const short = fragment === undefined ? 'INVALID_PACKET' : 'FRAGMENT';
  if (payload.length < least) return refused(short);
  packet = { ...packet, headerLength: least };
  const ports = { sourcePort: payload.readUInt16BE(0), destinationPort: payload.readUInt16BE(2) };
  switch (protocol) {
    case PROTOCOL.tcp: {
      const header = (payload[12]! >> 4) * 4;
      if (header < 20) return refused('INVALID_PACKET');
      if (header > payload.length) return refused(short);
      const tcpFlags = payload[13]!;
      const role = roleOfTcp(tcpFlags);
      if (role === undefined) return { ...refused('TCP_FLAGS'), ...ports };
      return { ...packet, ...ports, tcpFlags, role, headerLength: header };
    }
    case PROTOCOL.udp: {
      const length = payload.readUInt16BE(4);
      if (length < 8 || (fragment === undefined && length > payload.length)) return refused('INVALID_PACKET');
      return { ...packet, ...ports };
    }
    case PROTOCOL.sctp:
      return sctpIsSound(payload, fragment !== undefined)
        ? { ...packet, ...ports, sctpChunk: payload[12]!, role: roleOfSctp(payload[12]!) }
        : { ...refused('SCTP_CHUNK'), ...ports };
    default:
      return readIcmp(packet);
  }
}

/** Bytes that a header has at least, SCTP's with that of its first chunk; undefined: not understood. Each family has its own
 *  ICMP. */
function leastHeader(protocol: number, version: 4 | 6): number | undefined {
  switch (protocol) {
    case PROTOCOL.tcp:
      return 20;
    case PROTOCOL.udp:
      return 8;
    case PROTOCOL.sctp:
      return 16;
    case PROTOCOL.icmp:
      return version === 4 ? 8 : undefined;
    case PROTOCOL.icmpv6:
      return version === 6 ? 8 : undefined;
    default:
      return undefined;
  }
}

export const TCP = { fin: 1, syn: 2, rst: 4, psh: 8, ack: 16, urg: 32 } as const;

/** RFC 9293 knows these combinations; PSH, ECE and CWR go with any. undefined: no stack sends it. */
function roleOfTcp(flags: number): Role | undefined {
  switch (flags & (TCP.fin | TCP.syn | TCP.rst | TCP.ack | TCP.urg)) {
    case TCP.syn:
    case TCP.syn | TCP.urg:
      return 'opens';
    case TCP.syn | TCP.ack:
    case TCP.rst:
    case TCP.rst | TCP.ack:
      return 'answers';
    case TCP.ack:
    case TCP.ack | TCP.urg:
    case TCP.fin | TCP.ack:
    case TCP.fin | TCP.ack | TCP.urg:
      return 'plain';
    default:
      return undefined;
  }
}

/** RFC 9260, section 3.2: chunk types. */
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
  /** RFC 8260. */
  iData: 64,
} as const;

/** RFC 9260: section 6.10 says what is never bundled, section 8.5.1 who has no verification tag. */
function sctpIsSound(payload: Buffer, isFragment: boolean): boolean {
  const chunk = payload[12]!;
  const length = payload.readUInt16BE(14);
  const tag = payload.readUInt32BE(4);
  const present = payload.length - 12;
  if (length < 4 || (!isFragment && length > present)) return false;
  const alone = isFragment || Math.ceil(length / 4) * 4 >= present;
  const mustBeAlone: number[] = [SCTP.init, SCTP.initAck, SCTP.shutdownComplete];
  if (mustBeAlone.includes(chunk) && !alone) return false;
  return (tag === 0) === (chunk === SCTP.init);
}

function roleOfSctp(chunk: number): Role {
  if (chunk === SCTP.init) return 'opens';
  const mayBePickedUp: number[] = [SCTP.data, SCTP.iData, SCTP.sack, SCTP.heartbeat, SCTP.cookieEcho];
  return mayBePickedUp.includes(chunk) ? 'plain' : 'answers';
}

export const ECHO = { 4: { request: 8, reply: 0 }, 6: { request: 128, reply: 129 } } as const;
/** RFC 792: destination unreachable, time exceeded, parameter problem. */
const ICMP_ERRORS = [3, 11, 12];
/** RFC 4443: destination unreachable, packet too big, time exceeded, parameter problem. */
const ICMPV6_ERRORS = [1, 2, 3, 4];
/** RFC 4861: solicitations and advertisements of routers and neighbours. */
const NEIGHBOUR = [133, 134, 135, 136];
/** RFC 2710, RFC 3810. */
const MLD = [130, 131, 132, 143];

function readIcmp(packet: Packet): Packet {
  const type = packet.payload[0]!;
  const v6 = packet.version === 6;
  const identifier = packet.payload.readUInt16BE(4);
  const { request, reply } = ECHO[packet.version];
  const found = { ...packet, icmpType: type };
  if (type === request) return { ...found, role: 'opens', sourcePort: identifier, destinationPort: request };
  if (type === reply) return { ...found, role: 'answers', sourcePort: request, destinationPort: identifier };
  // An error or a neighbour message in pieces is nobody's (RFC 6980).
  const isError = (v6 ? ICMPV6_ERRORS : ICMP_ERRORS).includes(type);
  const isNeighbour = v6 && NEIGHBOUR.includes(type);
  if ((isError || isNeighbour) && packet.fragment !== undefined) return { ...found, refusal: 'FRAGMENT' };
  if (isError) return { ...found, role: 'error' };
  if (isNeighbour) return { ...found, role: 'neighbour' };
  if (v6 && MLD.includes(type)) return { ...found, role: 'membership', refusal: 'MEMBERSHIP' };
  return { ...found, refusal: 'ICMP_TYPE' };
}
