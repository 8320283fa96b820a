/** The network between the machines: datagrams with loss and delay, and what is cut off. */
import type { Machine } from './machine.ts';
import type { Packet } from './packet.ts';
import type { World } from './world.ts';

export type Cut = 'both' | 'channel' | 'tunnel';

export class Underlay {
  readonly #world: World;
  readonly #cuts = new Map<string, Set<Cut>>();

  constructor(world: World) {
    this.#world = world;
  }

  cut(a: string, b: string, what: Cut): void {
    const key = between(a, b);
    this.#cuts.set(key, (this.#cuts.get(key) ?? new Set()).add(what));
  }

  heal(a: string, b: string, what: Cut): void {
    this.#cuts.get(between(a, b))?.delete(what);
  }

  healAll(): void {
    this.#cuts.clear();
  }

  isCut(a: string, b: string, what: 'channel' | 'tunnel'): boolean {
    const cuts = this.#cuts.get(between(a, b));
    return cuts !== undefined && (cuts.has('both') || cuts.has(what));
  }

  /** To the node that has this tunnel key, if it gets there. */
  datagram(from: Machine, key: string, arrive: (machine: Machine) => void, packet?: Packet): void {
    const { random, plan, engine, healed } = this.#world;
    const name = this.#world.nameOfKey(key);
    const lost = random.chance(healed ? 0 : plan.loss) || this.isCut(from.name, name, 'tunnel');
    if (lost) {
      if (packet !== undefined) this.#world.dropped(packet, from, 'lost on the way');
      return;
    }
    const u = random.next();
    const delay = u < 0.8 || healed ? random.between(0.1, 3) : random.between(0.1, plan.slowestDatagramMs);
    engine.after(delay, undefined, () => {
      const machine = this.#world.machines.get(name);
      if (machine === undefined) return;
      if (machine.pausedAtMs !== undefined && random.chance(0.5)) {
        if (packet !== undefined) this.#world.dropped(packet, machine, 'machine paused');
        return;
      }
      engine.after(0, machine.kernelOwner, () => arrive(machine));
    });
  }
}

function between(a: string, b: string): string {
  return a < b ? `${a} ${b}` : `${b} ${a}`;
}
