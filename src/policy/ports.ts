/**
 * A verdict for every port as the fewest port prefixes. The kernel takes the longest prefix that it finds, so a prefix is
 * right for everything below it that has no prefix of its own (the construction is Draves, King, Venkatachary and Zill,
 * "Constructing optimal IP routing tables", 1999).
 */

/** Value numbers by port: [first port, value, first port, value, …], ascending, from port 0. */
export type Segments = readonly number[];

export interface PortPrefix {
  readonly port: number;
  readonly portBits: number;
  readonly value: number;
}

const BITS = 16;
/** No prefix at all: what else the kernel would find is right. */
const LEAVE = -1;

interface Tree {
  readonly first: number;
  readonly bits: number;
  /** Values that this node could have with the fewest prefixes below it, when something above it has one. */
  readonly below: readonly number[];
  /** The same, LEAVE among them, when nothing above it has one. */
  readonly free: readonly number[];
  readonly halves: readonly [Tree, Tree] | undefined;
}

/** `inherited`: what a port without a prefix gets. */
export function prefixesUnder(segments: Segments, inherited: number): PortPrefix[] {
  const found: PortPrefix[] = [];
  choose(treeOf(segments, undefined, 0, 0), inherited, found);
  return found;
}

/** `base`: what a port gets that neither a prefix of its own nor a broader one covers. */
export function prefixesOver(segments: Segments, base: Segments): PortPrefix[] {
  const found: PortPrefix[] = [];
  choose(treeOf(segments, base, 0, 0), LEAVE, found);
  return found;
}

function choose(tree: Tree, inherited: number, found: PortPrefix[]): void {
  const values = inherited === LEAVE ? tree.free : tree.below;
  let value = inherited;
  if (!values.includes(inherited)) {
    value = values.find((one) => one !== LEAVE)!;
    found.push({ port: tree.first, portBits: tree.bits, value });
  }
  for (const half of tree.halves ?? []) choose(half, value, found);
}

function treeOf(segments: Segments, base: Segments | undefined, first: number, bits: number): Tree {
  const size = 2 ** (BITS - bits);
  const at = indexOf(segments, first);
  const baseAt = base === undefined ? 0 : indexOf(base, first);
  const isWhole = endOf(segments, at) >= first + size && (base === undefined || endOf(base, baseAt) >= first + size);
  if (isWhole) {
    const value = segments[at + 1]!;
    const below = [value];
    const free = base === undefined ? below : base[baseAt + 1] === value ? [LEAVE, value] : below;
    return { first, bits, below, free, halves: undefined };
  }
  const low = treeOf(segments, base, first, bits + 1);
  const high = treeOf(segments, base, first + size / 2, bits + 1);
  return {
    first,
    bits,
    below: merge(low.below, high.below),
    free: base === undefined ? [] : merge(low.free, high.free),
    halves: [low, high],
  };
}

function merge(a: readonly number[], b: readonly number[]): readonly number[] {
  if (a === b) return a;
  if (a.length === 1 && b.length === 1) return a[0] === b[0] ? a : [a[0]!, b[0]!];
  const others = new Set(b);
  const common = a.filter((value) => others.has(value));
  return common.length > 0 ? common : [...new Set([...a, ...b])];
}

/** Index of the segment that holds the port. */
function indexOf(segments: Segments, port: number): number {
  let low = 0;
  let high = segments.length >> 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (segments[middle * 2]! <= port) low = middle;
    else high = middle;
  }
  return low * 2;
}

function endOf(segments: Segments, at: number): number {
  return segments[at + 2] ?? 65_536;
}
