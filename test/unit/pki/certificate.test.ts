import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { parseCertificate } from '../../../src/pki/certificate.ts';
import {
  contextPrimitive,
  der,
  derBitString,
  derOid,
  derUnsignedInteger,
  sequence,
  TAG,
} from '../../../src/pki/der.ts';
import { OID } from '../../../src/pki/oids.ts';
import { verifyX509Svid } from '../../../src/pki/verify.ts';
import { bits, bundleOf, ca, extension, type ForgeOptions, leaf, NOW, uri } from './support/forge.ts';

const root = ca();
const svid = leaf(root);

const utc = (text: string) => der(TAG.utcTime, Buffer.from(text, 'latin1'));
const generalized = (text: string) => der(TAG.generalizedTime, Buffer.from(text, 'latin1'));

describe('parseCertificate', () => {
  it('reads what was written', () => {
    const binding = extension(OID.nodeBinding, der(TAG.utf8String, Buffer.from('spiffe://example.org/node/a')), false);
    const incarnation = extension(OID.nodeIncarnation, der(TAG.utf8String, Buffer.from('18446744073709551615')), false);
    const parsed = parseCertificate(leaf(root, { more: [binding, incarnation] }).der);
    expect(parsed).toMatchObject({
      ok: true,
      value: {
        serial: '1122334455667788',
        spiffeId: 'spiffe://example.org/ns/shop/sa/frontend',
        uriSanCount: 1,
        isCa: false,
        keyUsage: 1,
        extKeyUsage: [OID.serverAuth, OID.clientAuth],
        signatureAlgorithm: 'ecdsaSha256',
        keyKind: 'p256',
        nodeBinding: 'spiffe://example.org/node/a',
        nodeIncarnation: 2n ** 64n - 1n,
      },
    });
  });

  it.each<[string, Buffer, string]>([
    ['with its top bit set', derUnsignedInteger(Buffer.from('ff00', 'hex')), 'ff00'],
    ['of one digit', derUnsignedInteger(Buffer.of(7)), '07'],
  ])('gives a serial number %s without its sign byte', (_, serial, expected) => {
    expect(parseCertificate(leaf(root, { serial }).der)).toMatchObject({ ok: true, value: { serial: expected } });
  });

  it.each<[string, ForgeOptions]>([
    ['version 1', { version: Buffer.alloc(0) }],
    ['version 2', { version: Buffer.from([0xa0, 3, 2, 1, 1]) }],
    ['serial number zero', { serial: Buffer.from([2, 1, 0]) }],
    ['a negative serial number', { serial: Buffer.from([2, 1, 0x80]) }],
    ['a padded serial number', { serial: Buffer.from([2, 2, 0, 1]) }],
    ['a serial number of 21 bytes', { serial: der(TAG.integer, Buffer.alloc(21, 1)) }],
    ['an empty issuer', { issuerName: sequence() }],
    ['a name with an empty set', { subject: sequence(der(TAG.set)) }],
    ['30 February', { notBefore: utc('260230120000Z') }],
    ['a time without seconds', { notBefore: utc('2602011200Z') }],
    ['a time with an offset', { notBefore: utc('260201120000+0000') }],
    ['a fraction of a second', { notBefore: generalized('20510201120000.5Z') }],
    ['a GeneralizedTime before 2050', { notAfter: generalized('20490201120000Z') }],
    ['no extensions', { extensions: [] }],
    ['an extension twice', { more: [extension(OID.keyUsage, bits([0]), true)] }],
    [
      'an extension that writes out critical FALSE',
      { more: [sequence(derOid('1.2.3'), Buffer.from([1, 1, 0]), der(4))] },
    ],
    ['a boolean of 1', { more: [sequence(derOid('1.2.3'), Buffer.from([1, 1, 1]), der(4))] }],
    ['33 extensions', { more: Array.from({ length: 33 }, (_, i) => extension(`1.2.3.${i}`, Buffer.alloc(0), false)) }],
    ['a key usage without bits', { keyUsage: null, more: [extension(OID.keyUsage, Buffer.from([3, 1, 0]), true)] }],
    [
      'a key usage with trailing zeros',
      { keyUsage: null, more: [extension(OID.keyUsage, Buffer.from([3, 2, 0, 0x80]), true)] },
    ],
    [
      'a key usage with bits in the padding',
      { keyUsage: null, more: [extension(OID.keyUsage, Buffer.from([3, 2, 7, 0xff]), true)] },
    ],
    [
      'basic constraints that write out cA FALSE',
      { ca: null, more: [extension(OID.basicConstraints, sequence(Buffer.from([1, 1, 0])), true)] },
    ],
    ['a path length without cA', { ca: { isCa: false, pathLength: 1 } }],
    ['an empty extended key usage', { extKeyUsage: [] }],
    ['an empty SAN', { uris: [], more: [extension(OID.subjectAltName, sequence(), false)] }],
    ['a URI that is not ASCII', { uris: ['spiffe://example.org/\xe9'] }],
    ['a URI as a constructed element', { otherNames: [der(0xa6, uri('spiffe://example.org/a'))] }],
    ['a general name of no known kind', { otherNames: [der(contextPrimitive(9))] }],
    [
      'bytes behind an extension’s value',
      { ca: null, more: [extension(OID.basicConstraints, Buffer.concat([sequence(), Buffer.of(5, 0)]), true)] },
    ],
    [
      'a node incarnation with a leading zero',
      { more: [extension(OID.nodeIncarnation, der(TAG.utf8String, Buffer.from('07')), false)] },
    ],
    [
      'a node incarnation above 64 bits',
      { more: [extension(OID.nodeIncarnation, der(TAG.utf8String, Buffer.from('18446744073709551616')), false)] },
    ],
    ['a padded object identifier', { more: [sequence(der(TAG.oid, Buffer.from([0x2a, 0x80, 1])), der(4))] }],
  ])('refuses %s', (_, options) => {
    expect(parseCertificate(leaf(root, options).der)).toEqual({ ok: false, error: 'CERT_MALFORMED' });
  });

  it('takes a GeneralizedTime from 2050 on', () => {
    const parsed = parseCertificate(leaf(root, { notAfterMs: Date.UTC(2060, 1, 29) }).der);
    expect(parsed).toMatchObject({ ok: true, value: { notAfterMs: Date.UTC(2060, 1, 29) } });
  });

  it('refuses two signature algorithms that differ', () => {
    const other = Buffer.from(svid.der);
    const identifier = derOid(OID.ecdsaSha256);
    derOid(OID.ecdsaSha384).copy(other, other.lastIndexOf(identifier));
    expect(parseCertificate(other).ok).toBe(false);
  });

  it('refuses BER: an indefinite length, a padded length, trailing bytes', () => {
    const content = svid.der.subarray(4);
    for (const bytes of [
      Buffer.concat([Buffer.of(0x30, 0x80), content, Buffer.of(0, 0)]),
      Buffer.concat([Buffer.of(0x30, 0x83, 0), svid.der.subarray(2, 4), content]),
      Buffer.concat([svid.der, Buffer.of(0)]),
    ]) {
      expect(parseCertificate(bytes)).toEqual({ ok: false, error: 'CERT_MALFORMED' });
    }
  });

  it('refuses what is larger than any certificate of ours', () => {
    const more = [extension('1.2.3', Buffer.alloc(9000), false)];
    expect(parseCertificate(leaf(root, { more }).der)).toEqual({ ok: false, error: 'CERT_MALFORMED' });
  });

  it('refuses a signature that is not whole bytes', () => {
    expect(derBitString(Buffer.of(1)).toString('hex')).toBe('03020001');
    const bent = Buffer.from(svid.der);
    const signature = bent.lastIndexOf(Buffer.from([0x00, 0x30]));
    bent[signature] = 1;
    expect(parseCertificate(bent).ok).toBe(false);
  });
});

describe('bytes from anyone', () => {
  it('a certificate cut at any byte is refused and nothing throws', () => {
    for (let length = 0; length < svid.der.length; length++) {
      expect(parseCertificate(svid.der.subarray(0, length))).toEqual({ ok: false, error: 'CERT_MALFORMED' });
    }
  });

  it('a certificate with any one bit flipped never verifies and never throws', () => {
    const bundle = bundleOf(root);
    for (let i = 0; i < svid.der.length * 8; i++) {
      const bent = Buffer.from(svid.der);
      bent[i >> 3]! ^= 1 << (i & 7);
      expect(verifyX509Svid([bent], bundle, NOW).ok).toBe(false);
    }
  });

  it('a certificate with bytes changed, inserted or removed never verifies and never throws', () => {
    const bundle = bundleOf(root);
    const edit = fc.record({
      at: fc.nat(svid.der.length - 1),
      remove: fc.nat(8),
      insert: fc.uint8Array({ maxLength: 8 }),
    });
    fc.assert(
      fc.property(fc.array(edit, { minLength: 1, maxLength: 4 }), (edits) => {
        let bytes = Buffer.from(svid.der);
        for (const { at, remove, insert } of edits) {
          bytes = Buffer.concat([bytes.subarray(0, at), insert, bytes.subarray(at + remove)]);
        }
        fc.pre(!bytes.equals(svid.der));
        expect(verifyX509Svid([bytes], bundle, NOW).ok).toBe(false);
      }),
      { numRuns: 2000 },
    );
  });

  it('random bytes are refused and nothing throws', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 512 }), (bytes) => {
        expect(parseCertificate(Buffer.from(bytes))).toEqual({ ok: false, error: 'CERT_MALFORMED' });
      }),
    );
  });
});
