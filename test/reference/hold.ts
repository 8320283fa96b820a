/** The hold queue: bounded, and in order for each flow. */
import { keyOf, type Side } from './flow.ts';
import { type Endpoint, remember, type State, type Waiting } from './state.ts';

/** Seconds that packets queue behind held ones of their flow after the last miss. */
const BEHIND_FOR = 1;

/** The flow's packets in the queue, if any may still be there. */
export function queueOf(state: State, side: Side, endpoint: Endpoint): Waiting | undefined {
  const queue = state.waiting.get(keyOf(side));
  if (queue === undefined || queue.packets === 0 || state.now - queue.lastMiss >= BEHIND_FOR) return undefined;
  return inQueue(state, endpoint.identity) > 0 ? queue : undefined;
}

/** More may have been returned than taken, for a moment: that is an empty queue. */
const inQueue = (state: State, identity: number): number => Math.max(0, state.held.get(identity) ?? 0);

/** @returns undefined: the queue is full, for this identity or for all. */
export function enqueue(state: State, side: Side, endpoint: Endpoint, isMiss: boolean): State | undefined {
  const { holdLimitTotal, holdLimitIdentity } = state.config;
  if (inQueue(state, 0) >= holdLimitTotal || inQueue(state, endpoint.identity) >= holdLimitIdentity) return undefined;
  // One that only queues behind others does not make them wait longer.
  const queue = queueOf(state, side, endpoint);
  const lastMiss = isMiss || queue === undefined ? state.now : queue.lastMiss;
  let counted = state;
  for (const who of [0, endpoint.identity]) counted = remember(counted, 'held', who, (counted.held.get(who) ?? 0) + 1);
  return remember(counted, 'waiting', keyOf(side), { packets: (queue?.packets ?? 0) + 1, lastMiss });
}

/** A held packet came back. */
export function dequeue(state: State, side: Side, endpoint: Endpoint): State {
  const queue = queueOf(state, side, endpoint);
  if (queue === undefined) return state;
  const left = queue.packets > 1 ? { ...queue, packets: queue.packets - 1 } : undefined;
  return remember(state, 'waiting', keyOf(side), left);
}
