/** Authorities of servers below this one: may the active authority sign one, and what falls with which revocation. */
import { CountersignError } from '../src/base/errors.ts';
import type { TrustDomain } from '../src/model/ids.ts';
import { nodeSpiffeId } from '../src/model/spiffe-id.ts';
import { keyIdentifierOfDigest } from './build.ts';
import type { Issuing } from './issuance.ts';
import type { LedgerRow } from './ledger.ts';
import { certificateOf } from './lives.ts';
import type { RevocationTarget } from './revocation.ts';

/** @throws CountersignError unsupported: a path length above forbids it (RFC 5280, section 4.2.1.9). */
export function checkMaySignDownstream({ id, chain, signer }: Issuing): void {
  const lengths = [signer.issuer.pathLength, ...chain.slice(1).map((der) => certificateOf(der).pathLength)];
  if (lengths.every((length, below) => length === undefined || length > below)) return;
  throw new CountersignError(
    'unsupported',
    `no authority for a server below: the active one, ${id}, was signed by an upstream for SVIDs alone (path length); give the server below that upstream itself`,
  );
}

/**
 * Everything that a revocation takes back: what it names comes last. With an authority of a server below goes all that was signed with its key, so each
 * certificate of that key is revoked, and the key itself.
 * @param downstreams those that have not ended.
 */
export function withDownstreams(
  what: RevocationTarget,
  downstreams: readonly LedgerRow[],
  trustDomain: TrustDomain,
): RevocationTarget[] {
  const isNamed = ({ serial, spiffeId, requester, node }: LedgerRow) => {
    if ('serial' in what) return serial === what.serial;
    if ('spiffeId' in what) return requester === what.spiffeId || spiffeId === what.spiffeId;
    return 'node' in what && node === nodeSpiffeId(trustDomain, what.node);
  };
  const keys = new Set(downstreams.filter(isNamed).map(({ keyId }) => keyId));
  const fallen = downstreams.filter(({ keyId }) => keys.has(keyId));
  const serials = fallen.map(({ serial }) => serial).filter((serial) => !('serial' in what) || serial !== what.serial);
  return [
    ...[...keys].map((keyId) => ({ authority: keyIdentifierOfDigest(keyId) })),
    ...serials.map((serial) => ({ serial })),
    what,
  ];
}
