/**
 * A large node: 10,000 rules compiled and in the kernel, one endpoint's change in the kernel, both with the agent's own parts
 * and real maps in this process; and what a real agent process takes of memory with 1,000 endpoints, 10,000 identities and
 * 100,000 auth entries, beside the same agent with none.
 */
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { stringify } from 'yaml';
import { Store } from '../../identity/store.ts';
import { native } from '../../native/index.ts';
import { PolicyControl } from '../../src/agent/policy-control.ts';
import { createLogger } from '../../src/base/log.ts';
import { createAuthTable } from '../../src/datapath/auth-table.ts';
import { ConfigWriter } from '../../src/datapath/config.ts';
import { openMaps } from '../../src/datapath/maps.ts';
import { withPinnedMaps } from '../../src/datapath/pinned.ts';
import { PolicyTable } from '../../src/datapath/policy-table.ts';
import type { AuthEntry } from '../../src/model/datapath.ts';
import type { IdentityRow } from '../../src/model/identity.ts';
import { LOCAL_NODE, type NodeName, nodeId, type SecurityIdentity, securityIdentity } from '../../src/model/ids.ts';
import { spiffeId } from '../../src/model/spiffe-id.ts';
import { compilePolicy } from '../../src/policy/compile.ts';
import { loadPolicies } from '../../src/policy/load.ts';
import { inNetns, sh, until } from '../stage/shell.ts';
import { Stage, type StageSpec } from '../stage/stage.ts';
import type { Bench } from './support.ts';

type Emit = Parameters<Bench['run']>[0];

const APPS = 1_000;
const RULES_OF_APP = 10;
const IDENTITIES = 10_000;
const ENDPOINTS = 1_000;
const AUTH_ENTRIES = 100_000;
const TIMES = 7;
const OBJECT = join(import.meta.dirname, '../../build/bpf/datapath.bpf.o');
const FIRST_IDENTITY = 256;

export const bench: Bench = {
  name: 'scale',
  async run(emit, progress) {
    await policyInForce(emit, progress);
    await memory(emit, progress);
  },
};

/** Each app lets ten others in, each by a rule of its own: ports, ranges, some with proof, some from outside the cluster. */
function writePolicies(directory: string): void {
  mkdirSync(directory, { recursive: true });
  for (let app = 0; app < APPS; app++) {
    const ingress = Array.from({ length: RULES_OF_APP }, (_, i) => {
      const port = { port: String(1024 + ((app * 7 + i * 131) % 60_000)), protocol: 'TCP' };
      const from =
        i === 9
          ? { fromCIDR: [`198.51.${app % 100}.${(app >> 2) & 0xf0}/28`] }
          : { fromEndpoints: [{ matchLabels: { app: `a${(app * 13 + i * 37 + 1) % APPS}` } }] };
      return {
        ...from,
        toPorts: [{ ports: [i === 8 ? { ...port, endPort: Number(port.port) + 100 } : port] }],
        ...(i < 3 ? { authentication: { mode: 'required' } } : {}),
      };
    });
    const policy = {
      apiVersion: 'cilium.io/v2',
      kind: 'CiliumNetworkPolicy',
      metadata: { name: `a${app}` },
      spec: { endpointSelector: { matchLabels: { app: `a${app}` } }, ingress },
    };
    writeFileSync(join(directory, `a${app}.yaml`), stringify(policy));
  }
}

function identityRow(i: number, app = i % APPS): IdentityRow {
  return {
    identity: securityIdentity(FIRST_IDENTITY + i),
    spiffeId: spiffeId(`spiffe://example.org/ns/shop/sa/w${i}`),
    labels: { app: `a${app}`, tier: `t${i % 3}` },
    nodes: [spiffeId(`spiffe://example.org/node/node-${i % 2 === 0 ? 'a' : 'b'}`)],
  };
}

async function policyInForce(emit: Emit, progress: (line: string) => void): Promise<void> {
  const directory = mkdtempSync(join(tmpdir(), 'countersign-bench-scale-'));
  try {
    writePolicies(directory);
    const maps = openMaps(native().loadObject({ path: OBJECT }).maps);
    const table = new PolicyTable(maps, new ConfigWriter(maps));
    let rows = Array.from({ length: IDENTITIES }, (_, i) => identityRow(i));
    let locals: SecurityIdentity[] = rows.slice(0, ENDPOINTS).map(({ identity }) => identity);
    const reading = performance.now();
    const { policies } = loadPolicies(directory);
    progress(`scale: ${APPS * RULES_OF_APP} rules read in ${Math.round(performance.now() - reading)} ms`);

    const whole = [];
    for (let i = 0; i < TIMES; i++) {
      const started = now();
      const { tables, entryCount } = compilePolicy(policies, rows, locals);
      const compiled = now();
      table.set(tables);
      const inForce = now();
      whole.push(between(started, inForce));
      progress(
        `scale: compiled in ${told(started, compiled)}, ${entryCount} entries in force ${told(compiled, inForce)} later`,
      );
    }
    emit({
      name: `policy of ${APPS * RULES_OF_APP} rules for ${IDENTITIES} identities and ${ENDPOINTS} endpoints, compiled and in force`,
      ...timed(whole),
      target: 'under 1000 ms',
      ok: median(whole.map(({ cpu }) => cpu)) < 1000,
    });

    const control = new PolicyControl({
      directory,
      l7: 'refuse',
      nodeLabels: {},
      datapath: { setPolicy: (tables) => table.set(tables), updatePolicy: (delta) => table.update(delta) },
      identities: { rows: () => rows },
      locals: () => locals,
      changed: () => {},
      audit: { emit: () => {} },
      log: createLogger('bench', 'error'),
    });
    try {
      control.apply();
      for (const [what, app] of [
        ['of labels that others have', 500],
        ['of labels that nobody had', APPS + 1],
      ] as const) {
        const took = [];
        for (let i = 0; i < 2 * TIMES; i++) {
          const added = identityRow(IDENTITIES + i, app);
          const [rowsBefore, localsBefore] = [rows, locals];
          for (const change of [
            () => {
              rows = [...rows, added];
              locals = [...locals, added.identity];
            },
            () => {
              rows = rowsBefore;
              locals = localsBefore;
            },
          ]) {
            change();
            const started = now();
            control.apply();
            took.push(between(started, now()));
          }
        }
        emit({
          name: `one endpoint ${what} comes or goes, in force`,
          ...timed(took),
          target: 'under 20 ms',
          ok: median(took.map(({ cpu }) => cpu)) < 20,
        });
      }
    } finally {
      control.close();
    }
    table.close();
  } finally {
    rmSync(directory, { recursive: true });
  }
}

const NODES = [
  { name: 'node-a', underlay4: '10.79.0.1', underlay6: 'fd79::1', prefix4: '10.79.64.0/18', prefix6: 'fd79:1::/64' },
  { name: 'node-b', underlay4: '10.79.0.2', underlay6: 'fd79::2', prefix4: '10.79.128.0/17', prefix6: 'fd79:2::/64' },
] as const;
const API = 'countersign.dev/v1alpha1';
const address = (i: number) => `10.79.${64 + (i >> 8)}.${i & 0xff}`;

function stageSpec(endpoints: number): StageSpec {
  return {
    prefix: 'cs-sc',
    dir: '/run/countersign-scale',
    server: '10.79.0.10',
    nodes: NODES,
    workloads: [],
    patienceMs: 120_000,
    configure: (dir) => configure(dir, endpoints),
  };
}

function configure(dir: string, endpoints: number): void {
  const server = {
    apiVersion: API,
    kind: 'ServerConfig',
    trustDomain: 'example.org',
    dataDir: join(dir, 'server'),
    listen: { address: '10.79.0.10', port: 8443 },
    adminSocket: join(dir, 'server/admin.sock'),
    audit: { dir: join(dir, 'server/audit') },
    nodes: NODES.map(({ name, prefix4, prefix6 }) => ({ name, prefixes: [prefix4, prefix6] })),
  };
  writeFileSync(join(dir, 'server.yaml'), stringify(server));
  mkdirSync(join(dir, 'server'), { mode: 0o700 });
  const store = new Store(join(dir, 'server/identity.db'));
  store.transaction(() => {
    for (let i = 0; i < (endpoints === 0 ? 1 : IDENTITIES); i++) {
      store.putEntry({
        // Identities are numbered in this order.
        id: `w${String(i).padStart(5, '0')}`,
        origin: 'admin',
        spiffeId: spiffeId(`spiffe://example.org/ns/shop/sa/w${i}`),
        node: (i < Math.max(1, endpoints) ? 'node-a' : 'node-b') as NodeName,
        selectors: [`unix:uid:${100_000 + i}`],
        hint: '',
        labels: { app: `a${i % APPS}`, tier: `t${i % 3}` },
        ports: [],
        ttlSeconds: 0,
        dnsNames: [],
        jwtTtlSeconds: 0,
        federatesWith: [],
        admin: false,
        downstream: false,
        barred: false,
      });
    }
  });
  store.close();
  NODES.forEach(({ name, underlay4 }, n) => {
    const agent = {
      apiVersion: API,
      kind: 'AgentConfig',
      trustDomain: 'example.org',
      node: { name, underlay: 'under0' },
      server: {
        address: '10.79.0.10:8443',
        bundleFile: join(dir, 'server/bundle.pem'),
        joinTokenFile: join(dir, `${name}.token`),
      },
      dataDir: join(dir, name),
      bpffs: join(dir, 'bpf'),
      peer: { listen: [`${underlay4}:4250`] },
      sockets: { admin: join(dir, name, 'admin.sock'), workload: join(dir, `${name}-workload.sock`) },
      policies: { directory: join(dir, 'policies') },
      encryption: { wireguard: { device: `cs-sc-${n}` } },
      // The other one is there to be known: what it vouches for is not what is measured.
      endpoints: Array.from({ length: n === 0 ? endpoints : 0 }, (_, i) => ({
        name: `w${i}`,
        interface: `v${i}`,
        addresses: [address(i)],
        spiffeId: `spiffe://example.org/ns/shop/sa/w${i}`,
      })),
    };
    writeFileSync(join(dir, `agent-${name}.yaml`), stringify(agent));
  });
  mkdirSync(join(dir, 'policies'));
  const policy = {
    apiVersion: 'cilium.io/v2',
    kind: 'CiliumClusterwideNetworkPolicy',
    metadata: { name: 'all' },
    spec: {
      endpointSelector: {},
      ingress: [{ fromEndpoints: [{}], authentication: { mode: 'required' } }],
    },
  };
  writeFileSync(join(dir, 'policies/all.yaml'), stringify(policy));
}

/** The veths of the endpoints, in the node's namespace, before its agent starts. */
function addInterfaces(netns: string, dir: string, count: number): void {
  const file = join(dir, 'interfaces.batch');
  const lines = Array.from({ length: count }, (_, i) => [
    `link add name v${i} type veth peer name w${i}`,
    `link set dev v${i} addrgenmode none up`,
  ]).flat();
  writeFileSync(file, `${lines.join('\n')}\n`);
  const [command, ...args] = inNetns(netns, 'ip', '-batch', file);
  sh(command!, args, { timeoutMs: 120_000 });
}

/** As 100 remote workloads would have proven themselves to each endpoint: what a restarted agent finds and goes on with. */
function writeAuthEntries(dir: string): void {
  const endNs = native().bootTimeNs() + 3_600_000_000_000n;
  withPinnedMaps(
    join(dir, 'bpf'),
    'node-a',
    () => {},
    (maps) => {
      const table = createAuthTable(maps, new ConfigWriter(maps));
      const remotes = IDENTITIES - ENDPOINTS;
      for (let i = 0; i < AUTH_ENTRIES; i++) {
        const local = i % ENDPOINTS;
        const entry: AuthEntry = {
          local: securityIdentity(FIRST_IDENTITY + local),
          remote: securityIdentity(FIRST_IDENTITY + ENDPOINTS + ((local * 89 + Math.floor(i / ENDPOINTS)) % remotes)),
          remoteNode: i % 10 === 0 ? LOCAL_NODE : nodeId(2),
          authType: 'spiffe',
          expiresAtNs: endNs + BigInt(i) * 1_000_000n,
          epoch: table.epoch,
        };
        table.put(entry);
      }
    },
  );
}

async function memory(emit: Emit, progress: (line: string) => void): Promise<void> {
  const [bare] = await agentMemory(0, progress);
  const [full, proven] = await agentMemory(ENDPOINTS, progress);
  emit({
    name: `RSS of an agent with ${ENDPOINTS} endpoints, ${IDENTITIES} identities, ${proven} auth entries`,
    value: Math.round(full),
    unit: 'MB',
    floor: { name: 'the same agent with none', value: Math.round(bare) },
    target: 'under 150 MB',
    ok: full < 150 && proven === AUTH_ENTRIES,
  });
}

async function agentMemory(endpoints: number, progress: (line: string) => void): Promise<[mb: number, proven: number]> {
  const stage = new Stage(stageSpec(endpoints));
  try {
    await Stage.clear(stage.spec);
    await stage.up(
      (what) => progress(`scale: ${what}`),
      () => {
        if (endpoints > 0) addInterfaces(stage.netns('node-a'), stage.dir, endpoints);
      },
    );
    const statusOf = async () => (await stage.status('node-a')) as Record<string, unknown> | undefined;
    if (endpoints > 0) {
      await until('the endpoints to be open', 120_000, async () => {
        const open = ((await statusOf())?.endpoints as { open?: number } | undefined)?.open;
        return open === endpoints ? true : undefined;
      });
    }
    await stage.stop('node-a');
    if (endpoints > 0) writeAuthEntries(stage.dir);
    await stage.startAgent('node-a');
    // What the start left behind is not what an agent holds.
    await new Promise((resolve) => setTimeout(resolve, 15_000));
    const status = await statusOf();
    const pid = stage.pid('node-a');
    const line = /VmRSS:\s+(\d+) kB/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'));
    const mb = Number(line![1]) / 1024;
    progress(`scale: ${endpoints} endpoints, ${String(status?.proven)} auth entries: ${mb.toFixed(1)} MB`);
    return [mb, Number(status?.proven)];
  } finally {
    await stage.down();
  }
}

interface Span {
  /** ms of CPU time of this process, the garbage collector's threads included: what else the machine does is not in it. */
  readonly cpu: number;
  /** ms on the clock. */
  readonly wall: number;
}

function now(): Span {
  const { user, system } = process.cpuUsage();
  return { cpu: (user + system) / 1000, wall: performance.now() };
}

const between = (from: Span, to: Span): Span => ({ cpu: to.cpu - from.cpu, wall: to.wall - from.wall });
const told = (from: Span, to: Span) => `${ms(between(from, to).wall)} ms (${ms(between(from, to).cpu)} of CPU)`;

function timed(spans: readonly Span[]) {
  const wall = spans.map((span) => span.wall);
  return {
    value: ms(median(spans.map((span) => span.cpu))),
    unit: `ms of CPU time (on the clock ${ms(Math.min(...wall))} to ${ms(Math.max(...wall))}, median ${ms(median(wall))})`,
  };
}

const ms = (value: number) => Math.round(value * 10) / 10;

function median(values: readonly number[]): number {
  return values.toSorted((a, b) => a - b)[values.length >> 1]!;
}
