/** What a whole deployment shows of its verdicts: policies that only observe, the monitor, exemptions, explanations of anybody. */
import { type ChildProcess, spawn } from 'node:child_process';
import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, onTestFinished, test } from 'vitest';
import { BACKEND_HTTP_PORT } from '../stage/demo-spec.ts';
import { inNetns, run, sh, until } from '../stage/shell.ts';
import { Stage } from '../stage/stage.ts';
import { addUnderlayHost, netnsOf } from '../stage/topology.ts';
import { SLOW } from '../support/slow.ts';
import { editYaml, testStage } from './support/stage-spec.ts';
import { ask, drops, startBackend } from './support/stage-traffic.ts';

const CLI = join(import.meta.dirname, '../../src/cli/main.ts');
const example = testStage('observe', { workloads: ['frontend', 'intruder', 'backend'] });
const spec = {
  ...example,
  configure(dir: string) {
    example.configure(dir);
    // One policy selects backend: when it only observes, nothing else makes it default deny.
    for (const other of ['backend-monitor.yaml', 'backend-samples.yaml']) rmSync(join(dir, 'policies', other));
  },
};
const stage = new Stage(spec);
const port = String(BACKEND_HTTP_PORT);
const OUTSIDER = '10.77.0.66';

beforeAll(async () => {
  await stage.up(() => {});
  addUnderlayHost(spec, 'outsider', OUTSIDER, 'fd77::66');
  await startBackend(stage);
  expect(await ask(stage, 'frontend')).toBe(200);
});
afterAll(() => stage.down());

const reload = async () => {
  await stage.agentCli('node-a', 'policy', 'reload');
  await stage.agentCli('node-b', 'policy', 'reload');
};
const enforcement = async (mode: 'enforce' | 'observe') => {
  editYaml(join(stage.dir, 'policies/backend.yaml'), (policy) => {
    (policy.metadata as Record<string, unknown>).annotations = { 'countersign.dev/enforcement': mode };
  });
  await reload();
};

interface Event {
  readonly kind: string;
  readonly verdict?: string;
  readonly reason?: string;
  readonly source?: { readonly workload?: string };
  readonly destination?: { readonly workload?: string; readonly port?: number };
  readonly policy?: string;
  readonly enforcement?: string;
}
interface Status {
  readonly policy: { readonly observing: string[] };
  readonly exempt: string[];
  readonly unprotected: string[];
}

/** `countersign monitor -o json` on a node, until the test ends. */
function listen(node: string, ...args: string[]): { events: Event[]; child: ChildProcess } {
  const child = spawn(process.execPath, [CLI, 'monitor', '-o', 'json', '--socket', stage.agentSocket(node), ...args], {
    env: { ...process.env, ...stage.env },
  });
  onTestFinished(() => void child.kill());
  const events: Event[] = [];
  let rest = '';
  child.stdout.on('data', (chunk) => {
    const lines = `${rest}${chunk}`.split('\n');
    rest = lines.pop()!;
    events.push(...lines.map((line) => JSON.parse(line) as Event));
  });
  return { events, child };
}

/** Makes something happen until the listener has heard of it: it may not be there yet the first time. */
function heard(
  listener: { events: Event[] },
  act: () => Promise<unknown>,
  is: (event: Event) => boolean,
): Promise<Event> {
  return until('the monitor to tell of it', 15_000, async () => {
    await act();
    return listener.events.find(is);
  });
}

const observedOf = async (node: string, reason: string): Promise<number> => {
  const reply = (await stage.agentCli(node, 'drop', 'list')) as {
    drops: { reason: string; observedPackets: number }[];
  };
  return reply.drops.filter((d) => d.reason === reason).reduce((sum, d) => sum + d.observedPackets, 0);
};
const explain = (node: string, ...args: string[]) => stage.agentCli(node, 'explain', ...args);
const statusOf = async (node: string) => (await stage.status(node)) as unknown as Status;

test('while a policy only observes, what it would drop passes, is counted, told and logged, and explain says both', async () => {
  expect(await ask(stage, 'intruder', { timeoutS: 1 })).toBe(0);
  expect(await explain('node-b', 'intruder', 'backend', '--port', port)).toMatchObject({ verdict: 'deny' });
  await enforcement('observe');
  expect((await statusOf('node-b')).policy.observing).toEqual(['default/backend']);
  expect((await statusOf('node-b')).unprotected.join()).toContain('default/backend only observes');
  const [before, dropped] = [
    await observedOf('node-b', 'POLICY_DENIED'),
    await drops(stage, 'node-b', 'POLICY_DENIED'),
  ];
  const monitor = listen('node-b', '--verdict', 'observed', '--from', 'intruder', '--port', port);
  const event = await heard(
    monitor,
    () => ask(stage, 'intruder'),
    (e) => e.kind === 'packet.observed',
  );
  expect(event).toMatchObject({
    verdict: 'observed',
    reason: 'POLICY_DENIED',
    source: { workload: 'intruder' },
    destination: { workload: 'backend', port: BACKEND_HTTP_PORT },
  });
  expect(await ask(stage, 'intruder')).toBe(200);
  expect(await observedOf('node-b', 'POLICY_DENIED')).toBeGreaterThan(before);
  expect(await drops(stage, 'node-b', 'POLICY_DENIED')).toBe(dropped);
  expect(stage.audit('node-b').some((l) => l.kind === 'packet.observed' && l.reason === 'POLICY_DENIED')).toBe(true);
  const said = await explain('node-b', 'intruder', 'backend', '--port', port);
  expect(said).toMatchObject({ verdict: 'allow', observed: { verdict: 'deny' } });
  const rules = (await stage.agentCli('node-b', 'policy', 'list')) as { rules: Event[] };
  expect(rules.rules.filter((r) => r.policy === 'default/backend').every((r) => r.enforcement === 'observe')).toBe(
    true,
  );

  await enforcement('enforce');
  expect(await ask(stage, 'intruder', { timeoutS: 1 })).toBe(0);
  expect(await drops(stage, 'node-b', 'POLICY_DENIED')).toBeGreaterThan(dropped);
  expect(await ask(stage, 'frontend')).toBe(200);
});

test('sampled verdicts name workloads, ports, rule and authentication, while somebody listens and no longer', async () => {
  const monitor = listen('node-a', '--verdicts', '--verdict', 'allow', '--from', 'frontend', '--protocol', 'tcp');
  const event = await heard(
    monitor,
    () => ask(stage, 'frontend'),
    (e) => e.kind === 'packet.allowed' && e.destination?.port === BACKEND_HTTP_PORT,
  );
  expect(event).toMatchObject({
    verdict: 'allow',
    source: { workload: 'frontend', spiffeId: 'spiffe://example.org/frontend', node: 'node-a' },
    destination: { workload: 'backend', node: 'node-b' },
    policy: expect.stringMatching(/backend\.yaml:\d+ default\/backend$/),
    detail: { auth_type: 'spiffe', protocol: 'tcp', direction: 'egress' },
  });
  monitor.child.kill();
  const drop = listen('node-a', '--verdict', 'drop', '--reason', 'POLICY_DENIED');
  await heard(
    drop,
    () => ask(stage, 'intruder', { timeoutS: 0.5 }),
    (e) => e.kind === 'packet.dropped',
  ).catch(() => {});
  expect(drop.events.every((e) => e.verdict === 'drop')).toBe(true);
});

test('monitor prints a line for people, and a filter that nothing can match is refused', async () => {
  const child = spawn(
    process.execPath,
    [CLI, 'monitor', '--socket', stage.agentSocket('node-b'), '--kind', 'packet.dropped', '--to', 'backend'],
    { env: { ...process.env, ...stage.env } },
  );
  onTestFinished(() => void child.kill());
  let out = '';
  child.stdout.on('data', (chunk) => {
    out += chunk;
  });
  // Among them may be a straggler of a connection that an earlier test let through.
  const denied =
    /^\d\d:\d\d:\d\d\.\d{3} DROP +POLICY_DENIED ingress tcp intruder 10\.77\.1\.11:\d+ → backend 10\.77\.2\.10:8080/m;
  await until('the line of a denied packet', 15_000, async () => {
    await ask(stage, 'intruder', { timeoutS: 0.5 });
    return denied.test(out) ? true : undefined;
  });
  for (const line of out.trimEnd().split('\n'))
    expect(line).toMatch(/^\d\d:\d\d:\d\d\.\d{3} DROP +[A-Z_]+ .* → backend /);
  const wrong = await stage.cliRaw('monitor', '--reason', 'NONSENSE', '--socket', stage.agentSocket('node-b'));
  expect(wrong).toMatchObject({ status: 2, stderr: expect.stringContaining('NONSENSE') });
});

test('drops are listed by pair of identities, with names', async () => {
  await ask(stage, 'intruder', { timeoutS: 0.5 });
  const { pairs } = (await stage.agentCli('node-b', 'drop', 'list', '--pairs')) as { pairs: Event[] };
  expect(pairs).toContainEqual(
    expect.objectContaining({
      localName: 'spiffe://example.org/backend',
      remoteName: 'spiffe://example.org/intruder',
      reason: 'POLICY_DENIED',
      direction: 'ingress',
    }),
  );
});

test('explain knows the host, other nodes, the world and addresses that are nobody', async () => {
  const at = (from: string) => explain('node-b', from, 'backend', '--port', port);
  expect(await at('203.0.113.9')).toMatchObject({ verdict: 'deny', from: { entity: 'world', address: '203.0.113.9' } });
  expect(await at('10.77.0.2')).toMatchObject({ from: { entity: 'host', identity: 1 } });
  expect(await at('169.254.77.1')).toMatchObject({ from: { entity: 'host' } });
  expect(await at('10.77.0.1')).toMatchObject({ from: { entity: 'remote-node', identity: 6 } });
  expect(await at('10.77.1.200')).toMatchObject({ verdict: 'deny', from: { entity: 'nobody' } });
  expect(await at('world')).toMatchObject({ from: { entity: 'world', identity: 2 } });
});

test('rules on CIDRs and entities decide about those who are no workload, and explain names the rule', async () => {
  const host = () =>
    run('nsenter', inNetns(stage.netns('node-b'), 'curl', '-s', '-m', '1', `http://10.77.2.10:${port}/`).slice(1));
  expect((await host()).status).not.toBe(0);
  const file = join(stage.dir, 'policies/entities.yaml');
  writeFileSync(
    file,
    `apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: { name: entities }
spec:
  endpointSelector: { matchLabels: { app: backend } }
  ingress:
    - fromEntities: [host]
      toPorts: [{ ports: [{ port: "${port}", protocol: TCP }] }]
    - fromCIDRSet:
        - { cidr: 203.0.113.0/24, except: [203.0.113.128/25] }
`,
  );
  await reload();
  expect((await host()).status).toBe(0);
  expect(await explain('node-b', '203.0.113.9', 'backend', '--port', port)).toMatchObject({
    verdict: 'allow',
    policy: { rule: { policy: 'default/entities', path: 'spec.ingress[1]', file, line: expect.any(Number) } },
  });
  expect(await explain('node-b', '203.0.113.200', 'backend', '--port', port)).toMatchObject({ verdict: 'deny' });
  rmSync(file);
  await reload();
  expect((await host()).status).not.toBe(0);
});

test('a probe of the own host passes when it is exempt, and nobody else by that', async () => {
  const probe = (netns: string) =>
    run('nsenter', inNetns(netns, 'curl', '-s', '-m', '1', `http://10.77.2.10:${port}/`).slice(1));
  expect((await probe(stage.netns('node-b'))).status).not.toBe(0);
  expect(await statusOf('node-b')).toMatchObject({ exempt: [] });
  const configFile = join(stage.dir, 'agent-node-b.yaml');
  const before = readFileSync(configFile, 'utf8');
  editYaml(configFile, (config) => {
    config.exempt = { hostProbes: true };
  });
  await stage.stop('node-b');
  await stage.startAgent('node-b');
  expect((await probe(stage.netns('node-b'))).status).toBe(0);
  expect((await statusOf('node-b')).exempt).toEqual([expect.stringContaining('hostProbes')]);
  expect((await probe(stage.netns('node-a'))).status).not.toBe(0);
  expect((await probe(netnsOf(spec, 'outsider'))).status).not.toBe(0);
  writeFileSync(configFile, before);
  await stage.stop('node-b');
  await stage.startAgent('node-b');
  expect((await probe(stage.netns('node-b'))).status).not.toBe(0);
});

test('with encryption on, what is vouched for goes through the tunnel or not at all, even where clear is allowed', async () => {
  for (const node of ['node-a', 'node-b']) {
    editYaml(join(stage.dir, `agent-${node}.yaml`), (config) => {
      config.authentication = { allowUnboundPath: true };
    });
    await stage.stop(node);
    await stage.startAgent(node);
  }
  await until('traffic', 20_000, async () => ((await ask(stage, 'frontend')) === 200 ? true : undefined));
  const device = sh('nsenter', [`--net=/run/netns/${stage.netns('node-a')}`, 'ip', '-o', 'link'])
    .split('\n')
    .map((line) => /^\d+: (cs-[^:@]+-a)[:@]/.exec(line)?.[1])
    .find((name) => name !== undefined)!;
  const before = await drops(stage, 'node-a', 'UNENCRYPTED');
  const clear: string[] = [];
  const capture = spawn('nsenter', [
    `--net=/run/netns/${stage.netns('under')}`,
    'tcpdump',
    '-nlU',
    '--immediate-mode',
    '-i',
    'br0',
    `host 10.77.2.10 and tcp port ${port}`,
  ]);
  onTestFinished(() => void capture.kill());
  capture.stdout.on('data', (chunk) => clear.push(String(chunk)));
  await new Promise<void>((resolve) => capture.stderr.on('data', (c) => String(c).includes('listening') && resolve()));
  // The route into the tunnel goes, the route over the underlay stays: routing alone would send it in clear.
  sh('nsenter', [`--net=/run/netns/${stage.netns('node-a')}`, 'ip', 'route', 'flush', 'dev', device]);
  expect(await ask(stage, 'frontend', { timeoutS: 2 * SLOW })).toBe(0);
  expect(await drops(stage, 'node-a', 'UNENCRYPTED')).toBeGreaterThan(before);
  expect(clear).toEqual([]);
});
