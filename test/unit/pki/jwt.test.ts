import { generateKeyPairSync, type KeyObject, sign } from 'node:crypto';
import fc from 'fast-check';
import { SignJWT } from 'jose';
import { describe, expect, it } from 'vitest';
import type { ReasonCode } from '../../../src/base/registry/reason-codes.ts';
import type { TrustBundle } from '../../../src/model/identity.ts';
import type { TrustDomain } from '../../../src/model/ids.ts';
import { spiffeId } from '../../../src/model/spiffe-id.ts';
import {
  type JwsAlgorithm,
  jwtFrom,
  jwtSvidSigningInput,
  MAX_JWT_BYTES,
  validateJwtSvid,
} from '../../../src/pki/jwt.ts';
import { publicKeyDer } from '../../../src/pki/keys.ts';

const NOW = Date.UTC(2026, 5, 15, 12);
const SECOND = NOW / 1000;
const FRONTEND = spiffeId('spiffe://example.org/frontend');

const ec = (namedCurve: string) => generateKeyPairSync('ec', { namedCurve }).privateKey;
const p256 = ec('P-256');
const rsa = generateKeyPairSync('rsa', { modulusLength: 2048 }).privateKey;
const keys: Record<string, KeyObject> = { p256, rsa, p384: ec('P-384'), p521: ec('P-521') };

function bundle(trustDomain: string, authorities: Record<string, KeyObject>, more: object = {}): TrustBundle {
  return {
    trustDomain: trustDomain as TrustDomain,
    authorities: [],
    jwtAuthorities: Object.entries(authorities).map(([keyId, key]) => ({
      keyId,
      publicKey: publicKeyDer(key),
      ...more,
    })),
  };
}
const home = bundle('example.org', keys);

/** Signed right, whatever it says. */
function forge(header: object | string, claims: object | string, key: KeyObject = p256): string {
  const encode = (part: object | string) =>
    Buffer.from(typeof part === 'string' ? part : JSON.stringify(part)).toString('base64url');
  const input = `${encode(header)}.${encode(claims)}`;
  return jwtFrom(input, sign('sha256', Buffer.from(input), { key, dsaEncoding: 'ieee-p1363' }));
}
const HEADER = { alg: 'ES256', kid: 'p256', typ: 'JWT' };
const CLAIMS = { sub: FRONTEND, aud: ['backend'], exp: SECOND + 300, iat: SECOND };

function outcome(token: string, audience = 'backend', bundles = [home], nowMs = NOW): ReasonCode | string {
  const verdict = validateJwtSvid(token, audience, bundles, nowMs);
  return verdict.ok ? verdict.value.spiffeId : verdict.error;
}

describe('a JWT-SVID that keeps the standard', () => {
  it('is what the signing input and a signature make, and says whose it is, until when, and all its claims', () => {
    const input = jwtSvidSigningInput({
      alg: 'ES256',
      kid: 'p256',
      spiffeId: FRONTEND,
      audience: ['backend', 'spiffe://example.org/other'],
      issuedAt: SECOND,
      expiresAt: SECOND + 300,
      issuer: 'https://oidc.example.org',
      jti: 'one',
    });
    const token = jwtFrom(input, sign('sha256', Buffer.from(input), { key: p256, dsaEncoding: 'ieee-p1363' }));
    const claims = {
      sub: FRONTEND,
      aud: ['backend', 'spiffe://example.org/other'],
      exp: SECOND + 300,
      iat: SECOND,
      iss: 'https://oidc.example.org',
      jti: 'one',
    };
    expect(validateJwtSvid(token, 'backend', [home], NOW)).toEqual({
      ok: true,
      value: { spiffeId: FRONTEND, claims, expiresAtMs: NOW + 300_000 },
    });
  });

  it.each<[JwsAlgorithm, string]>([
    ['ES256', 'p256'],
    ['ES384', 'p384'],
    ['ES512', 'p521'],
    ['RS256', 'rsa'],
    ['RS384', 'rsa'],
    ['RS512', 'rsa'],
    ['PS256', 'rsa'],
    ['PS384', 'rsa'],
    ['PS512', 'rsa'],
  ])('verifies with %s, as jose signs it', async (alg, kid) => {
    const token = await new SignJWT({ ...CLAIMS }).setProtectedHeader({ alg, kid }).sign(keys[kid]!);
    expect(outcome(token)).toBe(FRONTEND);
    expect(outcome(`${token.slice(0, -10)}${token.at(-10) === 'A' ? 'B' : 'A'}${token.slice(-9)}`)).toBe(
      'JWT_BAD_SIGNATURE',
    );
  });

  it.each<[string, object, object]>([
    ['without a type', { alg: 'ES256', kid: 'p256' }, CLAIMS],
    ['of the type JOSE', { ...HEADER, typ: 'JOSE' }, CLAIMS],
    ['without a key ID', { alg: 'ES256' }, CLAIMS],
    ['whose audience is one text', HEADER, { ...CLAIMS, aud: 'backend' }],
    ['with claims of its own', HEADER, { ...CLAIMS, team: { name: 'shop' } }],
    ['in the second in which it begins', HEADER, { ...CLAIMS, nbf: SECOND }],
    ['in its last second', HEADER, { ...CLAIMS, exp: SECOND + 0.001 }],
  ])('%s verifies', (_, header, claims) => {
    expect(outcome(forge(header, claims))).toBe(FRONTEND);
  });
});

describe('a token that is no JWT-SVID', () => {
  it.each<[string, object | string, object | string, ReasonCode]>([
    ['without a signature algorithm', { ...HEADER, alg: 'none' }, CLAIMS, 'JWT_ALGORITHM'],
    ['with a shared secret', { ...HEADER, alg: 'HS256' }, CLAIMS, 'JWT_ALGORITHM'],
    ['with EdDSA', { ...HEADER, alg: 'EdDSA' }, CLAIMS, 'JWT_ALGORITHM'],
    ['with secp256k1', { ...HEADER, alg: 'ES256K' }, CLAIMS, 'JWT_ALGORITHM'],
    ['with an algorithm in lower case', { ...HEADER, alg: 'es256' }, CLAIMS, 'JWT_ALGORITHM'],
    ['with a name that every object has', { ...HEADER, alg: 'toString' }, CLAIMS, 'JWT_ALGORITHM'],
    ['with a list of algorithms', { ...HEADER, alg: ['ES256'] }, CLAIMS, 'JWT_ALGORITHM'],
    ['without one', { kid: 'p256' }, CLAIMS, 'JWT_ALGORITHM'],
    ['with an algorithm of another key', { ...HEADER, kid: 'rsa' }, CLAIMS, 'JWT_ALGORITHM'],
    ['with another curve than the key', { ...HEADER, kid: 'p384' }, CLAIMS, 'JWT_ALGORITHM'],
    ['that brings its key', { ...HEADER, jwk: { kty: 'EC' } }, CLAIMS, 'JWT_HEADER'],
    ['that says where its key is', { ...HEADER, jku: 'https://evil.example' }, CLAIMS, 'JWT_HEADER'],
    ['with critical headers', { ...HEADER, crit: ['exp'] }, CLAIMS, 'JWT_HEADER'],
    ['with a header of its own', { ...HEADER, mine: 1 }, CLAIMS, 'JWT_HEADER'],
    ['of another type', { ...HEADER, typ: 'at+jwt' }, CLAIMS, 'JWT_HEADER'],
    ['whose key ID is a number', { ...HEADER, kid: 1 }, CLAIMS, 'JWT_HEADER'],
    ['whose key is not known', { ...HEADER, kid: 'other' }, CLAIMS, 'JWT_KEY_UNKNOWN'],
    ['without a subject', HEADER, { ...CLAIMS, sub: undefined }, 'JWT_SUBJECT'],
    ['whose subject is a list', HEADER, { ...CLAIMS, sub: [FRONTEND] }, 'JWT_SUBJECT'],
    ['whose subject is no SPIFFE ID', HEADER, { ...CLAIMS, sub: 'frontend' }, 'JWT_SUBJECT'],
    ['whose subject is the trust domain', HEADER, { ...CLAIMS, sub: 'spiffe://example.org' }, 'JWT_SUBJECT'],
    ['of a trust domain that is not known', HEADER, { ...CLAIMS, sub: 'spiffe://evil.org/x' }, 'JWT_UNTRUSTED'],
    ['without an end', HEADER, { ...CLAIMS, exp: undefined }, 'JWT_EXPIRED'],
    ['whose end is text', HEADER, { ...CLAIMS, exp: '4102444800' }, 'JWT_EXPIRED'],
    [
      'whose end is beyond all numbers',
      HEADER,
      '{"sub":"spiffe://example.org/x","aud":"backend","exp":1e999}',
      'JWT_EXPIRED',
    ],
    ['that ends now', HEADER, { ...CLAIMS, exp: SECOND }, 'JWT_EXPIRED'],
    ['that begins later', HEADER, { ...CLAIMS, nbf: SECOND + 1 }, 'JWT_NOT_YET_VALID'],
    ['that begins at no time', HEADER, { ...CLAIMS, nbf: 'now' }, 'JWT_MALFORMED'],
    ['without an audience', HEADER, { ...CLAIMS, aud: undefined }, 'JWT_AUDIENCE'],
    ['with an empty audience', HEADER, { ...CLAIMS, aud: [] }, 'JWT_AUDIENCE'],
    ['meant for another', HEADER, { ...CLAIMS, aud: ['backend2', 'Backend'] }, 'JWT_AUDIENCE'],
    ['whose audience holds a number', HEADER, { ...CLAIMS, aud: ['backend', 7] }, 'JWT_AUDIENCE'],
    ['whose claims are a list', HEADER, '[]', 'JWT_MALFORMED'],
    ['whose claims are not JSON', HEADER, '{"sub":', 'JWT_MALFORMED'],
    ['whose header is null', 'null', CLAIMS, 'JWT_MALFORMED'],
    ['with claims within claims without end', HEADER, `{"a":${'['.repeat(4000)}${']'.repeat(4000)}}`, 'JWT_MALFORMED'],
  ])('%s is refused', (_, header, claims, reason) => {
    expect(outcome(forge(header, claims))).toBe(reason);
  });

  it.each<[string, (token: string) => string]>([
    ['nothing', () => ''],
    ['two parts', (token) => token.split('.').slice(0, 2).join('.')],
    ['four parts', (token) => `${token}.AAAA`],
    ['an empty signature', (token) => `${token.split('.').slice(0, 2).join('.')}.`],
    ['padding', (token) => `${token}==`],
    ['a line break', (token) => `${token}\n`],
    ['base64 that is not of URLs', (token) => token.replace(/.$/, '+')],
    ['the JSON serialization', (token) => JSON.stringify({ payload: token.split('.')[1] })],
    ['more than a token may have', (token) => token + 'A'.repeat(MAX_JWT_BYTES)],
  ])('%s is refused', (_, bend) => {
    expect(outcome(bend(forge(HEADER, CLAIMS)))).toBe('JWT_MALFORMED');
  });

  it('signed by the authority of another trust domain is refused', () => {
    const foreign = bundle('partner.org', { p256 });
    const others = bundle('example.org', { p256: keys.p384! });
    expect(outcome(forge(HEADER, CLAIMS), 'backend', [foreign])).toBe('JWT_UNTRUSTED');
    expect(outcome(forge(HEADER, CLAIMS), 'backend', [foreign, others])).toBe('JWT_ALGORITHM');
    const elsewhere = ec('P-256');
    expect(
      outcome(forge(HEADER, CLAIMS, elsewhere), 'backend', [home, bundle('partner.org', { p256: elsewhere })]),
    ).toBe('JWT_BAD_SIGNATURE');
  });

  it('signed by a key too weak for it is refused', () => {
    const weak = generateKeyPairSync('rsa', { modulusLength: 1024 }).privateKey;
    const token = forge({ alg: 'RS256', kid: 'weak' }, CLAIMS, weak);
    expect(outcome(token, 'backend', [bundle('example.org', { weak })])).toBe('JWT_ALGORITHM');
  });

  it('signed by an authority that has ended is refused', () => {
    const ended = bundle('example.org', { p256 }, { expiresAtMs: NOW });
    expect(outcome(forge(HEADER, CLAIMS), 'backend', [ended])).toBe('JWT_KEY_UNKNOWN');
    expect(outcome(forge(HEADER, CLAIMS), 'backend', [ended], NOW - 1)).toBe(FRONTEND);
  });

  it('with an empty key of a shared secret made from the public key is refused', async () => {
    const secret = Buffer.from(p256.export({ format: 'pem', type: 'pkcs8' }));
    const token = await new SignJWT({ ...CLAIMS }).setProtectedHeader({ alg: 'HS256', kid: 'p256' }).sign(secret);
    expect(outcome(token)).toBe('JWT_ALGORITHM');
  });
});

describe('whatever is shown as a token', () => {
  const token = forge(HEADER, CLAIMS);
  const json = fc.json({ maxDepth: 4 });
  const part = fc.oneof(
    fc.base64String(),
    json.map((text) => Buffer.from(text).toString('base64url')),
    fc.string(),
  );

  it('is refused by a reason and never throws, unless it is the token', () => {
    fc.assert(
      fc.property(
        fc.oneof(
          fc.array(part, { maxLength: 5 }).map((parts) => parts.join('.')),
          fc.string(),
        ),
        (text) => {
          expect(validateJwtSvid(text, 'backend', [home], NOW).ok).toBe(false);
        },
      ),
    );
  });

  it('is refused if one character of the token was changed', () => {
    fc.assert(
      fc.property(fc.nat(token.length - 1), fc.constantFrom(...'AZaz09-_.=+/ \n\u00e9'), (at, character) => {
        fc.pre(token[at] !== character);
        const changed = token.slice(0, at) + character + token.slice(at + 1);
        expect(validateJwtSvid(changed, 'backend', [home], NOW).ok).toBe(false);
      }),
    );
  });

  it('is only ever accepted for the claims that were signed', () => {
    fc.assert(
      fc.property(json, json, (header, claims) => {
        const [, , signature] = token.split('.');
        const encode = (text: string) => Buffer.from(text).toString('base64url');
        const forged = `${encode(header)}.${encode(claims)}.${signature}`;
        expect(validateJwtSvid(forged, 'backend', [home], NOW).ok).toBe(false);
      }),
    );
  });
});
