/**
 * SYN to connected for pairs of workloads that never met: held while both prove themselves, beside no authentication at
 * all, and beside what others do (drop the first packet and wait for TCP to send it again). Two nodes in namespaces.
 */
import { Stage } from '../stage/stage.ts';
import type { Bench, BenchResult } from './support.ts';
import {
  allReached,
  BACKENDS,
  connectAll,
  frontends,
  quantile,
  startAcceptors,
  TWO_NODES,
  writeAgents,
  writePolicies,
} from './two-nodes.ts';

async function measure(
  stage: Stage,
  progress: (s: string) => void,
): Promise<Record<'drop' | 'plain' | 'held', number[]>> {
  await stage.up((what) => progress(what));
  await startAcceptors(stage);
  progress(`drop and retransmit: ${BACKENDS} pairs`);
  const drop = await connectAll(stage, frontends.slice(-1));

  const rest = frontends.slice(0, -1);
  for (const node of stage.spec.nodes) await stage.stop(node.name);
  writeAgents(stage.dir, true);
  writePolicies(stage.dir, false);
  await Promise.all(stage.spec.nodes.map((node) => stage.startAgent(node.name)));
  // Both nodes learn the addresses first, so that what is compared is authentication alone.
  await allReached(stage, rest);
  progress(`no authentication: ${rest.length * BACKENDS} pairs`);
  const plain = await connectAll(stage, rest);

  writePolicies(stage.dir, true);
  for (const node of stage.spec.nodes) await stage.agentCli(node.name, 'policy', 'reload');
  progress(`held and authenticated: ${rest.length * BACKENDS} pairs`);
  return { drop, plain, held: await connectAll(stage, rest) };
}

export const bench: Bench = {
  name: 'first-connect',
  async run(emit: (r: BenchResult) => void, progress: (s: string) => void): Promise<void> {
    if (process.getuid?.() !== 0) throw new Error('first-connect needs root: it makes network namespaces');
    const stage = new Stage(TWO_NODES);
    try {
      const { drop, plain, held } = await measure(stage, progress);
      const floor = quantile(plain, 0.5);
      const rival = quantile(drop, 0.5);
      const p50 = quantile(held, 0.5);
      const round = (ms: number): number => Number(ms.toFixed(3));
      emit({
        name: 'first-connect.p50',
        value: round(p50),
        unit: 'ms',
        floor: { name: 'no authentication', value: round(floor) },
        rival: { name: 'drop and retransmit', value: round(rival) },
        ratio: round(p50 / floor),
        target: 'at most 4 ms over no authentication',
        ok: p50 - floor <= 4,
      });
      emit({
        name: 'first-connect.p99',
        value: round(quantile(held, 0.99)),
        unit: 'ms',
        floor: { name: 'no authentication', value: round(quantile(plain, 0.99)) },
        rival: { name: 'drop and retransmit', value: round(quantile(drop, 0.99)) },
        ratio: round(quantile(held, 0.99) / quantile(plain, 0.99)),
      });
    } finally {
      await stage.down();
    }
  },
};
