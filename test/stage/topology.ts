/**
 * Two nodes, the identity server and workloads as network namespaces: an underlay bridge between the nodes, a veth and
 * an IPv4 and IPv6 address for each workload. All names begin with the stage's prefix, so that leftovers can be found.
 */
import { existsSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { sh } from './shell.ts';

export interface NodeSpec {
  readonly name: string;
  readonly underlay4: string;
  readonly underlay6: string;
  readonly prefix4: string;
  readonly prefix6: string;
}

export interface WorkloadSpec {
  readonly name: string;
  readonly node: string;
  readonly uid: number;
  readonly address4: string;
  readonly address6: string;
  /** Has a namespace, and no interface before plugWorkload. */
  readonly unplugged?: boolean;
}

export interface TopologySpec {
  readonly prefix: string;
  readonly server: string;
  readonly nodes: readonly NodeSpec[];
  readonly workloads: readonly WorkloadSpec[];
}

/** Room for the tunnel's header: what a CNI would set on a pod's interface. */
const WORKLOAD_MTU = 1420;
const GATEWAY4 = '169.254.77.1';
const GATEWAY6 = 'fe80::77';
export const UNDERLAY_BRIDGE = 'br0';
export const UNDERLAY_DEVICE = 'under0';

export const netnsOf = (spec: { prefix: string }, name: string): string => `${spec.prefix}-${name}`;
/** Host side of a workload's veth (15 characters at most). */
export const hostVeth = (workload: string): string => `v-${workload}`.slice(0, 15);

/** `ip -batch` runs a namespace's commands in one process. */
function batch(netns: string, commands: readonly string[]): void {
  const file = `/run/${netns}.batch`;
  writeFileSync(file, `${commands.join('\n')}\n`, { mode: 0o600 });
  try {
    sh('nsenter', [`--net=/run/netns/${netns}`, '--', 'ip', '-batch', file]);
  } finally {
    rmSync(file, { force: true });
  }
}

function sysctl(netns: string, settings: Readonly<Record<string, string>>): void {
  sh('nsenter', [
    `--net=/run/netns/${netns}`,
    '--',
    'sysctl',
    '-qw',
    ...Object.entries(settings).map(([k, v]) => `${k}=${v}`),
  ]);
}

function addNetns(name: string): void {
  sh('ip', ['netns', 'add', name]);
  sysctl(name, { 'net.ipv6.conf.all.accept_dad': '0', 'net.ipv6.conf.default.accept_dad': '0' });
  batch(name, ['link set dev lo up']);
}

function plugIntoUnderlay(spec: TopologySpec, name: string, address4: string, address6: string): void {
  const under = netnsOf(spec, 'under');
  const netns = netnsOf(spec, name);
  const port = `p-${name}`.slice(0, 15);
  batch(under, [
    `link add name ${port} type veth peer name ${UNDERLAY_DEVICE} netns ${netns}`,
    `link set dev ${port} master ${UNDERLAY_BRIDGE} up`,
  ]);
  batch(netns, [
    `addr add ${address4}/24 dev ${UNDERLAY_DEVICE}`,
    `addr add ${address6}/64 dev ${UNDERLAY_DEVICE} nodad`,
    `link set dev ${UNDERLAY_DEVICE} up`,
  ]);
}

/** A host on the underlay that is no node: an outsider. */
export function addUnderlayHost(spec: TopologySpec, name: string, address4: string, address6: string): void {
  addNetns(netnsOf(spec, name));
  plugIntoUnderlay(spec, name, address4, address6);
}

function addWorkload(spec: TopologySpec, workload: WorkloadSpec): void {
  addNetns(netnsOf(spec, workload.name));
  if (workload.unplugged !== true) plugWorkload(spec, workload);
}

/** Gives the workload its interface and addresses, as a CNI plugin would. */
export function plugWorkload(spec: TopologySpec, workload: WorkloadSpec): void {
  const netns = netnsOf(spec, workload.name);
  const host = hostVeth(workload.name);
  batch(netnsOf(spec, workload.node), [
    `link add name ${host} type veth peer name eth0 netns ${netns}`,
    `addr add ${GATEWAY4}/32 dev ${host}`,
    `link set dev ${host} mtu ${WORKLOAD_MTU} addrgenmode none up`,
    `addr add ${GATEWAY6}/64 dev ${host} nodad`,
    `route add ${workload.address4}/32 dev ${host}`,
    `route add ${workload.address6}/128 dev ${host}`,
  ]);
  batch(netns, [
    `link set dev eth0 mtu ${WORKLOAD_MTU} addrgenmode none up`,
    `addr add ${workload.address4}/32 dev eth0`,
    `addr add ${workload.address6}/128 dev eth0 nodad`,
    `addr add fe80::2/64 dev eth0 nodad`,
    `route add ${GATEWAY4} dev eth0 scope link`,
    `route add default via ${GATEWAY4} dev eth0`,
    `route add default via ${GATEWAY6} dev eth0`,
  ]);
}

/** Takes the workload's interface away; its processes live on. */
export function unplugWorkload(spec: TopologySpec, workload: WorkloadSpec): void {
  batch(netnsOf(spec, workload.node), [`link del dev ${hostVeth(workload.name)}`]);
}

export function buildTopology(spec: TopologySpec): void {
  const under = netnsOf(spec, 'under');
  addNetns(under);
  // A bridge that learns nothing about multicast keeps captures free of its own chatter.
  batch(under, [`link add name ${UNDERLAY_BRIDGE} type bridge mcast_snooping 0`, `link set dev ${UNDERLAY_BRIDGE} up`]);
  addNetns(netnsOf(spec, 'server'));
  plugIntoUnderlay(spec, 'server', spec.server, 'fd77::10');
  for (const node of spec.nodes) {
    const netns = netnsOf(spec, node.name);
    addNetns(netns);
    plugIntoUnderlay(spec, node.name, node.underlay4, node.underlay6);
    sysctl(netns, {
      'net.ipv4.ip_forward': '1',
      'net.ipv6.conf.all.forwarding': '1',
      'net.ipv4.conf.all.rp_filter': '0',
      'net.ipv4.conf.default.rp_filter': '0',
    });
  }
  for (const node of spec.nodes) {
    // Routes a CNI would make: workloads of the other nodes by the underlay. The datapath decides whether they may be used.
    batch(
      netnsOf(spec, node.name),
      spec.nodes
        .filter((other) => other.name !== node.name)
        .flatMap((other) => [
          `route add ${other.prefix4} via ${other.underlay4} dev ${UNDERLAY_DEVICE}`,
          `route add ${other.prefix6} via ${other.underlay6} dev ${UNDERLAY_DEVICE}`,
        ]),
    );
  }
  for (const workload of spec.workloads) addWorkload(spec, workload);
}

const namespacesOf = (prefix: string): string[] =>
  existsSync('/run/netns') ? readdirSync('/run/netns').filter((n) => n.startsWith(`${prefix}-`)) : [];

/** Every process with the stage's marker in its environment or inside one of its namespaces; never this one. */
function processesOf(prefix: string, netnsInodes: ReadonlySet<number>): number[] {
  const marker = `COUNTERSIGN_STAGE=${prefix}\0`;
  const found: number[] = [];
  for (const entry of readdirSync('/proc')) {
    const pid = Number(entry);
    if (!Number.isInteger(pid) || pid === process.pid) continue;
    try {
      const inside = netnsInodes.has(statSync(`/proc/${pid}/ns/net`).ino);
      if (inside || `${readFileSync(`/proc/${pid}/environ`, 'latin1')}\0`.includes(marker)) found.push(pid);
    } catch {
      // ended meanwhile, or a kernel thread
    }
  }
  return found;
}

/** As the agents' configuration names them. */
function tunnelDevices(dir: string): string[] {
  if (!existsSync(dir)) return [];
  return readdirSync(dir, { recursive: true, encoding: 'utf8' })
    .filter((f) => /(^|\/)agent-[^/]*\.yaml$/.test(f))
    .flatMap((f) => [...readFileSync(join(dir, f), 'utf8').matchAll(/^ +device: (cs-[\w.-]+)/gm)].map((m) => m[1]!));
}

/** Takes away all that a stage of this prefix left, whether it ended well or was killed. Returns what it found. */
export async function clearStage(prefix: string, dir: string): Promise<{ processes: number; namespaces: number }> {
  const namespaces = namespacesOf(prefix);
  const inodes = new Set(namespaces.map((name) => statSync(`/run/netns/${name}`).ino));
  let processes = 0;
  for (let round = 0; round < 500; round++) {
    const pids = processesOf(prefix, inodes);
    if (pids.length === 0) break;
    if (round === 0) processes = pids.length;
    for (const pid of pids) {
      try {
        process.kill(pid, 'SIGKILL');
      } catch {
        // ended meanwhile
      }
    }
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  for (const name of namespaces) sh('ip', ['netns', 'del', name]);
  const mounts = readFileSync('/proc/mounts', 'utf8')
    .split('\n')
    .map((line) => line.split(' ')[1] ?? '')
    .filter((path) => path.startsWith(`${dir}/`));
  for (const path of mounts) sh('umount', ['-l', path]);
  for (const file of readdirSync('/run').filter((f) => f.startsWith(`${prefix}-`) && f.endsWith('.batch'))) {
    rmSync(join('/run', file), { force: true });
  }
  // A killed wireguard-go leaves its control socket, which is named after the device, outside the stage's directory.
  for (const device of tunnelDevices(dir)) rmSync(`/var/run/wireguard/${device}.sock`, { force: true });
  rmSync(dir, { recursive: true, force: true });
  return { processes, namespaces: namespaces.length };
}
