import { generateKeyPairSync, sign, verify } from 'node:crypto';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  ecdsaSignatureDer,
  ecdsaSignatureRaw,
  readKeyKind,
  readSignatureAlgorithm,
} from '../../../src/pki/algorithms.ts';
import { der, derBitString, derOid, derUnsignedInteger, readDer, sequence, TAG } from '../../../src/pki/der.ts';
import { OID } from '../../../src/pki/oids.ts';

const signature = (...parameters: Buffer[]) =>
  readDer(sequence(derOid(OID.rsaSha256), ...parameters), 4096, readSignatureAlgorithm);
const rsaKey = sequence(derUnsignedInteger(Buffer.alloc(256, 0xff)), derUnsignedInteger(Buffer.of(1, 0, 1)));
const key = (...parameters: Buffer[]) =>
  readDer(sequence(sequence(derOid(OID.rsaEncryption), ...parameters), derBitString(rsaKey)), 4096, readKeyKind);

describe('parameters of RSA in an AlgorithmIdentifier (RFC 4055)', () => {
  it('are NULL or absent', () => {
    for (const parameters of [[der(TAG.null)], []]) {
      expect(signature(...parameters)).toEqual({ ok: true, value: 'rsaSha256' });
      expect(key(...parameters)).toEqual({ ok: true, value: 'rsa' });
    }
  });

  it('are not a NULL with content, which would be a second spelling of what was signed', () => {
    const filled = der(TAG.null, Buffer.of(1, 2, 3));
    expect(signature(filled)).toEqual({ ok: false, error: 'a NULL with content' });
    expect(key(filled)).toEqual({ ok: false, error: 'a NULL with content' });
  });

  it('are nothing else', () => {
    const other = der(TAG.octetString, Buffer.of(1));
    expect(signature(other)).toEqual({ ok: true, value: undefined });
    expect(key(other)).toEqual({ ok: true, value: undefined });
  });
});

describe('r‖s of an ECDSA signature (RFC 7518, section 3.4)', () => {
  it('is what node:crypto verifies, on each curve', () => {
    for (const [namedCurve, half] of [
      ['P-256', 32],
      ['P-384', 48],
    ] as const) {
      const { privateKey, publicKey } = generateKeyPairSync('ec', { namedCurve });
      const data = Buffer.from('data');
      const raw = ecdsaSignatureRaw(sign('sha256', data, privateKey), half);
      expect(raw).toHaveLength(2 * half);
      expect(verify('sha256', data, { key: publicKey, dsaEncoding: 'ieee-p1363' }, raw)).toBe(true);
    }
  });

  it('keeps its length where numbers are short, and comes back from DER as it was', () => {
    const number = fc.uint8Array({ minLength: 32, maxLength: 32 });
    const short = fc.nat(31).map((zeros) => new Uint8Array(32).fill(0x80, zeros));
    fc.assert(
      fc.property(fc.oneof(number, short), fc.oneof(number, short), (r, s) => {
        const raw = Buffer.concat([r, s]);
        expect(ecdsaSignatureRaw(ecdsaSignatureDer(raw), 32)).toEqual(raw);
      }),
    );
  });
});
