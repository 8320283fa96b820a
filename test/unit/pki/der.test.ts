import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  type DerReader,
  der,
  derOid,
  derTime,
  derUnsignedInteger,
  oidKey,
  oidText,
  readDer,
  readTime,
  TAG,
} from '../../../src/pki/der.ts';

const read = <T>(bytes: Buffer, take: (reader: DerReader) => T) => readDer(bytes, 1 << 20, take);

describe('what is written in DER is read back', () => {
  it('content of every length', () => {
    for (const length of [0, 1, 127, 128, 255, 256, 65_535, 65_536, 100_000]) {
      const content = Buffer.alloc(length, 7);
      expect(read(der(TAG.octetString, content), (r) => r.content(TAG.octetString))).toEqual({
        ok: true,
        value: content,
      });
    }
  });

  it('object identifiers, also with numbers beyond 64 bits', () => {
    const number = fc.bigInt({ min: 0n, max: 2n ** 128n });
    fc.assert(
      fc.property(
        fc.integer({ min: 0, max: 2 }),
        fc.nat(39),
        fc.array(number, { maxLength: 6 }),
        (first, second, rest) => {
          const dotted = [first, second, ...rest].join('.');
          expect(oidText(oidKey(dotted))).toBe(dotted);
          expect(read(derOid(dotted), (r) => oidText(r.oid()))).toEqual({ ok: true, value: dotted });
        },
      ),
    );
  });

  it('unsigned integers, minimal', () => {
    fc.assert(
      fc.property(fc.uint8Array({ minLength: 1, maxLength: 20 }), (bytes) => {
        const written = derUnsignedInteger(bytes);
        const back = read(written, (r) => BigInt(`0x${r.unsignedInteger().toString('hex')}`));
        expect(back).toEqual({ ok: true, value: BigInt(`0x${Buffer.from(bytes).toString('hex')}`) });
      }),
    );
  });

  it('times from 1950 to 9999, to the second', () => {
    fc.assert(
      fc.property(fc.integer({ min: Date.UTC(1950, 0) / 1000, max: Date.UTC(9999, 11, 31) / 1000 }), (seconds) => {
        expect(read(derTime(seconds * 1000 + 999), readTime)).toEqual({ ok: true, value: seconds * 1000 });
      }),
    );
  });
});

describe('what is not DER is refused', () => {
  it.each([
    ['nothing', '', /missing/],
    ['a tag alone', '04', /length is missing/],
    ['an indefinite length', '048000', /indefinite/],
    ['a long form that fits the short one', '04810100', /short form/],
    ['a padded length', '0482000100', /padded/],
    ['a length of four bytes', '048400000001', /too large/],
    ['an element longer than the input', '040200', /longer than/],
    ['another tag', '050100', /tag 5 where 4/],
    ['trailing bytes', '040000', /after the last/],
  ])('%s', (_, hex, message) => {
    const outcome = read(Buffer.from(hex, 'hex'), (r) => r.content(TAG.octetString));
    expect(outcome).toEqual({ ok: false, error: expect.stringMatching(message) });
  });

  it('nesting without end is stopped', () => {
    const bottomless = (reader: DerReader): never => bottomless(reader.enter(TAG.sequence));
    let bytes: Buffer = Buffer.alloc(0);
    for (let i = 0; i < 1000; i++) bytes = der(TAG.sequence, bytes);
    expect(read(bytes, bottomless)).toEqual({ ok: false, error: 'nested too deeply' });
  });

  it('more bytes than allowed are not looked at', () => {
    expect(readDer(Buffer.alloc(11), 10, () => expect.unreachable())).toEqual({ ok: false, error: expect.any(String) });
  });

  it('an error that is a bug of ours is not swallowed', () => {
    const bug = () => {
      throw new TypeError('bug');
    };
    expect(() => read(Buffer.alloc(0), bug)).toThrow(TypeError);
  });
});
