import { until } from '../shell.ts';
import { reuseScene } from './ip-reuse.ts';
import { Demands, round, type Step } from './step.ts';

const PATIENCE_MS = 30_000;
/** The lease of the scene, and as long as a packet may be on its way to who counts it. */
const LEASE_MS = 5_000;
const COUNTING_MS = 250;
/** Nothing heard for this long: it has ended. */
const QUIET_MS = 300;

export const partition: Step = {
  name: 'partition',
  shows:
    'the channel between two nodes is cut and nothing else: traffic goes on until the lease ends, not longer, and comes back when it heals',
  async run(stage, progress) {
    const demands = new Demands();
    const scene = reuseScene(stage, 'part');
    try {
      await scene.up((what) => progress(`a cluster of three nodes: ${what}`));
      scene.place({ colour: 'red', node: 'node-a' });
      await scene.talking(PATIENCE_MS);
      const before = scene.sinkHeard('red');
      progress('the channel is cut');
      scene.cut('node-c');
      const cut = performance.now();
      let last = { heard: before, atMs: cut };
      await until('the traffic to end', PATIENCE_MS, () => {
        const heard = scene.sinkHeard('red');
        if (heard !== last.heard) last = { heard, atMs: performance.now() };
        return performance.now() - last.atMs > QUIET_MS ? true : undefined;
      });
      const endedMs = last.atMs - cut;
      scene.mend('node-c');
      const healed = performance.now();
      await scene.talking(PATIENCE_MS);
      const backMs = performance.now() - healed;
      demands.that(
        endedMs <= LEASE_MS + COUNTING_MS,
        `it ended ${round(endedMs)} ms after the cut, later than the lease`,
      );
      demands.that(last.heard > before, 'it ended with the cut, not with the lease');
      return demands.result(
        {
          lease_ms: LEASE_MS,
          ended_after_ms: round(endedMs, 0),
          heard_after_cut: last.heard - before,
          back_after_ms: round(backMs, 0),
        },
        [
          `cut: ${last.heard - before} more packets arrived, the last one ${round(endedMs / 1000)} s after the cut (lease ${LEASE_MS / 1000} s)`,
          `healed: both hear each other again after ${round(backMs / 1000)} s`,
        ],
      );
    } finally {
      await scene.down();
    }
  },
};
