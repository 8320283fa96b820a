/** How many packets were dropped, and why: the kernel's counters, and those of packets that died in the hold queue. */
import { native } from '../../native/index.ts';
import { type DropReason, dropReasonName, dropReasons } from '../base/registry/drop-reasons.gen.ts';
import type { Direction, DropCount, PairDropCount } from '../model/datapath.ts';
import { securityIdentity } from '../model/ids.ts';
import { counterStruct, EGRESS, INGRESS, u32Key } from './layout.ts';
import type { DatapathMaps } from './maps.ts';

/** Drops that happen in the agent. They live as long as the process does. */
export class DropCounters {
  readonly #counts = new Map<number, { packets: bigint; bytes: bigint }>();

  add(reason: DropReason, direction: Direction, bytes: number, packets = 1n): void {
    const index = dropReasons[reason].code * 2 + (direction === 'ingress' ? INGRESS : EGRESS);
    const count = this.#counts.get(index) ?? { packets: 0n, bytes: 0n };
    count.packets += packets;
    count.bytes += BigInt(bytes);
    this.#counts.set(index, count);
  }

  /** Kernel and agent together; reasons that never happened are left out. */
  merged(maps: DatapathMaps): DropCount[] {
    const counts = kernelCounts(maps.cs_drops);
    for (const [index, { packets, bytes }] of this.#counts) {
      const count = counts.get(index) ?? { packets: 0n, bytes: 0n };
      counts.set(index, { packets: count.packets + packets, bytes: count.bytes + bytes });
    }
    return describe(counts);
  }
}

/** The kernel's counters alone, for a reader without an agent. */
export function readDrops(maps: DatapathMaps): DropCount[] {
  return describe(kernelCounts(maps.cs_drops));
}

/** What would have been dropped and passed, because policies only observe or enforcement is stopped. */
export function readObserved(maps: DatapathMaps): DropCount[] {
  return describe(kernelCounts(maps.cs_observed));
}

/** The pairs of identities that dropped last, most packets first. */
export function readPairDrops(maps: DatapathMaps): PairDropCount[] {
  return maps.cs_pair_drops
    .entries()
    .map(([key, { packets, bytes }]) => ({
      local: securityIdentity(key.local),
      remote: securityIdentity(key.remote),
      reason: reasonOf(key.reason),
      direction: directionOf(key.direction),
      packets,
      bytes,
    }))
    .sort((a, b) => (a.packets === b.packets ? 0 : a.packets < b.packets ? 1 : -1));
}

function kernelCounts(map: DatapathMaps['cs_drops']): Map<number, { packets: bigint; bytes: bigint }> {
  const { keys, values, count } = native().mapDump(map.info.fd);
  const perKey = count === 0 ? 0 : values.length / count; // one counter for each CPU
  const counts = new Map<number, { packets: bigint; bytes: bigint }>();
  for (let i = 0; i < count; i++) {
    let packets = 0n;
    let bytes = 0n;
    for (let at = i * perKey; at < (i + 1) * perKey; at += counterStruct.size) {
      const cpu = counterStruct.decode(values, at);
      packets += cpu.packets;
      bytes += cpu.bytes;
    }
    if (packets > 0n) counts.set(u32Key.decode(keys, i * u32Key.size).n, { packets, bytes });
  }
  return counts;
}

function describe(counts: Map<number, { packets: bigint; bytes: bigint }>): DropCount[] {
  return [...counts]
    .sort(([a], [b]) => a - b)
    .map(([index, { packets, bytes }]) => ({
      reason: reasonOf(index >> 1),
      direction: directionOf(index % 2),
      packets,
      bytes,
    }));
}

function reasonOf(code: number): DropCount['reason'] {
  return dropReasonName(code) ?? `UNKNOWN_${code}`;
}

function directionOf(code: number): Direction {
  return code === INGRESS ? 'ingress' : 'egress';
}
