/** Who has the shared address, and what everybody heard: reuse as it happens, driven step by step. */
import { readFileSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { TraceEvent } from '../../model/trace.ts';
import { inNetns, sh, until } from '../shell.ts';
import { Stage } from '../stage.ts';
import { plugWorkload, unplugWorkload, type WorkloadSpec } from '../topology.ts';
import { Delayer } from './delayer.ts';
import {
  type Colour,
  type HostNode,
  PARTIES,
  PARTY_PORT,
  type ReuseOptions,
  reuseSpec,
  SHARED4,
  SHARED6,
  SINK,
  SINK_PORT,
  tracesOf,
} from './spec.ts';
import { readTraces } from './traces.ts';

export interface Heard {
  /** Datagrams by who says that it sent them. */
  readonly heard: Readonly<Record<string, number>>;
  /** Sent before the one who heard them had the address. */
  readonly late: number;
  /** The last round in which any was sent. */
  readonly last: number;
}

export interface Owner {
  readonly colour: Colour;
  readonly node: HostNode;
}

const LISTENING = 'listening';
/** Table of packet filter rules that cut a peer channel. */
const CUT = 'cs_cut';

export class ReuseScene {
  readonly stage: Stage;
  readonly #roundFile: string;
  readonly #traces: string;
  #round = 0;
  #owner: WorkloadSpec | undefined;

  constructor(options: ReuseOptions) {
    this.stage = new Stage(reuseSpec(options));
    this.#roundFile = join(options.dir, 'round');
    this.#traces = tracesOf(options);
  }

  /** The cluster, and everybody talking. Nobody has the shared address yet. */
  async up(progress: (what: string) => void = () => {}): Promise<void> {
    await this.stage.up(progress);
    for (const { name } of [SINK, ...PARTIES]) writeFileSync(this.#sinceFile(name), '0');
    this.#nextRound();
    const party = ({ name }: WorkloadSpec, addresses: string, to: number, at: number) => {
      const args = [name, this.#roundFile, this.#sinceFile(name), addresses, String(to), String(at)];
      this.stage.spawnIn(name, name, 'party.ts', ...args);
    };
    party(SINK, [SHARED4, SHARED6].join(','), PARTY_PORT, SINK_PORT);
    for (const each of PARTIES) party(each, [SINK.address4, SINK.address6].join(','), SINK_PORT, PARTY_PORT);
    await until('all parties to listen', 10_000, () =>
      [SINK, ...PARTIES].every(({ name }) => readFileSync(this.stage.log(name), 'utf8').includes(LISTENING))
        ? true
        : undefined,
    );
  }

  /** What the agents did until now, if they are `traced`. */
  trace(): TraceEvent[] {
    return readTraces(this.#traces);
  }

  down(): Promise<void> {
    return this.stage.down();
  }

  /** Whoever has the address dies, and in the same moment the next one has it. */
  place(next: Owner): void {
    // First: what names an earlier round was sent while the one who dies now was alive.
    const round = this.#nextRound();
    if (this.#owner !== undefined) unplugWorkload(this.stage.spec, this.#owner);
    this.#owner = PARTIES.find((p) => p.node === next.node && p.name.startsWith(next.colour))!;
    for (const { name } of [this.#owner, SINK]) writeFileSync(this.#sinceFile(name), String(round));
    plugWorkload(this.stage.spec, this.#owner);
  }

  /** What a workload has heard since the beginning. */
  heardBy(name: string): Heard {
    const last = readFileSync(this.stage.log(name), 'utf8')
      .split('\n')
      .findLast((line) => line.startsWith('{') && line.endsWith('}'));
    return last === undefined ? { heard: {}, late: 0, last: 0 } : (JSON.parse(last) as Heard);
  }

  /** Datagrams that it heard and that were sent when it, or for sink the present owner, had its address. */
  #heardInTime(name: string): number {
    const { heard, late } = this.heardBy(name);
    return Object.values(heard).reduce((n, count) => n + count, 0) - late;
  }

  /** Datagrams of one colour that sink heard, wherever they were sent. */
  sinkHeard(colour: Colour): number {
    return Object.entries(this.heardBy(SINK.name).heard).reduce(
      (n, [from, count]) => (from.startsWith(colour) ? n + count : n),
      0,
    );
  }

  /** Packets taken from the wrong sender, and packets that reached somebody who was not meant. Both must be 0. */
  wrong(): { readonly sender: number; readonly receiver: number } {
    const receiver = PARTIES.reduce((n, { name }) => n + this.heardBy(name).late, 0);
    return { sender: this.sinkHeard('blue'), receiver };
  }

  /** The owner and sink hear each other. */
  async talking(timeoutMs: number): Promise<void> {
    const owner = this.#owner!;
    const heard = () => ({
      sink: this.heardBy(SINK.name).heard[owner.name] ?? 0,
      owner: this.heardBy(owner.name).heard[SINK.name] ?? 0,
    });
    const before = heard();
    const isRed = owner.name.startsWith('red');
    await until(`${owner.name} and sink to hear each other`, timeoutMs, () => {
      const now = heard();
      return now.owner > before.owner && (!isRed || now.sink > before.sink) ? true : undefined;
    });
  }

  /**
   * What the owner of before sent to sink, or sink to it, is held back on its way; red gets the address, and only when it hears sink (or
   * is heard by it) does that arrive. Resolves when all that was sent before has arrived; with how many packets were late.
   */
  async delayed(which: 'from owner' | 'to owner', timeoutMs: number): Promise<number> {
    const owners = this.#owner!.node;
    const [from, to] = which === 'from owner' ? [owners, SINK.node] : [SINK.node, owners];
    const delayer = new Delayer(this.stage, from, to);
    await delayer.hold();
    await delayer.enough();
    this.place({ colour: 'red', node: this.#owner!.node as HostNode });
    const heard = () => this.#heardInTime(which === 'from owner' ? this.#owner!.name : SINK.name);
    const before = heard();
    await until('the next owner to be known to both nodes', timeoutMs, () => heard() > before || undefined);
    const held = delayer.letGo();
    // What is sent from now on arrives after it.
    const round = this.#nextRound();
    const receiver = which === 'from owner' ? SINK.name : this.#owner!.name;
    await until('what is sent now to be heard', timeoutMs, () => this.heardBy(receiver).last >= round || undefined);
    return held;
  }

  /** No peer channel of this node passes until it is mended; everything else does. */
  cut(node: string): void {
    const rules = ['input', 'output'].map(
      (hook) => `chain ${hook} { type filter hook ${hook} priority 0; tcp sport 4250 drop; tcp dport 4250 drop; };`,
    );
    this.#nft(node, `table inet ${CUT} { ${rules.join(' ')} }`);
  }

  mend(node: string): void {
    this.#nft(node, `delete table inet ${CUT}`);
  }

  #nft(node: string, command: string): void {
    const [program, ...args] = inNetns(this.stage.netns(node), 'nft', command);
    sh(program!, args);
  }

  #nextRound(): number {
    // In one step: nobody may read half of it.
    writeFileSync(`${this.#roundFile}-next`, String(++this.#round));
    renameSync(`${this.#roundFile}-next`, this.#roundFile);
    return this.#round;
  }

  #sinceFile(name: string): string {
    return `${this.#roundFile}-of-${name}`;
  }
}
