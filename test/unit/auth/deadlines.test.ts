import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { Deadlines } from '../../../src/auth/deadlines.ts';

function stage() {
  let now = 0;
  let timer: { at: number; fn: () => void } | undefined;
  const set = { count: 0 };
  const wanted = new Set<number>();
  const fired: [item: number, atMs: number][] = [];
  const deadlines = new Deadlines<number>({
    timers: {
      set(ms, fn) {
        const own = { at: now + ms, fn };
        timer = own;
        set.count += 1;
        return () => {
          if (timer === own) timer = undefined;
        };
      },
    },
    nowMs: () => now,
    isWanted: (item) => wanted.has(item),
    due: (items) => {
      for (const item of items) fired.push([item, now]);
    },
  });
  const pass = (to: number) => {
    while (timer !== undefined && timer.at <= to) {
      const { at, fn } = timer;
      timer = undefined;
      now = Math.max(now, at);
      fn();
    }
    now = to;
  };
  return { deadlines, wanted, fired, pass, set };
}

describe('deadlines', () => {
  test('each is told of once, at its time, in order, and none that is no longer wanted', () => {
    fc.assert(
      fc.property(fc.array(fc.record({ at: fc.nat(1000), wanted: fc.boolean() }), { maxLength: 200 }), (items) => {
        const { deadlines, wanted, fired, pass } = stage();
        items.forEach(({ at, wanted: isWanted }, i) => {
          if (isWanted) wanted.add(i);
          deadlines.add(i, at);
        });
        pass(2000);
        const expected = items.flatMap(({ at, wanted: isWanted }, i) => (isWanted ? [[i, at] as const] : []));
        expect(fired.map(([item]) => item).sort((a, b) => a - b)).toEqual(expected.map(([i]) => i));
        expect(fired.every(([item, at]) => at === items[item]!.at)).toBe(true);
        expect(fired.map(([, at]) => at)).toEqual(fired.map(([, at]) => at).sort((a, b) => a - b));
      }),
    );
  });

  test('an earlier one that comes later fires first, and time is not asked for each', () => {
    const { deadlines, wanted, fired, pass, set } = stage();
    for (let i = 0; i < 100; i++) {
      wanted.add(i);
      deadlines.add(i, 100 + i);
    }
    expect(set.count).toBe(1);
    wanted.add(100);
    deadlines.add(100, 50);
    expect(set.count).toBe(2);
    pass(60);
    expect(fired).toEqual([[100, 50]]);
  });

  test('what is no longer wanted does not pile up', () => {
    const { deadlines, wanted, fired, pass } = stage();
    let asked = 0;
    const has = wanted.has.bind(wanted);
    wanted.has = (item) => {
      asked += 1;
      return has(item);
    };
    for (let i = 0; i < 100_000; i++) {
      wanted.clear();
      wanted.add(i);
      deadlines.add(i, 1_000_000 - i);
    }
    asked = 0;
    pass(1_000_001);
    expect(fired.map(([item]) => item)).toEqual([99_999]);
    expect(asked).toBeLessThan(2_100);
  });
});
