/** TLS 1.3 handshake messages as octets (RFC 8446, sections 3.4 and 4): a strict reader, and the few writers authenticators need. */

/** RFC 8446, section 4; client_certificate_request from RFC 9261, section 8.2. */
export const HANDSHAKE_TYPE = {
  certificate: 11,
  certificateRequest: 13,
  certificateVerify: 15,
  clientCertificateRequest: 17,
  finished: 20,
} as const;

/** RFC 8446, section 4.2. */
export const EXTENSION_TYPE = { signatureAlgorithms: 13 } as const;

/** Thrown inside this folder only: whoever parses a whole message turns it into one reason code. */
export class WireError extends Error {}

/**
 * Reads a stretch of octets from its first to its last; every length is checked before a byte is touched. What lies inside
 * is read by readers on the same bytes: a buffer object for each field would cost more than the reading.
 */
export class WireReader {
  readonly #bytes: Buffer;
  readonly #start: number;
  readonly #end: number;
  #at: number;

  constructor(bytes: Buffer, start = 0, end = bytes.length) {
    this.#bytes = bytes;
    this.#start = start;
    this.#end = end;
    this.#at = start;
  }

  get done(): boolean {
    return this.#at === this.#end;
  }

  /** How many octets the stretch has. */
  get length(): number {
    return this.#end - this.#start;
  }

  /** An unsigned integer of 1 to 3 octets. */
  uint(octets: 1 | 2 | 3): number {
    let at = this.#advance(octets);
    let value = 0;
    while (at < this.#at) value = value * 256 + this.#bytes[at++]!;
    return value;
  }

  /** opaque field<least..2^(8*lengthOctets)-1>, to be read further. */
  nested(lengthOctets: 1 | 2 | 3, least = 0): WireReader {
    const length = this.uint(lengthOctets);
    if (length < least) throw new WireError('vector too short');
    const start = this.#advance(length);
    return new WireReader(this.#bytes, start, this.#at);
  }

  /** The same, as octets. */
  vector(lengthOctets: 1 | 2 | 3, least = 0): Buffer {
    return this.nested(lengthOctets, least).octets();
  }

  /** The body of a handshake message of exactly this type. */
  message(type: number): WireReader {
    if (this.uint(1) !== type) throw new WireError('another handshake type');
    return this.nested(3);
  }

  /** The whole stretch, whatever was read of it. With `before`: also as many octets that stand before it. */
  octets(before = 0): Buffer {
    return this.#bytes.subarray(this.#start - before, this.#end);
  }

  equals(octets: Buffer): boolean {
    return this.#bytes.compare(octets, 0, octets.length, this.#start, this.#end) === 0;
  }

  /** Nothing may follow what was read. */
  end(): void {
    if (!this.done) throw new WireError('octets after the end');
  }

  #advance(length: number): number {
    const start = this.#at;
    if (start + length > this.#end) throw new WireError('truncated');
    this.#at = start + length;
    return start;
  }
}

/** Type and length of a handshake message. */
export const HANDSHAKE_HEADER_OCTETS = 4;

/** Type, u24 length, body. */
export function handshakeMessage(type: number, ...body: readonly Uint8Array[]): Buffer {
  let length = 0;
  for (const part of body) length += part.length;
  const message = Buffer.allocUnsafe(4 + length);
  message.writeUInt32BE(length, 0);
  message[0] = type;
  let at = 4;
  for (const part of body) {
    message.set(part, at);
    at += part.length;
  }
  return message;
}

/** The length field of a vector. @throws RangeError when the length does not fit. */
export function lengthField(octets: 1 | 2 | 3, length: number): Buffer {
  const field = Buffer.allocUnsafe(octets);
  field.writeUIntBE(length, 0, octets);
  return field;
}
