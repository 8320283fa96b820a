/** Which class an identity is of, in each half of the policy. An identity without a row is dropped. */
import type { Direction, PolicyClass, PolicyClassRow } from '../model/datapath.ts';
import { type SecurityIdentity, securityIdentity } from '../model/ids.ts';
import { CLASS_ASKS, classKeyStruct } from './layout.ts';
import type { DatapathMaps } from './maps.ts';

const slotOffset = classKeyStruct.members.find(({ name }) => name === 'slot')!.offset;

export class ClassTable {
  readonly #maps: DatapathMaps;
  /** Of the half in force: what is asked before a change must not need a dump. */
  #inForce: Map<SecurityIdentity, PolicyClassRow>;

  constructor(maps: DatapathMaps, slot: number) {
    this.#maps = maps;
    this.#inForce = new Map(readClasses(maps, slot).map((row) => [row.identity, row]));
  }

  /** True if some identity has another class or other ports then than now. New ones change nothing that was judged before. */
  changes(rows: readonly PolicyClassRow[]): boolean {
    return rows.some((row) => {
      const known = this.#inForce.get(row.identity);
      return known !== undefined && !isSame(known, row);
    });
  }

  /**
   * Into a half; in the one in force it is in force at once.
   * @param asks some entry of this local class asks for a proof.
   * @throws Error E2BIG
   */
  put(
    slot: number,
    rows: readonly PolicyClassRow[],
    asks: (local: PolicyClass, direction: Direction) => boolean = () => false,
  ): void {
    const bits = ({ local, portBits }: PolicyClassRow, direction: Direction) =>
      (portBits[direction] | (asks(local[direction], direction) ? CLASS_ASKS : 0)) >>> 0;
    this.#maps.cs_classes.putBatch(
      rows.map((row) => [
        { identity: row.identity, slot },
        {
          local: pair(row.local),
          remote: pair(row.remote),
          port_bits: [bits(row, 'egress'), bits(row, 'ingress')] as const,
        },
      ]),
    );
  }

  delete(slot: number, identities: readonly SecurityIdentity[]): void {
    if (identities.length > 0) this.#maps.cs_classes.deleteBatch(identities.map((identity) => ({ identity, slot })));
  }

  clear(slot: number): void {
    this.#maps.cs_classes.deleteWhere((keys, at) => keys[at + slotOffset] === slot);
  }

  /** What the half in force holds from now on. */
  replace(rows: readonly PolicyClassRow[]): void {
    this.#inForce = new Map(rows.map((row) => [row.identity, row]));
  }

  note(put: readonly PolicyClassRow[], deleted: readonly SecurityIdentity[]): void {
    for (const row of put) this.#inForce.set(row.identity, row);
    for (const identity of deleted) this.#inForce.delete(identity);
  }

  row(identity: SecurityIdentity): PolicyClassRow | undefined {
    return this.#inForce.get(identity);
  }
}

export function readClasses(maps: DatapathMaps, slot: number): PolicyClassRow[] {
  return maps.cs_classes.entries().flatMap(([key, value]) =>
    key.slot === slot
      ? [
          {
            identity: securityIdentity(key.identity),
            local: byDirection(value.local),
            remote: byDirection(value.remote),
            portBits: byDirection(value.port_bits.map((bits) => bits & ~CLASS_ASKS) as [number, number]),
          },
        ]
      : [],
  );
}

export function isSamePair(a: Readonly<Record<Direction, number>>, b: Readonly<Record<Direction, number>>): boolean {
  return a.egress === b.egress && a.ingress === b.ingress;
}

function isSame(a: PolicyClassRow, b: PolicyClassRow): boolean {
  return isSamePair(a.local, b.local) && isSamePair(a.remote, b.remote) && isSamePair(a.portBits, b.portBits);
}

function pair(of: Readonly<Record<Direction, number>>): readonly [number, number] {
  return [of.egress, of.ingress];
}

function byDirection([egress, ingress]: readonly [number, number]): Record<Direction, number> {
  return { egress, ingress };
}
