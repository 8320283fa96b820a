import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { SpiffeWorkloadAPIClient, type X509SVIDResponse } from '../../../proto/gen/spiffe/workload/workload.ts';
import type { TrustDomain } from '../../../src/model/ids.ts';
import { generateKey } from '../../../src/pki/keys.ts';
import { bundle, bundleOf, clientOf, element, entry, openStage, ownUid, type Stage, security, svid } from './stage.ts';

const OWN = `unix:uid:${ownUid}`;
const PARTNER = 'partner.example' as TrustDomain;
const partner = bundleOf(PARTNER, 'partner', generateKey());
const stranger = bundleOf('stranger.example', 'stranger', generateKey());

let stage: Stage;
let client: SpiffeWorkloadAPIClient;
beforeEach(async () => {
  stage = await openStage();
  client = clientOf(SpiffeWorkloadAPIClient, stage);
  stage.feed.bundles = [bundle, partner, stranger];
  stage.feed.crls = [element('crl 1'), element('crl 2')];
});
afterEach(async () => {
  client.close();
  await stage.clear();
});

function answersOf<T>(call: AsyncIterable<T> & { on(event: 'error', listener: () => void): unknown }) {
  call.on('error', () => {});
  const answers = call[Symbol.asyncIterator]();
  return async () => (await answers.next()).value as T;
}
const svids = () => answersOf<X509SVIDResponse>(client.fetchX509Svid({}, security()));

describe('a workload whose entry names another trust domain', () => {
  it('gets that bundle besides its own, by its SPIFFE ID, and is told when it changes or is withdrawn', async () => {
    stage.feed.add('web', OWN);
    const next = svids();
    expect((await next()).federatedBundles).toEqual({});
    stage.feed.entries = [{ ...entry('web', OWN), federatesWith: [PARTNER] }];
    stage.feed.changed();
    const told = await next();
    expect(told.federatedBundles).toEqual({ 'spiffe://partner.example': element('partner') });
    expect(told.svids[0]!.bundle).toEqual(element('root'));
    stage.feed.bundles = [bundle, { ...partner, authorities: [element('partner'), element('newer')] }];
    stage.feed.changed();
    const both = Buffer.concat([element('partner'), element('newer')]);
    expect((await next()).federatedBundles).toEqual({ 'spiffe://partner.example': both });
    stage.feed.bundles = [bundle];
    stage.feed.changed();
    expect((await next()).federatedBundles).toEqual({});
  });

  it('gets the same from FetchX509Bundles, and never a bundle that none of its entries names', async () => {
    stage.feed.entries = [
      { ...entry('web', OWN), federatesWith: [PARTNER] },
      { ...entry('other', `unix:uid:${ownUid + 1}`), federatesWith: ['stranger.example' as TrustDomain] },
    ];
    const next = answersOf(client.fetchX509Bundles({}, security()));
    expect(await next()).toEqual({
      crl: [element('crl 1'), element('crl 2')],
      bundles: { 'spiffe://example.org': element('root'), 'spiffe://partner.example': element('partner') },
    });
  });

  it('does not take a foreign bundle for that of its own trust domain, whatever the entry says', async () => {
    stage.feed.entries = [{ ...entry('web', OWN), federatesWith: ['example.org' as TrustDomain] }];
    stage.feed.svids.set('web', svid('web'));
    const told = await svids()();
    expect([told.federatedBundles, told.svids[0]!.bundle]).toEqual([{}, element('root')]);
  });
});

describe('revocation lists', () => {
  it('come with SVIDs, and anew when one of them changes', async () => {
    stage.feed.add('web', OWN);
    const next = svids();
    expect((await next()).crl).toEqual([element('crl 1'), element('crl 2')]);
    stage.feed.crls = [element('crl 3')];
    stage.feed.changed();
    expect((await next()).crl).toEqual([element('crl 3')]);
  });
});

describe('hints', () => {
  it('are each given once: the first entry keeps it', async () => {
    stage.feed.entries = ['internal', '', 'internal', 'external'].map((hint, i) => ({ ...entry(`e${i}`, OWN), hint }));
    for (const { id } of stage.feed.entries) stage.feed.svids.set(id, svid(id));
    expect((await svids()()).svids.map(({ hint }) => hint)).toEqual(['internal', '', '', 'external']);
  });
});
