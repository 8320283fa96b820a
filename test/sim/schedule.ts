/** Carries a plan out in a world, heals it, and demands what must come to life again. */
import { Agent } from './agent.ts';
import { useRealSignatures } from './crypto.ts';
import { follow } from './globals.ts';
import type { Machine } from './machine.ts';
import type { Material } from './material.ts';
import type { Workload } from './packet.ts';
import type { Op, Plan } from './plan.ts';
import { type Violation, World, type WorldOptions } from './world.ts';

export interface Outcome {
  readonly violation: Violation | undefined;
  readonly taken: ReadonlyMap<string, number>;
  readonly log: readonly string[];
  readonly events: number;
}

/** Successors open, and required pairs are proven, this soon when nothing fails. */
const LIVELY_MS = 2_000;

export async function runSchedule(plan: Plan, material: Material, options: WorldOptions): Promise<Outcome> {
  const world = new World(plan, material, options);
  follow(
    world.engine,
    () => world.random.next(),
    (thrown) => world.fault(textOf(thrown)),
  );
  useRealSignatures(plan.fullCrypto);
  const run = new Run(world);
  try {
    await run.all();
  } catch (thrown) {
    world.fault(textOf(thrown));
  } finally {
    follow(undefined);
    useRealSignatures(true);
  }
  const { violation, taken, log, engine } = world;
  return { violation, taken, log, events: engine.events };
}

function textOf(thrown: unknown): string {
  return thrown instanceof Error ? (thrown.stack ?? thrown.message) : String(thrown);
}

class Run {
  readonly #world: World;

  constructor(world: World) {
    this.#world = world;
  }

  async all(): Promise<void> {
    const world = this.#world;
    const { plan, engine } = world;
    for (const machine of world.machines.values()) {
      world.attest(machine);
      machine.trace.event('node-start', { incarnation: machine.incarnation });
      this.#start(machine);
    }
    for (const { atMs, op } of plan.steps)
      engine.after(atMs, undefined, () => {
        world.note('', 'op', op as unknown as Record<string, unknown>);
        this.#carryOut(op);
      });
    const demandsLife = plan.profile !== 'calm' && plan.demandsLife;
    if (demandsLife) engine.after(plan.healMs, undefined, () => this.#heal());
    for (const beforeMs of [14_000, 9_000, 5_000, 2_500])
      if (demandsLife) engine.after(plan.endMs - beforeMs, undefined, () => this.#everybodySends());
    await engine.run(plan.endMs, () => world.violation !== undefined);
    if (world.violation === undefined && demandsLife) this.#demandLife();
  }

  #carryOut(op: Op) {
    const world = this.#world;
    const { engine, random, underlay } = world;
    switch (op.kind) {
      case 'birth':
        return this.#birth(op);
      case 'death': {
        const workload = world.workloads.get(op.uid);
        if (workload !== undefined) this.#death(workload);
        return;
      }
      case 'burst': {
        const from = world.workloads.get(op.from);
        const to = world.workloads.get(op.to);
        if (from === undefined || to === undefined) return;
        for (let i = 0; i < op.packets; i++)
          engine.after(random.between(0, 60), undefined, () => world.send(from, to.ip));
        return;
      }
      case 'kill':
        world.transition('agent killed');
        return world.machine(op.node).killAgent();
      case 'start':
        return this.#start(world.machine(op.node));
      case 'reboot':
        world.transition('node rebooted');
        return this.#crash(world.machine(op.node));
      case 'pause':
        world.transition('node paused');
        return world.machine(op.node).pause();
      case 'resume':
        return world.machine(op.node).resume();
      case 'slip':
        world.transition('wall clock slipped');
        world.machine(op.node).wallOffsetMs += op.ms;
        return;
      case 'age-sessions':
        world.transition('tunnel sessions aged');
        return world.machine(op.node).device?.age();
      case 'snapshot':
        if (world.machine(op.node).agent !== undefined) world.snapshots.set(op.node, world.machine(op.node).snapshot());
        return;
      case 'restore': {
        const snapshot = world.snapshots.get(op.node);
        if (snapshot === undefined) return;
        world.transition('snapshot restored');
        const machine = world.machine(op.node);
        machine.restore(snapshot);
        machine.trace.event('node-start', { incarnation: machine.incarnation });
        return this.#start(machine, true);
      }
      case 'attest': {
        const machine = world.machine(op.node);
        if (machine.incarnation === world.nodeInfo(op.node).incarnation) return;
        machine.killAgent();
        world.attest(machine);
        return this.#start(machine);
      }
      case 'cut': {
        world.transition('channel cut');
        const a = world.agentAt(op.a);
        const quick = random.chance(0.6);
        a?.channels.breakAll(
          (end) => end.peer.name === op.b,
          () => (quick ? random.between(0, 300) : random.between(1_000, 30_000)),
        );
        return;
      }
      case 'partition': {
        world.transition(`partition ${op.what}`);
        underlay.cut(op.a, op.b, op.what);
        if (op.what === 'tunnel') return;
        world.agentAt(op.a)?.channels.breakAll(
          (end) => end.peer.name === op.b,
          () => random.between(2_000, 30_000),
        );
        return;
      }
      case 'heal':
        return underlay.heal(op.a, op.b, op.what);
      case 'redial': {
        const channels = world.agentAt(op.node)?.channels;
        for (const end of channels?.list() ?? [])
          if (end.role === 'client') channels!.dial(world.nodeInfo(end.peer.name), end, undefined);
        return;
      }
      case 'policy':
        return this.#policy(op);
      case 'revoke':
        return this.#revoke(op.identity);
    }
  }

  #birth(op: Extract<Op, { kind: 'birth' }>) {
    const world = this.#world;
    const machine = world.machine(op.node);
    if (machine.workloadAt(op.ip) !== undefined) return;
    const workload: Workload = {
      uid: op.uid,
      name: `w${op.uid}`,
      node: op.node,
      ip: op.ip,
      identity: op.identity,
      ifindex: machine.nextInterface++,
      bornMs: world.engine.nowMs,
      alive: true,
      diedMs: Number.POSITIVE_INFINITY,
    };
    machine.interfaces.set(workload.ifindex, workload);
    world.workloads.set(workload.uid, workload);
    this.#interfacesChanged(machine);
    if (world.plan.profile === 'calm') this.#demandSoon(workload);
  }

  /** The container runtime takes the interface away; the kernel's link message comes a moment later. */
  #death(workload: Workload) {
    const machine = this.#world.machine(workload.node);
    if (machine.interfaces.get(workload.ifindex) !== workload) return;
    workload.alive = false;
    workload.diedMs = this.#world.engine.nowMs;
    machine.interfaces.delete(workload.ifindex);
    this.#interfacesChanged(machine);
  }

  #interfacesChanged(machine: Machine) {
    const { engine, random } = this.#world;
    const { agent } = machine;
    if (agent === undefined) return;
    engine.after(random.skewed(0.3, 40), agent.owner, () => agent.interfacesChanged());
  }

  #crash(machine: Machine) {
    machine.crash();
  }

  /** `asIs`: with the incarnation it has, whatever the server would say. */
  #start(machine: Machine, asIs = false) {
    const world = this.#world;
    if (machine.agent !== undefined) return;
    if (!asIs && machine.needsAttestation) {
      world.attest(machine);
      machine.trace.event('node-start', { incarnation: machine.incarnation });
    }
    machine.needsAttestation = false;
    machine.policyInForce = world.policy;
    const agent = new Agent(machine);
    machine.agent = agent;
    world.engine.after(world.random.between(5, 50), agent.owner, () => {
      agent.start().catch((thrown) => world.fault(textOf(thrown)));
    });
  }

  #policy(op: Extract<Op, { kind: 'policy' }>) {
    const world = this.#world;
    world.policy = world.policy.with(op.pair[0], op.pair[1], op.as);
    const { policy } = world;
    for (const machine of world.machines.values()) {
      world.engine.after(world.random.between(1, 300), machine.kernelOwner, () => {
        machine.policyInForce = policy;
        if (machine.agent?.isReady === true)
          world.engine.after(0, machine.agent.owner, () => machine.agent?.manager.policyChanged());
      });
    }
  }

  #revoke(identity: Workload['identity']) {
    const world = this.#world;
    for (const machine of world.machines.values()) {
      const { agent } = machine;
      world.engine.after(world.random.between(1, 300), agent?.owner, () => {
        machine.revoked.add(identity);
        if (agent?.isReady !== true) return;
        agent.manager.revoked();
        for (const entry of machine.kernel.memory.auth.values())
          if (entry.local === identity || entry.remote === identity)
            world.violated(
              'R',
              `${machine.name} has a proof of ${entry.local} and ${entry.remote} after ${identity} was revoked`,
            );
      });
    }
  }

  /** Faults end; what a person would mend is mended. */
  #heal() {
    const world = this.#world;
    world.healed = true;
    world.note('', 'healed', {});
    world.underlay.healAll();
    for (const machine of world.machines.values()) {
      machine.resume();
      if (machine.incarnation !== world.nodeInfo(machine.name).incarnation) {
        machine.killAgent();
        machine.needsAttestation = true;
      }
      this.#start(machine);
    }
    // Two owners of one address: the orchestrator ends the older.
    const owners = new Map<string, Workload>();
    for (const workload of this.#living()) {
      const other = owners.get(workload.ip);
      owners.set(workload.ip, workload);
      if (other !== undefined) this.#death(other);
    }
  }

  #living(): Workload[] {
    const found = [...this.#world.machines.values()].flatMap((machine) => [...machine.interfaces.values()]);
    return found.sort((a, b) => a.uid - b.uid);
  }

  #everybodySends() {
    const world = this.#world;
    for (const from of this.#living())
      for (const to of this.#living())
        if (from !== to && from.ip !== to.ip)
          world.engine.after(world.random.between(0, 200), undefined, () => world.send(from, to.ip));
  }

  /** Without faults: open, and proven with everybody it must be proven with, within 2 s of both being known. */
  #demandSoon(workload: Workload) {
    const world = this.#world;
    const { engine } = world;
    const greet = () => {
      if (!workload.alive) return;
      for (const other of this.#living()) {
        if (other === workload) continue;
        world.send(workload, other.ip);
        world.send(other, workload.ip);
      }
    };
    if (!world.plan.preauthenticates) for (const ms of [150, 700, 1_300]) engine.after(ms, undefined, greet);
    engine.after(LIVELY_MS, undefined, () => {
      if (!workload.alive) return;
      this.#demandOpen(workload);
      for (const other of this.#living()) {
        if (other === workload || other.node === workload.node || engine.nowMs - other.bornMs < LIVELY_MS) continue;
        this.#demandProven(workload, other);
        this.#demandProven(other, workload);
      }
    });
  }

  #demandOpen(workload: Workload) {
    const world = this.#world;
    const { memory } = world.machine(workload.node).kernel;
    const endpoint = memory.endpoints.get(workload.ifindex);
    if (endpoint?.open !== true) return world.violated('L', `w${workload.uid} on ${workload.node} is not open`);
    const fences = memory.fences.get(endpoint.endpoint);
    if (fences !== undefined && fences.size > 0)
      world.violated(
        'L',
        `w${workload.uid} on ${workload.node} is fenced from ${[...fences].map((id) => world.nodeName(id))}`,
      );
  }

  #demandProven(local: Workload, remote: Workload) {
    const world = this.#world;
    const machine = world.machine(local.node);
    if (machine.policyInForce.ruleOf(local.identity, remote.identity) !== 'required') return;
    const remoteNode = world.nodeInfo(remote.node).id;
    for (const entry of machine.kernel.memory.auth.values())
      if (entry.local === local.identity && entry.remote === remote.identity && entry.remoteNode === remoteNode) return;
    world.violated(
      'L',
      `w${local.uid} (${local.identity}) on ${local.node} is not proven with w${remote.uid} (${remote.identity}) on ${remote.node}`,
    );
  }

  /** At the end: everything that lives is open, and packets pass where policy lets them. */
  #demandLife() {
    const world = this.#world;
    const living = this.#living();
    for (const workload of living) this.#demandOpen(workload);
    for (const from of living) {
      for (const to of living) {
        if (from === to || from.ip === to.ip) continue;
        if (world.policy.ruleOf(from.identity, to.identity) === 'denied') continue;
        const isRevoked = [from, to].some((w) => [...world.machines.values()].some((m) => m.revoked.has(w.identity)));
        if (isRevoked && world.policy.ruleOf(from.identity, to.identity) === 'required') continue;
        const last = world.arrivals.get(`${from.uid}>${to.uid}`);
        if (last === undefined || last < world.plan.endMs - 10_000)
          world.violated('L', `w${from.uid} on ${from.node} does not reach w${to.uid} on ${to.node}`);
      }
    }
  }
}
