/** The kernel's real maps, small, with every write noted in the order in which it came. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { native } from '../../../../native/index.ts';
import { type DatapathMaps, openMaps } from '../../../../src/datapath/maps.ts';

const objectPath = join(import.meta.dirname, '../../../../build/bpf/datapath.bpf.o');
/** Loading programs needs root and a build. */
export const possible = process.geteuid?.() === 0 && existsSync(objectPath);

export interface NotedMaps {
  readonly maps: DatapathMaps;
  /** "cs_policy.putBatch" and the like. */
  readonly log: string[];
  close(): void;
}

export function loadNotedMaps(maxEntries: Readonly<Record<string, number>>): NotedMaps {
  const object = native().loadObject({ path: objectPath, maxEntries });
  const log: string[] = [];
  return {
    maps: noted(openMaps(object.maps), log),
    log,
    close() {
      for (const { fd } of Object.values(object.maps)) native().closeFd(fd);
      for (const fd of Object.values(object.programs)) native().closeFd(fd);
    },
  };
}

function noted(maps: DatapathMaps, log: string[]): DatapathMaps {
  const entries = Object.entries(maps).map(([name, map]) => {
    const wrapped = { ...map } as Record<string, unknown>;
    for (const method of ['put', 'delete', 'putBatch', 'deleteBatch', 'deleteWhere']) {
      const original = (map as unknown as Record<string, (...args: unknown[]) => unknown>)[method]!;
      wrapped[method] = (...args: unknown[]) => {
        log.push(`${name}.${method}`);
        return original(...args);
      };
    }
    return [name, wrapped];
  });
  return Object.fromEntries(entries) as DatapathMaps;
}
