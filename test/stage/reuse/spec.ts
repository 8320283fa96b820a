/**
 * A cluster for reuse of addresses: `red` and `blue` take turns on one IPv4 and one IPv6 address, on node-a or node-b, as a CNI
 * plugin that cannot wait would place them. `sink` on node-c hears red only. All three send to each other all the time.
 */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { stringify } from 'yaml';
import type { StageSpec } from '../stage.ts';
import type { NodeSpec, WorkloadSpec } from '../topology.ts';
import { preloads } from './preloads.ts';
import type { SafeguardName } from './safeguards.ts';

export const SHARED4 = '10.78.9.50';
export const SHARED6 = 'fd78:9::50';
const SHARED_PREFIXES = ['10.78.9.0/24', 'fd78:9::/64'];
/** Towards sink, and from sink. */
export const SINK_PORT = 9999;
export const PARTY_PORT = 9998;

export type Colour = 'red' | 'blue';
export type HostNode = 'node-a' | 'node-b';

const node = (letter: string, n: number): NodeSpec => ({
  name: `node-${letter}`,
  underlay4: `10.78.0.${n}`,
  underlay6: `fd78::${n}`,
  prefix4: `10.78.${n}.0/24`,
  prefix6: `fd78:${n}::/64`,
});
const NODES = [node('a', 1), node('b', 2), node('c', 3)];

const party = (colour: Colour, host: HostNode, uid: number): WorkloadSpec => ({
  name: `${colour}-${host.at(-1)}`,
  node: host,
  uid,
  address4: SHARED4,
  address6: SHARED6,
  unplugged: true,
});
export const SINK: WorkloadSpec = {
  name: 'sink',
  node: 'node-c',
  uid: 21001,
  address4: '10.78.3.10',
  address6: 'fd78:3::10',
};
export const PARTIES = [
  party('red', 'node-a', 21002),
  party('blue', 'node-a', 21003),
  party('red', 'node-b', 21002),
  party('blue', 'node-b', 21003),
];

export interface ReuseOptions {
  /** Of the stage: namespaces begin with it. */
  readonly prefix: string;
  readonly dir: string;
  /** At most six characters: wireguard-go's control socket is named after the device, for the whole host. */
  readonly device: string;
  /** Of the vouches. Default 30s. */
  readonly lease?: string;
  /** A safeguard that its agents do not have. */
  readonly without?: SafeguardName;
  /** Its agents write down what leases and fences do: see ReuseScene.trace. */
  readonly traced?: boolean;
}

export const tracesOf = ({ dir }: Pick<ReuseOptions, 'dir'>): string => join(dir, 'traces');

export function reuseSpec(options: ReuseOptions): StageSpec {
  const { dir, prefix } = options;
  return {
    prefix,
    dir,
    server: '10.78.0.10',
    nodes: NODES,
    workloads: [SINK, ...PARTIES],
    configure: () => configure(options),
    agentEnv: preloads({
      ...(options.without === undefined ? {} : { without: options.without }),
      ...(options.traced === true ? { traces: tracesOf(options) } : {}),
    }),
  };
}

const DOCUMENT = { apiVersion: 'countersign.dev/v1alpha1' };

function configure(options: ReuseOptions): void {
  const { dir } = options;
  const write = (name: string, document: unknown) => writeFileSync(join(dir, name), stringify(document));
  mkdirSync(join(dir, 'policies'));
  mkdirSync(tracesOf(options));
  write('server.yaml', {
    ...DOCUMENT,
    kind: 'ServerConfig',
    trustDomain: 'example.org',
    dataDir: join(dir, 'server'),
    listen: { address: '10.78.0.10', port: 8443 },
    adminSocket: join(dir, 'server/admin.sock'),
    entriesFile: join(dir, 'entries.yaml'),
    nodes: NODES.map(({ name, prefix4, prefix6 }) => ({
      name,
      prefixes: [prefix4, prefix6, ...(name === 'node-c' ? [] : SHARED_PREFIXES)],
    })),
    audit: { dir: join(dir, 'server/audit') },
  });
  write('entries.yaml', {
    ...DOCUMENT,
    kind: 'RegistrationEntries',
    entries: [SINK, ...PARTIES].map(({ name, node: on, uid }) => ({
      id: name,
      spiffeId: spiffeIdOf(name),
      node: on,
      selectors: [`unix:uid:${uid}`],
      labels: { app: colourOf(name) },
    })),
  });
  for (const { name, underlay4 } of NODES) {
    write(`agent-${name}.yaml`, {
      ...DOCUMENT,
      kind: 'AgentConfig',
      trustDomain: 'example.org',
      node: { name, underlay: 'under0' },
      server: {
        address: '10.78.0.10:8443',
        bundleFile: join(dir, 'server/bundle.pem'),
        joinTokenFile: join(dir, `${name}.token`),
      },
      dataDir: join(dir, name),
      bpffs: join(dir, 'bpf'),
      peer: { listen: [`${underlay4}:4250`] },
      sockets: { admin: join(dir, name, 'admin.sock'), workload: join(dir, `${name}-workload.sock`) },
      policies: { directory: join(dir, 'policies') },
      authentication: { lease: options.lease ?? '30s' },
      encryption: { wireguard: { device: `cs-${options.device}-${name.at(-1)}` } },
      endpoints: [SINK, ...PARTIES]
        .filter((workload) => workload.node === name)
        .map((workload) => ({
          name: workload.name,
          interface: `v-${workload.name}`,
          addresses: [workload.address4, workload.address6],
          spiffeId: spiffeIdOf(workload.name),
        })),
    });
  }
  write('policies/sink.yaml', allows('sink', 'red', SINK_PORT));
  write('policies/red.yaml', allows('red', 'sink', PARTY_PORT));
  write('policies/blue.yaml', allows('blue', 'sink', PARTY_PORT));
}

const colourOf = (name: string): string => name.split('-')[0]!;
const spiffeIdOf = (name: string): string => `spiffe://example.org/${colourOf(name)}`;

function allows(to: string, from: string, port: number): unknown {
  return {
    ...DOCUMENT,
    kind: 'AuthenticationPolicy',
    metadata: { name: `${to}-from-${from}` },
    spec: {
      endpointSelector: { matchLabels: { app: to } },
      ingress: [
        {
          fromEndpoints: [{ matchLabels: { app: from } }],
          toPorts: [{ ports: [{ port: String(port), protocol: 'UDP' }] }],
          authentication: { mode: 'required' },
        },
      ],
    },
  };
}
