/** The Finished MAC Key of one sender (RFC 9261, section 5.1), and HMAC (RFC 2104) under it. */
import { createHmac, createSecretKey, getFips, hash, type KeyObject, timingSafeEqual } from 'node:crypto';

export type AuthenticatorHash = 'sha256' | 'sha384';

export const HASH_LENGTH: Readonly<Record<AuthenticatorHash, number>> = { sha256: 32, sha384: 48 };
const BLOCK_LENGTH: Readonly<Record<AuthenticatorHash, number>> = { sha256: 64, sha384: 128 };

/**
 * Both pads of HMAC are made once; a MAC is then two one-shot hashes. An Hmac object for each would cost as much again as all
 * the hashing of a proof, most of it in the garbage collector. Under FIPS the MAC is the validated module's own nevertheless.
 * The key is in private fields: it does not print.
 */
export class FinishedKey {
  readonly #hash: AuthenticatorHash;
  /** Key xor ipad or opad, then room for the digest that is hashed with it. Used synchronously, so one of each is enough. */
  readonly #inner: Buffer;
  readonly #outer: Buffer;
  readonly #expected: Buffer;
  readonly #module: KeyObject | undefined;

  /** @param key not longer than a block of the hash: it is as long as its output. */
  constructor(hashName: AuthenticatorHash, key: Buffer, fips: boolean = getFips() === 1) {
    const block = BLOCK_LENGTH[hashName];
    if (key.length > block) throw new RangeError(`a key of ${key.length} octets is longer than a block`);
    this.#hash = hashName;
    this.#expected = Buffer.alloc(HASH_LENGTH[hashName]);
    this.#inner = Buffer.alloc(block + HASH_LENGTH[hashName], 0x36);
    this.#outer = Buffer.alloc(block + HASH_LENGTH[hashName], 0x5c);
    for (const [i, octet] of key.entries()) {
      this.#inner[i]! ^= octet;
      this.#outer[i]! ^= octet;
    }
    this.#module = fips ? createSecretKey(key) : undefined;
  }

  /** @param digest of the transcript. Digest and MAC are text, one octet for each character. */
  mac(digest: string): string {
    if (this.#module !== undefined)
      return createHmac(this.#hash, this.#module).update(digest, 'latin1').digest('binary');
    const block = BLOCK_LENGTH[this.#hash];
    this.#inner.write(digest, block, 'latin1');
    this.#outer.write(hash(this.#hash, this.#inner, 'binary'), block, 'latin1');
    return hash(this.#hash, this.#outer, 'binary');
  }

  /** Compares in constant time. */
  matches(digest: string, received: Buffer): boolean {
    this.#expected.write(this.mac(digest), 0, 'latin1');
    return received.length === this.#expected.length && timingSafeEqual(this.#expected, received);
  }
}
