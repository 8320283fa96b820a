/** The few link settings the hold device needs, as rtnetlink messages (rtnetlink(7), netlink(7)). */
import { native } from '../../native/index.ts';

const NETLINK_ROUTE = 0;
const RTM_SETLINK = 19;
const NLM_F_REQUEST = 1;
const NLM_F_ACK = 4;
const IFLA_MTU = 4;
const IFLA_TXQLEN = 13;
const IFF_UP = 0x1;
const IFF_MULTICAST = 0x1000;

/** Up, without multicast (or the stack would send its group memberships into it), with this queue length and MTU. */
export function setLinkUp(ifindex: number, settings: { readonly txQueueLength: number; readonly mtu: number }): void {
  const attribute = (type: number, value: number) => {
    const bytes = Buffer.alloc(8);
    bytes.writeUInt16LE(8, 0);
    bytes.writeUInt16LE(type, 2);
    bytes.writeUInt32LE(value, 4);
    return bytes;
  };
  const ifinfo = Buffer.alloc(16);
  ifinfo.writeInt32LE(ifindex, 4);
  ifinfo.writeUInt32LE(IFF_UP, 8);
  ifinfo.writeUInt32LE(IFF_UP | IFF_MULTICAST, 12);
  const body = [ifinfo, attribute(IFLA_MTU, settings.mtu), attribute(IFLA_TXQLEN, settings.txQueueLength)];
  const header = Buffer.alloc(16);
  header.writeUInt32LE(
    body.reduce((sum, part) => sum + part.length, header.length),
    0,
  );
  header.writeUInt16LE(RTM_SETLINK, 4);
  header.writeUInt16LE(NLM_F_REQUEST | NLM_F_ACK, 6);
  header.writeUInt32LE(1, 8);
  native().netlinkRequest(NETLINK_ROUTE, Buffer.concat([header, ...body]));
}
