/** The attacks of a stolen node on the real code behind a real TLS channel: what it shows and says is built from the text of RFC 9261 alone. */
import { createPrivateKey } from 'node:crypto';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import type { ReasonCode } from '../../../src/base/registry/reason-codes.ts';
import type { StartedPeerChannels } from '../../../src/channel/peer-channels.ts';
import type { Svid } from '../../../src/model/identity.ts';
import type { TrustDomain } from '../../../src/model/ids.ts';
import { spiffeId } from '../../../src/model/spiffe-id.ts';
import { der, TAG } from '../../../src/pki/der.ts';
import { OID } from '../../../src/pki/oids.ts';
import { ca, extension, type ForgeOptions, HOUR, KU, leaf } from '../pki/support/forge.ts';
import * as reading from '../rfc9261/reading.ts';
import { nodeSvid, RogueNode, realWorld, type Shown, startVictim } from './rogue-node.ts';
import { DOMAIN, type SimNode, type Workload, type World } from './world.ts';

let world: World;
let a: SimNode;
let b: SimNode;
let frontend: Workload;
let backend: Workload;
let channels: StartedPeerChannels;
let rogueSvid: Svid;
let rogue: RogueNode;

beforeEach(async () => {
  world = await realWorld();
  a = world.node('a');
  b = world.node('b');
  channels = await startVictim(world, a);
  frontend = await world.workload('frontend', a, '10.0.1.2', 300);
  backend = await world.workload('backend', b, '10.0.2.2', 301);
  world.require(frontend, backend);
  rogueSvid = await nodeSvid(world, b.info);
  rogue = await connect();
});
afterEach(async () => {
  await rogue.close();
  await channels.close();
  world.close();
});

async function connect(): Promise<RogueNode> {
  const { port } = channels.addresses()[0]!;
  const node = await RogueNode.connect(port, b.info, rogueSvid, [backend]);
  await node.introduce(frontend);
  await vi.waitFor(() => expect(a.believes(backend.ip)).toBe(backend.identity), { timeout: 10_000 });
  return node;
}

function svidOf(node: SimNode, workload: Workload): Svid {
  const svid = node.svids.get(workload.identity)!;
  if (!svid.ok) throw new Error(svid.error);
  return svid.value;
}

/** What the rogue may rightly show. */
function rightful(): Shown {
  const { chain, privateKey } = svidOf(b, backend);
  return { chain, key: privateKey };
}

function expectNothing(reason: string): void {
  expect(a.kernelAuth.size).toBe(0);
  expect(a.log.filter((line) => line.startsWith('auth+'))).toEqual([]);
  expect(new Set(a.reasons('auth.failed'))).toEqual(new Set([reason]));
}

test('what the rogue makes is taken when nothing is wrong with it, whoever begins', async () => {
  expect(await rogue.prove(backend, frontend, rightful())).toBeUndefined();
  await vi.waitFor(() => expect(a.reasons('auth.succeeded')).toHaveLength(1));
  expect(a.hasAuth(frontend.identity, backend.identity, b.info.id)).toBe(true);
  a.manager.flush();
  a.manager.bundlesChanged();
  world.send(frontend, backend);
  const said = await rogue.respond((asked, theirs, mine) => {
    expect(reading.check(rogue.peer.socket, 'server', mine, theirs)[0]).toEqual(svidOf(a, frontend).chain[0]);
    return rogue.answer(asked, rightful());
  });
  expect(said).toMatchObject({ ok: true });
  expect(a.released).toHaveLength(1);
});

/** An authority that signs whatever it is told to, for the trust domain. Of the own one it is trusted beside the real one. */
function corrupt(domain: TrustDomain = DOMAIN): (options?: ForgeOptions) => Shown {
  const nowMs = world.time.nowMs();
  const times = { notBeforeMs: nowMs - HOUR, notAfterMs: nowMs + HOUR };
  const root = ca({ ...times, uris: [`spiffe://${domain}`] });
  const known = world.bundles.get(domain)?.authorities ?? [];
  world.bundles.set(domain, { trustDomain: domain, authorities: [...known, root.der] });
  a.manager.bundlesChanged();
  return (options) => {
    const made = leaf(root, {
      ...times,
      uris: [backend.spiffeId],
      more: [extension(OID.nodeBinding, der(TAG.utf8String, Buffer.from(b.info.spiffeId)), false)],
      ...options,
    });
    const key = createPrivateKey(made.key.export({ type: 'pkcs8', format: 'pem' }) as string);
    return { chain: [made.der], key };
  };
}

const other = 'other.org' as TrustDomain;

const cases: [string, () => Shown | Promise<Shown>, ReasonCode][] = [
  [
    'a second leaf in the chain',
    () => {
      const sign = corrupt();
      const { chain, key } = sign();
      return { chain: [...chain, ...sign().chain], key };
    },
    'CERT_CHAIN_SECOND_LEAF',
  ],
  [
    'a leaf of another trust domain, whose bundle is federated',
    () => corrupt(other)({ uris: ['spiffe://other.org/backend'] }),
    'CERT_TRUST_DOMAIN',
  ],
  [
    'a leaf with the right name, signed by the federated authority of another trust domain',
    () => corrupt(other)(),
    'CERT_UNTRUSTED',
  ],
  [
    'the SVID of an identity that does not live on its node, though it is bound to it',
    () => {
      const row = world.rows.get(backend.identity)!;
      world.rows.set(backend.identity, { ...row, nodes: [spiffeId('spiffe://example.org/node/c')] });
      return rightful();
    },
    'AUTH_WRONG_NODE',
  ],
  [
    'an SVID that is bound to another node',
    async () => {
      const { chain, privateKey } = await world.issue(backend.spiffeId, a.info.spiffeId);
      return { chain, key: privateKey };
    },
    'AUTH_WRONG_NODE',
  ],
  ['an SVID that is bound to no node', () => corrupt()({ more: [] }), 'AUTH_WRONG_NODE'],
  [
    'an SVID of another workload of its own',
    async () => {
      const { chain, privateKey } = await world.issue(spiffeId('spiffe://example.org/intruder'), b.info.spiffeId);
      return { chain, key: privateKey };
    },
    'AUTH_WRONG_SPIFFE_ID',
  ],
  ['an expired SVID', () => corrupt()({ notAfterMs: world.time.nowMs() - 1_000 }), 'CERT_EXPIRED'],
  [
    'an SVID that is not valid yet',
    () => corrupt()({ notBeforeMs: world.time.nowMs() + 60_000 }),
    'CERT_NOT_YET_VALID',
  ],
  [
    'a revoked SVID',
    () => {
      world.ca.revoke({ spiffeId: backend.spiffeId }, 'test');
      return rightful();
    },
    'AUTH_REVOKED',
  ],
  ['an SVID whose key may only encrypt keys', () => corrupt()({ keyUsage: [KU.keyEncipherment] }), 'CERT_KEY_USAGE'],
  [
    'an SVID whose key may sign certificates',
    () => corrupt()({ keyUsage: [KU.digitalSignature, KU.keyCertSign] }),
    'CERT_KEY_USAGE',
  ],
  ['an SVID for servers only', () => corrupt()({ extKeyUsage: [OID.serverAuth] }), 'CERT_EXT_KEY_USAGE'],
  ['another key than the certificate’s', () => ({ ...rightful(), key: rogueSvid.privateKey }), 'AUTH_BAD_SIGNATURE'],
  ['its node SVID', () => ({ chain: rogueSvid.chain, key: rogueSvid.privateKey }), 'AUTH_WRONG_NODE'],
];

describe.each(cases)('%s proves nothing', (_, makeShown, reason) => {
  test('when the rogue begins', async () => {
    const shown = await makeShown();
    expect(await rogue.prove(backend, frontend, shown)).toBe(reason);
    expectNothing(reason);
  });

  test('when the victim begins', async () => {
    const shown = await makeShown();
    world.send(frontend, backend);
    const said = await rogue.respond((asked) => rogue.answer(asked, shown));
    expect(said).toMatchObject({ ok: false, reason });
    await vi.waitFor(() => expect(a.refused).toHaveLength(1));
    expect(a.released).toEqual([]);
    expectNothing(reason);
  });
});

describe('an authenticator', () => {
  /** What is sent in place of the right one; the reason of the refusal. */
  async function instead(make: (right: Buffer) => Buffer, of = rogue): Promise<string | undefined> {
    const begun = await of.begin(backend, frontend);
    if (begun.asked === undefined) return begun.reason;
    return (await of.conclude(begun.exchange, make(of.answer(begun.asked, rightful())))).reason;
  }

  test('that was taken before on the same channel proves nothing in another exchange', async () => {
    let recorded: Buffer = Buffer.alloc(0);
    const keep = (right: Buffer) => {
      recorded = right;
      return right;
    };
    expect(await instead(keep)).toBe('');
    a.manager.flush();
    a.manager.bundlesChanged();
    expect(await instead(() => recorded)).toBe('AUTH_BAD_AUTHENTICATOR');
    expect(a.kernelAuth.size).toBe(0);
  });

  test('of another channel of the same two nodes proves nothing, with its request answered as it stands', async () => {
    const begun = await rogue.begin(backend, frontend);
    const recorded = rogue.answer(begun.asked!, rightful());
    await rogue.close();
    await vi.waitFor(() => expect(a.closedChannels).toHaveLength(1));
    rogue = await connect();
    expect(await instead(() => recorded)).toBe('AUTH_BAD_AUTHENTICATOR');
    // The same answer, made for the request of now with the keys of another channel.
    const second = await rogue.begin(backend, frontend);
    const { port } = channels.addresses()[0]!;
    const svid = await nodeSvid(world, b.info);
    const aside = await RogueNode.aside(port, svid);
    const foreign = aside.answer(second.asked!, rightful());
    expect((await rogue.conclude(second.exchange, foreign)).reason).toBe('AUTH_BAD_FINISHED');
    await aside.close();
    expect(a.kernelAuth.size).toBe(0);
  });

  test('that is the victim’s own, sent back, proves nothing', async () => {
    world.send(frontend, backend);
    const said = await rogue.respond((_, theirs) => theirs);
    expect(said).toMatchObject({ ok: false, reason: 'AUTH_BAD_AUTHENTICATOR' });
    expectNothing('AUTH_BAD_AUTHENTICATOR');
  });

  test('that is empty, as a refusal, or missing proves nothing', async () => {
    const begun = await rogue.begin(backend, frontend);
    const context = begun.asked!.subarray(5, 5 + begun.asked![4]!);
    const empty = reading.emptyAuthenticator(rogue.peer.socket, 'client', begun.asked!, context);
    expect((await rogue.conclude(begun.exchange, empty)).reason).toBe('AUTH_REFUSED');
    expect(await instead(() => Buffer.alloc(0))).toBe('AUTH_BAD_AUTHENTICATOR');
    expect(a.kernelAuth.size).toBe(0);
  });

  test('with any octet altered proves nothing', async () => {
    const begun = await rogue.begin(backend, frontend);
    const { length } = rogue.answer(begun.asked!, rightful());
    for (let at = 0; at < length; at++) {
      const reason = await instead((right) => {
        // Signatures are of different lengths: counted from the end, so that all of the Finished is reached.
        right[Math.max(0, right.length - 1 - at)]! ^= 1 << (at % 8);
        return right;
      });
      expect([at, reason]).toEqual([at, expect.stringMatching(/^(AUTH|CERT)_/)]);
    }
    expect(a.log.filter((line) => line.startsWith('auth+'))).toEqual([]);
  }, 120_000);

  test('cut at any octet, or with one more at any place, proves nothing, and the channel stands', async () => {
    const begun = await rogue.begin(backend, frontend);
    const { length } = rogue.answer(begun.asked!, rightful());
    for (let at = 0; at < length; at++) {
      // Signatures are of different lengths: never the whole.
      const cut = await instead((right) => right.subarray(0, Math.min(at, right.length - 1)));
      const extended = await instead((right) =>
        Buffer.concat([right.subarray(0, at), Buffer.from([at & 255]), right.subarray(at)]),
      );
      expect([at, cut, extended].map(String)).toEqual([
        String(at),
        expect.stringMatching(/^AUTH_BAD_/),
        expect.stringMatching(/^(AUTH_BAD_|CERT_)/),
      ]);
    }
    expect(await instead((right) => Buffer.concat([right, Buffer.from([0])]))).toBe('AUTH_BAD_AUTHENTICATOR');
    expect(a.log.filter((line) => line.startsWith('auth+'))).toEqual([]);
    expect(await rogue.prove(backend, frontend, rightful())).toBeUndefined();
  }, 120_000);
});

describe('a request', () => {
  test('whose context was used before is not answered, nor is one that the victim made', async () => {
    const asked = rogue.ask();
    await rogue.begin(backend, frontend, asked);
    expect((await rogue.begin(backend, frontend, asked)).reason).toBe('AUTH_CONTEXT_REUSED');
    expect((await rogue.begin(backend, frontend, rogue.ask(1n))).reason).toBe('AUTH_CONTEXT_REUSED');
    const { asked: theirs } = await rogue.begin(backend, frontend);
    expect((await rogue.begin(backend, frontend, theirs!)).reason).toBe('AUTH_BAD_REQUEST');
    expect(a.kernelAuth.size).toBe(0);
  });

  test('cut at any octet, or with one more at any place, is answered by no proof', async () => {
    const whole = rogue.ask();
    for (let at = 1; at <= whole.length; at++) {
      const cut = at === whole.length ? Buffer.concat([rogue.ask(), Buffer.from([0])]) : rogue.ask().subarray(0, at);
      const right = rogue.ask();
      const extended = Buffer.concat([right.subarray(0, at), Buffer.from([0]), right.subarray(at)]);
      for (const asked of [cut, extended]) {
        const { reason } = await rogue.begin(backend, frontend, asked);
        expect([at, reason]).toEqual([at, expect.stringMatching(/^AUTH_(BAD_REQUEST|CONTEXT_REUSED)$/)]);
      }
    }
    expect(a.kernelAuth.size).toBe(0);
  }, 60_000);
});

test('exchanges that are begun and never finished: so many wait, the rest is refused by name, and the victim’s own go on', async () => {
  const answers: (string | undefined)[] = [];
  for (let i = 0; i < 1_100; i++) answers.push((await rogue.begin(backend, frontend)).reason);
  expect(answers.filter((reason) => reason === undefined)).toHaveLength(1_024);
  expect(new Set(answers.slice(1_024))).toEqual(new Set(['AUTH_QUEUE_FULL']));
  const neighbour = await world.workload('neighbour', a, '10.0.1.3', 302);
  world.require(neighbour, backend);
  const [outcome] = await Promise.all([
    a.manager.authenticate({
      local: neighbour.identity,
      remote: backend.identity,
      remoteNode: b.info.id,
      authType: 'spiffe',
    }),
    rogue.respond((asked) => rogue.answer(asked, rightful())),
  ]);
  expect(outcome).toMatchObject({ ok: true });
}, 30_000);
