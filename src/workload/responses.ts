/** The Workload API's answers, composed from what the node holds (SPIFFE Workload API, sections 5.2 and 6.2). Pure. */

import type {
  JWTBundlesResponse,
  X509BundlesResponse,
  X509SVIDResponse,
} from '../../proto/gen/spiffe/workload/workload.ts';
import { err, ok, type Result } from '../base/errors.ts';
import type { ReasonCode } from '../base/registry/reason-codes.ts';
import type { RegistrationEntry } from '../model/entry.ts';
import type { Svid, TrustBundle } from '../model/identity.ts';
import { trustDomainOf, trustDomainSpiffeId } from '../model/spiffe-id.ts';
import { privateKeyDer } from '../pki/keys.ts';
import { encodeJwtBundle } from '../pki/spiffe-bundle.ts';
import type { IdentitySnapshot } from './feed.ts';

/** Why a call gets no answer; `code` is a gRPC status. */
export interface Refusal {
  readonly code: number;
  readonly message: string;
  /** undefined: no fault of the caller's, nothing for the audit log. */
  readonly reason: ReasonCode | undefined;
  /** It is likely to pass in a moment: a stream waits for that. */
  readonly passing?: true;
}

/** Numbers of the gRPC statuses that the standard names, and of the two that protect this process. */
export const STATUS = {
  invalidArgument: 3,
  deadlineExceeded: 4,
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
    passing: true,
  },
  noBundle: {
    code: STATUS.unavailable,
    message: 'the agent has no trust bundle yet; try again',
    reason: undefined,
    passing: true,
  },
  notAttested: {
    code: STATUS.unavailable,
    message: 'this process could not be attested in full now, see the log of the agent; try again',
    reason: 'WORKLOAD_NOT_ATTESTED',
  },
  audience: {
    code: STATUS.invalidArgument,
    message: 'audience must be specified: 1 to 16, each of 1 to 2,048 characters, together at most 4,096',
    reason: undefined,
  },
  spiffeId: {
    code: STATUS.invalidArgument,
    message: 'spiffe_id is not a SPIFFE ID; leave it empty for all identities of this process',
    reason: undefined,
  },
  otherIdentity: {
    code: STATUS.permissionDenied,
    message: 'no identity issued: no registration entry gives this process the SPIFFE ID it asks for',
    reason: 'WORKLOAD_NO_IDENTITY',
  },
  jwtRefused: {
    code: STATUS.permissionDenied,
    message: 'the identity is revoked: no JWT-SVID is issued',
    reason: undefined,
  },
  jwtNotIssued: {
    code: STATUS.unavailable,
    message: 'no JWT-SVID could be had from the identity server now; try again',
    reason: undefined,
  },
  svid: {
    code: STATUS.invalidArgument,
    message: 'svid must be specified: the JWT-SVID to validate',
    reason: undefined,
  },
  tooManyCalls: {
    code: STATUS.resourceExhausted,
    message: 'too many open calls of this user; close some',
    reason: undefined,
  },
  noRequest: {
    code: STATUS.deadlineExceeded,
    message: 'the call was opened and nothing was asked in it',
    reason: undefined,
  },
  tooOften: {
    code: STATUS.resourceExhausted,
    message: 'this user asks too often; keep streams open and JWT-SVIDs until half their life, and try again later',
    reason: undefined,
  },
  stopping: { code: STATUS.unavailable, message: 'the agent is shutting down; try again', reason: undefined },
  internal: { code: STATUS.internal, message: 'the agent failed; its log says why', reason: undefined },
} as const satisfies Record<string, Refusal>;

/** The whole state: every SVID the caller may have, the default first, each with the bundle of its own trust domain. */
export function composeX509Svids(
  snapshot: IdentitySnapshot,
  entries: readonly RegistrationEntry[],
  nowMs: number,
): Result<X509SVIDResponse, Refusal> {
  const svids = validSvidsOf(snapshot, entries, nowMs);
  if (!svids.ok) return svids;
  const { own, federated } = bundlesFor(snapshot, entries);
  const hintOf = uniqueHints();
  const messages = svids.value.map(({ entry, svid }) => ({
    spiffeId: svid.spiffeId,
    x509Svid: Buffer.concat(svid.chain),
    x509SvidKey: privateKeyDer(svid.privateKey),
    bundle: authoritiesOf(own.find(({ trustDomain }) => trustDomain === trustDomainOf(svid.spiffeId))),
    hint: hintOf(entry),
  }));
  if (messages.some(({ bundle }) => bundle.length === 0)) return err(REFUSALS.noBundle);
  return ok({ svids: messages, crl: [...snapshot.crls], federatedBundles: byId(federated, authoritiesOf) });
}

/** Bundles of the caller's own trust domain and of those its entries federate with, by the trust domains' SPIFFE IDs. */
export function composeX509Bundles(
  snapshot: IdentitySnapshot,
  entries: readonly RegistrationEntry[],
): Result<X509BundlesResponse, Refusal> {
  const bundles = bundlesToSee(snapshot, entries);
  if (!bundles.ok) return bundles;
  return ok({ crl: [...snapshot.crls], bundles: byId(bundles.value, authoritiesOf) });
}

/** The same as JWK Sets (RFC 7517) of keys for JWT-SVIDs and of no others (section 6.2.2). */
export function composeJwtBundles(
  snapshot: IdentitySnapshot,
  entries: readonly RegistrationEntry[],
): Result<JWTBundlesResponse, Refusal> {
  const bundles = bundlesToSee(snapshot, entries);
  if (!bundles.ok) return bundles;
  return ok({ bundles: byId(bundles.value, (bundle) => Buffer.from(encodeJwtBundle(bundle))) });
}

/** What a caller may validate others by. */
export function bundlesToSee(
  snapshot: IdentitySnapshot,
  entries: readonly RegistrationEntry[],
): Result<readonly TrustBundle[], Refusal> {
  if (entries.length === 0) return err(REFUSALS.noIdentity);
  const { own, federated } = bundlesFor(snapshot, entries);
  return own.length === 0 ? err(REFUSALS.noBundle) : ok([...own, ...federated]);
}

/** Bundles of the trust domains the caller has an identity in, and those of the foreign ones that its entries name. */
export function bundlesFor(snapshot: IdentitySnapshot, entries: readonly RegistrationEntry[]) {
  const ownDomains = new Set(entries.map((entry) => trustDomainOf(entry.spiffeId)));
  const named = new Set(entries.flatMap((entry) => entry.federatesWith));
  return {
    own: snapshot.bundles.filter(({ trustDomain }) => ownDomains.has(trustDomain)),
    federated: snapshot.bundles.filter(({ trustDomain }) => named.has(trustDomain) && !ownDomains.has(trustDomain)),
  };
}

/** In the order of the entries. An SVID that has ended proves nothing: it is as good as none. */
export function validSvidsOf(
  snapshot: IdentitySnapshot,
  entries: readonly RegistrationEntry[],
  nowMs: number,
): Result<{ readonly entry: RegistrationEntry; readonly svid: Svid }[], Refusal> {
  if (entries.length === 0) return err(REFUSALS.noIdentity);
  const svids = entries.flatMap((entry) => {
    const svid = snapshot.svidOf(entry.id);
    return svid === undefined || svid.notAfterMs <= nowMs ? [] : [{ entry, svid }];
  });
  return svids.length === 0 ? err(REFUSALS.notIssued) : ok(svids);
}

/** "servers MUST ensure its value is unique amongst the set of returned SVIDs" (section 5.2.1): the first entry keeps it. */
export function uniqueHints(): (entry: RegistrationEntry) => string {
  const given = new Set<string>();
  return ({ hint }) => {
    if (given.has(hint)) return '';
    given.add(hint);
    return hint;
  };
}

function authoritiesOf(bundle: TrustBundle | undefined): Buffer {
  return Buffer.concat(bundle?.authorities ?? []);
}

function byId(bundles: readonly TrustBundle[], encode: (bundle: TrustBundle) => Buffer): Record<string, Buffer> {
  return Object.fromEntries(bundles.map((bundle) => [trustDomainSpiffeId(bundle.trustDomain), encode(bundle)]));
}
