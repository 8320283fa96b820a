/** The verifier takes every program, and is far from its limit: the next kernel's may read more of them. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { native } from '../../native/index.ts';
import { type Kernel, unavailable } from './support/kernel.ts';
import { makeWorld } from './support/world.ts';

/** The kernel gives up at a million. */
const LIMIT = 100_000;

describe.skipIf(unavailable)('the verifier', () => {
  let kernel: Kernel;
  beforeAll(() => {
    kernel = makeWorld();
  });
  afterAll(() => kernel?.close());

  test(`reads at most ${LIMIT} instructions of a program`, ({ annotate }) => {
    const read = Object.fromEntries(
      Object.entries(kernel.object.programs).map(([name, fd]) => [name, native().progInfo(fd).verifiedInstructions]),
    );
    annotate(JSON.stringify(read));
    expect(Object.keys(read)).toContain('from_workload');
    for (const [name, instructions] of Object.entries(read)) {
      expect(instructions, name).toBeGreaterThan(0);
      expect(instructions, name).toBeLessThan(LIMIT);
    }
  });
});
