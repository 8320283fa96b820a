/** The kernel's maps with typed keys and values: which maps there are, and how one is read and written. */
import { type MapInfo, native } from '../../native/index.ts';
import * as layout from './layout.ts';
import type { Codec } from './record.ts';
import { noStep, type OnStep } from './steps.ts';

const batchSize = 4096;

/** Maps the agent reads or writes, with the structs they hold. They outlive it by their pins. */
export const pinnedMaps = {
  cs_config: [layout.u32Key, layout.configStruct],
  cs_endpoints: [layout.u32Key, layout.endpointStruct],
  cs_fences: [layout.fenceKeyStruct, layout.u8Value],
  cs_uses: [layout.u32Key, layout.u64Value],
  cs_host_exempt: [layout.hostExemptKeyStruct, layout.u8Value],
  cs_ipcache: [layout.addressStruct, layout.ipcacheStruct],
  cs_prefixes: [layout.prefixKeyStruct, layout.prefixStruct],
  cs_classes: [layout.classKeyStruct, layout.classStruct],
  cs_policy: [layout.policyKeyStruct, layout.policyStruct],
  cs_auth: [layout.authKeyStruct, layout.authStruct],
  cs_flow_auth: [layout.flowAuthKeyStruct, layout.flowAuthStruct],
  cs_flows: [layout.flowKeyStruct, layout.flowStruct],
  cs_drops: [layout.u32Key, layout.counterStruct],
  cs_observed: [layout.u32Key, layout.counterStruct],
  cs_pair_drops: [layout.pairKeyStruct, layout.counterStruct],
  cs_hold_taken: [layout.u32Key, layout.u64Value],
  cs_hold_returned: [layout.u32Key, layout.u64Value],
} as const;

/** Maps of the programs' own, pinned so that programs of an earlier agent and of this one share them. */
export const programMaps = ['cs_endpoints_by_id', 'cs_waiting', 'cs_fragments', 'cs_signals', 'cs_events'] as const;

export type PinnedMapName = keyof typeof pinnedMaps;
type Decoded<C> = C extends Codec<infer T> ? T : never;
type KeyOf<N extends PinnedMapName> = Decoded<(typeof pinnedMaps)[N][0]>;
type ValueOf<N extends PinnedMapName> = Decoded<(typeof pinnedMaps)[N][1]>;

export interface KernelMap<K, V> {
  readonly info: MapInfo;
  get(key: K): V | undefined;
  put(key: K, value: V): void;
  /** False if it was not there. */
  delete(key: K): boolean;
  putBatch(entries: readonly (readonly [K, V])[]): void;
  /** How many were there. */
  deleteBatch(keys: readonly K[]): number;
  /** Deletes every key of which the test holds; `at` is where it begins. Nothing is decoded: for maps that may be large. */
  deleteWhere(test: (keys: Buffer, at: number) => boolean): number;
  entries(): [K, V][];
}

export type DatapathMaps = { readonly [N in PinnedMapName]: KernelMap<KeyOf<N>, ValueOf<N>> };

/** @param infos by map name, as loadObject or the pins gave them. @throws Error when a map's sizes are not the layout's. */
export function openMaps(infos: Readonly<Record<string, MapInfo>>, onStep: OnStep = noStep): DatapathMaps {
  const out: Record<string, unknown> = {};
  for (const [name, [key, value]] of Object.entries(pinnedMaps)) {
    const info = infos[name];
    if (info === undefined) throw new Error(`the kernel programs have no map ${name}`);
    if (info.keySize !== key.size || info.valueSize !== value.size) {
      throw new Error(
        `map ${name} has keys of ${info.keySize} and values of ${info.valueSize} bytes, not ${key.size} and ${value.size}`,
      );
    }
    out[name] = kernelMap(info, key as Codec<unknown>, value as Codec<unknown>, () => onStep(`wrote ${name}`));
  }
  return out as DatapathMaps;
}

function kernelMap<K, V>(info: MapInfo, key: Codec<K>, value: Codec<V>, wrote: () => void): KernelMap<K, V> {
  const addon = native();
  const { fd } = info;
  // For one at a time: the kernel copies it before the call returns.
  const [oneKey, oneValue] = [Buffer.alloc(key.size), Buffer.alloc(value.size)];
  const pack = <T>(codec: Codec<T>, records: readonly T[]) => {
    const bytes = Buffer.allocUnsafe(records.length * codec.size).fill(0);
    records.forEach((record, i) => {
      codec.encodeInto(bytes, i * codec.size, record);
    });
    return bytes;
  };
  return {
    info,
    get(k) {
      const bytes = addon.mapLookup(fd, key.encode(k));
      return bytes === undefined ? undefined : value.decode(bytes);
    },
    put(k, v) {
      key.encodeInto(oneKey.fill(0), 0, k);
      value.encodeInto(oneValue.fill(0), 0, v);
      addon.mapUpdate(fd, oneKey, oneValue);
      wrote();
    },
    delete(k) {
      const was = addon.mapDelete(fd, key.encode(k));
      wrote();
      return was;
    },
    putBatch(entries) {
      for (let i = 0; i < entries.length; i += batchSize) {
        const part = entries.slice(i, i + batchSize);
        const keys = pack(
          key,
          part.map(([k]) => k),
        );
        const values = pack(
          value,
          part.map(([, v]) => v),
        );
        addon.mapUpdateBatch(fd, keys, values, part.length);
        wrote();
      }
    },
    deleteBatch(keys) {
      let deleted = 0;
      for (let i = 0; i < keys.length; i += batchSize) {
        const part = keys.slice(i, i + batchSize);
        deleted += addon.mapDeleteBatch(fd, pack(key, part), part.length);
        wrote();
      }
      return deleted;
    },
    deleteWhere(test) {
      const { keys, count } = addon.mapDump(fd);
      let found = 0;
      for (let i = 0; i < count; i++) {
        if (!test(keys, i * key.size)) continue;
        keys.copyWithin(found * key.size, i * key.size, (i + 1) * key.size);
        found++;
      }
      let deleted = 0;
      for (let i = 0; i < found; i += batchSize) {
        const n = Math.min(batchSize, found - i);
        deleted += addon.mapDeleteBatch(fd, keys.subarray(i * key.size, (i + n) * key.size), n);
        wrote();
      }
      return deleted;
    },
    entries() {
      const dump = addon.mapDump(fd);
      return Array.from({ length: dump.count }, (_, i) => [
        key.decode(dump.keys, i * key.size),
        // Per-CPU maps give the values of all CPUs; sumCounters() reads those.
        value.decode(dump.values, i * value.size),
      ]);
    },
  };
}
