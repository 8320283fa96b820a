/** The underlay: nothing of a workload's in clear, nothing from outside under this node's names. */
import * as owners from './owner.ts';
import { ETHERTYPE, type Packet, readIp, type Unreadable } from './packet.ts';
import type { Reason, State } from './state.ts';

/** @returns undefined for what is not IP and carries none: it passes. */
export function readFrame(etherType: number, payload: Buffer): Packet | Unreadable | undefined {
  // IEEE 802.1Q and 802.1ad: at most two tags are read through.
  let type = etherType;
  let rest = payload;
  for (let tags = 0; tags < 2 && isTag(type); tags++) {
    if (rest.length < 4) return undefined;
    type = rest.readUInt16BE(2);
    rest = rest.subarray(4);
  }
  if (isTag(type)) return { unreadable: 'VLAN' };
  if (CARRIERS.includes(type)) return { unreadable: 'UNKNOWN_L3' };
  return type === ETHERTYPE.ipv4 || type === ETHERTYPE.ipv6 ? readIp(type, rest) : undefined;
}

const isTag = (type: number) => type === ETHERTYPE.vlan || type === ETHERTYPE.vlanService;

/** MPLS, PPPoE, Ethernet in Ethernet, TRILL, NSH, B.A.T.M.A.N., older tags: not IP, and may carry it. */
const CARRIERS = [0x8847, 0x8848, 0x8864, 0x6558, 0x88e7, 0x22f3, 0x894f, 0x4305, 0x9100, 0x9200, 0x9300];

/** IP in IP, GRE, MPLS, Ethernet in IP: another network's way between nodes, in clear. */
const WRAPPERS = [4, 41, 47, 97, 137, 143];

const needsTunnel = (state: State, owner: owners.Owner): boolean =>
  owner.encrypt || (owners.isWorkload(owner) && !state.config.allowUnbound);

/** What comes in: the mark it gets, and why it may not. */
export function arrives(state: State, packet: Packet): { readonly kind: number; readonly refusal?: Reason } {
  const source = owners.ownerOf(state, packet.source);
  // Addresses of this node and its workloads do not come from outside.
  if (source.kind === 'local' || owners.isHost(source)) return { kind: owners.MARK.none, refusal: 'NOT_STAMPED' };
  if (!owners.isWorkload(source) && !source.encrypt) return { kind: owners.MARK.none };
  const inClear = { kind: owners.MARK.underlay };
  return needsTunnel(state, source) ? { ...inClear, refusal: 'UNENCRYPTED' } : inClear;
}

export function departs(state: State, packet: Packet, mark: number): Reason | undefined {
  const source = owners.ownerOf(state, packet.source);
  const stamp = owners.isWorkload(source) ? owners.stampRefusal(state, mark, source) : undefined;
  if (stamp !== undefined) return stamp;
  if (source.encrypt || needsTunnel(state, owners.ownerOf(state, packet.destination))) return 'UNENCRYPTED';
  if (owners.kindOf(mark) !== owners.MARK.stamped) return undefined;
  const wrapped = WRAPPERS.includes(packet.protocol) && !state.config.allowUnbound;
  return wrapped || isForOwnLink(packet) ? 'UNENCRYPTED' : undefined;
}

const MAPPED = `${'00'.repeat(10)}ffff`;

/** What an endpoint sent to its own link is not meant for others. */
const isForOwnLink = ({ source, destination }: Packet): boolean =>
  source === `${MAPPED}00000000` ||
  destination === `${MAPPED}ffffffff` ||
  destination.startsWith(`${MAPPED}e00000`) ||
  destination.startsWith('ff02');
