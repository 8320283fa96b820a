/** The seven programs: what each does with a packet, by the state it is given. Nothing here is fast, and nothing is shared with
 *  what fills the kernel's maps. */
import { isDhcp } from './exempt.ts';
import { associate, sideOf, takenOver, withDatagram } from './flow.ts';
import { dequeue, enqueue } from './hold.ts';
import { type HostFound, isForHost, isFromHost, judgeHost, judgesHost } from './host.ts';
import { arpRefusal, neighbourArrives, neighbourLeaves } from './neighbour.ts';
import * as owners from './owner.ts';
import { ETHERTYPE, type Packet, readIp } from './packet.ts';
import { type Direction, type Endpoint, type Program, type Reason, remember, type State } from './state.ts';
import { arrives, departs, readFrame } from './underlay.ts';
import { judgeInFull, passesAnyway } from './verdict.ts';

export interface Meta {
  readonly ifindex: number;
  readonly mark: number;
  /** The kernel's idea of the protocol (skb->protocol), which is the one the stack acts on. */
  readonly etherType: number;
}

export interface Verdict {
  readonly action: 'pass' | 'drop' | 'hold';
  /** As the packet leaves; of a dropped packet it means nothing. */
  readonly mark: number;
  /** Why it was dropped. */
  readonly reason?: Reason;
  /** Passed: why it would have been dropped. */
  readonly observed?: Reason;
  readonly state: State;
}

/** @param bytes from the Ethernet header on; bare IP for the hold and tunnel programs. */
export function judge(program: Program, bytes: Buffer, meta: Meta, state: State): Verdict {
  switch (program) {
    case 'from_workload':
      return leavesWorkload(bytes, meta, state);
    case 'to_workload':
      return entersWorkload(bytes, meta, state);
    case 'from_hold':
      return comesBack(bytes, meta, state);
    case 'to_tunnel':
      return entersTunnel(bytes, meta, state);
    case 'from_tunnel':
      return leavesTunnel(bytes, meta, state);
    case 'to_netdev':
      return entersUnderlay(bytes, meta, state);
    case 'from_netdev':
      return leavesUnderlay(bytes, meta, state);
  }
}

const ETHERNET = 14;

/** The lower 16 bits are not ours. */
const marked = (mark: number, kind: number, endpoint = 0): number =>
  owners.markOf(kind, endpoint) * 0x10000 + (mark & 0xffff);

// ---- a workload's veth ---------------------------------------------------------------------------------------------

function leavesWorkload(frame: Buffer, meta: Meta, before: State): Verdict {
  const { ifindex, mark } = meta;
  const reading = associate(meta.etherType, frame.subarray(ETHERNET), ifindex, 'egress', before);
  const { packet } = reading;
  if (packet !== undefined) {
    const over = takenOver(reading.state, packet, sideOf(packet, 'egress', ifindex), 0);
    if (over !== undefined) return passed(over.state, marked(mark, owners.MARK.stamped, over.flow.endpoint));
  }
  // Nobody gets a mark of ours from outside.
  const unmarked = marked(mark, owners.MARK.none);
  const endpoint = reading.state.endpoints.get(ifindex);
  if (endpoint === undefined) return shot(reading.state, unmarked, 'NO_ENDPOINT');
  const state = remember(reading.state, 'lastSeen', endpoint.id, ifindex);
  const stamped = marked(mark, owners.MARK.stamped, endpoint.id);
  const refused = (refusal: Reason) => shot(state, stamped, refusal);
  if (!endpoint.open) return refused('FENCED');
  if (endpoint.mac !== undefined && endpoint.mac !== frame.toString('hex', 6, 12)) return refused('INVALID_SOURCE_MAC');
  if (meta.etherType === ETHERTYPE.arp) {
    const refusal = arpRefusal(state, endpoint, frame.subarray(ETHERNET));
    return refusal === undefined ? passed(state, unmarked) : refused(refusal);
  }
  if (packet === undefined) return refused(reading.unreadable);
  if (packet.role === 'neighbour') {
    const refusal = neighbourLeaves(state, endpoint, packet);
    return refusal === undefined ? passed(state, unmarked) : refused(refusal);
  }
  if (packet.role === 'membership') return refused('MEMBERSHIP');
  if (isDhcp(state, endpoint, packet, sideOf(packet, 'egress', ifindex), 0)) return passed(state, stamped);
  return leaves(state, mark, endpoint, packet, true);
}

/** A held packet comes back: judged as if it were new, by the state of now; it never waits twice. */
function comesBack(ip: Buffer, meta: Meta, before: State): Verdict {
  const reading = readIp(meta.etherType, ip);
  if ('unreadable' in reading) return shot(before, meta.mark, reading.unreadable);
  const source = owners.ownerOf(before, reading.source);
  const endpoint = source.kind === 'local' ? owners.endpointById(before, source.endpoint) : undefined;
  if (endpoint === undefined) return shot(before, meta.mark, 'INVALID_SOURCE_IP');
  const { state, packet } = associate(meta.etherType, ip, endpoint.ifindex, 'egress', before);
  if (!endpoint.open) return shot(state, marked(meta.mark, owners.MARK.stamped, endpoint.id), 'FENCED');
  const side = sideOf(packet!, 'egress', endpoint.ifindex);
  return leaves(dequeue(state, side, endpoint), meta.mark, endpoint, packet!, false);
}

/** Judged, then stamped, held or dropped. */
function leaves(state: State, mark: number, endpoint: Endpoint, packet: Packet, mayHold: boolean): Verdict {
  const side = sideOf(packet, 'egress', endpoint.ifindex);
  const found = judgeInFull(state, side, 0, endpoint, packet);
  const { holds, observe, stopped } = state.config;
  if ((found.mendable || found.behind) && mayHold && holds && !observe && !stopped) {
    const queued = enqueue(found.state, side, endpoint, found.mendable);
    if (queued === undefined) return { action: 'drop', mark, reason: 'HOLD_FULL', state: found.state };
    return { action: 'hold', mark, state: withDatagram(queued, packet, side) };
  }
  const verdict = ended(found, marked(mark, owners.MARK.stamped, endpoint.id));
  return verdict.action === 'pass' ? { ...verdict, state: withDatagram(verdict.state, packet, side) } : verdict;
}

function entersWorkload(frame: Buffer, meta: Meta, before: State): Verdict {
  const { ifindex, mark } = meta;
  const reading = associate(meta.etherType, frame.subarray(ETHERNET), ifindex, 'ingress', before);
  const { packet, state } = reading;
  if (packet !== undefined) {
    const over = takenOver(state, packet, sideOf(packet, 'ingress', ifindex), mark);
    if (over !== undefined) return passed(over.state, mark);
  }
  const refused = (refusal: Reason) => shot(state, mark, refusal);
  const endpoint = state.endpoints.get(ifindex);
  if (endpoint === undefined) return refused('NO_ENDPOINT');
  if (!endpoint.open) return refused('FENCED');
  // Only this host's own stack sends ARP here: what is forwarded is IP, and carries a mark.
  const kind = owners.kindOf(mark);
  if (meta.etherType === ETHERTYPE.arp) return kind === owners.MARK.none ? passed(state, mark) : refused('NOT_STAMPED');
  if (packet === undefined) return refused(reading.unreadable);
  if (packet.role === 'neighbour') {
    const refusal = neighbourArrives(packet, kind);
    return refusal === undefined ? passed(state, mark) : refused(refusal);
  }
  if (packet.role === 'membership') return refused('MEMBERSHIP');
  const side = sideOf(packet, 'ingress', ifindex);
  if (isDhcp(state, endpoint, packet, side, mark)) return passed(state, mark);
  const verdict = ended(judgeInFull(state, side, mark, endpoint, packet), mark);
  return verdict.action === 'pass' ? { ...verdict, state: withDatagram(verdict.state, packet, side) } : verdict;
}

// ---- the paths between nodes ---------------------------------------------------------------------------------------

/** Only what a live endpoint's program stamped, under that endpoint's address. */
function entersTunnel(ip: Buffer, meta: Meta, state: State): Verdict {
  const packet = readIp(meta.etherType, ip);
  if ('unreadable' in packet) return refusedOnPath(state, meta.mark, packet.unreadable);
  return decided(state, meta.mark, owners.stampRefusal(state, meta.mark, owners.ownerOf(state, packet.source)));
}

function leavesTunnel(ip: Buffer, meta: Meta, state: State): Verdict {
  const mark = marked(meta.mark, owners.MARK.tunnel);
  if (!judgesHost(state)) return passed(state, mark);
  const isIp = meta.etherType === ETHERTYPE.ipv4 || meta.etherType === ETHERTYPE.ipv6;
  const packet = isIp ? readIp(meta.etherType, ip) : { unreadable: 'UNKNOWN_L3' as const };
  if ('unreadable' in packet) return refusedOnPath(state, mark, packet.unreadable);
  return isForHost(state, packet) ? ofHost(state, packet, 'ingress', mark) : passed(state, mark);
}

/** Nobody outside can set a mark. */
function leavesUnderlay(frame: Buffer, meta: Meta, state: State): Verdict {
  const unmarked = marked(meta.mark, owners.MARK.none);
  const packet = readFrame(meta.etherType, frame.subarray(ETHERNET));
  if (packet === undefined) return passed(state, unmarked);
  if ('unreadable' in packet) return refusedOnPath(state, unmarked, packet.unreadable);
  const { kind, refusal } = arrives(state, packet);
  const mark = marked(meta.mark, kind);
  if (refusal === undefined && judgesHost(state) && isForHost(state, packet)) {
    return ofHost(state, packet, 'ingress', mark);
  }
  return decided(state, mark, refusal);
}

function entersUnderlay(frame: Buffer, meta: Meta, state: State): Verdict {
  const packet = readFrame(meta.etherType, frame.subarray(ETHERNET));
  if (packet === undefined) return passed(state, meta.mark);
  if ('unreadable' in packet) return refusedOnPath(state, meta.mark, packet.unreadable);
  const refusal = departs(state, packet, meta.mark);
  if (refusal === undefined && judgesHost(state) && isFromHost(state, packet)) {
    return ofHost(state, packet, 'egress', meta.mark);
  }
  return decided(state, meta.mark, refusal);
}

// ---- how it ends ---------------------------------------------------------------------------------------------------

const passed = (state: State, mark: number): Verdict => ({ action: 'pass', mark, state });

/** What has not become a case of an endpoint's: no policy is tried on it, only stopping lets it pass. */
function shot(state: State, mark: number, reason: Reason): Verdict {
  return state.config.stopped ? { ...passed(state, mark), observed: reason } : { action: 'drop', mark, reason, state };
}

function refusedOnPath(state: State, mark: number, reason: Reason): Verdict {
  if (passesAnyway(state, reason)) return { ...passed(state, mark), observed: reason };
  return { action: 'drop', mark, reason, state };
}

const decided = (state: State, mark: number, refusal: Reason | undefined): Verdict =>
  refusal === undefined ? passed(state, mark) : refusedOnPath(state, mark, refusal);

function ofHost(state: State, packet: Packet, direction: Direction, mark: number): Verdict {
  return ended(judgeHost(state, packet, direction, mark), mark);
}

function ended(found: HostFound, mark: number): Verdict {
  const verdict = decided(found.state, mark, found.refusal);
  return found.observed === undefined ? verdict : { ...verdict, observed: found.observed };
}
