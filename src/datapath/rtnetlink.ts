/** The few settings the hold device needs, as rtnetlink messages (rtnetlink(7), netlink(7)). */
import { native } from '../../native/index.ts';

const NETLINK_ROUTE = 0;
const RTM_SETLINK = 19;
const RTM_NEWADDR = 20;
const NLM_F_REQUEST = 1;
const NLM_F_ACK = 4;
const NLM_F_CREATE = 0x400;
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
  const u32 = (value: number) => {
    const bytes = Buffer.alloc(4);
    bytes.writeUInt32LE(value);
    return bytes;
  };
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
  request(RTM_NEWADDR, NLM_F_CREATE, [ifaddr, attribute(IFA_LOCAL, address)]);
}

/** @param value its length a multiple of 4, so that no padding is due. */
function attribute(type: number, value: Buffer): Buffer {
  const header = Buffer.alloc(4);
  header.writeUInt16LE(header.length + value.length, 0);
  header.writeUInt16LE(type, 2);
  return Buffer.concat([header, value]);
}

function request(type: number, flags: number, body: readonly Buffer[]): void {
  const header = Buffer.alloc(16);
  header.writeUInt32LE(
    body.reduce((sum, part) => sum + part.length, header.length),
    0,
  );
  header.writeUInt16LE(type, 4);
  header.writeUInt16LE(NLM_F_REQUEST | NLM_F_ACK | flags, 6);
  header.writeUInt32LE(1, 8);
  native().netlinkRequest(NETLINK_ROUTE, Buffer.concat([header, ...body]));
}
