/** The packet that an ICMP error quotes: its addresses, protocol and ports, from what the error's own length covers. */
import { ECHO, type Fragment, type Packet, PROTOCOL, walkExtensions } from './packet.ts';
import type { Address } from './state.ts';

export interface Quote {
  readonly version: 4 | 6;
  readonly source: Address;
  readonly destination: Address;
  readonly protocol: number;
  /** Undefined in the middle of a datagram: its first fragment had them. */
  readonly ports?: { readonly sourcePort: number; readonly destinationPort: number };
  readonly fragment?: Fragment;
}

/** RFC 792: header and 8 bytes. RFC 4443: as much as fits. */
export function quoteOf(error: Packet): Quote | undefined {
  const quoted = error.payload.subarray(8);
  return error.version === 4 ? quoteOfIpv4(quoted) : quoteOfIpv6(quoted);
}

const MAPPED = `${'00'.repeat(10)}ffff`;

function quoteOfIpv4(quoted: Buffer): Quote | undefined {
  if (quoted.length < 20 || quoted[0]! >> 4 !== 4) return undefined;
  const header = (quoted[0]! & 15) * 4;
  if (header < 20) return undefined;
  const offset = (quoted.readUInt16BE(6) & 0x1fff) * 8;
  const rest = quoted.subarray(header);
  const quote: Quote = {
    version: 4,
    source: MAPPED + quoted.toString('hex', 12, 16),
    destination: MAPPED + quoted.toString('hex', 16, 20),
    protocol: quoted[9]!,
    ...(offset === 0 ? {} : { fragment: { id: quoted.readUInt16BE(4), offset, more: false, data: rest } }),
  };
  return withPorts(quote, rest);
}

function quoteOfIpv6(quoted: Buffer): Quote | undefined {
  if (quoted.length < 40 || quoted[0]! >> 4 !== 6) return undefined;
  const source = quoted.toString('hex', 8, 24);
  const destination = quoted.toString('hex', 24, 40);
  if (source.startsWith(MAPPED) || destination.startsWith(MAPPED)) return undefined;
  const chain = walkExtensions(quoted[6]!, quoted.subarray(40));
  if (chain.refusal !== undefined) return undefined;
  const { protocol, fragment } = chain;
  const later = fragment !== undefined && fragment.offset > 0;
  return withPorts({ version: 6, source, destination, protocol, ...(later ? { fragment } : {}) }, chain.rest);
}

/** From the first 8 bytes of the transport header. */
function withPorts(quote: Quote, transport: Buffer): Quote | undefined {
  if (quote.fragment !== undefined) return quote;
  if (transport.length < 8) return undefined;
  const { protocol } = quote;
  switch (protocol) {
    case PROTOCOL.tcp:
    case PROTOCOL.udp:
    case PROTOCOL.sctp:
      return { ...quote, ports: { sourcePort: transport.readUInt16BE(0), destinationPort: transport.readUInt16BE(2) } };
    case PROTOCOL.icmp:
    case PROTOCOL.icmpv6: {
      // Each family has its own, but the number alone says which messages are meant.
      const { request, reply } = ECHO[protocol === PROTOCOL.icmp ? 4 : 6];
      const identifier = transport.readUInt16BE(4);
      if (transport[0] === request) return { ...quote, ports: { sourcePort: identifier, destinationPort: request } };
      if (transport[0] === reply) return { ...quote, ports: { sourcePort: request, destinationPort: identifier } };
      return undefined;
    }
    default:
      return undefined;
  }
}
