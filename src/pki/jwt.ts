/**
 * JWT-SVIDs (JWT-SVID standard; RFC 7515, RFC 7519): what is signed for one, and whether a token that somebody shows is one. A token's
 * story: the CA signs what `jwtSvidSigningInput` wrote, a workload shows it, the Workload API asks `validateJwtSvid` whose it is.
 */
import { verify as cryptoVerify, type KeyObject } from 'node:crypto';
import { err, ok, type Result } from '../base/errors.ts';
import type { ReasonCode } from '../base/registry/reason-codes.ts';
import type { JwtAuthority, TrustBundle } from '../model/identity.ts';
import type { SpiffeId } from '../model/ids.ts';
import { parseSpiffeId } from '../model/spiffe-id.ts';
import { type JwtKeyKind, jwtKeyOf } from './jwt-keys.ts';

/** JWT-SVID, section 2.1: RFC 7518, sections 3.3, 3.4 and 3.5, and nothing else. */
export type JwsAlgorithm = keyof typeof ALGORITHMS;

const ALGORITHMS = {
  RS256: { kind: 'rsa', hash: 'sha256', signature: {} },
  RS384: { kind: 'rsa', hash: 'sha384', signature: {} },
  RS512: { kind: 'rsa', hash: 'sha512', signature: {} },
  // RFC 7518, section 3.4: the curve is part of the algorithm, the signature is r || s
  ES256: { kind: 'P-256', hash: 'sha256', signature: { dsaEncoding: 'ieee-p1363' } },
  ES384: { kind: 'P-384', hash: 'sha384', signature: { dsaEncoding: 'ieee-p1363' } },
  ES512: { kind: 'P-521', hash: 'sha512', signature: { dsaEncoding: 'ieee-p1363' } },
  // RFC 7518, section 3.5: the salt is as long as the hash. RSA_PKCS1_PSS_PADDING is 6.
  PS256: { kind: 'rsa', hash: 'sha256', signature: { padding: 6, saltLength: 32 } },
  PS384: { kind: 'rsa', hash: 'sha384', signature: { padding: 6, saltLength: 48 } },
  PS512: { kind: 'rsa', hash: 'sha512', signature: { padding: 6, saltLength: 64 } },
} as const satisfies Record<
  string,
  {
    readonly kind: JwtKeyKind;
    readonly hash: string;
    readonly signature: {
      readonly dsaEncoding?: 'ieee-p1363';
      readonly padding?: number;
      readonly saltLength?: number;
    };
  }
>;

/** Holds a SPIFFE ID and audiences of every length that is issued here. */
export const MAX_JWT_BYTES = 16_384;
/** RFC 7515, section 4.1.4 leaves it open; SPIFFE bundles are published by others. */
export const MAX_KEY_ID_LENGTH = 256;
const MAX_AUDIENCES = 64;
/**
 * Of a token that is issued here. JWT-SVID, section 6.2 recommends one audience: whoever receives a token can show it to the others it names. A
 * SPIFFE ID of the greatest length is one.
 */
export const AUDIENCE_LIMITS = { count: 16, length: 2_048, together: 4_096 } as const;

/** What is wrong with the audience of a token to be issued, and what to do. undefined: nothing. One that is named twice counts once. */
export function audienceProblem(audience: readonly string[]): string | undefined {
  const distinct = new Set(audience);
  const { count, length, together } = AUDIENCE_LIMITS;
  if (distinct.size === 0) return 'name at least one audience';
  if (distinct.size > count) return `name at most ${count} audiences`;
  let sum = 0;
  for (const one of distinct) {
    if (one.length === 0 || one.length > length) return `an audience has 1 to ${length} characters`;
    if (/\p{Cc}|\p{Cs}/u.test(one)) return 'an audience holds no control characters';
    sum += one.length;
  }
  return sum > together ? `audiences have at most ${together} characters together` : undefined;
}
/** Whoever walks through the claims does it by recursion. */
const MAX_CLAIM_DEPTH = 16;

export interface JwtSvidFields {
  readonly alg: JwsAlgorithm;
  readonly kid: string;
  readonly spiffeId: SpiffeId;
  /** At least one. */
  readonly audience: readonly string[];
  /** Unix seconds. */
  readonly issuedAt: number;
  readonly expiresAt: number;
  /** For relying parties that speak OpenID Connect: what the discovery document says. */
  readonly issuer?: string;
  readonly jti?: string;
}

/** What the signature of a JWT-SVID is over (RFC 7515, section 5.1): "header.payload". */
export function jwtSvidSigningInput(fields: JwtSvidFields): string {
  const { spiffeId, audience, issuedAt, expiresAt, issuer, jti } = fields;
  const claims: Record<string, unknown> = { sub: spiffeId, aud: audience, exp: expiresAt, iat: issuedAt };
  if (issuer !== undefined) claims.iss = issuer;
  if (jti !== undefined) claims.jti = jti;
  return `${encodedHeader(fields.alg, fields.kid)}.${Buffer.from(JSON.stringify(claims)).toString('base64url')}`;
}

/** JWS Compact Serialization (RFC 7515, section 7.1). @param signature as RFC 7518 has it: of ECDSA r || s. */
export function jwtFrom(signingInput: string, signature: Buffer): string {
  return `${signingInput}.${signature.toString('base64url')}`;
}

/** One key signs many: its header is written once. */
let lastHeader = { alg: '', kid: '', text: '' };

function encodedHeader(alg: JwsAlgorithm, kid: string): string {
  if (lastHeader.alg !== alg || lastHeader.kid !== kid) {
    const text = Buffer.from(JSON.stringify({ alg, kid, typ: 'JWT' })).toString('base64url');
    lastHeader = { alg, kid, text };
  }
  return lastHeader.text;
}

export interface VerifiedJwtSvid {
  readonly spiffeId: SpiffeId;
  /** All of them, as they stand in the token: sub, aud, exp and whatever else the issuer wrote. */
  readonly claims: Readonly<Record<string, unknown>>;
  /** Unix ms: from then on it is not accepted. */
  readonly expiresAtMs: number;
}

/**
 * @param audience what the validator identifies with. The token must name it.
 * @param bundles those the validator trusts; each vouches for its own trust domain only.
 */
export function validateJwtSvid(
  token: string,
  audience: string,
  bundles: readonly TrustBundle[],
  nowMs: number,
): Result<VerifiedJwtSvid, ReasonCode> {
  const parsed = parseToken(token);
  if (!parsed.ok) return parsed;
  const { header, claims, signingInput, signature } = parsed.value;

  const algorithm = checkHeader(header);
  if (!algorithm.ok) return algorithm;
  const subject = typeof claims.sub === 'string' ? parseSpiffeId(claims.sub) : undefined;
  // section 3.1: of a workload. An ID without a path is the trust domain's own.
  if (!subject?.ok || subject.value.path === '') return err('JWT_SUBJECT');
  const { id, trustDomain } = subject.value;
  const bundle = bundles.find((candidate) => candidate.trustDomain === trustDomain);
  if (bundle === undefined) return err('JWT_UNTRUSTED');

  const refusal =
    checkSignature(algorithm.value, header.kid, bundle, nowMs, signingInput, signature) ??
    checkTimes(claims, nowMs) ??
    checkAudience(claims.aud, audience);
  if (refusal !== undefined) return err(refusal);
  return ok({ spiffeId: id, claims, expiresAtMs: Math.floor((claims.exp as number) * 1000) });
}

interface Token {
  readonly header: Record<string, unknown>;
  readonly claims: Record<string, unknown>;
  readonly signingInput: Buffer;
  readonly signature: Buffer;
}

/** Step 1: JWS Compact Serialization (section 5.1), within bounds, of two JSON objects. */
function parseToken(token: string): Result<Token, ReasonCode> {
  if (token.length > MAX_JWT_BYTES) return err('JWT_MALFORMED');
  const parts = token.split('.', 4);
  if (parts.length !== 3) return err('JWT_MALFORMED');
  const [header, claims] = [parseObject(parts[0]!), parseObject(parts[1]!)];
  const signature = base64url(parts[2]!);
  if (header === undefined || claims === undefined || signature === undefined) return err('JWT_MALFORMED');
  if (!isShallow(claims, MAX_CLAIM_DEPTH)) return err('JWT_MALFORMED');
  return ok({ header, claims, signingInput: Buffer.from(`${parts[0]}.${parts[1]}`), signature });
}

/** Step 2: an algorithm of the list, a type that may be left out, and no other header (section 2). */
function checkHeader(header: Record<string, unknown>): Result<JwsAlgorithm, ReasonCode> {
  const { alg, kid, typ, ...others } = header;
  if (typeof alg !== 'string' || !Object.hasOwn(ALGORITHMS, alg)) return err('JWT_ALGORITHM');
  if (Object.keys(others).length > 0) return err('JWT_HEADER');
  if (typ !== undefined && typ !== 'JWT' && typ !== 'JOSE') return err('JWT_HEADER');
  if (kid !== undefined && (typeof kid !== 'string' || kid === '')) return err('JWT_HEADER');
  return ok(alg as JwsAlgorithm);
}

/**
 * Step 3: signed by a JWT authority of the subject's trust domain. The key ID is a hint that may be left out (section 2.2): then any
 * authority whose key fits the algorithm may have signed.
 */
function checkSignature(
  algorithm: JwsAlgorithm,
  keyId: unknown,
  bundle: TrustBundle,
  nowMs: number,
  signingInput: Buffer,
  signature: Buffer,
): ReasonCode | undefined {
  const { kind } = ALGORITHMS[algorithm];
  const live = (authority: JwtAuthority) => authority.expiresAtMs === undefined || nowMs < authority.expiresAtMs;
  const named = (bundle.jwtAuthorities ?? []).filter(
    (authority) => (keyId === undefined || authority.keyId === keyId) && live(authority),
  );
  if (named.length === 0) return 'JWT_KEY_UNKNOWN';
  const keys = named.map((authority) => jwtKeyOf(authority.publicKey)).filter((key) => key?.kind === kind);
  // the key, not the token, says which algorithms it is for (RFC 8725, section 3.1)
  if (keys.length === 0) return 'JWT_ALGORITHM';
  return keys.some((key) => isSignedBy(algorithm, key!.key, signingInput, signature)) ? undefined : 'JWT_BAD_SIGNATURE';
}

function isSignedBy(algorithm: JwsAlgorithm, key: KeyObject, signingInput: Buffer, signature: Buffer): boolean {
  const { hash, signature: form } = ALGORITHMS[algorithm];
  try {
    return cryptoVerify(hash, signingInput, { key, ...form }, signature);
  } catch {
    return false;
  }
}

/** Step 4: RFC 7519, sections 4.1.4 to 4.1.6, without leeway. exp must be there (JWT-SVID, section 3.3), the others need not. */
function checkTimes({ exp, nbf, iat }: Record<string, unknown>, nowMs: number): ReasonCode | undefined {
  if (!isNumericDate(exp)) return 'JWT_EXPIRED';
  if ((nbf !== undefined && !isNumericDate(nbf)) || (iat !== undefined && !isNumericDate(iat))) return 'JWT_MALFORMED';
  if (nowMs >= exp * 1000) return 'JWT_EXPIRED';
  return nbf !== undefined && nowMs < nbf * 1000 ? 'JWT_NOT_YET_VALID' : undefined;
}

function isNumericDate(value: unknown): value is number {
  return typeof value === 'number' && value >= 0 && value <= Number.MAX_SAFE_INTEGER / 1000;
}

/** Step 5: section 3.2, RFC 7519, section 4.1.3: one text or a list of them, compared as they are. */
function checkAudience(aud: unknown, audience: string): ReasonCode | undefined {
  const list: readonly unknown[] = Array.isArray(aud) ? aud : [aud];
  if (list.length > MAX_AUDIENCES || list.some((one) => typeof one !== 'string')) return 'JWT_AUDIENCE';
  return audience !== '' && list.includes(audience) ? undefined : 'JWT_AUDIENCE';
}

/** RFC 7515, section 2: no padding, no line breaks, and one way to write each content. */
function base64url(text: string): Buffer | undefined {
  const bytes = Buffer.from(text, 'base64url');
  return bytes.length > 0 && bytes.toString('base64url') === text ? bytes : undefined;
}

const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

function parseObject(text: string): Record<string, unknown> | undefined {
  const bytes = base64url(text);
  if (bytes === undefined) return undefined;
  try {
    const value: unknown = JSON.parse(utf8.decode(bytes));
    return typeof value === 'object' && value !== null && !Array.isArray(value)
      ? (value as Record<string, unknown>)
      : undefined;
  } catch {
    return undefined;
  }
}

function isShallow(value: unknown, depth: number): boolean {
  if (typeof value !== 'object' || value === null) return true;
  return depth > 0 && Object.values(value).every((inner) => isShallow(inner, depth - 1));
}
