/** Addresses change hands under traffic, with faults, and nobody is taken for who had the address before. */
import { setTimeout as delay } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { accept } from '../model/trace.ts';
import type { SafeguardName } from '../stage/reuse/safeguards.ts';
import { ReuseScene } from '../stage/reuse/scene.ts';
import type { Colour, HostNode } from '../stage/reuse/spec.ts';
import { until } from '../stage/shell.ts';
import { SLOW } from '../support/slow.ts';

const REUSES = 200;
const SEED = 20_261;
/** While the wrong one has the address, it is given this long to be mistaken. */
const DWELL_MS = 150;
/** A channel that was cut is dialed again, leases run out, an agent starts: the right one is heard within this time. */
const HEARD_MS = 40_000;
const NODES = ['node-a', 'node-b', 'node-c'] as const;
const LEASE = '3s';
/** In the unit of the trace. A little less than the agents keep: a wait may begin before the event that it counts from is written down. */
const DRAIN_US = 95_000;

/** Mulberry32: the same seed, the same run. */
function randomFrom(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) % below;
  };
}

type Fault = 'none' | 'cut' | 'kill';

/** Meanwhile, until it resolves: a channel is cut and mended, or an agent is killed and started again. */
async function fault(scene: ReuseScene, kind: Fault, node: string, lastsMs: number): Promise<void> {
  if (kind === 'none') return;
  if (kind === 'cut') {
    scene.cut(node);
    await delay(lastsMs);
    scene.mend(node);
    return;
  }
  await scene.stage.stop(node, 'SIGKILL');
  await delay(lastsMs / 4);
  await scene.stage.startAgent(node);
}

/** What blue sent arrives when red has its address, and what sink sent to red when that is another one. */
async function late(scene: ReuseScene): Promise<void> {
  scene.place({ colour: 'blue', node: 'node-a' });
  await scene.talking(HEARD_MS);
  expect(await scene.delayed('from owner', HEARD_MS)).toBeGreaterThan(0);
  expect(await scene.delayed('to owner', HEARD_MS)).toBeGreaterThan(0);
}

describe(`${REUSES} times another identity gets the address at once, with channels cut and agents killed`, () => {
  const scene = new ReuseScene({
    prefix: 'cs-t-reuse',
    dir: '/run/countersign-test-reuse',
    device: 'reuse',
    lease: LEASE,
    traced: true,
  });
  beforeAll(() => scene.up());
  afterAll(() => scene.down());

  test(
    'what somebody on the path held back arrives too late: it is nobody’s',
    async () => {
      await late(scene);
      expect(scene.wrong()).toEqual({ sender: 0, receiver: 0 });
    },
    240_000 * SLOW,
  );

  test(
    'no packet is taken from the wrong sender, none reaches who was not meant, and the right one is heard each time',
    async () => {
      const random = randomFrom(SEED);
      const faults: Fault[] = ['none', 'none', 'none', 'cut', 'cut', 'kill'];
      let at: HostNode = 'node-a';
      scene.place({ colour: 'red', node: at });
      await scene.talking(HEARD_MS);
      const red = scene.sinkHeard('red');
      const seen: Record<string, number> = {};
      for (let n = 0; n < REUSES; n++) {
        const colour: Colour = n % 2 === 0 ? 'blue' : 'red';
        const moves = random(2) === 1;
        if (moves) at = at === 'node-a' ? 'node-b' : 'node-a';
        const kind = faults[random(faults.length)]!;
        seen[`${kind}${moves ? ', moved' : ''}`] = (seen[`${kind}${moves ? ', moved' : ''}`] ?? 0) + 1;
        const meanwhile = fault(scene, kind, NODES[random(NODES.length)]!, 100 + random(1000));
        await delay(random(50));
        scene.place({ colour, node: at });
        if (colour === 'blue') await delay(DWELL_MS);
        await meanwhile;
        if (colour === 'red') await scene.talking(HEARD_MS);
        expect(scene.wrong(), `after ${n + 1} reuses, the last one of ${JSON.stringify({ kind, moves, at })}`).toEqual({
          sender: 0,
          receiver: 0,
        });
      }
      expect(Object.keys(seen).sort()).toEqual(['cut', 'cut, moved', 'kill', 'kill, moved', 'none', 'none, moved']);
      expect(scene.sinkHeard('red') - red).toBeGreaterThan(REUSES);
      const trace = scene.trace();
      expect(trace.filter(({ ev }) => ev === 'apply').length).toBeGreaterThan(REUSES);
      const accepted = accept(trace, { drainMs: DRAIN_US });
      const around = accepted.ok ? '' : trace.slice(Math.max(0, accepted.line - 40), accepted.line + 1);
      expect(accepted, JSON.stringify(around, undefined, 1)).toEqual({ ok: true });
    },
    1_800_000 * SLOW,
  );
});

/** Agents without one of their safeguards. */
function weakened(without: SafeguardName): ReuseScene {
  return new ReuseScene({
    prefix: 'cs-t-reusew',
    dir: '/run/countersign-test-reusew',
    device: 'reusew',
    without,
    traced: true,
  });
}

describe('the same with the fences taken out: a new owner is opened to a peer that has not let go of the one before', () => {
  const scene = weakened('fences');
  beforeAll(() => scene.up());
  afterAll(() => scene.down());

  test(
    'finds packets of the wrong sender',
    async () => {
      scene.place({ colour: 'red', node: 'node-a' });
      await scene.talking(HEARD_MS);
      scene.cut('node-a');
      scene.place({ colour: 'blue', node: 'node-a' });
      await until('a packet of the wrong sender', HEARD_MS, () => scene.wrong().sender > 0 || undefined);
      expect(accept(scene.trace(), { drainMs: DRAIN_US })).toMatchObject({ ok: false, rule: 'Fence' });
    },
    240_000 * SLOW,
  );
});

describe('the same with the drain taken out: no time passes between two owners, and no tunnel session ends', () => {
  const scene = weakened('drain');
  beforeAll(() => scene.up());
  afterAll(() => scene.down());

  test(
    'finds packets of the wrong sender, and packets that reach who was not meant, when somebody on the path is late',
    async () => {
      await late(scene);
      expect(scene.wrong().sender).toBeGreaterThan(0);
      expect(scene.wrong().receiver).toBeGreaterThan(0);
    },
    240_000 * SLOW,
  );
});
