/** Which pairs packets asked for last, so that what is used is proven before what may never be. Bounded: the least recent is forgotten. */
import type { AuthKey } from '../model/datapath.ts';
import type { NodeId } from '../model/ids.ts';
import { authKeyText } from './auth-entries.ts';

const MAX_PAIRS = 65_536;

export class RecentPairs {
  readonly #usedNs = new Map<string, bigint>();
  readonly #nodeUsedNs = new Map<NodeId, bigint>();

  used(key: AuthKey, nowNs: bigint): void {
    const text = authKeyText(key);
    this.#usedNs.delete(text);
    this.#usedNs.set(text, nowNs);
    if (this.#usedNs.size > MAX_PAIRS) this.#usedNs.delete(this.#usedNs.keys().next().value!);
    this.#nodeUsedNs.set(key.remoteNode, nowNs);
  }

  /** CLOCK_BOOTTIME; 0: not remembered. */
  lastUse(key: AuthKey): bigint {
    return this.#usedNs.get(authKeyText(key)) ?? 0n;
  }

  lastUseOf(node: NodeId): bigint {
    return this.#nodeUsedNs.get(node) ?? 0n;
  }

  forget(node: NodeId): void {
    this.#nodeUsedNs.delete(node);
  }

  get isEmpty(): boolean {
    return this.#usedNs.size === 0;
  }
}
