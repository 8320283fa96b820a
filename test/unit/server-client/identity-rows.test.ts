import { generateKeyPairSync, sign } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type CertificateAuthority, openCertificateAuthority } from '../../../ca/api.ts';
import type { TableRow } from '../../../identity/feed.ts';
import { Signer } from '../../../identity/signer.ts';
import { IdentityRow, type SignedIdentity } from '../../../proto/gen/countersign/server/v1/server.ts';
import { verifyRow, verifySigner } from '../../../src/agent/server-client/identity-rows.ts';
import { IdentityRows } from '../../../src/agent/server-client/tables.ts';
import type { Clock } from '../../../src/base/clock.ts';
import type { RevocationSubject } from '../../../src/model/identity.ts';
import type { NodeName, SecurityIdentity, TrustDomain } from '../../../src/model/ids.ts';
import { spiffeId } from '../../../src/model/spiffe-id.ts';
import { type Certificate, parseCertificate } from '../../../src/pki/certificate.ts';
import { createCsr } from '../../../src/pki/csr.ts';
import { generateKey } from '../../../src/pki/keys.ts';

const clock: Clock = { nowMs: () => Date.now(), bootNs: () => process.hrtime.bigint() };
const dir = mkdtempSync(join(tmpdir(), 'cs-rows-'));
let ca: CertificateAuthority;
let signer: Signer;
let leaf: Certificate;
const nothingRevoked = { isRevoked: () => false };
const bundle = () => ({ trustDomain: ca.trustDomain, authorities: ca.bundle().authorities });

beforeAll(async () => {
  ca = await openCertificateAuthority({ directory: join(dir, 'ca'), trustDomain: 'example.org' as TrustDomain, clock });
  signer = await Signer.create(ca);
  const verified = verifySigner(signer.svid.chain, bundle(), nothingRevoked, clock.nowMs());
  if (!verified.ok) throw new Error(verified.error);
  leaf = verified.value;
});
afterAll(() => {
  ca.close();
  rmSync(dir, { recursive: true, force: true });
});

function row(change: Partial<TableRow> = {}): TableRow {
  return {
    identity: 256 as SecurityIdentity,
    spiffeId: spiffeId('spiffe://example.org/frontend'),
    labels: { app: 'frontend' },
    ports: [],
    nodes: ['node-a' as NodeName],
    sequence: 5,
    ...change,
  };
}

test('a signed row is taken as it is', () => {
  expect(verifyRow(signer.sign(row()), leaf, bundle())).toMatchObject({
    ok: true,
    value: {
      sequence: 5n,
      row: { identity: 256, labels: { app: 'frontend' }, nodes: ['spiffe://example.org/node/node-a'] },
    },
  });
});

test('a row carries the ports that policies may name, and one with a port that is none is refused', () => {
  const ports = [{ name: 'http', protocol: 6, port: 8080 }];
  expect(verifyRow(signer.sign(row({ ports })), leaf, bundle())).toMatchObject({ ok: true, value: { row: { ports } } });
  for (const wrong of [
    { name: '', protocol: 6, port: 8080 },
    { name: 'http', protocol: 1, port: 8080 },
    { name: 'http', protocol: 6, port: 0 },
    { name: 'http', protocol: 6, port: 65_536 },
  ])
    expect(verifyRow(signer.sign(row({ ports: [wrong] })), leaf, bundle()), JSON.stringify(wrong)).toMatchObject({
      ok: false,
      error: 'a port of it is none',
    });
  const many = Array.from({ length: 65 }, (_, i) => ({ name: `p${i}`, protocol: 6, port: 1 }));
  expect(verifyRow(signer.sign(row({ ports: many })), leaf, bundle()).ok).toBe(false);
});

test('a row with any bit changed, in the row or in the signature, is refused', () => {
  const signed = signer.sign(row());
  const length = signed.row.length + signed.signature.length;
  fc.assert(
    fc.property(fc.nat(length - 1), fc.integer({ min: 0, max: 7 }), (at, bit) => {
      const bytes = Buffer.concat([signed.row, signed.signature]);
      bytes[at]! ^= 1 << bit;
      const changed = { row: bytes.subarray(0, signed.row.length), signature: bytes.subarray(signed.row.length) };
      return !verifyRow(changed, leaf, bundle()).ok;
    }),
  );
});

test('a signature over the bare row, without the context, is not one', () => {
  const { row: bytes } = signer.sign(row());
  const signature = sign('sha256', bytes, signer.svid.privateKey);
  expect(verifyRow({ row: bytes, signature }, leaf, bundle()).ok).toBe(false);
});

test("a row signed by anyone else's key is refused", () => {
  const { privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  const { row: bytes } = signer.sign(row());
  const signature = sign('sha256', Buffer.concat([Buffer.from('countersign identity row v1\n'), bytes]), privateKey);
  expect(verifyRow({ row: bytes, signature }, leaf, bundle()).ok).toBe(false);
});

test("a node's or a workload's SVID signs no table", async () => {
  const name = 'node-a' as NodeName;
  const csr = createCsr(generateKey());
  const node = await ca.issueNodeSvid({ csr, name, incarnation: 1n, requester: 'test' });
  if (!node.ok) throw new Error(node.error);
  const refused = { ok: false, error: 'AUTH_WRONG_SPIFFE_ID' };
  expect(verifySigner(node.value.chain, bundle(), nothingRevoked, clock.nowMs())).toEqual(refused);
  expect(verifySigner([], bundle(), nothingRevoked, clock.nowMs())).toEqual({ ok: false, error: 'CERT_CHAIN_EMPTY' });
});

test('a revoked server, and one whose signing key was taken back, signs no table', async () => {
  const { chain } = signer.svid;
  const refused = { ok: false, error: 'AUTH_REVOKED' };
  const authority = parseCertificate(ca.bundle().authorities[0]!);
  const keyId = authority.ok ? authority.value.subjectKeyId!.toString('hex') : '';
  const byKey = { isRevoked: ({ authorities }: RevocationSubject) => authorities?.includes(keyId) === true };
  const bySerial = { isRevoked: ({ serial }: RevocationSubject) => serial === leaf.serial };
  expect(verifySigner(chain, bundle(), byKey, clock.nowMs())).toEqual(refused);
  expect(verifySigner(chain, bundle(), bySerial, clock.nowMs())).toEqual(refused);
});

test.each([
  ['a reserved identity', { identity: 2 as SecurityIdentity }],
  ['an identity beyond the cluster', { identity: 65_536 as SecurityIdentity }],
  ['a SPIFFE ID of another trust domain', { spiffeId: spiffeId('spiffe://elsewhere.org/x') }],
  ['a SPIFFE ID without a path', { spiffeId: spiffeId('spiffe://example.org') }],
])('a row with %s is refused, even signed', (_, change) => {
  expect(verifyRow(signer.sign(row(change)), leaf, bundle()).ok).toBe(false);
});

test('bytes that are no row are refused, even signed', () => {
  fc.assert(
    fc.property(fc.uint8Array({ minLength: 1, maxLength: 64 }), (bytes) => {
      const context = Buffer.from('countersign identity row v1\n');
      const signature = sign('sha256', Buffer.concat([context, bytes]), signer.svid.privateKey);
      return !verifyRow({ row: Buffer.from(bytes), signature }, leaf, bundle()).ok;
    }),
  );
  expect(IdentityRow.encode(IdentityRow.create()).finish()).toHaveLength(0);
});

test('an old signature does not bring back an old row, also after the row is gone', () => {
  const table = new IdentityRows();
  const refusals: string[] = [];
  const refused = (_: string, why: string) => void refusals.push(why);
  const take = (signed: SignedIdentity[], removed: number[] = []) =>
    table.update(false, signed, removed, leaf, bundle(), refused);
  take([signer.sign(row())]);
  take([signer.sign(row({ sequence: 9, nodes: ['node-b' as NodeName] }))]);
  take([signer.sign(row())]);
  expect(refusals).toEqual([expect.stringContaining('older')]);
  expect(table.byIdentity(256 as SecurityIdentity)?.nodes).toEqual(['spiffe://example.org/node/node-b']);
  take([], [256]);
  take([signer.sign(row())]);
  expect(table.rows()).toEqual([]);
});

test('a snapshot that says the same of a row leaves it as it is, and tells of none but those that changed', () => {
  const table = new IdentityRows();
  const other = row({ identity: 257 as SecurityIdentity, spiffeId: spiffeId('spiffe://example.org/backend') });
  const take = (rows: TableRow[]) =>
    table.update(
      true,
      rows.map((r) => signer.sign(r)),
      [],
      leaf,
      bundle(),
      () => {},
    );
  take([row(), other]);
  const [before] = table.rows();
  const { changed, removed } = take([row(), { ...other, labels: { app: 'admin' } }]);
  expect(changed.map(({ identity }) => identity)).toEqual([257]);
  expect(removed).toEqual([]);
  expect(table.byIdentity(256 as SecurityIdentity)).toBe(before);
  expect(table.bySpiffeId(before!.spiffeId)).toBe(before);
});

test('one SPIFFE ID with two identities is neither', () => {
  const table = new IdentityRows();
  const signed = [row(), row({ identity: 257 as SecurityIdentity, labels: { app: 'admin' } })].map((r) =>
    signer.sign(r),
  );
  table.update(true, signed, [], leaf, bundle(), () => {});
  expect(table.rows()).toEqual([]);
  expect(table.bySpiffeId(spiffeId('spiffe://example.org/frontend'))).toBeUndefined();
});

test('without a verified signer no row is taken', () => {
  const table = new IdentityRows();
  table.update(true, [signer.sign(row())], [], undefined, bundle(), () => {});
  expect(table.rows()).toEqual([]);
});
