/**
 * What each kind of certificate may hold: step 1 of issuing (profile → lint → sign → ledger). A profile decides everything; of a
 * certification request only the public key comes in.
 */
import type { NodeName, SpiffeId, TrustDomain } from '../src/model/ids.ts';
import { nodeSpiffeId, serverSpiffeId, trustDomainSpiffeId } from '../src/model/spiffe-id.ts';

/** How far notBefore lies in the past, for clocks that are a little behind. Seconds. */
export const BACKDATE_SECONDS = 10;

/** Seconds. A wish beyond `maxTtlSeconds` is cut to it, and every certificate ends with its authority. */
export interface TtlLimits {
  readonly defaultTtlSeconds: number;
  readonly maxTtlSeconds: number;
}

export const DEFAULT_TTL_LIMITS: TtlLimits = { defaultTtlSeconds: 3600, maxTtlSeconds: 86_400 };

/** The whole of what a certificate will say, apart from serial number, issuer and key. Times are Unix ms, whole seconds. */
export interface CertificatePlan {
  /** An intermediate is an authority that another one signed for us; a downstream, one that we sign for a server below. */
  readonly profile: 'authority' | 'intermediate' | 'downstream' | 'workload' | 'node' | 'server';
  readonly spiffeId: SpiffeId;
  readonly notBeforeMs: number;
  readonly notAfterMs: number;
  readonly dnsNames: readonly string[];
  readonly nodeBinding: SpiffeId | undefined;
  readonly nodeIncarnation: bigint | undefined;
}

export interface Validity {
  readonly notBeforeMs: number;
  readonly notAfterMs: number;
}

export function planAuthority(trustDomain: TrustDomain, validity: Validity): CertificatePlan {
  return plan('authority', trustDomainSpiffeId(trustDomain), validity);
}

export function planIntermediate(trustDomain: TrustDomain, validity: Validity): CertificatePlan {
  return plan('intermediate', trustDomainSpiffeId(trustDomain), validity);
}

/** For a server below: as an intermediate, whatever its request says. */
export function planDownstream(trustDomain: TrustDomain, validity: Validity): CertificatePlan {
  return plan('downstream', trustDomainSpiffeId(trustDomain), validity);
}

export function isAuthority({ profile }: CertificatePlan): boolean {
  return profile === 'authority' || profile === 'intermediate' || profile === 'downstream';
}

export function planWorkload(
  spiffeId: SpiffeId,
  node: SpiffeId,
  dnsNames: readonly string[],
  validity: Validity,
): CertificatePlan {
  return { ...plan('workload', spiffeId, validity), dnsNames, nodeBinding: node };
}

export function planNode(trustDomain: TrustDomain, name: NodeName, incarnation: bigint, validity: Validity) {
  return { ...plan('node', nodeSpiffeId(trustDomain, name), validity), nodeIncarnation: incarnation };
}

export function planServer(trustDomain: TrustDomain, dnsNames: readonly string[], validity: Validity): CertificatePlan {
  return { ...plan('server', serverSpiffeId(trustDomain), validity), dnsNames };
}

function plan(profile: CertificatePlan['profile'], spiffeId: SpiffeId, validity: Validity): CertificatePlan {
  return { profile, spiffeId, ...validity, dnsNames: [], nodeBinding: undefined, nodeIncarnation: undefined };
}

/** Validity of an SVID asked for now: the least of the wish, the limit and what is left of its authority. */
export function svidValidity(
  nowMs: number,
  wishedTtlSeconds: number | undefined,
  limits: TtlLimits,
  authorityNotAfterMs: number,
): Validity {
  const second = Math.floor(nowMs / 1000) * 1000;
  const ttlSeconds = Math.min(wishedTtlSeconds ?? limits.defaultTtlSeconds, limits.maxTtlSeconds);
  return {
    notBeforeMs: second - BACKDATE_SECONDS * 1000,
    notAfterMs: Math.min(second + Math.floor(ttlSeconds) * 1000, authorityNotAfterMs),
  };
}
