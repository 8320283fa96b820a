/** One node as a machine: its clocks, its kernel, its tunnel device, its workloads' interfaces, and the agent if one runs. */

import type { PolicyDecisions } from '../../src/auth/ports.ts';
import type { Clock } from '../../src/base/clock.ts';
import type { Timers } from '../../src/base/timers.ts';
import type { IpAddress, SecurityIdentity } from '../../src/model/ids.ts';
import type { Agent } from './agent.ts';
import { type Event, type Owner, type Pausable, timerMs } from './engine.ts';
import { Kernel, KernelMemory } from './kernel.ts';
import type { Packet, Workload } from './packet.ts';
import { NodeTrace } from './trace.ts';
import { TunnelDevice } from './tunnel-device.ts';
import type { Policy, World } from './world.ts';

const UNIX_MS = Date.UTC(2026, 0, 1, 12);

/** A machine's memory and disk at one moment. */
export interface Snapshot {
  readonly memory: KernelMemory;
  readonly device: TunnelDevice | undefined;
  readonly workloads: readonly Workload[];
  readonly incarnation: bigint;
  readonly bootMs: number;
  readonly interfaces: number;
}

export class Machine implements Clock, Pausable {
  readonly world: World;
  readonly name: string;
  readonly trace: NodeTrace;
  pausedAtMs: number | undefined;
  readonly frozen: Event[] = [];
  kernelOwner: Owner = { machine: this, dead: false };
  kernel: Kernel;
  device: TunnelDevice | undefined;
  agent: Agent | undefined;
  /** Counted up by every boot and attestation; on disk. */
  incarnation = 0n;
  /** It booted: its agent asks the server for a new incarnation before it vouches for anything. */
  needsAttestation = false;
  /** Has an agent ever run here? */
  hasState = false;
  /** Interfaces by index. */
  readonly interfaces = new Map<number, Workload>();
  nextInterface = 10;
  /** As this node has it. */
  policyInForce: Policy;
  /** As the server's table says here. */
  readonly #incarnations = new Map<string, bigint>();
  readonly revoked = new Set<SecurityIdentity>();
  #bootedMs = -20_000;
  /** How long this machine stood still since its boot. */
  standstillMs = 0;
  #earlierMs = 0;
  #readMs = -1;
  #readNs = 0n;
  wallOffsetMs = 0;
  isRestored = false;
  /** Silences that the tunnel went through in no time. */
  silenceMs = 0;

  constructor(world: World, name: string) {
    this.world = world;
    this.name = name;
    this.policyInForce = world.policy;
    this.trace = new NodeTrace(this);
    this.kernel = new Kernel(this, new KernelMemory());
  }

  knownIncarnation(node: string): bigint {
    return this.#incarnations.get(node) ?? 0n;
  }

  learnIncarnation(node: string, incarnation: bigint): void {
    if (incarnation > this.knownIncarnation(node)) this.#incarnations.set(node, incarnation);
  }

  nowMs(): number {
    return UNIX_MS + Math.floor(this.bootMs() + this.#bootedMs + this.wallOffsetMs);
  }

  tunnelNowMs(): number {
    return this.nowMs() + this.silenceMs;
  }

  /** CLOCK_BOOTTIME: stands while the machine does. */
  bootMs(): number {
    const now = this.pausedAtMs ?? this.world.engine.nowMs;
    return now - this.#bootedMs - this.standstillMs;
  }

  /** For traces: as the boot clock, and it goes on over reboots. Ms with three decimals. */
  traceMs(): number {
    return this.traceMsOf(this.bootNs());
  }

  traceMsOf(bootNs: bigint): number {
    return Math.round(this.#earlierMs * 1000 + Number(bootNs) / 1000) / 1000;
  }

  bootNs(): bigint {
    const ms = this.bootMs();
    if (ms !== this.#readMs) {
      this.#readMs = ms;
      this.#readNs = BigInt(Math.round(ms * 1e6));
    }
    return this.#readNs;
  }

  /** Of one process on this machine. */
  timersOf(owner: Owner): Timers {
    const { engine } = this.world;
    return {
      set: (ms, fn) => {
        const event = engine.after(timerMs(ms), owner, fn);
        return () => {
          event.cancelled = true;
        };
      },
    };
  }

  /** Something the kernel does for the process that asks, which goes on afterwards if it still lives. */
  async sleep(ms: number, act?: () => void): Promise<void> {
    const { engine } = this.world;
    const asker = engine.current;
    await new Promise<void>((resolve) =>
      engine.after(ms, this.kernelOwner, () => {
        act?.();
        engine.after(0, asker, resolve);
      }),
    );
  }

  get policy(): PolicyDecisions {
    return this.policyInForce;
  }

  hasInterface(ifindex: number): boolean {
    return this.interfaces.has(ifindex);
  }

  interfaceOf(uid: number): Workload | undefined {
    return [...this.interfaces.values()].find((workload) => workload.uid === uid);
  }

  drop(packet: Packet, why: string): void {
    this.world.dropped(packet, this, why);
  }

  received(packet: Packet): void {
    this.kernel.receive(packet);
  }

  pause(): void {
    this.world.engine.pause(this);
  }

  resume(): void {
    if (this.pausedAtMs === undefined) return;
    this.standstillMs += this.world.engine.nowMs - this.pausedAtMs;
    this.world.engine.resume(this);
  }

  /** Power off: memory, workloads and clocks are gone. */
  crash(): void {
    this.killAgent(true);
    this.#earlierMs += this.bootMs();
    this.kernelOwner.dead = true;
    this.kernelOwner = { machine: this, dead: false };
    this.frozen.length = 0;
    this.pausedAtMs = undefined;
    for (const workload of this.interfaces.values()) {
      workload.alive = false;
      workload.diedMs = this.world.engine.nowMs;
    }
    this.interfaces.clear();
    this.kernel = new Kernel(this, new KernelMemory());
    this.device = undefined;
    this.needsAttestation = true;
    this.#bootedMs = this.world.engine.nowMs;
    this.standstillMs = 0;
    this.trace.event('node-crash', {});
  }

  /** kill -9: the kernel closes its sockets, everything pinned stays. `silently`: nobody is told, the machine is gone. */
  killAgent(silently = false): void {
    const { agent, world } = this;
    if (agent === undefined) return;
    this.frozen.splice(0, this.frozen.length, ...this.frozen.filter((event) => event.owner !== agent.owner));
    this.agent = undefined;
    agent.owner.dead = true;
    this.kernel.agentGone();
    this.trace.event('agent-stop', {});
    agent.channels.breakAll(
      () => true,
      () => (silently ? world.random.between(5_000, 30_000) : world.channelDelay()),
    );
  }

  snapshot(): Snapshot {
    const device = this.device === undefined ? undefined : new TunnelDevice(this);
    if (device !== undefined) this.device!.copyTo(device);
    return {
      memory: this.kernel.memory.copy(),
      device,
      workloads: [...this.interfaces.values()],
      incarnation: this.incarnation,
      bootMs: this.bootMs(),
      interfaces: this.nextInterface,
    };
  }

  /** The machine as it was; what it has done since is forgotten. No agent yet. */
  restore(snapshot: Snapshot): void {
    this.crash();
    this.isRestored = true;
    const { engine } = this.world;
    this.#earlierMs -= snapshot.bootMs;
    this.#bootedMs = engine.nowMs - snapshot.bootMs;
    this.kernel = new Kernel(this, snapshot.memory.copy());
    if (snapshot.device !== undefined) {
      this.device = new TunnelDevice(this);
      snapshot.device.copyTo(this.device);
    }
    this.incarnation = snapshot.incarnation;
    for (const workload of snapshot.workloads) {
      workload.alive = true;
      workload.diedMs = Number.POSITIVE_INFINITY;
      this.interfaces.set(workload.ifindex, workload);
    }
    this.nextInterface = Math.max(this.nextInterface, snapshot.interfaces);
  }

  workloadAt(ip: IpAddress): Workload | undefined {
    return [...this.interfaces.values()].find((workload) => workload.ip === ip);
  }
}
