/** A small world to judge packets in: two endpoints here, one workload on another node, a host, the internet; both families. */
import { EGRESS, INGRESS, IP_RESERVED } from '../../../src/datapath/layout.ts';
import type { IpAddress } from '../../../src/model/ids.ts';
import { Kernel } from './kernel.ts';
import { ip } from './packets.ts';

export { EGRESS, INGRESS };

export interface Addresses {
  readonly name: 'IPv4' | 'IPv6';
  /** Endpoint A, whose programs run. */
  readonly a: IpAddress;
  /** Endpoint B, on the same node. */
  readonly b: IpAddress;
  /** Workload R on node 7. */
  readonly r: IpAddress;
  /** In the cluster's prefix, vouched for by nobody. */
  readonly nobody: IpAddress;
  readonly host: IpAddress;
  readonly remoteNode: IpAddress;
  readonly world: IpAddress;
  readonly prefix: readonly [IpAddress, number];
}

/** Bytes 12 and 13 of a bare packet are its EtherType when BPF_PROG_TEST_RUN makes a frame of it: these addresses say the
 *  truth there (8.0.x.x is 0x0800, fd00:0:86dd:: is 0x86dd), so that one world serves the L2 and the L3 programs. */
export const families: readonly Addresses[] = [
  {
    name: 'IPv4',
    a: ip('8.0.1.10'),
    b: ip('8.0.1.20'),
    r: ip('8.0.2.30'),
    nobody: ip('8.0.2.99'),
    host: ip('8.0.100.1'),
    remoteNode: ip('8.0.100.7'),
    world: ip('8.0.200.200'),
    prefix: [ip('8.0.0.0'), 18],
  },
  {
    name: 'IPv6',
    a: ip('fd00:0:86dd:1::a'),
    b: ip('fd00:0:86dd:1::b'),
    r: ip('fd00:0:86dd:2::c'),
    nobody: ip('fd00:0:86dd:2::99'),
    host: ip('fd00:0:86dd:8064::1'),
    remoteNode: ip('fd00:0:86dd:8064::7'),
    world: ip('fd00:0:86dd:ffff::1'),
    prefix: [ip('fd00:0:86dd::'), 49],
  },
];

export const A = { endpoint: 5, identity: 1000 } as const;
export const B = { endpoint: 6, identity: 2000, ifindex: 1006 } as const;
export const R = { identity: 3000, node: 7 } as const;
export const HOST = 1;
export const WORLD = 2;
export const REMOTE_NODE = 6;

/** Everybody is known and alive; no policy yet, so nothing may pass. */
export function makeWorld(maxEntries?: Readonly<Record<string, number>>): Kernel {
  const kernel = new Kernel(maxEntries);
  settle(kernel);
  return kernel;
}

/** Back to the beginning, but for the drop counters. */
export function settle(kernel: Kernel): void {
  for (const map of ['cs_endpoints', 'cs_ipcache', 'cs_prefixes', 'cs_classes', 'cs_policy', 'cs_auth', 'cs_flows']) {
    kernel.clear(map);
  }
  for (const map of ['cs_waiting', 'cs_signals', 'cs_hold_taken', 'cs_hold_returned', 'cs_pair_drops']) {
    kernel.clear(map);
  }
  kernel.config({
    revision: 1n,
    signal_interval_ns: 0n,
    epoch: 1,
    policy_slot: 0,
    hold_ifindex: 1,
    hold_limit_identity: 100,
    hold_limit_total: 1000,
    flags: 0,
    exempt: 0,
    verdict_sample: 0,
    peer_port: 4250,
  });
  kernel.knowIdentity(WORLD);
  kernel.endpoint(A);
  kernel.endpoint(B);
  for (const f of families) {
    kernel.prefix(f.prefix[0], f.prefix[1], { cluster: true });
    kernel.address(f.a, A);
    kernel.address(f.b, { identity: B.identity, endpoint: B.endpoint });
    kernel.address(f.r, { identity: R.identity, node: R.node, lease: kernel.now() + 30_000_000_000n });
    kernel.address(f.host, { identity: HOST, flags: IP_RESERVED });
    kernel.address(f.remoteNode, { identity: REMOTE_NODE, node: R.node, flags: IP_RESERVED });
  }
}

/** A may open anything to R, and the other way round. */
export function allowBoth(kernel: Kernel, auth = 0): void {
  kernel.policy({ local: A.identity, remote: R.identity, direction: EGRESS }, { auth });
  kernel.policy({ local: A.identity, remote: R.identity, direction: INGRESS }, { auth });
}
