/** The few settings the hold device needs, as rtnetlink messages (rtnetlink(7), netlink(7)). */
import { native } from '../../native/index.ts';
import { attribute, encodeMessage, NETLINK_ROUTE, NLM_F, u32 } from '../base/netlink.ts';

const RTM_SETLINK = 19;
const RTM_NEWADDR = 20;
const IFLA_MTU = 4;
const IFLA_TXQLEN = 13;
const IFA_LOCAL = 2;
const IFF_UP = 0x1;
const IFF_MULTICAST = 0x1000;
const AF_INET = 2;
const RT_SCOPE_HOST = 254;

/** Up, without multicast (or the stack would send its group memberships into it), with this queue length and MTU. */
export function setLinkUp(ifindex: number, settings: { readonly txQueueLength: number; readonly mtu: number }): void {
  const ifinfo = Buffer.alloc(16);
  ifinfo.writeInt32LE(ifindex, 4);
  ifinfo.writeUInt32LE(IFF_UP, 8);
  ifinfo.writeUInt32LE(IFF_UP | IFF_MULTICAST, 12);
  request(RTM_SETLINK, 0, [
    ifinfo,
    attribute(IFLA_MTU, u32(settings.mtu)),
    attribute(IFLA_TXQLEN, u32(settings.txQueueLength)),
  ]);
}

/** One IPv4 address that no route leads to and no socket takes as its source (host scope). @param address 4 bytes. */
export function addHostAddress(ifindex: number, address: Buffer): void {
  const ifaddr = Buffer.alloc(8);
  ifaddr.writeUInt8(AF_INET, 0);
  ifaddr.writeUInt8(32, 1);
  ifaddr.writeUInt8(RT_SCOPE_HOST, 3);
  ifaddr.writeUInt32LE(ifindex, 4);
  request(RTM_NEWADDR, NLM_F.create, [ifaddr, attribute(IFA_LOCAL, address)]);
}

function request(type: number, flags: number, body: readonly Buffer[]): void {
  native().netlinkRequest(NETLINK_ROUTE, encodeMessage(type, NLM_F.request | NLM_F.ack | flags, ...body));
}
