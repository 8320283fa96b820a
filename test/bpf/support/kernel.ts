/** The real programs, loaded but attached to nothing: maps filled by the test, packets judged by BPF_PROG_TEST_RUN. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { type Handle, type LoadedObject, native, type TestRunOptions } from '../../../native/index.ts';
import { type DropReason, dropReasonName } from '../../../src/base/registry/drop-reasons.gen.ts';
import * as layout from '../../../src/datapath/layout.ts';
import type { Codec } from '../../../src/datapath/record.ts';
import { addressBytes } from '../../../src/model/address.ts';
import type { IpAddress } from '../../../src/model/ids.ts';
import { ip, udp } from './packets.ts';

export type Program =
  | 'from_workload'
  | 'to_workload'
  | 'from_hold'
  | 'from_tunnel'
  | 'to_tunnel'
  | 'from_netdev'
  | 'to_netdev'
  | 'parse_only';
export type Action = 'pass' | 'drop' | 'hold';

/** The only interface a test can count on: lo. Every endpoint whose programs run lives there. */
export const IFINDEX = 1;

const BATCH = 4096;

const ACTIONS: Readonly<Record<number, Action>> = { [-1]: 'pass', 2: 'drop', 7: 'hold' };

export const objectPath = join(import.meta.dirname, '../../../build/bpf/datapath.bpf.o');
/** Why this tier cannot run here, or undefined. */
export const unavailable =
  process.getuid?.() !== 0 ? 'needs root' : existsSync(objectPath) ? undefined : 'build/bpf is not built';

type Decoded<C> = C extends Codec<infer T> ? T : never;
export type Config = Decoded<typeof layout.configStruct>;
export type Event = Decoded<typeof layout.eventStruct>;
export type Flow = Decoded<typeof layout.flowStruct>;

/** Fields of the skb. */
export type RunOptions = Omit<TestRunOptions, 'packet' | 'repeat'>;

export interface Verdict {
  readonly action: Action;
  readonly mark: number;
  /** Drop reasons counted by this run, in both directions. */
  readonly reasons: readonly DropReason[];
  /** What would have dropped it, had it been enforced; undefined: nothing. */
  readonly observed: readonly DropReason[] | undefined;
}

interface Endpoint {
  readonly endpoint: number;
  readonly identity: number;
  readonly ifindex?: number;
  readonly open?: boolean;
  readonly mac?: Buffer;
}

interface PolicyKey {
  readonly local: number;
  readonly remote?: number;
  readonly dport?: number;
  readonly portBits?: number;
  readonly proto?: number;
  readonly direction: number;
  readonly slot?: number;
}

interface PolicyValue {
  readonly deny?: boolean;
  readonly auth?: number;
  readonly rule?: number;
}

const smallMaps = {
  cs_flows: 4096,
  cs_waiting: 1024,
  cs_signals: 1024,
  cs_ipcache: 4096,
  cs_classes: 4096,
  cs_policy: 4096,
  cs_auth: 4096,
};

export class Kernel {
  readonly object: LoadedObject;
  readonly events: Event[] = [];
  #ring: Handle;
  #drains = 0;
  #config: Config = {
    revision: 1n,
    signal_interval_ns: 0n,
    epoch: 1,
    policy_slot: 0,
    hold_ifindex: IFINDEX,
    hold_limit_identity: 100,
    hold_limit_total: 1000,
    flags: 0,
    exempt: 0,
    verdict_sample: 0,
    peer_port: 4250,
  };
  /** By identity and slot: which port prefix lengths its entries have, each way. */
  readonly #portBits = new Map<string, [number, number]>();

  /** @param maxEntries instead of the tests' small maps. */
  constructor(maxEntries: Readonly<Record<string, number>> = smallMaps) {
    this.object = native().loadObject({ path: objectPath, maxEntries });
    this.#ring = native().ringbufOpen(this.#fd('cs_events'), (record) => {
      this.events.push(layout.eventStruct.decode(record));
    });
    this.config({});
  }

  close(): void {
    this.#ring.close();
    for (const map of Object.values(this.object.maps)) native().closeFd(map.fd);
    for (const fd of Object.values(this.object.programs)) native().closeFd(fd);
  }

  #fd(map: string): number {
    const info = this.object.maps[map];
    if (info === undefined) throw new Error(`no map ${map}`);
    return info.fd;
  }

  put<K, V>(map: string, keyCodec: Codec<K>, key: K, valueCodec: Codec<V>, value: V): void {
    native().mapUpdate(this.#fd(map), keyCodec.encode(key), valueCodec.encode(value));
  }

  /** Many at once. */
  putAll<K, V>(map: string, keyCodec: Codec<K>, valueCodec: Codec<V>, count: number, at: (i: number) => [K, V]): void {
    for (let start = 0; start < count; start += BATCH) {
      const n = Math.min(BATCH, count - start);
      const keys = Buffer.alloc(n * keyCodec.size);
      const values = Buffer.alloc(n * valueCodec.size);
      for (let i = 0; i < n; i++) {
        const [key, value] = at(start + i);
        keyCodec.encodeInto(keys, i * keyCodec.size, key);
        valueCodec.encodeInto(values, i * valueCodec.size, value);
      }
      native().mapUpdateBatch(this.#fd(map), keys, values, n);
    }
  }

  config(change: Partial<Config>): void {
    this.#config = { ...this.#config, ...change };
    this.put('cs_config', layout.u32Key, { n: 0 }, layout.configStruct, this.#config);
  }

  get revision(): bigint {
    return this.#config.revision;
  }

  /** What every change that can take a verdict away ends with. */
  bump(): void {
    this.config({ revision: this.#config.revision + 1n });
  }

  /** Each identity is a class of its own, of the same number; in both halves of the policy. */
  knowIdentity(identity: number): void {
    for (const slot of [0, 1]) {
      this.put('cs_classes', layout.classKeyStruct, { identity, slot }, layout.classStruct, {
        local: [identity, identity],
        remote: [identity, identity],
        port_bits: this.#portBits.get(`${identity} ${slot}`) ?? [0, 0],
      });
    }
  }

  /** A class row as it stands in the map; pairs are [egress, ingress]. */
  classRow(
    identity: number,
    row: { local: readonly [number, number]; remote: readonly [number, number]; portBits: readonly [number, number] },
    slot = 0,
  ): void {
    const { local, remote, portBits: port_bits } = row;
    this.put('cs_classes', layout.classKeyStruct, { identity, slot }, layout.classStruct, { local, remote, port_bits });
  }

  forgetIdentity(identity: number, slot = 0): void {
    native().mapDelete(this.#fd('cs_classes'), layout.classKeyStruct.encode({ identity, slot }));
  }

  endpoint(e: Endpoint): void {
    this.knowIdentity(e.identity);
    this.attach(e);
  }

  /** Its class row stays as it is. */
  attach(e: Endpoint): void {
    const ifindex = e.ifindex ?? IFINDEX;
    this.put('cs_endpoints', layout.u32Key, { n: ifindex }, layout.endpointStruct, {
      generation: 1n,
      endpoint: e.endpoint,
      identity: e.identity,
      flags: e.open === false ? 0 : layout.EP_OPEN,
      mac: e.mac ?? Buffer.alloc(6),
    });
    this.put('cs_endpoints_by_id', layout.u32Key, { n: e.endpoint }, layout.u32Key, { n: ifindex });
  }

  removeEndpoint(ifindex = IFINDEX): void {
    native().mapDelete(this.#fd('cs_endpoints'), layout.u32Key.encode({ n: ifindex }));
  }

  address(
    address: IpAddress,
    entry: { identity: number; node?: number; endpoint?: number; lease?: bigint; flags?: number },
  ): void {
    this.knowIdentity(entry.identity);
    this.put('cs_ipcache', layout.addressStruct, { b: addressBytes(address) }, layout.ipcacheStruct, {
      incarnation: 1n,
      generation: 1n,
      lease_ns: entry.lease ?? layout.NO_LEASE_END,
      identity: entry.identity,
      node: entry.node ?? 0,
      endpoint: entry.endpoint ?? 0,
      flags: entry.flags ?? (entry.endpoint === undefined ? 0 : layout.IP_LOCAL),
    });
  }

  removeAddress(address: IpAddress): void {
    native().mapDelete(this.#fd('cs_ipcache'), layout.addressStruct.encode({ b: addressBytes(address) }));
  }

  prefix(address: IpAddress, length: number, entry: { identity?: number; cluster?: boolean; encrypt?: boolean }): void {
    if (entry.identity !== undefined) this.knowIdentity(entry.identity);
    const prefixlen = address.includes(':') ? length : length + 96;
    this.put('cs_prefixes', layout.prefixKeyStruct, { prefixlen, addr: addressBytes(address) }, layout.prefixStruct, {
      identity: entry.identity ?? 0,
      flags: (entry.cluster ? layout.PREFIX_CLUSTER : 0) | (entry.encrypt ? layout.PREFIX_ENCRYPT : 0),
    });
  }

  /** A deny is some rule's unless it says rule 0. A port is that port alone unless portBits says otherwise. */
  policy(key: PolicyKey, value: PolicyValue & { observed?: PolicyValue } = {}): void {
    const { local, direction, slot = 0 } = key;
    const { portBits: port_bits = key.dport ? 16 : 0, ...rest } = key;
    const bits = this.#portBits.get(`${local} ${slot}`) ?? [0, 0];
    bits[direction as 0 | 1] |= 1 << port_bits;
    // As the agent does it. Where rows are written by hand, proofs are found without the hint.
    if (value.auth === 1 || value.observed?.auth === 1) bits[direction as 0 | 1] |= layout.CLASS_ASKS;
    bits[direction as 0 | 1] >>>= 0;
    this.#portBits.set(`${local} ${slot}`, bits);
    this.knowIdentity(local);
    const verdict = ({ deny }: PolicyValue) => (deny ? layout.POLICY_DENY : layout.POLICY_ALLOW);
    const rule = ({ deny, rule = deny ? 1 : 0 }: PolicyValue) => rule;
    this.put(
      'cs_policy',
      layout.policyKeyStruct,
      { remote: 0, dport: 0, proto: 0, slot, ...rest, port_bits },
      layout.policyStruct,
      {
        verdict: verdict(value),
        auth_type: value.auth ?? 0,
        rule: rule(value),
        observed_verdict: value.observed === undefined ? 0 : verdict(value.observed),
        observed_auth_type: value.observed?.auth ?? 0,
        observed_rule: value.observed === undefined ? 0 : rule(value.observed),
      },
    );
  }

  auth(
    key: { local: number; remote: number; node?: number },
    value: { expires?: bigint; epoch?: number; refused?: boolean } = {},
  ): void {
    this.put(
      'cs_auth',
      layout.authKeyStruct,
      { local: key.local, remote: key.remote, remote_node: key.node ?? 0, auth_type: 1 },
      layout.authStruct,
      {
        expires_ns: value.expires ?? this.now() + 3_600_000_000_000n,
        epoch: value.epoch ?? 1,
        flags: value.refused === true ? layout.AUTH_REFUSED : 0,
      },
    );
  }

  hold(map: 'cs_hold_taken' | 'cs_hold_returned', identity: number): bigint {
    const value = native().mapLookup(this.#fd(map), layout.u32Key.encode({ n: identity }));
    return value === undefined ? 0n : layout.u64Value.decode(value).n;
  }

  returnHeld(identity: number, packets: bigint): void {
    this.put('cs_hold_returned', layout.u32Key, { n: identity }, layout.u64Value, { n: packets });
  }

  /** Empties a map that is not an array. */
  clear(map: string): void {
    if (map === 'cs_classes') this.#portBits.clear();
    const fd = this.#fd(map);
    const { keys, count } = native().mapDump(fd);
    if (count > 0) native().mapDeleteBatch(fd, keys, count);
  }

  /** Drops of a pair of identities, by reason. */
  pairDrops(): { local: number; remote: number; reason: DropReason | undefined; direction: number; packets: bigint }[] {
    const { keys, values, count } = native().mapDump(this.#fd('cs_pair_drops'));
    return Array.from({ length: count }, (_, i) => {
      const { reason, ...key } = layout.pairKeyStruct.decode(keys, i * layout.pairKeyStruct.size);
      const { packets } = layout.counterStruct.decode(values, i * layout.counterStruct.size);
      return { ...key, reason: dropReasonName(reason), packets };
    });
  }

  flows(): Flow[] {
    const { values, count } = native().mapDump(this.#fd('cs_flows'));
    return Array.from({ length: count }, (_, i) => layout.flowStruct.decode(values, i * layout.flowStruct.size));
  }

  /** Makes all flows look as if their last packet had come that long ago. */
  ageFlows(ns: bigint): void {
    this.#age('cs_flows', layout.flowStruct.members.find((m) => m.name === 'last_ns')!.offset, ns);
  }

  /** The same of datagrams of which a first fragment came: cs_fragment.first_ns is its first field. */
  ageFragments(ns: bigint): void {
    this.#age('cs_fragments', 0, ns);
  }

  #age(map: string, at: number, ns: bigint): void {
    const fd = this.#fd(map);
    const dump = native().mapDump(fd);
    const size = dump.values.length / dump.count;
    for (let i = 0; i < dump.count; i++) {
      const last = dump.values.readBigUInt64LE(i * size + at);
      // The machine may be younger than that: the kernel's arithmetic wraps as this does.
      dump.values.writeBigUInt64LE(BigInt.asUintN(64, last - ns), i * size + at);
    }
    if (dump.count > 0) native().mapUpdateBatch(fd, dump.keys, dump.values, dump.count);
  }

  now(): bigint {
    return native().bootTimeNs();
  }

  /** Packets counted per reason, summed over CPUs and directions. */
  drops(map: 'cs_drops' | 'cs_observed' = 'cs_drops'): Map<DropReason, bigint> {
    const { keys, values, count } = native().mapDump(this.#fd(map));
    const perKey = values.length / count;
    const none = Buffer.alloc(perKey);
    const out = new Map<DropReason, bigint>();
    for (let i = 0; i < count; i++) {
      if (values.compare(none, 0, perKey, i * perKey, (i + 1) * perKey) === 0) continue;
      let packets = 0n;
      for (let at = 0; at < perKey; at += layout.counterStruct.size) {
        packets += layout.counterStruct.decode(values, i * perKey + at).packets;
      }
      const code = layout.u32Key.decode(keys, i * 4).n >> 1;
      const name = dropReasonName(code);
      if (name === undefined) throw new Error(`drop reason ${code} has no name`);
      out.set(name, (out.get(name) ?? 0n) + packets);
    }
    return out;
  }

  /** @param packet from the Ethernet header on; bare IP for the hold and tunnel programs. */
  run(program: Program, packet: Buffer, options: RunOptions = {}): Verdict {
    const fd = this.object.programs[program];
    if (fd === undefined) throw new Error(`no program ${program}`);
    const before = [this.drops(), this.drops('cs_observed')] as const;
    const result = native().progTestRun(fd, { packet, mark: 0, ifindex: IFINDEX, ...options });
    const action = ACTIONS[result.retval | 0];
    if (action === undefined) throw new Error(`${program} returned ${result.retval}`);
    const counted = (before: Map<DropReason, bigint>, after: Map<DropReason, bigint>) =>
      [...after].flatMap(([reason, n]) => Array<DropReason>(Number(n - (before.get(reason) ?? 0n))).fill(reason));
    const observed = counted(before[1], this.drops('cs_observed'));
    return {
      action,
      mark: result.mark >>> 0,
      reasons: counted(before[0], this.drops()),
      observed: observed.length === 0 ? undefined : observed,
    };
  }

  /** Runs a packet so many times without looking at what came of it. Mean duration in ns, as the kernel measured it. */
  fire(program: Program, packet: Buffer, repeat = 1): number {
    return native().progTestRun(this.object.programs[program]!, { packet, ifindex: IFINDEX, repeat }).durationNs;
  }

  /** All events up to now: the ring keeps order, so one that is made on purpose ends the wait. */
  async drainEvents(): Promise<Event[]> {
    const remote = ip(`8.254.${this.#drains >> 8}.${this.#drains & 255}`);
    this.#drains++;
    const packet = udp(SENTINEL, remote, 1, 1);
    native().progTestRun(this.object.programs.to_tunnel!, { packet, ifindex: IFINDEX });
    for (;;) {
      const at = this.events.findIndex((e) => e.remote.equals(addressBytes(remote)));
      if (at >= 0) return this.events.splice(0, at + 1).slice(0, at);
      await new Promise((resolve) => setImmediate(resolve));
    }
  }
}

/** Nothing else in the tests has this source; without a stamp the tunnel refuses it. */
const SENTINEL = ip('8.0.255.255');

export const stamped = (endpoint: number): number => ((1 << 28) | (endpoint << 16)) >>> 0;
export const MARK_TUNNEL = (2 << 28) >>> 0;
export const MARK_UNDERLAY = (3 << 28) >>> 0;
