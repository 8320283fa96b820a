import { describe, expect, it } from 'vitest';
import { targets } from '../../fuzz/inputs/targets.ts';
import { tryInput } from '../../fuzz/inputs/try.ts';
import { Random } from '../../fuzz/random.ts';
import { SLOW } from '../../support/slow.ts';

/** `npm run fuzz` tries a million. */
const INPUTS = 3_000;

describe.each(targets.map((target) => [target.name, target] as const))('damaged inputs: %s', (_, target) => {
  it(
    'are taken or refused in time, and all that must hold does',
    () => {
      const first = Math.floor(Math.random() * 0x7fffffff);
      let accepted = 0;
      for (let seed = first; seed < first + INPUTS; seed++) {
        const tried = tryInput(target, seed);
        if ('problem' in tried) expect.fail(`seed ${tried.seed}: ${tried.problem}\n${tried.input}`);
        if (tried.accepted) accepted++;
      }
      // damage that nothing gets through shows only the door, and one that all get through is none
      expect(accepted).toBeGreaterThan(0);
      expect(accepted).toBeLessThan(INPUTS * 0.9);
    },
    30_000 * SLOW,
  );

  it('are the same for the same seed', () => {
    if (target.name === 'jwt') return; // some are signed, and a signature of ECDSA is another each time
    for (let seed = 1; seed < 200; seed++) {
      expect(target.make(new Random(seed))).toEqual(target.make(new Random(seed)));
    }
  });
});
