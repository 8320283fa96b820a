/**
 * Connections whose other end has proven nothing yet, by where they come from. At a limit one of them gives way to a new one, so that who opens
 * many keeps out nobody but others of the same address.
 */
import { sourceOf } from '../src/model/address.ts';

export class Unproven {
  /** By source; the oldest of each first. */
  readonly #bySource = new Map<string, Set<() => void>>();
  #size = 0;

  get size(): number {
    return this.#size;
  }

  /** @param end closes the connection. Returns what takes it from the list, which may be called again. */
  add(remote: string, end: () => void): () => void {
    const source = sourceOf(remote);
    const held = this.#bySource.get(source) ?? new Set();
    this.#bySource.set(source, held.add(end));
    this.#size += 1;
    return () => {
      if (!held.delete(end)) return;
      this.#size -= 1;
      if (held.size === 0) this.#bySource.delete(source);
    };
  }

  /**
   * Ends the oldest one of the source that has most, if a new one from `remote` would not make that source as large: a crowd in which each comes
   * once keeps its places. False: none had to go.
   */
  makeRoomFor(remote: string): boolean {
    const own = this.#bySource.get(sourceOf(remote))?.size ?? 0;
    let most: Set<() => void> | undefined;
    for (const held of this.#bySource.values()) if (held.size > (most?.size ?? 0)) most = held;
    if (most === undefined || most.size <= own + 1) return false;
    const [oldest] = most;
    oldest!();
    return true;
  }
}
