/** What honest parties send (samples.json, by make-samples.ts), and one key to sign with what none of them would. */
import { createECDH, createHash, createPrivateKey, type KeyObject } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { TrustBundle } from '../../../src/model/identity.ts';
import type { TrustDomain } from '../../../src/model/ids.ts';
import { publicKeyDer } from '../../../src/pki/keys.ts';
import { parseSpiffeBundle } from '../../../src/pki/spiffe-bundle.ts';

const read = JSON.parse(readFileSync(join(import.meta.dirname, 'samples.json'), 'utf8')) as {
  readonly nowMs: number;
  readonly tokens: readonly string[];
  readonly documents: readonly string[];
} & Readonly<Record<'authorities' | 'intermediates' | 'leaves' | 'csrs', readonly string[]>>;

const bytes = (list: readonly string[]) => list.map((text) => Buffer.from(text, 'base64'));

/** When all of them are valid. */
export const NOW_MS = read.nowMs;
export const TRUST_DOMAIN = 'example.org' as TrustDomain;
export const authorities = bytes(read.authorities);
export const intermediates = bytes(read.intermediates);
export const leaves = bytes(read.leaves);
export const csrs = bytes(read.csrs);
/** All that is DER. */
export const ders = [...authorities, ...intermediates, ...leaves, ...csrs];
export const tokens = read.tokens;
export const documents = read.documents;

export const SIGNING_KEY_ID = 'fuzz';
export const signingKey = keyOf(SIGNING_KEY_ID);

const published = parseSpiffeBundle(documents[0]!, TRUST_DOMAIN);
if (!published.ok) throw new Error(published.error);
/** Vouches for the tokens, and for what is signed with signingKey. */
export const jwtBundle: TrustBundle = {
  ...published.value,
  jwtAuthorities: [
    ...(published.value.jwtAuthorities ?? []),
    { keyId: SIGNING_KEY_ID, publicKey: publicKeyDer(signingKey) },
  ],
};

/** The same key for the same text: it is no secret. */
function keyOf(text: string): KeyObject {
  const d = createHash('sha256').update(text).digest();
  const pair = createECDH('prime256v1');
  pair.setPrivateKey(d);
  const point = pair.getPublicKey();
  const encoded = (part: Buffer) => part.toString('base64url');
  const jwk = {
    kty: 'EC',
    crv: 'P-256',
    d: encoded(d),
    x: encoded(point.subarray(1, 33)),
    y: encoded(point.subarray(33)),
  };
  return createPrivateKey({ key: jwk, format: 'jwk' });
}
