/** Workloads' attachments: maps before programs, closed before open, and gone from the maps before anything else. */
import { addressBytes, addressFromBytes } from '../model/address.ts';
import type { EndpointAttachment, FenceTable } from '../model/datapath.ts';
import { type IpAddress, securityIdentity } from '../model/ids.ts';
import type { Attacher } from './attach.ts';
import type { ConfigWriter } from './config.ts';
import { createFenceTable } from './fence-table.ts';
import { EP_FENCES, EP_OPEN, IP_LOCAL, NO_LEASE_END } from './layout.ts';
import type { DatapathMaps } from './maps.ts';

const NO_MAC = Buffer.alloc(6);

export interface EndpointTable {
  put(attachment: EndpointAttachment): void;
  remove(endpoint: number): void;
  readonly fences: FenceTable;
}

/** @param dropHeld drops what waits from this address: a held packet dies with the endpoint that sent it. */
export function createEndpointTable(
  maps: DatapathMaps,
  config: ConfigWriter,
  attacher: Attacher,
  dropHeld: (local: IpAddress) => void,
): EndpointTable {
  // Read once: nobody else writes them, and a dump of all addresses for each endpoint would be dear.
  const table = new Map(readEndpoints(maps).map((attachment) => [attachment.ifindex, attachment]));
  const write = (attachment: EndpointAttachment, open: boolean) =>
    maps.cs_endpoints.put(
      { n: attachment.ifindex },
      {
        generation: attachment.generation,
        endpoint: attachment.endpoint,
        identity: attachment.identity,
        flags: (open ? EP_OPEN : 0) | (fences.has(attachment.endpoint) ? EP_FENCES : 0),
        mac: attachment.mac ?? NO_MAC,
      },
    );
  const forget = (addresses: readonly IpAddress[], endpoint: number) => {
    for (const address of addresses) {
      const row = maps.cs_ipcache.get({ b: addressBytes(address) });
      // Only its own: the address may already be another endpoint's.
      if (row?.endpoint === endpoint && (row.flags & IP_LOCAL) !== 0)
        maps.cs_ipcache.delete({ b: addressBytes(address) });
      dropHeld(address);
    }
  };
  const removeFromMaps = (known: EndpointAttachment) => {
    maps.cs_endpoints.delete({ n: known.ifindex });
    table.delete(known.ifindex);
    forget(known.addresses, known.endpoint);
  };
  const fences = createFenceTable(maps, (endpoint) => {
    const known = [...table.values()].find((k) => k.endpoint === endpoint);
    if (known === undefined) return;
    write(known, known.open);
    // A fence that closes late: flows that run are judged anew. One that opens takes nothing away.
    if (known.open && fences.has(endpoint)) config.bumpRevision();
  });
  // What an earlier process left half done: a fence without its endpoint, or an endpoint that does not ask for its fences.
  for (const endpoint of new Set(fences.list().map((fence) => fence.endpoint))) {
    const known = [...table.values()].find((k) => k.endpoint === endpoint);
    if (known === undefined) fences.clear(endpoint);
    else write(known, known.open);
  }

  return {
    fences,
    put(attachment) {
      checkAttachment(attachment);
      const found = table.get(attachment.ifindex);
      const same = found !== undefined && isSame(found, attachment) ? found : undefined;
      if (same === undefined) {
        // Another owner of the number, the interface or an address gives way first.
        for (const other of [...table.values()]) {
          const clash = other.endpoint === attachment.endpoint || other.ifindex === attachment.ifindex;
          if (clash) {
            removeFromMaps(other);
            if (other.endpoint !== attachment.endpoint) fences.clear(other.endpoint);
          } else
            forget(
              other.addresses.filter((a) => attachment.addresses.includes(a)),
              other.endpoint,
            );
        }
        write(attachment, false);
        for (const address of attachment.addresses) {
          maps.cs_ipcache.put(
            { b: addressBytes(address) },
            {
              incarnation: 0n,
              generation: attachment.generation,
              lease_ns: NO_LEASE_END,
              identity: attachment.identity,
              node: 0,
              endpoint: attachment.endpoint,
              flags: IP_LOCAL,
            },
          );
        }
        config.bumpRevision();
        // Before what may fail: a removal must find it.
        table.set(attachment.ifindex, { ...attachment, open: false });
      }
      attacher.attach('to_workload', attachment.ifindex);
      attacher.attach('from_workload', attachment.ifindex);
      write(attachment, attachment.open);
      table.set(attachment.ifindex, attachment);
      if (same?.open === true && !attachment.open) {
        config.bumpRevision();
        for (const address of attachment.addresses) dropHeld(address);
      }
    },
    remove(endpoint) {
      const known = [...table.values()].find((k) => k.endpoint === endpoint);
      if (known === undefined) return;
      removeFromMaps(known);
      fences.clear(endpoint);
      config.bumpRevision();
      // While the interface lives its programs stay and drop everything (NO_ENDPOINT); without it there is nothing to hold.
      attacher.forget(known.ifindex);
    },
  };
}

export function readEndpoints(maps: DatapathMaps): EndpointAttachment[] {
  const addresses = new Map<number, IpAddress[]>();
  for (const [key, row] of maps.cs_ipcache.entries()) {
    if ((row.flags & IP_LOCAL) === 0) continue;
    addresses.set(row.endpoint, [...(addresses.get(row.endpoint) ?? []), addressFromBytes(key.b)]);
  }
  return maps.cs_endpoints.entries().map(([{ n: ifindex }, value]) => ({
    endpoint: value.endpoint,
    identity: securityIdentity(value.identity),
    generation: value.generation,
    ifindex,
    mac: value.mac.equals(NO_MAC) ? undefined : value.mac,
    addresses: (addresses.get(value.endpoint) ?? []).sort(),
    open: (value.flags & EP_OPEN) !== 0,
  }));
}

function checkAttachment(a: EndpointAttachment): void {
  if (!Number.isInteger(a.endpoint) || a.endpoint < 1 || a.endpoint > 4095) {
    throw new RangeError(`endpoint ${a.endpoint} is not in 1..4095: the packet mark has 12 bits for it`);
  }
  if (a.mac !== undefined && a.mac.length !== 6) throw new RangeError('a MAC address has 6 bytes');
}

function isSame(a: EndpointAttachment, b: EndpointAttachment): boolean {
  return (
    a.endpoint === b.endpoint &&
    a.identity === b.identity &&
    a.generation === b.generation &&
    a.ifindex === b.ifindex &&
    (a.mac ?? NO_MAC).equals(b.mac ?? NO_MAC) &&
    a.addresses.length === b.addresses.length &&
    a.addresses.every((address) => b.addresses.includes(address))
  );
}
