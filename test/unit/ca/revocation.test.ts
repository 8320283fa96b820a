import { describe, expect, it } from 'vitest';
import type { CertificateAuthority } from '../../../ca/api.ts';
import { makeAuthority } from '../../../ca/authority.ts';
import { buildTbs } from '../../../ca/build.ts';
import { MemoryKeys } from '../../../ca/keys/memory.ts';
import { lintTbs } from '../../../ca/lint.ts';
import { planIntermediate } from '../../../ca/profile.ts';
import { randomSerial } from '../../../ca/serial.ts';
import { signCertificate } from '../../../ca/sign.ts';
import { signerOf } from '../../../ca/signer.ts';
import type { UpstreamAuthority } from '../../../ca/upstream/upstream.ts';
import type { RevocationSubject } from '../../../src/model/identity.ts';
import type { NodeName } from '../../../src/model/ids.ts';
import { spiffeId } from '../../../src/model/spiffe-id.ts';
import { verifyCsr } from '../../../src/pki/csr.ts';
import { FRONTEND, NAME_A, NODE_A, TD, withCa, workloadRequest } from './support.ts';

type RevocationTarget = Parameters<CertificateAuthority['revoke']>[0];

async function subjectOf(ca: CertificateAuthority) {
  const outcome = await ca.issueWorkloadSvid(workloadRequest());
  if (!outcome.ok) throw new Error(outcome.error);
  const { serial, notBeforeMs } = outcome.value;
  const subject: RevocationSubject = { spiffeId: FRONTEND, serial, node: NODE_A, notBeforeMs };
  return subject;
}

describe('a revocation', () => {
  it.each<[string, (subject: RevocationSubject) => RevocationTarget]>([
    ['its SPIFFE ID', () => ({ spiffeId: FRONTEND })],
    ['its serial number', ({ serial }) => ({ serial })],
    ['its node', () => ({ node: NAME_A })],
  ])('takes back an SVID by %s', async (_, target) => {
    await withCa(async ({ open }) => {
      const ca = await open();
      const subject = await subjectOf(ca);
      expect(ca.isRevoked(subject)).toBe(false);
      ca.revoke(target(subject), 'stolen');
      expect(ca.isRevoked(subject)).toBe(true);
    });
  });

  it.each<RevocationTarget>([{ spiffeId: FRONTEND }, { node: NAME_A }])(
    'takes back what an authority signed that an upstream lets begin now, by %o',
    async (target) => {
      await withCa(async ({ open, clock }) => {
        const key = await new MemoryKeys().generate('root', 'ec-p256');
        const validity = { notBeforeMs: clock.nowMs(), notAfterMs: clock.nowMs() + 1e9 };
        const root = await makeAuthority(key, TD, validity);
        const upstream: UpstreamAuthority = {
          name: 'test',
          async mint(csr) {
            const spki = verifyCsr(csr);
            if (!spki.ok) throw new Error(spki.error);
            const plan = planIntermediate(TD, { ...validity, notAfterMs: validity.notAfterMs - 1000 });
            const signer = signerOf(key, root.certificate);
            const linted = lintTbs(buildTbs(plan, signer, spki.value, randomSerial()), plan, signer, spki.value);
            if (!linted.ok) throw new Error(linted.error.join());
            return { chain: [signCertificate(linted.value)], roots: [...root.roots] };
          },
        };
        const ca = await open({ upstream });
        const subject = await subjectOf(ca);
        expect(subject.notBeforeMs).toBe(validity.notBeforeMs);
        ca.revoke(target, 'stolen');
        expect(ca.isRevoked(subject)).toBe(true);
      });
    },
  );

  it('leaves others alone', async () => {
    await withCa(async ({ open }) => {
      const ca = await open();
      const subject = await subjectOf(ca);
      ca.revoke({ spiffeId: spiffeId('spiffe://example.org/ns/shop/sa/front') }, '');
      ca.revoke({ serial: `${subject.serial}00`.slice(-32) }, '');
      ca.revoke({ node: 'b' as NodeName }, '');
      expect(ca.isRevoked(subject)).toBe(false);
    });
  });

  it('takes back what was issued up to now, and not what is issued from the next second on', async () => {
    await withCa(async ({ open, clock }) => {
      const ca = await open();
      const before = await subjectOf(ca);
      clock.move(500);
      const { issuedUntil } = ca.revoke({ spiffeId: FRONTEND }, 'stolen');
      const sameSecond = await subjectOf(ca);
      clock.move(500);
      const after = await subjectOf(ca);
      expect([before, sameSecond, after].map((subject) => ca.isRevoked(subject))).toEqual([true, true, false]);
      expect(before.notBeforeMs).toBe(issuedUntil * 1000);
    });
  });

  it('is still there after a restart, in order', async () => {
    await withCa(async ({ open }) => {
      const ca = await open();
      const subject = await subjectOf(ca);
      ca.revoke({ node: 'b' as NodeName }, 'gone');
      ca.revoke({ serial: subject.serial }, 'stolen');
      const before = ca.revocations();
      ca.close();
      const again = await open();
      expect(again.revocations()).toEqual(before);
      expect(again.revocations().map((revocation) => revocation.sequence)).toEqual([1n, 2n]);
      expect(again.isRevoked(subject)).toBe(true);
      expect(again.revoke({ spiffeId: FRONTEND }, '').sequence).toBe(3n);
    });
  });

  it.each(['', 'xyz', 'ABCD', '0', '00'.repeat(21)])('of the serial number %j is refused', async (serial) => {
    await withCa(async ({ open }) => {
      const ca = await open();
      expect(() => ca.revoke({ serial }, '')).toThrow(/serial: not a serial number/);
    });
  });

  it('with an endless reason is refused', async () => {
    await withCa(async ({ open }) => {
      const ca = await open();
      expect(() => ca.revoke({ spiffeId: FRONTEND }, 'x'.repeat(257))).toThrow(/reason: longer than/);
    });
  });
});
