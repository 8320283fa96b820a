/** Policies for a node itself, with real stacks: who may reach it, whom it may reach, and what none of them cuts off. */
import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, expect, test } from 'vitest';
import { inNetns, until } from '../stage/shell.ts';
import { Stage } from '../stage/stage.ts';
import { addUnderlayHost } from '../stage/topology.ts';
import { curl, url } from '../stage/tour/http.ts';
import { editYaml, testStage } from './support/stage-spec.ts';
import { ask, drops, saying, startBackend, writePolicy } from './support/stage-traffic.ts';

const example = testStage('hostpol', { workloads: ['frontend', 'frontend6', 'monitor', 'backend'] });
const spec = {
  ...example,
  configure(dir: string) {
    example.configure(dir);
    editYaml(join(dir, 'agent-node-a.yaml'), (config) => {
      (config.node as Record<string, unknown>).labels = { role: 'edge' };
    });
  },
};
const stage = new Stage(spec);
const OUTSIDE = { v4: '10.77.0.66', v6: 'fd77::66' };
const NODE_A = { v4: '10.77.0.1', v6: 'fd77::1' };
const NODE_B = { v4: '10.77.0.2', v6: 'fd77::2' };
/** Stands for ssh. */
const ADMIN = 2222;
const OTHER = 2223;
const QUICKLY = { timeoutS: 1 };
const HTTP_SERVER = join(import.meta.dirname, '../stage/programs/http-server.ts');

const open = async (name: string, port: number): Promise<void> => {
  const process_ = `${name}-${port}`;
  stage.spawn(process_, inNetns(stage.netns(name), process.execPath, HTTP_SERVER, '20099', String(port)));
  await saying(stage, process_, 'listening');
};
/** HTTP status; 0: no answer. */
const reach = async (from: string, address: string, port: number) =>
  (await curl(stage, from, url(address, port), QUICKLY)).status;
const fromOutside = async (port: number) => [
  await reach('outside', NODE_A.v4, port),
  await reach('outside', NODE_A.v6, port),
];
const BOTH = [200, 200];
const NEITHER = [0, 0];

const nodePolicy = (rules: string) => `apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: { name: node }
spec:
  nodeSelector: { matchLabels: { role: edge } }
${rules}`;
const adminFromOutside = nodePolicy(`  ingress:
    - fromCIDR: [${OUTSIDE.v4}/32, "${OUTSIDE.v6}/128"]
      toPorts: [{ ports: [{ port: "${ADMIN}", protocol: TCP }] }]
`);
const denyAll = nodePolicy('  ingress: [{}]\n  egress: [{}]\n');

async function inForce(text: string | undefined): Promise<void> {
  if (text === undefined) rmSync(join(stage.dir, 'policies/node.yaml'), { force: true });
  else writePolicy(stage, 'node.yaml', text);
  for (const node of ['node-a', 'node-b']) await stage.agentCli(node, 'policy', 'reload');
}

beforeAll(async () => {
  await stage.up(
    () => {},
    () => addUnderlayHost(spec, 'outside', OUTSIDE.v4, OUTSIDE.v6),
  );
  await startBackend(stage);
  for (const node of ['node-a', 'node-b', 'outside']) await open(node, ADMIN);
  await open('node-a', OTHER);
  await open('monitor', ADMIN);
  expect(await ask(stage, 'frontend')).toBe(200);
});
afterEach(() => inForce(undefined));
afterAll(() => stage.down());

test('while no policy selects the node, everybody reaches it and it reaches everybody', async () => {
  expect([await fromOutside(ADMIN), await fromOutside(OTHER)]).toEqual([BOTH, BOTH]);
  expect(await reach('node-a', OUTSIDE.v4, ADMIN)).toBe(200);
  expect(await reach('frontend', NODE_A.v4, OTHER)).toBe(200);
});

test('only what its policy allows comes in; it goes on reaching others, and nodes without the label are as before', async () => {
  await inForce(adminFromOutside);
  const before = await drops(stage, 'node-a', 'POLICY_DENIED');
  expect([await fromOutside(ADMIN), await fromOutside(OTHER)]).toEqual([BOTH, NEITHER]);
  expect(await drops(stage, 'node-a', 'POLICY_DENIED')).toBeGreaterThan(before);
  expect(await reach('node-b', NODE_A.v4, ADMIN)).toBe(0);
  // Answers to what the node opened pass.
  expect(await reach('node-a', OUTSIDE.v4, ADMIN)).toBe(200);
  expect(await reach('node-a', OUTSIDE.v6, ADMIN)).toBe(200);
  expect(await reach('node-a', NODE_B.v4, ADMIN)).toBe(200);
  expect(await reach('outside', NODE_B.v4, ADMIN)).toBe(200);
  expect((await stage.runIn('node-a', 'ping', '-c1', '-W1', OUTSIDE.v4)).status).toBe(0);
  expect((await stage.runIn('outside', 'ping', '-c1', '-W1', NODE_A.v4)).status).not.toBe(0);
  const told = stage.audit('node-a').filter((l) => l.kind === 'packet.dropped' && l.reason === 'POLICY_DENIED');
  expect(told.map((l) => l.source?.address)).toContain(OUTSIDE.v4);
});

test('a workload reaches its own node only if the node’s policy allows it too, by no address of the node', async () => {
  await inForce(adminFromOutside);
  const source = stage.workload('frontend').address6;
  const linkLocal = `http://[fe80::77%25eth0]:${ADMIN}/`;
  const byLink = async () =>
    Number(
      (
        await stage.runIn(
          'frontend',
          'curl',
          '-gsS',
          '-m1',
          '-o/dev/null',
          '-w%{http_code}',
          '--interface',
          source,
          linkLocal,
        )
      ).stdout,
    );
  expect(await reach('frontend', NODE_A.v4, ADMIN)).toBe(0);
  expect(await reach('frontend', NODE_A.v6, ADMIN)).toBe(0);
  expect(await byLink()).toBe(0);
  await inForce(
    nodePolicy(`  ingress:
    - fromEndpoints: [{ matchLabels: { app: frontend } }]
      toPorts: [{ ports: [{ port: "${ADMIN}", protocol: TCP }] }]
`),
  );
  expect(await reach('frontend', NODE_A.v4, ADMIN)).toBe(200);
  expect(await reach('frontend', NODE_A.v6, ADMIN)).toBe(200);
  expect(await byLink()).toBe(200);
  expect(await reach('frontend', NODE_A.v4, OTHER)).toBe(0);
  expect(await reach('monitor', NODE_A.v4, ADMIN)).toBe(0);
});

test('what the node opens passes only as its policy allows, to its own workloads too', async () => {
  await inForce(
    nodePolicy(`  egress:
    - toCIDR: [${OUTSIDE.v4}/32]
      toPorts: [{ ports: [{ port: "${ADMIN}", protocol: TCP }] }]
`),
  );
  const monitor = stage.workload('monitor').address4;
  expect(await reach('node-a', OUTSIDE.v4, ADMIN)).toBe(200);
  expect(await reach('node-a', NODE_B.v4, ADMIN)).toBe(0);
  expect(await reach('node-a', monitor, ADMIN)).toBe(0);
  expect([await fromOutside(ADMIN), await fromOutside(OTHER)]).toEqual([BOTH, BOTH]);
  await inForce(nodePolicy('  egress:\n    - toEndpoints: [{ matchLabels: { app: monitor } }]\n'));
  expect(await reach('node-a', monitor, ADMIN)).toBe(200);
  expect(await reach('node-a', OUTSIDE.v4, ADMIN)).toBe(0);
});

test('a node that may do nothing keeps its peers, its tunnel and the identity server, also after its agent starts anew', async () => {
  await inForce(denyAll);
  expect(await fromOutside(ADMIN)).toEqual(NEITHER);
  expect(await reach('node-a', OUTSIDE.v4, ADMIN)).toBe(0);
  expect(await ask(stage, 'frontend')).toBe(200);

  await stage.stop('node-a', 'SIGKILL');
  // What is pinned goes on: nothing of the node's, and all of what is proven.
  expect(await fromOutside(ADMIN)).toEqual(NEITHER);
  expect(await reach('node-a', OUTSIDE.v4, ADMIN)).toBe(0);
  expect(await ask(stage, 'frontend')).toBe(200);

  await stage.startAgent('node-a');
  expect(await fromOutside(ADMIN)).toEqual(NEITHER);
  // A pair that was never proven: the server's SVID, the peer's channel and the tunnel are all needed.
  await until('a new pair to be proven', 20_000, async () =>
    (await ask(stage, 'frontend6', { v6: true, timeoutS: 1 })) === 200 ? true : undefined,
  );
  // The other side dials as well.
  await stage.stop('node-b', 'SIGKILL');
  await stage.startAgent('node-b');
  await until('another pair to be proven', 20_000, async () =>
    (await ask(stage, 'monitor', { timeoutS: 1 })) === 200 ? true : undefined,
  );
  await inForce(undefined);
  expect([await fromOutside(ADMIN), await reach('node-a', OUTSIDE.v4, ADMIN)]).toEqual([BOTH, 200]);
});

test('a policy that only observes tells what it would drop, and drops nothing', async () => {
  const observed = async () => JSON.stringify(await stage.agentCli('node-a', 'drop', 'list'));
  const before = await observed();
  await inForce(
    adminFromOutside.replace(
      'metadata: { name: node }',
      'metadata: { name: node, annotations: { countersign.dev/enforcement: observe } }',
    ),
  );
  expect(await fromOutside(OTHER)).toEqual(BOTH);
  expect(await observed()).not.toBe(before);
  const told = stage.audit('node-a').filter((l) => l.kind === 'packet.observed');
  expect(told.some((l) => l.source?.address === OUTSIDE.v4 && l.reason === 'POLICY_DENIED')).toBe(true);
});
