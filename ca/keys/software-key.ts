/** A signing key that this process holds itself. */
import { type KeyObject, sign } from 'node:crypto';
import { publicKeyDer } from '../../src/pki/keys.ts';
import type { Signable, SigningKey } from './key-manager.ts';
import { type KeyType, keyTypeOf, SIGNING } from './key-type.ts';

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
    return sign(this.#hash, data, { key: this.#key, dsaEncoding: 'ieee-p1363' });
  }
}
