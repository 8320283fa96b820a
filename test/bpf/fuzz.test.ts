/** The kernel says what the reference says: of random packets in random worlds, and of every packet of the table cut at every
 *  byte. `npm run fuzz` does the former a million times. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { Machine } from '../fuzz/machine.ts';
import { describeDifference } from '../fuzz/report.ts';
import { play, scenarioOf, shrink } from '../fuzz/scenario.ts';
import { SLOW } from '../support/slow.ts';
import { unavailable } from './support/kernel.ts';
import { families } from './support/world.ts';
import { groups } from './table/groups.ts';
import { cutEverywhere } from './table/run.ts';

/** Scenarios of 50 packets. */
const SCENARIOS = 300;

describe.skipIf(unavailable)('kernel and reference', () => {
  let machine: Machine;
  beforeAll(() => {
    machine = new Machine();
  });
  afterAll(() => machine?.close());

  test(
    'agree on random packets in random worlds',
    () => {
      const first = Math.floor(Math.random() * 0x7fffffff);
      for (let seed = first; seed < first + SCENARIOS; seed++) {
        const scenario = scenarioOf(seed, 50);
        // On a busy machine a second may pass between two packets: a difference counts when it can be repeated.
        if (play(scenario, machine) === undefined || play(scenario, machine) === undefined) continue;
        const small = shrink(scenario, machine);
        expect.fail(describeDifference(small.scenario, small.difference));
      }
    },
    60_000 * SLOW,
  );

  test.each(Object.keys(groups) as (keyof typeof groups)[])(
    'agree on what is left of a packet that is cut at any byte: %s',
    (group) => {
      for (const row of groups[group]) {
        for (const family of families) {
          if (!row.families.includes(family.name)) continue;
          for (const { length, kernel, reference } of cutEverywhere(row, family, machine)) {
            if (kernel !== reference)
              expect.fail(`${row.text} (${family.name}), ${length} bytes: ${kernel}, not ${reference}`);
          }
        }
      }
    },
    60_000 * SLOW,
  );
});
