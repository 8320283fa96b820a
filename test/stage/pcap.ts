/** Captures: tcpdump writes them, this reads them. Only what the tour counts: addresses, ports, sequence numbers, bytes. */
import type { ChildProcess } from 'node:child_process';
import { spawn } from 'node:child_process';
import { existsSync, readFileSync, statSync } from 'node:fs';
import { exited, inNetns, until } from './shell.ts';

export interface Packet {
  /** ns since the Unix epoch. */
  readonly timeNs: bigint;
  readonly source: string;
  readonly destination: string;
  readonly protocol: number;
  readonly sourcePort: number;
  readonly destinationPort: number;
  readonly tcp?: { readonly seq: number; readonly ack: number; readonly flags: number; readonly payload: number };
  readonly ipId: string;
  readonly bytes: Buffer;
}

export const TCP_SYN = 0x02;
export const TCP_ACK = 0x10;

export interface Capture {
  /** Ends the capture and reads it. `settle`: nothing is sent any more, and all that was is wanted (the default). */
  stop(settle?: boolean): Promise<Packet[]>;
}

/** Resolves when tcpdump listens. */
export async function capture(
  netns: string,
  device: string,
  file: string,
  filter = '',
  env: NodeJS.ProcessEnv = {},
): Promise<Capture> {
  const argv = inNetns(
    netns,
    'tcpdump',
    '-i',
    device,
    '-w',
    file,
    '-U',
    '-s',
    '0',
    '-n',
    '--immediate-mode',
    '--time-stamp-precision=nano',
    '-B',
    '16384',
    ...(filter === '' ? [] : [filter]),
  );
  const child: ChildProcess = spawn(argv[0]!, argv.slice(1), {
    stdio: ['ignore', 'ignore', 'pipe'],
    env: { ...process.env, ...env },
  });
  let said = '';
  child.stderr!.on('data', (chunk: Buffer) => {
    said += chunk.toString();
  });
  await until(`tcpdump on ${device} (${said})`, 10_000, () => {
    if (child.exitCode !== null) throw new Error(`tcpdump: ${said}`);
    return said.includes('listening on') && existsSync(file) ? true : undefined;
  });
  return {
    async stop(settle = true) {
      // tcpdump with -U writes each packet at once; what it has not read yet is drained when the file stops growing.
      let size = -1;
      await until('the capture to settle', 3000, async () => {
        const now = statSync(file).size;
        const settled = !settle || now === size;
        size = now;
        await new Promise((resolve) => setTimeout(resolve, 60));
        return settled ? true : undefined;
      });
      child.kill('SIGINT');
      await exited(child);
      return readPcap(readFileSync(file));
    },
  };
}

/** pcap with microseconds or nanoseconds, Ethernet frames. */
export function readPcap(file: Buffer): Packet[] {
  const magic = file.readUInt32LE(0);
  const perSecond = magic === 0xa1b23c4d ? 1n : magic === 0xa1b2c3d4 ? 1000n : undefined;
  if (perSecond === undefined) throw new Error('not a little-endian pcap file');
  const packets: Packet[] = [];
  for (let at = 24; at + 16 <= file.length; ) {
    const timeNs = BigInt(file.readUInt32LE(at)) * 1_000_000_000n + BigInt(file.readUInt32LE(at + 4)) * perSecond;
    const length = file.readUInt32LE(at + 8);
    const bytes = file.subarray(at + 16, at + 16 + length);
    at += 16 + length;
    const packet = parseFrame(timeNs, bytes);
    if (packet !== undefined) packets.push(packet);
  }
  return packets;
}

function parseFrame(timeNs: bigint, frame: Buffer): Packet | undefined {
  if (frame.length < 34) return undefined;
  const type = frame.readUInt16BE(12);
  let protocol: number;
  let l4: Buffer;
  let source: string;
  let destination: string;
  let ipId = '';
  if (type === 0x0800) {
    const ip = frame.subarray(14);
    const header = (ip[0]! & 0xf) * 4;
    protocol = ip[9]!;
    source = ip.subarray(12, 16).join('.');
    destination = ip.subarray(16, 20).join('.');
    ipId = String(ip.readUInt16BE(4));
    l4 = ip.subarray(header, ip.readUInt16BE(2));
  } else if (type === 0x86dd && frame.length >= 54) {
    const ip = frame.subarray(14);
    protocol = ip[6]!;
    source = ip.subarray(8, 24).toString('hex');
    destination = ip.subarray(24, 40).toString('hex');
    l4 = ip.subarray(40, 40 + ip.readUInt16BE(4));
  } else return undefined;
  const ports = (protocol === 6 || protocol === 17) && l4.length >= 8;
  const packet = {
    timeNs,
    source,
    destination,
    protocol,
    sourcePort: ports ? l4.readUInt16BE(0) : 0,
    destinationPort: ports ? l4.readUInt16BE(2) : 0,
    ipId,
    bytes: frame,
  };
  if (protocol !== 6 || l4.length < 20) return packet;
  const payload = l4.length - (l4[12]! >> 4) * 4;
  return { ...packet, tcp: { seq: l4.readUInt32BE(4), ack: l4.readUInt32BE(8), flags: l4[13]! & 0x3f, payload } };
}

const segmentKey = (p: Packet): string =>
  `${p.source}>${p.destination}:${p.sourcePort}:${p.destinationPort}:${p.tcp!.seq}:${p.tcp!.ack}:${p.tcp!.flags}:${p.tcp!.payload}`;

/** TCP segments that one end sent and the other did not get, in both directions, counted from captures at both ends. */
export function lostSegments(at: readonly Packet[], other: readonly Packet[], addressAt: string): number {
  const count = (sent: readonly Packet[], received: readonly Packet[]) => {
    const seen = new Map<string, number>();
    for (const p of received) seen.set(segmentKey(p), (seen.get(segmentKey(p)) ?? 0) + 1);
    let lost = 0;
    for (const p of sent) {
      const left = seen.get(segmentKey(p)) ?? 0;
      if (left === 0) lost++;
      else seen.set(segmentKey(p), left - 1);
    }
    return lost;
  };
  const tcp = (packets: readonly Packet[]) => packets.filter((p) => p.tcp !== undefined);
  const out = (packets: readonly Packet[]) => tcp(packets).filter((p) => p.source === addressAt);
  const back = (packets: readonly Packet[]) => tcp(packets).filter((p) => p.destination === addressAt);
  return count(out(at), out(other)) + count(back(other), back(at));
}

/** Segments that carry SYN, FIN or payload and were sent again with the same sequence number. */
export function retransmittedSegments(packets: readonly Packet[]): number {
  const seen = new Set<string>();
  let again = 0;
  for (const p of packets) {
    if (p.tcp === undefined || (p.tcp.payload === 0 && (p.tcp.flags & 0x03) === 0)) continue;
    const key = `${p.source}:${p.sourcePort}>${p.destination}:${p.destinationPort}:${p.tcp.seq}:${p.tcp.flags & 0x03}`;
    if (seen.has(key)) again++;
    seen.add(key);
  }
  return again;
}

/** The address text a capture shows: IPv4 dotted, IPv6 as 32 hex digits. */
export function captureAddress(address: string): string {
  if (!address.includes(':')) return address;
  const [head = '', tail = ''] = address.split('::');
  const left = head === '' ? [] : head.split(':');
  const right = tail === '' ? [] : tail.split(':');
  const zeros = Array<string>(8 - left.length - right.length).fill('0');
  return [...left, ...zeros, ...right].map((g) => g.padStart(4, '0')).join('');
}
