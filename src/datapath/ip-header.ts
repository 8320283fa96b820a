/** The two addresses of an IP packet, and the flow it names: RFC 791 section 3.1, RFC 8200 section 3, read strictly. */
import { addressFromBytes } from '../model/address.ts';
import type { FlowPorts } from '../model/datapath.ts';
import type { IpAddress } from '../model/ids.ts';

const IPV4_HEADER = 20;
const IPV6_HEADER = 40;

export interface PacketAddresses {
  readonly source: IpAddress;
  readonly destination: IpAddress;
}

/** undefined when the header contradicts itself or the packet's length. */
export function packetAddresses(packet: Buffer): PacketAddresses | undefined {
  if (packet.length < IPV4_HEADER) return undefined;
  switch (packet[0]! >> 4) {
    case 4: {
      const headerLength = (packet[0]! & 0xf) * 4;
      if (headerLength < IPV4_HEADER || headerLength > packet.length) return undefined;
      if (packet.readUInt16BE(2) !== packet.length) return undefined;
      return {
        source: addressFromBytes(packet.subarray(12, 16)),
        destination: addressFromBytes(packet.subarray(16, 20)),
      };
    }
    case 6: {
      if (packet.length < IPV6_HEADER || packet.readUInt16BE(4) + IPV6_HEADER !== packet.length) return undefined;
      const source = packet.subarray(8, 24);
      const destination = packet.subarray(24, 40);
      // Mapped addresses are never on the wire (RFC 4291 section 2.5.5.2 with RFC 4038); here they would pass for IPv4.
      if (isMapped(source) || isMapped(destination)) return undefined;
      return { source: addressFromBytes(source), destination: addressFromBytes(destination) };
    }
    default:
      return undefined;
  }
}

const PORTS: ReadonlySet<number> = new Set([6, 17, 132]);
/** Echo request and reply, RFC 792 and RFC 4443. */
const ECHO: Readonly<Record<number, { readonly request: number; readonly reply: number }>> = {
  1: { request: 8, reply: 0 },
  58: { request: 128, reply: 129 },
};

/** Of a packet whose sender is local. undefined: it names none, or behind headers that nobody reads here. */
export function packetFlow(packet: Buffer): FlowPorts | undefined {
  const four = packet[0]! >> 4 === 4;
  const protocol = packet[four ? 9 : 6]!;
  const at = four ? (packet[0]! & 0xf) * 4 : IPV6_HEADER;
  // RFC 791 section 3.1: only the first fragment has the ports.
  if ((four && (packet.readUInt16BE(6) & 0x1fff) !== 0) || packet.length < at + 8) return undefined;
  if (PORTS.has(protocol)) {
    return { protocol, localPort: packet.readUInt16BE(at), remotePort: packet.readUInt16BE(at + 2) };
  }
  const echo = ECHO[protocol];
  const identifier = packet.readUInt16BE(at + 4);
  if (packet[at] === echo?.request) return { protocol, localPort: identifier, remotePort: echo!.request };
  if (packet[at] === echo?.reply) return { protocol, localPort: echo!.request, remotePort: identifier };
  return undefined;
}

function isMapped(address: Buffer): boolean {
  return address.readUInt16BE(10) === 0xffff && address.subarray(0, 10).every((byte) => byte === 0);
}
