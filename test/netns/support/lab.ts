/**
 * One node with a real datapath and workloads that are network namespaces with stacks of their own, policy from YAML. Beyond
 * the node lies a router, and a host of the outside world behind it. Addresses: workload n (from 1) has 10.81.n.2 (n below
 * 256) and fd81:n::2, the world 10.82.9.2 and fd82:9::2.
 */
import type { ChildProcess } from 'node:child_process';
import { join } from 'node:path';
import { native } from '../../../native/index.ts';
import type { AttachSetting } from '../../../src/datapath/attach.ts';
import { parseAddress, parsePrefix } from '../../../src/model/address.ts';
import type { EndpointAttachment } from '../../../src/model/datapath.ts';
import type { IdentityRow } from '../../../src/model/identity.ts';
import { type SecurityIdentity, securityIdentity } from '../../../src/model/ids.ts';
import { spiffeId } from '../../../src/model/spiffe-id.ts';
import { compilePolicy } from '../../../src/policy/compile.ts';
import { parsePolicies } from '../../../src/policy/grammar/parse.ts';
import { DatapathClient } from './datapath-client.ts';
import { Namespaces } from './namespaces.ts';

export interface LabWorkload {
  readonly name: string;
  readonly labels: Readonly<Record<string, string>>;
  /** false: a veth like the others that no program ever sees. */
  readonly enforced?: boolean;
}

export interface LabOptions {
  readonly workloads: readonly LabWorkload[];
  readonly attach?: AttachSetting;
  /** A router and a host of the world behind it. */
  readonly world?: boolean;
  readonly mtu?: number;
  /** Nobody asks who has an address: the kernel's neighbour table is one for all namespaces, and 1,024 entries long. */
  readonly fixedNeighbours?: boolean;
}

export const WORLD4 = '10.82.9.2';
export const WORLD6 = 'fd82:9::2';
const objectPath = join(import.meta.dirname, '../../../build/bpf/datapath.bpf.o');
const NODE = 'lab.test';
const DEFAULT_MTU = 1500;

export class Lab {
  readonly spaces: Namespaces;
  readonly #options: LabOptions;
  #datapath: DatapathClient | undefined;

  /** @param name short: the namespaces become cs-t-NAME-… */
  constructor(name: string, options: LabOptions) {
    this.spaces = new Namespaces(name);
    this.#options = options;
  }

  get datapath(): DatapathClient {
    if (this.#datapath === undefined) throw new Error('the lab is not open');
    return this.#datapath;
  }

  /** Builds it all, with every endpoint open and nothing allowed. */
  async open(): Promise<void> {
    const { spaces } = this;
    spaces.add('node');
    spaces.mountBpffs();
    spaces.exec(
      'node',
      'sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.conf.all.rp_filter=0 net.ipv6.conf.default.accept_dad=0',
    );
    this.#buildWorkloads();
    if (this.#options.world === true) this.#buildWorld();
    this.#datapath = await DatapathClient.start(spaces, 'node', {
      node: NODE,
      bpffs: spaces.bpffs,
      objectPath,
      holdDevice: 'cs-hold0',
      holdLimitPerIdentity: 64,
      holdLimitTotal: 400,
      holdDeadlineMs: 5000,
      signalIntervalMs: 100,
      peerPort: 4250,
      allowUnboundPath: false,
      observe: false,
      attach: this.#options.attach ?? 'auto',
    });
    await this.datapath.call('setPrefixes', [
      { prefix: parsePrefix('10.81.0.0/16')!, identity: securityIdentity(2), cluster: true },
      { prefix: parsePrefix('fd81::/16')!, identity: securityIdentity(2), cluster: true },
    ]);
    for (const endpoint of this.endpoints()) await this.datapath.call('putEndpoint', endpoint);
  }

  close(): void {
    this.spaces.clear();
  }

  number(workload: string): number {
    const index = this.#options.workloads.findIndex((w) => w.name === workload);
    if (index < 0) throw new Error(`no workload ${workload}`);
    return index + 1;
  }

  address4(workload: string): string {
    const n = this.number(workload);
    return `10.81.${n & 255}.${2 + (n >> 8)}`;
  }

  address6(workload: string): string {
    return `fd81:${this.number(workload).toString(16)}::2`;
  }

  identity(workload: string): SecurityIdentity {
    return securityIdentity(1000 + this.number(workload));
  }

  identities(): IdentityRow[] {
    return this.#options.workloads.map(({ name, labels }) => ({
      identity: this.identity(name),
      spiffeId: spiffeId(`spiffe://example.org/${name}`),
      labels,
      nodes: [],
    }));
  }

  endpoints(): EndpointAttachment[] {
    const index = (name: string) =>
      native().withNetns(`/run/netns/${this.spaces.full('node')}`, () => native().ifIndex(name));
    return this.#options.workloads
      .filter((w) => w.enforced !== false)
      .map(({ name }) => ({
        endpoint: this.number(name),
        identity: this.identity(name),
        generation: 1n,
        ifindex: index(`v-${name}`),
        mac: undefined,
        addresses: [parseAddress(this.address4(name))!, parseAddress(this.address6(name))!],
        open: true,
      }));
  }

  /** Puts these policies (YAML documents) in force. */
  async policy(yaml: string): Promise<void> {
    const rows = this.identities();
    const compiled = compilePolicy(
      parsePolicies('lab.yaml', yaml).policies,
      rows,
      rows.map((row) => row.identity),
    );
    await this.datapath.call('setPolicy', compiled.tables);
  }

  /** Packets dropped so far, by reason; without what each stack tells its link about multicast when it likes. */
  async drops(): Promise<Readonly<Record<string, number>>> {
    const found: Record<string, number> = {};
    for (const { reason, packets } of await this.datapath.call('drops')) {
      if (reason === 'MEMBERSHIP') continue;
      found[reason] = (found[reason] ?? 0) + Number(packets);
    }
    return found;
  }

  spawn(ns: string, ...command: string[]): ChildProcess {
    return this.spaces.spawn(ns, command);
  }

  #buildWorkloads(): void {
    const { mtu = DEFAULT_MTU, fixedNeighbours = false, workloads } = this.#options;
    this.spaces.addAll(workloads.map((w) => w.name));
    const node: string[] = [];
    for (const { name } of workloads) {
      const [n4, n6] = [this.address4(name), this.address6(name)];
      node.push(
        `link add v-${name} address ${this.#mac(name, 'host')} mtu ${mtu} type veth peer name eth0 address ${this.#mac(name, 'workload')} mtu ${mtu} netns ${this.spaces.full(name)}`,
        `addr add 169.254.81.1/32 dev v-${name}`,
        `link set dev v-${name} addrgenmode none up`,
        `addr add fe80::81/64 dev v-${name} nodad`,
        `route add ${n4}/32 dev v-${name}`,
        `route add ${n6}/128 dev v-${name}`,
        ...(fixedNeighbours ? [n4, n6] : []).map(
          (n) => `neigh add ${n} lladdr ${this.#mac(name, 'workload')} dev v-${name} nud permanent`,
        ),
      );
    }
    this.spaces.ip('node', node);
    for (const { name } of workloads) {
      this.spaces.ip(name, [
        'link set dev lo up',
        'link set dev eth0 addrgenmode none up',
        `addr add ${this.address4(name)}/32 dev eth0`,
        `addr add ${this.address6(name)}/128 dev eth0 nodad`,
        'addr add fe80::2/64 dev eth0 nodad',
        'route add 169.254.81.1 dev eth0 scope link',
        'route add default via 169.254.81.1 dev eth0',
        'route add default via fe80::81 dev eth0',
        ...(fixedNeighbours ? ['169.254.81.1', 'fe80::81'] : []).map(
          (n) => `neigh add ${n} lladdr ${this.#mac(name, 'host')} dev eth0 nud permanent`,
        ),
      ]);
    }
  }

  #mac(workload: string, side: 'host' | 'workload'): string {
    const n = this.number(workload).toString(16).padStart(4, '0');
    return `02:81:00:${side === 'host' ? '01' : '02'}:${n.slice(0, 2)}:${n.slice(2)}`;
  }

  #buildWorld(): void {
    const { spaces } = this;
    spaces.add('router');
    spaces.add('world');
    spaces.exec('router', 'sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1');
    this.spaces.ip('node', [
      `link add out0 type veth peer name in0 netns ${spaces.full('router')}`,
      'addr add 10.82.1.1/24 dev out0',
      'addr add fd82:1::1/64 dev out0 nodad',
      'link set dev out0 up',
      'route add 10.82.0.0/16 via 10.82.1.2',
      'route add fd82::/16 via fd82:1::2',
    ]);
    this.spaces.ip('router', [
      `link add out0 type veth peer name eth0 netns ${spaces.full('world')}`,
      'addr add 10.82.1.2/24 dev in0',
      'addr add fd82:1::2/64 dev in0 nodad',
      'link set dev in0 up',
      'addr add 10.82.9.1/24 dev out0',
      'addr add fd82:9::1/64 dev out0 nodad',
      'link set dev out0 up',
      'route add 10.81.0.0/16 via 10.82.1.1',
      'route add fd81::/16 via fd82:1::1',
    ]);
    this.spaces.ip('world', [
      `addr add ${WORLD4}/24 dev eth0`,
      `addr add ${WORLD6}/64 dev eth0 nodad`,
      'link set dev eth0 up',
      'route add default via 10.82.9.1',
      'route add default via fd82:9::1',
    ]);
  }
}
