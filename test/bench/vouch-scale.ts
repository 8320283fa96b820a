/**
 * One agent among 5,000 nodes, with live channels to 200 of them that have 50 endpoints each, of which 1 % die and come back at other
 * addresses each minute: its CPU time, its memory, and the octets on its underlay. The agent is the real process, with a real
 * identity server; the 200 peers run the real channels, vouches and proofs over TLS in processes of their own, without kernels.
 * Policy requires a proof of each endpoint here from one endpoint on each peer, so that 10,000 identities are authenticated. No
 * tunnel: encryption is off, for two hundred devices would be another measurement.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, openSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { stringify } from 'yaml';
import { openCertificateAuthority } from '../../ca/api.ts';
import { Store } from '../../identity/store.ts';
import type { NodeName, TrustDomain } from '../../src/model/ids.ts';
import { nodeSpiffeId, spiffeId } from '../../src/model/spiffe-id.ts';
import { createCsr } from '../../src/pki/csr.ts';
import { generateKey, privateKeyDer } from '../../src/pki/keys.ts';
import { inNetns, sh, until } from '../stage/shell.ts';
import { Stage, type StageSpec } from '../stage/stage.ts';
import { buildTopology, UNDERLAY_DEVICE } from '../stage/topology.ts';
import type { NodeFact, PeerFacts, PeerReport, PeerRequest, SvidFact } from './peer-facts.ts';
import type { Bench } from './support.ts';

const KNOWN_NODES = 5_000;
const PEERS = 200;
const PROCESSES = 4;
const ENDPOINTS = 50;
const CHURN_PER_MINUTE = 0.01;
const WINDOW_S = 120;
const SETTLE_MS = 20_000;
const RSS_LIMIT_MB = 200;
const CPU_LIMIT = 10;
const FIRST_IDENTITY = 256;
const DOMAIN = 'example.org' as TrustDomain;
const API = 'countersign.dev/v1alpha1';
const TARGET = 'node-a';
const SERVER = '10.92.0.250';
const UNDERLAY = '10.92.0.251';
const PORT = 4250;

const spec: StageSpec = {
  prefix: 'cs-vs',
  dir: '/run/countersign-vouch-scale',
  server: SERVER,
  nodes: [{ name: TARGET, underlay4: UNDERLAY, underlay6: 'fd92::251', prefix4: '10.91.0.0/24', prefix6: 'fd91::/64' }],
  workloads: [],
  patienceMs: 120_000,
  configure: () => {},
};

/** Node 0 is the one that is measured; the next have channels to it, the others are only known. */
function nodeAt(i: number): NodeFact {
  const net = netOf(i);
  return {
    name: i === 0 ? TARGET : `node-p${String(i).padStart(4, '0')}`,
    id: i + 1,
    incarnation: 1,
    peerAddresses: [i === 0 ? `${UNDERLAY}:${PORT}` : `${i <= PEERS ? `10.92.0.${i}` : `${net}.1`}:${PORT}`],
    prefixes: [`${net}.0/24`, `fd90:${i.toString(16)}::/64`],
  };
}

const netOf = (i: number): string => (i === 0 ? '10.91.0' : `10.${100 + (i >> 8)}.${i & 255}`);
const nodes = Array.from({ length: KNOWN_NODES }, (_, i) => nodeAt(i));
/** Endpoint e of node n; identities are numbered in the order of the entries' ids. */
const identityOf = (n: number, e: number): number => FIRST_IDENTITY + n * ENDPOINTS + e;
const workloadOf = (identity: number) => `spiffe://${DOMAIN}/ns/shop/sa/w${identity}`;

export const bench: Bench = {
  name: 'vouch-scale',
  async run(emit, progress) {
    if (process.getuid?.() !== 0) throw new Error('vouch-scale needs root: it makes network namespaces');
    const stage = new Stage(spec);
    const peers: Peers[] = [];
    try {
      await Stage.clear(spec);
      for (const dir of ['bpf', 'logs', 'server', 'policies'])
        mkdirSync(join(stage.dir, dir), { recursive: true, mode: 0o700 });
      sh('mount', ['-t', 'bpf', 'bpf', join(stage.dir, 'bpf')]);
      progress(`vouch-scale: ${KNOWN_NODES} nodes, SVIDs for ${PEERS * ENDPOINTS} workloads`);
      const files = await writeFacts(stage.dir);
      configure(stage.dir);
      buildTopology(spec);
      addInterfaces(stage);
      await stage.startServer();
      const reply = await stage.cli('token', 'create', '--node', TARGET, '--socket', stage.serverSocket, '-o', 'json');
      writeFileSync(join(stage.dir, `${TARGET}.token`), `${(reply as { token: string }).token}\n`, { mode: 0o600 });
      progress('vouch-scale: agent');
      await stage.startAgent(TARGET);
      // The first start after an installation compiles the program; what is measured is the agent as it runs from then on.
      await stage.stop(TARGET);
      await stage.startAgent(TARGET);
      progress(`vouch-scale: ${PEERS} peers in ${PROCESSES} processes`);
      for (const [i, file] of files.entries()) peers.push(new Peers(stage, file, i));
      await Promise.all(peers.map((process) => process.ready));
      const began = performance.now();
      await settled(stage, peers, progress);
      progress(`vouch-scale: everything known and proven after ${((performance.now() - began) / 1000).toFixed(1)} s`);

      const churnEveryMs = (60_000 * PROCESSES) / (PEERS * ENDPOINTS * CHURN_PER_MINUTE);
      await Promise.all(peers.map((process) => process.ask({ churnEveryMs })));
      await delay(SETTLE_MS);
      const [before, churnedBefore] = [sample(stage), await churned(peers)];
      const rss: number[] = [];
      for (let at = 0; at < WINDOW_S; at += 5) {
        await delay(5_000);
        rss.push(sample(stage).rssMb);
      }
      const after = sample(stage);
      const churn = (await churned(peers)) - churnedBefore;
      const seconds = (after.atMs - before.atMs) / 1000;
      await settled(stage, peers, progress);
      progress(`vouch-scale: ${churn} endpoints died and came in ${seconds.toFixed(0)} s`);

      const share = ((after.cpuS - before.cpuS) / seconds) * 100;
      const peak = Math.max(...rss);
      const where = `${KNOWN_NODES} known nodes, ${PEERS} channels, ${PEERS * ENDPOINTS} vouches`;
      emit({
        name: `RSS of an agent with ${where}, the most in ${WINDOW_S} s`,
        value: Math.round(peak),
        unit: `MB (at the end ${Math.round(after.rssMb)})`,
        target: `under ${RSS_LIMIT_MB} MB`,
        ok: peak < RSS_LIMIT_MB,
      });
      emit({
        name: `CPU time of it, with ${churn} of ${PEERS * ENDPOINTS} endpoints replaced in ${seconds.toFixed(0)} s`,
        value: Math.round(share * 10) / 10,
        unit: '% of a core',
        target: `under ${CPU_LIMIT} %`,
        ok: share < CPU_LIMIT,
      });
      for (const way of ['received', 'sent'] as const) {
        const rate = (after[way] - before[way]) / seconds;
        emit({ name: `octets ${way} on its underlay, with all headers`, value: Math.round(rate), unit: 'B/s' });
      }
    } finally {
      for (const process of peers) process.end();
      await stage.down();
    }
  },
};

/** A process of peer nodes. */
class Peers {
  readonly #child: ChildProcess;
  readonly ready: Promise<unknown>;

  constructor(stage: Stage, file: string, number: number) {
    const program = join(import.meta.dirname, 'programs/peer-nodes.ts');
    const argv = inNetns(stage.netns('server'), process.execPath, program, file);
    const out = openSync(stage.log(`peers-${number}`), 'a', 0o600);
    this.#child = spawn(argv[0]!, argv.slice(1), {
      stdio: ['ignore', out, out, 'ipc'],
      env: { ...process.env, ...stage.env },
    });
    const ended = once(this.#child, 'exit').then(() => {
      throw new Error(`the process of peers ended: ${stage.tail(`peers-${number}`)}`);
    });
    ended.catch(() => {});
    this.ready = Promise.race([once(this.#child, 'message'), ended]);
  }

  async ask(request: PeerRequest): Promise<PeerReport> {
    const answer = once(this.#child, 'message');
    this.#child.send(request);
    const [report] = (await answer) as [PeerReport];
    return report;
  }

  end(): void {
    this.#child.removeAllListeners('exit');
    this.#child.kill('SIGKILL');
  }
}

async function sum(peers: readonly Peers[]): Promise<PeerReport> {
  const reports = await Promise.all(peers.map((process) => process.ask({})));
  const of = (key: keyof PeerReport) => reports.reduce((total, report) => total + report[key], 0);
  return { channels: of('channels'), known: of('known'), proven: of('proven'), churned: of('churned') };
}

const churned = async (peers: readonly Peers[]): Promise<number> => (await sum(peers)).churned;

/** All channels are there, every endpoint is vouched for, every pair is proven, but for what churns just now. */
async function settled(stage: Stage, peers: readonly Peers[], progress: (line: string) => void): Promise<void> {
  const all = PEERS * ENDPOINTS;
  const enough = all * 0.995;
  let toldMs = performance.now();
  await until('the peers to be known and proven', 300_000, async () => {
    const status = (await stage.status(TARGET)) as { channels: number; proven: number } | undefined;
    const { channels, known, proven } = await sum(peers);
    if (performance.now() - toldMs > 10_000) {
      toldMs = performance.now();
      progress(
        `vouch-scale: ${channels} channels, ${known} endpoints known, ${proven} pairs proven; the agent: ${status?.channels}, ${status?.proven}; ${sample(stage).rssMb.toFixed(0)} MB`,
      );
    }
    await delay(500);
    const isThere = channels >= PEERS && known >= enough && proven >= enough && (status?.proven ?? 0) >= enough;
    return isThere ? true : undefined;
  });
}

/** Of the agent: CPU time since its start, memory now, octets of its underlay device. */
function sample(stage: Stage) {
  const pid = stage.pid(TARGET);
  const fields = readFileSync(`/proc/${pid}/stat`, 'utf8')
    .replace(/^.*\) /, '')
    .split(' ');
  const rss = /VmRSS:\s+(\d+) kB/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))!;
  const line = readFileSync(`/proc/${pid}/net/dev`, 'utf8')
    .split('\n')
    .find((text) => text.trim().startsWith(`${UNDERLAY_DEVICE}:`))!;
  const counters = line
    .slice(line.indexOf(':') + 1)
    .trim()
    .split(/\s+/)
    .map(Number);
  return {
    atMs: performance.now(),
    // utime and stime, of the fields of proc(5) after the name, in ticks of 10 ms.
    cpuS: (Number(fields[11]) + Number(fields[12])) / 100,
    rssMb: Number(rss[1]) / 1024,
    received: counters[0]!,
    sent: counters[8]!,
  };
}

/** The authority, the nodes and the entries, before the server starts on them; and a file for each process of peers. */
async function writeFacts(dir: string): Promise<string[]> {
  const clock = { nowMs: () => Date.now(), bootNs: () => process.hrtime.bigint() };
  const directory = join(dir, 'server/ca');
  const ca = await openCertificateAuthority({ directory, trustDomain: DOMAIN, clock });
  try {
    writeState(dir);
    const svid = async (identity: number, node: string): Promise<SvidFact> => {
      const privateKey = generateKey();
      const csr = createCsr(privateKey);
      const id = spiffeId(workloadOf(identity));
      const issued = await ca.issueWorkloadSvid({
        csr,
        spiffeId: id,
        node: nodeSpiffeId(DOMAIN, node as NodeName),
        requester: 'bench',
      });
      if (!issued.ok) throw new Error(issued.error);
      return { identity, spiffeId: id, ...told(issued.value, privateKeyDer(privateKey)) };
    };
    const peers: PeerFacts['peers'][number][] = [];
    for (const [n, node] of nodes.slice(1, PEERS + 1).entries()) {
      const privateKey = generateKey();
      const name = node.name as NodeName;
      const issued = await ca.issueNodeSvid({ csr: createCsr(privateKey), name, incarnation: 1n, requester: 'bench' });
      if (!issued.ok) throw new Error(issued.error);
      const identities = Array.from({ length: ENDPOINTS }, (_, e) => identityOf(n + 1, e));
      peers.push({
        ...node,
        spiffeId: nodeSpiffeId(DOMAIN, name),
        ...told(issued.value, privateKeyDer(privateKey)),
        net: netOf(n + 1),
        workloads: await Promise.all(identities.map((identity) => svid(identity, node.name))),
      });
    }
    const apps: Record<number, number> = {};
    for (let n = 0; n <= PEERS; n++) for (let e = 0; e < ENDPOINTS; e++) apps[identityOf(n, e)] = e;
    return Array.from({ length: PROCESSES }, (_, i) => {
      const facts: PeerFacts = {
        trustDomain: DOMAIN,
        authorities: ca.bundle().authorities.map((der) => der.toString('base64')),
        target: nodes[0]!,
        targetWorkloads: Array.from({ length: ENDPOINTS }, (_, e) => ({
          identity: identityOf(0, e),
          spiffeId: workloadOf(identityOf(0, e)),
        })),
        apps,
        peers: peers.filter((_, n) => n % PROCESSES === i),
      };
      const file = join(dir, `peers-${i}.json`);
      writeFileSync(file, JSON.stringify(facts), { mode: 0o600 });
      return file;
    });
  } finally {
    ca.close();
  }
}

function told(issued: { readonly chain: readonly Buffer[]; readonly notAfterMs: number }, key: Buffer) {
  return {
    chain: issued.chain.map((der) => der.toString('base64')),
    key: key.toString('base64'),
    notAfterMs: issued.notAfterMs,
  };
}

/** As if all but the agent that is measured had attested before. */
function writeState(dir: string): void {
  const store = new Store(join(dir, 'server/identity.db'));
  store.transaction(() => {
    for (const { name, peerAddresses } of nodes) {
      store.putNode({
        name: name as NodeName,
        nodeId: store.next('node_id'),
        incarnation: name === TARGET ? 0 : 1,
        attestedAtMs: Date.now(),
        notAfterMs: Date.now() + 3_600_000,
        evicted: name === TARGET,
        peerAddresses,
        usedIncarnation: name === TARGET ? 0 : 1,
        sessionIssued: 0,
        sessionConfirmed: 0,
        attestor: 'join_token',
      });
    }
    for (let n = 0; n <= PEERS; n++) {
      for (let e = 0; e < ENDPOINTS; e++) {
        const identity = identityOf(n, e);
        store.putEntry({
          id: `w${String(identity).padStart(6, '0')}`,
          origin: 'admin',
          spiffeId: spiffeId(workloadOf(identity)),
          node: nodes[n]!.name as NodeName,
          selectors: [`unix:uid:${100_000 + identity}`],
          hint: '',
          labels: { app: `a${e}`, node: `n${n}` },
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
    }
  });
  store.close();
}

function configure(dir: string): void {
  const server = {
    apiVersion: API,
    kind: 'ServerConfig',
    trustDomain: DOMAIN,
    dataDir: join(dir, 'server'),
    listen: { address: SERVER, port: 8443 },
    adminSocket: join(dir, 'server/admin.sock'),
    audit: { dir: join(dir, 'server/audit') },
    nodes: nodes.map(({ name, prefixes }) => ({ name, prefixes })),
  };
  writeFileSync(join(dir, 'server.yaml'), stringify(server));
  const agent = {
    apiVersion: API,
    kind: 'AgentConfig',
    trustDomain: DOMAIN,
    node: { name: TARGET, underlay: UNDERLAY_DEVICE },
    server: {
      address: `${SERVER}:8443`,
      bundleFile: join(dir, 'server/bundle.pem'),
      joinTokenFile: join(dir, `${TARGET}.token`),
    },
    dataDir: join(dir, TARGET),
    bpffs: join(dir, 'bpf'),
    peer: { listen: [`${UNDERLAY}:${PORT}`] },
    sockets: { admin: join(dir, TARGET, 'admin.sock'), workload: join(dir, 'workload.sock') },
    policies: { directory: join(dir, 'policies') },
    authentication: { allowUnboundPath: true },
    encryption: { enabled: false },
    endpoints: Array.from({ length: ENDPOINTS }, (_, e) => ({
      name: `w${e}`,
      interface: `v${e}`,
      addresses: [`${netOf(0)}.${10 + e}`],
      spiffeId: workloadOf(identityOf(0, e)),
    })),
  };
  writeFileSync(join(dir, `agent-${TARGET}.yaml`), stringify(agent));
  for (let e = 0; e < ENDPOINTS; e++) {
    const matchLabels = { app: `a${e}` };
    const policy = {
      apiVersion: 'cilium.io/v2',
      kind: 'CiliumClusterwideNetworkPolicy',
      metadata: { name: `a${e}` },
      spec: {
        endpointSelector: { matchLabels },
        ingress: [{ fromEndpoints: [{ matchLabels }], authentication: { mode: 'required' } }],
      },
    };
    writeFileSync(join(dir, `policies/a${e}.yaml`), stringify(policy));
  }
}

/** The peers' addresses, beside the server's, and the veths of the agent's endpoints. */
function addInterfaces(stage: Stage): void {
  const batch = (netns: string, lines: readonly string[]) => {
    const file = join(stage.dir, 'interfaces.batch');
    writeFileSync(file, `${lines.join('\n')}\n`);
    const [command, ...args] = inNetns(netns, 'ip', '-batch', file);
    sh(command!, args, { timeoutMs: 60_000 });
  };
  const addresses = Array.from({ length: PEERS }, (_, i) => `addr add 10.92.0.${i + 1}/24 dev ${UNDERLAY_DEVICE}`);
  batch(stage.netns('server'), addresses);
  const veths = Array.from({ length: ENDPOINTS }, (_, e) => [
    `link add name v${e} type veth peer name w${e}`,
    `link set dev v${e} addrgenmode none up`,
  ]);
  batch(stage.netns(TARGET), veths.flat());
}
