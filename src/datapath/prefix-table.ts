/**
 * Prefixes to identities: the cluster's own ranges (nobody's without a vouch), and the CIDR identities that the policy in force
 * names. Both lie in one table, so each entry says what both say of its addresses.
 */
import { addressBytes, addressFromBytes, datapathPrefixLength, type Prefix } from '../model/address.ts';
import type { CidrIdentity } from '../model/datapath.ts';
import { IDENTITY_WORLD, type SecurityIdentity, securityIdentity } from '../model/ids.ts';
import type { ConfigWriter } from './config.ts';
import { PREFIX_CLUSTER, PREFIX_ENCRYPT } from './layout.ts';
import type { DatapathMaps } from './maps.ts';

/** The compiler numbers CIDR identities from here on. */
const firstCidrIdentity = 1 << 24;

export interface PrefixEntry {
  readonly prefix: Prefix;
  readonly identity: SecurityIdentity;
  /** Workload addresses: without a live vouch they are nobody's. */
  readonly cluster: boolean;
  /** What has no vouch of its own goes only through the tunnel. */
  readonly encrypt?: boolean;
}

export interface PrefixRow {
  /** Over the 16-byte form. */
  readonly prefixlen: number;
  readonly addr: Buffer;
  readonly identity: SecurityIdentity;
  readonly flags: number;
}

const ADDRESS_OCTETS = 16;

/** Longest prefix match, as the kernel does it. */
export class PrefixSet {
  readonly #rows = new Map<string, PrefixRow>();
  readonly #lengths: readonly number[];

  constructor(rows: readonly PrefixRow[]) {
    for (const row of rows) this.#rows.set(nameOf(row), row);
    this.#lengths = [...new Set(rows.map(({ prefixlen }) => prefixlen))].sort((a, b) => b - a);
  }

  rows(): Iterable<readonly [string, PrefixRow]> {
    return this.#rows;
  }

  get(name: string): PrefixRow | undefined {
    return this.#rows.get(name);
  }

  /** The longest that holds the whole prefix and is no longer than `limit`. */
  cover(prefix: Pick<PrefixRow, 'prefixlen' | 'addr'>, limit = prefix.prefixlen): PrefixRow | undefined {
    for (const prefixlen of this.#lengths) {
      if (prefixlen > limit) continue;
      const row = this.#rows.get(nameOf({ prefixlen, addr: prefix.addr }));
      if (row !== undefined) return row;
    }
    return undefined;
  }

  /** Whose the prefix would be without its own entry. */
  coverIdentity(prefix: Pick<PrefixRow, 'prefixlen' | 'addr'>): SecurityIdentity {
    return this.cover(prefix, prefix.prefixlen - 1)?.identity ?? IDENTITY_WORLD;
  }
}

/**
 * A CIDR inside a cluster prefix stays nobody's, and what must be encrypted must be whoever names it; a range of the cluster's
 * that lies inside a CIDR and is the world's is that CIDR's.
 */
export function mergePrefixes(ranges: readonly PrefixEntry[], cidrs: readonly CidrIdentity[]): PrefixSet {
  const inherited = new Map<string, PrefixRow>();
  let known = new PrefixSet([]);
  // One buffer for all of them: a large cluster has ten thousand, and one of its own for each takes ten times as much.
  const addresses = Buffer.allocUnsafeSlow(ADDRESS_OCTETS * ranges.length);
  const byLength = ranges
    .map((range, i) => ({
      prefixlen: datapathPrefixLength(range.prefix),
      addr: slot(addresses, i, addressBytes(range.prefix.address)),
      identity: range.identity,
      flags: (range.cluster ? PREFIX_CLUSTER : 0) | (range.encrypt === true ? PREFIX_ENCRYPT : 0),
    }))
    .sort((a, b) => a.prefixlen - b.prefixlen);
  let length = -1;
  for (const row of byLength) {
    if (row.prefixlen !== length) known = new PrefixSet([...inherited.values()]);
    length = row.prefixlen;
    const flags = row.flags | (known.cover(row)?.flags ?? 0) | (inherited.get(nameOf(row))?.flags ?? 0);
    inherited.set(nameOf(row), { ...row, flags });
  }
  known = new PrefixSet([...inherited.values()]);
  const named = new PrefixSet(
    cidrs.map(({ prefix, identity }) => {
      const key = { prefixlen: datapathPrefixLength(prefix), addr: addressBytes(prefix.address) };
      return { ...key, identity, flags: known.cover(key)?.flags ?? 0 };
    }),
  );
  const both = [...inherited.values()].map((row) => ({ ...row, identity: named.cover(row)?.identity ?? row.identity }));
  return new PrefixSet([...both, ...[...named.rows()].map(([, row]) => row)]);
}

export class PrefixTable {
  readonly #maps: DatapathMaps;
  readonly #config: ConfigWriter;
  #ranges: readonly PrefixEntry[];
  #cidrs: readonly CidrIdentity[];
  #inForce: PrefixSet;

  /** Goes on from what is pinned: until the agent has compiled its policy again, what it denied to a CIDR stays denied. */
  constructor(maps: DatapathMaps, config: ConfigWriter) {
    this.#maps = maps;
    this.#config = config;
    const rows = readPrefixes(maps);
    this.#inForce = new PrefixSet(rows);
    this.#cidrs = rows.flatMap((row) =>
      row.identity >= firstCidrIdentity ? [{ prefix: prefixOf(row), identity: row.identity }] : [],
    );
    this.#ranges = rows.flatMap((row) =>
      row.identity < firstCidrIdentity || row.flags !== 0
        ? [
            {
              prefix: prefixOf(row),
              identity: row.identity < firstCidrIdentity ? row.identity : IDENTITY_WORLD,
              cluster: (row.flags & PREFIX_CLUSTER) !== 0,
              encrypt: (row.flags & PREFIX_ENCRYPT) !== 0,
            },
          ]
        : [],
    );
  }

  get inForce(): PrefixSet {
    return this.#inForce;
  }

  /** Replaces the cluster's ranges: what is new is written before what is old is deleted, so no address falls through to a
   *  wider prefix in between. @throws Error ENOSPC */
  setRanges(ranges: readonly PrefixEntry[]): void {
    const wanted = mergePrefixes(ranges, this.#cidrs);
    this.#ranges = ranges;
    const { put, stale } = difference(this.#inForce, wanted);
    this.put(put);
    this.delete(stale);
    this.#inForce = wanted;
    if (put.length === 0 && stale.length === 0) return;
    this.#config.bumpRevision();
  }

  /** What the table is to hold with these CIDR identities. */
  withCidrs(cidrs: readonly CidrIdentity[]): PrefixSet {
    return mergePrefixes(this.#ranges, cidrs);
  }

  /** They are in the map now. */
  took(cidrs: readonly CidrIdentity[], inForce: PrefixSet): void {
    this.#cidrs = cidrs;
    this.#inForce = inForce;
  }

  put(rows: readonly PrefixRow[]): void {
    for (const { prefixlen, addr, identity, flags } of rows) {
      this.#maps.cs_prefixes.put({ prefixlen, addr }, { identity, flags });
    }
  }

  delete(rows: readonly PrefixRow[]): void {
    for (const { prefixlen, addr } of rows) this.#maps.cs_prefixes.delete({ prefixlen, addr });
  }
}

function readPrefixes(maps: DatapathMaps): PrefixRow[] {
  return maps.cs_prefixes
    .entries()
    .map(([key, value]) => ({ ...key, identity: securityIdentity(value.identity), flags: value.flags }));
}

function difference(before: PrefixSet, after: PrefixSet): { put: PrefixRow[]; stale: PrefixRow[] } {
  const put = [];
  const stale = [];
  for (const [name, row] of after.rows()) {
    const known = before.get(name);
    if (known?.identity !== row.identity || known.flags !== row.flags) put.push(row);
  }
  for (const [name, row] of before.rows()) if (after.get(name) === undefined) stale.push(row);
  return { put, stale };
}

function prefixOf(row: PrefixRow): Prefix {
  const address = addressFromBytes(row.addr);
  return { address, length: address.includes(':') ? row.prefixlen : row.prefixlen - 96 };
}

const nameOctets = Buffer.alloc(2 + ADDRESS_OCTETS);

/** Length and the bits it covers, as text that is one piece. */
function nameOf({ prefixlen, addr }: Pick<PrefixRow, 'prefixlen' | 'addr'>): string {
  const whole = prefixlen >> 3;
  const rest = prefixlen & 7;
  nameOctets[0] = prefixlen;
  addr.copy(nameOctets, 1, 0, whole);
  if (rest > 0) nameOctets[1 + whole] = addr[whole]! & (0xff00 >> rest);
  return nameOctets.toString('latin1', 0, 1 + whole + Number(rest > 0));
}

/** The address's place in a buffer of many. */
function slot(addresses: Buffer, i: number, address: Buffer): Buffer {
  const place = addresses.subarray(i * ADDRESS_OCTETS, (i + 1) * ADDRESS_OCTETS);
  place.set(address);
  return place;
}
