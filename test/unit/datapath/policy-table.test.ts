/** The policy's tables over the kernel's real maps: a change is in force whole or not at all, whatever ends it half way. */
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { readClasses } from '../../../src/datapath/class-table.ts';
import { ConfigWriter } from '../../../src/datapath/config.ts';
import { CFG_HOST_EGRESS, CFG_HOST_INGRESS, CFG_OBSERVE } from '../../../src/datapath/layout.ts';
import type { DatapathMaps } from '../../../src/datapath/maps.ts';
import { PolicyTable, readPolicy } from '../../../src/datapath/policy-table.ts';
import { parsePrefix } from '../../../src/model/address.ts';
import type { PolicyClassRow, PolicyEntry, PolicyTables } from '../../../src/model/datapath.ts';
import { securityIdentity } from '../../../src/model/ids.ts';
import { loadNotedMaps, type NotedMaps, possible } from './support/noted-maps.ts';

const CIDR = 1 << 24;

describe.skipIf(!possible)('the policy table', () => {
  let loaded: NotedMaps;
  let maps: DatapathMaps;
  let config: ConfigWriter;
  let log: string[];
  let table: PolicyTable;

  beforeEach(() => {
    loaded = loadNotedMaps({ cs_flows: 128, cs_policy: 64, cs_classes: 64, cs_prefixes: 64 });
    ({ maps, log } = loaded);
    config = new ConfigWriter(maps);
    table = new PolicyTable(maps, config);
  });
  afterEach(() => {
    table.close();
    loaded.close();
  });

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
    ...(n % 4 === 0 ? { observed: { verdict: 'deny', authType: 'none', rule: n + 1 } } : {}),
  });
  const row = (identity: number, n: number, portBits = 0): PolicyClassRow => ({
    identity: securityIdentity(identity),
    local: { egress: n, ingress: n + 1 },
    remote: { egress: n + 2, ingress: n + 3 },
    portBits: { egress: portBits, ingress: 0 },
  });
  const cidr = (text: string, identity: number) => ({
    prefix: parsePrefix(text)!,
    identity: securityIdentity(identity),
  });
  const range = (text: string) => ({ ...cidr(text, 2), cluster: true });
  const policy = (change: Partial<PolicyTables> = {}): PolicyTables => ({
    classes: [row(2, 10)],
    entries: [entry(1)],
    cidrs: [],
    host: { egress: false, ingress: false },
    ...change,
  });
  const slot = () => maps.cs_config.get({ n: 0 })!.policy_slot;
  const entries = () => readPolicy(maps, slot()).sort((x, y) => x.rule - y.rule);
  const classes = () => readClasses(maps, slot()).sort((x, y) => x.identity - y.identity);
  const prefixes = () => maps.cs_prefixes.entries().map(([key, value]) => [key.prefixlen, value.identity] as const);

  test('a policy is written whole into the half not in force, then that half is, then the revision rises', () => {
    table.set(policy({ entries: [entry(1), entry(2), entry(4)] }));
    expect(entries()).toEqual([entry(1), entry(2), entry(4)]);
    const before = { ...config.current };
    log.length = 0;
    table.set(policy({ entries: [entry(3)] }));
    expect(log.slice(-3)).toEqual(['cs_classes.putBatch', 'cs_config.put', 'cs_config.put']);
    expect(config.current).toMatchObject({ policy_slot: 1 - before.policy_slot, revision: before.revision + 1n });
    expect(entries()).toEqual([entry(3)]);
    table.close();
    expect(maps.cs_policy.entries()).toHaveLength(1);
  });

  test('whether the node itself is judged changes with the half in force, in one write, and no other flag does', () => {
    config.set({ flags: CFG_OBSERVE });
    table.set(policy({ host: { egress: false, ingress: true } }));
    expect(config.current.flags).toBe(CFG_OBSERVE | CFG_HOST_INGRESS);
    log.length = 0;
    table.set(policy({ host: { egress: true, ingress: false } }));
    expect(log.filter((write) => write === 'cs_config.put')).toHaveLength(2); // this one, then the revision
    expect(config.current.flags).toBe(CFG_OBSERVE | CFG_HOST_EGRESS);
    table.set(policy());
    expect(config.current.flags).toBe(CFG_OBSERVE);
  });

  test('classes are in force with the entries of their half', () => {
    table.set(policy({ classes: [row(2, 10), row(300, 20, 0x10001)] }));
    expect(classes()).toEqual([row(2, 10), row(300, 20, 0x10001)]);
    table.set(policy({ classes: [row(2, 30)] }));
    expect(classes()).toEqual([row(2, 30)]);
    table.close();
    expect(maps.cs_classes.entries()).toHaveLength(1);
  });

  test('a class of which an entry asks for a proof says so to the kernel, in its direction only', () => {
    const asks = { ...entry(2), local: 20 }; // egress, spiffe
    const observed = { verdict: 'allow', authType: 'spiffe', rule: 9 } as const;
    const would = { ...entry(1), local: 31, observed }; // ingress
    const none = { ...entry(1), local: 40 };
    table.set(
      policy({
        classes: [row(2, 10), row(300, 20, 1), row(301, 30, 1), row(302, 40, 1)],
        entries: [asks, would, none],
      }),
    );
    const hints = () =>
      Object.fromEntries(
        maps.cs_classes
          .entries()
          .filter(([key]) => key.slot === slot())
          .map(([key, { port_bits }]) => [key.identity, port_bits.map((bits) => bits >>> 31).join('')]),
      );
    expect(hints()).toEqual({ 2: '00', 300: '10', 301: '01', 302: '00' });
    expect(classes()[1]).toEqual(row(300, 20, 1));
    table.update({
      putEntries: [{ ...entry(4), local: 50 }],
      putClasses: [row(303, 50)],
      deleteClasses: [],
      deleteEntries: [],
    });
    expect(hints()).toMatchObject({ 300: '10', 303: '10' });
  });

  test('what a killed agent had half written is cleared by the next one', () => {
    table.set(policy());
    table.close();
    const half = 1 - slot();
    const key = { local: 9, remote: 0, dport: 0, proto: 0, port_bits: 0, direction: 0, slot: half };
    const value = maps.cs_policy.entries()[0]![1];
    maps.cs_policy.put(key, value);
    maps.cs_classes.put({ identity: 9, slot: half }, { local: [1, 1], remote: [1, 1], port_bits: [0, 0] });
    const next = new PolicyTable(maps, new ConfigWriter(maps));
    expect(maps.cs_policy.entries()).toHaveLength(1);
    expect(maps.cs_classes.entries()).toHaveLength(1);
    next.set(policy({ entries: [entry(2)] }));
    expect(entries()).toEqual([entry(2)]);
    next.close();
  });

  test('a new CIDR is the world to the half in force, before its prefix leads anybody to it', () => {
    table.set(policy());
    log.length = 0;
    let seen: PolicyClassRow[] = [];
    const put = maps.cs_prefixes.put;
    (maps.cs_prefixes as { put: typeof put }).put = (key, value) => {
      seen = classes();
      put(key, value);
    };
    table.set(policy({ classes: [row(2, 30), row(CIDR, 40)], cidrs: [cidr('192.0.2.0/24', CIDR)] }));
    const world = row(2, 10);
    const none = { egress: 0, ingress: 0 };
    expect(seen).toEqual([world, { identity: CIDR, local: none, remote: world.remote, portBits: none }]);
    expect(prefixes()).toEqual([[96 + 24, CIDR]]);
    expect(log.slice(-3)).toEqual(['cs_prefixes.put', 'cs_config.put', 'cs_config.put']);
    expect(classes()).toEqual([row(2, 30), row(CIDR, 40)]);
    table.set(policy());
    expect(prefixes()).toEqual([]);
    table.close();
    expect(classes()).toEqual([row(2, 10)]);
    expect(maps.cs_classes.entries()).toHaveLength(1);
  });

  test('identities that change places leave nothing behind that stood in for them', () => {
    const both = [row(2, 10), row(CIDR, 20), row(CIDR + 1, 30)];
    const named = (first: number, second: number) =>
      policy({ classes: both, cidrs: [cidr('192.0.2.0/25', first), cidr('192.0.2.128/25', second)] });
    table.set(named(CIDR, CIDR + 1));
    table.set(named(CIDR + 1, CIDR));
    table.close();
    expect(
      prefixes()
        .map(([, identity]) => identity)
        .sort(),
    ).toEqual([CIDR, CIDR + 1]);
    expect(classes()).toEqual(both);
    expect(maps.cs_classes.entries()).toHaveLength(3);
  });

  test('a policy whose entries, classes or prefixes do not fit leaves everything as it was', () => {
    table.set(policy({ classes: [row(2, 10), row(CIDR, 20)], cidrs: [cidr('192.0.2.0/24', CIDR)] }));
    table.close();
    const all = () => [entries(), classes(), prefixes(), maps.cs_classes.entries().length, { ...config.current }];
    const was = all();
    const hundred = <T>(make: (i: number) => T) => Array.from({ length: 100 }, (_, i) => make(i));
    expect(() => table.set(policy({ entries: hundred(entry) }))).toThrow('E2BIG');
    expect(all()).toEqual(was);
    expect(() => table.set(policy({ classes: hundred((i) => row(i + 2, 40)) }))).toThrow('E2BIG');
    expect(all()).toEqual(was);
    const many = hundred((i) => cidr(`198.51.${i}.0/24`, CIDR + 1));
    expect(() => table.set(policy({ classes: [row(2, 30), row(CIDR + 1, 50)], cidrs: many }))).toThrow('ENOSPC');
    expect(all()).toEqual(was);
    expect(maps.cs_policy.entries()).toHaveLength(1);
  });

  test('the cluster’s ranges and the CIDRs do not push one another out', () => {
    const lengths = () =>
      prefixes()
        .map(([length]) => length)
        .sort();
    table.setRanges([range('10.0.0.0/16')]);
    table.set(policy({ classes: [row(2, 10), row(CIDR, 20)], cidrs: [cidr('192.0.2.0/24', CIDR)] }));
    table.setRanges([range('10.0.0.0/16'), range('10.1.0.0/16')]);
    expect(lengths()).toEqual([112, 112, 120]);
    table.set(policy());
    expect(lengths()).toEqual([112, 112]);
  });

  test('after a restart the CIDRs of the policy in force stay until there is a new one', () => {
    table.set(policy({ classes: [row(2, 10), row(CIDR, 20)], cidrs: [cidr('192.0.2.0/24', CIDR)] }));
    table.close();
    const next = new PolicyTable(maps, new ConfigWriter(maps));
    next.setRanges([range('10.0.0.0/16')]);
    expect(prefixes()).toContainEqual([96 + 24, CIDR]);
    next.set(policy());
    expect(prefixes()).toEqual([[96 + 16, 2]]);
    next.close();
  });

  test('ranges are replaced without a moment in which an address falls through to a wider one', () => {
    table.setRanges([range('10.0.0.0/16'), range('fd00::/16')]);
    log.length = 0;
    table.setRanges([range('10.0.0.0/17'), range('fd00::/16')]);
    expect(log).toEqual(['cs_prefixes.put', 'cs_prefixes.delete', 'cs_config.put']);
    log.length = 0;
    table.setRanges([range('fd00::/16'), range('10.0.0.0/17')]);
    expect(log).toEqual([]);
  });

  describe('an update', () => {
    const nothing = { putEntries: [], putClasses: [], deleteClasses: [], deleteEntries: [] };

    test('writes what is new before what leads to it, and takes away in the other order', () => {
      table.set(policy({ classes: [row(2, 10), row(300, 20)] }));
      log.length = 0;
      const { revision } = config.current;
      table.update({
        putEntries: [entry(2)],
        putClasses: [row(301, 30)],
        deleteClasses: [securityIdentity(300)],
        deleteEntries: [entry(1)],
      });
      expect(log).toEqual([
        'cs_policy.putBatch',
        'cs_classes.putBatch',
        'cs_classes.deleteBatch',
        'cs_policy.deleteBatch',
        'cs_config.put',
      ]);
      expect(entries()).toEqual([entry(2)]);
      expect(classes()).toEqual([row(2, 10), row(301, 30)]);
      expect(config.current.revision).toBe(revision + 1n);
    });

    test('with a new identity in a class that is there judges no flow anew; with another class for a known one it does', () => {
      table.set(policy());
      const { revision } = config.current;
      table.update({ ...nothing, putClasses: [row(301, 10)] });
      table.update({ ...nothing, putClasses: [row(301, 10)] });
      expect(config.current.revision).toBe(revision);
      table.update({ ...nothing, putClasses: [row(301, 11)] });
      expect(config.current.revision).toBe(revision + 1n);
    });

    test('that does not fit leaves the policy in force as it was', () => {
      table.set(policy());
      table.close();
      const was = [entries(), classes()];
      const hundred = <T>(make: (i: number) => T) => Array.from({ length: 100 }, (_, i) => make(i));
      const refused = { ...nothing, putEntries: hundred(entry), putClasses: [row(2, 50)], deleteEntries: [entry(1)] };
      expect(() => table.update(refused)).toThrow('E2BIG');
      const rows = hundred((i) => row(i + 2, 50));
      expect(() => table.update({ ...refused, putEntries: [entry(4)], putClasses: rows })).toThrow('E2BIG');
      expect([entries(), classes()]).toEqual(was);
      expect(maps.cs_policy.entries()).toHaveLength(1);
      expect(maps.cs_classes.entries()).toHaveLength(1);
    });

    test('between a new policy and the end of the old one is kept', () => {
      table.set(policy());
      table.set(policy({ entries: [entry(2)] }));
      table.update({ ...nothing, putClasses: [row(301, 10)] });
      table.close();
      expect(classes()).toEqual([row(2, 10), row(301, 10)]);
      expect(entries()).toEqual([entry(2)]);
    });
  });
});
