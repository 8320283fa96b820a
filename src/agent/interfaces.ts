/**
 * Which interfaces there are in this network namespace, told by the kernel as they come and go (rtnetlink(7), RTNLGRP_LINK), so
 * that a workload's veth has its programs within milliseconds of its creation. A slow poll is there in case a message is lost.
 */
import { native } from '../../native/index.ts';
import { asError } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import {
  attribute,
  decodeAttributeList,
  decodeAttributes,
  decodeMessages,
  encodeMessage,
  NETLINK_ROUTE,
  type NetlinkMessage,
  NLM_F,
  textOf,
  u32,
} from '../base/netlink.ts';

const NLMSG_OVERRUN = 4;
const RTM = { newLink: 16, delLink: 17, getLink: 18 } as const;
const RTMGRP_LINK = 1;
const IFLA = { ifname: 3, extMask: 29, propList: 52, altIfname: 53 } as const;
const RTEXT_FILTER_SKIP_STATS = 1 << 3;
const IFINFO = 16;
const POLL_MS = 10_000;

/** Names to indexes, as the messages say. Pure. */
export class InterfaceTable {
  readonly #byIndex = new Map<number, readonly string[]>();
  readonly #byName = new Map<string, number>();

  indexOf(name: string): number | undefined {
    return this.#byName.get(name);
  }

  /** One message of the kernel. Adds the names it touches. False: messages were lost, dump the table again. */
  apply(message: NetlinkMessage, touched: Set<string>): boolean {
    if (message.type === NLMSG_OVERRUN) return false;
    const link = decodeLink(message);
    if (link === undefined) return true;
    this.#set(link.ifindex, message.type === RTM.newLink ? link.names : [], touched);
    return true;
  }

  /** The whole table as the kernel dumped it. */
  replace(dump: readonly NetlinkMessage[], touched: Set<string>): void {
    const gone = new Set(this.#byIndex.keys());
    for (const message of dump) {
      const link = decodeLink(message);
      if (link === undefined || message.type !== RTM.newLink) continue;
      gone.delete(link.ifindex);
      this.#set(link.ifindex, link.names, touched);
    }
    for (const ifindex of gone) this.#set(ifindex, [], touched);
  }

  #set(ifindex: number, names: readonly string[], touched: Set<string>): void {
    const before = this.#byIndex.get(ifindex) ?? [];
    for (const name of before) {
      if (names.includes(name)) continue;
      touched.add(name);
      // Only its own: a new interface may have taken the name already.
      if (this.#byName.get(name) === ifindex) this.#byName.delete(name);
    }
    for (const name of names) {
      if (this.#byName.get(name) !== ifindex) touched.add(name);
      this.#byName.set(name, ifindex);
    }
    if (names.length === 0) this.#byIndex.delete(ifindex);
    else this.#byIndex.set(ifindex, names);
  }
}

function decodeLink({ type, body }: NetlinkMessage): { ifindex: number; names: string[] } | undefined {
  if ((type !== RTM.newLink && type !== RTM.delLink) || body.length < IFINFO) return undefined;
  // Other families (bridges) tell of a port's coming and going, not of the interface's.
  if (body.readUInt8(0) !== 0) return undefined;
  const attributes = decodeAttributes(body.subarray(IFINFO));
  const other = decodeAttributeList(attributes.get(IFLA.propList) ?? Buffer.alloc(0));
  const names = [attributes.get(IFLA.ifname), ...other.filter((a) => a.type === IFLA.altIfname).map((a) => a.payload)];
  return { ifindex: body.readInt32LE(4), names: names.flatMap((name) => textOf(name) ?? []) };
}

export interface Interfaces {
  indexOf(name: string): number | undefined;
  close(): void;
}

export interface InterfacesOptions {
  /** These interfaces came, went or have another number. Not called before watchInterfaces has returned. */
  changed(names: ReadonlySet<string>): void;
  readonly log: Logger;
  readonly pollMs?: number;
}

export function watchInterfaces({ changed, log, pollMs = POLL_MS }: InterfacesOptions): Interfaces {
  const addon = native();
  const table = new InterfaceTable();
  const tell = (touched: Set<string>) => {
    if (touched.size === 0) return;
    try {
      changed(touched);
    } catch (thrown) {
      log.error({ error: asError(thrown).message }, 'an interface came or went and could not be dealt with');
    }
  };
  const resync = () => {
    const touched = new Set<string>();
    table.replace(dumpLinks(), touched);
    tell(touched);
  };
  // Heard from before it is asked for the whole: nothing falls between.
  const subscription = addon.netlinkSubscribe(NETLINK_ROUTE, RTMGRP_LINK, (datagram) => {
    const touched = new Set<string>();
    const whole = decodeMessages(datagram).every((message) => table.apply(message, touched));
    tell(touched);
    if (!whole) {
      log.warn('interfaces came and went faster than they could be followed: reading all of them');
      resync();
    }
  });
  const poll = setInterval(resync, pollMs);
  poll.unref();
  table.replace(dumpLinks(), new Set());
  return {
    indexOf: (name) => table.indexOf(name),
    close() {
      clearInterval(poll);
      subscription.close();
    },
  };
}

function dumpLinks(): NetlinkMessage[] {
  const request = encodeMessage(
    RTM.getLink,
    NLM_F.request | NLM_F.dump,
    Buffer.alloc(IFINFO),
    attribute(IFLA.extMask, u32(RTEXT_FILTER_SKIP_STATS)),
  );
  for (let tries = 0; ; tries++) {
    try {
      return decodeMessages(native().netlinkRequest(NETLINK_ROUTE, request));
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EAGAIN' || tries >= 10) throw error;
    }
  }
}
