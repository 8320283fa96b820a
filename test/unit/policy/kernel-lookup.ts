/** The kernel's policy lookup, from bpf/abi/abi.h alone: nothing of the compiler is used here. */
import type { Direction, PolicyDelta, PolicyEntry, PolicyEntryKey, PolicyTables } from '../../../src/model/datapath.ts';

export interface KernelVerdict {
  readonly verdict: 'allow' | 'deny';
  readonly authType: string;
  readonly rule: number;
}

const DROP: KernelVerdict = { verdict: 'deny', authType: 'none', rule: 0 };

const keyOf = (local: number, remote: number, direction: Direction, protocol: number, port: number, bits: number) =>
  `${direction} ${local} ${remote} ${protocol} ${port}/${bits}`;

/** The tables as maps. Two entries of one key cannot both be in a map: @throws Error */
export function kernelLookup(tables: PolicyTables) {
  const classes = new Map<number, PolicyTables['classes'][number]>();
  for (const row of tables.classes) {
    if (classes.has(row.identity)) throw new Error(`two class rows for identity ${row.identity}`);
    classes.set(row.identity, row);
  }
  const entries = new Map<string, PolicyEntry>();
  for (const e of tables.entries) {
    const key = keyOf(e.local, e.remote, e.direction, e.protocol, e.port, e.portBits);
    if (entries.has(key)) throw new Error(`two entries with the key ${key}`);
    if ((e.port & ~prefixMask(e.portBits)) !== 0) throw new Error(`bits behind the port prefix of ${key}`);
    entries.set(key, e);
  }

  const find = (
    local: PolicyTables['classes'][number],
    remote: number,
    direction: Direction,
    proto: number,
    port: number,
  ) => {
    const lengths = local.portBits[direction];
    const mine = local.local[direction];
    for (const peer of [remote, 0]) {
      for (let bits = 16; bits >= 0; bits--) {
        if ((lengths & (1 << bits)) === 0) continue;
        const found = entries.get(keyOf(mine, peer, direction, proto, port & prefixMask(bits), bits));
        if (found !== undefined) return found;
      }
      const any = (lengths & 1) === 0 ? undefined : entries.get(keyOf(mine, peer, direction, 0, 0, 0));
      if (any !== undefined) return any;
    }
    return undefined;
  };

  return (direction: Direction, local: number, remote: number, protocol: number, port: number): KernelVerdict => {
    const mine = classes.get(local);
    const theirs = classes.get(remote);
    if (mine === undefined || theirs === undefined || mine.local[direction] === 0) return DROP;
    const found = find(mine, theirs.remote[direction], direction, protocol, port);
    if (found === undefined) return DROP;
    return { verdict: found.verdict, authType: found.verdict === 'deny' ? 'none' : found.authType, rule: found.rule };
  };
}

/** The tables once all of a delta is written, in the order in which it must be. */
export function withDelta(tables: PolicyTables, delta: PolicyDelta): PolicyTables {
  const key = (e: PolicyEntryKey) => keyOf(e.local, e.remote, e.direction, e.protocol, e.port, e.portBits);
  const entries = new Map(tables.entries.map((e) => [key(e), e]));
  const classes = new Map(tables.classes.map((row) => [row.identity, row]));
  for (const e of delta.putEntries) entries.set(key(e), e);
  for (const row of delta.putClasses) classes.set(row.identity, row);
  for (const identity of delta.deleteClasses) classes.delete(identity);
  for (const e of delta.deleteEntries) entries.delete(key(e));
  return { entries: [...entries.values()], classes: [...classes.values()], cidrs: tables.cidrs, host: tables.host };
}

function prefixMask(bits: number): number {
  return (0xffff0000 >>> bits) & 0xffff;
}
