/** A signing key that this process holds itself. */
import { type KeyObject, sign } from 'node:crypto';
import { ecdsaSignatureRaw } from '../../src/pki/algorithms.ts';
import { publicKeyDer } from '../../src/pki/keys.ts';
import type { Signable, SigningKey } from './key-manager.ts';
import { type KeyType, keyTypeOf, SIGNING } from './key-type.ts';

/** Octets of r and of s (RFC 7518, section 3.4). */
const JWS_HALF: Readonly<Partial<Record<KeyType, number>>> = { 'ec-p256': 32, 'ec-p384': 48 };

export class SoftwareKey implements SigningKey {
  readonly id: string;
  readonly type: KeyType;
  readonly publicKey: Buffer;
  readonly #key: KeyObject;
  readonly #hash: 'sha256' | 'sha384';

  /** @throws CountersignError bad-input for a key of a type that authorities do not have. */
  constructor(id: string, key: KeyObject) {
    this.id = id;
    this.type = keyTypeOf(key);
    this.publicKey = publicKeyDer(key);
    this.#key = key;
    this.#hash = SIGNING[this.type].hash;
  }

  /** An asynchronous signature is no faster for P-256, and costs a thread. */
  sign(data: Signable): Buffer {
    return sign(this.#hash, data, this.#key);
  }

  signJws(data: Buffer): Buffer {
    const signature = sign(this.#hash, data, this.#key);
    const half = JWS_HALF[this.type];
    return half === undefined ? signature : ecdsaSignatureRaw(signature, half);
  }
}
