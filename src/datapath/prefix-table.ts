/** Prefixes to identities: the clusters' own ranges (nobody's without a vouch) and CIDR identities. */
import { addressBytes, datapathPrefixLength, type Prefix } from '../model/address.ts';
import type { SecurityIdentity } from '../model/ids.ts';
import type { ConfigWriter } from './config.ts';
import { PREFIX_CLUSTER } from './layout.ts';
import type { DatapathMaps } from './maps.ts';

export interface PrefixEntry {
  readonly prefix: Prefix;
  readonly identity: SecurityIdentity;
  /** Workload addresses: without a live vouch they are nobody's. */
  readonly cluster: boolean;
}

/** Replaces the whole table: what is new is written before what is old is deleted, so no address falls through to a wider
 *  prefix in between. */
export function writePrefixes(maps: DatapathMaps, config: ConfigWriter, prefixes: readonly PrefixEntry[]): void {
  const wanted = new Map(
    prefixes.map(({ prefix, identity, cluster }) => {
      const key = { prefixlen: datapathPrefixLength(prefix), addr: addressBytes(prefix.address) };
      return [nameOf(key), { key, value: { identity, flags: cluster ? PREFIX_CLUSTER : 0 } }] as const;
    }),
  );
  const stale = [];
  for (const [key, value] of maps.cs_prefixes.entries()) {
    const want = wanted.get(nameOf(key));
    if (want === undefined) stale.push(key);
    else if (want.value.identity === value.identity && want.value.flags === value.flags) wanted.delete(nameOf(key));
  }
  if (wanted.size === 0 && stale.length === 0) return;
  for (const { key, value } of wanted.values()) maps.cs_prefixes.put(key, value);
  for (const key of stale) maps.cs_prefixes.delete(key);
  config.bumpRevision();
}

function nameOf(key: { prefixlen: number; addr: Buffer }): string {
  return `${key.prefixlen}/${key.addr.toString('hex')}`;
}
