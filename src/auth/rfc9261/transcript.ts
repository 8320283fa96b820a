/** Authenticator transcripts and what is made of them: the octets a CertificateVerify signs, the MAC of a Finished (RFC 9261, section 5.2). */
import { hash } from 'node:crypto';
import type { AuthenticatorHash } from './finished-key.ts';
import type { SenderKeys } from './keys.ts';
import { HANDSHAKE_HEADER_OCTETS } from './wire.ts';

/** Section 5.2.2: 64 octets of 0x20, the context string, one zero octet; the hashed transcript follows. */
const SIGNED_PREFIX = Buffer.concat([Buffer.alloc(64, 0x20), Buffer.from('Exported Authenticator\0', 'ascii')]);
const signedContents: Readonly<Record<AuthenticatorHash, Buffer>> = {
  sha256: Buffer.concat([SIGNED_PREFIX, Buffer.alloc(32)]),
  sha384: Buffer.concat([SIGNED_PREFIX, Buffer.alloc(48)]),
};

/**
 * All transcripts are written into this one buffer, messages that are being made too: proofs are made and checked
 * synchronously, one after the other, and a buffer for each part would cost more than the hashing.
 */
let scratch = Buffer.allocUnsafeSlow(16_384);

/** Handshake Context, then the messages in order. Used up before the next one begins. */
export class Transcript {
  readonly #hash: AuthenticatorHash;
  readonly #sender: SenderKeys;
  #length = 0;
  #message = 0;

  constructor(hashName: AuthenticatorHash, sender: SenderKeys) {
    this.#hash = hashName;
    this.#sender = sender;
    this.add(sender.handshakeContext);
  }

  get length(): number {
    return this.#length;
  }

  add(octets: Buffer): this {
    const at = this.#grow(octets.length);
    scratch.set(octets, at);
    return this;
  }

  /** Begins a handshake message (RFC 8446, section 4): what is added until `close` is its body. */
  open(type: number): this {
    this.#message = this.#grow(HANDSHAKE_HEADER_OCTETS);
    scratch[this.#message] = type;
    return this;
  }

  close(): this {
    const body = this.#message + HANDSHAKE_HEADER_OCTETS;
    scratch.writeUIntBE(this.#length - body, this.#message + 1, 3);
    return this;
  }

  /** Big endian. @throws RangeError when it does not fit. */
  uint(octets: 1 | 2 | 3, value: number): this {
    const at = this.#grow(octets);
    scratch.writeUIntBE(value, at, octets);
    return this;
  }

  /** A digest: one octet for each character. */
  addDigest(digest: string): this {
    const at = this.#grow(digest.length);
    scratch.write(digest, at, 'latin1');
    return this;
  }

  /** A copy of what was added since the transcript had this length. */
  since(length: number): Buffer {
    return Buffer.from(scratch.subarray(length, this.#length));
  }

  /** What CertificateVerify covers, up to what was added so far, the Certificate message. Valid until the next one is made. */
  signedContent(): Buffer {
    const content = signedContents[this.#hash];
    content.write(this.#digest(), SIGNED_PREFIX.length, 'latin1');
    return content;
  }

  /** Section 5.2.3: HMAC under the sender's Finished MAC Key, over what was added so far. One octet for each character. */
  finishedMac(): string {
    return this.#sender.finishedKey.mac(this.#digest());
  }

  /** Is this that MAC? In constant time. */
  isFinishedMac(received: Buffer): boolean {
    return this.#sender.finishedKey.matches(this.#digest(), received);
  }

  #grow(octets: number): number {
    const at = this.#length;
    this.#length += octets;
    if (this.#length > scratch.length) {
      const larger = Buffer.allocUnsafeSlow(2 * this.#length);
      scratch.copy(larger, 0, 0, at);
      scratch = larger;
    }
    return at;
  }

  /** As text of one octet for each character, which is cheaper than a buffer of its own. */
  #digest(): string {
    return hash(this.#hash, scratch.subarray(0, this.#length), 'binary');
  }
}
