/** Whatever JS hands over, the addon throws and the process lives: no argument is trusted, no assertion stands on input. */
import { openSync } from 'node:fs';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { type Native, native } from '../../../native/index.ts';
import { compileFixture, privileged, thrownBy, u32, u64 } from './fixture.ts';

const addon = native();
const loose = addon as unknown as Record<keyof Native, (...args: unknown[]) => unknown>;

describe('bad arguments', () => {
  const functions = (Object.keys(addon) as (keyof Native)[]).filter((name) => name !== 'setParentDeathSignal');
  // Numbers stay away from descriptors this process has open: closing those would be what was asked for.
  const argument = fc.oneof(
    fc.constantFrom(
      undefined,
      null,
      true,
      Number.NaN,
      -1,
      1.5,
      2 ** 32,
      2 ** 53,
      100_000,
      '',
      'x',
      'a\0b',
      '%d',
      Symbol('s'),
    ),
    fc.uint8Array({ maxLength: 64 }),
    fc.constantFrom(new Float64Array(2), new DataView(new ArrayBuffer(8)), [], {}, { packet: 1 }, { path: 7 }, 12n),
    fc.constant(() => {
      throw new Error('from the callback');
    }),
  );

  test.each(functions)('%s throws or answers, whatever it is given', (name) => {
    fc.assert(
      fc.property(fc.array(argument, { maxLength: 5 }), (args) => {
        try {
          const result = loose[name](...args) as { close?: () => void } | undefined;
          result?.close?.();
        } catch (error) {
          expect(error).toBeInstanceOf(Error);
        }
      }),
      { numRuns: 300 },
    );
  });

  test('a file descriptor that is no map is refused before anything is read through it', () => {
    const file = openSync('/dev/null', 'r');
    expect(thrownBy(() => addon.mapInfo(file)).code).toBe('EINVAL');
    expect(thrownBy(() => addon.mapLookup(file, u32(0))).code).toBe('EINVAL');
    expect(thrownBy(() => addon.mapDump(file)).code).toBe('EINVAL');
    expect(thrownBy(() => addon.mapInfo(99_999)).code).toBe('EBADF');
    addon.closeFd(file);
    expect(thrownBy(() => addon.closeFd(file)).code).toBe('EBADF');
  });

  test.skipIf(!privileged)('buffers of the wrong length never reach the kernel', () => {
    const object = addon.loadObject({ path: compileFixture() });
    const { fd } = object.maps.t_hash!;
    expect(thrownBy(() => addon.mapLookup(fd, Buffer.alloc(3)))).toBeInstanceOf(TypeError);
    expect(thrownBy(() => addon.mapUpdate(fd, u32(1), Buffer.alloc(7)))).toBeInstanceOf(TypeError);
    expect(thrownBy(() => addon.mapUpdateBatch(fd, u32(1), u64(1n), 2))).toBeInstanceOf(TypeError);
    expect(thrownBy(() => addon.mapUpdateBatch(fd, u32(1), u64(1n), 0xffffffff))).toBeInstanceOf(TypeError);
    expect(thrownBy(() => addon.mapDeleteBatch(fd, u32(1), 1 << 30))).toBeInstanceOf(TypeError);
    const program = object.programs.emit!;
    expect(thrownBy(() => addon.mapInfo(program)).code).toBe('EINVAL');
    expect(() => addon.mapLookup(program, u32(1))).toThrow();
    expect(() => addon.mapDump(program)).toThrow();
    expect(() => addon.linkUpdate(fd, program)).toThrow();
    expect(() => addon.progTestRun(fd, { packet: Buffer.alloc(64) })).toThrow();
    for (const map of Object.values(object.maps)) addon.closeFd(map.fd);
    for (const p of Object.values(object.programs)) addon.closeFd(p);
  });
});
