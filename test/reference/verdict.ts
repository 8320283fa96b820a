/** The whole verdict over a packet of an endpoint, in the order in which it is reached (docs/architecture.md). */
import { isHostProbe } from './exempt.ts';
import { flowOf, inForce, living, nameOf, type Side, sideOf, stateAfter, withFlow } from './flow.ts';
import { queueOf } from './hold.ts';
import { askHostSide } from './host.ts';
import * as owners from './owner.ts';
import { type Packet, PROTOCOL } from './packet.ts';
import { askPolicy, askProof, type Decision, flowProofKey, type ProofQuestion } from './policy.ts';
import { quoteOf } from './quote.ts';
import { type AuthType, type Endpoint, NEVER, type Reason, remember, type State } from './state.ts';

export interface Found {
  readonly state: State;
  readonly refusal?: Reason;
  /** It passes, and would not if the policies that only observe were in force. */
  readonly observed?: Reason;
  /** A vouch or a proof is missing that the agents could bring. */
  readonly mendable: boolean;
  /** Allowed, but earlier packets of the flow still wait. */
  readonly behind: boolean;
}

/** What `enforcement: observe` lets pass: what policy, proof and encryption would stop, and what is merely not understood. What
 *  cannot be read at all, lies about where it comes from or knocks at the control plane is no one's traffic to try policies
 *  on. */
const OBSERVABLE: readonly Reason[] = [
  'UNKNOWN_L4',
  'FRAGMENT',
  'FRAGMENT_NO_FIRST',
  'FRAGMENT_OVERLAP',
  'IPV6_EXTENSION',
  'IP_OPTIONS',
  'ICMP_TYPE',
  'TCP_FLAGS',
  'SCTP_CHUNK',
  'STRAY',
  'NO_VOUCH',
  'LEASE_EXPIRED',
  'POLICY_DENIED',
  'POLICY_DENY_RULE',
  'POLICY_UNKNOWN_IDENTITY',
  'AUTH_REQUIRED',
  'AUTH_EXPIRED',
  'AUTH_EPOCH',
  'AUTH_ALWAYS_FAIL',
  'AUTH_NOT_A_WORKLOAD',
  'AUTH_REFUSED',
  'UNENCRYPTED',
];

/** Everything, while enforcement is stopped. */
export const passesAnyway = (state: State, refusal: Reason): boolean =>
  state.config.stopped || (state.config.observe && OBSERVABLE.includes(refusal));

/** @param mark the packet came with. */
export function judgeInFull(state: State, side: Side, mark: number, endpoint: Endpoint, packet: Packet): Found {
  const refused = (refusal: Reason, mendable = false): Found => ({ state, refusal, mendable, behind: false });
  const out = side.direction === 'egress';

  const own = owners.ownerOf(state, side.local);
  if (own.kind !== 'local' || own.endpoint !== endpoint.id) {
    return refused(out ? 'INVALID_SOURCE_IP' : 'INVALID_DESTINATION_IP');
  }
  if (packet.refusal !== undefined) return refused(packet.refusal);
  if (packet.role === 'error') {
    const refusal = relatedRefusal(state, side, mark, endpoint, packet);
    return refusal === undefined ? { state, mendable: false, behind: false } : refused(refusal);
  }
  // Neighbours talk over the veth itself: nothing of theirs is held, and comes back.
  if (packet.role === 'neighbour') return refused('ICMP_TYPE');

  // An endpoint that took over an interface does not take over its flows.
  const candidate = flowOf(state, packet, side);
  const flow = candidate?.endpoint === endpoint.id ? candidate : undefined;
  const begun = flow?.direction ?? side.direction;
  const next = stateAfter(flow, packet, side.direction);
  if (next === undefined) return refused('STRAY');

  const remote = owners.ownerOf(state, side.remote);
  const made = {
    lastPacket: state.now,
    direction: begun,
    endpoint: endpoint.id,
    state: next,
    proven: flow?.proven ?? false,
  };
  const wouldBe = (refusal: Reason, auth: AuthType, validUntil: number, mendable = false): Found => {
    if (!passesAnyway(state, refusal)) return refused(refusal, mendable);
    // What passes although it is refused is a flow, so that its answers are told from strays. As such it lets nothing pass.
    const flow = { ...made, validUntil, auth, origin: 0, observed: true };
    return { ...refused(refusal, mendable), state: withFlow(state, side, flow) };
  };
  const origin = out ? undefined : owners.originRefusal(state, mark, remote);
  if (origin !== undefined) return wouldBe(origin, 'none', NEVER);
  if (state.fences.some((f) => f.endpoint === endpoint.id && f.node === remote.node)) return refused('FENCED');
  if (remote.kind === 'nobody') return wouldBe('NO_VOUCH', 'none', NEVER, true);
  if (state.now >= remote.leaseEnds) return wouldBe('LEASE_EXPIRED', 'none', NEVER, true);

  const probe = isHostProbe(state, begun, remote);
  const port = begun === 'egress' ? side.remotePort : side.localPort;
  if (!probe && isControlPlane(state, begun, side, remote, port))
    return wouldBe('CONTROL_PLANE', 'none', remote.leaseEnds);
  const asked = { localIdentity: endpoint.identity, remote, direction: begun, protocol: side.protocol, port };
  const exempt: Decision = { auth: 'none' };
  const { enforced, observed } = probe ? { enforced: exempt, observed: exempt } : askPolicy(state, asked);
  if (enforced.refusal !== undefined) return wouldBe(enforced.refusal, 'none', remote.leaseEnds);
  const question: ProofQuestion = { endpoint, remote, side, proven: made.proven };
  const proven = askProof(state, question, enforced.auth);
  if ('refusal' in proven) return wouldBe(proven.refusal, enforced.auth, remote.leaseEnds, proven.mendable);

  const host = askHostSide(state, side, begun, endpoint, remote);
  const validUntil = Math.min(remote.leaseEnds, proven.until);
  if (host?.enforced.refusal !== undefined) return wouldBe(host.enforced.refusal, enforced.auth, validUntil);
  // A node holds no SVID.
  if (host !== undefined && host.enforced.auth !== 'none') {
    return wouldBe('AUTH_NOT_A_WORKLOAD', host.enforced.auth, validUntil);
  }

  if (out && queueOf(state, side, endpoint) !== undefined) return { state, mendable: false, behind: true };
  const observer = host?.observed.refusal === undefined ? observed : host.observed;
  const would = wouldRefuse(state, question, enforced.auth, observer);
  const each = enforced.auth === 'connection';
  const kept = withFlow(each ? withTaken(state, flowProofKey(endpoint.id, side)) : state, side, {
    ...made,
    proven: each || made.proven,
    validUntil: Math.min(remote.leaseEnds, proven.until, would.until),
    auth: enforced.auth,
    origin: out ? owners.originExpected(state, remote) : mark >>> 16,
    observed: would.refusal !== undefined,
  });
  const seen = would.refusal === undefined ? {} : { observed: would.refusal };
  return { state: kept, mendable: false, behind: false, ...seen };
}

/** The agents prove identities to each other on this port: no workload knocks there, whatever policy says. */
export const isControlPlane = (state: State, begun: string, side: Side, remote: owners.Owner, port: number): boolean =>
  begun === 'egress' && remote.kind === 'reserved' && side.protocol === PROTOCOL.tcp && port === state.config.peerPort;

/** The proof is used up. Without flows each packet begins one, and would need another. */
const withTaken = (state: State, key: string): State =>
  state.config.revision === 'stateless' ? state : remember(state, 'taken', key, state.flowProofs.get(key));

/** What the policies that only observe would say. Where they ask for the same proof, that was answered. */
function wouldRefuse(
  state: State,
  question: ProofQuestion,
  auth: AuthType,
  observed: Decision,
): { readonly until: number; readonly refusal?: Reason } {
  const always = { until: Number.POSITIVE_INFINITY };
  if (observed.refusal !== undefined) return { ...always, refusal: observed.refusal };
  if (observed.auth === auth) return always;
  const proven = askProof(state, question, observed.auth);
  return 'refusal' in proven ? { ...always, refusal: proven.refusal } : proven;
}

/** ICMP errors pass with a flow whose verdict is in force, and with nothing else (RFC 792, RFC 4443). */
export function relatedRefusal(
  state: State,
  side: Side,
  mark: number,
  endpoint: Endpoint,
  error: Packet,
): Reason | undefined {
  const out = side.direction === 'egress';
  // Coming in, it quotes what the endpoint sent; going out, what the endpoint received.
  const direction = out ? 'ingress' : 'egress';
  const quote = quoteOf(error);
  const named = quote === undefined ? undefined : nameOf(state, quote, side.ifindex, direction);
  if (named === undefined) return 'ICMP_TYPE';
  const quoted = sideOf(named, direction, side.ifindex);
  if (quoted.local !== side.local || (out && quoted.remote !== side.remote)) return 'ICMP_TYPE';
  const flow = living(state, quoted);
  if (flow === undefined || flow.endpoint !== endpoint.id || !inForce(state, flow)) return 'ICMP_TYPE';
  if (out) return undefined;
  const sender = owners.ownerOf(state, side.remote);
  // From the flow's other side, by the way its packets come; from this host, which routes; from a router on the way, if
  // the flow needed no proof.
  if (quoted.remote === side.remote) return flow.origin === mark >>> 16 ? undefined : 'ICMP_TYPE';
  if (owners.kindOf(mark) !== owners.MARK.none || owners.isWorkload(sender)) return 'ICMP_TYPE';
  return flow.auth === 'none' || owners.isHost(sender) ? undefined : 'ICMP_TYPE';
}
