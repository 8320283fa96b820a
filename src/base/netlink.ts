/**
 * Netlink messages and attributes (linux/netlink.h, linux/genetlink.h), to bytes and back. All numbers are in the host's
 * byte order, which is little-endian on every machine this runs on; the addon does the system calls.
 */
import { endianness } from 'node:os';
import { CountersignError } from '../base/errors.ts';

if (endianness() !== 'LE') throw new CountersignError('unsupported', 'netlink messages are written little-endian only');

export const NETLINK_ROUTE = 0;
export const NETLINK_GENERIC = 16;
export const NLM_F = { request: 0x1, ack: 0x4, replace: 0x100, excl: 0x200, create: 0x400, dump: 0x300 } as const;
const NLMSG_HEADER = 16;
const NLA_HEADER = 4;
const NLA_F_NESTED = 0x8000;
const NLA_TYPE_MASK = 0x3fff;
const NLMSG_ERROR = 2;
const NLMSG_DONE = 3;

export type NetlinkRequest = (protocol: number, request: Uint8Array) => Buffer;

export interface NetlinkMessage {
  readonly type: number;
  readonly flags: number;
  /** Without the netlink header. */
  readonly body: Buffer;
}

const align = (n: number) => (n + 3) & ~3;

export function encodeMessage(type: number, flags: number, ...parts: readonly Buffer[]): Buffer {
  const header = Buffer.alloc(NLMSG_HEADER);
  const length = parts.reduce((sum, part) => sum + part.length, NLMSG_HEADER);
  header.writeUInt32LE(length, 0);
  header.writeUInt16LE(type, 4);
  header.writeUInt16LE(flags | NLM_F.request, 6);
  header.writeUInt32LE(1, 8);
  return Buffer.concat([header, ...parts]);
}

/** The messages of an answer; acknowledgements and the end of a dump are left out. @throws RangeError if the bytes are not messages. */
export function decodeMessages(bytes: Buffer): NetlinkMessage[] {
  const messages: NetlinkMessage[] = [];
  for (let at = 0; at < bytes.length; ) {
    const length = at + NLMSG_HEADER <= bytes.length ? bytes.readUInt32LE(at) : 0;
    if (length < NLMSG_HEADER || at + length > bytes.length) throw new RangeError('a netlink message is cut short');
    const type = bytes.readUInt16LE(at + 4);
    if (type !== NLMSG_ERROR && type !== NLMSG_DONE) {
      const flags = bytes.readUInt16LE(at + 6);
      messages.push({ type, flags, body: bytes.subarray(at + NLMSG_HEADER, at + length) });
    }
    at += align(length);
  }
  return messages;
}

export function attribute(type: number, payload: Buffer): Buffer {
  const out = Buffer.alloc(align(NLA_HEADER + payload.length));
  if (NLA_HEADER + payload.length > 0xffff) throw new RangeError('a netlink attribute has at most 65,531 bytes');
  out.writeUInt16LE(NLA_HEADER + payload.length, 0);
  out.writeUInt16LE(type, 2);
  payload.copy(out, NLA_HEADER);
  return out;
}

export function nested(type: number, ...attributes: readonly Buffer[]): Buffer {
  return attribute(type | NLA_F_NESTED, Buffer.concat(attributes));
}

export function u8(n: number): Buffer {
  return Buffer.of(n);
}

export function u16(n: number): Buffer {
  const out = Buffer.alloc(2);
  out.writeUInt16LE(n);
  return out;
}

export function u32(n: number): Buffer {
  const out = Buffer.alloc(4);
  out.writeUInt32LE(n);
  return out;
}

/** NUL-terminated. */
export function cString(text: string): Buffer {
  return Buffer.from(`${text}\0`);
}

/** Attributes in order, flag bits taken off their types. @throws RangeError if one is cut short. */
export function decodeAttributeList(bytes: Buffer): { readonly type: number; readonly payload: Buffer }[] {
  const list: { type: number; payload: Buffer }[] = [];
  for (let at = 0; at < bytes.length; ) {
    const length = at + NLA_HEADER <= bytes.length ? bytes.readUInt16LE(at) : 0;
    if (length < NLA_HEADER || at + length > bytes.length) throw new RangeError('a netlink attribute is cut short');
    const type = bytes.readUInt16LE(at + 2) & NLA_TYPE_MASK;
    list.push({ type, payload: bytes.subarray(at + NLA_HEADER, at + length) });
    at += align(length);
  }
  return list;
}

/** The same by type; of a repeated type the last. */
export function decodeAttributes(bytes: Buffer): Map<number, Buffer> {
  return new Map(decodeAttributeList(bytes).map(({ type, payload }) => [type, payload]));
}

/** Text up to its NUL. */
export function textOf(payload: Buffer | undefined): string | undefined {
  if (payload === undefined) return undefined;
  const end = payload.indexOf(0);
  return payload.toString('latin1', 0, end < 0 ? payload.length : end);
}
