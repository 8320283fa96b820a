/** The two addresses of an IP packet, read strictly: RFC 791 section 3.1, RFC 8200 section 3. */
import { addressFromBytes } from '../model/address.ts';
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

function isMapped(address: Buffer): boolean {
  return address.readUInt16BE(10) === 0xffff && address.subarray(0, 10).every((byte) => byte === 0);
}
