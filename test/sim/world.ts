/**
 * One schedule's world: machines, underlay, the identity server's tables, the workloads as they really are, and what must hold of
 * every packet that is delivered.
 */
import type { AuthSettings } from '../../src/auth/ports.ts';
import { parsePrefix, prefixContains } from '../../src/model/address.ts';
import type { AuditEvent } from '../../src/model/audit-event.ts';
import type { AddressEntry, EndpointAttachment } from '../../src/model/datapath.ts';
import type { IdentityRow, NodeInfo, RevocationSubject } from '../../src/model/identity.ts';
import {
  type IpAddress,
  LOCAL_NODE,
  type NodeId,
  type NodeName,
  nodeId,
  type SecurityIdentity,
  type SpiffeId,
} from '../../src/model/ids.ts';
import { nodeSpiffeId } from '../../src/model/spiffe-id.ts';
import type { Agent } from './agent.ts';
import { Engine } from './engine.ts';
import type { Faults } from './faults.ts';
import { Machine, type Snapshot } from './machine.ts';
import { DOMAIN, IDENTITIES, type Material, NODES, workloadSpiffeId } from './material.ts';
import type { Packet, Workload } from './packet.ts';
import type { Plan } from './plan.ts';
import { type PairRule, Policy, pairText } from './policy.ts';
import { Random } from './random.ts';
import { Underlay } from './underlay.ts';

export type { Policy } from './policy.ts';

export interface Violation {
  /** P1 taken as another, P2 delivered to another, P3 believed for longer than a lease, P4 a live lease displaced, R passed though revoked, L liveness, E an exception. */
  readonly property: 'P1' | 'P2' | 'P3' | 'P4' | 'R' | 'L' | 'E';
  readonly atMs: number;
  readonly what: string;
}

export interface WorldOptions {
  /** Keeps the event log. */
  readonly recording: boolean;
  readonly faults: Faults;
  /** In place of the plan's. */
  readonly settings?: Partial<AuthSettings>;
}

export class World {
  readonly plan: Plan;
  readonly material: Material;
  readonly faults: Faults;
  readonly settings: Partial<AuthSettings>;
  readonly engine = new Engine();
  readonly random: Random;
  readonly underlay: Underlay;
  readonly machines = new Map<string, Machine>();
  readonly workloads = new Map<number, Workload>();
  readonly snapshots = new Map<string, Snapshot>();
  readonly recording: boolean;
  readonly log: string[] = [];
  readonly taken = new Map<string, number>();
  violation: Violation | undefined;
  policy: Policy;
  /** Workloads' pairs of which a packet arrived, and when last. */
  readonly arrivals = new Map<string, number>();
  readonly #incarnations = new Map<string, bigint>();
  readonly #uids = new Map<string, Set<number>>();
  readonly #infos = new Map<string, NodeInfo>();
  readonly #rows: readonly IdentityRow[];
  readonly #nonces = new Map<string, string>();
  /** By host, peer and address (renewals: of all): when the host last vouched, and how long the peer's clock had stood still. */
  readonly #vouched = new Map<string, { readonly atMs: number; readonly standstillMs: number }>();
  #packets = 0;
  #links = 0;
  #sessions = 0;
  healed = false;

  constructor(plan: Plan, material: Material, options: WorldOptions) {
    this.settings = { ...plan.settings, ...options.settings };
    this.plan = plan;
    this.material = material;
    this.recording = options.recording;
    this.faults = options.faults;
    this.random = new Random(plan.seed, 2);
    this.underlay = new Underlay(this);
    this.policy = new Policy(
      new Map([
        ...plan.required.map(([a, b]): [string, PairRule] => [pairText(a, b), 'required']),
        ...plan.denied.map(([a, b]): [string, PairRule] => [pairText(a, b), 'denied']),
      ]),
    );
    const nodes = plan.nodes.map((name) => nodeSpiffeId(DOMAIN, name as NodeName));
    this.#rows = IDENTITIES.map((identity) => ({ identity, spiffeId: workloadSpiffeId(identity), labels: {}, nodes }));
    for (const name of plan.nodes) {
      this.machines.set(name, new Machine(this, name));
      this.#describe(name, 0n);
    }
  }

  readonly identities = {
    byIdentity: (identity: SecurityIdentity) => this.#rows.find((row) => row.identity === identity),
    bySpiffeId: (id: SpiffeId) => this.#rows.find((row) => row.spiffeId === id),
    rows: () => this.#rows,
  };

  readonly nodes = {
    byName: (name: NodeName) => this.#infos.get(name),
    byId: (id: NodeId) => [...this.#infos.values()].find((info) => info.id === id),
    bySpiffeId: (id: SpiffeId) => [...this.#infos.values()].find((info) => info.spiffeId === id),
    byAddress: (ip: IpAddress) => this.nodes.candidates(ip)[0],
    candidates: (ip: IpAddress) =>
      [...this.#infos.values()].filter((info) => info.prefixes.some((p) => prefixContains(p, ip))),
    nodes: () => [...this.#infos.values()],
  };

  machine(name: string): Machine {
    return this.machines.get(name)!;
  }

  machineNames(except: string): string[] {
    return this.plan.nodes.filter((name) => name !== except);
  }

  nodeInfo(name: string): NodeInfo {
    return this.#infos.get(name)!;
  }

  nodeName(id: NodeId): string {
    return id === LOCAL_NODE ? 'itself' : (NODES[id - 1] ?? `node ${id}`);
  }

  nameOfKey(key: string): string {
    return this.material.nameOfKey(key);
  }

  publicKeyOf(raw: Buffer): string {
    return this.material.publicKeyOf(raw);
  }

  agentAt(name: string): Agent | undefined {
    return this.machines.get(name)?.agent;
  }

  isCut(a: string, b: string): boolean {
    return this.underlay.isCut(a, b, 'channel');
  }

  nextLink(): number {
    return ++this.#links;
  }

  nextSession(): number {
    return ++this.#sessions;
  }

  channelDelay(): number {
    const longest = this.healed ? 5 : this.plan.slowestFrameMs;
    return this.random.next() < 0.9 ? this.random.between(0.1, 2) : this.random.between(0.1, longest);
  }

  /** The identity server issues the next incarnation; the others hear of it some time later. */
  attest(machine: Machine) {
    const next = (this.#incarnations.get(machine.name) ?? 0n) + 1n;
    this.#incarnations.set(machine.name, next);
    machine.incarnation = next;
    this.transition('attested');
    this.#describe(machine.name, next);
    for (const other of this.machines.values())
      this.engine.after(this.random.skewed(20, 10_000), other.kernelOwner, () =>
        other.learnIncarnation(machine.name, next),
      );
  }

  /** The node table as of now, for who asks for its own row: with the incarnation of its certificate. */
  selfInfo(machine: Machine): NodeInfo {
    return { ...this.nodeInfo(machine.name), incarnation: machine.incarnation };
  }

  configsOf(node: string) {
    return this.plan.steps.flatMap(({ op }) =>
      op.kind === 'birth' && op.node === node
        ? [{ name: `w${op.uid}`, interface: `v${op.uid}`, addresses: [op.ip], spiffeId: workloadSpiffeId(op.identity) }]
        : [],
    );
  }

  isRevoked(machine: Machine, subject: RevocationSubject): boolean {
    for (const identity of machine.revoked) if (workloadSpiffeId(identity) === subject.spiffeId) return true;
    return false;
  }

  /** A workload sends one packet. */
  send(sender: Workload, to: IpAddress) {
    const machine = this.machine(sender.node);
    if (!sender.alive || machine.pausedAtMs !== undefined || machine.interfaces.get(sender.ifindex) !== sender) return;
    const packet: Packet = {
      id: ++this.#packets,
      sender,
      from: sender.ip,
      to,
      sentMs: this.engine.nowMs,
      standstillMs: machine.standstillMs,
      endpoint: 0,
      generation: 0n,
      held: false,
      meant: undefined,
    };
    this.note(sender.node, 'sends', { packet: packet.id, from: `w${sender.uid} ${sender.ip} ${sender.identity}`, to });
    machine.kernel.send(sender, packet);
  }

  /** Who has this endpoint's generation. */
  known(machine: Machine, attachment: EndpointAttachment) {
    const workload = machine.interfaces.get(attachment.ifindex);
    if (workload === undefined) return;
    const key = `${machine.name}/${machine.incarnation}/${attachment.generation}`;
    const uids = this.#uids.get(key) ?? new Set();
    if (uids.size > 0 && !uids.has(workload.uid)) this.transition('generation used twice');
    this.#uids.set(key, uids.add(workload.uid));
  }

  /** Whom an entry of a node's table means. */
  uidOf(machine: Machine, entry: AddressEntry): number | undefined {
    if (entry.node === LOCAL_NODE) {
      for (const known of machine.kernel.memory.endpoints.values())
        if (known.endpoint === entry.endpoint) return machine.interfaces.get(known.ifindex)?.uid;
      return undefined;
    }
    const uids = this.#uids.get(`${this.nodeName(entry.node)}/${entry.incarnation}/${entry.generation}`);
    return uids === undefined ? undefined : [...uids][0];
  }

  /** THE PROPERTY. */
  delivered(packet: Packet, as: SecurityIdentity, machine: Machine, ifindex: number, node?: NodeId) {
    const to = machine.interfaces.get(ifindex);
    if (to === undefined) return this.dropped(packet, machine, 'interface gone');
    if (node !== undefined) machine.trace.take(packet, this.nodeName(node), as);
    this.note(machine.name, 'delivered', { packet: packet.id, as, to: `w${to.uid}` });
    this.transition(node === undefined ? 'packet taken locally' : 'packet taken');
    if (as !== packet.sender.identity)
      this.violated(
        'P1',
        `packet ${packet.id} of w${packet.sender.uid} (${packet.sender.identity}) taken as ${as} by w${to.uid} on ${machine.name}`,
      );
    if (to.uid !== packet.meant)
      this.violated(
        'P2',
        `packet ${packet.id} of w${packet.sender.uid}, meant for w${packet.meant}, delivered to w${to.uid} on ${machine.name}`,
      );
    if (node !== undefined && !this.#isLeased(packet, machine, node))
      this.violated(
        'P3',
        `packet ${packet.id} of w${packet.sender.uid} taken on ${machine.name} when ${this.nodeName(node)} had not vouched for ${packet.from} for longer than a lease`,
      );
    // Held or queued since a time when the address was somebody else's. While its machine stood still the packet did too, and nothing on
    // that machine can tell.
    const { sentMs, standstillMs } = packet;
    if (this.machine(packet.sender.node).standstillMs !== standstillMs) return this.#arrived(packet, to);
    const meant = [...this.workloads.values()].find(
      (w) => w.ip === to.ip && w !== to && w.bornMs <= sentMs && w.diedMs > sentMs,
    );
    if (sentMs < to.bornMs && meant !== undefined)
      this.violated(
        'P2',
        `packet ${packet.id} of w${packet.sender.uid} was sent to w${meant.uid}, before w${to.uid} existed, and delivered to w${to.uid} on ${machine.name}`,
      );
    this.#arrived(packet, to);
  }

  #arrived(packet: Packet, to: Workload) {
    this.arrivals.set(`${packet.sender.uid}>${to.uid}`, packet.sentMs);
  }

  /** The host says so of the address, or of all that the peer holds. */
  vouched(host: Machine, peer: string, ip: IpAddress | '*') {
    const { standstillMs } = this.machine(peer);
    this.#vouched.set(`${host.name}>${peer} ${ip}`, { atMs: this.engine.nowMs, standstillMs });
  }

  #isLeased({ from }: Packet, machine: Machine, node: NodeId): boolean {
    // Its clock was set back with its memory: nothing on it can tell.
    if (machine.isRestored) return true;
    return [from, '*'].some((ip) => {
      const last = this.#vouched.get(`${this.nodeName(node)}>${machine.name} ${ip}`);
      if (last === undefined) return false;
      const passedMs = this.engine.nowMs - last.atMs - Math.max(0, machine.standstillMs - last.standstillMs);
      return passedMs <= (this.settings.leaseMs ?? 0);
    });
  }

  dropped(packet: Packet, machine: Machine, why: string) {
    this.transition(`drop: ${why}`);
    this.note(machine.name, 'dropped', { packet: packet.id, why });
  }

  vouchWritten(machine: Machine, before: AddressEntry | undefined, entry: AddressEntry) {
    if (before === undefined || before.node === entry.node || entry.node === LOCAL_NODE) return;
    if (before.node === LOCAL_NODE || before.leaseEndNs === undefined || before.leaseEndNs > machine.bootNs())
      this.violated(
        'P4',
        `${machine.name}: ${entry.address} of ${this.nodeName(before.node)} given to ${this.nodeName(entry.node)}`,
      );
  }

  violated(property: Violation['property'], what: string) {
    this.violation ??= { property, atMs: this.engine.nowMs, what };
  }

  fault(what: string) {
    this.violated('E', what);
  }

  audited(machine: Machine, event: AuditEvent) {
    this.transition(`${event.kind}${event.reason === undefined ? '' : ` ${event.reason}`}`);
    if (this.recording)
      this.note(machine.name, event.kind, {
        reason: event.reason,
        source: event.source,
        destination: event.destination,
        detail: event.detail,
      });
  }

  transition(name: string) {
    this.taken.set(name, (this.taken.get(name) ?? 0) + 1);
  }

  record(event: Readonly<Record<string, unknown>>) {
    const at = Math.round(this.engine.nowMs * 1000) / 1000;
    this.log.push(JSON.stringify({ at, ...event }, (_, value) => (typeof value === 'bigint' ? String(value) : value)));
  }

  /** For people: beside the model's vocabulary. */
  note(node: string, what: string, fields: Readonly<Record<string, unknown>>) {
    if (this.recording) this.record({ note: what, node, ...fields });
  }

  /** Nonces are random: in the log they are numbered. */
  nonce(text: string): string {
    const known = this.#nonces.get(text) ?? `n${this.#nonces.size + 1}`;
    this.#nonces.set(text, known);
    return known;
  }

  #describe(name: string, incarnation: bigint) {
    const births = this.plan.steps.flatMap(({ op }) => (op.kind === 'birth' && op.node === name ? [op.ip] : []));
    this.#infos.set(name, {
      name: name as NodeName,
      spiffeId: nodeSpiffeId(DOMAIN, name as NodeName),
      id: nodeId(NODES.indexOf(name as (typeof NODES)[number]) + 1),
      incarnation,
      peerAddresses: ['192.0.2.1:4250'],
      prefixes: [...new Set(births)].map((ip) => parsePrefix(`${ip}/32`)!),
    });
  }
}
