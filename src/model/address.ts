/** IP addresses and prefixes: text to the 16 bytes the datapath keys with, and back. */
import { isIP } from 'node:net';
import type { IpAddress } from './ids.ts';

/** Canonical form of an IPv4 or IPv6 address, or undefined if it is none (zone ids and IPv4-mapped text are refused). */
export function parseAddress(text: string): IpAddress | undefined {
  const family = isIP(text);
  if (family === 4) return text as IpAddress;
  if (family !== 6 || text.includes('%')) return undefined;
  const bytes = bytesOfIpv6(text);
  if (bytes === undefined || isMapped(bytes)) return undefined;
  return formatAddress(bytes);
}

export function isIpv4(address: IpAddress): boolean {
  return !address.includes(':');
}

/** 16 bytes, IPv4 in mapped form (RFC 4291, section 2.5.5.2), as struct cs_addr. */
export function addressBytes(address: IpAddress): Buffer {
  if (!isIpv4(address)) return bytesOfIpv6(address)!;
  const out = Buffer.alloc(16);
  out.writeUInt16BE(0xffff, 10);
  address.split('.').forEach((part, i) => {
    out[12 + i] = Number(part);
  });
  return out;
}

/** An IPv4 address, or the /64 of an IPv6 address: what one host can be expected to own. */
export function sourceOf(address: string): string {
  if (isIP(address) !== 6) return address;
  const parsed = parseAddress(address);
  return parsed === undefined ? address : addressBytes(parsed).toString('hex', 0, 8);
}

/** From struct cs_addr, or from 4 wire bytes. @throws RangeError on another length. */
export function addressFromBytes(bytes: Uint8Array): IpAddress {
  if (bytes.length === 4) return bytes.join('.') as IpAddress;
  if (bytes.length !== 16) throw new RangeError(`an address has 4 or 16 bytes, not ${bytes.length}`);
  return isMapped(bytes) ? (bytes.subarray(12).join('.') as IpAddress) : formatAddress(bytes);
}

/** 4 or 16 bytes, as on the wire. */
export function addressWireBytes(address: IpAddress): Buffer {
  const bytes = addressBytes(address);
  return isIpv4(address) ? bytes.subarray(12) : bytes;
}

export interface Prefix {
  readonly address: IpAddress;
  /** 0-32 for IPv4, 0-128 for IPv6. */
  readonly length: number;
}

/** "10.0.1.0/24", "fd00::/64"; host bits must be zero. */
export function parsePrefix(text: string): Prefix | undefined {
  const match = /^([^/]+)\/(\d{1,3})$/.exec(text);
  const address = match?.[1] === undefined ? undefined : parseAddress(match[1]);
  if (address === undefined) return undefined;
  const length = Number(match![2]);
  if (length > (isIpv4(address) ? 32 : 128)) return undefined;
  const prefix = { address, length };
  const bytes = addressBytes(address);
  for (let bit = datapathPrefixLength(prefix); bit < 128; bit++) {
    if ((bytes[bit >> 3]! & (0x80 >> (bit & 7))) !== 0) return undefined;
  }
  return prefix;
}

/** Length over the 16-byte form: IPv4 lengths are moved by 96. */
export function datapathPrefixLength(prefix: Prefix): number {
  return isIpv4(prefix.address) ? 96 + prefix.length : prefix.length;
}

export function prefixContains(prefix: Prefix, address: IpAddress): boolean {
  if (isIpv4(prefix.address) !== isIpv4(address)) return false;
  const a = addressBytes(prefix.address);
  const b = addressBytes(address);
  const length = datapathPrefixLength(prefix);
  const whole = length >> 3;
  if (a.compare(b, 0, whole, 0, whole) !== 0) return false;
  const rest = length & 7;
  return rest === 0 || ((a[whole]! ^ b[whole]!) & (0xff00 >> rest) & 0xff) === 0;
}

function isMapped(bytes: Uint8Array): boolean {
  return bytes[10] === 0xff && bytes[11] === 0xff && bytes.subarray(0, 10).every((b) => b === 0);
}

function bytesOfIpv6(text: string): Buffer | undefined {
  if (isIP(text) !== 6) return undefined;
  let source = text;
  const dotted = /^(.*:)(\d+)\.(\d+)\.(\d+)\.(\d+)$/.exec(source);
  if (dotted) {
    const [a, b, c, d] = dotted.slice(2).map(Number) as [number, number, number, number];
    source = `${dotted[1]}${((a << 8) | b).toString(16)}:${((c << 8) | d).toString(16)}`;
  }
  const [head, tail] = source.split('::') as [string, string | undefined];
  const left = head === '' ? [] : head.split(':');
  const right = tail === undefined || tail === '' ? [] : tail.split(':');
  const groups = [...left, ...Array<string>(8 - left.length - right.length).fill('0'), ...right];
  const out = Buffer.alloc(16);
  groups.forEach((group, i) => {
    out.writeUInt16BE(Number.parseInt(group, 16), i * 2);
  });
  return out;
}

/** RFC 5952, section 4. */
function formatAddress(bytes: Uint8Array): IpAddress {
  const view = Buffer.from(bytes);
  const groups = Array.from({ length: 8 }, (_, i) => view.readUInt16BE(i * 2));
  let best = { start: -1, length: 1 };
  for (let i = 0; i < 8; i++) {
    let n = 0;
    while (i + n < 8 && groups[i + n] === 0) n++;
    if (n > best.length) best = { start: i, length: n };
  }
  const hex = (part: number[]) => part.map((g) => g.toString(16)).join(':');
  if (best.start < 0) return hex(groups) as IpAddress;
  return `${hex(groups.slice(0, best.start))}::${hex(groups.slice(best.start + best.length))}` as IpAddress;
}
