/** Bad input and bad manners against a whole deployment: each is refused by name, and nobody else is harmed. */
import { spawn } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { inNetns, type Output, run, sh, until } from '../stage/shell.ts';
import { type AuditLine, Stage } from '../stage/stage.ts';
import { addUnderlayHost, netnsOf } from '../stage/topology.ts';
import { editYaml, NODE_C, testStage } from './support/stage-spec.ts';
import { ask, drops, startBackend, startTraffic, writePolicy } from './support/stage-traffic.ts';

const CLI = join(import.meta.dirname, '../../src/cli/main.ts');
const SUPPORT = join(import.meta.dirname, 'support');
const OUTSIDER = '10.77.0.66';

const spec = testStage('misuse', {
  workloads: ['frontend', 'frontend6', 'intruder', 'monitor', 'backend'],
  third: true,
});
const stage = new Stage(spec);
const outsider = netnsOf(spec, 'outsider');
const [nodeA, nodeB] = spec.nodes as [(typeof spec.nodes)[0], (typeof spec.nodes)[0]];

beforeAll(async () => {
  await stage.up(() => {});
  addUnderlayHost(spec, 'outsider', OUTSIDER, 'fd77::66');
  await startBackend(stage);
  // Its credentials are misused below: the node itself is gone.
  await stage.stop(NODE_C.name);
  expect(await ask(stage, 'frontend')).toBe(200);
});
afterAll(() => stage.down());

const nodeProgram = (netns: string, program: string, ...args: string[]) => {
  const argv = inNetns(netns, process.execPath, join(SUPPORT, program), ...args);
  return run(argv[0]!, argv.slice(1), { timeoutMs: 30_000 });
};

/** Runs `countersign ROLE run` in a namespace until it ends; the promise is that of its end. */
function runRole(netns: string, role: 'agent' | 'server', config: string, timeoutMs = 20_000): Promise<Output> {
  const argv = inNetns(netns, process.execPath, CLI, role, 'run', '--config', config);
  return new Promise((resolve) => {
    const child = spawn(argv[0]!, argv.slice(1), { env: { ...process.env, ...stage.env } });
    let [stdout, stderr] = ['', ''];
    child.stdout.on('data', (chunk: Buffer) => {
      stdout += chunk.toString();
    });
    child.stderr.on('data', (chunk: Buffer) => {
      stderr += chunk.toString();
    });
    const timer = setTimeout(() => child.kill('SIGTERM'), timeoutMs);
    child.once('close', (code) => {
      clearTimeout(timer);
      resolve({ status: code ?? 124, stdout, stderr });
    });
  });
}

const audited = (log: string, holds: (line: AuditLine) => boolean, what: string) =>
  until(`${log} to have in its audit log: ${what}`, 10_000, () => stage.audit(log).find(holds));

describe('a configuration that is wrong', () => {
  interface Case {
    readonly what: string;
    readonly role: 'agent' | 'server';
    readonly from: string | RegExp;
    readonly to: string;
    readonly field: string;
    /** What the line that is named holds. */
    readonly line: string;
  }
  const cases: readonly Case[] = [
    {
      what: 'an unknown key of the agent',
      role: 'agent',
      from: '  underlay: under0',
      to: '  underlay: under0\n  nickname: alpha',
      field: 'node.nickname',
      line: 'nickname: alpha',
    },
    {
      what: 'a wrong type of the agent',
      role: 'agent',
      from: 'listen: ["10.77.0.1:4250"]',
      to: 'listen: 4250',
      field: 'peer.listen',
      line: 'listen: 4250',
    },
    {
      what: 'a bundle file that is not there',
      role: 'agent',
      from: /bundleFile: .*/,
      to: 'bundleFile: /nowhere/bundle.pem',
      field: 'server.bundleFile',
      line: 'bundleFile:',
    },
    {
      what: 'a policy directory that is not there',
      role: 'agent',
      from: /directory: .*/,
      to: 'directory: /nowhere/policies',
      field: 'policies.directory',
      line: 'directory:',
    },
    {
      what: 'an underlay that is not there',
      role: 'agent',
      from: 'underlay: under0',
      to: 'underlay: nothing0',
      field: 'node.underlay',
      line: 'underlay:',
    },
    {
      what: 'an address that a workload has twice',
      role: 'agent',
      from: 'addresses: [10.77.1.11,',
      to: 'addresses: [10.77.1.11, 10.77.1.11,',
      field: 'endpoints[1].addresses',
      line: 'fd77:1::11',
    },
    {
      what: 'an unknown key of the server',
      role: 'server',
      from: '  port: 8443',
      to: '  port: 8443\n  ports: [8443]',
      field: 'listen.ports',
      line: 'ports: [8443]',
    },
    {
      what: 'a wrong type of the server',
      role: 'server',
      from: 'port: 8443',
      to: 'port: "8443"',
      field: 'listen.port',
      line: 'port: "8443"',
    },
    {
      what: 'an entries file that is not there',
      role: 'server',
      from: /entriesFile: .*/,
      to: 'entriesFile: /nowhere/entries.yaml',
      field: 'entriesFile',
      line: 'entriesFile:',
    },
    {
      what: 'a prefix of a node with host bits in it',
      role: 'server',
      from: '10.77.2.0/24',
      to: '10.77.2.1/24',
      field: 'nodes[1].prefixes[0]',
      line: '10.77.2.1/24',
    },
  ];

  const scratch = join(stage.dir, 'scratch');
  const bpffs = join(scratch, 'bpf');

  /** All that an agent or a server leaves when it has begun, seen from outside. */
  const traces = () => ({
    files: existsSync(scratch) ? readdirSync(scratch).sort() : [],
    pins: readdirSync(bpffs),
    devices: sh('nsenter', [`--net=/run/netns/${outsider}`, 'ip', '-o', 'link']).split('\n').length,
    processes: sh('ip', ['netns', 'pids', outsider]).trim(),
  });

  function prepare(role: Case['role']): string {
    if (!existsSync(bpffs)) {
      mkdirSync(bpffs, { recursive: true });
      sh('mount', ['-t', 'bpf', 'bpf', bpffs]);
    }
    const example = role === 'agent' ? 'agent-node-a.yaml' : 'server.yaml';
    return readFileSync(join(stage.dir, example), 'utf8')
      .replace(/^dataDir: .*/m, `dataDir: ${scratch}/data`)
      .replace(/^bpffs: .*/m, `bpffs: ${bpffs}`)
      .replace(/admin: .*/, `admin: ${scratch}/admin.sock`)
      .replace(/adminSocket: .*/, `adminSocket: ${scratch}/admin.sock`)
      .replace(/workload: .*/, `workload: ${scratch}/workload.sock`)
      .replace(/dir: .*audit/, `dir: ${scratch}/audit`)
      .replaceAll('10.77.0.10', OUTSIDER);
  }

  test.each(cases)('$what: file, line and field are named, the exit status is 2, nothing has begun', async (c) => {
    const good = prepare(c.role);
    const text = good.replace(c.from, c.to);
    expect(text).not.toBe(good);
    const file = join(scratch, `${c.role}.yaml`);
    writeFileSync(file, text);
    const before = traces();
    const ended = await runRole(outsider, c.role, file);
    const line = text.split('\n').findIndex((l) => l.includes(c.line)) + 1;
    expect(ended.stderr).toContain(`${file}:${line}: ${c.field}: `);
    expect(ended.status).toBe(2);
    expect(traces()).toEqual(before);
    rmSync(file);
  });

  test.each(['agent', 'server'] as const)('a configuration file of the %s that is not there is named', async (role) => {
    const ended = await runRole(outsider, role, '/nowhere/config.yaml');
    expect(ended.status).toBe(2);
    expect(ended.stderr).toContain('/nowhere/config.yaml: the file does not exist');
  });
});

test('a policy with an unsupported field is refused by name and path, and the policies in force stay', async () => {
  const before = await stage.agentCli('node-b', 'policy', 'list');
  const traffic = await startTraffic(stage, 'frontend', 500);
  // Would allow the intruder if its first rule were taken and its second left out.
  const path = writePolicy(
    stage,
    'zz-layer-seven.yaml',
    `apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata:
  name: layer-seven
spec:
  endpointSelector:
    matchLabels:
      app: backend
  ingress:
    - fromEndpoints:
        - matchLabels:
            app: intruder
    - toPorts:
        - ports:
            - port: "8080"
              protocol: TCP
          rules:
            http:
              - method: GET
`,
  );
  for (const node of ['node-a', 'node-b']) {
    const refused = await audited(node, (l) => l.kind === 'policy.refused', 'policy.refused');
    expect(refused.reason).toBe('POLICY_INVALID');
    expect(refused.detail?.problem).toContain(`${path}:`);
    expect(refused.detail?.problem).toContain('spec.ingress[1].toPorts[0].rules');
    const status = (await stage.status(node)) as unknown as { policy: { problem?: string } };
    expect(status.policy.problem).toContain('spec.ingress[1].toPorts[0].rules');
  }
  expect(await stage.agentCli('node-b', 'policy', 'list')).toEqual(before);
  expect(await ask(stage, 'intruder', { timeoutS: 1 })).toBe(0);
  expect(await ask(stage, 'frontend')).toBe(200);
  const counted = await traffic.stop();
  expect(counted.sent).toBeGreaterThan(500);
  expect(counted.lost, counted.gaps).toBe(0);

  rmSync(path);
  await until('the problem to be gone', 10_000, async () => {
    const status = (await stage.status('node-b')) as unknown as { policy: { problem?: string } };
    return status.policy.problem === undefined ? true : undefined;
  });
  expect(await stage.agentCli('node-b', 'policy', 'list')).toEqual(before);
});

test('whatever a peer sends, its connection is closed with a reason in the audit log, and traffic loses nothing', async () => {
  const traffic = await startTraffic(stage, 'frontend', 500);
  const attacked = await nodeProgram(
    outsider,
    'stage-peer-attack.ts',
    nodeA.underlay4,
    '4250',
    join(stage.dir, NODE_C.name, 'node/node-identity.json'),
    join(stage.dir, 'node-b/node/node-identity.json'),
  );
  expect(attacked.stderr).toBe('');
  const closed = JSON.parse(attacked.stdout) as Record<string, number | null>;
  const reasons = {
    silent: 'PEER_HANDSHAKE_TIMEOUT',
    garbage: 'PEER_HANDSHAKE_FAILED',
    http: 'PEER_HANDSHAKE_FAILED',
    noCertificate: 'CERT_CHAIN_EMPTY',
    silentAfterTls: 'PEER_HELLO_TIMEOUT',
    oversizedFrame: 'PEER_FRAME_TOO_LARGE',
    malformedHello: 'PEER_FRAME_MALFORMED',
    secondLeaf: 'CERT_CHAIN_SECOND_LEAF',
    wrongAlpn: 'PEER_ALPN_MISMATCH',
  };
  expect(Object.keys(closed).sort()).toEqual(Object.keys(reasons).sort());
  for (const [attack, ms] of Object.entries(closed)) expect(ms, `${attack} was not closed`).not.toBeNull();
  for (const reason of new Set(Object.values(reasons))) {
    const line = await audited('node-a', (l) => l.reason === reason && l.source?.address === OUTSIDER, reason);
    expect(line.kind).toMatch(/^peer\.(refused|closed)$/);
  }
  const counted = await traffic.stop();
  expect(counted.sent).toBeGreaterThan(1000);
  expect(counted.lost, counted.gaps).toBe(0);
  expect(await ask(stage, 'frontend')).toBe(200);
});

test('a workload cannot reach the peer port of any node, and each try is counted', async () => {
  for (const { underlay4 } of [nodeA, nodeB]) {
    const before = await drops(stage, 'node-a', 'CONTROL_PLANE');
    const answer = await stage.runIn('intruder', 'curl', '-sS', '-m', '1', `http://${underlay4}:4250/`);
    expect(answer.status, answer.stderr).toBe(28); // curl: timed out
    expect(await drops(stage, 'node-a', 'CONTROL_PLANE')).toBeGreaterThan(before);
  }
});

test("a workload that sends from another workload's address gets nothing through", async () => {
  const frontend = stage.workload('frontend');
  const backend = stage.workload('backend');
  const traffic = await startTraffic(stage, 'frontend', 200);
  const before = await drops(stage, 'node-a', 'INVALID_SOURCE_IP');
  await stage.runIn('intruder', 'ip', 'addr', 'add', `${frontend.address4}/32`, 'dev', 'lo');
  const netns = stage.netns('intruder');
  const spoofed = await nodeProgram(netns, 'stage-udp-send.ts', frontend.address4, backend.address4, '9999', '20');
  expect(spoofed.stderr).toBe('');
  await until('all to be counted as INVALID_SOURCE_IP', 5000, async () =>
    (await drops(stage, 'node-a', 'INVALID_SOURCE_IP')) - before >= 20 ? true : undefined,
  );
  const counted = await traffic.stop();
  expect(counted.foreign).toBe(0);
  expect(counted.lost, counted.gaps).toBe(0);
  await stage.runIn('intruder', 'ip', 'addr', 'del', `${frontend.address4}/32`, 'dev', 'lo');
});

test("plaintext on the underlay with a proven workload's source address does not reach the backend", async () => {
  const frontend = stage.workload('frontend');
  const backend = stage.workload('backend');
  const traffic = await startTraffic(stage, 'frontend', 200);
  const before = await drops(stage, 'node-b', 'UNENCRYPTED');
  sh('nsenter', [`--net=/run/netns/${outsider}`, 'ip', 'addr', 'add', `${frontend.address4}/32`, 'dev', 'lo']);
  sh('nsenter', [`--net=/run/netns/${outsider}`, 'ip', 'route', 'add', nodeB.prefix4, 'via', nodeB.underlay4]);
  const sent = await nodeProgram(outsider, 'stage-udp-send.ts', frontend.address4, backend.address4, '9999', '20');
  expect(sent.stderr).toBe('');
  await until('all to be counted as UNENCRYPTED', 5000, async () =>
    (await drops(stage, 'node-b', 'UNENCRYPTED')) - before >= 20 ? true : undefined,
  );
  const counted = await traffic.stop();
  expect(counted.foreign).toBe(0);
  expect(counted.lost, counted.gaps).toBe(0);
});

test('a process that no entry knows fetches no SVID', async () => {
  const answer = await stage.cliRaw('svid', 'fetch', '--socket', stage.workloadSocket('node-a'));
  expect(answer.status).toBe(1);
  expect(answer.stdout).toBe('');
  expect(answer.stderr).toContain('no registration entry matches');
  await audited('node-a', (l) => l.kind === 'workload.refused' && l.reason === 'WORKLOAD_NO_IDENTITY', 'the refusal');
});

/** The configuration of a node as another machine would have it: nothing shared but name, server and token. */
function elsewhere(node: string, name: string): string {
  const dir = join(stage.dir, name);
  mkdirSync(join(dir, 'bpf'), { recursive: true });
  sh('mount', ['-t', 'bpf', 'bpf', join(dir, 'bpf')]);
  // Beside the others': where a later run looks for the names of devices that a killed one left.
  const file = join(stage.dir, `agent-${name}.yaml`);
  writeFileSync(file, readFileSync(join(stage.dir, `agent-${node}.yaml`)));
  editYaml(file, (config) => {
    config.dataDir = join(dir, 'data');
    config.bpffs = join(dir, 'bpf');
    config.peer = { listen: [`${OUTSIDER}:4250`] };
    config.sockets = { admin: join(dir, 'admin.sock'), workload: join(dir, 'workload.sock') };
    config.server = { ...(config.server as object), joinTokenFile: join(dir, 'token') };
    config.endpoints = [];
    config.encryption = { wireguard: { device: 'cs-misuse-x' } };
  });
  return file;
}

async function writeToken(node: string, name: string): Promise<string> {
  const args = ['token', 'create', '--node', node, '--socket', stage.serverSocket];
  const { token } = (await stage.cli(...args, '-o', 'json')) as { token: string };
  writeFileSync(join(stage.dir, name, 'token'), token, { mode: 0o600 });
  return token;
}

test('a second agent with the name of a living one is refused, on its machine and elsewhere, and the first is unharmed', async () => {
  const incarnationOf = async () => {
    const status = (await stage.status('node-a')) as unknown as { node: { incarnation: number } };
    return status.node.incarnation;
  };
  const before = await incarnationOf();
  const traffic = await startTraffic(stage, 'frontend', 500);

  const same = await runRole(stage.netns(NODE_C.name), 'agent', join(stage.dir, 'agent-node-a.yaml'));
  expect(same.status).toBe(1);
  expect(same.stderr).toContain('writes this audit log; stop it first');

  const other = elsewhere('node-a', 'second');
  await writeToken('node-a', 'second');
  const refused = await runRole(outsider, 'agent', other, 40_000);
  expect(refused.status).toBe(1);
  expect(refused.stderr).toContain('ATTEST_NODE_EXISTS');
  await audited('server', (l) => l.kind === 'node.attest_refused' && l.reason === 'ATTEST_NODE_EXISTS', 'the refusal');

  const counted = await traffic.stop();
  expect(counted.lost, counted.gaps).toBe(0);
  expect(await incarnationOf()).toBe(before);
  expect(await ask(stage, 'frontend')).toBe(200);
});

test('a join token works once', async () => {
  const first = elsewhere(NODE_C.name, 'joins');
  const token = await writeToken(NODE_C.name, 'joins');
  stage.spawn('joins', inNetns(outsider, process.execPath, CLI, 'agent', 'run', '--config', first));
  await until('the first to join', 20_000, () => (existsSync(join(stage.dir, 'joins/admin.sock')) ? true : undefined));
  expect(existsSync(join(stage.dir, 'joins/token'))).toBe(false);
  await stage.stop('joins');

  const again = elsewhere(NODE_C.name, 'joins-again');
  writeFileSync(join(stage.dir, 'joins-again/token'), token, { mode: 0o600 });
  const refused = await runRole(outsider, 'agent', again);
  expect(refused.status).toBe(1);
  expect(refused.stderr).toContain('ATTEST_TOKEN_UNKNOWN');
  expect(refused.stderr).not.toContain(token);
  await audited(
    'server',
    (l) => l.kind === 'node.attest_refused' && l.reason === 'ATTEST_TOKEN_UNKNOWN',
    'the refusal',
  );
});
