/** Two nodes in namespaces, some frontends on one, some backends on the other, for benchmarks of what a first packet costs. */
import { mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { stringify } from 'yaml';
import { inNetns, run, until } from '../stage/shell.ts';
import type { Stage, StageSpec } from '../stage/stage.ts';
import { hostVeth, type WorkloadSpec } from '../stage/topology.ts';

const FRONTENDS = 16;
export const BACKENDS = 14;
const PORT = 8080;
const API = 'countersign.dev/v1alpha1';

function workloads(kind: 'f' | 'b', node: string, net: number, count: number): WorkloadSpec[] {
  return Array.from({ length: count }, (_, i) => ({
    name: `${kind}${i}`,
    node,
    uid: 21_000 + net * 100 + i,
    address4: `10.78.${net}.${10 + i}`,
    address6: `fd78:${net}::${10 + i}`,
  }));
}

export const frontends = workloads('f', 'node-a', 1, FRONTENDS);
export const backends = workloads('b', 'node-b', 2, BACKENDS);

export function writePolicies(dir: string, authentication: boolean): void {
  const policies = join(dir, 'policies');
  rmSync(policies, { recursive: true, force: true });
  mkdirSync(policies);
  const rule = {
    fromEndpoints: [{ matchLabels: { role: 'frontend' } }],
    toPorts: [{ ports: [{ port: String(PORT), protocol: 'TCP' }] }],
    ...(authentication ? { authentication: { mode: 'required' } } : {}),
  };
  const policy = {
    apiVersion: 'cilium.io/v2',
    kind: 'CiliumNetworkPolicy',
    metadata: { name: 'backends' },
    spec: { endpointSelector: { matchLabels: { role: 'backend' } }, ingress: [rule] },
  };
  writeFileSync(join(policies, 'backends.yaml'), stringify(policy));
}

export function writeAgents(dir: string, hold: boolean): void {
  for (const [i, node, own] of [
    [1, 'a', frontends],
    [2, 'b', backends],
  ] as const) {
    const config = {
      apiVersion: API,
      kind: 'AgentConfig',
      trustDomain: 'example.org',
      node: { name: `node-${node}`, underlay: 'under0' },
      server: {
        address: '10.78.0.10:8443',
        bundleFile: join(dir, 'server/bundle.pem'),
        joinTokenFile: join(dir, `node-${node}.token`),
      },
      dataDir: join(dir, `node-${node}`),
      bpffs: join(dir, 'bpf'),
      peer: { listen: [`10.78.0.${i}:4250`] },
      sockets: { admin: join(dir, `node-${node}/admin.sock`), workload: join(dir, `node-${node}-workload.sock`) },
      policies: { directory: join(dir, 'policies') },
      encryption: { wireguard: { device: `cs-fc-${node}` } },
      // What is measured is the first packet that has to wait for its proof.
      authentication: { preAuthentication: { enabled: false } },
      hold: hold ? {} : { limitTotal: 0 },
      endpoints: own.map((w) => ({
        name: w.name,
        interface: hostVeth(w.name),
        addresses: [w.address4, w.address6],
        spiffeId: `spiffe://example.org/${w.name}`,
      })),
    };
    writeFileSync(join(dir, `agent-node-${node}.yaml`), stringify(config));
  }
}

function configure(dir: string): void {
  const server = {
    apiVersion: API,
    kind: 'ServerConfig',
    trustDomain: 'example.org',
    dataDir: join(dir, 'server'),
    listen: { address: '10.78.0.10', port: 8443 },
    adminSocket: join(dir, 'server/admin.sock'),
    entriesFile: join(dir, 'entries.yaml'),
    audit: { dir: join(dir, 'server/audit') },
    nodes: [
      { name: 'node-a', prefixes: ['10.78.1.0/24', 'fd78:1::/64'] },
      { name: 'node-b', prefixes: ['10.78.2.0/24', 'fd78:2::/64'] },
    ],
  };
  writeFileSync(join(dir, 'server.yaml'), stringify(server));
  const entries = [...frontends, ...backends].map((w) => ({
    id: w.name,
    spiffeId: `spiffe://example.org/${w.name}`,
    node: w.node,
    selectors: [`unix:uid:${w.uid}`],
    labels: { role: w.node === 'node-a' ? 'frontend' : 'backend', app: w.name },
  }));
  writeFileSync(join(dir, 'entries.yaml'), stringify({ apiVersion: API, kind: 'RegistrationEntries', entries }));
  writePolicies(dir, true);
  writeAgents(dir, false);
}

export const TWO_NODES: StageSpec = {
  prefix: 'cs-fc',
  dir: '/run/countersign-first-connect',
  server: '10.78.0.10',
  nodes: [
    { name: 'node-a', underlay4: '10.78.0.1', underlay6: 'fd78::1', prefix4: '10.78.1.0/24', prefix6: 'fd78:1::/64' },
    { name: 'node-b', underlay4: '10.78.0.2', underlay6: 'fd78::2', prefix4: '10.78.2.0/24', prefix6: 'fd78:2::/64' },
  ],
  workloads: [...frontends, ...backends],
  configure,
};

/** SYN to connected of each of them with every backend, ms, sorted. @throws Error when one was not made within 5 s */
export async function connectAll(stage: Stage, from: readonly WorkloadSpec[]): Promise<number[]> {
  const times: number[] = [];
  for (const frontend of from) {
    const got = await connectFrom(stage, frontend);
    if (got.includes(null))
      throw new Error(`${frontend.name}: a connection was not made within 5 s: ${JSON.stringify(got)}`);
    times.push(...(got as number[]));
  }
  return times.sort((a, b) => a - b);
}

/** Until each of them has reached every backend once: agents that have just started find their peers and their addresses first. */
export async function allReached(stage: Stage, from: readonly WorkloadSpec[]): Promise<void> {
  for (const frontend of from) {
    await until(`${frontend.name} to reach every backend`, 60_000, async () =>
      (await connectFrom(stage, frontend)).includes(null) ? undefined : true,
    );
  }
}

/** null: no connection within 5 s. */
async function connectFrom(stage: Stage, frontend: WorkloadSpec): Promise<(number | null)[]> {
  const program = join(import.meta.dirname, '../stage/programs/connector.ts');
  const targets = backends.map((b) => b.address4).join(',');
  const argv = inNetns(stage.netns(frontend.name), process.execPath, program, String(PORT), targets);
  const output = await run(argv[0]!, argv.slice(1), { timeoutMs: 90_000 });
  if (output.status !== 0)
    throw new Error(`${frontend.name}: its connector ended with ${output.status}: ${output.stderr.trim()}`);
  return JSON.parse(output.stdout) as (number | null)[];
}

export const quantile = (sorted: readonly number[], q: number): number =>
  sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * q))]!;

export async function startAcceptors(stage: Stage): Promise<void> {
  for (const backend of backends) stage.spawnIn(backend.name, `acceptor-${backend.name}`, 'acceptor.ts', String(PORT));
  await until('the acceptors', 20_000, () =>
    backends.every((b) => stage.tail(`acceptor-${b.name}`).includes('listening')) ? true : undefined,
  );
}
