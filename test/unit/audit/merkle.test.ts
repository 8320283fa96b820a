import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { leafHash, MerkleTree, nodeHash } from '../../../src/audit/merkle.ts';
import { TileBuilder, tilePath } from '../../../src/audit/tiles.ts';
import { merkleLeaves, merkleRoots } from './vectors.ts';

/** MTH as RFC 6962, section 2.1, writes it: split at the largest power of two below n. */
function definition(leaves: readonly Buffer[]): Buffer {
  if (leaves.length === 1) return leafHash(leaves[0]!);
  let k = 1;
  while (k * 2 < leaves.length) k *= 2;
  return nodeHash(definition(leaves.slice(0, k)), definition(leaves.slice(k)));
}

describe('the Merkle tree', () => {
  test('has the roots of the known vectors, from the empty tree on', () => {
    const tree = new MerkleTree();
    expect(tree.root().toString('hex')).toBe(merkleRoots[0]);
    merkleLeaves.forEach((leaf, i) => {
      tree.append(Buffer.from(leaf, 'hex'));
      expect(tree.root().toString('hex')).toBe(merkleRoots[i + 1]);
    });
  });

  test('equals the recursive definition for any leaves', () => {
    fc.assert(
      fc.property(fc.array(fc.uint8Array({ maxLength: 8 }), { minLength: 1, maxLength: 70 }), (arrays) => {
        const leaves = arrays.map((a) => Buffer.from(a));
        const tree = new MerkleTree();
        for (const leaf of leaves) tree.append(leaf);
        expect(tree.root()).toEqual(definition(leaves));
      }),
    );
  });

  test('tiles hold the hashes of every eighth level in order', () => {
    const full: string[] = [];
    const tiles = new TileBuilder((t) => full.push(`${t.level}/${t.index}/${t.hashes.length}`));
    const tree = new MerkleTree((level, hash) => tiles.add(level, hash));
    const leaves = Array.from({ length: 600 }, (_, i) => Buffer.from(`${i}`));
    for (const leaf of leaves) tree.append(leaf);
    expect(full).toEqual(['0/0/8192', '0/1/8192']);
    const [level0, level1] = tiles.partial();
    expect(level0).toMatchObject({ level: 0, index: 2 });
    expect(level0!.hashes.length).toBe(88 * 32);
    expect(level1!.hashes.subarray(32)).toEqual(definition(leaves.slice(256, 512)));
  });

  test('tile paths follow tlog-tiles', () => {
    expect(tilePath(0, 0)).toBe('tile/0/000');
    expect(tilePath(1, 67)).toBe('tile/1/067');
    expect(tilePath(0, 1234067)).toBe('tile/0/x001/x234/067');
  });
});
