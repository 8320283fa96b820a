/** Fences of an endpoint towards single nodes (FenceSend, FenceReceive): written before the endpoint opens, gone with it. */
import type { Fence, FenceTable } from '../model/datapath.ts';
import { nodeId } from '../model/ids.ts';
import type { DatapathMaps } from './maps.ts';

export interface EndpointFences extends FenceTable {
  has(endpoint: number): boolean;
  /** All of the endpoint's. */
  clear(endpoint: number): void;
}

/** @param mark says to the endpoint's row in the kernel whether it has fences; called after the map is written. */
export function createFenceTable(maps: DatapathMaps, mark: (endpoint: number) => void): EndpointFences {
  // Read once: nobody else writes them.
  const nodesOf = new Map<number, Set<number>>();
  for (const { endpoint, node } of readFences(maps))
    nodesOf.set(endpoint, (nodesOf.get(endpoint) ?? new Set()).add(node));

  const remove = (endpoint: number, nodes: readonly number[]) => {
    const known = nodesOf.get(endpoint);
    if (known === undefined) return;
    const gone = nodes.filter((node) => known.delete(node));
    maps.cs_fences.deleteBatch(gone.map((node) => ({ endpoint, node })));
    if (known.size > 0) return;
    nodesOf.delete(endpoint);
    mark(endpoint);
  };

  return {
    has: (endpoint) => nodesOf.has(endpoint),
    close(endpoint, nodes) {
      const local = nodes.find((node) => node === 0);
      if (local !== undefined) throw new RangeError('a fence stands towards another node, never towards the own one');
      if (nodes.length === 0) return;
      maps.cs_fences.putBatch(nodes.map((node) => [{ endpoint, node }, { n: 1 }] as const));
      const known = nodesOf.get(endpoint) ?? new Set();
      for (const node of nodes) known.add(node);
      nodesOf.set(endpoint, known);
      mark(endpoint);
    },
    open: remove,
    clear: (endpoint) => remove(endpoint, [...(nodesOf.get(endpoint) ?? [])]),
    list: () =>
      [...nodesOf].flatMap(([endpoint, nodes]) => [...nodes].map((node) => ({ endpoint, node: nodeId(node) }))),
  };
}

export function readFences(maps: DatapathMaps): Fence[] {
  return maps.cs_fences.entries().map(([{ endpoint, node }]) => ({ endpoint, node: nodeId(node) }));
}
