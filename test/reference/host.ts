/** The node's own traffic, while a policy selects the node: on the underlay, out of the tunnel, and with its endpoints. */
import { isHostProbe } from './exempt.ts';
import { associated, flowOf, type Side, sideOf, stateAfter, takenOver, withDatagram, withFlow } from './flow.ts';
import * as owners from './owner.ts';
import { type Packet, PROTOCOL } from './packet.ts';
import { type Answer, askPolicy } from './policy.ts';
import {
  type AuthType,
  type Direction,
  type Endpoint,
  HOST,
  NEVER,
  REMOTE_NODE,
  type Reason,
  type State,
} from './state.ts';
import { isControlPlane, passesAnyway, relatedRefusal } from './verdict.ts';

export interface HostFound {
  readonly state: State;
  readonly refusal?: Reason;
  readonly observed?: Reason;
}

/** The flows of the node itself are one interface's, whichever they take. */
const HOST_IFINDEX = 0xffff_ffff;
/** In place of an endpoint. */
const SELF: Endpoint = { ifindex: HOST_IFINDEX, id: 0, identity: HOST, open: true };

export const judgesHost = (state: State): boolean => state.config.hostEgress || state.config.hostIngress;
const judges = (state: State, direction: Direction): boolean =>
  direction === 'egress' ? state.config.hostEgress : state.config.hostIngress;
const opposite = (direction: Direction): Direction => (direction === 'egress' ? 'ingress' : 'egress');

/** What comes in for no workload is the node's, whether it is known to have that address or not. */
export const isForHost = (state: State, packet: Packet): boolean =>
  !['local', 'node'].includes(owners.ownerOf(state, packet.destination).kind);
export const isFromHost = (state: State, packet: Packet): boolean =>
  !owners.isWorkload(owners.ownerOf(state, packet.source));

/** RFC 4861, RFC 3376, RFC 3810: what keeps the link itself alive, and is never routed. */
function keepsLink(packet: Packet): boolean {
  if (packet.role === 'membership') return packet.fragment === undefined && packet.hopLimit === 1;
  if (packet.role !== 'neighbour' || packet.refusal !== undefined) return false;
  const hasTarget = packet.icmpType === 135 || packet.icmpType === 136;
  return packet.hopLimit === 255 && packet.payload[1] === 0 && packet.payload.length >= (hasTarget ? 24 : 8);
}

/** @param mark after the program has written it. */
export function judgeHost(before: State, read: Packet, direction: Direction, mark: number): HostFound {
  if (keepsLink(read)) return { state: before };
  const { state, packet } = associated(read, HOST_IFINDEX, direction, before);
  const side = sideOf(packet, direction, HOST_IFINDEX);
  const over = takenOver(state, packet, side, mark);
  if (over !== undefined) return { state: over.state };
  const found = judged(state, packet, side, mark);
  const passes = found.refusal === undefined || passesAnyway(state, found.refusal);
  return passes ? { ...found, state: withDatagram(found.state, packet, side) } : found;
}

function judged(state: State, packet: Packet, side: Side, mark: number): HostFound {
  const { direction } = side;
  const out = direction === 'egress';
  const flow = flowOf(state, packet, side);
  // What leaves under a stamp is a workload's behind the node's address: judged where it left the workload.
  const own =
    flow === undefined ? !out || owners.kindOf(mark) !== owners.MARK.stamped : flow.transit !== true || flow.observed;
  const ifJudged = (refusal: Reason | undefined): HostFound =>
    own && judges(state, direction) && refusal !== undefined ? { state, refusal } : { state };
  if (packet.refusal !== undefined) return ifJudged(packet.refusal);
  if (packet.role === 'neighbour') return ifJudged('ICMP_TYPE');
  if (packet.role === 'error') return ifJudged(out ? undefined : relatedRefusal(state, side, mark, SELF, packet));
  const next = stateAfter(flow, packet, direction);
  if (next === undefined) return ifJudged('STRAY');

  const remote = owners.ownerOf(state, side.remote);
  const made = { lastPacket: state.now, endpoint: SELF.id, state: next };
  let begun = flow?.direction ?? direction;
  const origin = out ? owners.originExpected(state, remote) : mark >>> 16;
  const followed = { ...made, validUntil: NEVER, auth: 'none', origin, observed: false } as const;
  if (!own) {
    return { state: withFlow(state, side, { ...followed, direction: begun, origin: 0, transit: true }) };
  }
  if (!judges(state, begun)) return { state: withFlow(state, side, { ...followed, direction: begun }) };
  const mayBeAnswer = flow === undefined && packet.role !== 'opens';
  if (!isNeeded(state, side, begun) && mayBeAnswer && isNeeded(state, side, opposite(begun))) begun = opposite(begun);
  if (isNeeded(state, side, begun)) return { state: withFlow(state, side, { ...followed, direction: begun }) };

  const refused = (refusal: Reason, validUntil: number, auth: AuthType = 'none') => {
    if (!passesAnyway(state, refusal)) return { state, refusal };
    const kept = { ...made, direction: begun, validUntil, auth, origin: 0, observed: true };
    return { state: withFlow(state, side, kept), refusal };
  };
  const wrongWay = out ? undefined : owners.originRefusal(state, mark, remote);
  if (wrongWay !== undefined) return refused(wrongWay, NEVER);
  if (remote.kind === 'nobody') return refused('NO_VOUCH', NEVER);
  if (state.now >= remote.leaseEnds) return refused('LEASE_EXPIRED', NEVER);
  const port = begun === 'egress' ? side.remotePort : side.localPort;
  const exempt = isHostProbe(state, begun, remote);
  if (!exempt && isControlPlane(state, begun, side, remote, port)) return refused('CONTROL_PLANE', remote.leaseEnds);
  const asked = { localIdentity: HOST, remote, direction: begun, protocol: side.protocol, port };
  const unasked: Answer = { enforced: { auth: 'none' }, observed: { auth: 'none' } };
  const { enforced, observed } = exempt ? unasked : askPolicy(state, asked);
  if (enforced.refusal !== undefined) return refused(enforced.refusal, remote.leaseEnds);
  // A node holds no SVID.
  if (enforced.auth !== 'none') return refused('AUTH_NOT_A_WORKLOAD', remote.leaseEnds, enforced.auth);
  const would = observed.refusal ?? (observed.auth === 'none' ? undefined : 'AUTH_NOT_A_WORKLOAD');
  const kept = { ...made, direction: begun, validUntil: remote.leaseEnds, auth: 'none', origin } as const;
  const after = withFlow(state, side, { ...kept, observed: would !== undefined });
  return would === undefined ? { state: after } : { state: after, observed: would };
}

/** The agents' channels, the tunnel, the identity server, DHCP where it is exempt: no policy of the node's cuts them off. */
function isNeeded(state: State, side: Side, begun: Direction): boolean {
  const { config, hostExempt } = state;
  const { protocol, localPort, remotePort } = side;
  const [address, port] = begun === 'egress' ? [side.remote, remotePort] : [side.local, localPort];
  if (protocol === PROTOCOL.tcp) {
    if (hostExempt.servers.some((s) => s.address === address && s.port === port)) return true;
    if (port !== config.peerPort) return false;
    const remote = owners.ownerOf(state, side.remote);
    return begun === 'ingress' || (remote.kind === 'reserved' && remote.identity === REMOTE_NODE);
  }
  if (protocol !== PROTOCOL.udp) return false;
  const dhcp = (localPort === 68 && remotePort === 67) || (localPort === 546 && remotePort === 547);
  return (config.exemptDhcp && dhcp) || hostExempt.udpPorts.includes(localPort);
}

const MAPPED = `${'00'.repeat(10)}ffff`;
/** On a veth only this host can be meant: none of these is routed. */
const isOfLink = (address: string): boolean =>
  /^fe[89ab]/.test(address) ||
  address.startsWith('ff') ||
  address.startsWith(`${MAPPED}e`) ||
  address === `${MAPPED}ffffffff`;

/** What the node's own policy says of a flow between it and an endpoint, from its side. undefined: it is not asked. */
export function askHostSide(state: State, side: Side, begun: Direction, endpoint: Endpoint, remote: owners.Owner) {
  const direction = opposite(begun);
  // Whatever has identity 1 is this host.
  if (!(remote.identity === HOST || isOfLink(side.remote)) || !judges(state, direction)) return undefined;
  if (state.config.exemptHostProbes && begun === 'ingress') return undefined;
  const here = { kind: 'local', identity: endpoint.identity, node: 0, endpoint: endpoint.id } as const;
  const port = begun === 'egress' ? side.remotePort : side.localPort;
  const { enforced, observed } = askPolicy(state, {
    localIdentity: HOST,
    remote: { ...here, leaseEnds: NEVER, encrypt: false },
    direction,
    protocol: side.protocol,
    port,
  });
  return { enforced, observed };
}
