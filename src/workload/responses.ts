/** The Workload API's answers, composed from what the node holds (SPIFFE Workload API, sections 5.2 and 5.3). Pure. */

import type { X509BundlesResponse, X509SVIDResponse } from '../../proto/gen/spiffe/workload/workload.ts';
import { err, ok, type Result } from '../base/errors.ts';
import type { ReasonCode } from '../base/registry/reason-codes.ts';
import type { RegistrationEntry } from '../model/entry.ts';
import type { Svid, TrustBundle } from '../model/identity.ts';
import type { TrustDomain } from '../model/ids.ts';
import { trustDomainOf } from '../model/spiffe-id.ts';
import { privateKeyDer } from '../pki/keys.ts';
import type { IdentitySnapshot } from './feed.ts';

/** Why a call gets no answer; `code` is a gRPC status. */
export interface Refusal {
  readonly code: number;
  readonly message: string;
  /** undefined: no fault of the caller's, nothing for the audit log. */
  readonly reason: ReasonCode | undefined;
}

/** Numbers of the gRPC statuses that the standard names, and of the two that protect this process. */
export const STATUS = {
  invalidArgument: 3,
  permissionDenied: 7,
  resourceExhausted: 8,
  unimplemented: 12,
  internal: 13,
  unavailable: 14,
} as const;

export const REFUSALS = {
  header: {
    code: STATUS.invalidArgument,
    message: 'the metadata workload.spiffe.io: true is missing; only a Workload API client may ask here',
    reason: 'WORKLOAD_HEADER_MISSING',
  },
  noIdentity: {
    code: STATUS.permissionDenied,
    message: 'no identity issued: no registration entry matches this process',
    reason: 'WORKLOAD_NO_IDENTITY',
  },
  starting: {
    code: STATUS.unavailable,
    message: 'the agent is starting and has no identities yet; try again',
    reason: undefined,
  },
  notIssued: {
    code: STATUS.unavailable,
    message: 'an entry matches this process, but it has no valid SVID now; try again',
    reason: undefined,
  },
  noBundle: {
    code: STATUS.unavailable,
    message: 'the agent has no trust bundle yet; try again',
    reason: undefined,
  },
  tooManyStreams: {
    code: STATUS.resourceExhausted,
    message: 'too many open streams of this user; close some',
    reason: undefined,
  },
  stopping: { code: STATUS.unavailable, message: 'the agent is shutting down; try again', reason: undefined },
  internal: { code: STATUS.internal, message: 'the agent failed; its log says why', reason: undefined },
  jwt: {
    code: STATUS.unimplemented,
    message: 'JWT-SVIDs are not served yet; use X.509-SVIDs (FetchX509SVID)',
    reason: undefined,
  },
} as const satisfies Record<string, Refusal>;

/** The whole state: every SVID the caller may have, the default first, each with the bundle of its own trust domain. */
export function composeX509Svids(
  snapshot: IdentitySnapshot,
  entries: readonly RegistrationEntry[],
  nowMs: number,
): Result<X509SVIDResponse, Refusal> {
  if (entries.length === 0) return err(REFUSALS.noIdentity);
  const bundles = bundlesByTrustDomain(snapshot.bundles);
  const svids = entries.flatMap((entry) => {
    const svid = validSvidOf(snapshot, entry, nowMs);
    if (svid === undefined) return [];
    return {
      spiffeId: svid.spiffeId,
      x509Svid: Buffer.concat(svid.chain),
      x509SvidKey: privateKeyDer(svid.privateKey),
      bundle: bundles.get(trustDomainOf(svid.spiffeId)) ?? Buffer.alloc(0),
      hint: entry.hint,
    };
  });
  if (svids.length === 0) return err(REFUSALS.notIssued);
  if (svids.some(({ bundle }) => bundle.length === 0)) return err(REFUSALS.noBundle);
  return ok({ svids, crl: [], federatedBundles: {} });
}

/** Bundles of the trust domains the caller has an identity in, keyed by the trust domain's SPIFFE ID. */
export function composeX509Bundles(
  snapshot: IdentitySnapshot,
  entries: readonly RegistrationEntry[],
): Result<X509BundlesResponse, Refusal> {
  if (entries.length === 0) return err(REFUSALS.noIdentity);
  const own = new Set(entries.map((entry) => trustDomainOf(entry.spiffeId)));
  const bundles: Record<string, Buffer> = {};
  for (const [trustDomain, der] of bundlesByTrustDomain(snapshot.bundles)) {
    if (own.has(trustDomain)) bundles[`spiffe://${trustDomain}`] = der;
  }
  if (Object.keys(bundles).length === 0) return err(REFUSALS.noBundle);
  return ok({ crl: [], bundles });
}

/** An SVID that has ended proves nothing: it is as good as none. */
function validSvidOf(snapshot: IdentitySnapshot, entry: RegistrationEntry, nowMs: number): Svid | undefined {
  const svid = snapshot.svidOf(entry.id);
  return svid === undefined || svid.notAfterMs <= nowMs ? undefined : svid;
}

function bundlesByTrustDomain(bundles: readonly TrustBundle[]): Map<TrustDomain, Buffer> {
  return new Map(bundles.map(({ trustDomain, authorities }) => [trustDomain, Buffer.concat(authorities)]));
}
