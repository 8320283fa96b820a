/**
 * SPIFFE bundle documents (SPIFFE Trust Domain and Bundle, section 4; X509-SVID, section 6; RFC 7517): what a trust domain publishes
 * and what others send of theirs. A document does not name its trust domain: who fetched it must know.
 */
import { createPublicKey, type JsonWebKey, type KeyObject } from 'node:crypto';
import { CountersignError, err, ok, type Result } from '../base/errors.ts';
import type { JwtAuthority, TrustBundle } from '../model/identity.ts';
import type { TrustDomain } from '../model/ids.ts';
import { trustDomainSpiffeId } from '../model/spiffe-id.ts';
import { type Certificate, parseCertificate } from './certificate.ts';
import { MAX_KEY_ID_LENGTH } from './jwt.ts';
import { type JwtKeyKind, kindOf } from './jwt-keys.ts';
import { importPublicKey, publicKeyDer } from './keys.ts';

/** Of a document in UTF-16 units: sixty-four certificates of the largest kind fit, and it fits into a gRPC message of 1 MiB. */
export const MAX_BUNDLE_LENGTH = 1_000_000;
/** Entries of any use. */
const MAX_KEYS = 512;
/** As many of each kind as path validation and a node will look at. */
const MAX_AUTHORITIES = 64;
const MAX_SEQUENCE = (1n << 64n) - 1n;
const MAX_HINT_SECONDS = 2 ** 32 - 1;

type Jwk = Record<string, unknown>;

/** As a bundle endpoint serves it. @throws CountersignError bad-input for an authority whose key is none; never for what was parsed here */
export function encodeSpiffeBundle(bundle: TrustBundle): string {
  const keys = [
    // X509-SVID, section 6.1: no kid, exactly one certificate
    ...bundle.authorities.map((der) => ({
      ...keyMembers(publicKeyOf(certificateOf(der).spki)),
      use: 'x509-svid',
      x5c: [der.toString('base64')],
    })),
    ...jwtKeys(bundle, () => ({ use: 'jwt-svid' })),
  ];
  const members = [`"keys":${JSON.stringify(keys)}`];
  // 64 bits of precision (section 4.1.1), which a JSON number of JavaScript does not have
  if (bundle.sequence !== undefined) members.push(`"spiffe_sequence":${bundle.sequence}`);
  if (bundle.refreshHintSeconds !== undefined) members.push(`"spiffe_refresh_hint":${bundle.refreshHintSeconds}`);
  return `{${members.join(',')}}`;
}

/** Only the keys of JWT-SVIDs, as the Workload API's FetchJWTBundles sends them. */
export function encodeJwtBundle(bundle: TrustBundle): string {
  return JSON.stringify({ keys: jwtKeys(bundle, () => ({ use: 'jwt-svid' })) });
}

const OIDC_ALGORITHM: Readonly<Record<JwtKeyKind, string>> = {
  'P-256': 'ES256',
  'P-384': 'ES384',
  'P-521': 'ES512',
  rsa: 'RS256',
};

/** The same keys for OpenID Connect: clients of it take keys whose use is "sig" (RFC 7517, section 4.2) and no others. */
export function encodeJwks(bundle: TrustBundle): string {
  return JSON.stringify({ keys: jwtKeys(bundle, (kind) => ({ use: 'sig', alg: OIDC_ALGORITHM[kind] })) });
}

function jwtKeys(bundle: TrustBundle, more: (kind: JwtKeyKind) => Jwk): Jwk[] {
  return (bundle.jwtAuthorities ?? []).map(({ keyId, publicKey }) => {
    const key = publicKeyOf(publicKey);
    const kind = kindOf(key);
    if (kind === undefined) throw new CountersignError('bad-input', `the JWT authority ${keyId} has a weak key`);
    return { ...keyMembers(key), kid: keyId, ...more(kind) };
  });
}

/** kty and what RFC 7518, section 6 has for it. */
function keyMembers(key: KeyObject): Jwk {
  return key.export({ format: 'jwk' }) as Jwk;
}

function publicKeyOf(spki: Buffer): KeyObject {
  const key = importPublicKey(spki);
  if (key === undefined) throw new CountersignError('bad-input', 'the public key of an authority cannot be read');
  return key;
}

function certificateOf(der: Buffer): Certificate {
  const parsed = parseCertificate(der);
  if (!parsed.ok) throw new CountersignError('bad-input', 'the certificate of an authority cannot be read');
  return parsed.value;
}

/**
 * The bundle of `trustDomain` that this document is. What the standard tells consumers to pass over is passed over; a document that
 * breaks it elsewhere is refused whole, by a sentence that repeats nothing of it but key IDs. No keys: all were revoked.
 */
export function parseSpiffeBundle(text: string, trustDomain: TrustDomain): Result<TrustBundle, string> {
  if (text.length > MAX_BUNDLE_LENGTH) return err(`a bundle has at most ${MAX_BUNDLE_LENGTH} characters`);
  const document = parseJson(text);
  if (!isObject(document)) return err('not a JSON object');
  const { keys, spiffe_sequence: sequence, spiffe_refresh_hint: hint } = document;
  if (!Array.isArray(keys)) return err('keys: it must be there, and a list');
  if (keys.length > MAX_KEYS) return err(`keys: at most ${MAX_KEYS}`);
  if (sequence !== undefined && (typeof sequence !== 'bigint' || sequence < 0n || sequence > MAX_SEQUENCE))
    return err('spiffe_sequence: it must be an integer of 64 bits');
  if (hint !== undefined && (typeof hint !== 'bigint' || hint < 0n))
    return err('spiffe_refresh_hint: it must be a number of seconds');

  const authorities: Buffer[] = [];
  const jwtAuthorities: JwtAuthority[] = [];
  for (const [i, jwk] of (keys as unknown[]).entries()) {
    const refuse = (problem: string) => err(`keys[${i}]: ${problem}`);
    if (!isObject(jwk)) return refuse('not a JSON object');
    // section 4.2.1 and 4.2.2: both must be set; who does not know one of them ignores the element
    if (typeof jwk.kty !== 'string') return refuse('kty: it must be there, and a text');
    if (typeof jwk.use !== 'string') return refuse('use: it must be there, and a text');
    if (jwk.kty !== 'EC' && jwk.kty !== 'RSA') continue;
    if (jwk.use === 'x509-svid') {
      const authority = readX509(jwk, trustDomain);
      if (!authority.ok) return refuse(authority.error);
      if (authority.value !== undefined && !authorities.some((known) => known.equals(authority.value!)))
        authorities.push(authority.value);
    } else if (jwk.use === 'jwt-svid') {
      const authority = readJwt(jwk);
      if (!authority.ok) return refuse(authority.error);
      const { value } = authority;
      if (value === undefined) continue;
      // which of them a token means could not be told
      if (jwtAuthorities.some(({ keyId }) => keyId === value.keyId)) return refuse('kid: another key has it too');
      jwtAuthorities.push(value);
    }
  }
  if (authorities.length > MAX_AUTHORITIES) return err(`keys: at most ${MAX_AUTHORITIES} of x509-svid`);
  if (jwtAuthorities.length > MAX_AUTHORITIES) return err(`keys: at most ${MAX_AUTHORITIES} of jwt-svid`);
  return ok({
    trustDomain,
    authorities,
    jwtAuthorities,
    ...(sequence === undefined ? {} : { sequence: sequence as bigint }),
    ...(hint === undefined ? {} : { refreshHintSeconds: Math.min(Number(hint), MAX_HINT_SECONDS) }),
  });
}

/** X509-SVID, section 6.2: an entry without a certificate is ignored, and so is every certificate but the first. */
function readX509(jwk: Jwk, trustDomain: TrustDomain): Result<Buffer | undefined, string> {
  const { x5c } = jwk;
  if (x5c === undefined) return ok(undefined);
  if (!Array.isArray(x5c)) return err('x5c: it must be a list');
  if (x5c.length === 0) return ok(undefined);
  // RFC 7517, section 4.7: base64, not base64url
  const der = typeof x5c[0] === 'string' ? Buffer.from(x5c[0], 'base64') : Buffer.alloc(0);
  if (der.toString('base64') !== x5c[0]) return err('x5c: not base64');
  const parsed = parseCertificate(der);
  if (!parsed.ok) return err('x5c: not a certificate that RFC 5280 allows');
  const certificate = parsed.value;
  if (!certificate.isCa)
    return err('x5c: the certificate of an end entity vouches for nobody; a CA certificate must be in it');
  // X509-SVID, section 3: a signing certificate need not have a SPIFFE ID; one that it has is its trust domain's own
  if (certificate.uriSanCount > 0 && certificate.spiffeId !== trustDomainSpiffeId(trustDomain))
    return err('x5c: the certificate is that of another trust domain, or of none');
  if (importPublicKey(certificate.spki) === undefined)
    return err('x5c: the public key of the certificate cannot be read');
  const key = importJwk(jwk);
  // RFC 7517, section 4.7: it is the key that the other members are
  if (key !== undefined && !publicKeyDer(key).equals(certificate.spki))
    return err('x5c: another key than that of the JWK');
  return ok(certificate.der);
}

const JWT_CURVES: readonly unknown[] = ['P-256', 'P-384', 'P-521'];

/** Ignored: an entry without a key ID, which no token could name, and a key that no JWT-SVID may be signed with. */
function readJwt(jwk: Jwk): Result<JwtAuthority | undefined, string> {
  const { kid } = jwk;
  if (kid === undefined || kid === '') return ok(undefined);
  if (typeof kid !== 'string' || kid.length > MAX_KEY_ID_LENGTH)
    return err(`kid: it must be a text of at most ${MAX_KEY_ID_LENGTH} characters`);
  if (jwk.kty === 'EC' && !JWT_CURVES.includes(jwk.crv)) return ok(undefined);
  const key = importJwk(jwk);
  if (key === undefined) return err('the key cannot be read');
  return ok(kindOf(key) === undefined ? undefined : { keyId: kid, publicKey: publicKeyDer(key) });
}

/** Undefined: of a curve that OpenSSL does not know, or no point of it. Only public members are handed on. */
function importJwk({ kty, crv, x, y, n, e }: Jwk): KeyObject | undefined {
  const members = kty === 'EC' ? { kty, crv, x, y } : { kty, n, e };
  if (Object.values(members).some((member) => typeof member !== 'string')) return undefined;
  try {
    return createPublicKey({ key: members as JsonWebKey, format: 'jwk' });
  } catch {
    return undefined;
  }
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** Integers become bigints by their text, so that none is rounded; undefined: not JSON. */
function parseJson(text: string): unknown {
  try {
    return JSON.parse(text, exactIntegers as (key: string, value: unknown) => unknown);
  } catch {
    return undefined;
  }
}

function exactIntegers(key: string, value: unknown, { source }: { source?: string }): unknown {
  if (key !== 'spiffe_sequence' && key !== 'spiffe_refresh_hint') return value;
  return source !== undefined && /^-?\d{1,20}$/.test(source) ? BigInt(source) : value;
}
