/** A packet on its way, with what only the simulation knows of it: who really sent it and whom it was meant for. */
import type { IpAddress, SecurityIdentity } from '../../src/model/ids.ts';

/** One workload, as it really is. */
export interface Workload {
  /** Never used twice. */
  readonly uid: number;
  readonly name: string;
  readonly node: string;
  readonly ip: IpAddress;
  readonly identity: SecurityIdentity;
  readonly ifindex: number;
  readonly bornMs: number;
  alive: boolean;
  /** Ms of the schedule. */
  diedMs: number;
}

export interface Packet {
  readonly id: number;
  readonly sender: Workload;
  readonly from: IpAddress;
  readonly to: IpAddress;
  readonly sentMs: number;
  /** Of the sender's machine, until then. */
  readonly standstillMs: number;
  /** The stamp of from_workload: endpoint and generation that it was sent by. */
  endpoint: number;
  generation: bigint;
  /** Held once already. */
  held: boolean;
  /** Uid of the workload that the sender's kernel took the destination for when it let the packet go. */
  meant: number | undefined;
}

/** IPv4 header and the packet's id: what the hold device carries. */
export function packetBytes(packet: Packet): Buffer {
  const bytes = Buffer.alloc(24);
  bytes[0] = 0x45;
  bytes.writeUInt16BE(24, 2);
  bytes[8] = 64;
  bytes[9] = 17;
  writeIpv4(bytes, 12, packet.from);
  writeIpv4(bytes, 16, packet.to);
  bytes.writeUInt32BE(packet.id, 20);
  return bytes;
}

export function idOf(bytes: Buffer): number {
  return bytes.readUInt32BE(20);
}

function writeIpv4(bytes: Buffer, at: number, address: IpAddress): void {
  address.split('.').forEach((part, i) => {
    bytes[at + i] = Number(part);
  });
}
