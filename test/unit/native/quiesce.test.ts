/** Waiting for programs: a run that began before the call has ended when it resolves. */
import { execFile } from 'node:child_process';
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { describe, expect, test } from 'vitest';
import { native } from '../../../native/index.ts';
import { createQuiesce } from '../../../src/datapath/quiesce.ts';
import { compileFixture, privileged } from './fixture.ts';

describe.skipIf(!privileged)('quiesce', () => {
  // A program is not interrupted: what shares its CPU waits for its end in any case. So it gets a CPU of its own.
  if (availableParallelism() > 1) {
    test('a program that runs when it is called has ended when it resolves, and nothing else waits for that', async () => {
      const scene = join(import.meta.dirname, 'quiesce-scene.ts');
      const args = ['-c', '0', process.execPath, scene, compileFixture()];
      const { stdout } = await promisify(execFile)('taskset', args);
      expect(JSON.parse(stdout)).toEqual({
        hadEnded: { atTheCall: false, afterAnotherWrite: false, afterWorkOfAnotherThread: false, afterQuiesce: true },
      });
    }, 60_000);
  }

  test('nothing runs: it resolves nevertheless, as often as it is called', async () => {
    await Promise.all(Array.from({ length: 20 }, () => native().quiesce()));
  });
});

describe('one wait for many', () => {
  function waits() {
    const begun: { end(): void; fail(error: Error): void }[] = [];
    const quiesce = createQuiesce(
      () => new Promise<void>((end, fail) => void begun.push({ end: () => end(), fail: (error) => fail(error) })),
    );
    return { begun, quiesce };
  }
  const turn = () => new Promise((resolve) => setImmediate(resolve));

  test('calls that come together share a wait, one that comes while it runs gets the next', async () => {
    const { begun, quiesce } = waits();
    const done: string[] = [];
    void quiesce().then(() => done.push('a'));
    void quiesce().then(() => done.push('b'));
    await turn();
    expect(begun).toHaveLength(1);
    void quiesce().then(() => done.push('c'));
    void quiesce().then(() => done.push('d'));
    await turn();
    expect(begun).toHaveLength(1);
    begun[0]!.end();
    await turn();
    expect(done).toEqual(['a', 'b']);
    expect(begun).toHaveLength(2);
    begun[1]!.end();
    await turn();
    expect(done).toEqual(['a', 'b', 'c', 'd']);
  });

  test('a wait that fails fails those who share it, and no others', async () => {
    const { begun, quiesce } = waits();
    const first = [quiesce(), quiesce()];
    await turn();
    const second = quiesce();
    begun[0]!.fail(new Error('EPERM'));
    expect(await Promise.allSettled(first)).toMatchObject([{ status: 'rejected' }, { status: 'rejected' }]);
    await turn();
    begun[1]!.end();
    await second;
  });
});
