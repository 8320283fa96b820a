/** What an agent serves when its bundle changes under it: never an SVID that the bundle beside it does not vouch for. Timers run by hand. */
import { beforeEach, describe, expect, test } from 'vitest';
import type { ServerClient } from '../../../src/agent/server-client/api.ts';
import type { OwnBundle } from '../../../src/agent/server-client/bundles.ts';
import type { SyncChange, SyncListener, UrgentListener } from '../../../src/agent/server-client/changes.ts';
import { WorkloadSvids } from '../../../src/agent/server-client/svids.ts';
import { ok, type Result } from '../../../src/base/errors.ts';
import type { ReasonCode } from '../../../src/base/registry/reason-codes.ts';
import type { RegistrationEntry } from '../../../src/model/entry.ts';
import type { Revocation, RevocationSubject } from '../../../src/model/identity.ts';
import type { SecurityIdentity, TrustDomain } from '../../../src/model/ids.ts';
import { spiffeId } from '../../../src/model/spiffe-id.ts';
import { parseCsr } from '../../../src/pki/csr.ts';
import { der, TAG } from '../../../src/pki/der.ts';
import { OID } from '../../../src/pki/oids.ts';
import { verifyX509Svid } from '../../../src/pki/verify.ts';
import { quiet } from '../identity/harness.ts';
import { extension, type Forged, NOW } from '../pki/support/forge.ts';
import { type Upstream, upstream } from '../pki/support/upstream.ts';

const NODE = spiffeId('spiffe://example.org/node/a');
const WEB: RegistrationEntry = {
  ...{ id: 'web', spiffeId: spiffeId('spiffe://example.org/web'), parentId: NODE, selectors: [], hint: '' },
  ...{
    identity: 256 as SecurityIdentity,
    labels: {},
    ttlSeconds: 0,
    jwtTtlSeconds: 0,
    dnsNames: [],
    federatesWith: [],
  },
};
const nothing = { changed: [], removed: [] };
const unchanged: SyncChange = {
  ...{ version: 1n, snapshot: false, bundle: false, revocations: [] },
  ...{ entries: nothing, identities: nothing, nodes: nothing },
};

let first: Upstream;
let second: Upstream;
let own: OwnBundle;
/** Who signs what is asked for now. */
let signer: Upstream;
let revoked: Set<string>;
let asked: number;
let timers: { atMs: number; fn: () => void }[];
let nowMs: number;
let hear: { change: SyncListener; urgent: UrgentListener };
let svids: WorkloadSvids;
let arrive: Promise<void>;

const trusting = (upstreams: readonly Upstream[], ...tainted: string[]): OwnBundle => ({
  bundle: { trustDomain: 'example.org' as TrustDomain, authorities: upstreams.map(({ root }) => root.der) },
  tainted: new Set(tainted),
});

beforeEach(async () => {
  // five minutes into the two hours for which these certificates live
  nowMs = NOW - 55 * 60_000;
  first = upstream(NOW, 1);
  second = upstream(NOW, 2);
  own = trusting([first, second]);
  signer = first;
  revoked = new Set();
  asked = 0;
  timers = [];
  arrive = Promise.resolve();
  const client = {
    node: { info: { spiffeId: NODE, name: 'a' } },
    identities: { rows: () => [{ nodes: [NODE] }] },
    nodes: { nodes: () => [{}] },
    ownBundle: () => own,
    federatedBundles: () => [],
    crls: () => [],
    revocations: { isRevoked: ({ authorities = [] }: RevocationSubject) => authorities.some((id) => revoked.has(id)) },
    entries: () => [WEB],
    onChange: (listener: SyncListener) => {
      hear = { ...hear, change: listener };
    },
    onUrgent: (listener: UrgentListener) => {
      hear = { ...hear, urgent: listener };
    },
    issue: async (requests: readonly { csr: Buffer }[]): Promise<Result<Buffer[], ReasonCode>[]> => {
      asked += 1;
      const by = signer;
      await arrive;
      return requests.map(({ csr }) => ok(signed(by, csr).map((certificate) => certificate.der)));
    },
  };
  svids = new WorkloadSvids({
    client: client as unknown as ServerClient,
    clock: { nowMs: () => nowMs, bootNs: () => BigInt(nowMs) * 1_000_000n },
    timers: {
      set: (ms, fn) => {
        const timer = { atMs: nowMs + ms, fn };
        timers.push(timer);
        return () => void timers.splice(0, timers.length, ...timers.filter((other) => other !== timer));
      },
    },
    log: quiet,
    audit: { emit: () => {} },
  });
  await hear.change({ ...unchanged, snapshot: true, entries: { changed: [WEB], removed: [] } });
  await settled();
});

/** Only the key of the request is taken, as by a real CA. */
function signed(by: Upstream, csr: Buffer): Forged[] {
  const parsed = parseCsr(csr);
  if (!parsed.ok) throw new Error(parsed.error);
  const binding = extension(OID.nodeBinding, der(TAG.utf8String, Buffer.from(NODE)), false);
  return by.sign({ uris: [WEB.spiffeId], more: [binding], spki: parsed.value.spki });
}

async function settled(): Promise<void> {
  for (let i = 0; i < 5; i++) await new Promise((resolve) => setImmediate(resolve));
}

/** Runs what is due within this time, in order. */
async function pass(ms: number): Promise<void> {
  const untilMs = nowMs + ms;
  for (;;) {
    const next = timers.filter(({ atMs }) => atMs <= untilMs).sort((a, b) => a.atMs - b.atMs)[0];
    if (next === undefined) break;
    timers.splice(timers.indexOf(next), 1);
    nowMs = Math.max(nowMs, next.atMs);
    next.fn();
    await settled();
  }
  nowMs = untilMs;
}

const served = () => svids.snapshot().svidOf('web');
const isUnder = (by: Upstream) => served()?.chain[1]?.equals(by.intermediate.der) === true;
const verifies = () => {
  const { bundles, svidOf } = svids.snapshot();
  const svid = svidOf('web');
  return svid === undefined || verifyX509Svid(svid.chain, bundles[0]!, nowMs).ok;
};
const take = (change: Partial<SyncChange>) => {
  hear.urgent({ ...unchanged, ...change });
  return hear.change({ ...unchanged, ...change });
};

test('the chain is served with its intermediate', () => {
  expect(served()?.chain).toHaveLength(2);
  expect(verifies()).toBe(true);
});

describe('an authority leaves the bundle', () => {
  test('what it signed is not served from that turn on; another one comes', async () => {
    own = trusting([second]);
    signer = second;
    hear.urgent({ ...unchanged, bundle: true });
    expect(served()).toBeUndefined();
    expect(svids.svidOf(WEB.identity)).toEqual({ ok: false, error: 'AUTH_NO_SVID' });
    await pass(100);
    expect(isUnder(second)).toBe(true);
  });

  test('who composes an answer slowly has an SVID and the bundle that vouches for it', () => {
    const early = svids.snapshot();
    own = trusting([second]);
    hear.urgent({ ...unchanged, bundle: true });
    const svid = early.svidOf('web')!;
    expect(verifyX509Svid(svid.chain, early.bundles[0]!, nowMs).ok).toBe(true);
    expect(svids.snapshot()).not.toBe(early);
  });

  test('what the server signs with a key that the bundle lacks is not served, and asked for again', async () => {
    own = trusting([second]);
    await take({ bundle: true });
    await pass(400);
    expect(asked).toBeGreaterThan(1);
    expect(served()).toBeUndefined();
    own = trusting([first, second]);
    await take({ bundle: true });
    await pass(2000);
    expect(isUnder(first)).toBe(true);
  });

  test('an SVID that is on the way when it leaves is not served', async () => {
    let come = () => {};
    arrive = new Promise((resolve) => {
      come = resolve;
    });
    await pass(62 * 60_000);
    expect(asked).toBe(2);
    own = trusting([second]);
    signer = second;
    await take({ bundle: true });
    come();
    await settled();
    expect(served()).toBeUndefined();
    await pass(2000);
    expect(isUnder(second)).toBe(true);
  });
});

describe('a key is tainted', () => {
  test.each([
    ['the intermediate', () => first.intermediateKeyId],
    ['the root', () => first.rootKeyId],
  ])('%s: what it signed is served until the next is there, which comes at once', async (_, keyId) => {
    own = trusting([first, second], keyId());
    signer = second;
    await take({});
    expect(isUnder(first)).toBe(true);
    await pass(100);
    expect(isUnder(second)).toBe(true);
    expect(verifies()).toBe(true);
  });

  test('another one: nothing is asked for', async () => {
    own = trusting([first, second], second.intermediateKeyId);
    await take({});
    await pass(1000);
    expect(asked).toBe(1);
  });

  test('a server that goes on signing with it is not asked without end', async () => {
    own = trusting([first, second], first.intermediateKeyId);
    await take({});
    await pass(10_000);
    expect(asked).toBe(2);
    signer = second;
    await pass(90_000);
    expect(isUnder(second)).toBe(true);
  });
});

describe('a key is revoked', () => {
  const revocation = (keyId: string): Revocation => ({
    sequence: 1n,
    what: { authority: keyId },
    issuedUntil: 0,
    reason: '',
  });

  test('what it signed is gone in that turn, and what still comes from it is not taken', async () => {
    revoked.add(first.intermediateKeyId);
    hear.urgent({ ...unchanged, revocations: [revocation(first.intermediateKeyId)] });
    expect(served()).toBeUndefined();
    expect(svids.svidOf(WEB.identity)).toEqual({ ok: false, error: 'AUTH_REVOKED' });
    await pass(400);
    expect(asked).toBeGreaterThan(1);
    expect(served()).toBeUndefined();
    signer = second;
    await pass(5000);
    expect(isUnder(second)).toBe(true);
  });
});
