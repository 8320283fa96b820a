/** JWT-SVIDs: damaged ones, and claims and headers that no honest issuer signs but that are signed. */
import { sign } from 'node:crypto';
import { validateJwtSvid } from '../../../src/pki/jwt.ts';
import type { Random } from '../random.ts';
import { damage, damageJson, damageText } from './mutate.ts';
import { jwtBundle, NOW_MS, SIGNING_KEY_ID, tokens as samples, signingKey } from './samples.ts';
import { hold, type Target } from './target.ts';

const untouched = new Set(samples);
const PIECES = [
  '.',
  '..',
  '=',
  '==',
  'A',
  'Q',
  '-',
  '_',
  '+',
  '/',
  ' ',
  '\n',
  '\0',
  'é',
  'e30',
  'eyJhbGciOiJub25lIn0',
  'eyJhbGciOiJIUzI1NiJ9',
  '~',
  '%3D',
];

const encode = (value: unknown) => Buffer.from(JSON.stringify(value)).toString('base64url');

function signed(random: Random): string {
  let header: unknown = { alg: 'ES256', kid: SIGNING_KEY_ID, typ: 'JWT' };
  let claims: unknown = { sub: 'spiffe://example.org/web', aud: ['db'], exp: NOW_MS / 1000 + 300, iat: NOW_MS / 1000 };
  if (random.oneIn(3)) header = damageJson(random, header);
  else claims = damageJson(random, claims);
  if (random.oneIn(3)) claims = damageJson(random, claims);
  const input = `${encode(header)}.${encode(claims)}`;
  return `${input}.${sign('sha256', Buffer.from(input), { key: signingKey, dsaEncoding: 'ieee-p1363' }).toString('base64url')}`;
}

export const tokens: Target = {
  name: 'jwt',
  make(random: Random) {
    if (random.oneIn(3)) return signed(random);
    const token = random.pick(samples);
    if (random.oneIn(2)) return damageText(random, token, PIECES);
    const parts = token.split('.');
    const at = random.below(parts.length);
    parts[at] = damage(random, Buffer.from(parts[at]!, 'base64url'), [Buffer.from(token)]).toString('base64url');
    return parts.join('.');
  },
  check(input) {
    const token = input as string;
    const judged = validateJwtSvid(token, 'db', [jwtBundle], NOW_MS);
    if (!judged.ok) return false;
    const { spiffeId, claims, expiresAtMs } = judged.value;
    hold('the SPIFFE ID is of the bundle’s trust domain', spiffeId.startsWith('spiffe://example.org/'));
    hold('it is its subject', claims.sub === spiffeId);
    hold('it names the audience', claims.aud === 'db' || (claims.aud as string[]).includes('db'));
    hold('it has not ended', expiresAtMs > NOW_MS);
    const [header, payload, signature] = token.split('.');
    // of the samples' own headers and claims no other spelling is taken
    const twin = samples.find((sample) => sample.startsWith(`${header}.${payload}.`));
    hold('a signature has one spelling', twin === undefined || untouched.has(token));
    hold(
      'base64url is canonical',
      [header, payload, signature].every((part) => Buffer.from(part!, 'base64url').toString('base64url') === part),
    );
    return true;
  },
};
