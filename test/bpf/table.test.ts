/** The table of packets, maps and verdicts: what the kernel does, and what the reference says. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { dropReasons } from '../../src/base/registry/drop-reasons.gen.ts';
import { Machine } from '../fuzz/machine.ts';
import { unavailable } from './support/kernel.ts';
import { families } from './support/world.ts';
import { groups } from './table/groups.ts';
import { byKernel, byReference, expected, inWords } from './table/run.ts';

const cases = Object.entries(groups).flatMap(([group, rows]) =>
  rows.flatMap((row) =>
    families
      .filter((f) => row.families.includes(f.name))
      .map((family) => ({ name: `${group}, ${row.heading}: ${row.text} (${family.name})`, row, family })),
  ),
);

test('the table has at least 300 rows, and none twice', () => {
  const rows = Object.values(groups).flat();
  expect(rows.length).toBeGreaterThanOrEqual(300);
  const texts = rows.map((row) => row.text);
  expect(texts.filter((text, i) => texts.indexOf(text) !== i)).toEqual([]);
});

test('every reason that a program gives has a row', () => {
  const agents = ['HOLD_FAILED', 'HOLD_REFUSED', 'HOLD_DEADLINE', 'HOLD_LOST', 'HOLD_STALE'];
  const given = new Set(Object.values(groups).flatMap((rows) => rows.map((row) => row.verdict.split(' ')[1])));
  expect(Object.keys(dropReasons).filter((reason) => !given.has(reason))).toEqual(agents);
});

describe('the reference agrees with the table', () => {
  for (const { name, row, family } of cases) {
    test(name, () => {
      expect(inWords(byReference(row, family))).toBe(inWords(expected(row, family)));
    });
  }
});

describe.skipIf(unavailable)('the kernel agrees with the table', () => {
  let machine: Machine;
  beforeAll(() => {
    machine = new Machine();
  });
  afterAll(() => machine?.close());

  for (const { name, row, family } of cases) {
    test(name, () => {
      expect(inWords(byKernel(row, family, machine))).toBe(inWords(expected(row, family)));
    });
  }
});
