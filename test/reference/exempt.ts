/** What passes although no policy was asked: a short list, off unless the configuration turns it on. */
import type { Side } from './flow.ts';
import { isHost, kindOf, MARK, type Owner, ownerOf } from './owner.ts';
import { type Packet, PROTOCOL } from './packet.ts';
import type { Direction, Endpoint, State } from './state.ts';

/** A flow that this host opened to one of its endpoints. */
export const isHostProbe = (state: State, begun: Direction, remote: Owner): boolean =>
  state.config.exemptHostProbes && begun === 'ingress' && isHost(remote);

const MAPPED = `${'00'.repeat(10)}ffff`;
const EVERYBODY = `${MAPPED}ffffffff`;
const NOT_YET = `${MAPPED}00000000`;
/** ff02::1:2, all DHCP servers and relays of the link. */
const DHCPV6_SERVERS = 'ff020000000000000000000000010002';
const isLinkLocal = (address: string) => /^fe[89ab]/.test(address);

/** RFC 2131, section 4.1; RFC 8415, section 7.2: a whole datagram of a client, to its link or to its own host, or back. */
export function isDhcp(state: State, endpoint: Endpoint, packet: Packet, side: Side, mark: number): boolean {
  if (!state.config.exemptDhcp || packet.refusal !== undefined || packet.fragment !== undefined) return false;
  if (packet.protocol !== PROTOCOL.udp) return false;
  const out = side.direction === 'egress';
  // Only what this host made itself has no mark.
  if (!out && kindOf(mark) !== MARK.none) return false;
  const isOwn = () => {
    const own = ownerOf(state, side.local);
    return own.kind === 'local' && own.endpoint === endpoint.id;
  };
  if (packet.version === 6) {
    if (side.localPort !== 546 || side.remotePort !== 547 || !isLinkLocal(side.local)) return false;
    return out ? side.remote === DHCPV6_SERVERS : isLinkLocal(side.remote);
  }
  if (side.localPort !== 68 || side.remotePort !== 67) return false;
  const fromHost = isHost(ownerOf(state, side.remote));
  return out
    ? (side.local === NOT_YET || isOwn()) && (side.remote === EVERYBODY || fromHost)
    : fromHost && (side.local === EVERYBODY || isOwn());
}
