import { describe, expect, it } from 'vitest';
import type { ReasonCode } from '../../../src/base/registry/reason-codes.ts';
import type { TrustBundle } from '../../../src/model/identity.ts';
import type { TrustDomain } from '../../../src/model/ids.ts';
import { derTime, sequence } from '../../../src/pki/der.ts';
import { generateKey, publicKeyDer } from '../../../src/pki/keys.ts';
import { OID } from '../../../src/pki/oids.ts';
import { verifyX509Svid } from '../../../src/pki/verify.ts';
import {
  bundleOf,
  ca,
  dns,
  EMPTY_NAME,
  ed25519Key,
  extension,
  type Forged,
  type ForgeOptions,
  HOUR,
  KU,
  keyOf,
  leaf,
  NOW,
  name,
  rsaKey,
} from './support/forge.ts';

const root = ca();
const bundle = bundleOf(root);

function outcome(chain: Forged[], against: TrustBundle = bundle, nowMs = NOW): ReasonCode | string {
  const verified = verifyX509Svid(
    chain.map((certificate) => certificate.der),
    against,
    nowMs,
  );
  return verified.ok ? verified.value.spiffeId : verified.error;
}

const FRONTEND = 'spiffe://example.org/ns/shop/sa/frontend';

describe('an X.509-SVID that keeps the standard', () => {
  it('is verified, with who it is and until when', () => {
    const verified = verifyX509Svid([leaf(root).der], bundle, NOW);
    expect(verified).toMatchObject({ ok: true, value: { spiffeId: FRONTEND, validUntilMs: NOW + HOUR } });
  });

  it('holds no longer than the shortest certificate of its path, the authority included', () => {
    const brief = ca({ notAfterMs: NOW + 1000 });
    expect(verifyX509Svid([leaf(brief).der], bundleOf(brief), NOW)).toMatchObject({
      ok: true,
      value: { validUntilMs: NOW + 1000 },
    });
  });

  it.each<[string, ForgeOptions]>([
    ['without an extended key usage', { extKeyUsage: null }],
    ['without basic constraints', { ca: null }],
    ['with DNS names beside the URI', { otherNames: [dns('shop.example.org')] }],
    ['with an empty subject and a critical SAN', { subject: EMPTY_NAME, sanCritical: true }],
    ['with keyEncipherment too', { keyUsage: [KU.digitalSignature, KU.keyEncipherment] }],
    ['with an unknown extension that is not critical', { more: [extension('1.2.3.4', Buffer.of(5, 0), false)] }],
    ['with a P-384 key', { key: keyOf('P-384') }],
    ['with an RSA 2048 key', { key: rsaKey(2048) }],
    ['with a path of one character', { uris: ['spiffe://example.org/a'] }],
  ])('is taken %s', (_, options) => {
    expect(outcome([leaf(root, options)])).toMatch(/^spiffe:/);
  });

  it('is taken through an intermediate, with the root sent or left out', () => {
    const intermediate = ca({ issuer: root, subject: name('Intermediate') });
    const svid = leaf(intermediate);
    expect(outcome([svid, intermediate])).toBe(FRONTEND);
    expect(outcome([svid, intermediate, root])).toBe(FRONTEND);
  });

  it('is taken from a P-384 or RSA authority', () => {
    const p384 = ca({ key: keyOf('P-384'), algorithm: 'ecdsaSha384', hash: 'sha384' });
    expect(outcome([leaf(p384, { algorithm: 'ecdsaSha384', hash: 'sha384' })], bundleOf(p384))).toBe(FRONTEND);
    const rsa = ca({ key: rsaKey(2048), algorithm: 'rsaSha256' });
    expect(outcome([leaf(rsa, { algorithm: 'rsaSha256' })], bundleOf(rsa))).toBe(FRONTEND);
  });

  it('is found under the right one of two authorities of the same name', () => {
    const other = ca();
    expect(outcome([leaf(root)], bundleOf(other, root))).toBe(FRONTEND);
  });

  it('is taken although another certificate of the bundle does not parse', () => {
    const broken = { ...root, der: root.der.subarray(1) };
    expect(outcome([leaf(root)], bundleOf(broken, root))).toBe(FRONTEND);
  });
});

describe('a chain', () => {
  it('that is empty is refused', () => {
    expect(outcome([])).toBe('CERT_CHAIN_EMPTY');
  });

  it('that is too long is refused before it is parsed', () => {
    expect(outcome(Array.from({ length: 6 }, () => ({ ...root, der: Buffer.of(0) })))).toBe('CERT_CHAIN_TOO_LONG');
  });

  it('with a second leaf is refused, wherever it stands and whoever signed it', () => {
    const intermediate = ca({ issuer: root, subject: name('Intermediate') });
    const mine = leaf(root, { uris: ['spiffe://example.org/intruder'] });
    expect(outcome([mine, leaf(root)])).toBe('CERT_CHAIN_SECOND_LEAF');
    expect(outcome([leaf(intermediate), intermediate, mine])).toBe('CERT_CHAIN_SECOND_LEAF');
    expect(outcome([mine, mine])).toBe('CERT_CHAIN_SECOND_LEAF');
  });

  it('whose first certificate is a CA is refused, also with the leaf behind it', () => {
    const intermediate = ca({ issuer: root, subject: name('Intermediate') });
    expect(outcome([intermediate])).toBe('CERT_LEAF_IS_CA');
    expect(outcome([intermediate, leaf(intermediate)])).toBe('CERT_LEAF_IS_CA');
    expect(outcome([root])).toBe('CERT_LEAF_IS_CA');
  });

  it('whose leaf is itself listed in the bundle is refused', () => {
    const listed = leaf(root);
    expect(outcome([listed], bundleOf(root, listed))).toBe('CERT_LEAF_IS_CA');
  });

  it('that ends in an authority the bundle does not have is refused, also when that one is sent', () => {
    const stranger = ca({ subject: name('Stranger') });
    expect(outcome([leaf(stranger)])).toBe('CERT_UNTRUSTED');
    expect(outcome([leaf(stranger), stranger])).toBe('CERT_UNTRUSTED');
  });

  it('of a stranger that goes by the name of an authority is refused', () => {
    expect(outcome([leaf(ca())])).toBe('CERT_BAD_SIGNATURE');
  });

  it('with a certificate between that did not sign is refused', () => {
    const intermediate = ca({ issuer: root, subject: name('Intermediate') });
    const impostor = ca({ issuer: root, subject: name('Intermediate') });
    expect(outcome([leaf(intermediate), impostor])).toBe('CERT_BAD_SIGNATURE');
    const unrelated = ca({ issuer: root, subject: name('Unrelated') });
    expect(outcome([leaf(intermediate), unrelated])).toBe('CERT_UNTRUSTED');
  });

  it('against an empty bundle is refused', () => {
    expect(outcome([leaf(root)], bundleOf())).toBe('CERT_UNTRUSTED');
  });
});

describe('a leaf', () => {
  it.each<[string, ForgeOptions, ReasonCode]>([
    ['without a URI SAN', { uris: [] }, 'CERT_URI_SAN_COUNT'],
    ['with a DNS name alone', { uris: [], otherNames: [dns('example.org')] }, 'CERT_URI_SAN_COUNT'],
    ['with two SPIFFE IDs', { uris: [FRONTEND, 'spiffe://example.org/b'] }, 'CERT_URI_SAN_COUNT'],
    ['with the same SPIFFE ID twice', { uris: [FRONTEND, FRONTEND] }, 'CERT_URI_SAN_COUNT'],
    ['with a second URI that is no SPIFFE ID', { uris: [FRONTEND, 'https://example.org'] }, 'CERT_URI_SAN_COUNT'],
    ['with a URI of another scheme', { uris: ['https://example.org/a'] }, 'CERT_SPIFFE_ID_INVALID'],
    ['with an ID in upper case', { uris: ['SPIFFE://example.org/a'] }, 'CERT_SPIFFE_ID_INVALID'],
    ['with a dot segment', { uris: ['spiffe://example.org/a/../b'] }, 'CERT_SPIFFE_ID_INVALID'],
    ['with a trailing slash', { uris: ['spiffe://example.org/'] }, 'CERT_SPIFFE_ID_INVALID'],
    ['with a NUL in the ID', { uris: ['spiffe://example.org/a\0b'] }, 'CERT_SPIFFE_ID_INVALID'],
    ['without a path', { uris: ['spiffe://example.org'] }, 'CERT_NO_PATH'],
    ['of another trust domain', { uris: ['spiffe://other.org/a'] }, 'CERT_TRUST_DOMAIN'],
    ['of a trust domain that only begins alike', { uris: ['spiffe://example.org.evil/a'] }, 'CERT_TRUST_DOMAIN'],
    ['with an empty subject and a SAN that is not critical', { subject: EMPTY_NAME }, 'CERT_MALFORMED'],
    ['without a key usage', { keyUsage: null }, 'CERT_KEY_USAGE'],
    ['with a key usage that is not critical', { keyUsageCritical: false }, 'CERT_KEY_USAGE'],
    ['without digitalSignature', { keyUsage: [KU.keyEncipherment] }, 'CERT_KEY_USAGE'],
    ['with keyCertSign', { keyUsage: [KU.digitalSignature, KU.keyCertSign] }, 'CERT_KEY_USAGE'],
    ['with cRLSign', { keyUsage: [KU.digitalSignature, KU.crlSign] }, 'CERT_KEY_USAGE'],
    ['for servers only', { extKeyUsage: [OID.serverAuth] }, 'CERT_EXT_KEY_USAGE'],
    ['for clients only', { extKeyUsage: [OID.clientAuth] }, 'CERT_EXT_KEY_USAGE'],
    ['for any purpose, which names neither', { extKeyUsage: [OID.anyExtendedKeyUsage] }, 'CERT_EXT_KEY_USAGE'],
    [
      'with an unknown critical extension',
      { more: [extension('1.2.3.4', Buffer.of(5, 0), true)] },
      'CERT_CRITICAL_EXTENSION',
    ],
    ['with a P-521 key', { key: keyOf('P-521') }, 'CERT_WEAK_KEY'],
    ['with a secp256k1 key', { key: keyOf('secp256k1') }, 'CERT_WEAK_KEY'],
    ['with an Ed25519 key', { key: ed25519Key() }, 'CERT_WEAK_KEY'],
    ['with an RSA 1024 key', { key: rsaKey(1024) }, 'CERT_WEAK_KEY'],
    ['whose signature algorithm is not allowed', { algorithm: 'ecPublicKey' }, 'CERT_WEAK_KEY'],
    ['whose signature algorithm is not that of the authority’s key', { algorithm: 'rsaSha256' }, 'CERT_BAD_SIGNATURE'],
    ['whose signature is by another hash', { algorithm: 'ecdsaSha384' }, 'CERT_BAD_SIGNATURE'],
    ['whose signature is bent', { signature: (s) => Buffer.from(s).fill(1, 10, 12) }, 'CERT_BAD_SIGNATURE'],
    ['whose signature is empty', { signature: () => Buffer.alloc(0) }, 'CERT_BAD_SIGNATURE'],
    ['that has expired', { notAfterMs: NOW - 1000 }, 'CERT_EXPIRED'],
    ['that is not valid yet', { notBeforeMs: NOW + 1000 }, 'CERT_NOT_YET_VALID'],
  ])('%s is refused', (_, options, expected) => {
    expect(outcome([leaf(root, options)])).toBe(expected);
  });

  it('whose key is not a point of its curve is refused', () => {
    const spki = publicKeyDer(root.key);
    spki[spki.length - 1]! ^= 1;
    expect(outcome([leaf(root, { spki })])).toBe('CERT_MALFORMED');
  });

  it('is valid at its first and at its last moment, and not beside them', () => {
    const svid = leaf(root, { notBeforeMs: NOW, notAfterMs: NOW + 60_000 });
    expect(outcome([svid], bundle, NOW - 1)).toBe('CERT_NOT_YET_VALID');
    expect(outcome([svid], bundle, NOW)).toBe(FRONTEND);
    expect(outcome([svid], bundle, NOW + 60_000)).toBe(FRONTEND);
    expect(outcome([svid], bundle, NOW + 60_001)).toBe('CERT_EXPIRED');
  });
});

describe('a signing certificate', () => {
  const nameConstraints = extension(OID.nameConstraints, sequence(Buffer.of(0xa0, 0)), true);
  const broken: [string, ForgeOptions, ReasonCode][] = [
    ['without keyCertSign', { keyUsage: [KU.crlSign] }, 'CERT_ISSUER_NOT_CA'],
    ['without a key usage', { keyUsage: null }, 'CERT_ISSUER_NOT_CA'],
    ['with a path in its SPIFFE ID', { uris: ['spiffe://example.org/ca'] }, 'CERT_SPIFFE_ID_INVALID'],
    ['with a SPIFFE ID of another trust domain', { uris: ['spiffe://other.org'] }, 'CERT_TRUST_DOMAIN'],
    ['with two URI SANs', { uris: ['spiffe://example.org', 'spiffe://other.org'] }, 'CERT_URI_SAN_COUNT'],
    ['with name constraints', { more: [nameConstraints] }, 'CERT_NAME_CONSTRAINT'],
    [
      'with an unknown critical extension',
      { more: [extension('1.2.3.4', Buffer.of(5, 0), true)] },
      'CERT_CRITICAL_EXTENSION',
    ],
    ['for code signing only', { extKeyUsage: ['1.3.6.1.5.5.7.3.3'] }, 'CERT_EXT_KEY_USAGE'],
    ['that has expired', { notAfterMs: NOW - 1000 }, 'CERT_EXPIRED'],
    ['that is not valid yet', { notBeforeMs: NOW + 1000 }, 'CERT_NOT_YET_VALID'],
    ['with a P-521 key', { key: keyOf('P-521') }, 'CERT_WEAK_KEY'],
  ];

  it.each(broken)('%s is refused as an authority', (_, options, expected) => {
    const authority = ca(options);
    expect(outcome([leaf(authority)], bundleOf(authority))).toBe(expected);
  });

  it.each(broken)('%s is refused as an intermediate', (_, options, expected) => {
    const intermediate = ca({ issuer: root, subject: name('Intermediate'), ...options });
    expect(outcome([leaf(intermediate), intermediate])).toBe(expected);
  });

  it('need not have a SPIFFE ID', () => {
    const authority = ca({ uris: [] });
    expect(outcome([leaf(authority)], bundleOf(authority))).toBe(FRONTEND);
  });

  it('that is not a CA is refused, in the chain as a second leaf and in the bundle as no issuer', () => {
    const pretender = leaf(root, { subject: name('Pretender'), uris: ['spiffe://example.org/pretender'] });
    const victim = leaf(pretender);
    expect(outcome([victim, pretender])).toBe('CERT_CHAIN_SECOND_LEAF');
    expect(outcome([victim], bundleOf(pretender))).toBe('CERT_ISSUER_NOT_CA');
    const bold = leaf(root, { subject: name('Bold'), uris: [], keyUsage: [KU.keyCertSign] });
    expect(outcome([leaf(bold)], bundleOf(bold))).toBe('CERT_ISSUER_NOT_CA');
  });

  it('may not have more intermediates below it than its path length', () => {
    const strict = ca({ ca: { isCa: true, pathLength: 0 } });
    expect(outcome([leaf(strict)], bundleOf(strict))).toBe(FRONTEND);
    const below = ca({ issuer: strict, subject: name('Below') });
    expect(outcome([leaf(below), below], bundleOf(strict))).toBe('CERT_PATH_LENGTH');
    const one = ca({ issuer: root, subject: name('One'), ca: { isCa: true, pathLength: 0 } });
    const two = ca({ issuer: one, subject: name('Two') });
    expect(outcome([leaf(two), two, one])).toBe('CERT_PATH_LENGTH');
  });
});

describe('what is remembered of earlier verifications', () => {
  it('does not outlive the certificate', () => {
    const svid = leaf(root);
    expect(outcome([svid])).toBe(FRONTEND);
    expect(outcome([svid], bundle, NOW + 2 * HOUR)).toBe('CERT_EXPIRED');
    expect(outcome([svid])).toBe(FRONTEND);
  });

  it('does not outlive the authority in the bundle', () => {
    const svid = leaf(root);
    expect(outcome([svid])).toBe(FRONTEND);
    expect(outcome([svid], bundleOf(ca({ subject: name('Next CA') })))).toBe('CERT_UNTRUSTED');
  });

  it('does not carry over to an authority of the same name', () => {
    const svid = leaf(root);
    expect(outcome([svid])).toBe(FRONTEND);
    expect(outcome([svid], bundleOf(ca()))).toBe('CERT_BAD_SIGNATURE');
  });

  it('does not carry over to another trust domain', () => {
    const svid = leaf(root);
    expect(outcome([svid])).toBe(FRONTEND);
    expect(outcome([svid], { ...bundle, trustDomain: 'other.org' as TrustDomain })).toBe('CERT_TRUST_DOMAIN');
  });

  it('is not a listing: a leaf that the bundle lists since is refused', () => {
    const svid = leaf(root);
    expect(outcome([svid])).toBe(FRONTEND);
    expect(outcome([svid], bundleOf(root, svid))).toBe('CERT_LEAF_IS_CA');
  });

  it('does not hide a successor of the authority that has ended', () => {
    const key = generateKey();
    const [ending, lasting] = [ca({ key, notAfterMs: NOW + HOUR }), ca({ key, notAfterMs: NOW + 9 * HOUR })];
    const svid = leaf(ending, { notAfterMs: NOW + 8 * HOUR });
    expect(outcome([svid], bundleOf(ending, lasting))).toBe(FRONTEND);
    expect(outcome([svid], bundleOf(lasting, ending), NOW + 2 * HOUR)).toBe(FRONTEND);
  });

  it('is of the whole chain: what stands behind the leaf is looked at again', () => {
    const between = ca({ issuer: root, subject: name('Between') });
    const svid = leaf(between);
    expect(outcome([svid, between])).toBe(FRONTEND);
    expect(outcome([svid])).toBe('CERT_UNTRUSTED');
    expect(outcome([svid, leaf(root)])).toBe('CERT_CHAIN_SECOND_LEAF');
  });

  it('is not changed by a caller that changes its buffer', () => {
    const svid = leaf(root);
    const mine = Buffer.from(svid.der);
    expect(verifyX509Svid([mine], bundle, NOW).ok).toBe(true);
    mine.fill(0);
    expect(outcome([svid])).toBe(FRONTEND);
  });

  it('does not lend a good signature to other bytes', () => {
    const svid = leaf(root);
    expect(outcome([svid])).toBe(FRONTEND);
    const later = Buffer.from(svid.der);
    const end = later.indexOf(derTime(NOW + HOUR));
    derTime(NOW + 9 * HOUR).copy(later, end);
    expect(outcome([{ ...svid, der: later }])).toBe('CERT_BAD_SIGNATURE');
  });
});

it('a node binding that is not a SPIFFE ID is refused', () => {
  const binding = extension(OID.nodeBinding, Buffer.from([0x0c, 3, 0x61, 0x62, 0x63]), false);
  expect(outcome([leaf(root, { more: [binding] })])).toBe('CERT_MALFORMED');
});
