/** The whole signed identity table as messages that are encoded once for all streams; after a change only what it touches is encoded anew. */
import type { SecurityIdentity } from '../src/model/ids.ts';
import type { TableRow } from './feed.ts';
import { encode, packedWithMore } from './sync-messages.ts';

/** Identities of one group: a row that changes costs the encoding of so many. */
const GROUP_BITS = 8;

export interface RowSource {
  rows(): ReadonlyMap<SecurityIdentity, TableRow>;
  row(identity: number): TableRow | undefined;
}

export class RowParts {
  readonly #source: RowSource;
  readonly #encodeRow: (row: TableRow) => Buffer;
  /** Empty: to be made. Streams under way keep the buffers that they began with. */
  readonly #groups = new Map<number, readonly Buffer[] | undefined>();

  constructor(source: RowSource, encodeRow: (row: TableRow) => Buffer) {
    this.#source = source;
    this.#encodeRow = encodeRow;
    this.reset();
  }

  touch(identity: SecurityIdentity): void {
    this.#groups.set(identity >>> GROUP_BITS, undefined);
  }

  /** Every signature is another one. */
  reset(): void {
    this.#groups.clear();
    for (const identity of this.#source.rows().keys()) this.touch(identity);
  }

  /** In the order of identities. Never to be written to. */
  all(): Buffer[] {
    return [...this.#groups.keys()].sort((a, b) => a - b).flatMap((group) => this.#group(group));
  }

  #group(group: number): readonly Buffer[] {
    const known = this.#groups.get(group);
    if (known !== undefined) return known;
    const rows: Buffer[] = [];
    for (let identity = group << GROUP_BITS; identity < (group + 1) << GROUP_BITS; identity++) {
      const row = this.#source.row(identity);
      if (row !== undefined) rows.push(this.#encodeRow(row));
    }
    const parts = packedWithMore(rows);
    if (rows.length === 0) this.#groups.delete(group);
    else this.#groups.set(group, parts);
    return parts;
  }
}

/** One row as it stands in a message. */
export function encodeRow(sign: (row: TableRow) => { row: Buffer; signature: Buffer }): (row: TableRow) => Buffer {
  return (row) => encode({ identities: [sign(row)] });
}
