import { join } from 'node:path';
import { BACKEND_HTTP_PORT } from '../demo-spec.ts';
import { capture } from '../pcap.ts';
import { until } from '../shell.ts';
import type { Stage } from '../stage.ts';
import { curl, url } from './http.ts';
import { Demands, type Step } from './step.ts';

interface Drops {
  readonly drops: readonly { reason: string; direction: string; packets: number }[];
}

/** Drops of a reason on both nodes. */
export async function dropped(stage: Stage, reason: string): Promise<number> {
  let sum = 0;
  for (const node of stage.spec.nodes) {
    const { drops } = (await stage.agentCli(node.name, 'drop', 'list')) as Drops;
    for (const d of drops) if (d.reason === reason) sum += d.packets;
  }
  return sum;
}

export const denied: Step = {
  name: 'denied',
  shows:
    'a workload that no policy lets talk to the backend: dropped with POLICY_DENIED, counted, logged, and nothing arrives',
  async run(stage) {
    const demands = new Demands();
    const backend = stage.workload('backend');
    const intruder = stage.workload('intruder');
    const before = await dropped(stage, 'POLICY_DENIED');
    const watching = await capture(
      stage.netns('backend'),
      'eth0',
      join(stage.dir, 'captures', 'denied.pcap'),
      `host ${intruder.address4}`,
      stage.env,
    );
    const answer = await curl(stage, 'intruder', url(backend.address4, BACKEND_HTTP_PORT), { timeoutS: 2 });
    const arrived = (await watching.stop()).length;
    const packets = (await dropped(stage, 'POLICY_DENIED')) - before;
    demands.that(answer.status === 0, `the intruder got HTTP ${answer.status}`);
    demands.that(arrived === 0, `${arrived} packets of the intruder arrived`);
    demands.that(packets > 0, 'no packet was counted as POLICY_DENIED');
    const logged = () =>
      stage.spec.nodes
        .flatMap((node) => stage.audit(node.name))
        .filter(
          (l) => l.kind === 'packet.dropped' && l.reason === 'POLICY_DENIED' && l.source?.address === intruder.address4,
        );
    await until('the drop to stand in the audit log', 5000, () => (logged().length > 0 ? true : undefined)).catch(
      () => undefined,
    );
    demands.that(logged().length > 0, 'the audit log has no packet.dropped event with POLICY_DENIED');
    return demands.result({ arrived, dropped: packets, reason: 'POLICY_DENIED', logged: logged().length }, [
      `intruder → backend: ${packets} packets dropped with POLICY_DENIED, ${arrived} arrived, ${logged().length} audit events`,
    ]);
  },
};
