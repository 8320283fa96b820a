/** The few rtnetlink messages (linux/rtnetlink.h, if_link.h, if_addr.h) a tunnel device needs: link, address, route. */

import {
  attribute,
  cString,
  decodeAttributes,
  decodeMessages,
  encodeMessage,
  NETLINK_ROUTE,
  type NetlinkRequest,
  NLM_F,
  nested,
  textOf,
  u8,
  u32,
} from '../base/netlink.ts';
import { addressWireBytes, isIpv4 } from '../model/address.ts';
import type { IpAddress } from '../model/ids.ts';

const RTM = { newLink: 16, delLink: 17, getLink: 18, newAddress: 20, newRoute: 24, delRoute: 25 } as const;
const AF_INET = 2;
const AF_INET6 = 10;
const IFLA = { ifname: 3, mtu: 4, linkInfo: 18, afSpec: 26 } as const;
const IFLA_INFO_KIND = 1;
const IFLA_INET6_ADDR_GEN_MODE = 8;
const IN6_ADDR_GEN_MODE_NONE = 1;
const IFF_UP = 1;
const IFA = { address: 1, local: 2, flags: 8 } as const;
const IFA_F_NODAD = 0x02;
const RTA = { dst: 1, oif: 4, priority: 6 } as const;
const RT_TABLE_MAIN = 254;
const RT_SCOPE_UNIVERSE = 0;
const RT_SCOPE_LINK = 253;
const RTN_UNICAST = 1;
/** Marks routes as ours (rtm_protocol; /etc/iproute2/rt_protos leaves this number free). */
export const ROUTE_PROTOCOL = 0xc5;
/** Behind a route to a workload of this very node, which has metric 0 or (IPv6) 1024. */
export const ROUTE_METRIC = 4096;

export interface Link {
  readonly ifindex: number;
  readonly name: string;
  readonly mtu: number;
  readonly up: boolean;
  /** "wireguard", "tun", … */
  readonly kind: string | undefined;
}

export function encodeCreateLink(name: string, kind: string): Buffer {
  const info = nested(IFLA.linkInfo, attribute(IFLA_INFO_KIND, Buffer.from(kind)));
  const flags = NLM_F.ack | NLM_F.create | NLM_F.excl;
  return encodeMessage(RTM.newLink, flags, ifinfo(0, 0, 0), attribute(IFLA.ifname, cString(name)), info);
}

export function encodeDeleteLink(ifindex: number): Buffer {
  return encodeMessage(RTM.delLink, NLM_F.ack, ifinfo(ifindex, 0, 0));
}

/** Sets the MTU, keeps the kernel from giving the device an IPv6 link-local address (it would solicit routers through the tunnel), and up. */
export function encodeSetUp(ifindex: number, mtu: number): Buffer {
  const inet6 = nested(AF_INET6, attribute(IFLA_INET6_ADDR_GEN_MODE, u8(IN6_ADDR_GEN_MODE_NONE)));
  return encodeMessage(
    RTM.newLink,
    NLM_F.ack,
    ifinfo(ifindex, IFF_UP, IFF_UP),
    attribute(IFLA.mtu, u32(mtu)),
    nested(IFLA.afSpec, inet6),
  );
}

export function encodeGetLink(name: string): Buffer {
  return encodeMessage(RTM.getLink, 0, ifinfo(0, 0, 0), attribute(IFLA.ifname, cString(name)));
}

/** Without duplicate address detection: nobody else can be asked. */
export function encodeAddAddress(ifindex: number, address: IpAddress, prefixLength: number): Buffer {
  const header = Buffer.alloc(8);
  header.writeUInt8(isIpv4(address) ? AF_INET : AF_INET6, 0);
  header.writeUInt8(prefixLength, 1);
  header.writeUInt32LE(ifindex, 4);
  const bytes = addressWireBytes(address);
  return encodeMessage(
    RTM.newAddress,
    NLM_F.ack | NLM_F.create | NLM_F.replace,
    header,
    attribute(IFA.local, bytes),
    attribute(IFA.address, bytes),
    attribute(IFA.flags, u32(IFA_F_NODAD)),
  );
}

/** A host route through the device. */
export function encodeAddRoute(ifindex: number, address: IpAddress): Buffer {
  return encodeRoute(RTM.newRoute, NLM_F.ack | NLM_F.create | NLM_F.replace, ifindex, address);
}

export function encodeDeleteRoute(ifindex: number, address: IpAddress): Buffer {
  return encodeRoute(RTM.delRoute, NLM_F.ack, ifindex, address);
}

function encodeRoute(type: number, flags: number, ifindex: number, address: IpAddress): Buffer {
  const v4 = isIpv4(address);
  const scope = v4 ? RT_SCOPE_LINK : RT_SCOPE_UNIVERSE;
  const header = Buffer.alloc(12);
  header.set([v4 ? AF_INET : AF_INET6, v4 ? 32 : 128, 0, 0, RT_TABLE_MAIN, ROUTE_PROTOCOL, scope, RTN_UNICAST]);
  return encodeMessage(
    type,
    flags,
    header,
    attribute(RTA.dst, addressWireBytes(address)),
    attribute(RTA.oif, u32(ifindex)),
    attribute(RTA.priority, u32(ROUTE_METRIC)),
  );
}

/** struct ifinfomsg */
function ifinfo(ifindex: number, flags: number, change: number): Buffer {
  const out = Buffer.alloc(16);
  out.writeInt32LE(ifindex, 4);
  out.writeUInt32LE(flags, 8);
  out.writeUInt32LE(change, 12);
  return out;
}

/** The first link of an answer. @throws RangeError if it is malformed */
export function decodeLink(answer: Buffer): Link | undefined {
  const message = decodeMessages(answer).find((m) => m.type === RTM.newLink);
  if (message === undefined) return undefined;
  if (message.body.length < 16) throw new RangeError('a link message is cut short');
  const attributes = decodeAttributes(message.body.subarray(16));
  const info = attributes.get(IFLA.linkInfo);
  return {
    ifindex: message.body.readInt32LE(4),
    name: textOf(attributes.get(IFLA.ifname)) ?? '',
    mtu: attributes.get(IFLA.mtu)?.readUInt32LE(0) ?? 0,
    up: (message.body.readUInt32LE(8) & IFF_UP) !== 0,
    kind: info === undefined ? undefined : textOf(decodeAttributes(info).get(IFLA_INFO_KIND)),
  };
}

/** Errors of a netlink request carry the errno's name. */
export function isErrno(thrown: unknown, ...codes: readonly string[]): boolean {
  return codes.includes((thrown as { code?: string }).code ?? '');
}

/** The effects. Each throws the addon's Error with `code`. */
export class Links {
  readonly #request: NetlinkRequest;

  constructor(request: NetlinkRequest) {
    this.#request = request;
  }

  get(name: string): Link | undefined {
    try {
      return decodeLink(this.#request(NETLINK_ROUTE, encodeGetLink(name)));
    } catch (error) {
      if (isErrno(error, 'ENODEV')) return undefined;
      throw error;
    }
  }

  create(name: string, kind: string): void {
    this.#request(NETLINK_ROUTE, encodeCreateLink(name, kind));
  }

  /** False if it was gone. */
  delete(ifindex: number): boolean {
    return this.#tolerating(encodeDeleteLink(ifindex), 'ENODEV');
  }

  setUp(ifindex: number, mtu: number): void {
    this.#request(NETLINK_ROUTE, encodeSetUp(ifindex, mtu));
  }

  addAddress(ifindex: number, address: IpAddress, prefixLength: number): void {
    this.#request(NETLINK_ROUTE, encodeAddAddress(ifindex, address, prefixLength));
  }

  addRoute(ifindex: number, address: IpAddress): void {
    this.#request(NETLINK_ROUTE, encodeAddRoute(ifindex, address));
  }

  /** False if it was gone, with its device or by another hand. */
  deleteRoute(ifindex: number, address: IpAddress): boolean {
    return this.#tolerating(encodeDeleteRoute(ifindex, address), 'ESRCH', 'ENODEV', 'ENOENT');
  }

  #tolerating(message: Buffer, ...codes: readonly string[]): boolean {
    try {
      this.#request(NETLINK_ROUTE, message);
      return true;
    } catch (error) {
      if (isErrno(error, ...codes)) return false;
      throw error;
    }
  }
}
