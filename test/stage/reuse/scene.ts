/** Who has the shared address, and what everybody heard: reuse as it happens, driven step by step. */
import { readFileSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { inNetns, sh, until } from '../shell.ts';
import { Stage } from '../stage.ts';
import { plugWorkload, unplugWorkload, type WorkloadSpec } from '../topology.ts';
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
} from './spec.ts';

export interface Heard {
  /** Datagrams by who says that it sent them. */
  readonly heard: Readonly<Record<string, number>>;
  /** Sent before the one who heard them had the address. */
  readonly late: number;
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
  #round = 0;
  #owner: WorkloadSpec | undefined;

  constructor(options: ReuseOptions) {
    this.stage = new Stage(reuseSpec(options));
    this.#roundFile = join(options.dir, 'round');
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

  down(): Promise<void> {
    return this.stage.down();
  }

  /** Whoever has the address dies, and in the same moment the next one has it. */
  place(next: Owner): void {
    // First: what names an earlier round was sent while the one who dies now was alive.
    const round = this.#nextRound();
    if (this.#owner !== undefined) unplugWorkload(this.stage.spec, this.#owner);
    this.#owner = PARTIES.find((p) => p.node === next.node && p.name.startsWith(next.colour))!;
    writeFileSync(this.#sinceFile(this.#owner.name), String(round));
    plugWorkload(this.stage.spec, this.#owner);
  }

  /** What a workload has heard since the beginning. */
  heardBy(name: string): Heard {
    const last = readFileSync(this.stage.log(name), 'utf8')
      .split('\n')
      .findLast((line) => line.startsWith('{') && line.endsWith('}'));
    return last === undefined ? { heard: {}, late: 0 } : (JSON.parse(last) as Heard);
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
