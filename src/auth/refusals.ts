/**
 * Keys whose packets the kernel drops at once because they failed: what is said of them is taken back when they may be tried again, and
 * when nobody did so for a while, so that the table holds no more than what failed lately.
 */
import type { AuthKey, AuthTable } from '../model/datapath.ts';
import { authKeyText } from './auth-entries.ts';

/** Beyond it the oldest is taken back at once: its next packet is held, and tried. */
const MAX_REFUSALS = 16_384;

export class Refusals {
  readonly #table: AuthTable;
  readonly #keys = new Map<string, { readonly key: AuthKey; readonly untilNs: bigint }>();

  constructor(table: AuthTable) {
    this.#table = table;
  }

  get size(): number {
    return this.#keys.size;
  }

  /** @param isWritten the kernel has it already. */
  add(key: AuthKey, untilNs: bigint, isWritten = false): void {
    const { local, remote, remoteNode, authType } = key;
    const plain = { local, remote, remoteNode, authType };
    if (!isWritten) this.#table.refuse([plain], untilNs);
    const text = authKeyText(plain);
    this.#keys.delete(text);
    this.#keys.set(text, { key: plain, untilNs });
    if (this.#keys.size > MAX_REFUSALS) this.#takeBack([this.#keys.values().next().value!.key]);
  }

  /** A proof was written in its place. */
  replaced(key: AuthKey): void {
    if (this.#keys.size > 0) this.#keys.delete(authKeyText(key));
  }

  /** Their packets are held again. */
  forgive(concerns: (key: AuthKey) => boolean): void {
    this.#takeBack([...this.#keys.values()].flatMap(({ key }) => (concerns(key) ? [key] : [])));
  }

  /** Those that have ended: the kernel heeds them no more. */
  sweep(nowNs: bigint): void {
    this.#takeBack([...this.#keys.values()].flatMap(({ key, untilNs }) => (untilNs <= nowNs ? [key] : [])));
  }

  #takeBack(keys: readonly AuthKey[]): void {
    if (keys.length === 0) return;
    for (const key of keys) this.#keys.delete(authKeyText(key));
    this.#table.delete(keys);
  }
}
