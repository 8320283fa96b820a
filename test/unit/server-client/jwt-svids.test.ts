/** JWT-SVIDs on the node: asked for once and kept until half their life, bounded, and gone with what they rest on. */
import { generateKeyPairSync, sign } from 'node:crypto';
import { beforeEach, describe, expect, test } from 'vitest';
import { JwtSvids } from '../../../src/agent/server-client/jwt-svids.ts';
import { ServerError } from '../../../src/agent/server-client/transport.ts';
import type { ReasonCode } from '../../../src/base/registry/reason-codes.ts';
import type { RegistrationEntry } from '../../../src/model/entry.ts';
import type { JwtAuthority, TrustBundle } from '../../../src/model/identity.ts';
import type { SecurityIdentity, TrustDomain } from '../../../src/model/ids.ts';
import { spiffeId } from '../../../src/model/spiffe-id.ts';
import { jwtFrom, jwtSvidSigningInput } from '../../../src/pki/jwt.ts';
import type { IssuedJwtSvid } from '../../../src/workload/feed.ts';
import { quiet } from '../identity/harness.ts';

const TRUST_DOMAIN = 'example.org' as TrustDomain;
const LIFE_MS = 300_000;
const FRONTEND = entryOf('frontend');

function entryOf(id: string): RegistrationEntry {
  return {
    ...{ id, spiffeId: spiffeId(`spiffe://example.org/${id}`), parentId: spiffeId('spiffe://example.org/node/a') },
    ...{ selectors: [], hint: '', identity: 256 as SecurityIdentity, labels: {}, ttlSeconds: 0, jwtTtlSeconds: 0 },
    ...{ dnsNames: [], federatesWith: [] },
  };
}

const keys = new Map(['k1', 'k2'].map((kid) => [kid, generateKeyPairSync('ec', { namedCurve: 'P-256' })]));
let nowMs: number;
let bundle: TrustBundle;
/** Entry and audiences of each call to the server. */
let asked: string[];
let answer: (entryId: string, audience: readonly string[]) => Promise<IssuedJwtSvid>;
let kid: string;
let jwts: JwtSvids;

beforeEach(() => {
  nowMs = Date.UTC(2026, 5, 15, 12);
  kid = 'k1';
  bundle = { trustDomain: TRUST_DOMAIN, authorities: [], jwtAuthorities: [authority('k1'), authority('k2')] };
  asked = [];
  answer = async (entryId, audience) => token(entryId, audience);
  jwts = new JwtSvids({
    ask: (entryId, audience) => {
      asked.push(`${entryId} ${audience.join()}`);
      return answer(entryId, audience);
    },
    bundle: () => bundle,
    clock: { nowMs: () => nowMs, bootNs: () => BigInt(nowMs) * 1_000_000n },
    log: quiet,
  });
});

function authority(keyId: string, more: Partial<JwtAuthority> = {}): JwtAuthority {
  return { keyId, publicKey: keys.get(keyId)!.publicKey.export({ type: 'spki', format: 'der' }), ...more };
}

function token(
  entryId: string,
  audience: readonly string[],
  subject = `spiffe://example.org/${entryId}`,
): IssuedJwtSvid {
  const [issuedAt, expiresAt] = [nowMs / 1000, (nowMs + LIFE_MS) / 1000];
  const fields = { alg: 'ES256', kid, spiffeId: spiffeId(subject), audience, issuedAt, expiresAt } as const;
  const input = jwtSvidSigningInput(fields);
  const key = { key: keys.get(kid)!.privateKey, dsaEncoding: 'ieee-p1363' } as const;
  return { token: jwtFrom(input, sign('sha256', Buffer.from(input), key)), expiresAtMs: expiresAt * 1000 };
}

const gone = () => Promise.reject(new ServerError('unavailable', undefined, 'not connected'));
const saysNo = (reason: ReasonCode) => () => Promise.reject(new ServerError('permission-denied', reason, reason));
const issue = (audience = ['api'], entry = FRONTEND) => jwts.issue(entry, audience);

test('is asked for once and kept until half its life has passed, whatever the order of its audiences', async () => {
  const first = await issue(['api', 'db', 'api']);
  nowMs += LIFE_MS / 2 - 1;
  expect(await issue(['db', 'api'])).toEqual(first);
  expect(asked).toEqual(['frontend api,db']);
  nowMs += 1;
  expect(await issue(['db', 'api'])).not.toEqual(first);
  expect(asked).toHaveLength(2);
});

test('one entry never gets another’s, nor an audience another’s', async () => {
  const backend = entryOf('backend');
  const all = await Promise.all([
    issue(),
    issue(['db']),
    issue(['api', 'db']),
    issue(['api'], backend),
    issue(['api,db']),
  ]);
  expect(new Set(all.map((one) => one.ok && one.value.token)).size).toBe(5);
  expect(asked).toHaveLength(5);
});

test('a hundred who ask at once for the same are one request', async () => {
  const all = await Promise.all(Array.from({ length: 100 }, () => issue()));
  expect(new Set(all.map((one) => one.ok && one.value.token)).size).toBe(1);
  expect(asked).toHaveLength(1);
});

describe('the server cannot be asked', () => {
  test('what is held is given out until its end, and nothing after it', async () => {
    const first = await issue();
    answer = gone;
    nowMs += LIFE_MS - 1;
    expect(await issue()).toEqual(first);
    nowMs += 1;
    expect(await issue()).toEqual({ ok: false, error: 'SERVER_UNREACHABLE' });
    expect(await issue(['another'])).toEqual({ ok: false, error: 'SERVER_UNREACHABLE' });
    answer = async (entryId, audience) => token(entryId, audience);
    expect(await issue()).toMatchObject({ ok: true });
  });

  test('how long that is can be told', async () => {
    await issue();
    nowMs += 1000;
    await issue(['db']);
    expect(jwts.ends()).toEqual({ count: 2, firstMs: nowMs - 1000 + LIFE_MS, lastMs: nowMs + LIFE_MS });
  });
});

test.each(['ISSUE_REVOKED', 'ISSUE_NOT_YOUR_ENTRY'] as const)(
  '%s: what is held of the entry is not given out either',
  async (reason) => {
    await issue();
    answer = saysNo(reason);
    expect(await issue(['db'])).toEqual({ ok: false, error: reason });
    answer = gone;
    expect(await issue()).toEqual({ ok: false, error: 'SERVER_UNREACHABLE' });
  },
);

test('an entry that goes, or is revoked, while its token is on the way gets none', async () => {
  let arrive = () => {};
  answer = (entryId, audience) => new Promise((resolve) => (arrive = () => resolve(token(entryId, audience))));
  const waiting = issue();
  jwts.forget('frontend');
  arrive();
  expect(await waiting).toEqual({ ok: false, error: 'ISSUE_NOT_YOUR_ENTRY' });
  answer = gone;
  expect(await issue()).toEqual({ ok: false, error: 'SERVER_UNREACHABLE' });
});

describe('the bundle changes', () => {
  test('a key that left it: its tokens are gone, others stay', async () => {
    await issue(['old']);
    kid = 'k2';
    const kept = await issue(['new']);
    bundle = { ...bundle, jwtAuthorities: [authority('k2')] };
    jwts.bundleChanged();
    answer = gone;
    expect(await issue(['new'])).toEqual(kept);
    expect(await issue(['old'])).toEqual({ ok: false, error: 'SERVER_UNREACHABLE' });
  });

  test('a key that is tainted: its tokens are replaced at once', async () => {
    const before = await issue();
    kid = 'k2';
    bundle = { ...bundle, jwtAuthorities: [authority('k1', { tainted: true }), authority('k2')] };
    jwts.bundleChanged();
    expect(await issue()).not.toEqual(before);
  });
});

describe('the server sent what is not ours', () => {
  test.each<[string, () => Promise<IssuedJwtSvid>, ReasonCode]>([
    ['another subject', async () => token('frontend', ['api'], 'spiffe://example.org/admin'), 'JWT_SUBJECT'],
    [
      'another trust domain',
      async () => token('frontend', ['api'], 'spiffe://partner.example/frontend'),
      'JWT_UNTRUSTED',
    ],
    ['another audience', async () => token('frontend', ['evil']), 'JWT_AUDIENCE'],
    [
      'another end than it says',
      async () => ({ ...token('frontend', ['api']), expiresAtMs: nowMs + 10 * LIFE_MS }),
      'JWT_EXPIRED',
    ],
    ['no token', async () => ({ token: 'x', expiresAtMs: nowMs + LIFE_MS }), 'JWT_MALFORMED'],
  ])('%s: refused, and not kept', async (_, sent, reason) => {
    answer = sent;
    expect(await issue()).toEqual({ ok: false, error: reason });
    answer = gone;
    expect(await issue()).toEqual({ ok: false, error: 'SERVER_UNREACHABLE' });
  });
});

describe('limits', () => {
  test.each<[string, string[]]>([
    ['no audience', []],
    ['an empty one', ['api', '']],
    ['too many', Array.from({ length: 17 }, (_, i) => `a${i}`)],
    ['one that is too long', ['a'.repeat(2049)]],
    ['more than fits together', ['a', 'b', 'c'].map((letter) => letter.repeat(2000))],
  ])('%s: refused here', async (_, audience) => {
    expect(await issue(audience)).toEqual({ ok: false, error: 'JWT_AUDIENCE' });
    expect(asked).toEqual([]);
  });

  test('an entry has sixteen requests under way at most; others are not held up', async () => {
    answer = () => new Promise(() => {});
    for (let i = 0; i < 16; i++) void issue([`a${i}`]);
    expect(await issue(['one more'])).toEqual({ ok: false, error: 'JWT_TOO_MANY' });
    answer = async (entryId, audience) => token(entryId, audience);
    expect(await issue(['api'], entryOf('backend'))).toMatchObject({ ok: true });
  });

  test('an entry that asks for ever new audiences is held to a rate, and what is held for it is bounded', async () => {
    let done = 0;
    for (let i = 0; i < 200; i++) if ((await issue([`a${i}`])).ok) done += 1;
    expect(done).toBe(64);
    expect(await issue(['a63']), 'from the cache').toMatchObject({ ok: true });
    nowMs += 1000;
    for (let i = 200; i < 400; i++) if ((await issue([`a${i}`])).ok) done += 1;
    expect(done).toBe(84);
    expect(jwts.ends().count).toBe(64);
  });
});
