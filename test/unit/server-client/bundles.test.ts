/** What an agent takes of the bundles and revocation lists that it is sent: all of its own trust domain's or nothing, and of others only what is theirs. */
import { generateKeyPairSync } from 'node:crypto';
import { beforeEach, describe, expect, test } from 'vitest';
import { type Bundle, SyncResponse } from '../../../proto/gen/countersign/server/v1/server.ts';
import { Bundles } from '../../../src/agent/server-client/bundles.ts';
import type { TrustDomain } from '../../../src/model/ids.ts';
import { derBitString, sequence } from '../../../src/pki/der.ts';
import { verifyX509Svid } from '../../../src/pki/verify.ts';
import { ca, type Forged, leaf, NOW, name } from '../pki/support/forge.ts';

const HOME = 'example.org' as TrustDomain;
const PARTNER = 'partner.example' as TrustDomain;
const home = ca({ subject: name('Home') });
const next = ca({ subject: name('Next') });
const partner = ca({ subject: name('Partner'), uris: ['spiffe://partner.example'] });
/** A CA need not say whose it is. */
const unnamed = ca({ subject: name('Unnamed'), uris: [] });
const jwtKey = generateKeyPairSync('ec', { namedCurve: 'P-256' }).publicKey.export({ type: 'spki', format: 'der' });

let bundles: Bundles;
let refused: string[];
beforeEach(() => {
  bundles = new Bundles(HOME, [home.der]);
  refused = [];
});

const bundleOf = (authorities: readonly Forged[], more: Partial<Bundle> = {}): Bundle => ({
  ...{ sequence: 1n, jwtAuthorities: [], refreshHintSeconds: 0, taintedKeyIds: [] },
  certificates: authorities.map(({ der }) => der),
  ...more,
});
const take = (message: Partial<SyncResponse>) =>
  bundles.apply(SyncResponse.create(message), (what, why) => refused.push(`${what}: ${why}`));
const federated = (trustDomain: string, bundle: Bundle) => ({ federatedBundles: [{ trustDomain, bundle }] });
const tainted = (...ids: string[]) => ({ taintedKeyIds: ids.map((id) => Buffer.from(id, 'hex')) });

const LATER = { sequence: 9n };

describe('the own bundle', () => {
  test('grows and shrinks, and is the same object while it stays the same', () => {
    expect(take({ bundle: bundleOf([home, next]) })).toBe(true);
    const { own } = bundles;
    expect(own.bundle.authorities).toEqual([home.der, next.der]);
    expect(take({ bundle: bundleOf([home, next]) })).toBe(false);
    expect(bundles.own).toBe(own);
    expect(take({ bundle: bundleOf([next], { sequence: 2n }) })).toBe(true);
    expect(bundles.own.bundle.authorities).toEqual([next.der]);
  });

  test('a key that is tainted, or a JWT authority that came, changes it, but no X.509 authority', () => {
    take({ bundle: bundleOf([home]) });
    const jwtAuthorities = [{ keyId: 'k1', publicKey: jwtKey, expiresAt: 7n, tainted: true }];
    expect(take({ bundle: bundleOf([home], { ...tainted('0aff'), jwtAuthorities }) })).toBe(false);
    expect([...bundles.own.tainted]).toEqual(['0aff']);
    expect(bundles.own.bundle.jwtAuthorities).toEqual([
      { keyId: 'k1', publicKey: jwtKey, expiresAtMs: 7000, tainted: true },
    ]);
  });

  test.each<[string, () => Bundle, RegExp]>([
    ['empty', () => bundleOf([], LATER), /empty/],
    [
      'with something that is no certificate',
      () => bundleOf([{ ...home, der: Buffer.from('3003020101', 'hex') }], LATER),
      /broken/,
    ],
    ['with a workload’s certificate', () => bundleOf([home, leaf(home)], LATER), /broken/],
    ['with another trust domain’s authority', () => bundleOf([home, partner], LATER), /another trust domain/],
    [
      'with too many',
      () =>
        bundleOf(
          Array.from({ length: 65 }, () => home),
          LATER,
        ),
      /too large/,
    ],
    ['older than the one before', () => bundleOf([next], { sequence: 3n }), /older/],
  ])('%s: nothing of the message is taken', (_, bundle, why) => {
    take({ bundle: bundleOf([home], { sequence: 4n }) });
    const { own } = bundles;
    const federatedBundles = [{ trustDomain: PARTNER, bundle: bundleOf([partner]) }];
    expect(() => take({ bundle: bundle(), federatedBundles })).toThrow(why);
    expect(bundles.own).toBe(own);
    expect(bundles.federated()).toEqual([]);
  });

  test('a JWT authority whose key cannot be read is left out and named, the others stay', () => {
    const good = { keyId: 'good', publicKey: jwtKey, expiresAt: 0n, tainted: false };
    const bad = { keyId: 'bad', publicKey: Buffer.from('3003020101', 'hex'), expiresAt: 0n, tainted: false };
    const twice = { ...good, publicKey: Buffer.from(jwtKey) };
    take({ bundle: bundleOf([home], { jwtAuthorities: [bad, good, twice] }) });
    expect(bundles.own.bundle.jwtAuthorities?.map(({ keyId }) => keyId)).toEqual(['good']);
    expect(refused).toEqual(['JWT authority: its key cannot be read', 'JWT authority: its key id is not one']);
  });
});

describe('a bundle of another trust domain', () => {
  test('comes, changes and goes, and a snapshot says which there are', () => {
    take(federated(PARTNER, bundleOf([partner])));
    take(federated('third.example', bundleOf([unnamed])));
    expect(bundles.federated().map(({ trustDomain }) => trustDomain)).toEqual([PARTNER, 'third.example']);
    take({ removedFederatedBundles: ['third.example'] });
    expect(bundles.federated()).toMatchObject([{ trustDomain: PARTNER, authorities: [partner.der] }]);
    take({ snapshot: true, bundle: bundleOf([home]), ...federated('third.example', bundleOf([unnamed])) });
    expect(bundles.federated().map(({ trustDomain }) => trustDomain)).toEqual(['third.example']);
  });

  test('that has no authority left vouches for nobody, and stays known as that', () => {
    take(federated(PARTNER, bundleOf([])));
    expect(bundles.federated()).toMatchObject([{ trustDomain: PARTNER, authorities: [] }]);
  });

  test('under our own name is refused whole', () => {
    take(federated(HOME, bundleOf([next])));
    expect(bundles.federated()).toEqual([]);
    expect(bundles.own.bundle.authorities).toEqual([home.der]);
    expect(refused.join()).toContain('our own trust domain');
  });

  test('an authority in it that bears our SPIFFE ID, or a third one’s, is left out; what is its own stays', () => {
    const third = ca({ subject: name('Third'), uris: ['spiffe://third.example'] });
    const workload = ca({ subject: name('Odd'), uris: ['spiffe://partner.example/workload'] });
    take(federated(PARTNER, bundleOf([next, partner, third, workload, unnamed])));
    expect(bundles.federated()).toMatchObject([{ authorities: [partner.der, unnamed.der] }]);
    expect(refused).toHaveLength(3);
  });

  test('an authority of it that signs an SVID of ours is believed by nobody', () => {
    take(federated(PARTNER, bundleOf([partner, unnamed])));
    const [foreign] = bundles.federated();
    for (const signer of [partner, unnamed]) {
      const svid = leaf(signer, { uris: ['spiffe://example.org/frontend'] });
      expect(verifyX509Svid([svid.der], bundles.own.bundle, NOW)).toEqual({ ok: false, error: 'CERT_UNTRUSTED' });
      expect(verifyX509Svid([svid.der], foreign!, NOW)).toEqual({ ok: false, error: 'CERT_TRUST_DOMAIN' });
    }
    // and ours none of theirs
    const theirs = leaf(home, { uris: ['spiffe://partner.example/frontend'] });
    expect(verifyX509Svid([theirs.der], bundles.own.bundle, NOW).ok).toBe(false);
    expect(verifyX509Svid([theirs.der], foreign!, NOW).ok).toBe(false);
  });

  test('a name that is none, and one too many, are refused', () => {
    take(federated('Partner.Example', bundleOf([unnamed])));
    expect(bundles.federated()).toEqual([]);
    for (let i = 0; i < 257; i++) take(federated(`td-${i}.example`, bundleOf([unnamed])));
    expect(bundles.federated()).toHaveLength(256);
    // known ones still change
    take(federated('td-7.example', bundleOf([])));
    expect(bundles.federated().find(({ trustDomain }) => trustDomain === 'td-7.example')?.authorities).toEqual([]);
  });
});

describe('revocation lists', () => {
  const list = (n: number) => sequence(sequence(Buffer.from([2, 1, n])), sequence(), derBitString(Buffer.from([n])));

  test('are replaced as a whole, and only when they are sent', () => {
    take({ crls: { crls: [list(1), list(2)] } });
    take({ bundle: bundleOf([home]) });
    expect(bundles.crls()).toEqual([list(1), list(2)]);
    take({ crls: { crls: [list(3)] } });
    expect(bundles.crls()).toEqual([list(3)]);
  });

  test.each<[string, Buffer[]]>([
    ['garbage', [Buffer.from('not a list')]],
    ['one cut off', [list(1).subarray(0, -1)]],
    ['one with more behind it', [Buffer.concat([list(1), Buffer.of(0)])]],
    ['too many', Array.from({ length: 65 }, () => list(1))],
  ])('%s: the message is refused, with the bundle in it', (_, crls) => {
    take({ crls: { crls: [list(1)] } });
    expect(() => take({ bundle: bundleOf([next], { sequence: 5n }), crls: { crls } })).toThrow(/revocation list/);
    expect(bundles.crls()).toEqual([list(1)]);
    expect(bundles.own.bundle.authorities).toEqual([home.der]);
  });
});
