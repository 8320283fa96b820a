/**
 * Hash tiles in the layout of C2SP tlog-tiles (https://c2sp.org/tlog-tiles): 256 hashes each, so that one event's inclusion
 * can be proved without reading the log. They are derived from the log: opening it mends what a crash left half done.
 */
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { HASH_SIZE } from './merkle.ts';

export const TILE_WIDTH = 256;
/** Binary levels of the tree that one level of tiles spans. */
const TILE_HEIGHT = 8;

/** "tile/0/x001/x234/067", relative to the log's directory. */
export function tilePath(level: number, index: number): string {
  const groups: string[] = [];
  let rest = index;
  do {
    groups.unshift(String(rest % 1000).padStart(3, '0'));
    rest = Math.floor(rest / 1000);
  } while (rest > 0);
  return join('tile', String(level), ...groups.map((g, i) => (i < groups.length - 1 ? `x${g}` : g)));
}

export interface Tile {
  readonly level: number;
  readonly index: number;
  /** 1 to 256 hashes back to back. */
  readonly hashes: Buffer;
}

/** Collects the subtrees a MerkleTree reports into tiles. */
export class TileBuilder {
  readonly #edge: { index: number; hashes: Buffer[] }[] = [];
  readonly #onFull: (tile: Tile) => void;

  constructor(onFull: (tile: Tile) => void) {
    this.#onFull = onFull;
  }

  add(treeLevel: number, hash: Buffer): void {
    if (treeLevel % TILE_HEIGHT !== 0) return;
    const level = treeLevel / TILE_HEIGHT;
    this.#edge[level] ??= { index: 0, hashes: [] };
    const tile = this.#edge[level];
    tile.hashes.push(hash);
    if (tile.hashes.length < TILE_WIDTH) return;
    this.#onFull({ level, index: tile.index, hashes: Buffer.concat(tile.hashes) });
    this.#edge[level] = { index: tile.index + 1, hashes: [] };
  }

  /** The partial tiles of the right edge. */
  partial(): Tile[] {
    return this.#edge.flatMap(({ index, hashes }, level) =>
      hashes.length === 0 ? [] : [{ level, index, hashes: Buffer.concat(hashes) }],
    );
  }
}

/** Writes a full tile unless the very same stands there, and takes its partial forerunners away. */
export function writeTile(dir: string, tile: Tile): void {
  const path = join(dir, tilePath(tile.level, tile.index));
  if (!existsSync(path) || !readFileSync(path).equals(tile.hashes)) writeWhole(path, tile.hashes);
  rmSync(`${path}.p`, { recursive: true, force: true });
}

/** Writes a partial tile as "<tile>.p/<width>" and takes narrower ones away; nothing to do if the tile has become full. */
export function writePartialTile(dir: string, tile: Tile): void {
  const full = join(dir, tilePath(tile.level, tile.index));
  if (existsSync(full)) return;
  const path = `${full}.p`;
  const width = String(tile.hashes.length / HASH_SIZE);
  writeWhole(join(path, width), tile.hashes);
  for (const name of readdirSync(path)) if (name !== width) rmSync(join(path, name), { force: true });
}

/** For a tile at the edge of a log whose tail was cut off: a full one there covers lines that are gone. */
export function removeTile(dir: string, tile: Tile): void {
  const path = join(dir, tilePath(tile.level, tile.index));
  rmSync(path, { force: true });
  rmSync(`${path}.p`, { recursive: true, force: true });
}

/** What is stored of this tile, whole or partial: at most as long as the tile itself. Undefined if nothing is. */
export function readTile(dir: string, level: number, index: number): Buffer | undefined {
  const path = join(dir, tilePath(level, index));
  if (existsSync(path)) return readFileSync(path);
  if (!existsSync(`${path}.p`)) return undefined;
  const widths = readdirSync(`${path}.p`).filter((name) => /^[1-9]\d{0,2}$/.test(name));
  const widest = widths.sort((a, b) => Number(a) - Number(b)).at(-1);
  return widest === undefined ? undefined : readFileSync(join(`${path}.p`, widest));
}

/** By rename, so that a reader never sees half a tile. */
function writeWhole(path: string, content: Buffer): void {
  mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
  writeFileSync(`${path}.tmp`, content, { mode: 0o600 });
  renameSync(`${path}.tmp`, path);
}
