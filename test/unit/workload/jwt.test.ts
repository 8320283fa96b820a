import { type ServiceError, status } from '@grpc/grpc-js';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import {
  type JWTSVIDRequest,
  type JWTSVIDResponse,
  SpiffeWorkloadAPIClient,
  type ValidateJWTSVIDResponse,
} from '../../../proto/gen/spiffe/workload/workload.ts';
import type { TrustDomain } from '../../../src/model/ids.ts';
import { generateKey } from '../../../src/pki/keys.ts';
import {
  answerOf,
  bundle,
  bundleOf,
  clientOf,
  entry,
  jwtKey,
  jwtSvid,
  NOW_MS,
  openStage,
  ownUid,
  type Stage,
  security,
} from './stage.ts';

const OWN = `unix:uid:${ownUid}`;
const foreignKey = generateKey();
const foreign = bundleOf('partner.example', 'foreign', foreignKey);
const stranger = bundleOf('stranger.example', 'stranger', generateKey());

let stage: Stage;
let client: SpiffeWorkloadAPIClient;
beforeEach(async () => {
  stage = await openStage({ jwtRatePerUid: 5 });
  client = clientOf(SpiffeWorkloadAPIClient, stage);
});
afterEach(async () => {
  client.close();
  await stage.clear();
});

const fetchJwt = (request: Partial<JWTSVIDRequest>) =>
  answerOf<JWTSVIDResponse>((done) =>
    client.fetchJwtsvid({ audience: ['backend'], spiffeId: '', ...request }, security(), done),
  ).then(({ svids }) => svids);
const validate = (svid: string, audience = 'backend') =>
  answerOf<ValidateJWTSVIDResponse>((done) => client.validateJwtsvid({ audience, svid }, security(), done));
const refusal = (asked: Promise<unknown>) =>
  asked.then(
    () => 'answered',
    (error: ServiceError) => error.code,
  );
function federate() {
  stage.feed.entries = [{ ...entry('web', OWN), federatesWith: ['partner.example' as TrustDomain] }];
  stage.feed.bundles = [bundle, foreign, stranger];
}

describe('FetchJWTSVID', () => {
  it('gives one for each identity of the caller, with its hint, and says whose each is', async () => {
    stage.feed.entries = [
      { ...entry('web', OWN), hint: 'internal' },
      { ...entry('admin', OWN), hint: 'internal' },
      { ...entry('other', `unix:uid:${ownUid + 1}`) },
    ];
    const svids = await fetchJwt({ audience: ['backend', 'cache'] });
    expect(svids.map(({ spiffeId, hint }) => [spiffeId, hint])).toEqual([
      ['spiffe://example.org/web', 'internal'],
      // a hint is unique in an answer (section 6.2.1)
      ['spiffe://example.org/admin', ''],
    ]);
    const { claims } = await validate(svids[1]!.svid, 'cache');
    expect(claims).toEqual({
      sub: 'spiffe://example.org/admin',
      aud: ['backend', 'cache'],
      iat: NOW_MS / 1000,
      exp: NOW_MS / 1000 + 300,
    });
  });

  it('gives that of the SPIFFE ID it is asked for, and PermissionDenied for one that is not the caller’s', async () => {
    stage.feed.add('web', OWN);
    stage.feed.add('admin', OWN);
    stage.feed.add('other', `unix:uid:${ownUid + 1}`);
    const svids = await fetchJwt({ spiffeId: 'spiffe://example.org/admin' });
    expect(svids.map(({ spiffeId }) => spiffeId)).toEqual(['spiffe://example.org/admin']);
    expect(await refusal(fetchJwt({ spiffeId: 'spiffe://example.org/other' }))).toBe(status.PERMISSION_DENIED);
    expect(stage.events.at(-1)).toMatchObject({ kind: 'workload.refused', reason: 'WORKLOAD_NO_IDENTITY' });
  });

  it.each([
    ['no audience', { audience: [] }],
    ['an empty audience', { audience: ['backend', ''] }],
    ['17 audiences', { audience: Array.from({ length: 17 }, (_, i) => `a${i}`) }],
    ['an audience that is too long', { audience: ['a'.repeat(2_049)] }],
    ['what is no SPIFFE ID', { spiffeId: 'spiffe://example.org/%61dmin' }],
  ])('answers InvalidArgument to %s', async (_name, request) => {
    stage.feed.add('web', OWN);
    expect(await refusal(fetchJwt(request))).toBe(status.INVALID_ARGUMENT);
  });

  it('answers PermissionDenied without an entry or with a revoked one, and Unavailable while there is none to be had', async () => {
    expect(await refusal(fetchJwt({}))).toBe(status.PERMISSION_DENIED);
    stage.feed.add('web', OWN);
    stage.feed.jwtRefusals.set('web', 'ISSUE_REVOKED');
    expect(await refusal(fetchJwt({}))).toBe(status.PERMISSION_DENIED);
    stage.feed.add('admin', OWN);
    expect(await fetchJwt({})).toMatchObject([{ spiffeId: 'spiffe://example.org/admin' }]);
    stage.feed.jwtRefusals.set('web', 'PEER_UNREACHABLE');
    expect(await refusal(fetchJwt({}))).toBe(status.UNAVAILABLE);
    stage.feed.starting = true;
    expect(await refusal(fetchJwt({}))).toBe(status.UNAVAILABLE);
  });

  it('is limited for each user, and given again as time passes', async () => {
    stage.feed.add('web', OWN);
    for (let i = 0; i < 10; i++) await fetchJwt({});
    expect(await refusal(fetchJwt({}))).toBe(status.RESOURCE_EXHAUSTED);
    stage.clock.ns += 1_000_000_000n;
    await fetchJwt({});
  });
});

describe('FetchJWTBundles', () => {
  it('streams the keys for JWT-SVIDs and no others, of the own trust domain and those the entry federates with', async () => {
    federate();
    const call = client.fetchJwtBundles({}, security());
    call.on('error', () => {});
    const updates = call[Symbol.asyncIterator]();
    const next = async () => {
      const { bundles } = (await updates.next()).value;
      return Object.fromEntries(Object.entries(bundles).map(([id, jwks]) => [id, JSON.parse(String(jwks)).keys]));
    };
    const first = await next();
    expect(Object.keys(first).sort()).toEqual(['spiffe://example.org', 'spiffe://partner.example']);
    expect(first['spiffe://example.org']).toMatchObject([{ kty: 'EC', crv: 'P-256', kid: 'root-key' }]);
    expect(JSON.stringify(first)).not.toContain('x5c');
    stage.feed.bundles = [bundleOf('example.org', 'next', generateKey()), foreign];
    stage.feed.changed();
    expect((await next())['spiffe://example.org']).toMatchObject([{ kid: 'next-key' }]);
    call.cancel();
  });

  it('answers PermissionDenied to who has no identity', async () => {
    const call = client.fetchJwtBundles({}, security());
    const error = await new Promise<ServiceError>((resolve) => call.on('error', resolve).resume());
    expect(error.code).toBe(status.PERMISSION_DENIED);
  });
});

describe('ValidateJWTSVID', () => {
  const ofPartner = (key = foreignKey) => jwtSvid(key, 'spiffe://partner.example/api', ['backend'], 'foreign-key');

  it('says whose a valid one is, also in a trust domain that the caller’s entry federates with', async () => {
    federate();
    expect(await validate(jwtSvid(jwtKey, 'spiffe://example.org/x', ['backend']))).toMatchObject({
      spiffeId: 'spiffe://example.org/x',
    });
    const { spiffeId, claims } = await validate(ofPartner());
    expect([spiffeId, claims?.sub]).toEqual(['spiffe://partner.example/api', 'spiffe://partner.example/api']);
  });

  it('answers InvalidArgument to one that is not, without repeating it', async () => {
    federate();
    const own = jwtSvid(jwtKey, 'spiffe://example.org/x', ['backend']);
    const wrong = [
      validate(own, 'other'),
      validate(own, ''),
      validate(''),
      validate(`${own}A`),
      validate(ofPartner(jwtKey)),
      // signed by the partner's key, in the name of our own trust domain
      validate(jwtSvid(foreignKey, 'spiffe://example.org/x', ['backend'], 'foreign-key')),
      // of a trust domain whose bundle the node has and the caller's entry does not name
      validate(jwtSvid(foreignKey, 'spiffe://stranger.example/x', ['backend'], 'stranger-key')),
    ];
    expect(await Promise.all(wrong.map(refusal))).toEqual(wrong.map(() => status.INVALID_ARGUMENT));
    const told = await validate(`${own}A`).catch((error: ServiceError) => error.details);
    expect(told).toContain('not valid');
    expect(told).not.toContain(own.slice(0, 20));
  });

  it('knows no federated trust domain that the caller’s entry does not name, and answers nobody without an identity', async () => {
    stage.feed.add('web', OWN);
    stage.feed.bundles = [bundle, foreign];
    expect(await refusal(validate(ofPartner()))).toBe(status.INVALID_ARGUMENT);
    stage.feed.entries = [];
    expect(await refusal(validate(jwtSvid(jwtKey, 'spiffe://example.org/x', ['backend'])))).toBe(
      status.PERMISSION_DENIED,
    );
  });
});
