import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { type CountersignError, ok } from '../../../src/base/errors.ts';
import type { TrustDomain } from '../../../src/model/ids.ts';
import { fetchJwtSvid, fetchX509Svid } from '../../../src/workload/client.ts';
import { bundle, element, entry, NOW_MS, openStage, ownUid, type Stage, svid } from './stage.ts';

const OWN = `unix:uid:${ownUid}`;

let stage: Stage;
beforeEach(async () => {
  stage = await openStage();
});
afterEach(() => stage.clear());

describe('the Workload API client', () => {
  it('refuses a JWT-SVID that says no end, without a word of it', async () => {
    stage.feed.add('web', OWN);
    const secret = Buffer.from('{"sub": secret').toString('base64url');
    for (const token of ['header.e30.signature', 'secret', `header.${secret}.signature`, 'header.bnVsbA.signature']) {
      stage.feed.issueJwt = async () => ok({ token, expiresAtMs: NOW_MS + 60_000 });
      const problem = await fetchJwtSvid(stage.socketPath, ['db']).catch((thrown: CountersignError) => thrown);
      expect(problem).toMatchObject({ code: 'bad-input', message: expect.stringContaining('the answer is malformed') });
      expect((problem as CountersignError).message).not.toContain('secret');
    }
  });

  it('says whose fault it is when there is no JWT-SVID', async () => {
    stage.feed.add('web', OWN);
    await expect(fetchJwtSvid(stage.socketPath, [])).rejects.toMatchObject({ code: 'bad-input' });
    stage.feed.entries = [];
    await expect(fetchJwtSvid(stage.socketPath, ['db'])).rejects.toMatchObject({ code: 'permission-denied' });
    await expect(fetchJwtSvid('/nonexistent/socket', ['db'])).rejects.toMatchObject({
      code: 'unavailable',
      message: '/nonexistent/socket: nobody serves there',
    });
  });

  it('gives revocation lists, and the bundles of trust domains that the entry federates with, by their names', async () => {
    const partner = 'partner.example' as TrustDomain;
    stage.feed.entries = [{ ...entry('web', OWN), federatesWith: [partner] }];
    stage.feed.svids.set('web', svid('web'));
    stage.feed.bundles = [bundle, { trustDomain: partner, authorities: [element('theirs')] }];
    stage.feed.crls = [element('crl')];
    const fetched = await fetchX509Svid(stage.socketPath);
    expect([...fetched.federatedBundles]).toEqual([[partner, [element('theirs')]]]);
    expect(fetched.crls).toEqual([element('crl')]);
  });
});
