/** Keys that live as long as the process does. */
import type { KeyObject } from 'node:crypto';
import { CountersignError } from '../../src/base/errors.ts';
import { checkKeyId, type KeyManager, type SigningKey } from './key-manager.ts';
import { generatePrivateKey, type KeyType } from './key-type.ts';
import { SoftwareKey } from './software-key.ts';

export class MemoryKeys implements KeyManager {
  readonly #keys = new Map<string, SigningKey>();

  async generate(id: string, type: KeyType): Promise<SigningKey> {
    checkKeyId(id);
    const key = new SoftwareKey(id, await generatePrivateKey(type));
    if (this.#keys.has(id)) throw new CountersignError('already-exists', `there is a key ${id} already`);
    this.#keys.set(id, key);
    return key;
  }

  async load(id: string): Promise<SigningKey | undefined> {
    return this.#keys.get(id);
  }

  async adopt(id: string, key: KeyObject): Promise<SigningKey> {
    checkKeyId(id);
    const held = this.#keys.get(id) ?? new SoftwareKey(id, key);
    this.#keys.set(id, held);
    return held;
  }

  async remove(id: string): Promise<void> {
    this.#keys.delete(id);
  }

  async list(): Promise<string[]> {
    return [...this.#keys.keys()].sort();
  }

  close(): void {
    this.#keys.clear();
  }
}
