/** The one record the programs read on every packet: revision, epoch, policy slot, hold limits, flags. */
import { configStruct } from './layout.ts';
import type { DatapathMaps, KernelMap } from './maps.ts';
import type { Codec } from './record.ts';

type Config = typeof configStruct extends Codec<infer T> ? T : never;

const only = { n: 0 };

/** Sole writer of cs_config. After a restart it goes on from what is pinned, so that nothing proven is lost. */
export class ConfigWriter {
  readonly #map: KernelMap<{ n: number }, Config>;
  #current: Config;

  constructor(maps: DatapathMaps) {
    this.#map = maps.cs_config;
    this.#current = this.#map.get(only) ?? configStruct.decode(Buffer.alloc(configStruct.size));
    // Revision 0 and epoch 0 would equal those of a zeroed record.
    if (this.#current.revision === 0n) this.#current = { ...this.#current, revision: 1n };
    if (this.#current.epoch === 0) this.#current = { ...this.#current, epoch: 1 };
  }

  get current(): Readonly<Config> {
    return this.#current;
  }

  set(change: Partial<Omit<Config, 'revision'>>): void {
    this.#current = { ...this.#current, ...change };
    this.#map.put(only, this.#current);
  }

  /** Every flow judged before this call is judged anew. Call it after the change, never before: a verdict
   *  made in between would carry the new revision and the old facts. */
  bumpRevision(): void {
    this.#current = { ...this.#current, revision: this.#current.revision + 1n };
    this.#map.put(only, this.#current);
  }
}
