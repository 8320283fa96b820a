/** ARP (RFC 826) and neighbour discovery (RFC 4861): a workload finds its gateway and is found, in its own name only. */
import { isHost, ownerOf } from './owner.ts';
import type { Packet } from './packet.ts';
import type { Address, Endpoint, Reason, State } from './state.ts';

const isOwn = (state: State, endpoint: Endpoint, address: Address): boolean => {
  const owner = ownerOf(state, address);
  return owner.kind === 'local' && owner.endpoint === endpoint.id;
};

export function arpRefusal(state: State, endpoint: Endpoint, message: Buffer): Reason | undefined {
  if (message.length < 28) return 'INVALID_PACKET';
  const isEthernetForIpv4 = message.toString('hex', 0, 6) === '000108000604';
  if (!isEthernetForIpv4) return 'UNKNOWN_L3';
  if (endpoint.mac !== undefined && message.toString('hex', 8, 14) !== endpoint.mac) return 'INVALID_SOURCE_MAC';
  const sender = message.toString('hex', 14, 18);
  const own = isOwn(state, endpoint, `${'00'.repeat(10)}ffff${sender}`);
  switch (message.readUInt16BE(6)) {
    case 1: // a request; from 0.0.0.0 it probes an address before it is used (RFC 5227, section 2.1.1)
      return own || sender === '00000000' ? undefined : 'INVALID_SOURCE_IP';
    case 2:
      return own ? undefined : 'INVALID_SOURCE_IP';
    default:
      return 'UNKNOWN_L3';
  }
}

const ROUTER_SOLICITATION = 133;
const ROUTER_ADVERTISEMENT = 134;
const SOLICITATION = 135;
const ADVERTISEMENT = 136;

/** Hop limit 255 shows that no router passed it on (section 6.1). */
function targetOf(packet: Packet): { good: boolean; target: Address | undefined } {
  const hasTarget = packet.icmpType === SOLICITATION || packet.icmpType === ADVERTISEMENT;
  const good = packet.hopLimit === 255 && packet.payload[1] === 0 && packet.payload.length >= (hasTarget ? 24 : 8);
  return { good, target: good && hasTarget ? packet.payload.toString('hex', 8, 24) : undefined };
}

const isLinkLocal = (address: Address) => /^fe[89ab]/.test(address);
const isLinkMulticast = (address: Address) => address.startsWith('ff02');

export function neighbourLeaves(state: State, endpoint: Endpoint, packet: Packet): Reason | undefined {
  const { good, target } = targetOf(packet);
  const staysHere =
    isLinkLocal(packet.destination) ||
    isLinkMulticast(packet.destination) ||
    isHost(ownerOf(state, packet.destination));
  // A workload is no router.
  if (!good || packet.icmpType === ROUTER_ADVERTISEMENT || !staysHere) return 'ICMP_TYPE';
  const advertises = packet.icmpType === ADVERTISEMENT;
  // Whether an address is in use is asked from the unspecified one (RFC 4862, section 5.4.2).
  const mayAsk = !advertises && /^0+$/.test(packet.source);
  if (!mayAsk && !isLinkLocal(packet.source) && !isOwn(state, endpoint, packet.source)) return 'INVALID_SOURCE_IP';
  if (advertises && !isLinkLocal(target!) && !isOwn(state, endpoint, target!)) return 'INVALID_SOURCE_IP';
  return undefined;
}

/** Only this host's own stack makes them: what was forwarded carries a mark. */
export function neighbourArrives(packet: Packet, markKind: number): Reason | undefined {
  if (markKind !== 0) return 'NOT_STAMPED';
  return targetOf(packet).good && packet.icmpType !== ROUTER_SOLICITATION ? undefined : 'ICMP_TYPE';
}
