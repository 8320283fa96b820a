/** HMAC as the Finished MAC Key computes it, against node:crypto and against itself under FIPS. */
import { createHmac } from 'node:crypto';
import { inspect } from 'node:util';
import fc from 'fast-check';
import { expect, it } from 'vitest';
import { FinishedKey, HASH_LENGTH } from '../../../src/auth/rfc9261/finished-key.ts';

const octets = (length: number) => fc.uint8Array({ minLength: length, maxLength: length }).map((a) => Buffer.from(a));

for (const hash of ['sha256', 'sha384'] as const) {
  it(`makes the HMAC of ${hash}, with and without FIPS, again and again under one key`, () => {
    const length = HASH_LENGTH[hash];
    fc.assert(
      fc.property(octets(length), fc.array(octets(length), { minLength: 1, maxLength: 4 }), (key, digests) => {
        const own = new FinishedKey(hash, key, false);
        const fips = new FinishedKey(hash, key, true);
        for (const digest of digests) {
          const expected = createHmac(hash, key).update(digest).digest();
          expect(own.mac(digest.toString('latin1'))).toBe(expected.toString('latin1'));
          expect(own.matches(digest.toString('latin1'), expected)).toBe(true);
          expect(own.matches(digest.toString('latin1'), expected.subarray(1))).toBe(false);
          expect(fips.mac(digest.toString('latin1'))).toBe(expected.toString('latin1'));
        }
      }),
    );
  });
}

it('does not print its key', () => {
  const text = inspect(new FinishedKey('sha256', Buffer.alloc(32, 0xab), true), { depth: 9, showHidden: true });
  expect(text).not.toMatch(/ab/);
  expect(JSON.stringify(new FinishedKey('sha256', Buffer.alloc(32, 0xab), false))).toBe('{}');
});
