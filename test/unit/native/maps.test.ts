/** Objects and maps through the addon, against the real kernel. */
import { availableParallelism } from 'node:os';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type LoadedObject, native } from '../../../native/index.ts';
import { compileFixture, privileged, thrownBy, u32, u64 } from './fixture.ts';

describe.skipIf(!privileged)('maps', () => {
  const addon = native();
  let object: LoadedObject;
  let path: string;
  const fd = (name: string) => object.maps[name]!.fd;

  beforeAll(() => {
    path = compileFixture();
    object = addon.loadObject({ path, maxEntries: { t_lpm: 32 } });
  });
  afterAll(() => {
    for (const map of Object.values(object.maps)) addon.closeFd(map.fd);
    for (const program of Object.values(object.programs)) addon.closeFd(program);
  });

  test('an object loads with its maps, programs and overridden sizes', () => {
    expect(Object.keys(object.maps).sort()).toEqual(['t_hash', 't_lpm', 't_percpu', 't_ring']);
    expect(Object.keys(object.programs).sort()).toEqual(['emit', 'linger', 'mark_it']);
    expect(addon.mapInfo(fd('t_lpm'))).toMatchObject({ type: 11, keySize: 8, valueSize: 4, maxEntries: 32 });
  });

  test('a record is written, found, kept by NOEXIST, and gone after its deletion', () => {
    addon.mapUpdate(fd('t_hash'), u32(1), u64(11n));
    expect(addon.mapLookup(fd('t_hash'), u32(1))).toEqual(u64(11n));
    expect(thrownBy(() => addon.mapUpdate(fd('t_hash'), u32(1), u64(12n), 1))).toMatchObject({
      code: 'EEXIST',
      errno: 17,
      syscall: 'bpf(MAP_UPDATE_ELEM)',
    });
    expect(addon.mapDelete(fd('t_hash'), u32(1))).toBe(true);
    expect(addon.mapDelete(fd('t_hash'), u32(1))).toBe(false);
    expect(addon.mapLookup(fd('t_hash'), u32(1))).toBeUndefined();
  });

  test('batches write, pass over missing keys when deleting, and a dump gives every record back', () => {
    const count = 10_000;
    const keys = Buffer.concat(Array.from({ length: count }, (_, i) => u32(i)));
    const values = Buffer.concat(Array.from({ length: count }, (_, i) => u64(BigInt(i) * 3n)));
    addon.mapUpdateBatch(fd('t_hash'), keys, values, count);
    const dump = addon.mapDump(fd('t_hash'));
    expect(dump.count).toBe(count);
    const seen = new Map(
      Array.from({ length: count }, (_, i) => [dump.keys.readUInt32LE(i * 4), dump.values.readBigUInt64LE(i * 8)]),
    );
    expect(seen.size).toBe(count);
    for (let i = 0; i < count; i++) expect(seen.get(i)).toBe(BigInt(i) * 3n);

    const some = Buffer.concat([5, 20_000, 6, 20_001, 20_002, 7].map(u32));
    expect(addon.mapDeleteBatch(fd('t_hash'), some, 6)).toBe(3);
    expect(addon.mapDeleteBatch(fd('t_hash'), keys, count)).toBe(count - 3);
    expect(addon.mapDump(fd('t_hash')).count).toBe(0);
  });

  test('a batch that does not fit says how much of it was written', () => {
    const count = 16_400;
    const keys = Buffer.concat(Array.from({ length: count }, (_, i) => u32(i)));
    const error = thrownBy(() => addon.mapUpdateBatch(fd('t_hash'), keys, Buffer.alloc(count * 8), count));
    expect(error.code).toBe('E2BIG');
    addon.mapDeleteBatch(fd('t_hash'), keys, count);
  });

  test('a trie is dumped and deleted in batches too', () => {
    const key = (length: number, last: number) => Buffer.concat([u32(length), Buffer.from([10, 0, last, 0])]);
    const keys = Buffer.concat([key(8, 0), key(24, 1), key(24, 2)]);
    addon.mapUpdateBatch(fd('t_lpm'), keys, Buffer.concat([1, 2, 3].map(u32)), 3);
    expect(addon.mapLookup(fd('t_lpm'), Buffer.concat([u32(32), Buffer.from([10, 0, 1, 9])]))).toEqual(u32(2));
    expect(addon.mapDump(fd('t_lpm')).count).toBe(3);
    expect(addon.mapDeleteBatch(fd('t_lpm'), keys, 3)).toBe(3);
  });

  test('a per-CPU map gives one value for each CPU, rounded up to 8 bytes', () => {
    const value = addon.mapLookup(fd('t_percpu'), u32(1))!;
    expect(value.length % 8).toBe(0);
    expect(value.length / 8).toBeGreaterThanOrEqual(availableParallelism());
    expect(addon.mapDump(fd('t_percpu'))).toMatchObject({ count: 4, values: { length: value.length * 4 } });
  });

  test('a test run reports verdict, mark and the packet', () => {
    const packet = Buffer.alloc(64, 7);
    const result = addon.progTestRun(object.programs.mark_it!, { packet, mark: 41 });
    expect(result).toMatchObject({ retval: 7, mark: 42, packet });
    expect(addon.progTestRun(object.programs.mark_it!, { packet, repeat: 1000 }).durationNs).toBeGreaterThan(0);
  });

  test('BTF tells names, offsets and sizes of a struct', () => {
    const [record] = addon.btfStructs(path, ['lpm_key']);
    expect(record).toEqual({
      name: 'lpm_key',
      size: 8,
      members: [
        { name: 'prefixlen', offset: 0, size: 4 },
        { name: 'address', offset: 4, size: 4 },
      ],
    });
    expect(thrownBy(() => addon.btfStructs(path, ['nowhere'])).code).toBe('ENOENT');
    expect(addon.btfStructs(undefined, ['sk_buff'])[0]!.size).toBeGreaterThan(100);
  });

  test('a program the verifier refuses is reported in the verifier’s words', () => {
    const error = thrownBy(() => addon.loadObject({ path: compileFixture('BROKEN') }));
    expect(error.syscall).toBe('bpf_object__load');
    expect(error.message).toMatch(/invalid access to packet|invalid mem access/);
  });

  test('a missing file, a missing map and a map of another kind are errors with a code', () => {
    expect(thrownBy(() => addon.loadObject({ path: '/nowhere.o' })).code).toBe('ENOENT');
    expect(thrownBy(() => addon.loadObject({ path, maxEntries: { nope: 1 } })).code).toBe('ENOENT');
    expect(thrownBy(() => addon.ringbufOpen(fd('t_hash'), () => {})).code).toBe('EINVAL');
    expect(thrownBy(() => addon.objGet('/sys/fs/bpf/cs-t-nowhere')).code).toBe('ENOENT');
  });
});
