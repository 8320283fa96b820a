/** A node that was rebooted, as its agent sees it: another boot id than the one that it wrote down. */
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { parse } from 'yaml';
import { until } from '../stage/shell.ts';
import { Stage } from '../stage/stage.ts';
import { testStage } from './support/stage-spec.ts';
import { ask, startBackend } from './support/stage-traffic.ts';

const spec = testStage('new-life', { workloads: ['frontend', 'monitor', 'backend'] });
const stage = new Stage(spec);

/** The agent is down: what it wrote down is now of another life. */
function anotherLife(node: string): void {
  const { dataDir } = parse(readFileSync(join(stage.dir, `agent-${node}.yaml`), 'utf8')) as { dataDir: string };
  const path = join(dataDir, 'node/node-identity.json');
  const state = JSON.parse(readFileSync(path, 'utf8')) as { life: { bootId: string } };
  writeFileSync(path, JSON.stringify({ ...state, life: { ...state.life, bootId: 'an earlier boot' } }));
}

const peerOf = async (node: string, peer: string) => {
  const { peers } = (await stage.agentCli(node, 'peers')) as { peers: { name: string; incarnation: number }[] };
  return peers.find(({ name }) => name === peer);
};

beforeAll(async () => {
  await stage.up(() => {});
  await startBackend(stage);
  expect(await ask(stage, 'frontend')).toBe(200);
});
afterAll(() => stage.down());

test('with the server away it waits, says so and vouches for nothing; then it is another incarnation and all is proven anew', async () => {
  expect(await peerOf('node-b', 'node-a')).toMatchObject({ incarnation: 1 });
  await stage.stop('node-a', 'SIGKILL');
  await stage.stop('server', 'SIGKILL');
  anotherLife('node-a');
  const starting = stage.startAgent('node-a');
  const said = await until('the agent to say what it waits for', 15_000, async () => {
    const status = await stage.cliRaw('status', '--socket', stage.agentSocket('node-a'));
    return /vouches for nothing yet/.test(status.stderr) ? status : undefined;
  });
  expect(said.status).toBe(3);
  expect(said.stderr).toMatch(/node-a is starting and vouches for nothing yet.*ATTEST_NEW_LIFE/s);
  // never proven, and nobody to prove it
  expect(await ask(stage, 'monitor', { timeoutS: 1.5 })).toBe(0);
  await stage.startServer();
  await starting;
  await until('the peer to see the new life', 10_000, async () =>
    (await peerOf('node-b', 'node-a'))?.incarnation === 2 ? true : undefined,
  );
  for (const workload of ['frontend', 'monitor']) {
    await until(`${workload} to be proven`, 15_000, async () =>
      (await ask(stage, workload, { timeoutS: 1 })) === 200 ? true : undefined,
    );
  }
});
