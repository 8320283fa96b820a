/** Keys kept as blobs, PKCS#8 in PEM or sealed with a secret (seal.ts): what `ca.keys.type: disk` means, and what a replicated store holds. */
import type { KeyObject } from 'node:crypto';
import { CountersignError } from '../../src/base/errors.ts';
import { privateKeyDer, privateKeyFromDer, privateKeyFromPem, privateKeyPem } from '../../src/pki/keys.ts';
import type { KeyBlobs } from './blobs.ts';
import { checkKeyId, type KeyManager, type SigningKey } from './key-manager.ts';
import { generatePrivateKey, type KeyType } from './key-type.ts';
import { isSealed, type Sealer } from './seal.ts';
import { SoftwareKey } from './software-key.ts';

export class StoredKeys implements KeyManager {
  readonly #blobs: KeyBlobs;
  readonly #sealer: Sealer | undefined;
  readonly #former: Sealer | undefined;
  readonly #loaded = new Map<string, SigningKey>();

  /**
   * @param sealer undefined: keys are plain, guarded by the mode of their files alone.
   * @param former the secret of before: what it opens is sealed with the new one.
   * @throws CountersignError if no sealer does not do for `blobs`.
   */
  constructor(blobs: KeyBlobs, sealer: Sealer | undefined, former?: Sealer) {
    if (blobs.replicated && sealer === undefined) {
      throw new CountersignError(
        'bad-input',
        'ca.keys: keys in a replicated store must be encrypted; set passphraseFile or keyFile, the same on each server',
      );
    }
    this.#blobs = blobs;
    this.#sealer = sealer;
    this.#former = former;
  }

  async generate(id: string, type: KeyType): Promise<SigningKey> {
    checkKeyId(id);
    const key = await generatePrivateKey(type);
    if (!(await this.#blobs.create(id, await this.#encode(id, key)))) {
      throw new CountersignError('already-exists', `${this.#blobs.describe(id)}: there is a key already`);
    }
    return this.#remember(id, key);
  }

  /** A key that is plain, or sealed with the former secret, is sealed at once: from then on its file is of no use to who copies it. */
  async load(id: string): Promise<SigningKey | undefined> {
    checkKeyId(id);
    const known = this.#loaded.get(id);
    if (known !== undefined) return known;
    const blob = await this.#blobs.get(id);
    if (blob === undefined) return undefined;
    const { key, sealed } = await this.#decode(id, blob);
    if (this.#sealer !== undefined && !sealed) await this.#blobs.replace(id, await this.#encode(id, key));
    return this.#remember(id, key);
  }

  async adopt(id: string, key: KeyObject): Promise<SigningKey> {
    const held = await this.load(id);
    if (held !== undefined) return held;
    const adopted = new SoftwareKey(id, key);
    await this.#blobs.create(id, await this.#encode(id, key));
    this.#loaded.set(id, adopted);
    return adopted;
  }

  async remove(id: string): Promise<void> {
    checkKeyId(id);
    this.#loaded.delete(id);
    await this.#blobs.delete(id);
  }

  list(): Promise<string[]> {
    return this.#blobs.list();
  }

  close(): void {
    this.#loaded.clear();
    this.#sealer?.close();
    this.#former?.close();
  }

  #remember(id: string, key: KeyObject): SigningKey {
    const signing = new SoftwareKey(id, key);
    this.#loaded.set(id, signing);
    return signing;
  }

  async #encode(id: string, key: KeyObject): Promise<Buffer> {
    if (this.#sealer === undefined) return Buffer.from(privateKeyPem(key), 'latin1');
    const bytes = privateKeyDer(key);
    const sealed = await this.#sealer.seal(id, bytes);
    bytes.fill(0);
    return sealed;
  }

  /** `sealed`: with the present secret. */
  async #decode(id: string, blob: Buffer): Promise<{ key: KeyObject; sealed: boolean }> {
    try {
      if (!isSealed(blob)) return { key: privateKeyFromPem(blob.toString('latin1')), sealed: false };
      const opened = await this.#unseal(id, blob);
      const key = privateKeyFromDer(opened.bytes);
      opened.bytes.fill(0);
      return { key, sealed: opened.sealed };
    } catch (thrown) {
      if (!(thrown instanceof CountersignError)) throw thrown;
      throw new CountersignError(thrown.code, `${this.#blobs.describe(id)}: ${thrown.message}`);
    }
  }

  async #unseal(id: string, blob: Buffer): Promise<{ bytes: Buffer; sealed: boolean }> {
    const sealer = this.#sealer ?? this.#former;
    if (sealer === undefined) {
      throw new CountersignError(
        'bad-input',
        'it is encrypted; name its secret by passphraseFile or keyFile, in ca.keys or, if keys are kept elsewhere now, in ca.keys.former',
      );
    }
    try {
      return { bytes: await sealer.open(id, blob), sealed: sealer === this.#sealer };
    } catch (thrown) {
      if (this.#former === undefined || sealer === this.#former) throw thrown;
      return { bytes: await this.#former.open(id, blob), sealed: false };
    }
  }
}
