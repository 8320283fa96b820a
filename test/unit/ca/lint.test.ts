import { describe, expect, expectTypeOf, it } from 'vitest';
import { makeAuthority } from '../../../ca/authority.ts';
import { buildTbs } from '../../../ca/build.ts';
import { SoftwareKey } from '../../../ca/keys/software-key.ts';
import { Linted, lintTbs } from '../../../ca/lint.ts';
import { type CertificatePlan, planAuthority, planNode, planServer, planWorkload } from '../../../ca/profile.ts';
import { signCertificate } from '../../../ca/sign.ts';
import { signerOf } from '../../../ca/signer.ts';
import { spiffeId } from '../../../src/model/spiffe-id.ts';
import { generateKey, publicKeyDer } from '../../../src/pki/keys.ts';
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

  it('cannot be made by anyone else', () => {
    // @ts-expect-error the constructor is private
    expect(() => new Linted(Buffer.alloc(1)).take()).toBeDefined();
    expectTypeOf<Buffer>().not.toExtend<Parameters<typeof signCertificate>[0]>();
  });
});
