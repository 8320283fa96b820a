/**
 * One channel for each pair of nodes: what happens to a second one. Pure. Both ends decide by the same facts, so that of
 * two simultaneous dials the same one stays on both.
 */
export interface SecondChannel {
  /** The channel in place was dialed by the node with the lower name of the pair. */
  readonly existingFromLower: boolean;
  readonly incomingFromLower: boolean;
  /** How long the channel in place has been open, ms. */
  readonly existingAgeMs: number;
  readonly existingIncarnation: bigint;
  readonly incomingIncarnation: bigint;
  /** The newcomer proved that it holds the secrets of the channel in place: a redial. */
  readonly succeeds: boolean;
}

/**
 * replace: the newcomer takes the place. probe: only if the one in place does not answer, else it is refused with
 * `refusal` (a node that lost its old connection gets through; a second process under the same name does not).
 */
export type Settlement =
  | { readonly kind: 'replace' }
  | { readonly kind: 'probe'; readonly refusal: 'PEER_REPLACED' | 'PEER_NODE_IN_USE' };

/** @param raceMs longest that a dial begun before the other end's channel opened can still be under way. */
export function settle(second: SecondChannel, raceMs: number): Settlement {
  if (second.succeeds || second.incomingIncarnation > second.existingIncarnation) return { kind: 'replace' };
  const simultaneous = second.existingFromLower !== second.incomingFromLower && second.existingAgeMs < raceMs;
  if (!simultaneous) return { kind: 'probe', refusal: 'PEER_NODE_IN_USE' };
  if (second.incomingFromLower) return { kind: 'replace' };
  return { kind: 'probe', refusal: 'PEER_REPLACED' };
}
