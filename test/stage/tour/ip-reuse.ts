import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { ReuseScene } from '../reuse/scene.ts';
import type { HostNode, ReuseOptions } from '../reuse/spec.ts';
import { until } from '../shell.ts';
import type { Stage } from '../stage.ts';
import { Demands, round, type Step } from './step.ts';

const REUSES = 50;
/** While the wrong one has the address, it is given this long to be mistaken. */
const DWELL_MS = 100;
const HEARD_MS = 20_000;
const LEASE = '5s';
/** Where the mistake is wanted, there is time to make it. */
const LONG_LEASE = '30s';
const MISTAKE_MS = 20_000;

/** A cluster of its own inside the demonstration's folder and under its names, so that it goes with it. */
export function reuseScene(stage: Stage, name: string, options: Partial<ReuseOptions> = {}): ReuseScene {
  return new ReuseScene({
    prefix: `${stage.spec.prefix}-${name}`,
    dir: join(stage.dir, name),
    device: `wg-${name}`,
    lease: LEASE,
    ...options,
  });
}

/** The sender of before is dead, its successor sends at once, and the channel by which this could be told is cut. */
async function withoutFences(stage: Stage, progress: (what: string) => void): Promise<number> {
  const scene = reuseScene(stage, 'weak', {
    lease: LONG_LEASE,
    without: 'fences',
  });
  try {
    await scene.up((what) => progress(`without fences: ${what}`));
    scene.place({ colour: 'red', node: 'node-a' });
    await scene.talking(HEARD_MS);
    scene.cut('node-a');
    scene.place({ colour: 'blue', node: 'node-a' });
    const found = () => scene.wrong().sender;
    await until('a packet of the wrong sender', MISTAKE_MS, () => found() || undefined).catch(() => {});
    return found();
  } finally {
    await scene.down();
  }
}

export const ipReuse: Step = {
  name: 'ip_reuse',
  shows: `${REUSES} times a workload dies and another identity gets its address at once, on its node or another: nobody is mistaken for it`,
  async run(stage, progress) {
    const demands = new Demands();
    const scene = reuseScene(stage, 'reuse');
    let heard = 0;
    let wrong = { sender: 0, receiver: 0 };
    const started = performance.now();
    try {
      await scene.up((what) => progress(`a cluster of three nodes: ${what}`));
      scene.place({ colour: 'red', node: 'node-a' });
      await scene.talking(HEARD_MS);
      for (let n = 0; n < REUSES; n++) {
        if (n % 10 === 0) progress(`${n} of ${REUSES} reuses`);
        const node: HostNode = n % 4 < 2 ? 'node-a' : 'node-b';
        scene.place({ colour: n % 2 === 0 ? 'blue' : 'red', node });
        if (n % 2 === 0) await delay(DWELL_MS);
        else await scene.talking(HEARD_MS);
      }
      heard = scene.sinkHeard('red');
      wrong = scene.wrong();
    } finally {
      await scene.down();
    }
    const seconds = (performance.now() - started) / 1000;
    const control = await withoutFences(stage, progress);
    demands.that(heard > REUSES, `only ${heard} packets of the right sender arrived`);
    demands.that(wrong.sender === 0, `${wrong.sender} packets of the wrong sender were taken`);
    demands.that(wrong.receiver === 0, `${wrong.receiver} packets reached who was not meant`);
    demands.that(control > 0, 'without fences nothing was found: this step could not fail');
    return demands.result(
      {
        reuses: REUSES,
        wrong_sender: wrong.sender,
        wrong_receiver: wrong.receiver,
        right_sender: heard,
        without_fences_wrong_sender: control,
        reuse_seconds: round(seconds),
      },
      [
        `${REUSES} reuses: ${heard} packets of the right sender arrived, ${wrong.sender} of the wrong one, ${wrong.receiver} at the wrong receiver`,
        `the same with the fences taken out of the agents and a channel cut: ${control} packets of the wrong sender`,
      ],
    );
  },
};
