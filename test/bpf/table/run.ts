/** Takes a row of the table through the reference and, where there is one, through the kernel. */
import type { Machine } from '../../fuzz/machine.ts';
import { judge, type Verdict } from '../../reference/judge.ts';
import { type Program, type Reason, remember, type State } from '../../reference/state.ts';
import { stamped } from '../support/kernel.ts';
import { A, type Addresses } from '../support/world.ts';
import { packetOf } from './packet-text.ts';
import type { Row } from './rows.ts';
import { change, IFINDEX, smallWorld } from './statements.ts';

export interface Outcome {
  readonly action: 'pass' | 'drop' | 'hold';
  /** Undefined: dropped, it means nothing. */
  readonly mark: number | undefined;
  readonly reason: Reason | undefined;
  readonly observed: Reason | undefined;
}

export const inWords = (o: Outcome): string =>
  [
    o.action,
    o.reason,
    o.mark === undefined ? '' : `mark:0x${o.mark.toString(16)}`,
    o.observed && `observed:${o.observed}`,
  ]
    .filter((word) => word !== undefined && word !== '')
    .join(' ');

const PROGRAMS: readonly string[] = [
  'from_workload',
  'to_workload',
  'from_hold',
  'to_tunnel',
  'from_tunnel',
  'to_netdev',
  'from_netdev',
];
const BARE: readonly string[] = ['from_hold', 'to_tunnel', 'from_tunnel'];

/** BPF_PROG_TEST_RUN makes a frame of whatever it is given: the EtherType stands where a frame has it. */
export const etherTypeOf = (bytes: Buffer): number => {
  const type = bytes.readUInt16BE(12);
  return type >= 0x600 ? type : 0;
};

class Case {
  state: State = smallWorld();
  readonly #family: Addresses;
  readonly #machine: Machine | undefined;

  constructor(family: Addresses, machine: Machine | undefined) {
    this.#family = family;
    this.#machine = machine;
    machine?.reset(this.state);
  }

  statement(text: string): void {
    const [verb, ...rest] = text.split(/\s+/);
    if (PROGRAMS.includes(verb!)) {
      const [, packet, times] = /^(.*?)(?: x(\d+))?$/.exec(text)!;
      for (let i = 0; i < Number(times ?? 1); i++) this.packet(packet!);
    } else if (verb === 'wait') {
      const seconds = Number(rest[0]);
      this.state = { ...this.state, now: this.state.now + seconds };
      this.#machine?.wait(seconds, this.state);
    } else if (verb === 'lost') {
      const map = rest[0] === 'flows' ? 'flows' : 'datagrams';
      this.state = { ...this.state, [map]: new Map() };
      this.#machine?.lose(map === 'flows' ? 'flows' : 'fragments');
    } else if (verb === 'returned') {
      const count = Number(rest[0]);
      for (const who of [A.identity, 0]) {
        this.state = remember(this.state, 'held', who, (this.state.held.get(who) ?? 0) - count);
      }
      this.#machine?.returned(A.identity, count);
    } else {
      this.state = change(this.state, text, this.#family);
      this.#machine?.apply(this.state);
    }
  }

  packet(text: string): { reference: Verdict; kernel: ReturnType<Machine['run']> } {
    const [program, ...rest] = text.split(' ');
    const { frame, bare, mark } = packetOf(rest.join(' '), this.#family);
    return this.bytes(program as Program, BARE.includes(program!) ? bare : frame, mark);
  }

  bytes(program: Program, bytes: Buffer, mark: number): { reference: Verdict; kernel: ReturnType<Machine['run']> } {
    const kernel = this.#machine?.run(program, bytes, mark, IFINDEX);
    const reference = judge(program, bytes, { ifindex: IFINDEX, mark, etherType: etherTypeOf(bytes) }, this.state);
    // What the kernel takes for no packet did not happen.
    if (this.#machine === undefined || kernel !== undefined) this.state = reference.state;
    return { reference, kernel };
  }
}

/** What the row says should come of it. */
export function expected(row: Row, family: Addresses): Outcome {
  const [action, ...rest] = row.verdict.split(' ') as [Outcome['action'], ...string[]];
  if (action !== 'pass') return { action, mark: undefined, reason: rest[0] as Reason, observed: undefined };
  const named = (prefix: string) => rest.find((w) => w.startsWith(prefix))?.slice(prefix.length);
  const [program, ...packet] = row.packet.split(' ');
  const usual =
    program === 'from_workload' || program === 'from_hold'
      ? stamped(A.endpoint)
      : packetOf(packet.join(' '), family).mark;
  const mark = named('mark:');
  return {
    action,
    mark: mark === undefined ? usual : packetOf(`A>R udp 1>2 mark=${mark}`, family).mark,
    reason: undefined,
    observed: named('observed:') as Reason | undefined,
  };
}

export function byReference(row: Row, family: Addresses): Outcome {
  const world = new Case(family, undefined);
  for (const statement of row.before) world.statement(statement);
  const { reference: v } = world.packet(row.packet);
  return { action: v.action, mark: v.action === 'pass' ? v.mark : undefined, reason: v.reason, observed: v.observed };
}

export function byKernel(row: Row, family: Addresses, machine: Machine): Outcome {
  const world = new Case(family, machine);
  for (const statement of row.before) world.statement(statement);
  const before = machine.counters();
  const { kernel } = world.packet(row.packet);
  if (kernel === undefined) throw new Error('the kernel does not run this packet');
  const after = machine.counters();
  const counted = (map: 'dropped' | 'observed') => {
    const reasons = [...after[map]].filter(([reason, n]) => n !== (before[map].get(reason) ?? 0)).map(([r]) => r);
    if (reasons.length > 1) throw new Error(`${map} for ${reasons.join(' and ')}`);
    return reasons[0];
  };
  const { action } = kernel;
  return {
    action,
    mark: action === 'pass' ? kernel.mark : undefined,
    reason: counted('dropped'),
    observed: counted('observed'),
  };
}

/** The row's packet, one byte shorter each time, in the row's world: once as if the rest were lost, once as if its IP header
 *  said so, and the frame were padded. */
export function* cutEverywhere(row: Row, family: Addresses, machine: Machine) {
  const world = new Case(family, machine);
  for (const statement of row.before) world.statement(statement);
  const [program, ...rest] = row.packet.split(' ');
  const { frame, bare, mark } = packetOf(rest.join(' '), family);
  const bytes = BARE.includes(program!) ? bare : frame;
  for (let length = bytes.length - 1; length >= 14; length--) {
    const { reference, kernel } = world.bytes(program as Program, bytes.subarray(0, length), mark);
    if (kernel === undefined) return;
    const said = (v: { action: string; mark: number }) =>
      `${v.action} ${v.action === 'pass' ? v.mark.toString(16) : ''}`;
    yield { length, kernel: said(kernel), reference: said(reference) };
  }
}
