import fc from 'fast-check';
import { beforeEach, describe, expect, it } from 'vitest';
import type { ForeignTrustDomain } from '../../../identity/federation/config.ts';
import type { FetchFailure } from '../../../identity/federation/fetch.ts';
import { ForeignBundles, type ForeignBundlesOptions } from '../../../identity/federation/foreign-bundles.ts';
import type { Change } from '../../../identity/feed.ts';
import type { FederatedBundleRecord } from '../../../identity/store.ts';
import { err, ok, type Result } from '../../../src/base/errors.ts';
import type { TrustDomain } from '../../../src/model/ids.ts';
import { spiffeId } from '../../../src/model/spiffe-id.ts';
import { encodeSpiffeBundle } from '../../../src/pki/spiffe-bundle.ts';
import { ca } from '../pki/support/forge.ts';
import { collector, quiet } from './harness.ts';

const HOME = 'example.org' as TrustDomain;
const PARTNER = 'partner.org' as TrustDomain;
const partnerRoot = ca({ uris: ['spiffe://partner.org'] });

const document = (sequence?: bigint, refreshHintSeconds?: number, root = partnerRoot, trustDomain = PARTNER) =>
  encodeSpiffeBundle({
    trustDomain,
    authorities: [root.der],
    ...(sequence === undefined ? {} : { sequence }),
    ...(refreshHintSeconds === undefined ? {} : { refreshHintSeconds }),
  });

const endpoint: ForeignTrustDomain = {
  trustDomain: PARTNER,
  endpointUrl: new URL('https://partner.org/'),
  profile: 'https_web',
};

/** Time, the endpoint and the store, all in the test's hand. */
class World {
  nowMs = 1_000_000;
  answer: Result<string, FetchFailure> = ok(document(1n, 300));
  asked = 0;
  readonly stored = new Map<TrustDomain, FederatedBundleRecord>();
  readonly published: Change[] = [];
  readonly audit = collector();
  timer: { atMs: number; fn: () => void } | undefined;
  random = 0;

  open(more: Partial<ForeignBundlesOptions> = {}): ForeignBundles {
    return new ForeignBundles({
      trustDomain: HOME,
      configured: [endpoint],
      ownBundle: () => ({ trustDomain: HOME, authorities: [] }),
      isRevoked: () => true,
      store: {
        putFederatedBundle: (bundle) => void this.stored.set(bundle.trustDomain, bundle),
        federatedBundles: () => [...this.stored.values()],
        deleteFederatedBundle: (trustDomain) => void this.stored.delete(trustDomain),
      },
      feed: { publish: (change) => this.published.push(change) },
      clock: { nowMs: () => this.nowMs, bootNs: () => 0n },
      timers: {
        set: (ms, fn) => {
          const timer = { atMs: this.nowMs + ms, fn };
          this.timer = timer;
          return () => {
            if (this.timer === timer) this.timer = undefined;
          };
        },
      },
      audit: this.audit,
      log: quiet,
      random: () => this.random,
      fetch: async () => {
        this.asked += 1;
        return this.answer;
      },
      ...more,
    });
  }

  /** Until the next time at which it asks, in seconds; then it asks. */
  async next(): Promise<number> {
    const timer = this.timer!;
    const seconds = (timer.atMs - this.nowMs) / 1000;
    this.nowMs = timer.atMs;
    timer.fn();
    await new Promise(setImmediate);
    return seconds;
  }
}

let world: World;
beforeEach(() => {
  world = new World();
});
const settled = () => new Promise(setImmediate);

describe('the bundle of a federated trust domain', () => {
  it('is fetched at the start, kept on disk, told to agents and to the audit log', async () => {
    const foreign = world.open();
    foreign.start();
    await settled();
    expect(foreign.bundleOf(PARTNER)).toMatchObject({
      trustDomain: PARTNER,
      authorities: [partnerRoot.der],
      sequence: 1n,
    });
    expect(world.stored.get(PARTNER)).toMatchObject({ origin: 'endpoint', document: document(1n, 300) });
    expect(world.published).toEqual([{ federatedBundles: [PARTNER] }]);
    expect(world.audit.events).toMatchObject([
      { kind: 'bundle.changed', actor: 'server', detail: { trustDomain: PARTNER, sequence: '1' } },
    ]);
  });

  it('is asked for again by its hint, within a minute and an hour, and not told again while it is the same', async () => {
    const foreign = world.open();
    foreign.start();
    await settled();
    expect(await world.next()).toBe(300);
    world.answer = ok(document(2n, 1));
    expect(await world.next()).toBe(300);
    world.answer = ok(document(3n, 86_400));
    expect(await world.next()).toBe(60);
    world.answer = ok(document(4n));
    expect(await world.next()).toBe(3600);
    expect(await world.next()).toBe(300);
    expect(world.published).toHaveLength(4);
    foreign.close();
    expect(world.timer).toBeUndefined();
  });

  it('is asked for up to a tenth sooner, so that not all servers ask at once', async () => {
    world.random = 0.5;
    world.open().start();
    await settled();
    expect(await world.next()).toBe(285);
  });

  it('stays as it is when its endpoint fails, and is asked for ever more seldom', async () => {
    const foreign = world.open();
    foreign.start();
    await settled();
    world.answer = err({ reason: 'BUNDLE_UNREACHABLE', text: 'ECONNREFUSED' });
    const waits: number[] = [];
    for (let i = 0; i < 7; i++) waits.push(await world.next());
    expect(waits).toEqual([300, 300, 600, 1200, 2400, 3600, 3600]);
    expect(foreign.bundleOf(PARTNER)?.sequence).toBe(1n);
    expect(foreign.find(PARTNER)?.lastFailure).toMatchObject({ reason: 'BUNDLE_UNREACHABLE', count: 7 });
    // once, not seven times
    expect(world.audit.events.filter(({ kind }) => kind === 'bundle.refused')).toHaveLength(1);
    world.answer = ok(document(2n, 300));
    await world.next();
    expect(await world.next()).toBe(300);
    expect(foreign.find(PARTNER)?.lastFailure).toBeUndefined();
  });

  it('never goes back: not to a lower number, not to none', async () => {
    const foreign = world.open();
    world.answer = ok(document(7n));
    foreign.start();
    await settled();
    for (const older of [document(6n), document(), document(0n)]) {
      world.answer = ok(older);
      await expect(foreign.refresh(PARTNER)).rejects.toThrow('BUNDLE_ROLLED_BACK');
      expect(() => foreign.set(PARTNER, older, 'admin')).toThrow('BUNDLE_ROLLED_BACK');
    }
    expect(foreign.bundleOf(PARTNER)?.sequence).toBe(7n);
    expect(world.stored.get(PARTNER)?.document).toBe(document(7n));
    // nor after a restart
    const again = world.open();
    await expect(again.refresh(PARTNER)).rejects.toThrow('BUNDLE_ROLLED_BACK');
    expect(world.audit.events.some(({ reason }) => reason === 'BUNDLE_ROLLED_BACK')).toBe(true);
  });

  it('may begin anew after an administrator deleted it', async () => {
    const foreign = world.open();
    foreign.set(PARTNER, document(7n), 'admin');
    foreign.delete(PARTNER, 'admin');
    expect(foreign.bundleOf(PARTNER)).toBeUndefined();
    expect(world.published.at(-1)).toEqual({ federatedBundles: [PARTNER] });
    expect(foreign.set(PARTNER, document(1n), 'admin').bundle?.sequence).toBe(1n);
  });

  it('that revokes all keys is taken', async () => {
    const foreign = world.open();
    foreign.start();
    await settled();
    world.answer = ok('{"keys":[],"spiffe_sequence":2}');
    await foreign.refresh(PARTNER);
    expect(foreign.bundleOf(PARTNER)).toMatchObject({ authorities: [], jwtAuthorities: [] });
  });

  it.each<[string, string]>([
    ['another trust domain', document(2n, 1, ca({ uris: ['spiffe://evil.org'] }))],
    ['our own trust domain', document(2n, 1, ca({ uris: ['spiffe://example.org'] }))],
    ['nobody that can be read', '{"keys":'],
  ])('with the certificate of %s is refused, and the one before stays', async (_, bad) => {
    const foreign = world.open();
    foreign.start();
    await settled();
    world.answer = ok(bad);
    await expect(foreign.refresh(PARTNER)).rejects.toThrow('BUNDLE_MALFORMED');
    expect(foreign.bundleOf(PARTNER)?.authorities).toEqual([partnerRoot.der]);
  });

  it('is asked for with our own revocations, which say nothing of the SVIDs of others', async () => {
    const revoked: boolean[] = [];
    const foreign = world.open({
      fetch: async (_, { isRevoked, bundleOf }) => {
        for (const id of ['spiffe://example.org/bundles', 'spiffe://partner.org/bundles'])
          revoked.push(isRevoked({ spiffeId: spiffeId(id), serial: '01', node: undefined, notBeforeMs: 0 }));
        expect(bundleOf(HOME)?.trustDomain).toBe(HOME);
        return world.answer;
      },
    });
    await foreign.refresh(PARTNER);
    expect(revoked).toEqual([true, false]);
  });

  it('is fetched once however many ask at the same time', async () => {
    const foreign = world.open();
    foreign.start();
    await Promise.all([foreign.refresh(PARTNER), foreign.refresh(PARTNER)]);
    expect(world.asked).toBe(1);
  });

  it('is not taken any more once the server is stopping', async () => {
    let give = (_: Result<string, FetchFailure>) => {};
    const foreign = world.open({
      fetch: () =>
        new Promise((resolve) => {
          give = resolve;
        }),
    });
    foreign.start();
    foreign.close();
    give(ok(document(1n)));
    await settled();
    expect(world.stored.size).toBe(0);
    expect(world.timer).toBeUndefined();
  });
});

describe('a bundle for our own trust domain', () => {
  const own = document(9n, 300, ca({ uris: ['spiffe://example.org'] }), HOME);

  it('is refused when it is set', () => {
    const foreign = world.open();
    expect(() => foreign.set(HOME, own, 'admin')).toThrow('BUNDLE_OWN_TRUST_DOMAIN');
    expect(foreign.bundleOf(HOME)).toBeUndefined();
    expect(world.stored.size).toBe(0);
  });

  it('is refused when an endpoint sends it, should the configuration have let that through', async () => {
    world.answer = ok(own);
    const foreign = world.open({ configured: [{ ...endpoint, trustDomain: HOME }] });
    await expect(foreign.refresh(HOME)).rejects.toThrow('BUNDLE_OWN_TRUST_DOMAIN');
    expect(foreign.bundleOf(HOME)).toBeUndefined();
  });

  it('that lies in the store, of the days when the trust domain had another name, is thrown away', () => {
    world.stored.set(HOME, { trustDomain: HOME, document: own, origin: 'admin', fetchedAtMs: 0 });
    const foreign = world.open();
    expect(foreign.bundleOf(HOME)).toBeUndefined();
    expect(world.stored.size).toBe(0);
  });
});

describe('after a restart', () => {
  it('the last good bundle is there before any endpoint answers', async () => {
    const foreign = world.open();
    foreign.start();
    await settled();
    foreign.close();
    world.answer = err({ reason: 'BUNDLE_UNREACHABLE', text: 'down' });
    const again = world.open();
    expect(again.bundleOf(PARTNER)?.authorities).toEqual([partnerRoot.der]);
    again.start();
    await settled();
    expect(again.bundleOf(PARTNER)?.authorities).toEqual([partnerRoot.der]);
  });

  it('what an endpoint gave is gone if it is no longer configured; what was set by hand stays', async () => {
    const foreign = world.open();
    foreign.start();
    await settled();
    const other = 'other.org' as TrustDomain;
    foreign.set(other, '{"keys":[]}', 'admin');
    const again = world.open({ configured: [] });
    expect(again.trustDomains()).toEqual([other]);
    expect([...world.stored.keys()]).toEqual([other]);
  });

  it('a stored document that is broken is not used, and is replaced by the next', async () => {
    world.stored.set(PARTNER, { trustDomain: PARTNER, document: '{', origin: 'endpoint', fetchedAtMs: 0 });
    const foreign = world.open();
    expect(foreign.bundleOf(PARTNER)).toBeUndefined();
    await foreign.refresh(PARTNER);
    expect(foreign.bundleOf(PARTNER)?.sequence).toBe(1n);
  });
});

it('whatever endpoints and administrators send, in any order, the number in force never falls', async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(
        fc.record({ sequence: fc.option(fc.bigInt(0n, 9n)), by: fc.constantFrom('endpoint', 'admin', 'restart') }),
        { maxLength: 20 },
      ),
      async (steps) => {
        const mine = new World();
        let foreign = mine.open();
        let highest: bigint | undefined;
        for (const { sequence, by } of steps) {
          const text = document(sequence ?? undefined);
          mine.answer = ok(text);
          if (by === 'restart') foreign = mine.open();
          else if (by === 'admin') {
            try {
              foreign.set(PARTNER, text, 'admin');
            } catch {}
          } else await foreign.refresh(PARTNER).catch(() => {});
          const now = foreign.bundleOf(PARTNER)?.sequence;
          if (highest !== undefined) expect(now).toBeGreaterThanOrEqual(highest);
          highest = now ?? highest;
        }
      },
    ),
    { numRuns: 50 },
  );
});
