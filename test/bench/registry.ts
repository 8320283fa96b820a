/**
 * A registry of 100,000 entries with 1,000 agents on it, each over gRPC and TLS of its own: how long from an entry's creation to the
 * SVID in the hands of the agent it is for, what the server takes, and how long its start takes. The server is the real process.
 */
import { type ChildProcess, fork, spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { credentials } from '@grpc/grpc-js';
import { stringify } from 'yaml';
import { openCertificateAuthority } from '../../ca/api.ts';
import { Store } from '../../identity/store.ts';
import { type JsonReply, ServerAdminClient } from '../../proto/gen/countersign/admin/v1/admin.ts';
import type { NodeName, TrustDomain } from '../../src/model/ids.ts';
import { nodeSpiffeId, spiffeId } from '../../src/model/spiffe-id.ts';
import { createCsr } from '../../src/pki/csr.ts';
import { generateKey, privateKeyDer } from '../../src/pki/keys.ts';
import type { AgentFacts, AgentWord } from './programs/registry-agents.ts';
import type { Bench } from './support.ts';

const ENTRIES = 100_000;
const AGENTS = 1_000;
/** Each is that of ten entries, on ten nodes. */
const SPIFFE_IDS = 10_000;
const PROCESSES = 2;
/** Entries whose way is timed, and how many a second are made. */
const SAMPLES = 500;
const RATE = 20;
const PORT = 28_443;
const DOMAIN = 'example.org' as TrustDomain;
const TARGET = { p99Ms: 1000, rssMb: 1024, startMs: 10_000 };
const root = join(import.meta.dirname, '../..');
const nameOf = (n: number) => `node-${String(n).padStart(4, '0')}` as NodeName;
const nowMs = () => performance.timeOrigin + performance.now();

export const bench: Bench = {
  name: 'registry',
  async run(emit, progress) {
    const dir = mkdtempSync(join(tmpdir(), 'countersign-bench-registry-'));
    const children: ChildProcess[] = [];
    try {
      progress(`registry: writing ${ENTRIES} entries and ${AGENTS} nodes`);
      writeStore(dir);
      const files = await writeAgents(dir);
      const socket = writeConfig(dir);

      const begunMs = nowMs();
      const server = spawn(join(root, 'bin/countersign'), ['server', 'run', '--config', join(dir, 'server.yaml')], {
        stdio: ['ignore', 'ignore', 'inherit'],
      });
      children.push(server);
      const admin = new ServerAdminClient(`unix:${socket}`, credentials.createInsecure());
      await answering(admin, server);
      const startMs = Math.round(nowMs() - begunMs);
      emit({
        name: `registry start, ${ENTRIES} entries`,
        value: startMs,
        unit: 'ms',
        target: 'under 10 s',
        ok: startMs < TARGET.startMs,
      });
      progress(`registry: ${memoryOf(server)} MB and ${cpuOf(server)} s of CPU time after the start`);

      const syncBegunMs = nowMs();
      const waiting = new Map<string, (word: AgentWord & { kind: 'svid' }) => void>();
      const failures: string[] = [];
      const synced = files.map((file) => agents(file, children, waiting, failures));
      const sent = (await Promise.all(synced)).reduce((sum, bytes) => sum + bytes, 0);
      const syncSeconds = (nowMs() - syncBegunMs) / 1000;
      emit({ name: `registry, ${AGENTS} agents at once to their snapshots`, value: round(syncSeconds), unit: 's' });
      progress(`registry: ${Math.round(sent / 1e6)} MB of snapshots; ${memoryOf(server)} MB and ${cpuOf(server)} s`);

      const times = await measure(admin, waiting);
      const p = (part: number) => round(times[Math.min(times.length - 1, Math.floor(times.length * part))]!);
      if (failures.length > 0) progress(`registry: ${failures.length} failures, such as: ${failures[0]}`);
      emit({ name: 'registry, entry to SVID, p50', value: p(0.5), unit: 'ms' });
      emit({
        name: `registry, entry to SVID, p99 of ${SAMPLES} at ${RATE}/s`,
        value: p(0.99),
        unit: 'ms',
        target: 'under 1 s',
        ok: p(0.99) < TARGET.p99Ms && times.length === SAMPLES && failures.length === 0,
      });
      const peak = memoryOf(server);
      emit({
        name: 'registry, the server at its largest',
        value: peak,
        unit: 'MB',
        target: 'under 1 GB',
        ok: peak < TARGET.rssMb,
      });
      admin.close();
    } finally {
      for (const child of children) child.kill('SIGKILL');
      rmSync(dir, { recursive: true, force: true });
    }
  },
};

const round = (value: number) => Math.round(value * 10) / 10;

/** Peak resident memory. */
function memoryOf(child: ChildProcess): number {
  const line = /VmHWM:\s+(\d+) kB/.exec(readFileSync(`/proc/${child.pid}/status`, 'utf8'));
  return Math.round(Number(line?.[1]) / 1024);
}

/** User and system, seconds. */
function cpuOf(child: ChildProcess): number {
  const fields = readFileSync(`/proc/${child.pid}/stat`, 'utf8').split(') ')[1]!.split(' ');
  const TICKS = 100;
  return (Number(fields[11]) + Number(fields[12])) / TICKS;
}

async function answering(admin: ServerAdminClient, server: ChildProcess): Promise<void> {
  for (;;) {
    if (server.exitCode !== null) throw new Error('the server ended');
    const answered = await new Promise<boolean>((resolve) => {
      admin.getStatus({}, { deadline: Date.now() + 60_000 } as never, (error) => resolve(error === null));
    });
    if (answered) return;
    await sleep(20);
  }
}

/** Resolves with the bytes that its snapshots had. */
function agents(
  file: string,
  children: ChildProcess[],
  waiting: Map<string, (word: AgentWord & { kind: 'svid' }) => void>,
  failures: string[],
): Promise<number> {
  const child = fork(join(import.meta.dirname, 'programs/registry-agents.ts'), [file]);
  children.push(child);
  return new Promise((resolve, reject) => {
    child.on('message', (word: AgentWord) => {
      if (word.kind === 'synced') resolve(word.bytes);
      else if (word.kind === 'svid') waiting.get(word.entry)?.(word);
      else {
        failures.push(word.why);
        reject(new Error(word.why));
      }
    });
    child.once('exit', () => reject(new Error('the agents ended')));
  });
}

/** Sorted, ms. Entries are made at a steady rate, whether those before have arrived or not. */
async function measure(
  admin: ServerAdminClient,
  waiting: Map<string, (word: AgentWord & { kind: 'svid' }) => void>,
): Promise<number[]> {
  const times: number[] = [];
  const arrivals: Promise<void>[] = [];
  for (let i = 0; i < SAMPLES; i++) {
    const id = `timed-${i}`;
    const path = i % 2 === 0 ? `/timed/${i}` : `/service/${(i * 37) % SPIFFE_IDS}`;
    const labels = i % 2 === 0 ? { app: 'timed' } : labelsOf((i * 37) % SPIFFE_IDS);
    const begunMs = nowMs();
    arrivals.push(
      new Promise<void>((resolve) => {
        waiting.set(id, (word) => {
          times.push(word.svidMs - begunMs);
          resolve();
        });
      }),
    );
    const json = JSON.stringify({
      id,
      spiffeId: `spiffe://${DOMAIN}${path}`,
      node: nameOf((i * 7919) % AGENTS),
      selectors: ['unix:uid:1001'],
      labels,
    });
    admin.putEntry({ json, mode: 'create' }, (error: Error | null, _reply: JsonReply) => {
      if (error !== null) process.stderr.write(`registry: ${error.message}\n`);
    });
    await sleep(Math.max(0, 1000 / RATE - (nowMs() - begunMs)));
  }
  await Promise.race([Promise.all(arrivals), sleep(30_000)]);
  return times.sort((a, b) => a - b);
}

const labelsOf = (s: number) => ({ app: `app-${s % 500}`, tier: `tier-${s % 7}` });

function writeStore(dir: string): void {
  const store = new Store(join(dir, 'identity.db'));
  store.transaction(() => {
    for (let n = 0; n < AGENTS; n++) {
      store.putNode({
        name: nameOf(n),
        nodeId: store.next('node_id'),
        incarnation: 1,
        attestedAtMs: Date.now(),
        notAfterMs: Date.now() + 3_600_000,
        evicted: false,
        peerAddresses: [],
        usedIncarnation: 1,
        sessionIssued: 0,
        sessionConfirmed: 0,
        attestor: 'join_token',
      });
    }
    for (let i = 0; i < ENTRIES; i++) {
      const service = i % SPIFFE_IDS;
      store.putEntry({
        id: `entry-${i}`,
        origin: 'admin',
        spiffeId: spiffeId(`spiffe://${DOMAIN}/service/${service}`),
        node: nameOf((i * 31 + Math.floor(i / SPIFFE_IDS)) % AGENTS),
        selectors: [`unix:uid:${1000 + (i % 60_000)}`, 'unix:gid:100'],
        hint: '',
        labels: labelsOf(service),
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
}

/** Node SVIDs by the server's own authority, for each process those of its agents. */
async function writeAgents(dir: string): Promise<string[]> {
  const clock = { nowMs: () => Date.now(), bootNs: () => process.hrtime.bigint() };
  const ca = await openCertificateAuthority({ directory: join(dir, 'ca'), trustDomain: DOMAIN, clock });
  try {
    const nodes = await Promise.all(
      Array.from({ length: AGENTS }, async (_, n) => {
        const key = generateKey();
        const name = nameOf(n);
        const issued = await ca.issueNodeSvid({ csr: createCsr(key), name, incarnation: 1n, requester: 'bench' });
        if (!issued.ok) throw new Error(issued.error);
        const chain = issued.value.chain.map((der) => der.toString('base64'));
        return { spiffeId: nodeSpiffeId(DOMAIN, name), chain, key: privateKeyDer(key).toString('base64') };
      }),
    );
    return Array.from({ length: PROCESSES }, (_, i) => {
      const facts: AgentFacts = {
        address: `127.0.0.1:${PORT}`,
        trustDomain: DOMAIN,
        authorities: ca.bundle().authorities.map((der) => der.toString('base64')),
        nodes: nodes.filter((_node, n) => n % PROCESSES === i),
      };
      const file = join(dir, `agents-${i}.json`);
      writeFileSync(file, JSON.stringify(facts), { mode: 0o600 });
      return file;
    });
  } finally {
    ca.close();
  }
}

/** Returns the admin socket's path. */
function writeConfig(dir: string): string {
  const adminSocket = join(dir, 'admin.sock');
  const config = {
    apiVersion: 'countersign.dev/v1alpha1',
    kind: 'ServerConfig',
    trustDomain: DOMAIN,
    dataDir: dir,
    listen: { address: '127.0.0.1', port: PORT },
    adminSocket,
    nodes: Array.from({ length: AGENTS }, (_, n) => ({ name: nameOf(n), prefixes: [`10.${n >> 8}.${n & 255}.0/24`] })),
    audit: { dir: join(dir, 'audit') },
    logLevel: 'warn',
  };
  writeFileSync(join(dir, 'server.yaml'), stringify(config));
  return adminSocket;
}
