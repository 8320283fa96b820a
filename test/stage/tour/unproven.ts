import { join } from 'node:path';
import { BACKEND_HTTP_PORT } from '../demo-spec.ts';
import { capture } from '../pcap.ts';
import { until } from '../shell.ts';
import { curl, url } from './http.ts';
import { Demands, type Figures, type Step } from './step.ts';

const cases = [
  { workload: 'nosvid', reason: 'AUTH_NO_SVID', what: 'its node has no SVID for it' },
  { workload: 'wrongsvid', reason: 'AUTH_WRONG_SPIFFE_ID', what: "its node shows another workload's SVID" },
  { workload: 'stolen', reason: 'AUTH_WRONG_NODE', what: 'its node shows an SVID stolen from another node' },
];

export const unproven: Step = {
  name: 'unproven',
  shows:
    'workloads that policy allows but whose node cannot prove them: nothing gets through, and each has its own reason',
  async run(stage) {
    const demands = new Demands();
    const saw: string[] = [];
    const figures: Figures = {};
    const backend = stage.workload('backend');
    for (const { workload, reason, what } of cases) {
      const source = stage.workload(workload);
      const watching = await capture(
        stage.netns('backend'),
        'eth0',
        join(stage.dir, 'captures', `${workload}.pcap`),
        `host ${source.address4}`,
        stage.env,
      );
      const answer = await curl(stage, workload, url(backend.address4, BACKEND_HTTP_PORT), { timeoutS: 1.5 });
      const arrived = (await watching.stop()).length;
      const explained = (await stage.agentCli(
        'node-a',
        'explain',
        workload,
        'backend',
        '--port',
        String(BACKEND_HTTP_PORT),
      )) as {
        verdict: string;
        lastFailure?: { reason: string };
      };
      const logged = () =>
        stage
          .audit('node-a')
          .some(
            (l) =>
              l.kind === 'auth.failed' &&
              l.reason === reason &&
              l.source?.spiffeId === `spiffe://example.org/${workload}`,
          );
      await until('the failure to stand in the audit log', 5000, () => (logged() ? true : undefined)).catch(
        () => undefined,
      );
      demands.that(answer.status === 0, `${workload}: HTTP ${answer.status}`);
      demands.that(arrived === 0, `${workload}: ${arrived} packets arrived`);
      demands.that(
        explained.lastFailure?.reason === reason,
        `${workload}: explain says ${explained.lastFailure?.reason}, not ${reason}`,
      );
      demands.that(logged(), `${workload}: no auth.failed event with ${reason} in the audit log`);
      figures[`${workload}_arrived`] = arrived;
      figures[workload] = explained.lastFailure?.reason ?? 'none';
      saw.push(`${workload}: ${what}: ${arrived} packets arrived, explain says ${explained.lastFailure?.reason}`);
    }
    return demands.result(figures, saw);
  },
};
