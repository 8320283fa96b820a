/** How long what is proven goes on without an agent: until the lease that the kernel holds, and no longer, however the agent went. */
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { until } from '../stage/shell.ts';
import { Stage } from '../stage/stage.ts';
import { SLOW } from '../support/slow.ts';
import { editYaml, testStage } from './support/stage-spec.ts';
import { ask, startBackend } from './support/stage-traffic.ts';

const LEASE_MS = 4_000 * SLOW;
/** A request that nobody answers takes this long to say so. */
const UNANSWERED_S = 1;

const example = testStage('gone', { workloads: ['frontend', 'backend'] });
const stage = new Stage({
  ...example,
  configure(dir: string) {
    example.configure(dir);
    for (const { name } of example.nodes) {
      editYaml(join(dir, `agent-${name}.yaml`), (config) => {
        config.authentication = { ...(config.authentication as object | undefined), lease: `${LEASE_MS / 1000}s` };
      });
    }
  },
});

beforeAll(async () => {
  await stage.up(() => {});
  await startBackend(stage);
});
afterAll(() => stage.down());

test.each([
  { node: 'node-a', side: 'sender', signal: 'SIGTERM' },
  { node: 'node-a', side: 'sender', signal: 'SIGKILL' },
  { node: 'node-b', side: 'receiver', signal: 'SIGTERM' },
  { node: 'node-b', side: 'receiver', signal: 'SIGKILL' },
] as const)(
  'the $side’s agent ends by $signal: a proven pair goes on until its lease ends, no longer, and again when the agent is back',
  async ({ node, signal }) => {
    const answered = async () => (await ask(stage, 'frontend', { timeoutS: UNANSWERED_S })) === 200;
    await until('the pair to be proven', 20_000, async () => (await answered()) || undefined);
    await stage.stop(node, signal);
    const gone = performance.now();
    expect(await answered()).toBe(true);
    let lastMs = gone;
    await until('the lease to end', LEASE_MS * 3, async () => {
      const asked = performance.now();
      if (!(await answered())) return true;
      lastMs = asked;
      return undefined;
    });
    expect(lastMs - gone).toBeLessThan(LEASE_MS);
    await stage.startAgent(node);
    await until('the pair to be proven again', 20_000, async () => (await answered()) || undefined);
  },
);
