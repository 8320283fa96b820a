/** A scenario: a random world, and what happens in it one after the other: packets, changes, time. Taken through the kernel and
 *  the reference, which must say the same of each packet. */
import { etherTypeOf } from '../bpf/table/run.ts';
import { IFINDEX } from '../bpf/table/statements.ts';
import { idleLimit } from '../reference/connection.ts';
import { judge, type Verdict } from '../reference/judge.ts';
import { type Reason, remember, type State } from '../reference/state.ts';
import type { Machine, Run } from './machine.ts';
import { type RandomPacket, Talk } from './packets.ts';
import { Random } from './random.ts';
import * as worlds from './worlds.ts';

export type Step =
  | ({ readonly kind: 'packet' } & RandomPacket)
  | { readonly kind: 'change'; readonly what: string; readonly to: Partial<State> }
  | { readonly kind: 'bump' }
  | { readonly kind: 'wait'; readonly seconds: number }
  | { readonly kind: 'lose'; readonly what: 'flows' | 'fragments' }
  | { readonly kind: 'returned'; readonly identity: number; readonly packets: number };

export interface Scenario {
  readonly seed: number;
  readonly world: State;
  readonly steps: readonly Step[];
}

export interface Difference {
  /** Of the step. */
  readonly at: number;
  readonly kernel: Run & { readonly reasons?: string };
  readonly reference: Verdict;
  readonly before: State;
}

export function scenarioOf(seed: number, packets: number): Scenario {
  const r = new Random(seed);
  const talk = new Talk(r);
  const world = worlds.randomWorld(r);
  const steps: Step[] = [];
  for (let sent = 0; sent < packets; ) {
    if (r.percent(85)) {
      steps.push({ kind: 'packet', ...talk.next() });
      sent++;
    } else {
      steps.push(...randomChange(r));
    }
  }
  return { seed, world, steps };
}

function randomChange(r: Random): Step[] {
  const change = (what: string, to: Partial<State>, bump = r.percent(80)): Step[] =>
    bump ? [{ kind: 'change', what, to }, { kind: 'bump' }] : [{ kind: 'change', what, to }];
  switch (r.below(14)) {
    case 0:
      return change('endpoints', { endpoints: worlds.randomEndpoints(r) });
    case 1:
      return change('addresses', { addresses: worlds.randomAddresses(r) });
    case 2:
      return change('prefixes', { prefixes: worlds.randomPrefixes(r) });
    case 3:
      return change('policy', { policy: worlds.randomPolicy(r) });
    case 4:
      return change('classes', { classes: worlds.randomClasses(r) });
    case 5:
      return r.oneIn(2)
        ? change('proofs', { proofs: worlds.randomProofs(r) })
        : change('proofs of flows', { flowProofs: worlds.randomFlowProofs(r) });
    case 6:
      return r.oneIn(2) ? change('config', { config: worlds.randomConfig(r, 0) }, true) : [{ kind: 'bump' }];
    case 7:
    case 8:
      return [{ kind: 'wait', seconds: r.pick([2, 4, 8, 12, 22, 34, 64, 124, 214, 432010]) }];
    case 9:
      return [{ kind: 'lose', what: r.percent(50) ? 'flows' : 'fragments' }];
    case 10:
      return [{ kind: 'returned', identity: 1000, packets: 1 + r.below(3) }];
    case 11:
      // Most open, so that what was fenced is let go.
      return change('fences', { fences: r.percent(70) ? [] : worlds.randomFences(r) });
    case 12:
      return change('endpoint', worlds.randomTakeover(r), true);
    default:
      return [{ kind: 'bump' }];
  }
}

/** The state after a step that is no packet. */
function stepped(state: State, step: Exclude<Step, { kind: 'packet' }>): State {
  switch (step.kind) {
    case 'change': {
      // A revision only rises.
      const config =
        step.to.config === undefined ? {} : { config: { ...step.to.config, revision: state.config.revision } };
      return { ...state, ...step.to, ...config };
    }
    case 'bump': {
      const { revision } = state.config;
      return { ...state, config: { ...state.config, revision: revision === 'stateless' ? 1 : revision + 1 } };
    }
    case 'wait':
      return { ...state, now: state.now + step.seconds, waiting: new Map() };
    case 'lose':
      return { ...state, [step.what === 'flows' ? 'flows' : 'datagrams']: new Map() };
    case 'returned': {
      const ofIdentity = (state.held.get(step.identity) ?? 0) - step.packets;
      return remember(
        remember(state, 'held', step.identity, ofIdentity),
        'held',
        0,
        (state.held.get(0) ?? 0) - step.packets,
      );
    }
  }
}

/** The kernel runs on real time, a little of which has passed: idle times must not end just now. */
function clear(state: State, seconds: number): boolean {
  const now = state.now + seconds;
  for (const flow of state.flows.values()) {
    if (Math.abs(now - flow.lastPacket - idleLimit(flow.state) - 1) < 0.5) return false;
  }
  return true;
}

export interface Tally {
  packets: number;
  notRun: number;
  readonly outcomes: Map<string, number>;
}

type Counts = Map<Reason, number>;
const count = <K>(map: Map<K, number>, key: K) => map.set(key, (map.get(key) ?? 0) + 1);
const sameCounts = (before: Counts, after: Counts, expected: Counts): boolean =>
  [...new Set([...after.keys(), ...expected.keys()])].every(
    (reason) => (after.get(reason) ?? 0) - (before.get(reason) ?? 0) === (expected.get(reason) ?? 0),
  );

/** @param eachCounter compares the counters after every packet, to find the one that is counted wrong.
 *  @returns the first difference. */
export function play(scenario: Scenario, machine: Machine, tally?: Tally, eachCounter = false): Difference | undefined {
  let state = scenario.world;
  machine.reset(state);
  let counters = machine.counters();
  const dropped: Counts = new Map();
  const observed: Counts = new Map();
  for (let at = 0; at < scenario.steps.length; at++) {
    const step = scenario.steps[at]!;
    if (step.kind !== 'packet') {
      if (step.kind === 'wait' && !clear(state, step.seconds)) continue;
      state = stepped(state, step);
      if (step.kind === 'wait') machine.wait(step.seconds, state);
      else if (step.kind === 'lose') machine.lose(step.what);
      else if (step.kind === 'returned') machine.returned(step.identity, step.packets);
      else machine.apply(state);
      continue;
    }
    const { program, bytes, mark } = step;
    const kernel = bytes.length < 14 ? undefined : machine.run(program, bytes, mark, IFINDEX);
    if (kernel === undefined) {
      if (tally !== undefined) tally.notRun++;
      continue;
    }
    const before = state;
    const reference = judge(program, bytes, { ifindex: IFINDEX, mark, etherType: etherTypeOf(bytes) }, state);
    state = reference.state;
    if (reference.reason !== undefined) count(dropped, reference.reason);
    if (reference.observed !== undefined) count(observed, reference.observed);
    if (tally !== undefined) {
      tally.packets++;
      count(
        tally.outcomes,
        reference.reason ?? (reference.observed === undefined ? reference.action : 'pass, observed'),
      );
    }
    const sameMark = reference.action !== 'pass' || kernel.mark === reference.mark;
    if (kernel.action !== reference.action || !sameMark) return { at, kernel, reference, before };
    if (eachCounter) {
      const now = machine.counters();
      const good =
        sameCounts(counters.dropped, now.dropped, dropped) && sameCounts(counters.observed, now.observed, observed);
      if (!good) {
        const reasons = `dropped ${changed(counters.dropped, now.dropped)}, observed ${changed(counters.observed, now.observed)}`;
        return { at, kernel: { ...kernel, reasons }, reference, before };
      }
      counters = now;
      dropped.clear();
      observed.clear();
    }
  }
  if (eachCounter) return undefined;
  const now = machine.counters();
  const good =
    sameCounts(counters.dropped, now.dropped, dropped) && sameCounts(counters.observed, now.observed, observed);
  return good ? undefined : play(scenario, machine, undefined, true);
}

const changed = (before: Counts, after: Counts): string =>
  [...after]
    .filter(([reason, n]) => n !== (before.get(reason) ?? 0))
    .map(([reason]) => reason)
    .join('+') || '-';

/** The shortest scenario found that still differs. */
export function shrink(scenario: Scenario, machine: Machine): { scenario: Scenario; difference: Difference } {
  let best = scenario;
  let difference = play(best, machine, undefined, true)!;
  best = { ...best, steps: best.steps.slice(0, difference.at + 1) };
  for (let size = Math.max(1, best.steps.length >> 1); size >= 1; size = size === 1 ? 0 : size >> 1) {
    for (let at = 0; at + 1 < best.steps.length; ) {
      const steps = [...best.steps.slice(0, at), ...best.steps.slice(Math.min(at + size, best.steps.length - 1))];
      const found = play({ ...best, steps }, machine, undefined, true);
      if (found === undefined) {
        at += size;
      } else {
        best = { ...best, steps: steps.slice(0, found.at + 1) };
        difference = found;
      }
    }
  }
  return { scenario: best, difference };
}
