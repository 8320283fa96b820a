/**
 * From the kernel's miss to both nodes' maps written, as the agent that began tells it: of each pair of workloads that never
 * met, with real packets between two nodes in namespaces. Beside it SYN to connected where no proof is asked for.
 */
import { Stage } from '../stage/stage.ts';
import type { Bench } from './support.ts';
import {
  allReached,
  connectAll,
  frontends,
  quantile,
  startAcceptors,
  TWO_NODES,
  writeAgents,
  writePolicies,
} from './two-nodes.ts';

const P50_MS = 3;
const P99_MS = 15;

export const bench: Bench = {
  name: 'auth-latency',
  async run(emit, progress) {
    if (process.getuid?.() !== 0) throw new Error('auth-latency needs root: it makes network namespaces');
    const stage = new Stage(TWO_NODES);
    try {
      await stage.up(progress);
      for (const node of stage.spec.nodes) await stage.stop(node.name);
      writeAgents(stage.dir, true);
      writePolicies(stage.dir, false);
      await Promise.all(stage.spec.nodes.map((node) => stage.startAgent(node.name)));
      await startAcceptors(stage);
      // Both nodes learn the addresses first, so that what is measured is authentication alone.
      await allReached(stage, frontends);
      const plain = quantile(await connectAll(stage, frontends), 0.5);
      writePolicies(stage.dir, true);
      for (const node of stage.spec.nodes) await stage.agentCli(node.name, 'policy', 'reload');
      progress('auth-latency: every pair for the first time');
      await connectAll(stage, frontends);
      const times = stage
        .audit('node-a')
        .filter((event) => event.kind === 'auth.succeeded')
        .map((event) => Number(event.detail?.handshake_ms))
        .filter(Number.isFinite)
        .sort((a, b) => a - b);
      if (times.length === 0) throw new Error('no authentication in the audit log of node-a');
      progress(`auth-latency: ${times.length} authentications`);
      const round = (ms: number): number => Number(ms.toFixed(3));
      for (const [name, q, limitMs] of [
        ['p50', 0.5, P50_MS],
        ['p99', 0.99, P99_MS],
      ] as const) {
        const value = quantile(times, q);
        emit({
          name: `auth-latency.${name}`,
          value: round(value),
          unit: 'ms',
          floor: { name: 'connecting without authentication, p50', value: round(plain) },
          ratio: round(value / plain),
          target: `under ${limitMs} ms`,
          ok: value < limitMs,
        });
      }
    } finally {
      await stage.down();
    }
  },
};
