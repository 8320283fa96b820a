/** The kernel's policy maps and its lookup, from bpf/abi/abi.h: nothing of the compiler is used here. */
import type {
  Direction,
  PolicyClassRow,
  PolicyDelta,
  PolicyEntry,
  PolicyEntryKey,
  PolicyTables,
  PolicyVerdict,
} from '../../../src/model/datapath.ts';

const DENIED: PolicyVerdict = { verdict: 'deny', authType: 'none', rule: 0 };

export class SimulatedKernel {
  readonly #classes = new Map<number, PolicyClassRow>();
  readonly #entries = new Map<string, PolicyEntry>();

  constructor(tables?: PolicyTables) {
    if (tables === undefined) return;
    for (const row of tables.classes) this.#classes.set(row.identity, row);
    for (const entry of tables.entries) this.putEntry(entry);
    if (this.#classes.size !== tables.classes.length) throw new Error('two class rows for one identity');
    if (this.#entries.size !== tables.entries.length) throw new Error('two entries with one key');
  }

  putEntry(entry: PolicyEntry): void {
    const { portBits, port, protocol } = entry;
    const isKey = portBits >= 0 && portBits <= 16 && port >>> 0 === (port & mask(portBits)) >>> 0;
    if (!isKey || (protocol === 0 && portBits !== 0)) throw new Error(`not a key: ${JSON.stringify(entry)}`);
    this.#entries.set(key(entry), entry);
  }

  /** One write after the other, in the order that the datapath keeps. */
  *writes(delta: PolicyDelta): Generator<string> {
    for (const entry of delta.putEntries) {
      this.putEntry(entry);
      yield `entry ${key(entry)}`;
    }
    for (const row of delta.putClasses) {
      this.#classes.set(row.identity, row);
      yield `row ${JSON.stringify(row)}`;
    }
    for (const identity of delta.deleteClasses) {
      if (!this.#classes.delete(identity)) throw new Error(`no row of ${identity} to delete`);
      yield `no row ${identity}`;
    }
    for (const entry of delta.deleteEntries) {
      if (!this.#entries.delete(key(entry))) throw new Error(`no entry ${key(entry)} to delete`);
      yield `no entry ${key(entry)}`;
    }
  }

  /** What is in the maps, to compare. */
  contents(): { classes: number; entries: number } {
    return { classes: this.#classes.size, entries: this.#entries.size };
  }

  look(direction: Direction, local: number, remote: number, protocol: number, port: number): PolicyEntry | undefined {
    const mine = this.#classes.get(local);
    const theirs = this.#classes.get(remote);
    if (mine === undefined || theirs === undefined) return undefined;
    const base = { local: mine.local[direction], direction };
    for (const remoteClass of [theirs.remote[direction], 0]) {
      for (let portBits = 16; portBits >= 0; portBits--) {
        if ((mine.portBits[direction] & (1 << portBits)) === 0) continue;
        const at = { protocol, port: port & mask(portBits), portBits };
        const found = this.#entries.get(key({ ...base, remote: remoteClass, ...at }));
        if (found !== undefined) return found;
      }
      if ((mine.portBits[direction] & 1) === 0) continue;
      const found = this.#entries.get(key({ ...base, remote: remoteClass, protocol: 0, port: 0, portBits: 0 }));
      if (found !== undefined) return found;
    }
    return undefined;
  }

  /** What is in force. */
  verdict(direction: Direction, local: number, remote: number, protocol: number, port: number): PolicyVerdict {
    return this.look(direction, local, remote, protocol, port) ?? DENIED;
  }
}

function mask(bits: number): number {
  return (0xffff << (16 - bits)) & 0xffff;
}

function key({ local, remote, direction, protocol, port, portBits }: PolicyEntryKey): string {
  return `${direction} ${local} ${remote} ${protocol} ${port}/${portBits}`;
}
