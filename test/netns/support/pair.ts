/**
 * Two workloads on one node, and an underlay nobody uses: for tests that start, kill and replace the process that enforces,
 * while everybody sends to everybody.
 */
import type { ChildProcess } from 'node:child_process';
import { join } from 'node:path';
import { native } from '../../../native/index.ts';
import type { DatapathOptions } from '../../../src/datapath/datapath.ts';
import { parseAddress, parsePrefix } from '../../../src/model/address.ts';
import type { EndpointAttachment, PolicyTables } from '../../../src/model/datapath.ts';
import { IDENTITY_HOST, IDENTITY_REMOTE_NODE, IDENTITY_WORLD, securityIdentity } from '../../../src/model/ids.ts';
import { Namespaces } from './namespaces.ts';

export const OBJECT = join(import.meta.dirname, '../../../build/bpf/datapath.bpf.o');
export const NODE = 'pair.test';

/** UDP ports. Every policy of these tests allows `allowed` from a to b, and none ever allows `never`. */
export const PORTS = { allowed: 9001, sometimes: 9002, never: 9003 } as const;

export const workloads = {
  a: { endpoint: 1, identity: securityIdentity(300), address: parseAddress('10.83.1.2')! },
  b: { endpoint: 2, identity: securityIdentity(301), address: parseAddress('10.83.2.2')! },
} as const;
export const prefixes = [{ prefix: parsePrefix('10.83.0.0/16')!, identity: securityIdentity(2), cluster: true }];

/** These UDP ports are open from a to b, and nothing else. */
export function policyOf(...ports: readonly number[]): PolicyTables {
  const any = { protocol: 17, portBits: 16, verdict: 'allow', authType: 'none', rule: 1 } as const;
  const [a, b] = [workloads.a.identity, workloads.b.identity];
  const bits = 1 | (1 << 16);
  return {
    classes: [a, b, IDENTITY_HOST, IDENTITY_WORLD, IDENTITY_REMOTE_NODE].map((identity) => {
      const both = { egress: identity, ingress: identity };
      return { identity, local: both, remote: both, portBits: { egress: bits, ingress: bits } };
    }),
    entries: ports.flatMap((port) => [
      { ...any, port, local: a, remote: b, direction: 'egress' as const },
      { ...any, port, local: b, remote: a, direction: 'ingress' as const },
    ]),
    cidrs: [],
    host: { egress: false, ingress: false },
  };
}

export interface Counts {
  /** Datagrams that arrived, by "sender port". */
  readonly [what: string]: number;
}

export class Pair {
  readonly spaces: Namespaces;
  readonly #floods = new Map<string, ChildProcess>();

  /** @param name short: namespaces become cs-t-NAME-…; tests that may run beside each other need different ones. */
  constructor(name: string) {
    this.spaces = new Namespaces(name);
    const { spaces } = this;
    spaces.add('node');
    spaces.mountBpffs();
    spaces.exec(
      'node',
      'sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0; ip link add u0 type veth peer name u1',
    );
    spaces.exec('node', 'ip link set dev u0 up; ip link set dev u1 up');
    for (const name of ['a', 'b'] as const) {
      spaces.add(name);
      this.addVeth(name);
    }
  }

  addVeth(name: 'a' | 'b'): void {
    const { endpoint, address } = workloads[name];
    this.spaces.exec(
      'node',
      `ip link add v-${name} type veth peer name eth0 netns ${this.spaces.full(name)}
       ip addr add 10.83.${endpoint}.1/24 dev v-${name}; ip link set dev v-${name} up`,
    );
    this.spaces.exec(
      name,
      `ip link set dev eth0 up; ip addr add ${address}/24 dev eth0; ip route add default via 10.83.${endpoint}.1`,
    );
  }

  inNode<T>(use: () => T): T {
    return native().withNetns(`/run/netns/${this.spaces.full('node')}`, use);
  }

  ifindex(name: string): number {
    return this.inNode(() => native().ifIndex(name));
  }

  options(change: Partial<DatapathOptions> = {}): Omit<DatapathOptions, 'clock' | 'log' | 'onSignal' | 'onStep'> {
    return {
      node: NODE,
      bpffs: this.spaces.bpffs,
      objectPath: OBJECT,
      holdDevice: 'cs-hold0',
      holdLimitPerIdentity: 16,
      holdLimitTotal: 64,
      holdDeadlineMs: 500,
      signalIntervalMs: 1000,
      peerPort: 4250,
      allowUnboundPath: false,
      observe: false,
      attach: 'auto',
      mapSizes: { cs_flows: 4096 },
      ...change,
    };
  }

  endpoint(name: 'a' | 'b'): EndpointAttachment {
    const { endpoint, identity, address } = workloads[name];
    const ifindex = this.ifindex(`v-${name}`);
    return { endpoint, identity, generation: 1n, ifindex, mac: undefined, addresses: [address], open: true };
  }

  /** Everybody sends to everybody on every port, without a pause, until the end. */
  async flood(): Promise<void> {
    const targets = {
      a: [workloads.b.address],
      b: [workloads.a.address],
      node: [workloads.a.address, workloads.b.address],
    };
    const script = join(import.meta.dirname, 'flood.ts');
    for (const [ns, to] of Object.entries(targets)) {
      const argument = JSON.stringify({ to, ports: Object.values(PORTS) });
      const child = this.spaces.spawn(ns, [process.execPath, script, argument], true);
      this.#floods.set(ns, child);
      await new Promise<void>((resolve, reject) => {
        child.once('message', () => resolve());
        child.once('exit', () => reject(new Error(`the sender in ${ns} ended`)));
      });
    }
  }

  /** Datagrams that arrived at a workload since it was last asked, by "from>to port". */
  async arrived(): Promise<Counts> {
    return Object.fromEntries(Object.entries(await this.traffic()).map(([what, { count }]) => [what, count]));
  }

  /** The same, with those that are missing between the first and the last. */
  async traffic(): Promise<Readonly<Record<string, { readonly count: number; readonly missing: number }>>> {
    const traffic: Record<string, { count: number; missing: number }> = {};
    for (const name of ['a', 'b'] as const) {
      const child = this.#floods.get(name)!;
      const reply = new Promise<Record<string, { count: number; first: number; last: number }>>((resolve) =>
        child.once('message', (m) => resolve(m as never)),
      );
      child.send('count');
      for (const [what, { count, first, last }] of Object.entries(await reply)) {
        const [from, port] = what.split(' ');
        const sender = Object.entries(workloads).find(([, w]) => w.address === from)?.[0] ?? 'node';
        traffic[`${sender}>${name} ${port}`] = { count, missing: last - first + 1 - count };
      }
    }
    return traffic;
  }

  close(): void {
    this.spaces.clear();
  }
}
