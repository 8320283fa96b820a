/** WireGuard in the kernel: the device by rtnetlink, its peers by generic netlink. It stands whether or not the agent lives. */
import { CountersignError } from '../base/errors.ts';
import { NETLINK_GENERIC, type NetlinkRequest } from '../base/netlink.ts';
import type { DeviceChange, DeviceState, WireguardDevice } from './device.ts';
import { isErrno, type Links } from './rtnetlink.ts';
import {
  decodeDevice,
  decodeFamilyId,
  encodeGetDevice,
  encodeGetFamily,
  encodeSetDevice,
  WG_FAMILY,
} from './wireguard-netlink.ts';

/** Finds or makes the device; undefined if this kernel has no WireGuard. */
export function openKernelDevice(name: string, links: Links, request: NetlinkRequest): WireguardDevice | undefined {
  let link = links.get(name);
  if (link === undefined) {
    try {
      links.create(name, 'wireguard');
    } catch (error) {
      if (isErrno(error, 'EOPNOTSUPP', 'ENOTSUP')) return undefined;
      throw error;
    }
    link = links.get(name);
  }
  if (link?.kind !== 'wireguard') return undefined;
  return new KernelDevice(link.ifindex, links, request);
}

class KernelDevice implements WireguardDevice {
  readonly implementation = 'kernel';
  readonly ifindex: number;
  readonly #links: Links;
  readonly #request: NetlinkRequest;
  readonly #family: number;

  constructor(ifindex: number, links: Links, request: NetlinkRequest) {
    this.ifindex = ifindex;
    this.#links = links;
    this.#request = request;
    const family = decodeFamilyId(request(NETLINK_GENERIC, encodeGetFamily(WG_FAMILY)));
    if (family === undefined)
      throw new CountersignError('unsupported', 'the kernel lists no generic netlink "wireguard"');
    this.#family = family;
  }

  async apply(change: DeviceChange): Promise<void> {
    for (const message of encodeSetDevice(this.#family, this.ifindex, change)) this.#request(NETLINK_GENERIC, message);
  }

  async read(): Promise<DeviceState> {
    // A dump that a change interrupted is asked for again.
    for (let attempt = 0; ; attempt++) {
      try {
        return decodeDevice(this.#family, this.#request(NETLINK_GENERIC, encodeGetDevice(this.#family, this.ifindex)));
      } catch (error) {
        if (!isErrno(error, 'EAGAIN') || attempt >= 5) throw error;
      }
    }
  }

  async close(): Promise<void> {}

  async destroy(): Promise<void> {
    this.#links.delete(this.ifindex);
  }
}
