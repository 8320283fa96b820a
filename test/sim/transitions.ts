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
  'channel barred',
  'channel closed PEER_IDLE_TIMEOUT',
  'channel closed PEER_REPLACED',
  // the host of an address
  'born',
  'open',
  'close',
  'flushed',
  'grant',
  'withdraw',
  'withdraw-acked',
  'reset',
  'reset-acked',
  'renew-granted',
  'vouch.given',
  'kernel: opened',
  'kernel: opened with fences',
  'kernel: closed',
  'kernel: fence closed',
  'kernel: fence opened',
  'fence dropped a packet that leaves',
  'fence dropped a packet that enters',
  // the receiver
  'ask',
  'apply',
  'delete',
  'renew',
  'renewed',
  'withdraw-ack',
  'reset-ack',
  'tunnel-allow',
  'tunnel-disallow',
  'session-drop',
  'kernel: vouch written',
  'kernel: lease renewed',
  'kernel: vouch deleted',
  'vouch.taken',
  'vouch.withdrawn',
  'vouch.refused VOUCH_NOT_HOSTED',
  'vouch.refused VOUCH_HELD_BY_OTHER',
  'vouch.refused VOUCH_STALE',
  'lease.expired LEASE_EXPIRED',
  'lease ended in the kernel',
  'device: sessions ended',
  // proofs
  'sent FRAME_TYPE_PROVE_REQUEST',
  'sent FRAME_TYPE_PROVE_CHALLENGE',
  'sent FRAME_TYPE_PROVE_PROOF',
  'sent FRAME_TYPE_PROVE_RESULT',
  'sent FRAME_TYPE_PROVE_PAIRS',
  'sent FRAME_TYPE_PAIRS_RESULT',
  'sent FRAME_TYPE_MISS',
  'sent FRAME_TYPE_TUNNEL_OFFER',
  'sent FRAME_TYPE_TUNNEL_READY',
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
