/** The real programs beside the reference: fills the kernel's maps from the reference's plain state and runs packets.
 *
 * The agent's tables are written when they are another object than last time. A new policy goes into the slot that is not
 * in force, whose old content stays behind: nothing of it may count. */
import { type LoadedObject, native } from '../../native/index.ts';
import { type DropReason, dropReasonName } from '../../src/base/registry/drop-reasons.gen.ts';
import * as layout from '../../src/datapath/layout.ts';
import { objectPath } from '../bpf/support/kernel.ts';
import type { AuthType, FlowProof, Program, State } from '../reference/state.ts';

const SECOND = 1_000_000_000n;
const PROGRAM_OWNED = [
  'cs_flow_auth',
  'cs_flows',
  'cs_fragments',
  'cs_waiting',
  'cs_signals',
  'cs_hold_taken',
  'cs_hold_returned',
];
const SMALL = {
  cs_flows: 1024,
  cs_fragments: 1024,
  cs_waiting: 1024,
  cs_signals: 1024,
  cs_fences: 64,
  cs_uses: 64,
  cs_ipcache: 4096,
  cs_classes: 4096,
  cs_policy: 8192,
  cs_auth: 4096,
  cs_flow_auth: 4096,
  cs_pair_drops: 1024,
};
/** cs_class.port_bits: whether a proof is looked for early. Nothing may depend on it, so half of the classes say so. */
const HINT = 2 ** 31;
/** struct cs_fragment, which the agent never reads. */
const FRAGMENT = { size: 24, members: [{ name: 'first_ns', offset: 0 }] };
const ACTIONS: Readonly<Record<number, 'pass' | 'drop' | 'hold'>> = { [-1]: 'pass', 2: 'drop', 7: 'hold' };
const AUTH: Readonly<Record<AuthType, number>> = { none: 0, spiffe: 1, connection: 3, 'always-fail': 2 };
const DIRECTION = { egress: layout.EGRESS, ingress: layout.INGRESS } as const;

/** From flowProofKey(). */
function flowAuthKey(text: string): Buffer {
  const [endpoint, proto, local, lport, remote, rport] = text.split(' ') as [
    string,
    string,
    string,
    string,
    string,
    string,
  ];
  const swapped = (port: string) => ((Number(port) & 0xff) << 8) | (Number(port) >> 8);
  return layout.flowAuthKeyStruct.encode({
    local: Buffer.from(local, 'hex'),
    remote: Buffer.from(remote, 'hex'),
    lport: swapped(lport),
    rport: swapped(rport),
    endpoint: Number(endpoint),
    proto: Number(proto),
  });
}

export interface Run {
  readonly action: 'pass' | 'drop' | 'hold';
  readonly mark: number;
}

export interface Counters {
  readonly dropped: Map<DropReason, number>;
  readonly observed: Map<DropReason, number>;
}

interface Codec<T> {
  readonly size: number;
  encodeInto(buffer: Buffer, at: number, value: T): void;
}

export class Machine {
  readonly #object: LoadedObject;
  #applied: Partial<State> = {};
  #slot = 0;
  /** Undefined once a packet ran. */
  #counted: Counters | undefined;
  /** What the kernel's clock shows at second 0 of the state's. */
  #zero = 0n;
  /** Keys by map, and by slot where it has two. */
  readonly #written = new Map<string, Buffer>();
  /** Endpoint ids that were ever written. */
  readonly #ids = new Set<number>();

  /** @param path of the object; the repository's unless a test has built another. */
  constructor(path: string = process.env.COUNTERSIGN_BPF_OBJECT ?? objectPath) {
    this.#object = native().loadObject({ path, maxEntries: SMALL });
  }

  close(): void {
    for (const map of Object.values(this.#object.maps)) native().closeFd(map.fd);
    for (const fd of Object.values(this.#object.programs)) native().closeFd(fd);
  }

  #fd(map: string): number {
    return this.#object.maps[map]!.fd;
  }

  /** A map that the programs write. */
  #clear(map: string): void {
    const { keys, count } = native().mapDump(this.#fd(map));
    if (count > 0) native().mapDeleteBatch(this.#fd(map), keys, count);
  }

  #write<K, V>(map: string, keys: Codec<K>, values: Codec<V>, entries: readonly (readonly [K, V])[]): Buffer {
    const k = Buffer.alloc(entries.length * keys.size);
    const v = Buffer.alloc(entries.length * values.size);
    entries.forEach(([key, value], i) => {
      keys.encodeInto(k, i * keys.size, key);
      values.encodeInto(v, i * values.size, value);
    });
    if (entries.length > 0) native().mapUpdateBatch(this.#fd(map), k, v, entries.length);
    return k;
  }

  /** A map that only this class writes, or one half of it: these entries and no others. */
  #replace<K, V>(
    map: string,
    keys: Codec<K>,
    values: Codec<V>,
    entries: readonly (readonly [K, V])[],
    half: number | '' = '',
  ): void {
    const name = `${map}${half}`;
    const stale = this.#written.get(name);
    if (stale !== undefined && stale.length > 0) {
      native().mapDeleteBatch(this.#fd(map), stale, stale.length / keys.size);
    }
    this.#written.set(name, this.#write(map, keys, values, entries));
  }

  /** Everything anew, the programs' own memory included. */
  reset(state: State): void {
    for (const map of PROGRAM_OWNED) this.#clear(map);
    this.#applied = {};
    this.#zero = native().bootTimeNs() - BigInt(state.now) * SECOND;
    const nowhere = [...this.#ids].map((n) => [{ n }, { n: 0 }] as const);
    this.#write('cs_endpoints_by_id', layout.u32Key, layout.u32Key, nowhere);
    for (const id of state.lastSeen.keys()) this.#ids.add(id);
    const seen = [...state.lastSeen].map(([n, ifindex]) => [{ n }, { n: ifindex }] as const);
    this.#write('cs_endpoints_by_id', layout.u32Key, layout.u32Key, seen);
    this.apply(state);
  }

  /** What the agent would write to get there. */
  apply(state: State): void {
    const is = this.#applied;
    if (is.endpoints !== state.endpoints || is.fences !== state.fences) this.#endpoints(state);
    if (is.addresses !== state.addresses) this.#addresses(state);
    if (is.prefixes !== state.prefixes) this.#prefixes(state);
    if (is.hostExempt !== state.hostExempt) this.#hostExempt(state);
    if (is.proofs !== state.proofs) this.#proofs(state);
    if (is.flowProofs !== state.flowProofs) this.#flowProofs(state);
    const newPolicy = is.policy !== state.policy || is.classes !== state.classes;
    if (newPolicy) this.#policy(state);
    if (newPolicy || is.config !== state.config) this.#config(state);
    this.#applied = state;
  }

  #endpoints(state: State): void {
    const closed = state.fences.map((f) => [f, { n: 1 }] as const);
    this.#replace('cs_fences', layout.fenceKeyStruct, layout.u8Value, closed);
    this.#replace(
      'cs_endpoints',
      layout.u32Key,
      layout.endpointStruct,
      [...state.endpoints.values()].map((e) => {
        this.#ids.add(e.id);
        const mac = Buffer.from(e.mac ?? '000000000000', 'hex');
        const fenced = state.fences.some((f) => f.endpoint === e.id);
        const flags = (e.open ? layout.EP_OPEN : 0) | (fenced ? layout.EP_FENCES : 0);
        return [{ n: e.ifindex }, { generation: 1n, endpoint: e.id, identity: e.identity, flags, mac }] as const;
      }),
    );
  }

  /** On the kernel's clock; what is long over is over since its first nanosecond. */
  #time(seconds: number): bigint {
    if (seconds === Number.POSITIVE_INFINITY) return layout.NO_LEASE_END;
    const at = this.#zero + BigInt(Math.round(seconds * 1e9));
    return at > 1n ? at : 1n;
  }

  #addresses(state: State): void {
    const flags = { local: layout.IP_LOCAL, reserved: layout.IP_RESERVED, node: 0, nobody: 0 };
    this.#replace(
      'cs_ipcache',
      layout.addressStruct,
      layout.ipcacheStruct,
      [...state.addresses].map(([address, e]) => [
        { b: Buffer.from(address, 'hex') },
        {
          incarnation: 1n,
          generation: 1n,
          lease_ns: this.#time(e.leaseEnds),
          identity: e.identity,
          node: e.node,
          endpoint: e.endpoint,
          flags: flags[e.kind] | (e.encrypt ? layout.IP_ENCRYPT : 0),
        },
      ]),
    );
  }

  #prefixes(state: State): void {
    const flags = (p: State['prefixes'][number]) =>
      (p.cluster ? layout.PREFIX_CLUSTER : 0) | (p.encrypt ? layout.PREFIX_ENCRYPT : 0);
    this.#replace(
      'cs_prefixes',
      layout.prefixKeyStruct,
      layout.prefixStruct,
      state.prefixes.map((p) => [
        { prefixlen: p.length, addr: Buffer.from(p.address, 'hex') },
        { identity: p.identity ?? 0, flags: flags(p) },
      ]),
    );
  }

  #hostExempt({ hostExempt: { servers, udpPorts } }: State): void {
    this.#replace('cs_host_exempt', layout.hostExemptKeyStruct, layout.u8Value, [
      ...servers.map((s) => [{ addr: Buffer.from(s.address, 'hex'), port: s.port, proto: 6 }, { n: 1 }] as const),
      ...udpPorts.map((port) => [{ addr: Buffer.alloc(16), port, proto: 17 }, { n: 1 }] as const),
    ]);
  }

  #proofs(state: State): void {
    this.#replace(
      'cs_auth',
      layout.authKeyStruct,
      layout.authStruct,
      state.proofs.map((p) => [
        { local: p.local, remote: p.remote, remote_node: p.node, auth_type: AUTH.spiffe },
        { expires_ns: this.#time(p.ends), epoch: p.epoch, flags: p.refused ? layout.AUTH_REFUSED : 0 },
      ]),
    );
  }

  /** What stays is left as it is: the programs wrote into it. */
  #flowProofs(state: State): void {
    const was = this.#applied.flowProofs ?? new Map<string, FlowProof>();
    const fd = this.#fd('cs_flow_auth');
    for (const key of was.keys()) if (!state.flowProofs.has(key)) native().mapDelete(fd, flowAuthKey(key));
    for (const [key, p] of state.flowProofs) {
      if (was.get(key) === p) continue;
      const value = layout.flowAuthStruct.encode({
        expires_ns: this.#time(p.ends),
        epoch: p.epoch,
        flags: p.refused ? layout.AUTH_REFUSED : 0,
        local: p.local,
        remote: p.remote,
        remote_node: p.node,
      });
      native().mapUpdate(fd, flowAuthKey(key), value);
    }
  }

  #policy(state: State): void {
    this.#slot = 1 - this.#slot;
    const slot = this.#slot;
    const verdict = (v: 'allow' | 'deny') => (v === 'allow' ? layout.POLICY_ALLOW : layout.POLICY_DENY);
    this.#replace(
      'cs_policy',
      layout.policyKeyStruct,
      layout.policyStruct,
      state.policy.map((l) => [
        {
          local: l.local,
          remote: l.remote,
          dport: l.port,
          proto: l.protocol,
          port_bits: l.portBits,
          direction: DIRECTION[l.direction],
          slot,
        },
        {
          verdict: verdict(l.verdict),
          auth_type: AUTH[l.auth],
          rule: l.rule,
          observed_verdict: l.observed === undefined ? 0 : verdict(l.observed.verdict),
          observed_auth_type: AUTH[l.observed?.auth ?? 'none'],
          observed_rule: l.observed?.rule ?? 0,
        },
      ]),
      slot,
    );
    const bits = (local: number, direction: 'egress' | 'ingress') =>
      state.policy
        .filter((l) => l.local === local && l.direction === direction)
        .reduce((all, l) => all | (1 << l.portBits), 0) +
      (local % 2) * HINT;
    const pair = (p: Readonly<Record<'egress' | 'ingress', number>>): [number, number] => [p.egress, p.ingress];
    this.#replace(
      'cs_classes',
      layout.classKeyStruct,
      layout.classStruct,
      [...state.classes].map(([identity, row]) => [
        { identity, slot },
        {
          local: pair(row.local),
          remote: pair(row.remote),
          port_bits: [bits(row.local.egress, 'egress'), bits(row.local.ingress, 'ingress')] as [number, number],
        },
      ]),
      slot,
    );
  }

  #config(state: State): void {
    const c = state.config;
    const value = layout.configStruct.encode({
      revision: c.revision === 'stateless' ? 0xffff_ffff_ffff_ffffn : BigInt(c.revision),
      signal_interval_ns: 0n,
      epoch: c.epoch,
      policy_slot: this.#slot,
      hold_ifindex: c.holds ? 1 : 0,
      hold_limit_identity: c.holdLimitIdentity,
      hold_limit_total: c.holdLimitTotal,
      flags:
        (c.allowUnbound ? layout.CFG_ALLOW_UNBOUND : 0) |
        (c.observe ? layout.CFG_OBSERVE : 0) |
        (c.stopped ? layout.CFG_STOPPED : 0) |
        (c.hostEgress ? layout.CFG_HOST_EGRESS : 0) |
        (c.hostIngress ? layout.CFG_HOST_INGRESS : 0),
      exempt: (c.exemptDhcp ? layout.EXEMPT_DHCP : 0) | (c.exemptHostProbes ? layout.EXEMPT_HOST_PROBES : 0),
      verdict_sample: 0,
      peer_port: c.peerPort,
    });
    native().mapUpdate(this.#fd('cs_config'), layout.u32Key.encode({ n: 0 }), value);
  }

  /** Nothing happens for so long. The state's clock is the caller's to move. */
  wait(seconds: number, state: State): void {
    const ns = BigInt(Math.round(seconds * 1e9));
    this.#zero -= ns;
    this.#applied = { ...this.#applied, addresses: undefined!, proofs: undefined! };
    this.apply(state);
    this.#older('cs_flows', layout.flowStruct, ['last_ns', 'valid_until_ns'], ns);
    this.#older('cs_flow_auth', layout.flowAuthStruct, ['expires_ns'], ns);
    this.#older('cs_fragments', FRAGMENT, ['first_ns'], ns);
    this.#clear('cs_waiting');
  }

  #older(
    map: string,
    codec: { readonly size: number; readonly members: readonly { readonly name: string; readonly offset: number }[] },
    fields: readonly string[],
    ns: bigint,
  ): void {
    const dump = native().mapDump(this.#fd(map));
    const offsets = codec.members.filter((m) => fields.includes(m.name)).map((m) => [m.name, m.offset] as const);
    for (let i = 0; i < dump.count; i++) {
      for (const [name, offset] of offsets) {
        const at = i * codec.size + offset;
        const was = dump.values.readBigUInt64LE(at);
        if (name === 'valid_until_ns' || name === 'expires_ns') {
          if (was !== layout.NO_LEASE_END) dump.values.writeBigUInt64LE(was > ns ? was - ns : 1n, at);
          // The machine may be younger than that: the kernel's arithmetic wraps as this does.
        } else dump.values.writeBigUInt64LE(BigInt.asUintN(64, was - ns), at);
      }
    }
    if (dump.count > 0) native().mapUpdateBatch(this.#fd(map), dump.keys, dump.values, dump.count);
  }

  /** The kernel forgets, as an LRU map under pressure does. */
  lose(what: 'flows' | 'fragments'): void {
    this.#clear(`cs_${what}`);
  }

  /** The agent has taken so many packets out of the hold queue. */
  returned(identity: number, packets: number): void {
    for (const n of [identity, 0]) {
      const key = layout.u32Key.encode({ n });
      const was = native().mapLookup(this.#fd('cs_hold_returned'), key);
      const value = (was === undefined ? 0n : layout.u64Value.decode(was).n) + BigInt(packets);
      native().mapUpdate(this.#fd('cs_hold_returned'), key, layout.u64Value.encode({ n: value }));
    }
  }

  /** Undefined: BPF_PROG_TEST_RUN itself does not take it for a packet. */
  run(program: Program, packet: Buffer, mark: number, ifindex: number): Run | undefined {
    this.#counted = undefined;
    let result: { retval: number; mark: number };
    try {
      result = native().progTestRun(this.#object.programs[program]!, { packet, mark, ifindex });
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'EINVAL') return undefined;
      throw error;
    }
    const action = ACTIONS[result.retval | 0];
    if (action === undefined) throw new Error(`${program} returned ${result.retval}`);
    return { action, mark: result.mark >>> 0 };
  }

  /** Packets counted up to now, by reason: dropped, and passed though they would have been dropped. */
  counters(): Counters {
    this.#counted ??= { dropped: this.#counters('cs_drops'), observed: this.#counters('cs_observed') };
    return this.#counted;
  }

  #counters(map: string): Map<DropReason, number> {
    const { keys, values, count } = native().mapDump(this.#fd(map));
    const perKey = values.length / count;
    const words = new Uint32Array(values.buffer, values.byteOffset, values.length / 4);
    const out = new Map<DropReason, number>();
    for (let i = 0; i < count; i++) {
      let packets = 0;
      // Packets and bytes of each CPU; the lower half of the packets will do.
      for (let at = (i * perKey) / 4; at < ((i + 1) * perKey) / 4; at += 4) packets += words[at]!;
      if (packets === 0) continue;
      const code = keys.readUInt32LE(i * 4) >> 1;
      const name = dropReasonName(code);
      if (name === undefined) throw new Error(`drop reason ${code} has no name`);
      out.set(name, (out.get(name) ?? 0) + packets);
    }
    return out;
  }
}
