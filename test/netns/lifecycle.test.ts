/**
 * The process that enforces is killed between any two of its effects on the kernel, while everybody floods everybody: what no
 * policy allows never arrives, and the next start goes on from there.
 */
import { mkdirSync, mkdtempSync, readdirSync, renameSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { native } from '../../native/index.ts';
import type { AttachMode } from '../../src/datapath/attach.ts';
import { listFilters } from '../../src/datapath/clsact.ts';
import { ABI_VERSION } from '../../src/datapath/layout.ts';
import { SLOW } from '../support/slow.ts';
import type { FaultPlan, FaultReport, Work } from './support/fault-host.ts';
import { Pair, PORTS } from './support/pair.ts';

const modes: readonly AttachMode[] = native().tcxSupported() ? ['tcx', 'clsact'] : ['clsact'];
const minutes = 60_000 * SLOW;
/** Hundreds of processes of the same source: compiled once, they start in a fifth of the time. */
const compiled = mkdtempSync(join(tmpdir(), 'cs-l-life-'));
afterAll(() => rmSync(compiled, { recursive: true, force: true }));

describe.each(modes)('by %s', (mode) => {
  let pair: Pair;
  const other = (): AttachMode => (mode === 'tcx' ? 'clsact' : 'tcx');

  beforeAll(async () => {
    pair = new Pair('l-life');
    await pair.flood();
  });
  afterAll(() => pair.close());

  /** Runs the work in the node's namespace. undefined: it killed itself. */
  const run = async (work: Work, change: Partial<FaultPlan> = {}): Promise<FaultReport | undefined> => {
    const plan: FaultPlan = {
      work,
      options: pair.options({ attach: mode }),
      endpoints: [pair.endpoint('a'), pair.endpoint('b')],
      underlay: pair.ifindex('u0'),
      killAt: 0,
      ...change,
    };
    const text = JSON.stringify(plan, (_, v) => (typeof v === 'bigint' ? `${v}n` : v));
    const child = pair.spaces.spawn('node', [
      'env',
      `NODE_COMPILE_CACHE=${compiled}`,
      process.execPath,
      join(import.meta.dirname, 'support/fault-host.ts'),
      text,
    ]);
    let out = '';
    let said = '';
    child.stdout!.on('data', (data) => {
      out += data;
    });
    child.stderr!.on('data', (data) => {
      said += data;
    });
    const [code, signal] = await new Promise<[number | null, string | null]>((resolve) =>
      child.once('close', (...ended) => resolve(ended)),
    );
    // nsenter becomes the process, so its end is seen as it is.
    if (signal !== 'SIGKILL') throw new Error(`the host ended by itself (${code}): ${said}`);
    return out === '' ? undefined : (JSON.parse(out) as FaultReport);
  };
  /** What the flood got through in a short while from now on. */
  const arrives = async (ms = 60): Promise<Readonly<Record<string, number>>> => {
    await pair.arrived();
    await new Promise((resolve) => setTimeout(resolve, ms * SLOW));
    return pair.arrived();
  };
  const never = (counts: Readonly<Record<string, number>>) =>
    Object.entries(counts).filter(([what]) => !what.startsWith('a>b') || what.endsWith(` ${PORTS.never}`));
  const enforced = async (when: string) => {
    const counts = await arrives();
    expect({ when, never: never(counts) }).toEqual({ when, never: [] });
    return counts;
  };
  /** What is allowed comes through again, at the latest when a neighbour is asked for once more. */
  const resumes = () =>
    vi.waitFor(async () => expect((await arrives(20))[`a>b ${PORTS.allowed}`]).toBeGreaterThan(0), 5_000 * SLOW);

  test('without programs everything arrives, with them only what is allowed', async () => {
    await vi.waitFor(async () => {
      const free = await arrives();
      for (const what of ['a>b 9003', 'b>a 9003', 'node>a 9003', 'node>b 9003']) expect(free[what]).toBeGreaterThan(0);
    }, 5_000 * SLOW);
    await run('start');
    await resumes();
    const counts = await enforced('after the start');
    expect(counts[`a>b ${PORTS.sometimes}`]).toBeUndefined();
  });

  test('each effect of start, policy and endpoint changes is followed by a step, so that none is missed', async () => {
    const report = await run('life', { record: true });
    expect(report!.gaps).toEqual([]);
    expect(report!.steps.length).toBeGreaterThan(50);
    await run('start');
  });

  /** What comes before is the same in every start, and killed at in the test of those. */
  const beginsToAttach = (steps: readonly string[]) => steps.findIndex((step) => step.startsWith('attached '));

  /** Kills the work at each of these steps; what came through in the meantime, and in the next start, must have been allowed. */
  const killAtEach = async (steps: readonly string[], work: Work, change: Partial<FaultPlan>, restart: boolean) => {
    for (const [at, step] of steps.entries()) {
      if (restart && at < beginsToAttach(steps)) continue;
      const when = `killed at step ${at + 1} of ${steps.length}: ${step}`;
      await run(work, { ...change, killAt: at + 1 });
      if (restart) await run('start');
      else await new Promise((resolve) => setTimeout(resolve, 20 * SLOW));
      const counts = await pair.arrived();
      expect({ when, never: never(counts) }).toEqual({ when, never: [] });
    }
  };

  // Maps are written in the same way however programs are attached: once for all.
  const work: Work = mode === modes[0] ? 'life' : 'start';
  test(`killed at every step of a ${work}: never an open door, and the next start goes on`, {
    timeout: 5 * minutes,
  }, async () => {
    const { steps } = (await run(work))!;
    await run('start');
    await pair.arrived();
    await killAtEach(steps, work, {}, false);
    await run('start');
    await enforced('after the next start');
    await resumes();
  });

  if (modes.length > 1)
    test('killed at every step of a change of the way programs are attached: never an open door', {
      timeout: 5 * minutes,
    }, async () => {
      const options = pair.options({ attach: other() });
      await run('start');
      const { steps } = (await run('start', { options }))!;
      const last = steps.findLastIndex((step) => /^(unpinned|ended|detached|removed)/.test(step));
      expect(last).toBeGreaterThan(20);
      await run('start');
      await pair.arrived();
      await killAtEach(steps.slice(0, last + 1), 'start', { options }, true);
      await enforced('after the next start');
      await resumes();
    });

  describe('programs of another layout', () => {
    const base = () => join(pair.spaces.bpffs, 'countersign');
    /** What an earlier version left: the same pins, under another version. */
    const becomeOld = () => {
      mkdirSync(join(base(), 'v1'), { recursive: true, mode: 0o700 });
      renameSync(join(base(), `v${ABI_VERSION}/pair_test`), join(base(), 'v1/pair_test'));
    };

    test('are replaced at the start, and nothing of theirs stays', async () => {
      await run('start');
      becomeOld();
      await enforced('while only the old ones stand');
      await pair.arrived();
      await run('start');
      expect(never(await pair.arrived())).toEqual([]);
      await enforced('after the takeover');
      await resumes();
      expect(readdirSync(base()).sort()).toEqual(['locks', `v${ABI_VERSION}`]);
      const chains = pair.inNode(() => [
        native().tcxQuery(native().ifIndex('v-b'), 'egress'),
        listFilters(native().ifIndex('v-b'), 'egress'),
      ]);
      expect(chains.map((chain) => chain.length)).toEqual(mode === 'tcx' ? [1, 0] : [0, 1]);
    });

    test('killed at every step of the takeover: never an open door, and the next start ends it', {
      timeout: 5 * minutes,
    }, async () => {
      await run('start');
      becomeOld();
      const { steps } = (await run('start'))!;
      const last = steps.findLastIndex((step) => step.startsWith('removed '));
      expect(last).toBeGreaterThan(20);
      for (const [at, step] of steps.slice(0, last + 1).entries()) {
        if (at < beginsToAttach(steps)) continue;
        const when = `killed at step ${at + 1}: ${step}`;
        becomeOld();
        await pair.arrived();
        await run('start', { killAt: at + 1 });
        await run('start');
        const counts = await pair.arrived();
        expect({ when, never: never(counts) }).toEqual({ when, never: [] });
        expect({ when, left: readdirSync(base()).sort() }).toEqual({ when, left: ['locks', `v${ABI_VERSION}`] });
      }
      await enforced('after the last takeover');
      await resumes();
    });
  });

  describe('taking it off', () => {
    const doors = ['a>b 9003', 'b>a 9003', 'node>a 9003', 'node>b 9003'];

    test('killed at every step: everything is open or nothing is, and the next start closes it', {
      timeout: 5 * minutes,
    }, async () => {
      await run('start');
      const report = await run('detach', { record: true });
      expect(report!.gaps).toEqual([]);
      const opened: boolean[] = [];
      for (const [at, step] of report!.steps.entries()) {
        const when = `killed at step ${at + 1} of ${report!.steps.length}: ${step}`;
        await run('start');
        await enforced(`the start before ${when}`);
        await run('detach', { killAt: at + 1 });
        const counts = await arrives();
        const open = doors.map((what) => (counts[what] ?? 0) > 0);
        expect({ when, open: new Set(open).size }).toEqual({ when, open: 1 });
        opened.push(open[0]!);
      }
      // The first step opens: the operator asked for it.
      expect(opened.every(Boolean)).toBe(true);
      await run('start');
      await enforced('after the next start');
    });

    test('an uninstall begins in the same way, and can be ended by the next one', {
      timeout: 2 * minutes,
    }, async () => {
      const { steps } = (await run('detach'))!;
      await run('start');
      const report = await run('destroy', { record: true });
      expect(report!.gaps).toEqual([]);
      // Interfaces are numbered anew with each start.
      const names = (of: readonly string[]) => of.map((step) => step.replace(/\d+$/, ''));
      expect(names(report!.steps).slice(0, steps.length)).toEqual(names(steps));
      const rest = report!.steps.length - steps.length;
      for (const killAt of [steps.length + 1, steps.length + Math.ceil(rest / 2), report!.steps.length]) {
        await run('start');
        await run('destroy', { killAt });
        await run('destroy');
        expect(readdirSync(pair.spaces.bpffs).filter((name) => !name.includes('.'))).toEqual([]);
      }
      await run('start');
      await enforced('after the next start');
    });
  });
});
