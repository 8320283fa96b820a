/** Break-glass and leaving, with real agents: what an operator stops is stopped and told, and after an uninstall nothing is left. */
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test, vi } from 'vitest';
import { native } from '../../native/index.ts';
import { inspectNode } from '../../src/datapath/inspect.ts';
import { inNetns, run, sh, until } from '../stage/shell.ts';
import { Stage } from '../stage/stage.ts';
import { SLOW } from '../support/slow.ts';
import { editYaml, testStage } from './support/stage-spec.ts';
import { ask, startBackend } from './support/stage-traffic.ts';

const example = testStage('leave', { workloads: ['frontend', 'intruder', 'backend'] });
const spec = {
  ...example,
  configure(dir: string) {
    example.configure(dir);
    editYaml(join(dir, 'agent-node-b.yaml'), (config) => {
      config.datapath = { attach: 'clsact' };
    });
  },
};
const stage = new Stage(spec);
const nodes = spec.nodes.map(({ name }) => name);
const before = new Map<string, Snapshot>();

type Snapshot = Readonly<Record<string, string>>;

/** Everything of a node that an agent could leave something in. Numbers that change by themselves are left out. */
function snapshot(node: string): Snapshot {
  const at = (command: string) => sh('nsenter', inNetns(stage.netns(node), 'sh', '-ec', command).slice(1));
  return {
    programs: at('bpftool net show'),
    rules: at('ip rule; ip -6 rule'),
    routes: at('ip route show table all; ip -6 route show table all').replaceAll(/ (expires|error|age) \S+/g, ''),
    links: at('ip -o link').replaceAll(/ qlen \d+/g, ''),
    addresses: at('ip -o addr').replaceAll(/ (valid|preferred)_lft \S+/g, ''),
    qdiscs: at('tc qdisc show'),
    filters: at(
      'for i in $(ip -o link | cut -d: -f2 | cut -d@ -f1); do tc filter show dev $i ingress; tc filter show dev $i egress; done',
    ),
    nftables: at('nft list ruleset'),
    listening: at('ss -Hlntu'),
    forwarding: at('sysctl -a --pattern "^net.*(forwarding|rp_filter|accept_ra)$" 2>/dev/null'),
  };
}

const config = (node: string) => join(stage.dir, `agent-${node}.yaml`);
/** A command of the node, in its namespace. */
const onNode = async (node: string, ...args: string[]) => {
  const bin = join(import.meta.dirname, '../../bin/countersign');
  const argv = inNetns(stage.netns(node), bin, ...args, '--config', config(node));
  const { status, stdout, stderr } = await run(argv[0]!, argv.slice(1), { timeoutMs: 60_000 });
  return { status, stderr, said: stdout.trim() === '' ? undefined : JSON.parse(stdout) };
};
const enforcement = (node: string, ...args: string[]) => onNode(node, 'enforcement', ...args, '-o', 'json');
const bpffs = () => join(stage.dir, 'bpf');

beforeAll(async () => {
  await stage.up(
    () => {},
    () => {
      for (const node of nodes) before.set(node, snapshot(node));
    },
  );
  await startBackend(stage);
  expect(await ask(stage, 'frontend')).toBe(200);
  expect(await ask(stage, 'intruder', { timeoutS: 2 })).toBe(0);
});
afterAll(() => stage.down());

test('break-glass works while the identity server is down, is told loudly, audited, and outlives a killed agent', async () => {
  await stage.stop('server', 'SIGKILL');
  for (const node of nodes) {
    expect(await enforcement(node, 'stop', '--reason', 'the pager at three')).toMatchObject({
      status: 0,
      said: { enforcement: 'stopped', by: 'agent' },
    });
  }
  await until('the intruder to get through', 10_000, async () =>
    (await ask(stage, 'intruder', { timeoutS: 2 })) === 200 ? true : undefined,
  );
  expect((await stage.status('node-a'))!.unprotected).toContainEqual(
    expect.stringMatching(/^ENFORCEMENT IS STOPPED since \S+ by uid 0: the pager at three$/),
  );
  expect((await stage.status('node-a'))!.datapath).toMatchObject({ enforcement: 'stopped' });

  // backend's node is the one that denies. Without its agent it stays stopped, and changes are made, and none is lost for the audit log.
  await stage.stop('node-b', 'SIGKILL');
  expect(await ask(stage, 'intruder', { timeoutS: 2 })).toBe(200);
  expect(await enforcement('node-b', 'status')).toMatchObject({
    status: 1,
    said: { enforcement: 'stopped', agent: 'down' },
  });
  expect(await enforcement('node-b', 'start')).toMatchObject({ status: 0, said: { by: 'command' } });
  expect(await ask(stage, 'intruder', { timeoutS: 2 })).toBe(0);
  expect(await enforcement('node-b', 'stop', '--reason', 'still three')).toMatchObject({ said: { by: 'command' } });

  // An agent that was started while the server is gone follows as well, whatever it still waits for.
  const bin = join(import.meta.dirname, '../../bin/countersign');
  stage.spawn('node-b', inNetns(stage.netns('node-b'), bin, 'agent', 'run', '--config', config('node-b')));
  await until('the agent to hold the datapath', 10_000, async () =>
    (await enforcement('node-b', 'status')).said.agent === 'running' ? true : undefined,
  );
  expect(await enforcement('node-b', 'start', '--reason', 'a try')).toMatchObject({ status: 0, said: { by: 'agent' } });
  expect(await ask(stage, 'intruder', { timeoutS: 2 })).toBe(0);
  expect(await enforcement('node-b', 'stop', '--reason', 'no')).toMatchObject({ status: 0, said: { by: 'agent' } });
  await stage.stop('node-b', 'SIGKILL');

  await stage.startServer();
  await stage.startAgent('node-b');
  expect((await stage.status('node-b'))!.datapath).toMatchObject({ enforcement: 'stopped' });
  for (const node of nodes) {
    expect(await enforcement(node, 'start', '--reason', 'morning')).toMatchObject({ status: 0, said: { by: 'agent' } });
  }
  expect(await ask(stage, 'intruder', { timeoutS: 2 })).toBe(0);
  await until('frontend to reach backend', 10_000, async () =>
    (await ask(stage, 'frontend')) === 200 ? true : undefined,
  );
  const told = stage.audit('node-b').filter(({ kind }) => kind.startsWith('enforcement.'));
  expect(told.map(({ kind, detail }) => [kind, detail?.because])).toEqual([
    ['enforcement.stopped', 'the pager at three'],
    ['enforcement.started', 'enforcement start'],
    ['enforcement.stopped', 'still three'],
    ['enforcement.started', 'a try'],
    ['enforcement.stopped', 'no'],
    ['enforcement.started', 'morning'],
  ]);
});

test('verify finds nothing wrong with a running deployment, by tcx and by clsact', async () => {
  for (const node of nodes) {
    const { said, status } = await onNode(node, 'datapath', 'verify', '-o', 'json');
    expect({ node, status, problems: said.problems }).toEqual({ node, status: 0, problems: [] });
  }
});

test('an uninstall is refused while the agent runs', async () => {
  const { status, stderr } = await onNode('node-a', 'agent', 'uninstall');
  expect(status).toBe(1);
  expect(stderr).toContain('is running; stop it first');
  expect(await ask(stage, 'frontend')).toBe(200);
  expect(await ask(stage, 'intruder', { timeoutS: 2 })).toBe(0);
});

test.each([
  ['node-a', 'a killed agent', 'SIGKILL'],
  ['node-b', 'a stopped agent', 'SIGTERM'],
] as const)('after an uninstall of %s, with %s, everything is as it was before', async (node, _how, signal) => {
  await stage.stop(node, signal);
  const ours = native().withNetns(`/run/netns/${stage.netns(node)}`, () =>
    inspectNode({
      bpffs: bpffs(),
      node,
      underlay: 'lo',
      tunnelDevice: undefined,
      holdDevice: 'lo',
      endpoints: [],
    }),
  );
  expect(ours.programs.size).toBeGreaterThan(5);
  expect((await onNode(node, 'agent', 'uninstall')).status).toBe(0);
  expect(await onNode(node, 'agent', 'uninstall')).toMatchObject({ status: 0 }); // and once more
  expect(snapshot(node)).toEqual(before.get(node));
  // Programs and maps end when nobody holds them any more: soon, not at once.
  await vi.waitFor(
    () => {
      for (const [name, { id }] of ours.programs) {
        const fd = native().progById(id);
        if (fd !== undefined) native().closeFd(fd);
        expect({ name, alive: fd !== undefined }).toEqual({ name, alive: false });
      }
      const maps = JSON.parse(sh('bpftool', ['-j', 'map', 'show'])) as { id: number; name: string }[];
      const left = maps.filter(({ id }) => ours.maps.some((map) => map.id === id)).map(({ name }) => name);
      expect(left).toEqual([]);
    },
    { timeout: 10_000 * SLOW, interval: 100 },
  );
  expect(readdirSync(join(bpffs())).filter((name) => !name.includes('.'))).toEqual(
    node === 'node-a' ? ['countersign'] : [],
  );
  expect(readdirSync('/var/run/wireguard').filter((name) => name.startsWith(`cs-leave-${node.slice(-1)}`))).toEqual([]);
});
