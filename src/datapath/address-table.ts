/** Who has which address, for how long that may be believed: own endpoints, and what other nodes vouch for. */
import { addressBytes, addressFromBytes } from '../model/address.ts';
import type { AddressEntry, AddressTable } from '../model/datapath.ts';
import { type IpAddress, LOCAL_NODE, nodeId, securityIdentity } from '../model/ids.ts';
import type { ConfigWriter } from './config.ts';
import { IP_ENCRYPT, IP_LOCAL, IP_RESERVED, NO_LEASE_END } from './layout.ts';
import type { DatapathMaps } from './maps.ts';

type Row = NonNullable<ReturnType<DatapathMaps['cs_ipcache']['get']>>;

/**
 * Own endpoints' rows belong to the endpoint table: whatever a peer vouches for or withdraws, they stay as they are.
 * @param encrypt what other nodes vouch for goes only through the tunnel, unless its entry says otherwise.
 */
export function createAddressTable(maps: DatapathMaps, config: ConfigWriter, encrypt = false): AddressTable {
  const putAll = (entries: readonly AddressEntry[]) => {
    let isNews = false;
    const rows: [ReturnType<typeof keyOf>, Row][] = [];
    for (const entry of entries) {
      const key = keyOf(entry.address);
      const before = maps.cs_ipcache.get(key);
      const after = rowOf(entry, encrypt);
      if (before !== undefined && isOwn(before) && !isOwn(after)) continue;
      rows.push([key, after]);
      // A longer lease takes nothing away; anything else may.
      isNews ||= before !== undefined && !isRenewal(before, after);
    }
    if (rows.length > 0) maps.cs_ipcache.putBatch(rows);
    if (isNews) config.bumpRevision();
  };
  return {
    put: (entry) => putAll([entry]),
    putAll,
    delete(address) {
      const key = keyOf(address);
      const row = maps.cs_ipcache.get(key);
      if (row !== undefined && isOwn(row)) return false;
      const deleted = maps.cs_ipcache.delete(key);
      config.bumpRevision();
      return deleted;
    },
    get(address) {
      const row = maps.cs_ipcache.get(keyOf(address));
      return row === undefined ? undefined : entryOf(address, row);
    },
    list: () => readAddresses(maps),
  };
}

export function readAddresses(maps: DatapathMaps): AddressEntry[] {
  return maps.cs_ipcache.entries().map(([key, row]) => entryOf(addressFromBytes(key.b), row));
}

function keyOf(address: IpAddress) {
  return { b: addressBytes(address) };
}

function isOwn(row: Row): boolean {
  return (row.flags & IP_LOCAL) !== 0;
}

function isRenewal(before: Row, after: Row): boolean {
  return (
    before.identity === after.identity &&
    before.node === after.node &&
    before.incarnation === after.incarnation &&
    before.generation === after.generation &&
    before.endpoint === after.endpoint &&
    before.flags === after.flags &&
    before.lease_ns <= after.lease_ns
  );
}

function rowOf(entry: AddressEntry, encryptVouched: boolean): Row {
  const local = entry.node === LOCAL_NODE && entry.endpoint !== 0;
  const vouched = entry.node !== LOCAL_NODE && !entry.reserved;
  const encrypt = entry.encrypt ?? (vouched && encryptVouched);
  return {
    incarnation: entry.incarnation,
    generation: entry.generation,
    lease_ns: entry.leaseEndNs ?? NO_LEASE_END,
    identity: entry.identity,
    node: entry.node,
    endpoint: entry.endpoint,
    flags: (local ? IP_LOCAL : 0) | (entry.reserved ? IP_RESERVED : 0) | (encrypt ? IP_ENCRYPT : 0),
  };
}

function entryOf(address: IpAddress, row: Row): AddressEntry {
  return {
    address,
    identity: securityIdentity(row.identity),
    node: nodeId(row.node),
    incarnation: row.incarnation,
    generation: row.generation,
    leaseEndNs: row.lease_ns === NO_LEASE_END ? undefined : row.lease_ns,
    endpoint: row.endpoint,
    reserved: (row.flags & IP_RESERVED) !== 0,
    ...((row.flags & IP_ENCRYPT) === 0 ? {} : { encrypt: true }),
  };
}
