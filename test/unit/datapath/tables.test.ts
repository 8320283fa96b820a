/** The tables over the kernel's real maps: what they write, and above all in which order. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeEach, describe, expect, test } from 'vitest';
import { type LoadedObject, native } from '../../../native/index.ts';
import { createAddressTable } from '../../../src/datapath/address-table.ts';
import type { Attacher } from '../../../src/datapath/attach.ts';
import { createAuthTable } from '../../../src/datapath/auth-table.ts';
import { ConfigWriter } from '../../../src/datapath/config.ts';
import { createEndpointTable, readEndpoints } from '../../../src/datapath/endpoints.ts';
import { HoldBudget } from '../../../src/datapath/hold-budget.ts';
import { type DatapathMaps, openMaps } from '../../../src/datapath/maps.ts';
import { PolicyTable, readPolicy } from '../../../src/datapath/policy-table.ts';
import { PrefixTable } from '../../../src/datapath/prefix-table.ts';
import { parseAddress, parsePrefix } from '../../../src/model/address.ts';
import type { AddressEntry, EndpointAttachment, PolicyEntry, PolicyTables } from '../../../src/model/datapath.ts';
import { type IpAddress, LOCAL_NODE, nodeId, securityIdentity } from '../../../src/model/ids.ts';

const objectPath = join(import.meta.dirname, '../../../build/bpf/datapath.bpf.o');
const possible = process.geteuid?.() === 0 && existsSync(objectPath);
const ip = (text: string) => parseAddress(text)!;

/** The same maps, with every write noted. */
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

describe.skipIf(!possible)('tables', () => {
  let object: LoadedObject | undefined;
  let maps: DatapathMaps;
  let config: ConfigWriter;
  let log: string[];
  const close = () => {
    for (const { fd } of Object.values(object?.maps ?? {})) native().closeFd(fd);
    for (const fd of Object.values(object?.programs ?? {})) native().closeFd(fd);
  };

  beforeEach(() => {
    close();
    object = native().loadObject({ path: objectPath, maxEntries: { cs_flows: 128, cs_policy: 64 } });
    log = [];
    maps = noted(openMaps(object.maps), log);
    config = new ConfigWriter(maps);
  });
  afterAll(close);

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

  describe('policy', () => {
    const entry = (n: number): PolicyEntry => ({
      local: 300 + n,
      remote: 0,
      direction: n % 2 === 0 ? 'egress' : 'ingress',
      protocol: 6,
      port: 8080,
      portBits: 16,
      verdict: n % 3 === 0 ? 'deny' : 'allow',
      authType: n % 2 === 0 ? 'spiffe' : 'none',
      rule: n,
    });
    const tables = (...entries: PolicyEntry[]): PolicyTables => ({ classes: [], entries, cidrs: [] });
    const inForce = () => readPolicy(maps, config.current.policy_slot).sort((x, y) => x.rule - y.rule);

    test('a policy is written whole into the half not in force, then that half is, then the revision rises', () => {
      const table = new PolicyTable(maps, config);
      table.set(tables(entry(1), entry(2)));
      expect(inForce()).toEqual([entry(1), entry(2)]);
      const before = { ...config.current };
      log.length = 0;
      table.set(tables(entry(3)));
      expect(log.slice(-3)).toEqual(['cs_classes.putBatch', 'cs_config.put', 'cs_config.put']);
      expect(config.current).toMatchObject({ policy_slot: 1 - before.policy_slot, revision: before.revision + 1n });
      expect(inForce()).toEqual([entry(3)]);
      table.close();
      expect(maps.cs_policy.entries()).toHaveLength(1);
    });

    test('a policy that does not fit leaves the one in force as it was, and nothing of itself', () => {
      const table = new PolicyTable(maps, config);
      table.set(tables(entry(1)));
      const before = { ...config.current };
      expect(() => table.set(tables(...Array.from({ length: 200 }, (_, i) => entry(i))))).toThrow('E2BIG');
      expect(config.current).toEqual(before);
      expect(inForce()).toEqual([entry(1)]);
      table.close();
      expect(maps.cs_policy.entries()).toHaveLength(1);
    });

    test('what a killed agent had half written is cleared by the next one', () => {
      const killed = new PolicyTable(maps, config);
      killed.set(tables(entry(1)));
      killed.close();
      const half = {
        local: 9,
        remote: 0,
        dport: 0,
        proto: 0,
        port_bits: 0,
        direction: 0,
        slot: 1 - config.current.policy_slot,
      };
      maps.cs_policy.put(half, {
        verdict: 1,
        auth_type: 0,
        observed_verdict: 0,
        observed_auth_type: 0,
        rule: 0,
        observed_rule: 0,
      });
      const next = new PolicyTable(maps, new ConfigWriter(maps));
      next.set(tables(entry(2)));
      expect(inForceOf(maps)).toEqual([entry(2)]);
      next.close();
    });

    const inForceOf = (m: DatapathMaps) => readPolicy(m, m.cs_config.get({ n: 0 })!.policy_slot);
  });

  test('prefixes are replaced without a moment in which an address falls through to a wider one', () => {
    const prefix = (text: string, cluster = true) => ({
      prefix: parsePrefix(text)!,
      identity: securityIdentity(2),
      cluster,
    });
    const table = new PrefixTable(maps, config);
    table.setRanges([prefix('10.0.0.0/16'), prefix('fd00::/16')]);
    log.length = 0;
    table.setRanges([prefix('10.0.0.0/17'), prefix('fd00::/16')]);
    expect(log).toEqual(['cs_prefixes.put', 'cs_prefixes.delete', 'cs_config.put']);
    log.length = 0;
    table.setRanges([prefix('fd00::/16'), prefix('10.0.0.0/17')]);
    expect(log).toEqual([]);
    expect(
      maps.cs_prefixes
        .entries()
        .map(([key]) => key.prefixlen)
        .sort(),
    ).toEqual([113, 16]);
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
      expect(log).toEqual(['cs_endpoints.delete', 'cs_ipcache.delete', 'cs_ipcache.delete', 'cs_config.put', 'sweep']);
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
      sweep: () => void notes.push('sweep'),
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
