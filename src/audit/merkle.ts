/** The Merkle tree of RFC 6962, section 2.1 (RFC 9162, section 2.1), grown leaf by leaf with only its right edge in memory. */
import { hash } from 'node:crypto';

export const HASH_SIZE = 32;
/** Inputs are put together here, since an allocation for each costs as much as the hash. Hashing is synchronous. */
const scratch = Buffer.alloc(4096);

/** MTH of the empty list: SHA-256 of nothing. */
export const EMPTY_ROOT: Buffer = hash('sha256', '', 'buffer');

export function leafHash(leaf: Buffer): Buffer {
  const input = leaf.length < scratch.length ? scratch.subarray(0, leaf.length + 1) : Buffer.alloc(leaf.length + 1);
  input[0] = 0x00;
  leaf.copy(input, 1);
  return hash('sha256', input, 'buffer');
}

export function nodeHash(left: Buffer, right: Buffer): Buffer {
  scratch[0] = 0x01;
  left.copy(scratch, 1);
  right.copy(scratch, 1 + HASH_SIZE);
  return hash('sha256', scratch.subarray(0, 1 + 2 * HASH_SIZE), 'buffer');
}

/** Told of each perfect subtree once, when it is complete: 2^level leaves, in order within a level. */
export type OnSubtree = (level: number, hash: Buffer) => void;

export class MerkleTree {
  #size = 0;
  /** #edge[k]: the perfect subtree of 2^k leaves at the right edge, if bit k of the size is set. */
  readonly #edge: Buffer[] = [];
  readonly #onSubtree: OnSubtree | undefined;

  constructor(onSubtree?: OnSubtree) {
    this.#onSubtree = onSubtree;
  }

  get size(): number {
    return this.#size;
  }

  append(leaf: Buffer): void {
    let level = 0;
    let subtree = leafHash(leaf);
    this.#onSubtree?.(level, subtree);
    // As in binary addition: two subtrees of a level carry into one of the next. Plain division, since sizes may pass 2^31.
    for (let carry = this.#size; carry % 2 === 1; carry = (carry - 1) / 2) {
      subtree = nodeHash(this.#edge[level]!, subtree);
      level++;
      this.#onSubtree?.(level, subtree);
    }
    this.#edge[level] = subtree;
    this.#size++;
  }

  /** The root over all leaves so far, in O(log n). */
  root(): Buffer {
    let root: Buffer | undefined;
    let rest = this.#size;
    for (let level = 0; rest > 0; level++) {
      if (rest % 2 === 1) {
        root = root === undefined ? this.#edge[level]! : nodeHash(this.#edge[level]!, root);
        rest--;
      }
      rest /= 2;
    }
    return root ?? EMPTY_ROOT;
  }
}
