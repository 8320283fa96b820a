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

/** Reads a vector from its first octet to its last; every length is checked before a byte is touched. */
export class WireReader {
  readonly #bytes: Buffer;
  #at = 0;

  constructor(bytes: Buffer) {
    this.#bytes = bytes;
  }

  get done(): boolean {
    return this.#at === this.#bytes.length;
  }

  /** An unsigned integer of 1 to 3 octets. */
  uint(octets: 1 | 2 | 3): number {
    return this.bytes(octets).readUIntBE(0, octets);
  }

  bytes(length: number): Buffer {
    const end = this.#at + length;
    if (end > this.#bytes.length) throw new WireError('truncated');
    const slice = this.#bytes.subarray(this.#at, end);
    this.#at = end;
    return slice;
  }

  /** opaque field<least..2^(8*lengthOctets)-1> */
  vector(lengthOctets: 1 | 2 | 3, least = 0): Buffer {
    const length = this.uint(lengthOctets);
    if (length < least) throw new WireError('vector too short');
    return this.bytes(length);
  }

  /** A handshake message of exactly this type: its body, and all its octets for the transcript. */
  message(type: number): { readonly body: Buffer; readonly octets: Buffer } {
    const start = this.#at;
    if (this.uint(1) !== type) throw new WireError('another handshake type');
    const body = this.vector(3);
    return { body, octets: this.#bytes.subarray(start, this.#at) };
  }

  /** Nothing may follow what was read. */
  end(): void {
    if (!this.done) throw new WireError('octets after the end');
  }
}

/** Type, u24 length, body. */
export function handshakeMessage(type: number, ...body: readonly Uint8Array[]): Buffer {
  const length = body.reduce((sum, part) => sum + part.length, 0);
  const header = Buffer.allocUnsafe(4);
  header.writeUInt32BE(length, 0);
  header[0] = type;
  return Buffer.concat([header, ...body], 4 + length);
}

/** The length field of a vector. @throws RangeError when the length does not fit. */
export function lengthField(octets: 1 | 2 | 3, length: number): Buffer {
  const field = Buffer.allocUnsafe(octets);
  field.writeUIntBE(length, 0, octets);
  return field;
}
