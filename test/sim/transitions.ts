/**
 * Transitions of the machines that the schedules must take between them, by the names under which the world counts them: events of
 * the model's vocabulary, audit events with their reasons, frames, and what the simulated parts met. One never taken fails the run.
 */
export const TRANSITIONS: readonly string[] = [
  // agents and nodes
  'agent-start',
  'agent-stop',
  'node-crash',
  'attested',
  'agent killed',
  'node rebooted',
  'node paused',
  'wall clock slipped',
  'snapshot restored',
  'tunnel sessions aged',
  'partition both',
  'partition channel',
  'partition tunnel',
  // channels
  'channel dialed',
  'channel redialed',
  'channel-open',
  'channel-close',
  'channel cut',
  'settle replace',
  'settle probe',
  'channel closed PEER_IDLE_TIMEOUT',
  'channel closed PEER_REPLACED',
  // the host of an address
  'open',
  'close',
  'withdraw',
  'withdraw-acked',
  'reset',
  'reset-acked',
  'grant',
  'vouch.given',
  'vouch.withdrawn',
  // the receiver
  'ask',
  'apply',
  'renewed',
  'delete',
  'withdraw-ack',
  'reset-ack',
  'vouch.taken',
  'vouch.refused VOUCH_NOT_HOSTED',
  'vouch.refused VOUCH_STALE',
  'lease.expired LEASE_EXPIRED',
  'lease ended in the kernel',
  'tunnel-allow',
  'tunnel-disallow',
  'session-drop',
  // proofs
  'auth.succeeded',
  'auth.renewed',
  'auth.expired AUTH_NOT_VOUCHED',
  'auth.expired AUTH_NOT_REQUIRED',
  'auth.revoked AUTH_REVOKED',
  'auth.failed PEER_UNREACHABLE',
  // packets
  'packet taken',
  'packet taken locally',
  'tunnel staged',
  'tunnel refused a session',
  'drop: vouch miss',
  'drop: policy',
  'drop: in: miss',
  'drop: endpoint gone',
  'drop: tunnel: source not allowed',
];

export function judgeTransitions(taken: ReadonlyMap<string, number>): {
  readonly ok: boolean;
  readonly lines: readonly string[];
} {
  const missing = TRANSITIONS.filter((name) => !taken.has(name));
  const lines = [`# transitions taken: ${TRANSITIONS.length - missing.length} of ${TRANSITIONS.length}`];
  for (const name of TRANSITIONS) lines.push(`#   ${String(taken.get(name) ?? 0).padStart(9)} ${name}`);
  for (const name of missing) lines.push(`not ok - never taken: ${name}`);
  if (missing.length === 0) lines.push(`ok - each of ${TRANSITIONS.length} transitions was taken`);
  return { ok: missing.length === 0, lines };
}
