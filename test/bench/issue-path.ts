/** A real identity server process and an agent's line to it, for `bench issue`: what both spend on an SVID, from the agent's request to its answer. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { type AddressInfo, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { credentials } from '@grpc/grpc-js';
import { stringify } from 'yaml';
import { type CreateJoinTokenReply, ServerAdminClient } from '../../proto/gen/countersign/admin/v1/admin.ts';
import { connectServer, type ServerClient } from '../../src/agent/server-client/client.ts';
import { createLogger } from '../../src/base/log.ts';
import type { NodeName, TrustDomain } from '../../src/model/ids.ts';
import { decodePem } from '../../src/pki/pem.ts';

const NODE = 'node-a' as NodeName;
/** Of the agent's node; requests go round them. */
const ENTRIES = 64;
/** Of /proc/PID/stat: USER_HZ is 100 on every Linux that user space sees. */
const TICK_MS = 10;

const root = join(import.meta.dirname, '../..');
const entryId = (n: number) => `workload-${n % ENTRIES}`;

export interface IssuePath {
  /** Certificates for all of them, `batch` to a call and `inFlight` calls at a time. @throws Error if one is refused */
  issueAll(csrs: readonly Buffer[], batch: number, inFlight: number): Promise<void>;
  /** As many JWT-SVIDs, each for one audience. @throws as issueAll */
  jwtAll(times: number, inFlight: number): Promise<void>;
  /** CPU time so far, ms. */
  spent(): { readonly server: number; readonly agent: number };
  close(): Promise<void>;
}

export async function openIssuePath(): Promise<IssuePath> {
  const dir = mkdtempSync(join(tmpdir(), 'countersign-bench-path-'));
  const port = await freePort();
  const server = startServer(dir, port);
  let client: ServerClient | undefined;
  const close = async () => {
    client?.close();
    if (server.exitCode === null && server.signalCode === null) {
      const exited = once(server, 'exit');
      server.kill('SIGKILL');
      await exited;
    }
    rmSync(dir, { recursive: true, force: true });
  };
  try {
    const token = await joinToken(join(dir, 'admin.sock'), server);
    client = await connectServer({
      addresses: [`127.0.0.1:${port}`],
      trustDomain: 'example.org' as TrustDomain,
      bundle: decodePem(readFileSync(join(dir, 'data/bundle.pem'), 'utf8'), 'CERTIFICATE'),
      nodeName: NODE,
      joinToken: async () => token,
      stateDir: join(dir, NODE),
      peerAddresses: ['127.0.0.1:4250'],
      clock: { nowMs: () => Date.now(), bootNs: () => process.hrtime.bigint() },
      log: createLogger('bench', 'silent'),
      audit: { emit: () => {} },
    });
  } catch (thrown) {
    await close();
    throw thrown;
  }
  const agent = client;
  return {
    async issueAll(csrs, batch, inFlight) {
      let at = 0;
      const caller = async () => {
        while (at < csrs.length) {
          const from = at;
          at += batch;
          const results = await agent.issue(
            csrs.slice(from, from + batch).map((csr, i) => ({ entryId: entryId(from + i), csr })),
          );
          for (const result of results) if (!result.ok) throw new Error(`not issued: ${result.error}`);
        }
      };
      await Promise.all(Array.from({ length: inFlight }, caller));
    },
    async jwtAll(times, inFlight) {
      let at = 0;
      const caller = async () => {
        while (at < times) {
          await agent.issueJwt(entryId(at++), ['db']);
        }
      };
      await Promise.all(Array.from({ length: inFlight }, caller));
    },
    spent() {
      const { user, system } = process.cpuUsage();
      return { server: cpuMsOf(server.pid!), agent: (user + system) / 1000 };
    },
    close,
  };
}

/** One that nobody listens on now. */
async function freePort(): Promise<number> {
  const probe = createServer().listen(0, '127.0.0.1');
  await once(probe, 'listening');
  const { port } = probe.address() as AddressInfo;
  probe.close();
  await once(probe, 'close');
  return port;
}

function startServer(dir: string, port: number): ChildProcess {
  const apiVersion = 'countersign.dev/v1alpha1';
  const entries = Array.from({ length: ENTRIES }, (_, n) => ({
    id: entryId(n),
    spiffeId: `spiffe://example.org/${entryId(n)}`,
    node: NODE,
    selectors: ['unix:uid:1001'],
  }));
  writeFileSync(join(dir, 'entries.yaml'), stringify({ apiVersion, kind: 'RegistrationEntries', entries }));
  const config = {
    apiVersion,
    kind: 'ServerConfig',
    trustDomain: 'example.org',
    dataDir: join(dir, 'data'),
    listen: { address: '127.0.0.1', port },
    adminSocket: join(dir, 'admin.sock'),
    entriesFile: join(dir, 'entries.yaml'),
    nodes: [{ name: NODE, prefixes: ['10.77.1.0/24'] }],
    audit: { dir: join(dir, 'audit') },
    // one node asks for what all together would
    limits: { svidsPerNode: 1_000_000 },
    logLevel: 'warn',
  };
  writeFileSync(join(dir, 'server.yaml'), stringify(config));
  return spawn(join(root, 'bin/countersign'), ['server', 'run', '--config', join(dir, 'server.yaml')], {
    stdio: ['ignore', 'ignore', 'inherit'],
  });
}

async function joinToken(socket: string, server: ChildProcess): Promise<string> {
  const admin = new ServerAdminClient(`unix:${socket}`, credentials.createInsecure());
  try {
    for (;;) {
      if (server.exitCode !== null) throw new Error('the server ended');
      const token = await new Promise<string | undefined>((resolve) => {
        admin.createJoinToken({ nodeName: NODE, ttlSeconds: 60 }, (error, reply: CreateJoinTokenReply) => {
          resolve(error === null ? reply.token : undefined);
        });
      });
      if (token !== undefined) return token;
      await sleep(20);
    }
  } finally {
    admin.close();
  }
}

/** utime and stime (proc(5)): the 12th and 13th field after the name, which may hold spaces. */
function cpuMsOf(pid: number): number {
  const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return (Number(fields[11]) + Number(fields[12])) * TICK_MS;
}
