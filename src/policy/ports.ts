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
const PORTS = 65_536;
/** No prefix at all: what else the kernel would find is right. */
const LEAVE = -1;

interface Tree {
  /** Values that this node could have with the fewest prefixes below it, when something above it has one. */
  readonly below: readonly number[];
  /** The same, LEAVE among them, when nothing above it has one. */
  readonly free: readonly number[];
  readonly halves: readonly [Tree, Tree] | undefined;
}

/** `inherited`: what a port without a prefix gets. */
export function prefixesUnder(segments: Segments, inherited: number): PortPrefix[] {
  const found = singlePorts(segments, [0, inherited]);
  if (found !== undefined) return found;
  const prefixes: PortPrefix[] = [];
  choose(treeOf(segments, undefined, 0, 0), 0, 0, inherited, prefixes);
  return prefixes;
}

/** `base`: what a port gets that neither a prefix of its own nor a broader one covers. */
export function prefixesOver(segments: Segments, base: Segments): PortPrefix[] {
  const found = singlePorts(segments, base);
  if (found !== undefined) return found;
  const prefixes: PortPrefix[] = [];
  choose(treeOf(segments, base, 0, 0), 0, 0, LEAVE, prefixes);
  return prefixes;
}

/** The usual case, without a tree: nothing differs from the base but ports one by one. undefined: it is not that case. */
function singlePorts(segments: Segments, base: Segments): PortPrefix[] | undefined {
  const found: PortPrefix[] = [];
  let at = 0;
  let baseAt = 0;
  for (let port = 0; port < PORTS; ) {
    const next = Math.min(endOf(segments, at), endOf(base, baseAt));
    const value = segments[at + 1]!;
    if (value !== base[baseAt + 1]) {
      if (next !== port + 1) return undefined;
      found.push({ port, portBits: BITS, value });
    }
    if (endOf(segments, at) === next) at += 2;
    if (endOf(base, baseAt) === next) baseAt += 2;
    port = next;
  }
  return found;
}

function choose(tree: Tree, port: number, portBits: number, inherited: number, found: PortPrefix[]): void {
  const values = inherited === LEAVE ? tree.free : tree.below;
  let value = inherited;
  if (!values.includes(inherited)) {
    value = values.find((one) => one !== LEAVE)!;
    found.push({ port, portBits, value });
  }
  if (tree.halves === undefined) return;
  choose(tree.halves[0], port, portBits + 1, value, found);
  choose(tree.halves[1], port + PORTS / 2 ** (portBits + 1), portBits + 1, value, found);
}

function treeOf(segments: Segments, base: Segments | undefined, first: number, bits: number): Tree {
  const end = first + PORTS / 2 ** bits;
  const at = indexOf(segments, first);
  const baseAt = base === undefined ? 0 : indexOf(base, first);
  if (endOf(segments, at) >= end && (base === undefined || endOf(base, baseAt) >= end)) {
    const value = segments[at + 1]!;
    const below = [value];
    return { below, free: base?.[baseAt + 1] === value ? [LEAVE, value] : below, halves: undefined };
  }
  const low = treeOf(segments, base, first, bits + 1);
  const high = treeOf(segments, base, (first + end) / 2, bits + 1);
  return {
    below: merge(low.below, high.below),
    free: base === undefined ? [] : merge(low.free, high.free),
    halves: [low, high],
  };
}

function merge(a: readonly number[], b: readonly number[]): readonly number[] {
  if (b.length === 1) return a.includes(b[0]!) ? b : [...a, b[0]!];
  if (a.length === 1) return b.includes(a[0]!) ? a : [a[0]!, ...b];
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
  return segments[at + 2] ?? PORTS;
}
