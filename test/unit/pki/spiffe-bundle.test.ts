import { createPublicKey, generateKeyPairSync } from 'node:crypto';
import fc from 'fast-check';
import { createLocalJWKSet, jwtVerify, SignJWT } from 'jose';
import { describe, expect, it } from 'vitest';
import type { TrustBundle } from '../../../src/model/identity.ts';
import type { TrustDomain } from '../../../src/model/ids.ts';
import { generateKey, publicKeyDer } from '../../../src/pki/keys.ts';
import {
  encodeJwks,
  encodeJwtBundle,
  encodeSpiffeBundle,
  MAX_BUNDLE_LENGTH,
  parseSpiffeBundle,
} from '../../../src/pki/spiffe-bundle.ts';
import { ca, leaf, rsaKey } from './support/forge.ts';

const DOMAIN = 'example.org' as TrustDomain;
const root = ca();
const jwtKey = generateKey();

const bundle: TrustBundle = {
  trustDomain: DOMAIN,
  authorities: [root.der, ca({ key: rsaKey(2048), algorithm: 'rsaSha256' }).der],
  jwtAuthorities: [{ keyId: 'k1', publicKey: publicKeyDer(jwtKey) }],
  sequence: 9_007_199_254_740_993n,
  refreshHintSeconds: 300,
};

type Jwk = Record<string, unknown>;
interface Document {
  keys: Jwk[];
  spiffe_refresh_hint?: unknown;
}
const document = (): Document => JSON.parse(encodeSpiffeBundle(bundle)) as Document;

/** What comes of the document after `bend`. */
function parsed(bend: (document: Document) => unknown) {
  const bent = document();
  bend(bent);
  return parseSpiffeBundle(JSON.stringify(bent), DOMAIN);
}
const problem = (bend: (document: Document) => unknown): string | undefined => {
  const result = parsed(bend);
  return result.ok ? undefined : result.error;
};

describe('a SPIFFE bundle document', () => {
  it('holds each certificate once and without a kid, each JWT key with one, and nothing private', () => {
    const { keys, ...others } = document();
    expect(others).toEqual({ spiffe_sequence: 9_007_199_254_740_992, spiffe_refresh_hint: 300 });
    expect(keys.map((key) => Object.keys(key).sort())).toEqual([
      ['crv', 'kty', 'use', 'x', 'x5c', 'y'],
      ['e', 'kty', 'n', 'use', 'x5c'],
      ['crv', 'kid', 'kty', 'use', 'x', 'y'],
    ]);
    expect(keys.map(({ use, kid }) => ({ use, kid }))).toEqual([
      { use: 'x509-svid' },
      { use: 'x509-svid' },
      { use: 'jwt-svid', kid: 'k1' },
    ]);
    expect(keys[0]!.x5c).toEqual([root.der.toString('base64')]);
  });

  it('comes back as it was, to the last digit of its sequence number', () => {
    expect(parseSpiffeBundle(encodeSpiffeBundle(bundle), DOMAIN)).toEqual({ ok: true, value: bundle });
  });

  it('without keys says that all of them were revoked', () => {
    expect(parseSpiffeBundle('{"keys":[]}', DOMAIN)).toEqual({
      ok: true,
      value: { trustDomain: DOMAIN, authorities: [], jwtAuthorities: [] },
    });
  });

  it.each<[string, Jwk]>([
    ['a key type that is not known', { kty: 'OKP', use: 'jwt-svid', kid: 'x', crv: 'Ed25519', x: 'AA' }],
    ['a use that is not known', { kty: 'EC', use: 'wit-svid', kid: 'x', crv: 'P-256', x: 'AA', y: 'AA' }],
    ['a use in capitals', { kty: 'EC', use: 'JWT-SVID', kid: 'x' }],
    ['a curve that is not known', { kty: 'EC', use: 'jwt-svid', kid: 'x', crv: 'secp256k1', x: 'AA', y: 'AA' }],
    ['a JWT key without a key ID', { ...createPublicKey(jwtKey).export({ format: 'jwk' }), use: 'jwt-svid' }],
    ['an X.509 key without a certificate', { kty: 'EC', use: 'x509-svid', crv: 'P-256', x: 'AA', y: 'AA' }],
    [
      'an X.509 key with an empty list of them',
      { kty: 'EC', use: 'x509-svid', crv: 'P-256', x: 'AA', y: 'AA', x5c: [] },
    ],
    [
      'a JWT key too weak to be one',
      {
        ...generateKeyPairSync('rsa', { modulusLength: 1024 }).publicKey.export({ format: 'jwk' }),
        use: 'jwt-svid',
        kid: 'weak',
      },
    ],
  ])('with %s is taken without it', (_, jwk) => {
    expect(parsed((d) => d.keys.push(jwk))).toEqual({
      ok: true,
      value: { ...bundle, sequence: 9_007_199_254_740_992n },
    });
  });

  it('with several certificates in one entry is taken with the first of them', () => {
    const result = parsed((d) => (d.keys[0]!.x5c as string[]).push(ca().der.toString('base64')));
    expect(result).toMatchObject({ ok: true, value: { authorities: bundle.authorities } });
  });

  it('with a private key in it gives the public one alone', () => {
    const result = parsed((d) => Object.assign(d.keys[2]!, jwtKey.export({ format: 'jwk' })));
    expect(result).toMatchObject({ ok: true, value: { jwtAuthorities: bundle.jwtAuthorities } });
  });

  it.each<[string, (document: Document) => unknown, string]>([
    ['no keys', (d) => delete (d as Partial<Document>).keys, 'keys: it must be there, and a list'],
    ['an entry that is none', (d) => d.keys.push(7 as never), 'keys[3]: not a JSON object'],
    ['an entry without kty', (d) => delete d.keys[0]!.kty, 'keys[0]: kty: it must be there, and a text'],
    ['an entry without use', (d) => delete d.keys[0]!.use, 'keys[0]: use: it must be there, and a text'],
    [
      'a hint below zero',
      (d) => Object.assign(d, { spiffe_refresh_hint: -1 }),
      'spiffe_refresh_hint: it must be a number of seconds',
    ],
    [
      'a hint that is text',
      (d) => Object.assign(d, { spiffe_refresh_hint: '1' }),
      'spiffe_refresh_hint: it must be a number of seconds',
    ],
    [
      'half a second',
      (d) => Object.assign(d, { spiffe_refresh_hint: 0.5 }),
      'spiffe_refresh_hint: it must be a number of seconds',
    ],
    [
      'a sequence below zero',
      (d) => Object.assign(d, { spiffe_sequence: -1 }),
      'spiffe_sequence: it must be an integer of 64 bits',
    ],
    [
      'a certificate in base64url',
      (d) => Object.assign(d.keys[0]!, { x5c: [root.der.toString('base64url')] }),
      'keys[0]: x5c: not base64',
    ],
    [
      'a certificate that is none',
      (d) => Object.assign(d.keys[0]!, { x5c: ['AAAA'] }),
      'keys[0]: x5c: not a certificate that RFC 5280 allows',
    ],
    [
      'a leaf',
      (d) => Object.assign(d.keys[0]!, { x5c: [leaf(root).der.toString('base64')] }),
      'keys[0]: x5c: the certificate of an end entity vouches for nobody; a CA certificate must be in it',
    ],
    [
      'the certificate of another trust domain',
      (d) => Object.assign(d.keys[0]!, { x5c: [ca({ uris: ['spiffe://evil.org'] }).der.toString('base64')] }),
      'keys[0]: x5c: the certificate is that of another trust domain, or of none',
    ],
    [
      'a certificate of another key',
      (d) => Object.assign(d.keys[0]!, { x5c: [ca().der.toString('base64')] }),
      'keys[0]: x5c: another key than that of the JWK',
    ],
    [
      'a certificate whose point is not on its curve',
      (d) => {
        const bent = Buffer.from((d.keys[0]!.x5c as string[])[0]!, 'base64');
        const at = bent.indexOf(Buffer.from(d.keys[0]!.x as string, 'base64url'));
        bent[at] = bent[at]! ^ 1;
        Object.assign(d.keys[0]!, { x5c: [bent.toString('base64')] });
      },
      'keys[0]: x5c: the public key of the certificate cannot be read',
    ],
    [
      'a point that is not on its curve',
      (d) => Object.assign(d.keys[2]!, { y: d.keys[2]!.x }),
      'keys[2]: the key cannot be read',
    ],
    ['two keys of one ID', (d) => d.keys.push(d.keys[2]!), 'keys[3]: kid: another key has it too'],
    [
      'too many entries',
      (d) => {
        d.keys = Array.from({ length: 513 }, () => ({ kty: 'x', use: 'y' }));
      },
      'keys: at most 512',
    ],
    [
      'too many JWT keys',
      (d) => {
        d.keys = Array.from({ length: 65 }, (_, i) => ({ ...d.keys[2], kid: `k${i}` }));
      },
      'keys: at most 64 of jwt-svid',
    ],
  ])('with %s is refused', (_, bend, sentence) => {
    expect(problem(bend)).toBe(sentence);
  });

  it('that is too long, or no JSON, or has numbers that are none is refused', () => {
    expect(parseSpiffeBundle(' '.repeat(MAX_BUNDLE_LENGTH + 1), DOMAIN).ok).toBe(false);
    for (const text of [
      '',
      '[]',
      'null',
      '{"keys":[]}x',
      '{"keys":[],"spiffe_sequence":1.5}',
      '{"keys":[],"spiffe_sequence":1e3}',
      '{"keys":[],"spiffe_sequence":18446744073709551616}',
      `${'{"keys":'.repeat(50_000)}`,
    ])
      expect(parseSpiffeBundle(text, DOMAIN).ok, text.slice(0, 60)).toBe(false);
    expect(parseSpiffeBundle('{"keys":[],"spiffe_sequence":18446744073709551615}', DOMAIN)).toMatchObject({
      value: { sequence: 2n ** 64n - 1n },
    });
  });

  it('however bent gives a bundle of its trust domain or a sentence, and never throws', () => {
    const pieces = document().keys;
    const member = fc.oneof(
      fc.jsonValue({ maxDepth: 2 }),
      fc.constantFrom(
        'EC',
        'RSA',
        'x509-svid',
        'jwt-svid',
        'P-256',
        ...pieces.flatMap((key) => Object.values(key) as never[]),
      ),
    );
    const names = ['kty', 'use', 'kid', 'crv', 'x', 'y', 'n', 'e', 'x5c'];
    const jwk = fc
      .tuple(fc.constantFrom(...pieces), fc.dictionary(fc.constantFrom(...names), member))
      .map(([piece, bent]) => ({ ...piece, ...bent }));
    const any = fc.record(
      { keys: fc.array(fc.oneof(jwk, fc.jsonValue({ maxDepth: 1 })), { maxLength: 5 }), spiffe_sequence: member },
      { requiredKeys: [] },
    );
    fc.assert(
      fc.property(
        fc.oneof(
          any.map((value) => JSON.stringify(value)),
          fc.json(),
          fc.string(),
        ),
        (text) => {
          const result = parseSpiffeBundle(text, DOMAIN);
          if (!result.ok) expect(typeof result.error).toBe('string');
          else {
            expect(result.value.trustDomain).toBe(DOMAIN);
            expect(parseSpiffeBundle(encodeSpiffeBundle(result.value), DOMAIN)).toEqual(result);
          }
        },
      ),
    );
  });
});

describe('the keys of JWT-SVIDs alone', () => {
  it('are what the Workload API sends', () => {
    expect(JSON.parse(encodeJwtBundle(bundle))).toEqual({ keys: [document().keys[2]] });
    expect(encodeJwtBundle({ trustDomain: DOMAIN, authorities: [root.der] })).toBe('{"keys":[]}');
  });

  it('verify a token for a client of OpenID Connect', async () => {
    const token = await new SignJWT({ sub: 'x' }).setProtectedHeader({ alg: 'ES256', kid: 'k1' }).sign(jwtKey);
    const jwks = createLocalJWKSet(JSON.parse(encodeJwks(bundle)) as never);
    expect((await jwtVerify(token, jwks)).payload.sub).toBe('x');
  });
});
