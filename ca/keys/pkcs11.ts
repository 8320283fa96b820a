/** Keys in a PKCS#11 token (`ca.keys.type: pkcs11`): made in it, used in it, and never out of it. */
import { createPublicKey, hash, randomBytes, verify } from 'node:crypto';
import { CountersignError } from '../../src/base/errors.ts';
import { ecdsaSignatureDer } from '../../src/pki/algorithms.ts';
import { checkKeyId, type KeyManager, type Signable, type SigningKey } from './key-manager.ts';
import { type KeyType, keyTypeOfSpki, SIGNING } from './key-type.ts';
import { keyPairTemplates, publicKeyOf, refuseExtractable } from './pkcs11-objects.ts';
import { type KeyHandle, Token, type TokenOptions } from './pkcs11-token.ts';

export interface Pkcs11Options extends TokenOptions {
  /** Before each id in a label: tells the keys of several authorities in one token apart. */
  readonly labelPrefix: string;
}

export class Pkcs11Keys implements KeyManager {
  readonly #token: Token;
  readonly #labelPrefix: string;

  private constructor(token: Token, labelPrefix: string) {
    this.#token = token;
    this.#labelPrefix = labelPrefix;
  }

  /** Opens the token. @throws CountersignError naming the field to correct: module, token, pinFile. */
  static open(options: Pkcs11Options): Pkcs11Keys {
    return new Pkcs11Keys(Token.open(options), options.labelPrefix);
  }

  async generate(id: string, type: KeyType): Promise<SigningKey> {
    const label = this.#label(id);
    const token = this.#token;
    if (token.find('private', label) !== undefined) {
      throw new CountersignError('already-exists', `${token.name}: there is a key ${id} already`);
    }
    await token.generateKeyPair(keyPairTemplates(token.constants, type, label));
    const key = this.#open(id);
    if (key === undefined)
      throw new CountersignError('internal', `${token.name}: the key ${id} that was made is not there`);
    return key;
  }

  async load(id: string): Promise<SigningKey | undefined> {
    return this.#open(id);
  }

  async adopt(id: string): Promise<SigningKey> {
    throw new CountersignError(
      'unsupported',
      `${this.#token.name}: the key ${id} was made outside of the token and is not taken in; let the authority make a new one`,
    );
  }

  async remove(id: string): Promise<void> {
    for (const kind of ['private', 'public'] as const) this.#token.destroy(kind, this.#label(id));
  }

  async list(): Promise<string[]> {
    return this.#token
      .labels()
      .filter((label) => label.startsWith(this.#labelPrefix))
      .map((label) => label.slice(this.#labelPrefix.length))
      .sort();
  }

  close(): void {
    this.#token.close();
  }

  #label(id: string): string {
    checkKeyId(id);
    return `${this.#labelPrefix}${id}`;
  }

  #open(id: string): SigningKey | undefined {
    const token = this.#token;
    const label = this.#label(id);
    const handle = token.find('private', label);
    const publicHandle = token.find('public', label);
    if (handle === undefined || publicHandle === undefined) return undefined;
    refuseExtractable(token, handle, id);
    const key = new TokenKey(id, label, publicKeyOf(token, publicHandle), token, handle);
    key.prove();
    return key;
  }
}

class TokenKey implements SigningKey {
  readonly id: string;
  readonly type: KeyType;
  readonly publicKey: Buffer;
  readonly #label: string;
  readonly #token: Token;
  #handle: KeyHandle;

  constructor(id: string, label: string, publicKey: Buffer, token: Token, handle: KeyHandle) {
    this.id = id;
    this.type = keyTypeOfSpki(publicKey);
    this.publicKey = publicKey;
    this.#label = label;
    this.#token = token;
    this.#handle = handle;
  }

  sign(data: Signable): Buffer {
    const signature = this.signJws(data);
    return this.type.startsWith('rsa') ? signature : ecdsaSignatureDer(signature);
  }

  /** r‖s and PKCS #1 v1.5 are what a token gives (PKCS#11 3.0 current mechanisms, sections 2.3.1 and 2.1.6). */
  signJws(data: Buffer): Buffer {
    const { constants } = this.#token;
    const [mechanism, input] = this.type.startsWith('rsa')
      ? [constants.CKM_SHA256_RSA_PKCS, data]
      : [constants.CKM_ECDSA, hash(SIGNING[this.type].hash, data, 'buffer')];
    try {
      return this.#signNow(mechanism, input);
    } catch (thrown) {
      // the token was away: it may be there again
      if (!this.#token.reopen()) throw thrown;
      return this.#signNow(mechanism, input);
    }
  }

  #signNow(mechanism: number, input: Buffer): Buffer {
    if (!this.#token.holds(this.#handle)) this.#handle = this.#found();
    return this.#token.sign(this.#handle, mechanism, input);
  }

  /** The two halves are found by their label, and whoever writes to the token can write any label. */
  prove(): void {
    const challenge = randomBytes(32);
    const key = createPublicKey({ key: this.publicKey, format: 'der', type: 'spki' });
    if (verify(SIGNING[this.type].hash, challenge, key, this.sign(challenge as Signable))) return;
    throw new CountersignError(
      'bad-input',
      `${this.#token.name}: the private and the public key labelled "${this.#label}" do not belong together; remove both from the token`,
    );
  }

  #found(): KeyHandle {
    const handle = this.#token.find('private', this.#label);
    const publicHandle = this.#token.find('public', this.#label);
    if (
      handle !== undefined &&
      publicHandle !== undefined &&
      publicKeyOf(this.#token, publicHandle).equals(this.publicKey)
    ) {
      return handle;
    }
    throw new CountersignError(
      'unavailable',
      `${this.#token.name}: the key ${this.id} is not in it any more; restore the token from its backup`,
    );
  }
}
