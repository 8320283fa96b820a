/**
 * DER (X.690, section 10), both ways and only as much as certificates need. The reader takes definite, minimal lengths and
 * low tag numbers, never looks past its element, and throws DerError alone; `readDer` is the door that turns it into a value.
 */
import { err, ok, type Result } from '../base/errors.ts';

export const TAG = {
  boolean: 0x01,
  integer: 0x02,
  bitString: 0x03,
  octetString: 0x04,
  null: 0x05,
  oid: 0x06,
  utf8String: 0x0c,
  printableString: 0x13,
  ia5String: 0x16,
  utcTime: 0x17,
  generalizedTime: 0x18,
  sequence: 0x30,
  set: 0x31,
} as const;

/** [n], primitive. */
export const contextPrimitive = (n: number): number => 0x80 | n;
/** [n], constructed. */
export const contextConstructed = (n: number): number => 0xa0 | n;

const MAX_DEPTH = 16;

/** Internal to readers of DER: caught by readDer. */
export class DerError extends Error {}

/** Runs `read` over all of `bytes`. Trailing bytes are an error. `maxBytes` bounds what is looked at. */
export function readDer<T>(bytes: Buffer, maxBytes: number, read: (reader: DerReader) => T): Result<T, string> {
  if (bytes.length > maxBytes) return err(`longer than ${maxBytes} bytes`);
  try {
    const reader = new DerReader(bytes, 0, bytes.length, 0);
    const value = read(reader);
    reader.end();
    return ok(value);
  } catch (thrown) {
    if (thrown instanceof DerError) return err(thrown.message);
    throw thrown;
  }
}

/** Reads elements of one level in order. */
export class DerReader {
  readonly buffer: Buffer;
  /** Offset of the next element. */
  position: number;
  readonly limit: number;
  readonly #depth: number;

  constructor(buffer: Buffer, position: number, limit: number, depth: number) {
    if (depth > MAX_DEPTH) throw new DerError('nested too deeply');
    this.buffer = buffer;
    this.position = position;
    this.limit = limit;
    this.#depth = depth;
  }

  get atEnd(): boolean {
    return this.position === this.limit;
  }

  /** Throws unless every byte was read. */
  end(): void {
    if (this.position !== this.limit) throw new DerError('bytes after the last element');
  }

  /** The next element's tag, or -1 at the end. */
  peek(): number {
    return this.position < this.limit ? this.buffer[this.position]! : -1;
  }

  /** Goes into the next element, which must have this tag. */
  enter(tag: number): DerReader {
    const start = this.#header(tag);
    return new DerReader(this.buffer, start, this.position, this.#depth + 1);
  }

  /** Reads DER again that was taken out whole. */
  within(content: Buffer): DerReader {
    return new DerReader(content, 0, content.length, this.#depth + 1);
  }

  /** Content of the next element, which must have this tag. A view, not a copy. */
  content(tag: number): Buffer {
    const start = this.#header(tag);
    return this.buffer.subarray(start, this.position);
  }

  /** The next element whole, header included, with this tag. A view. */
  whole(tag: number): Buffer {
    const start = this.position;
    this.#header(tag);
    return this.buffer.subarray(start, this.position);
  }

  /** Passes over the next element of any tag and returns the tag. */
  skip(): number {
    const tag = this.peek();
    if (tag < 0) throw new DerError('an element is missing');
    this.#header(tag);
    return tag;
  }

  /** Content of an OBJECT IDENTIFIER as a latin1 string: a key for comparing, not for people. */
  oid(): string {
    const start = this.#header(TAG.oid);
    const end = this.position;
    if (start === end || this.buffer[end - 1]! & 0x80) throw new DerError('an object identifier ends within a number');
    let first = true;
    for (let i = start; i < end; i++) {
      const byte = this.buffer[i]!;
      if (first && byte === 0x80) throw new DerError('an object identifier with a padded number');
      first = byte < 0x80;
    }
    return this.buffer.toString('latin1', start, end);
  }

  /** Content of the next element, which must have this tag, each byte as one character. */
  latin1(tag: number): string {
    const start = this.#header(tag);
    return this.buffer.toString('latin1', start, this.position);
  }

  /** X.690, section 11.1: TRUE is 0xff. */
  boolean(): boolean {
    const start = this.#header(TAG.boolean);
    const value = this.buffer[start];
    if (this.position - start !== 1 || (value !== 0 && value !== 0xff)) throw new DerError('not a DER boolean');
    return value === 0xff;
  }

  /** Two's complement content, minimal (X.690, section 8.3.2), not negative. */
  unsignedInteger(): Buffer {
    const value = this.content(TAG.integer);
    if (value.length === 0) throw new DerError('an empty integer');
    if (value[0]! & 0x80) throw new DerError('a negative integer');
    if (value.length > 1 && value[0] === 0 && !(value[1]! & 0x80)) throw new DerError('a padded integer');
    return value;
  }

  /** A non-negative integer of at most 31 bits. */
  smallInteger(): number {
    const value = this.unsignedInteger();
    if (value.length > 4) throw new DerError('an integer that is too large');
    return value.readUIntBE(0, value.length);
  }

  /** A BIT STRING of whole bytes. */
  bitStringBytes(): Buffer {
    const value = this.content(TAG.bitString);
    if (value.length === 0 || value[0] !== 0) throw new DerError('a bit string that is not whole bytes');
    return value.subarray(1);
  }

  /** A named bit list of at most 16 bits (X.690, section 11.2.2: no trailing zero bits); bit i is 1 << i. */
  namedBits(): number {
    const { buffer } = this;
    const start = this.#header(TAG.bitString);
    const end = this.position;
    const unused = start < end ? buffer[start]! : 8;
    if (end - start === 1 && unused === 0) return 0;
    if (end - start < 2 || end - start > 3) throw new DerError('a bit list of a wrong length');
    const last = buffer[end - 1]!;
    if (unused > 7 || (last & ((1 << unused) - 1)) !== 0) throw new DerError('a bit list with bad padding');
    if ((last & (1 << unused)) === 0) throw new DerError('a bit list that ends in a zero');
    let bits = 0;
    for (let i = 0; i < (end - start - 1) * 8; i++) {
      if (buffer[start + 1 + (i >> 3)]! & (0x80 >> (i & 7))) bits |= 1 << i;
    }
    return bits;
  }

  /** Checks the header of the next element, moves past the element and returns where its content begins. */
  #header(tag: number): number {
    const { buffer, limit } = this;
    let at = this.position;
    if (at >= limit) throw new DerError('an element is missing');
    if (buffer[at] !== tag) throw new DerError(`tag ${buffer[at]!.toString(16)} where ${tag.toString(16)} belongs`);
    if ((tag & 0x1f) === 0x1f) throw new DerError('a high tag number');
    at++;
    if (at >= limit) throw new DerError('a length is missing');
    let length = buffer[at++]!;
    if (length >= 0x80) {
      const count = length & 0x7f;
      if (count === 0) throw new DerError('an indefinite length');
      if (count > 3 || at + count > limit) throw new DerError('a length that is too large');
      if (buffer[at] === 0) throw new DerError('a padded length');
      length = 0;
      for (let i = 0; i < count; i++) length = (length << 8) | buffer[at++]!;
      if (length < 0x80) throw new DerError('a length in long form that fits the short form');
    }
    if (at + length > limit) throw new DerError('an element longer than what holds it');
    this.position = at + length;
    return at;
  }
}

/** One element from its content's parts. */
export function der(tag: number, ...parts: readonly Uint8Array[]): Buffer {
  let length = 0;
  for (const part of parts) length += part.length;
  const header = length < 0x80 ? 2 : length < 0x100 ? 3 : length < 0x10000 ? 4 : 5;
  const out = Buffer.allocUnsafe(header + length);
  out[0] = tag;
  if (header === 2) out[1] = length;
  else {
    out[1] = 0x80 | (header - 2);
    out.writeUIntBE(length, 2, header - 2);
  }
  let at = header;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  return out;
}

export const sequence = (...parts: readonly Uint8Array[]): Buffer => der(TAG.sequence, ...parts);

/** A non-negative INTEGER from its magnitude, big-endian. */
export function derUnsignedInteger(magnitude: Uint8Array): Buffer {
  let start = 0;
  while (start < magnitude.length - 1 && magnitude[start] === 0) start++;
  const minimal = magnitude.subarray(start);
  if (minimal.length === 0) throw new RangeError('an integer has at least one byte');
  return minimal[0]! & 0x80 ? der(TAG.integer, Buffer.of(0), minimal) : der(TAG.integer, minimal);
}

export function derBitString(bytes: Uint8Array): Buffer {
  return der(TAG.bitString, Buffer.of(0), bytes);
}

/** From dotted text, e.g. "2.5.29.17"; numbers of any size. */
export function derOid(dotted: string): Buffer {
  return der(TAG.oid, oidContent(dotted));
}

/** The key form of DerReader.oid(). */
export function oidKey(dotted: string): string {
  return oidContent(dotted).toString('latin1');
}

/** The reverse of oidKey. */
export function oidText(key: string): string {
  const numbers: bigint[] = [];
  let value = 0n;
  for (const byte of Buffer.from(key, 'latin1')) {
    value = (value << 7n) | BigInt(byte & 0x7f);
    if (byte & 0x80) continue;
    if (numbers.length === 0) {
      const first = value < 40n ? 0n : value < 80n ? 1n : 2n;
      numbers.push(first, value - first * 40n);
    } else numbers.push(value);
    value = 0n;
  }
  return numbers.join('.');
}

function oidContent(dotted: string): Buffer {
  const [first, second, ...rest] = dotted.split('.').map(BigInt);
  if (first === undefined || second === undefined) throw new RangeError(`not an object identifier: ${dotted}`);
  const bytes: number[] = [];
  for (const number of [first * 40n + second, ...rest]) {
    const groups = [Number(number & 0x7fn)];
    for (let left = number >> 7n; left > 0n; left >>= 7n) groups.unshift(0x80 | Number(left & 0x7fn));
    bytes.push(...groups);
  }
  return Buffer.from(bytes);
}

const MS_OF_2050 = Date.UTC(2050, 0, 1);

/** RFC 5280, section 4.1.2.5: UTCTime through 2049, GeneralizedTime from 2050. Whole seconds; a fraction is cut off. */
export function derTime(ms: number): Buffer {
  // YYYY-MM-DDTHH:MM:SS.mmmZ; years beyond four digits have a sign
  const iso = new Date(ms).toISOString();
  if (iso.length !== 24) throw new RangeError(`a time outside the years 0-9999: ${ms}`);
  const rest = `${iso.slice(2, 4)}${iso.slice(5, 7)}${iso.slice(8, 10)}${iso.slice(11, 13)}${iso.slice(14, 16)}${iso.slice(17, 19)}Z`;
  return ms < MS_OF_2050
    ? der(TAG.utcTime, Buffer.from(rest, 'latin1'))
    : der(TAG.generalizedTime, Buffer.from(iso.slice(0, 2) + rest, 'latin1'));
}

/** The two forms RFC 5280, section 4.1.2.5 allows, and each only for its years. Unix ms. */
export function readTime(reader: DerReader): number {
  const tag = reader.peek();
  if (tag !== TAG.utcTime && tag !== TAG.generalizedTime) throw new DerError('not a time');
  const text = reader.latin1(tag);
  const utc = tag === TAG.utcTime;
  const yearDigits = utc ? 2 : 4;
  if (text.length !== yearDigits + 11 || text.charCodeAt(text.length - 1) !== 0x5a) {
    throw new DerError('a time that is not in seconds and Z');
  }
  const pair = (at: number): number => {
    const tens = text.charCodeAt(at) - 0x30;
    const ones = text.charCodeAt(at + 1) - 0x30;
    if (tens < 0 || tens > 9 || ones < 0 || ones > 9) throw new DerError('a time with other than digits');
    return tens * 10 + ones;
  };
  const short = pair(yearDigits - 2);
  const year = utc ? (short >= 50 ? 1900 + short : 2000 + short) : pair(0) * 100 + short;
  const month = pair(yearDigits);
  const day = pair(yearDigits + 2);
  const hour = pair(yearDigits + 4);
  const minute = pair(yearDigits + 6);
  const second = pair(yearDigits + 8);
  if (month < 1 || month > 12 || day < 1 || hour > 23 || minute > 59 || second > 59) throw new DerError('no such time');
  const ms = Date.UTC(year, month - 1, day, hour, minute, second);
  // Date.UTC takes 30 February for 1 March, and years below 100 for 19xx
  if (new Date(ms).getUTCDate() !== day || (!utc && year < 2050)) throw new DerError('no such time in this form');
  return ms;
}
