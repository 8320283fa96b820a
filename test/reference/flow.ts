/** Is this packet part of a flow, and may the verdict over the flow be taken over? Fragments are of their first one's flow. */
import { advance, idleLimit, isOver } from './connection.ts';
import { type Packet, readIp } from './packet.ts';
import type { Quote } from './quote.ts';
import { type Address, type Datagram, type Direction, type Flow, type Reason, remember, type State } from './state.ts';

/** A flow as the endpoint sees it. */
export interface Side {
  readonly direction: Direction;
  readonly ifindex: number;
  readonly local: Address;
  readonly remote: Address;
  readonly localPort: number;
  readonly remotePort: number;
  readonly protocol: number;
}

export const keyOf = (s: Side): string =>
  `${s.ifindex} ${s.protocol} ${s.local} ${s.localPort} ${s.remote} ${s.remotePort}`;

type Named = Pick<Packet, 'source' | 'destination' | 'protocol' | 'sourcePort' | 'destinationPort'>;

export function sideOf(packet: Named, direction: Direction, ifindex: number): Side {
  const out = direction === 'egress';
  return {
    direction,
    ifindex,
    protocol: packet.protocol,
    local: out ? packet.source : packet.destination,
    remote: out ? packet.destination : packet.source,
    localPort: out ? packet.sourcePort : packet.destinationPort,
    remotePort: out ? packet.destinationPort : packet.sourcePort,
  };
}

/** A flow's last packet is recorded once a second. */
const RECORDED = 1;

/** The flow of that name, if it has not been idle for too long. */
export function living(state: State, side: Side): Flow | undefined {
  const flow = state.flows.get(keyOf(side));
  if (flow === undefined || state.now - flow.lastPacket > idleLimit(flow.state) + RECORDED) return undefined;
  return flow;
}

/** The flow a packet belongs to. What opens against a flow's direction is no reply: it is judged as its sender's own. What
 *  opens a flow that is over begins another. */
export function flowOf(state: State, packet: Packet, side: Side): Flow | undefined {
  if (packet.refusal !== undefined || packet.role === 'error' || packet.role === 'neighbour') return undefined;
  const flow = living(state, side);
  if (flow === undefined || packet.role !== 'opens') return flow;
  return flow.direction !== side.direction || isOver(flow.state) ? undefined : flow;
}

/** The flow's state after the packet; undefined: a stray. A later fragment says nothing that the first did not say. */
export function stateAfter(flow: Flow | undefined, packet: Packet, direction: Direction): string | undefined {
  if (flow === undefined) return advance(undefined, packet, true);
  return isLater(packet) ? flow.state : advance(flow.state, packet, direction === flow.direction);
}

/** The verdict over the flow is in force still. */
export const inForce = (state: State, flow: Flow): boolean =>
  flow.revision === state.config.revision && state.now < flow.validUntil;

/** Takes the flow's verdict over, if it may be. */
export function takenOver(
  state: State,
  packet: Packet,
  side: Side,
  mark: number,
): { readonly flow: Flow; readonly state: State } | undefined {
  const flow = flowOf(state, packet, side);
  if (flow === undefined || flow.observed || !inForce(state, flow)) return undefined;
  if (side.direction === 'ingress' && flow.origin !== mark >>> 16) return undefined;
  const next = stateAfter(flow, packet, side.direction);
  if (next === undefined) return undefined;
  const after = remember(state, 'flows', keyOf(side), { ...flow, lastPacket: state.now, state: next });
  return { flow, state: withDatagram(after, packet, side) };
}

/** While no flow is to be believed, none is made. */
export function withFlow(state: State, side: Side, flow: Omit<Flow, 'revision'>): State {
  const { revision } = state.config;
  return revision === 'stateless' ? state : remember(state, 'flows', keyOf(side), { ...flow, revision });
}

// ---- fragments -----------------------------------------------------------------------------------------------------

const isFirst = (packet: Packet) => packet.fragment?.offset === 0;
const isLater = (packet: Packet) => (packet.fragment?.offset ?? 0) > 0;

/** Seconds that Linux waits for the rest of a datagram (net.ipv4.ipfrag_time). */
const DATAGRAM_LIFE = 30;

/** What a receiver puts a datagram together by: RFC 791, section 3.2; RFC 8200, section 4.5, which leaves the protocol out. */
function datagramKey(packet: Packet | Quote, id: number, ifindex: number, direction: Direction): string {
  const protocol = packet.version === 4 ? packet.protocol : 'any';
  return `${direction} ${ifindex} ${packet.source} ${packet.destination} ${protocol} ${id}`;
}

function datagramOf(state: State, key: string): Datagram | undefined {
  const known = state.datagrams.get(key);
  return known !== undefined && state.now - known.seen < DATAGRAM_LIFE ? known : undefined;
}

/** A quote from the middle of a datagram has the ports of its first fragment. */
export function nameOf(state: State, quote: Quote, ifindex: number, direction: Direction): Named | undefined {
  if (quote.ports !== undefined) return { ...quote, ...quote.ports };
  const datagram = datagramOf(state, datagramKey(quote, quote.fragment!.id, ifindex, direction));
  if (datagram === undefined) return undefined;
  const { protocol, sourcePort, destinationPort } = datagram.first;
  return { source: quote.source, destination: quote.destination, protocol, sourcePort, destinationPort };
}

export type Associated =
  | { readonly state: State; readonly packet: Packet }
  | { readonly state: State; readonly packet?: undefined; readonly unreadable: Reason };

/** Reads the packet; a later fragment takes the place of its datagram's first. */
export function associate(
  etherType: number,
  ip: Buffer,
  ifindex: number,
  direction: Direction,
  state: State,
): Associated {
  const packet = readIp(etherType, ip);
  if ('unreadable' in packet) return { state, unreadable: packet.unreadable };
  return associated(packet, ifindex, direction, state);
}

/** Likewise of a packet that was read. */
export function associated(
  packet: Packet,
  ifindex: number,
  direction: Direction,
  state: State,
): { readonly state: State; readonly packet: Packet } {
  const { fragment } = packet;
  if (fragment === undefined || packet.refusal !== undefined) return { state, packet };
  const refused = (refusal: Reason) => ({ state, packet: { ...packet, refusal } });
  const key = datagramKey(packet, fragment.id, ifindex, direction);
  const datagram = datagramOf(state, key);
  if (fragment.offset === 0) {
    const contradicts = datagram !== undefined && !datagram.complete && !sameHead(datagram.first, packet);
    return contradicts ? refused('FRAGMENT_OVERLAP') : { state, packet };
  }
  if (datagram === undefined) return refused('FRAGMENT_NO_FIRST');
  const { first } = datagram;
  if (fragment.offset < headOf(first)) return refused('FRAGMENT_OVERLAP');
  const after = fragment.more ? state : remember(state, 'datagrams', key, { ...datagram, complete: true });
  return { state: after, packet: { ...first, fragment } };
}

/** All headers that lie in the first fragment: extension headers behind the fragment header count. */
const headOf = (first: Packet): number => first.fragment!.data.length - first.payload.length + first.headerLength;

const sameHead = (a: Packet, b: Packet): boolean =>
  a.protocol === b.protocol &&
  a.sourcePort === b.sourcePort &&
  a.destinationPort === b.destinationPort &&
  headOf(a) === headOf(b);

/** A first fragment that was let through, or waits, stands for its datagram, if it could be read. */
export function withDatagram(state: State, packet: Packet, side: Side): State {
  if (!isFirst(packet) || packet.refusal !== undefined) return state;
  const key = datagramKey(packet, packet.fragment!.id, side.ifindex, side.direction);
  return remember(state, 'datagrams', key, { first: packet, seen: state.now, complete: false });
}
