import { setTimeout as delay } from 'node:timers/promises';
import { BACKEND_HTTP_PORT } from '../demo-spec.ts';
import { startSteadyTraffic } from '../steady-traffic.ts';
import { curl, url } from './http.ts';
import { Demands, type Step } from './step.ts';

const RATE = 500;
/** How long the flow goes on without an agent. */
const WITHOUT_MS = 2_000;

export const agentKilled: Step = {
  name: 'agent_killed',
  shows:
    "node-a's agent is killed with SIGKILL: what is proven goes on without losing a packet, a pair that is new gets nothing",
  async run(stage) {
    const demands = new Demands();
    const backend = stage.workload('backend');
    const traffic = await startSteadyTraffic(stage, 'frontend', RATE);
    await stage.stop('node-a', 'SIGKILL');
    const killed = performance.now();
    // Allowed by policy, never proven: nobody is there to prove it.
    const newcomer = await curl(stage, 'monitor', url(backend.address4, BACKEND_HTTP_PORT), { timeoutS: 1.5 });
    const proven = await curl(stage, 'frontend', url(backend.address4, BACKEND_HTTP_PORT));
    await delay(Math.max(0, WITHOUT_MS - (performance.now() - killed)));
    const { sent, lost } = await traffic.stop();
    demands.that(lost === 0, `the proven flow lost ${lost} packets`);
    demands.that(sent >= (RATE * WITHOUT_MS) / 2000, `only ${sent} packets were sent`);
    demands.that(proven.status === 200, `a new connection of the proven pair: HTTP ${proven.status}`);
    demands.that(newcomer.status === 0, `the new pair got HTTP ${newcomer.status}`);
    return demands.result({ sent, lost, proven_status: proven.status, new_pair_status: newcomer.status }, [
      `frontend → backend without an agent: ${sent} packets sent, ${lost} lost; a new connection: ${proven.status}`,
      `monitor → backend, never proven before: ${newcomer.status === 0 ? 'no answer' : newcomer.status}`,
    ]);
  },
};
