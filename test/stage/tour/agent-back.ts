import { BACKEND_HTTP_PORT } from '../demo-spec.ts';
import { until } from '../shell.ts';
import { curl, url } from './http.ts';
import { Demands, round, type Step } from './step.ts';

/** What is rebuilt must not take people's patience; a claim of speed is measured by the benchmarks. */
const PATIENCE_MS = 20_000;

export const agentBack: Step = {
  name: 'agent_back',
  shows:
    "node-a's agent starts again: it takes over what the kernel kept, its peers confirm it, and the new pair is proven",
  async run(stage) {
    const demands = new Demands();
    const backend = stage.workload('backend');
    // The step before killed it; alone, this one does so itself.
    await stage.stop('node-a', 'SIGKILL');
    const started = performance.now();
    await stage.startAgent('node-a');
    const readyMs = performance.now() - started;
    const ask = (from: string) => curl(stage, from, url(backend.address4, BACKEND_HTTP_PORT), { timeoutS: 1 });
    const newcomer = await until('the new pair to be proven', PATIENCE_MS, async () => {
      const answer = await ask('monitor');
      return answer.status === 200 ? answer : undefined;
    }).catch(() => undefined);
    const recoveredMs = performance.now() - started;
    const proven = await ask('frontend');
    demands.that(newcomer !== undefined, 'the new pair is not proven');
    demands.that(proven.status === 200, `the proven pair: HTTP ${proven.status}`);
    return demands.result(
      {
        ready_s: round(readyMs / 1000),
        seconds: round(recoveredMs / 1000),
        new_pair_status: newcomer?.status ?? 0,
        proven_status: proven.status,
      },
      [
        `ready ${round(readyMs / 1000)} s after its process started`,
        `monitor → backend: ${newcomer?.status ?? 'no answer'}, ${round(recoveredMs / 1000)} s after the start`,
      ],
    );
  },
};
