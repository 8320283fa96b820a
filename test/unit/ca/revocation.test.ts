import { describe, expect, it } from 'vitest';
import type { CertificateAuthority } from '../../../ca/api.ts';
import type { RevocationSubject } from '../../../src/model/identity.ts';
import type { NodeName } from '../../../src/model/ids.ts';
import { spiffeId } from '../../../src/model/spiffe-id.ts';
import { FRONTEND, NAME_A, NODE_A, withCa, workloadRequest } from './support.ts';

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
