/**
 * One node's kernel: the tables that the agent writes, and what the programs do with a packet by them. A program takes a moment, so
 * that a table may change between its verdict and its effect; `quiesce` waits for those that run.
 */
import { PacketHold } from '../../src/datapath/hold-queue.ts';
import { createQuiesce } from '../../src/datapath/quiesce.ts';
import type {
  AddressEntry,
  AddressTable,
  AuthEntry,
  AuthKey,
  AuthTable,
  DatapathSignal,
  Direction,
  EndpointAttachment,
  Fence,
  FenceTable,
} from '../../src/model/datapath.ts';
import {
  type IpAddress,
  LOCAL_NODE,
  type NodeId,
  type SecurityIdentity,
  securityIdentity,
} from '../../src/model/ids.ts';
import type { Owner } from './engine.ts';
import type { Machine } from './machine.ts';
import { idOf, type Packet, packetBytes, type Workload } from './packet.ts';

const HOLD_DEADLINE_MS = 5_000;
const SIGNAL_INTERVAL_MS = 50;
/** Longer than what follows an ack: the drain, and the end of a session. */
const LATE_MS = 1_000;

/** Kernel memory: what a reboot empties, an agent's end does not, and a snapshot brings back. */
export class KernelMemory {
  readonly addresses = new Map<IpAddress, AddressEntry>();
  readonly auth = new Map<string, AuthEntry>();
  readonly refused = new Map<string, bigint>();
  /** By interface. */
  readonly endpoints = new Map<number, EndpointAttachment>();
  readonly fences = new Map<number, Set<NodeId>>();
  readonly uses = new Map<NodeId, bigint>();
  epoch = 1;

  copy(): KernelMemory {
    const other = new KernelMemory();
    for (const [key, value] of this.addresses) other.addresses.set(key, value);
    for (const [key, value] of this.auth) other.auth.set(key, value);
    for (const [key, value] of this.refused) other.refused.set(key, value);
    for (const [key, value] of this.endpoints) other.endpoints.set(key, value);
    for (const [key, value] of this.fences) other.fences.set(key, new Set(value));
    for (const [key, value] of this.uses) other.uses.set(key, value);
    other.epoch = this.epoch;
    return other;
  }
}

export class Kernel {
  readonly memory: KernelMemory;
  readonly #machine: Machine;
  /** Programs that run, and packets in receive queues. */
  readonly #running = new Set<() => void>();
  readonly #waiters = new Set<{ readonly before: Set<() => void>; readonly done: () => void }>();
  readonly #lastSignal = new Map<string, number>();
  /** In the hold device or the agent's queue. */
  readonly #held = new Map<number, Packet>();
  hold: PacketHold | undefined;
  #heldSinceNs = 0n;
  onSignal: (signal: DatapathSignal) => void = () => {};

  constructor(machine: Machine, memory: KernelMemory) {
    this.#machine = machine;
    this.memory = memory;
  }

  /** What the agent sees. */
  datapath(owner: Owner) {
    const { memory } = this;
    const machine = this.#machine;
    this.#held.clear();
    const hold = new PacketHold({
      limitPerIdentity: 64,
      limitTotal: 256,
      deadlineMs: HOLD_DEADLINE_MS,
      clock: machine,
      heldSinceNs: () => this.#heldSinceNs,
      timer: (ms, fire) => machine.timersOf(owner).set(ms, fire),
      identityOf: (local) => this.#localEndpoint(local)?.identity,
      write: (bytes) => {
        const packet = this.#held.get(idOf(bytes));
        if (packet === undefined) return false;
        this.#held.delete(packet.id);
        this.#later(0.05, 1, () => this.#leave(packet));
        return true;
      },
      left: () => {},
      dropped: () => {},
    });
    this.hold = hold;
    // One for each process: what waits for a program's end dies with it.
    const quiesce = createQuiesce(() => this.#allEnded(owner));
    return {
      auth: this.#authTable(),
      addresses: this.#addressTable(),
      hold,
      fences: this.#fenceTable(),
      quiesce,
      lastUse: (node: NodeId) => memory.uses.get(node),
      putEndpoint: (attachment: EndpointAttachment) => this.#putEndpoint(attachment),
      removeEndpoint: (endpoint: number) => this.#removeEndpoint(endpoint),
      listEndpoints: () => [...memory.endpoints.values()],
      bumpRevision: () => {},
    };
  }

  /** The agent is gone, and what waited in its hold queue with it. */
  agentGone() {
    this.hold?.close();
    this.hold = undefined;
    this.#held.clear();
    this.onSignal = () => {};
  }

  /** A workload's packet at tc ingress of its veth. */
  send(workload: Workload, packet: Packet) {
    const endpoint = this.memory.endpoints.get(workload.ifindex);
    if (endpoint === undefined || !endpoint.open) return this.#drop(packet, 'sender not open');
    packet.endpoint = endpoint.endpoint;
    packet.generation = endpoint.generation;
    this.#leave(packet);
  }

  /** From the tunnel device, after its allowed IPs: into the receive queue, then leave_tunnel and enter_workload. */
  receive(packet: Packet) {
    this.#later(0.02, this.#machine.world.plan.slowQueues ? 40 : 2, () => this.#enter(packet));
  }

  /** from_workload, or from_hold for what comes back. */
  #leave(packet: Packet) {
    const { memory } = this;
    const world = this.#machine.world;
    const endpoint = memory.endpoints.get(packet.sender.ifindex);
    if (endpoint === undefined || !endpoint.open || endpoint.generation !== packet.generation)
      return this.#drop(packet, 'endpoint gone');
    const entry = this.#lookUp(packet.to);
    if (entry === undefined) return this.#holdOrDrop(packet, endpoint, 'vouch-miss', undefined);
    if (entry.node !== LOCAL_NODE && this.#isFenced(endpoint.endpoint, entry.node)) {
      world.transition('fence dropped a packet that leaves');
      return this.#drop(packet, 'fenced');
    }
    const pass = this.#judge(endpoint.identity, entry);
    if (pass === 'deny') return this.#drop(packet, 'policy');
    if (pass === 'refused') return this.#drop(packet, 'refused');
    if (pass === 'miss') return this.#holdOrDrop(packet, endpoint, 'auth-miss', entry);
    packet.meant = world.uidOf(this.#machine, entry);
    if (entry.node === LOCAL_NODE) {
      this.#later(0.01, 0.5, () => this.#deliverLocally(packet, endpoint.identity));
      return;
    }
    memory.uses.set(entry.node, this.#machine.bootNs());
    this.#machine.trace.send(packet, entry.node);
    // The rest of the program's run, then the tunnel device's queue.
    this.#later(0.005, 3, () => this.#machine.device?.transmit(packet));
  }

  #deliverLocally(packet: Packet, as: SecurityIdentity) {
    const to = this.#localEndpoint(packet.to);
    if (to === undefined || !to.open) return this.#drop(packet, 'receiver not open');
    this.#machine.world.delivered(packet, as, this.#machine, to.ifindex);
  }

  #enter(packet: Packet) {
    const to = this.#localEndpoint(packet.to);
    if (to === undefined || !to.open) return this.#drop(packet, 'receiver not open');
    const entry = this.#lookUp(packet.from);
    if (entry === undefined) {
      this.#signal('vouch-miss', 'ingress', to, packet.from, undefined, 'none', false);
      return this.#drop(packet, 'vouch miss');
    }
    if (entry.node === LOCAL_NODE) return this.#drop(packet, 'source is local');
    const { world } = this.#machine;
    if (this.#isFenced(to.endpoint, entry.node)) {
      world.transition('fence dropped a packet that enters');
      return this.#drop(packet, 'fenced');
    }
    const pass = this.#judge(to.identity, entry);
    if (pass === 'miss') this.#signal('auth-miss', 'ingress', to, packet.from, entry, 'spiffe', false);
    if (pass !== 'pass') return this.#drop(packet, `in: ${pass}`);
    memoryUse(this.memory, entry.node, this.#machine.bootNs());
    this.#later(0.005, 1, () => {
      if (this.memory.endpoints.get(to.ifindex) === undefined) return this.#drop(packet, 'receiver gone');
      world.delivered(packet, entry.identity, this.#machine, to.ifindex, entry.node);
    });
  }

  #judge(local: SecurityIdentity, entry: AddressEntry): 'pass' | 'deny' | 'refused' | 'miss' {
    const { verdict, authType } = this.#machine.policyInForce.decide(local, entry.identity);
    if (verdict === 'deny') return 'deny';
    if (authType === 'none') return 'pass';
    const key = authText({ local, remote: entry.identity, remoteNode: entry.node, authType });
    const now = this.#machine.bootNs();
    const auth = this.memory.auth.get(key);
    if (auth !== undefined && auth.expiresAtNs > now && auth.epoch >= this.memory.epoch) return 'pass';
    const until = this.memory.refused.get(key);
    return until !== undefined && until > now ? 'refused' : 'miss';
  }

  #holdOrDrop(
    packet: Packet,
    endpoint: EndpointAttachment,
    kind: 'vouch-miss' | 'auth-miss',
    entry: AddressEntry | undefined,
  ) {
    const authType = kind === 'auth-miss' ? 'spiffe' : 'none';
    if (packet.held || this.hold === undefined) return this.#drop(packet, `out: ${kind}`);
    packet.held = true;
    this.#held.set(packet.id, packet);
    const sinceNs = this.#machine.bootNs();
    // Redirected into the hold device, whose queue the agent reads.
    this.#later(0.02, 2, () => {
      if (!this.#held.has(packet.id)) return;
      this.#heldSinceNs = sinceNs;
      this.hold?.accept(packetBytes(packet));
    });
    this.#signal(kind, 'egress', endpoint, packet.to, entry, authType, true);
  }

  #signal(
    kind: DatapathSignal['kind'],
    direction: Direction,
    endpoint: EndpointAttachment,
    remote: IpAddress,
    entry: AddressEntry | undefined,
    authType: 'none' | 'spiffe',
    held: boolean,
  ) {
    const machine = this.#machine;
    const key = `${kind}|${direction}|${endpoint.endpoint}|${remote}`;
    const now = machine.world.engine.nowMs;
    const last = this.#lastSignal.get(key);
    if (last !== undefined && now - last < SIGNAL_INTERVAL_MS) return;
    this.#lastSignal.set(key, now);
    const signal: DatapathSignal = {
      kind,
      timeNs: machine.bootNs(),
      suppressed: 0n,
      direction,
      endpoint: endpoint.endpoint,
      localAddress: endpoint.addresses[0]!,
      remoteAddress: remote,
      localIdentity: endpoint.identity,
      remoteIdentity: entry?.identity ?? securityIdentity(0),
      remoteNode: entry?.node ?? LOCAL_NODE,
      protocol: 17,
      localPort: 40_000,
      remotePort: 80,
      authType,
      rule: 1,
      held,
      reason: undefined,
      length: 24,
    };
    const { agent } = machine;
    if (agent !== undefined)
      machine.world.engine.after(machine.world.random.between(0.02, 0.3), agent.owner, () => this.onSignal(signal));
  }

  /** A live vouch, or an own endpoint's address. */
  #lookUp(address: IpAddress): AddressEntry | undefined {
    const entry = this.memory.addresses.get(address);
    if (entry === undefined) return undefined;
    if (entry.leaseEndNs === undefined || this.#machine.world.faults.leaseUnchecked) return entry;
    if (entry.leaseEndNs > this.#machine.bootNs()) return entry;
    this.#machine.world.transition('lease ended in the kernel');
    return undefined;
  }

  #localEndpoint(address: IpAddress): EndpointAttachment | undefined {
    const entry = this.memory.addresses.get(address);
    if (entry === undefined || entry.node !== LOCAL_NODE) return undefined;
    for (const endpoint of this.memory.endpoints.values()) if (endpoint.endpoint === entry.endpoint) return endpoint;
    return undefined;
  }

  #isFenced(endpoint: number, node: NodeId): boolean {
    return this.memory.fences.get(endpoint)?.has(node) === true;
  }

  #drop(packet: Packet, why: string) {
    this.#machine.drop(packet, why);
  }

  /** The rest of a program's run, or a packet in a receive queue: `quiesce` waits for it. */
  #later(typicalMs: number, longestMs: number, fn: () => void) {
    const { engine, random } = this.#machine.world;
    const run = () => {
      this.#running.delete(run);
      fn();
      for (const waiter of this.#waiters) {
        if (!waiter.before.delete(run) || waiter.before.size > 0) continue;
        this.#waiters.delete(waiter);
        waiter.done();
      }
    };
    this.#running.add(run);
    engine.after(random.skewed(typicalMs, longestMs), this.#machine.kernelOwner, run);
  }

  async #allEnded(owner: Owner): Promise<void> {
    const { engine, random } = this.#machine.world;
    const before = new Set(this.#running);
    await new Promise<void>((resolve) => engine.after(random.between(5, 25), owner, resolve));
    for (const run of before) if (!this.#running.has(run)) before.delete(run);
    if (before.size === 0) return;
    // Its answer is an event of the process that asked.
    await new Promise<void>((resolve) =>
      this.#waiters.add({ before, done: () => void engine.after(0, owner, resolve) }),
    );
  }

  #putEndpoint(attachment: EndpointAttachment) {
    const { memory } = this;
    const machine = this.#machine;
    if (!machine.hasInterface(attachment.ifindex)) throw Object.assign(new Error('no such device'), { code: 'ENODEV' });
    const same = memory.endpoints.get(attachment.ifindex);
    for (const other of [...memory.endpoints.values()]) {
      const isSame = other.endpoint === attachment.endpoint && other.ifindex === attachment.ifindex;
      if (!isSame && (other.endpoint === attachment.endpoint || other.ifindex === attachment.ifindex))
        this.#removeEndpoint(other.endpoint);
    }
    for (const address of attachment.addresses) {
      memory.addresses.set(address, {
        address,
        identity: attachment.identity,
        node: LOCAL_NODE,
        incarnation: 0n,
        generation: attachment.generation,
        leaseEndNs: undefined,
        endpoint: attachment.endpoint,
        reserved: false,
      });
      machine.world.known(machine, attachment);
    }
    memory.endpoints.set(attachment.ifindex, attachment);
    if (attachment.open && same?.open !== true) machine.trace.opened(attachment);
    if (same?.open === true && !attachment.open)
      for (const address of attachment.addresses) this.hold?.dropAddress(address);
  }

  #removeEndpoint(endpoint: number) {
    const { memory } = this;
    for (const known of [...memory.endpoints.values()]) {
      if (known.endpoint !== endpoint) continue;
      memory.endpoints.delete(known.ifindex);
      memory.fences.delete(endpoint);
      for (const address of known.addresses) {
        const entry = memory.addresses.get(address);
        if (entry?.node === LOCAL_NODE && entry.endpoint === endpoint) memory.addresses.delete(address);
        this.hold?.dropAddress(address);
      }
      this.#machine.trace.closed(known);
    }
  }

  #fenceTable(): FenceTable {
    const { memory } = this;
    const machine = this.#machine;
    return {
      close: (endpoint, nodes) => {
        if (nodes.includes(LOCAL_NODE))
          throw new RangeError('a fence stands towards another node, never towards the own one');
        if (nodes.length === 0 || machine.world.faults.noFences) return;
        const fenced = memory.fences.get(endpoint) ?? new Set();
        for (const node of nodes) fenced.add(node);
        memory.fences.set(endpoint, fenced);
        machine.trace.fenced(endpoint, nodes);
      },
      open: (endpoint, nodes) => {
        const fenced = memory.fences.get(endpoint);
        if (fenced === undefined) return;
        const gone = nodes.filter((node) => fenced.delete(node));
        if (fenced.size === 0) memory.fences.delete(endpoint);
        machine.trace.unfenced(endpoint, gone);
      },
      list: () =>
        [...memory.fences].flatMap(([endpoint, nodes]): Fence[] => [...nodes].map((node) => ({ endpoint, node }))),
    };
  }

  #addressTable(): AddressTable {
    const { memory } = this;
    const machine = this.#machine;
    const put = (entry: AddressEntry) => {
      const before = memory.addresses.get(entry.address);
      memory.addresses.set(entry.address, entry);
      machine.world.vouchWritten(machine, before, entry);
      machine.trace.applied(before, entry);
    };
    return {
      put,
      putAll: (entries) => entries.forEach(put),
      delete: (address) => {
        const before = memory.addresses.get(address);
        if (before === undefined) return false;
        const remove = () => {
          if (memory.addresses.get(address) === before) memory.addresses.delete(address);
          machine.trace.deleted(address);
        };
        if (machine.world.faults.lateDelete) machine.world.engine.after(LATE_MS, machine.kernelOwner, remove);
        else remove();
        return true;
      },
      get: (address) => memory.addresses.get(address),
      list: () => [...memory.addresses.values()],
    };
  }

  #authTable() {
    const { memory } = this;
    const table = {
      get epoch() {
        return memory.epoch;
      },
      put: (entry: AuthEntry) => {
        memory.refused.delete(authText(entry));
        memory.auth.set(authText(entry), entry);
      },
      putAll: (entries: readonly AuthEntry[]) => {
        for (const entry of entries) table.put(entry);
      },
      raiseEpoch: () => {
        memory.epoch += 1;
        return memory.epoch;
      },
      delete: (keys: readonly AuthKey[]) => {
        for (const key of keys) memory.refused.delete(authText(key));
        return keys.filter((key) => memory.auth.delete(authText(key))).length;
      },
      refuse: (keys: readonly AuthKey[], untilNs: bigint) => {
        for (const key of keys) {
          memory.auth.delete(authText(key));
          memory.refused.set(authText(key), untilNs);
        }
      },
      forgetRefusals: () => memory.refused.clear(),
      list: () => [...memory.auth.values()],
      // No policy here has scope connection: test/netns tries that.
      putFlow: () => {},
      refuseFlow: () => {},
      deleteFlows: () => 0,
      listFlows: () => [],
    };
    return table satisfies AuthTable;
  }
}

function memoryUse(memory: KernelMemory, node: NodeId, now: bigint) {
  memory.uses.set(node, now);
}

export function authText(key: AuthKey): string {
  return `${key.local}/${key.remote}/${key.remoteNode}/${key.authType}`;
}
