/** The clsact qdisc and its filters, read and removed by rtnetlink (linux/rtnetlink.h, linux/pkt_sched.h, linux/pkt_cls.h). */
import { native, type TcDirection } from '../../native/index.ts';
import {
  attribute,
  cString,
  decodeAttributes,
  decodeMessages,
  encodeMessage,
  NETLINK_ROUTE,
  type NetlinkMessage,
  NLM_F,
  textOf,
} from '../base/netlink.ts';

const RTM = { newQdisc: 36, delQdisc: 37, getQdisc: 38, newFilter: 44, getFilter: 46 } as const;
const TCA = { kind: 1, options: 2, chain: 11 } as const;
const TCA_BPF = { fd: 6, name: 7, tag: 10, id: 11 } as const;
const TC_H_CLSACT = 0xffff_fff1;
const CLSACT_HANDLE = 0xffff_0000;
const PARENT = { ingress: 0xffff_fff2, egress: 0xffff_fff3 } as const satisfies Record<TcDirection, number>;
const TCMSG = 20;

/** A filter of one hook; lower priorities are asked first. */
export interface Filter {
  readonly priority: number;
  readonly handle: number;
  /** "bpf", "flower", … */
  readonly kind: string;
  /** BPF only. */
  readonly programId: number | undefined;
  readonly name: string | undefined;
}

export function hasClsact(ifindex: number): boolean {
  return dump(RTM.getQdisc, ifindex, 0).some(
    ({ type, body }) =>
      type === RTM.newQdisc &&
      body.readInt32LE(4) === ifindex &&
      textOf(decodeAttributes(body.subarray(TCMSG)).get(TCA.kind)) === 'clsact',
  );
}

/** Filters of the hook in the order in which they are asked. */
export function listFilters(ifindex: number, direction: TcDirection): Filter[] {
  const filters = dump(RTM.getFilter, ifindex, PARENT[direction]).flatMap(({ type, body }) => {
    const attributes = decodeAttributes(body.subarray(TCMSG));
    const options = attributes.get(TCA.options);
    // The kernel also tells of each priority by itself, without a filter's handle.
    const handle = body.readUInt32LE(8);
    if (type !== RTM.newFilter || body.readInt32LE(4) !== ifindex || handle === 0) return [];
    if ((attributes.get(TCA.chain)?.readUInt32LE(0) ?? 0) !== 0) return []; // only chain 0 is asked by itself
    const bpf = options === undefined ? new Map<number, Buffer>() : decodeAttributes(options);
    const kind = textOf(attributes.get(TCA.kind)) ?? '';
    return [
      {
        priority: body.readUInt32LE(16) >>> 16,
        handle,
        kind,
        programId: kind === 'bpf' ? bpf.get(TCA_BPF.id)?.readUInt32LE(0) : undefined,
        name: kind === 'bpf' ? textOf(bpf.get(TCA_BPF.name)) : undefined,
      },
    ];
  });
  // Equal priorities stay as the kernel told them: that is their order.
  return filters.sort((a, b) => a.priority - b.priority);
}

/** Takes the qdisc away with whatever is on it. */
export function deleteClsact(ifindex: number): void {
  const body = tcmsg(ifindex, CLSACT_HANDLE, TC_H_CLSACT);
  try {
    native().netlinkRequest(NETLINK_ROUTE, encodeMessage(RTM.delQdisc, NLM_F.request | NLM_F.ack, body, kindClsact()));
  } catch (error) {
    // No interface any more, or nothing there.
    if (!['ENODEV', 'ENOENT', 'EINVAL'].includes((error as NodeJS.ErrnoException).code ?? '')) throw error;
  }
}

const kindClsact = () => attribute(TCA.kind, cString('clsact'));

function dump(type: number, ifindex: number, parent: number): NetlinkMessage[] {
  const request = encodeMessage(type, NLM_F.request | NLM_F.dump, tcmsg(ifindex, 0, parent));
  for (let tries = 0; ; tries++) {
    try {
      return decodeMessages(native().netlinkRequest(NETLINK_ROUTE, request)).filter((m) => m.body.length >= TCMSG);
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      // The table changed while it was read.
      if (code === 'EAGAIN' && tries < 5) continue;
      // A hook without a qdisc has no filters.
      if (code === 'EINVAL' || code === 'ENOENT' || code === 'ENODEV') return [];
      throw error;
    }
  }
}

/** struct tcmsg */
function tcmsg(ifindex: number, handle: number, parent: number): Buffer {
  const out = Buffer.alloc(TCMSG);
  out.writeInt32LE(ifindex, 4);
  out.writeUInt32LE(handle, 8);
  out.writeUInt32LE(parent, 12);
  return out;
}
