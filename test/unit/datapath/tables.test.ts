/** The tables over the kernel's real maps: what they write, and above all in which order. */
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { createAddressTable } from '../../../src/datapath/address-table.ts';
import type { Attacher } from '../../../src/datapath/attach.ts';
import { createAuthTable } from '../../../src/datapath/auth-table.ts';
import { ConfigWriter } from '../../../src/datapath/config.ts';
import { createEndpointTable, readEndpoints } from '../../../src/datapath/endpoints.ts';
import { readFences } from '../../../src/datapath/fence-table.ts';
import { HoldBudget } from '../../../src/datapath/hold-budget.ts';
import { EP_FENCES, EP_OPEN } from '../../../src/datapath/layout.ts';
import type { DatapathMaps } from '../../../src/datapath/maps.ts';
import { parseAddress } from '../../../src/model/address.ts';
import type { AddressEntry, EndpointAttachment } from '../../../src/model/datapath.ts';
import { type IpAddress, LOCAL_NODE, nodeId, securityIdentity } from '../../../src/model/ids.ts';
import { loadNotedMaps, type NotedMaps, possible } from './support/noted-maps.ts';

const ip = (text: string) => parseAddress(text)!;

describe.skipIf(!possible)('tables', () => {
  let loaded: NotedMaps;
  let maps: DatapathMaps;
  let config: ConfigWriter;
  let log: string[];

  beforeEach(() => {
    loaded = loadNotedMaps({ cs_flows: 128, cs_flow_auth: 1024 });
    ({ maps, log } = loaded);
    config = new ConfigWriter(maps);
  });
  afterEach(() => loaded.close());

  const vouched = (address: IpAddress, change: Partial<AddressEntry> = {}): AddressEntry => ({
    address,
    identity: securityIdentity(300),
    node: nodeId(7),
    incarnation: 3n,
    generation: 5n,
    leaseEndNs: 1000n,
    endpoint: 0,
    reserved: false,
    ...change,
  });

  describe('proofs', () => {
    const key = {
      local: securityIdentity(300),
      remote: securityIdentity(301),
      remoteNode: nodeId(7),
      authType: 'spiffe',
    } as const;

    test('a deletion is in the map before the revision rises, and the revision rises even if nothing was there', () => {
      const auth = createAuthTable(maps, config);
      auth.put({ ...key, expiresAtNs: 99n, epoch: 1 });
      expect(auth.list()).toEqual([{ ...key, expiresAtNs: 99n, epoch: 1 }]);
      const { revision } = config.current;
      log.length = 0;
      expect(auth.delete([key, { ...key, remoteNode: LOCAL_NODE }])).toBe(1);
      expect(log).toEqual(['cs_auth.deleteBatch', 'cs_config.put']);
      expect(auth.delete([key])).toBe(0);
      expect(config.current.revision).toBe(revision + 2n);
      expect(auth.list()).toEqual([]);
    });

    test('a zeroed map never looks like a valid epoch or revision', () => {
      expect(config.current.epoch).toBe(1);
      expect(config.current.revision).toBe(1n);
    });
  });

  describe('addresses', () => {
    test('a row comes back as it was put, with and without an end of the lease', () => {
      const table = createAddressTable(maps, config);
      const rows = [
        vouched(ip('10.0.2.2')),
        vouched(ip('fd00:2::2'), {
          leaseEndNs: undefined,
          reserved: true,
          node: LOCAL_NODE,
          identity: securityIdentity(1),
        }),
      ];
      for (const row of rows) table.put(row);
      for (const row of rows) expect(table.get(row.address)).toEqual(row);
      expect(table.list()).toHaveLength(2);
      expect(table.get(ip('10.0.2.3'))).toBeUndefined();
    });

    test('a longer lease judges no flow anew; anything else about a known address does', () => {
      const table = createAddressTable(maps, config);
      const address = ip('10.0.2.2');
      table.put(vouched(address));
      const { revision } = config.current;
      table.put(vouched(address, { leaseEndNs: 2000n }));
      expect(config.current.revision).toBe(revision);
      const changes: Partial<AddressEntry>[] = [
        { leaseEndNs: 1500n },
        { identity: securityIdentity(301) },
        { node: nodeId(8) },
        { incarnation: 4n },
        { generation: 6n },
        { reserved: true },
      ];
      changes.forEach((change, i) => {
        table.put(vouched(address, { leaseEndNs: 2000n }));
        const before = config.current.revision;
        table.put(vouched(address, { leaseEndNs: 2000n, ...change }));
        expect(config.current.revision, String(i)).toBe(before + 1n);
      });
    });

    test('what others vouch for is to be encrypted where that is demanded, and only that', () => {
      const table = createAddressTable(maps, config, true);
      const own = ip('10.0.1.2');
      const node = vouched(ip('10.9.0.1'), { reserved: true });
      createEndpointTable(maps, config, silentAttacher([]), () => {}).put(endpoint({ addresses: [own] }));
      table.put(vouched(ip('10.0.2.2')));
      table.put(vouched(ip('10.0.2.3'), { encrypt: false }));
      table.put(node);
      expect(table.get(ip('10.0.2.2'))?.encrypt).toBe(true);
      for (const address of [ip('10.0.2.3'), node.address, own]) expect(table.get(address)?.encrypt).toBeUndefined();
      const plain = createAddressTable(maps, config);
      plain.put(vouched(ip('10.0.2.4'), { encrypt: true }));
      plain.put(vouched(ip('10.0.2.5')));
      expect([ip('10.0.2.4'), ip('10.0.2.5')].map((a) => plain.get(a)?.encrypt)).toEqual([true, undefined]);
    });

    test('neither a vouch nor a withdraw of a peer touches an address of an own endpoint', () => {
      const table = createAddressTable(maps, config);
      const own = ip('10.0.1.2');
      createEndpointTable(maps, config, silentAttacher([]), () => {}).put(endpoint({ addresses: [own] }));
      const before = table.get(own);
      table.put(vouched(own));
      expect(table.get(own)).toEqual(before);
      expect(table.delete(own)).toBe(false);
      expect(table.get(own)).toEqual(before);
    });
  });

  describe('endpoints', () => {
    test('maps come before programs, closed comes before open', () => {
      const endpoints = createEndpointTable(maps, config, silentAttacher(log), () => {});
      log.length = 0;
      endpoints.put(endpoint());
      expect(log).toEqual([
        'cs_endpoints.put',
        'cs_ipcache.put',
        'cs_ipcache.put',
        'cs_config.put',
        'attach to_workload 50',
        'attach from_workload 50',
        'cs_endpoints.put',
      ]);
      expect(readEndpoints(maps)).toEqual([endpoint()]);
    });

    test('a removed endpoint is out of the maps before the revision rises, and what waits of it is dropped', () => {
      const dropped: string[] = [];
      const endpoints = createEndpointTable(maps, config, silentAttacher(log), (local) => void dropped.push(local));
      endpoints.put(endpoint());
      log.length = 0;
      endpoints.remove(1);
      expect(log).toEqual([
        'cs_endpoints.delete',
        'cs_ipcache.delete',
        'cs_ipcache.delete',
        'cs_config.put',
        'forget 50',
      ]);
      expect(dropped).toEqual(endpoint().addresses);
      expect(readEndpoints(maps)).toEqual([]);
      endpoints.remove(1);
    });

    test('a successor on an address takes it over: nothing of the earlier owner waits or answers for it', () => {
      const dropped: string[] = [];
      const endpoints = createEndpointTable(maps, config, silentAttacher([]), (local) => void dropped.push(local));
      endpoints.put(endpoint());
      endpoints.put(
        endpoint({ endpoint: 2, ifindex: 51, identity: securityIdentity(400), addresses: [ip('10.0.1.2')] }),
      );
      expect(dropped).toEqual([ip('10.0.1.2')]);
      expect(createAddressTable(maps, config).get(ip('10.0.1.2'))).toMatchObject({ identity: 400, endpoint: 2 });
      endpoints.remove(1);
      expect(createAddressTable(maps, config).get(ip('10.0.1.2'))).toMatchObject({ identity: 400, endpoint: 2 });
    });

    test('an unchanged endpoint is not closed by a restart, and a number the mark cannot carry is refused', () => {
      createEndpointTable(maps, config, silentAttacher([]), () => {}).put(endpoint());
      const next = createEndpointTable(maps, config, silentAttacher(log), () => {});
      log.length = 0;
      next.put(endpoint());
      expect(log).toEqual(['attach to_workload 50', 'attach from_workload 50', 'cs_endpoints.put']);
      expect(() => next.put(endpoint({ endpoint: 4096 }))).toThrow(RangeError);
      expect(() => next.put(endpoint({ endpoint: 0 }))).toThrow(RangeError);
    });
  });

  describe('proofs of flows', () => {
    const pair = {
      local: securityIdentity(300),
      remote: securityIdentity(301),
      remoteNode: nodeId(7),
      authType: 'spiffe-connection',
    } as const;
    const flow = (localPort: number) => ({
      endpoint: 5,
      localAddress: ip('10.0.1.2'),
      remoteAddress: ip('fd00:2::2'),
      protocol: 6,
      localPort,
      remotePort: 443,
    });

    test('are listed as they were put, beside those of pairs, until their pair is deleted', () => {
      const auth = createAuthTable(maps, config);
      auth.putFlow({ ...pair, expiresAtNs: 99n, epoch: 1 }, flow(40_000));
      auth.putFlow({ ...pair, remote: securityIdentity(302), expiresAtNs: 99n, epoch: 1 }, flow(40_001));
      expect(auth.list()).toEqual([]);
      expect(auth.listFlows()).toHaveLength(2);
      expect(auth.listFlows()).toContainEqual({
        ...pair,
        expiresAtNs: 99n,
        epoch: 1,
        taken: false,
        flow: flow(40_000),
      });
      const { revision } = config.current;
      log.length = 0;
      expect(auth.deleteFlows([pair, { ...pair, remoteNode: nodeId(8) }])).toBe(1);
      expect(log).toEqual(['cs_flow_auth.deleteBatch', 'cs_config.put']);
      expect(auth.deleteFlows([pair])).toBe(0);
      expect(config.current.revision).toBe(revision + 2n);
      expect(auth.listFlows().map((entry) => entry.remote)).toEqual([302]);
    });

    test('a refused flow is no proof, and goes with its pair; a new proof takes its place', () => {
      const auth = createAuthTable(maps, config);
      auth.refuseFlow(pair, flow(1), 50n);
      expect(auth.listFlows()).toEqual([]);
      auth.putFlow({ ...pair, expiresAtNs: 99n, epoch: 1 }, flow(1));
      expect(auth.listFlows()).toMatchObject([{ expiresAtNs: 99n }]);
      auth.refuseFlow(pair, flow(1), 50n);
      expect(auth.deleteFlows([pair])).toBe(1);
    });
  });

  describe('fences', () => {
    const nodes = (...ids: number[]) => ids.map(nodeId);
    const flags = () => maps.cs_endpoints.get({ n: 50 })!.flags;
    const table = () => createEndpointTable(maps, config, silentAttacher(log), () => {});

    test('they stand in the map before the endpoint opens, and the endpoint says that it has some', () => {
      const endpoints = table();
      log.length = 0;
      endpoints.fences.close(1, nodes(7, 8));
      expect(log).toEqual(['cs_fences.putBatch']);
      endpoints.put(endpoint());
      expect(flags()).toBe(EP_OPEN | EP_FENCES);
      expect(endpoints.fences.list()).toEqual([
        { endpoint: 1, node: 7 },
        { endpoint: 1, node: 8 },
      ]);
      expect(readFences(maps)).toHaveLength(2);
    });

    test('one node’s opens by itself; with the last one the endpoint forgets that it had any', () => {
      const endpoints = table();
      endpoints.fences.close(1, nodes(7, 8));
      endpoints.put(endpoint());
      const { revision } = config.current;
      endpoints.fences.open(1, nodes(7, 9));
      expect(readFences(maps)).toEqual([{ endpoint: 1, node: 8 }]);
      expect(flags()).toBe(EP_OPEN | EP_FENCES);
      log.length = 0;
      endpoints.fences.open(1, nodes(8));
      expect(log).toEqual(['cs_fences.deleteBatch', 'cs_endpoints.put']);
      expect(flags()).toBe(EP_OPEN);
      expect(config.current.revision).toBe(revision);
    });

    test('a closed endpoint stays closed, and one that is fenced while it is open has its flows judged anew', () => {
      const endpoints = table();
      endpoints.put(endpoint({ open: false }));
      endpoints.fences.close(1, nodes(7));
      expect(flags()).toBe(EP_FENCES);
      endpoints.put(endpoint());
      const { revision } = config.current;
      log.length = 0;
      endpoints.fences.close(1, nodes(8));
      expect(log).toEqual(['cs_fences.putBatch', 'cs_endpoints.put', 'cs_config.put']);
      expect(config.current.revision).toBe(revision + 1n);
    });

    test('they end with their endpoint, and not with another', () => {
      const endpoints = table();
      const other = endpoint({ endpoint: 2, ifindex: 51, addresses: [ip('10.0.1.3')] });
      for (const each of [endpoint(), other]) {
        endpoints.fences.close(each.endpoint, nodes(7));
        endpoints.put(each);
      }
      endpoints.remove(1);
      expect(readFences(maps)).toEqual([{ endpoint: 2, node: 7 }]);
      // A successor on the interface, under a number of its own and with fences of its own.
      endpoints.fences.close(3, nodes(8));
      endpoints.put({ ...other, endpoint: 3 });
      expect(readFences(maps)).toEqual([{ endpoint: 3, node: 8 }]);
    });

    test('the next agent finds what is still owed, and mends what the last one left half done', () => {
      const before = table();
      before.put(endpoint());
      before.fences.close(1, nodes(7));
      before.fences.close(9, nodes(7)); // its endpoint never came
      maps.cs_endpoints.put({ n: 50 }, { ...maps.cs_endpoints.get({ n: 50 })!, flags: EP_OPEN }); // died before the flag
      const next = table();
      expect(next.fences.list()).toEqual([{ endpoint: 1, node: 7 }]);
      expect(readFences(maps)).toEqual([{ endpoint: 1, node: 7 }]);
      expect(flags()).toBe(EP_OPEN | EP_FENCES);
      next.put(endpoint());
      expect(flags()).toBe(EP_OPEN | EP_FENCES);
    });

    test('the own node is no peer', () => {
      expect(() => table().fences.close(1, [LOCAL_NODE])).toThrow(RangeError);
      expect(readFences(maps)).toEqual([]);
    });
  });

  test('what the hold device lost is written off once it is quiet, and never is more returned than was taken', () => {
    const taken = (key: number, n: bigint) => maps.cs_hold_taken.put({ n: key }, { n });
    const waiting = (key: number) =>
      maps.cs_hold_taken.get({ n: key })!.n - (maps.cs_hold_returned.get({ n: key })?.n ?? 0n);
    taken(0, 5n); // of an earlier process, whose device is gone
    taken(300, 5n);
    const lost: bigint[] = [];
    const budget = new HoldBudget(maps, (packets) => void lost.push(packets));
    expect([waiting(0), waiting(300)]).toEqual([0n, 0n]);
    expect(lost).toEqual([5n]);
    taken(0, 8n);
    taken(300, 8n);
    budget.left(securityIdentity(300), 1);
    expect([waiting(0), waiting(300)]).toEqual([2n, 2n]);
    budget.writeOffLost(true); // seen for the first time: two packets may still be on their way
    expect(waiting(300)).toBe(2n);
    budget.writeOffLost(false); // something waits
    expect(waiting(300)).toBe(2n);
    budget.writeOffLost(true);
    expect([waiting(0), waiting(300)]).toEqual([0n, 0n]);
    expect(lost).toEqual([5n, 2n]);
    budget.left(securityIdentity(300), 3); // packets nobody took
    expect([waiting(0), waiting(300)]).toEqual([0n, 0n]);
    budget.writeOffLost(true);
    expect(lost).toEqual([5n, 2n]);
  });

  function silentAttacher(notes: string[]): Attacher {
    return {
      mode: 'tcx',
      attach: (program, ifindex) => void notes.push(`attach ${program} ${ifindex}`),
      detachInterface: () => {},
      forget: (ifindex) => void notes.push(`forget ${ifindex}`),
      sweep: () => {},
      takeOver: () => {},
    };
  }

  function endpoint(change: Partial<EndpointAttachment> = {}): EndpointAttachment {
    return {
      endpoint: 1,
      identity: securityIdentity(300),
      generation: 1n,
      ifindex: 50,
      mac: Buffer.from('020000000001', 'hex'),
      addresses: [ip('10.0.1.2'), ip('fd00:1::2')],
      open: true,
      ...change,
    };
  }
});
