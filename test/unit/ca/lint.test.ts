import { createPublicKey, verify } from 'node:crypto';
import { describe, expect, expectTypeOf, it } from 'vitest';
import { makeAuthority } from '../../../ca/authority.ts';
import { buildTbs } from '../../../ca/build.ts';
import type { SigningKey } from '../../../ca/keys/key-manager.ts';
import { MemoryKeys } from '../../../ca/keys/memory.ts';
import { SoftwareKey } from '../../../ca/keys/software-key.ts';
import { Linted, lintTbs } from '../../../ca/lint.ts';
import {
  type CertificatePlan,
  planAuthority,
  planIntermediate,
  planNode,
  planServer,
  planWorkload,
} from '../../../ca/profile.ts';
import { signCertificate } from '../../../ca/sign.ts';
import { type Signer, signerOf } from '../../../ca/signer.ts';
import { spiffeId } from '../../../src/model/spiffe-id.ts';
import { parseCertificate } from '../../../src/pki/certificate.ts';
import { contextConstructed, contextPrimitive, der, derOid, readDer, sequence, TAG } from '../../../src/pki/der.ts';
import { generateKey, publicKeyDer } from '../../../src/pki/keys.ts';
import { OID_DER } from '../../../src/pki/oids.ts';
import { keyOf } from '../pki/support/forge.ts';
import { FRONTEND, NAME_A, NODE_A, START, TD } from './support.ts';

const HOUR = 3_600_000;
const serial = Buffer.alloc(16, 0x5a);
const validity = { notBeforeMs: START, notAfterMs: START + HOUR };
const authorityKey = generateKey();
const authoritySpki = publicKeyDer(authorityKey);
const authorityPlan = planAuthority(TD, { notBeforeMs: START - HOUR, notAfterMs: START + 10 * HOUR });
const signing = new SoftwareKey('authority', authorityKey);
const authority = signerOf(signing, (await makeAuthority(signing, TD, authorityPlan)).certificate);
const key = publicKeyDer(generateKey());
const plan = planWorkload(FRONTEND, NODE_A, [], validity);

function lintWorkload(tbs: Buffer, as: CertificatePlan = plan, spki = key): readonly string[] {
  const linted = lintTbs(tbs, as, authority, spki);
  return linted.ok ? [] : linted.error;
}

describe('lint', () => {
  it('passes what the profiles plan', () => {
    for (const good of [plan, planNode(TD, NAME_A, 1n, validity), planServer(TD, ['server.example.org'], validity)]) {
      expect(lintWorkload(buildTbs(good, authority, key, serial), good)).toEqual([]);
    }
  });

  it.each<[string, Partial<CertificatePlan>, RegExp]>([
    ['a SPIFFE ID other than planned', { spiffeId: spiffeId('spiffe://example.org/admin') }, /SPIFFE ID is as planned/],
    ['another node', { nodeBinding: spiffeId('spiffe://example.org/node/b') }, /node binding is as planned/],
    ['no node', { nodeBinding: undefined }, /node binding is as planned/],
    ['an incarnation in a workload’s', { nodeIncarnation: 3n }, /incarnation is as planned/],
    ['a later end', { notAfterMs: START + 2 * HOUR }, /notAfter is as planned/],
    ['a DNS name more', { dnsNames: ['evil.example.org'] }, /DNS names are as planned/],
    ['the marks of a CA', { profile: 'authority' }, /a leaf is not a CA/],
  ])('refuses %s', (_, bent, rule) => {
    expect(lintWorkload(buildTbs({ ...plan, ...bent }, authority, key, serial)).join()).toMatch(rule);
  });

  it.each<[string, CertificatePlan, RegExp]>([
    ['an SVID that outlives its authority', { ...plan, notAfterMs: START + 11 * HOUR }, /outlive/],
    ['an SVID that begins before its authority', { ...plan, notBeforeMs: START - 2 * HOUR }, /before its authority/],
    ['an SVID without any life', { ...plan, notAfterMs: START }, /validity is not empty/],
    ['an SVID without a path', { ...plan, spiffeId: spiffeId('spiffe://example.org') }, /has a path/],
    ['a workload without a node', { ...plan, nodeBinding: undefined }, /only a workload, is bound/],
    [
      'a node of another trust domain',
      { ...plan, nodeBinding: spiffeId('spiffe://other.org/node/a') },
      /same trust domain/,
    ],
    ['a node without an incarnation', { ...plan, profile: 'node', nodeBinding: undefined }, /has an incarnation/],
    ['a DNS name that is none', { ...plan, dnsNames: ['a_b'] }, /are DNS names/],
  ])('refuses %s even if it is planned so', (_, bad, rule) => {
    expect(lintWorkload(buildTbs(bad, authority, key, serial), bad).join()).toMatch(rule);
  });

  it('refuses another key than was asked for, a weak key and a short serial number', () => {
    expect(lintWorkload(buildTbs(plan, authority, authoritySpki, serial)).join()).toMatch(/one that was asked for/);
    const weak = publicKeyDer(keyOf('P-521'));
    expect(lintWorkload(buildTbs(plan, authority, weak, serial), plan, weak).join()).toMatch(/allowed kind/);
    expect(lintWorkload(buildTbs(plan, authority, key, Buffer.alloc(16, 0).fill(1, 10))).join()).toMatch(/64 bits/);
  });

  it('refuses another issuer', () => {
    const stranger = { ...authority, issuer: { ...authority.issuer!, subjectDer: authoritySpki } };
    const linted = lintTbs(buildTbs(plan, authority, key, serial), plan, stranger, key);
    expect(linted).toMatchObject({ ok: false, error: [expect.stringMatching(/issuer is the authority/)] });
  });

  it('refuses bytes that do not parse, at any length', () => {
    const tbs = buildTbs(plan, authority, key, serial);
    for (let length = 0; length < tbs.length; length++) expect(lintWorkload(tbs.subarray(0, length))).toHaveLength(1);
  });
});

/** The same certificate with other extensions: each as a whole, DER. */
function withExtensions(tbs: Buffer, change: (extensions: Buffer[]) => Buffer[]): Buffer {
  const read = readDer(tbs, tbs.length, (reader) => {
    const fields = reader.enter(TAG.sequence);
    const parts: Buffer[] = [];
    while (fields.peek() !== contextConstructed(3)) parts.push(fields.whole(fields.peek()));
    const list = fields.enter(contextConstructed(3)).enter(TAG.sequence);
    const extensions: Buffer[] = [];
    while (!list.atEnd) extensions.push(list.whole(TAG.sequence));
    return { parts, extensions };
  });
  if (!read.ok) throw new Error(read.error);
  const { parts, extensions } = read.value;
  return sequence(...parts, der(contextConstructed(3), sequence(...change(extensions))));
}

const ext = (oid: Buffer, critical: boolean, ...value: Buffer[]) =>
  sequence(oid, ...(critical ? [Buffer.of(1, 1, 255)] : []), der(TAG.octetString, ...value));
/** Instead of the one of that kind. */
const replaced = (oid: Buffer, by?: Buffer) => (extensions: Buffer[]) =>
  extensions.flatMap((one) => (one.includes(oid) ? (by === undefined ? [] : [by]) : [one]));
const uri = (text: string) => der(contextPrimitive(6), Buffer.from(text));
const usage = (unused: number, bits: number) => Buffer.of(TAG.bitString, 2, unused, bits);
const OWN_URI = uri(FRONTEND);

describe('lint of extensions that no profile would write', () => {
  it.each<[string, (extensions: Buffer[]) => Buffer[], RegExp]>([
    [
      'one more',
      (all) => [...all, ext(derOid('1.2.3.4'), false, sequence())],
      /extensions of its profile and no others/,
    ],
    [
      'one more that is critical',
      (all) => [...all, ext(derOid('1.2.3.4'), true, sequence())],
      /no critical extension is unknown/,
    ],
    ['one twice', (all) => [...all, all[0]!], /does not parse/],
    ['no key purposes', replaced(OID_DER.extKeyUsage), /key purposes are serverAuth and clientAuth/],
    [
      'other key purposes',
      replaced(
        OID_DER.extKeyUsage,
        ext(OID_DER.extKeyUsage, false, sequence(OID_DER.clientAuth, OID_DER.anyExtendedKeyUsage)),
      ),
      /key purposes are/,
    ],
    [
      'a key usage that is not critical',
      replaced(OID_DER.keyUsage, ext(OID_DER.keyUsage, false, usage(7, 0x80))),
      /key usage is critical \(X\.509-SVID, section 4\.3/,
    ],
    ['no key usage', replaced(OID_DER.keyUsage), /key usage is digitalSignature alone/],
    [
      'a key usage with keyEncipherment',
      replaced(OID_DER.keyUsage, ext(OID_DER.keyUsage, true, usage(5, 0xa0))),
      /digitalSignature alone/,
    ],
    [
      'a key usage with keyCertSign',
      replaced(OID_DER.keyUsage, ext(OID_DER.keyUsage, true, usage(2, 0x84))),
      /digitalSignature alone/,
    ],
    [
      'basic constraints that are not critical',
      replaced(OID_DER.basicConstraints, ext(OID_DER.basicConstraints, false, sequence())),
      /basic constraints are critical/,
    ],
    [
      'cA',
      replaced(OID_DER.basicConstraints, ext(OID_DER.basicConstraints, true, sequence(Buffer.of(1, 1, 255)))),
      /a leaf is not a CA/,
    ],
    [
      'two SPIFFE IDs',
      replaced(
        OID_DER.subjectAltName,
        ext(OID_DER.subjectAltName, false, sequence(OWN_URI, uri('spiffe://example.org/b'))),
      ),
      /exactly one URI SAN/,
    ],
    ['no SPIFFE ID', replaced(OID_DER.subjectAltName), /exactly one URI SAN/],
    [
      'an e-mail address',
      replaced(
        OID_DER.subjectAltName,
        ext(OID_DER.subjectAltName, false, sequence(OWN_URI, der(contextPrimitive(1), Buffer.from('a@b')))),
      ),
      /no other names/,
    ],
    [
      'an IP address',
      replaced(
        OID_DER.subjectAltName,
        ext(OID_DER.subjectAltName, false, sequence(OWN_URI, der(contextPrimitive(7), Buffer.of(10, 0, 0, 1)))),
      ),
      /no other names/,
    ],
    ['name constraints', (all) => [...all, ext(OID_DER.nameConstraints, true, sequence())], /no name constraints/],
    ['no subject key identifier', replaced(OID_DER.subjectKeyIdentifier), /subject key identifier/],
    [
      'a critical subject key identifier',
      replaced(
        OID_DER.subjectKeyIdentifier,
        ext(OID_DER.subjectKeyIdentifier, true, der(TAG.octetString, Buffer.alloc(20))),
      ),
      /as critical as it must be/,
    ],
    ['no authority key identifier', replaced(OID_DER.authorityKeyIdentifier), /authority key identifier/],
    [
      'another authority’s key identifier',
      replaced(
        OID_DER.authorityKeyIdentifier,
        ext(OID_DER.authorityKeyIdentifier, false, sequence(der(contextPrimitive(0), Buffer.alloc(20)))),
      ),
      /authority key identifier/,
    ],
  ])('refuses %s', (_, change, rule) => {
    expect(lintWorkload(withExtensions(buildTbs(plan, authority, key, serial), change)).join()).toMatch(rule);
  });

  it('would pass them if nothing were changed', () => {
    expect(lintWorkload(withExtensions(buildTbs(plan, authority, key, serial), (all) => all))).toEqual([]);
  });
});

describe('lint of an authority', () => {
  const span = { notBeforeMs: START, notAfterMs: START + HOUR };
  const rootKey = new SoftwareKey('root', generateKey());
  const selfSigned: Signer = { key: rootKey, issuer: undefined };
  const lintRoot = (tbs: Buffer, as = planAuthority(TD, span), signer = selfSigned) => {
    const linted = lintTbs(tbs, as, signer, rootKey.publicKey);
    return linted.ok ? '' : linted.error.join();
  };
  const root = () => buildTbs(planAuthority(TD, span), selfSigned, rootKey.publicKey, serial);
  const intermediate = planIntermediate(TD, span);

  it('passes a root that signs itself and an intermediate under another authority', () => {
    expect(lintRoot(root())).toBe('');
    expect(lintRoot(buildTbs(intermediate, authority, rootKey.publicKey, serial), intermediate, authority)).toBe('');
  });

  it.each<[string, (extensions: Buffer[]) => Buffer[], RegExp]>([
    [
      'no cA',
      replaced(OID_DER.basicConstraints, ext(OID_DER.basicConstraints, true, sequence())),
      /an authority is a CA/,
    ],
    [
      'a path length',
      replaced(
        OID_DER.basicConstraints,
        ext(OID_DER.basicConstraints, true, sequence(Buffer.of(1, 1, 255), Buffer.of(2, 1, 0))),
      ),
      /only an intermediate, has the path length 0/,
    ],
    [
      'no keyCertSign',
      replaced(OID_DER.keyUsage, ext(OID_DER.keyUsage, true, usage(1, 0x02))),
      /keyCertSign and cRLSign/,
    ],
    [
      'a key that may do more',
      replaced(OID_DER.keyUsage, ext(OID_DER.keyUsage, true, usage(1, 0x86))),
      /keyCertSign and cRLSign/,
    ],
    [
      'key purposes',
      (all) => [...all, ext(OID_DER.extKeyUsage, false, sequence(OID_DER.serverAuth))],
      /no key purposes/,
    ],
    [
      'a SPIFFE ID with a path',
      replaced(OID_DER.subjectAltName, ext(OID_DER.subjectAltName, false, sequence(uri('spiffe://example.org/a')))),
      /SPIFFE ID of an authority has no path/,
    ],
    [
      'a node',
      (all) => [...all, ext(OID_DER.nodeBinding, false, der(TAG.utf8String, Buffer.from(NODE_A)))],
      /not bound to a node/,
    ],
  ])('refuses a root with %s', (_, change, rule) => {
    expect(lintRoot(withExtensions(root(), change))).toMatch(rule);
  });

  it('refuses a root that another key signs, and an intermediate that signs itself', () => {
    expect(lintRoot(root(), planAuthority(TD, span), { key: signing, issuer: undefined })).toMatch(
      /a root is signed with its own key/,
    );
    expect(lintRoot(buildTbs(intermediate, selfSigned, rootKey.publicKey, serial), intermediate)).toMatch(
      /an intermediate is signed by another/,
    );
  });

  it('refuses an intermediate below one that allows none, and one that would outlive its authority', () => {
    const last = { ...authority, issuer: { ...authority.issuer!, pathLength: 0 } };
    expect(lintRoot(buildTbs(intermediate, last, rootKey.publicKey, serial), intermediate, last)).toMatch(
      /may have another below it/,
    );
    const long = planIntermediate(TD, { notBeforeMs: START, notAfterMs: START + 11 * HOUR });
    expect(lintRoot(buildTbs(long, authority, rootKey.publicKey, serial), long, authority)).toMatch(/outlive/);
  });

  it.each(['ec-p384', 'rsa-3072'] as const)(
    'refuses a signature algorithm that is not that of a key of type %s',
    async (type) => {
      const other = { ...authority, key: await new MemoryKeys().generate('other', type) };
      expect(lintWorkload(buildTbs(plan, other, key, serial)).join()).toMatch(
        /signature algorithm is that of the signing key/,
      );
      const linted = lintTbs(buildTbs(plan, authority, key, serial), plan, other, key);
      expect(linted).toMatchObject({ ok: false, error: [expect.stringMatching(/signature algorithm/)] });
    },
  );
});

describe('the permit to sign', () => {
  it('is good for one signature', () => {
    const linted = lintTbs(buildTbs(plan, authority, key, serial), plan, authority, key);
    if (!linted.ok) throw new Error(linted.error.join());
    signCertificate(linted.value);
    expect(() => signCertificate(linted.value)).toThrow(/used before/);
  });

  it('covers the bytes that were read, whatever happens to the buffer', () => {
    const tbs = buildTbs(plan, authority, key, serial);
    const linted = lintTbs(tbs, plan, authority, key);
    if (!linted.ok) throw new Error(linted.error.join());
    const honest = Buffer.from(tbs);
    tbs.fill(0);
    expect(signCertificate(linted.value).includes(honest)).toBe(true);
  });

  it('says which key signs: that of the authority that lint was told of', () => {
    const linted = lintTbs(buildTbs(plan, authority, key, serial), plan, authority, key);
    if (!linted.ok) throw new Error(linted.error.join());
    const signed = parseCertificate(signCertificate(linted.value));
    if (!signed.ok) throw new Error(signed.error);
    const { tbs, signature } = signed.value;
    expect(verify('sha256', tbs, createPublicKey(authorityKey), signature)).toBe(true);
  });

  it('cannot be made by anyone else', () => {
    // @ts-expect-error the constructor is private
    expect(() => new Linted(Buffer.alloc(1)).take()).toBeDefined();
    expectTypeOf<Buffer>().not.toExtend<Parameters<typeof signCertificate>[0]>();
    expectTypeOf<Buffer>().not.toExtend<Parameters<SigningKey['sign']>[0]>();
  });
});
