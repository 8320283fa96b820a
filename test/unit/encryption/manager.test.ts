import fc from 'fast-check';
import { afterEach, describe, expect, test, vi } from 'vitest';
import { FrameType, TunnelOffer, TunnelReady } from '../../../proto/gen/countersign/peer/v1/peer.ts';
import { CountersignError } from '../../../src/base/errors.ts';
import { nobodysPublicKey } from '../../../src/encryption/key-file.ts';
import { signTunnelOffer, type TunnelOfferFields, verifyTunnelOffer } from '../../../src/encryption/tunnel-offer.ts';
import { TestNode, Wire } from './support.ts';

const OFFER = FrameType.FRAME_TYPE_TUNNEL_OFFER;
const READY = FrameType.FRAME_TYPE_TUNNEL_READY;

function pair() {
  return { a: new TestNode(1), b: new TestNode(2) };
}

/** A pair whose tunnel is up, and the channel it came from. */
async function upPair() {
  const { a, b } = pair();
  const wire = new Wire(a, b);
  await wire.settle();
  return { a, b, wire };
}

function pskOf(node: TestNode, peer: TestNode): string | undefined {
  return node.tunnel.peers.get(peer.info.id)?.presharedKey.toString('hex');
}

afterEach(() => {
  vi.useRealTimers();
});

describe('a tunnel on a new channel', () => {
  test('is ready on both ends, with one preshared key from the exporter and the keys that were offered', async () => {
    const { a, b, wire } = await upPair();
    expect(a.manager.ready(b.info.id) && b.manager.ready(a.info.id)).toBe(true);
    expect(pskOf(a, b)).toBe(pskOf(b, a));
    expect(a.tunnel.peers.get(b.info.id)).toMatchObject({ publicKey: b.tunnel.publicKey, endpoint: b.endpoint });
    const context = Buffer.concat([a.tunnel.publicKey, b.tunnel.publicKey].sort(Buffer.compare));
    expect(pskOf(a, b)).toBe(wire.client.exportKey('EXPORTER-countersign-wireguard-psk', context, 32).toString('hex'));
    expect(a.events).toMatchObject([{ kind: 'tunnel.up', correlation: wire.id, destination: { node: 'node-2' } }]);
  });

  test('the server sets its peer before the client does, and only the client starts the handshake, last of all', async () => {
    const { a, b } = pair();
    const order: string[] = [];
    for (const node of [a, b]) node.tunnel.calls.push = (call) => order.push(`${node.info.name} ${call}`);
    await new Wire(a, b).settle();
    expect(order).toEqual(['node-2 set 1', 'node-1 set 2', 'node-1 handshake 2']);
  });

  test('nobody is ready before both ends have set the peer', async () => {
    const { a, b } = pair();
    const { promise, resolve } = Promise.withResolvers<void>();
    a.tunnel.gate = promise;
    const wire = new Wire(a, b);
    await wire.settle();
    expect([a.manager.ready(b.info.id), b.manager.ready(a.info.id)]).toEqual([false, false]);
    resolve();
    await wire.settle();
    expect([a.manager.ready(b.info.id), b.manager.ready(a.info.id)]).toEqual([true, true]);
  });

  test('whoever waits is told', async () => {
    const { a, b } = pair();
    const waiting = a.manager.whenReady(b.info.id, 1000);
    await new Wire(a, b).settle();
    expect(await waiting).toEqual({ ok: true, value: undefined });
    expect(await a.manager.whenReady(b.info.id, 0)).toEqual({ ok: true, value: undefined });
  });

  test('waiting ends: in time, with the channel, or with our own failure', async () => {
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
    const { a, b } = pair();
    const timed = a.manager.whenReady(b.info.id, 1000);
    vi.advanceTimersByTime(1000);
    expect(await timed).toEqual({ ok: false, error: 'AUTH_NO_TUNNEL' });

    const cut = a.manager.whenReady(b.info.id, 1000);
    new Wire(a, b).close('PEER_IDLE_TIMEOUT');
    expect(await cut).toEqual({ ok: false, error: 'PEER_CHANNEL_CLOSED' });

    b.tunnel.failure = new CountersignError('unavailable', 'wireguard-go is not running');
    const failed = b.manager.whenReady(a.info.id, 1000);
    const wire = new Wire(a, b);
    await wire.settle();
    expect(await failed).toEqual({ ok: false, error: 'TUNNEL_FAILED' });
    expect(wire.closedWith).toBeUndefined();
    expect(b.reasons()).toContain('tunnel.refused TUNNEL_FAILED');
  });

  test('other frames are left to others', async () => {
    const { a, wire } = await upPair();
    expect(a.manager.frame(wire.client, FrameType.FRAME_TYPE_VOUCH_REQUEST, Buffer.alloc(0))).toBe(false);
  });
});

describe('the life of a tunnel', () => {
  test('it outlives its channel', async () => {
    const { a, b, wire } = await upPair();
    wire.close('PEER_IDLE_TIMEOUT');
    expect(a.manager.ready(b.info.id) && b.manager.ready(a.info.id)).toBe(true);
    expect(a.tunnel.calls).not.toContain('remove 2');
  });

  test('TunnelOfIncarnation: a channel of the peer’s next life ends the tunnel of the earlier one, before anything is offered', async () => {
    const { a, b, wire } = await upPair();
    const before = pskOf(a, b);
    a.tunnel.calls.length = 0;
    b.info = { ...b.info, incarnation: b.info.incarnation + 1n };
    const next = new Wire(a, b);
    expect(a.manager.ready(b.info.id)).toBe(false);
    expect(a.tunnel.calls).toEqual(['remove 2']);
    expect(a.tunnel.peers.has(b.info.id)).toBe(false);
    // What the earlier life still says brings its keys back no more.
    wire.close('PEER_INCARNATION_BARRED');
    expect(a.tunnel.calls).toEqual(['remove 2']);
    await next.settle();
    expect(a.manager.ready(b.info.id)).toBe(true);
    expect(a.tunnel.calls).toEqual(['remove 2', 'set 2', 'handshake 2']);
    expect(pskOf(a, b)).not.toBe(before);
    expect(a.reasons()).toEqual(['tunnel.up', 'tunnel.down', 'tunnel.up']);
  });

  test('a redial brings new keys, whichever end dials', async () => {
    const { a, b, wire } = await upPair();
    const before = pskOf(a, b);
    const redial = new Wire(b, a);
    await redial.settle();
    wire.close('PEER_REPLACED');
    expect(pskOf(a, b)).not.toBe(before);
    expect(pskOf(a, b)).toBe(pskOf(b, a));
    expect(a.manager.ready(b.info.id) && b.manager.ready(a.info.id)).toBe(true);
  });

  test('a redial that breaks off half way returns to the keys both ends agreed on', async () => {
    const { a, b, wire } = await upPair();
    const before = pskOf(a, b);
    const redial = new Wire(a, b);
    wire.close('PEER_REPLACED');
    for (const frame of redial.sent.splice(0)) redial.deliver(frame);
    await new Promise(setImmediate);
    expect(pskOf(b, a)).not.toBe(before);
    redial.close('PEER_CHANNEL_CLOSED');
    await new Promise(setImmediate);
    expect([pskOf(a, b), pskOf(b, a)]).toEqual([before, before]);
    expect(a.manager.ready(b.info.id) && b.manager.ready(a.info.id)).toBe(true);
  });

  test('of two channels at once the one that stays decides, in whatever order frames came', async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(fc.nat(), { minLength: 12, maxLength: 12 }), fc.boolean(), async (choices, first) => {
        const { a, b } = pair();
        const wires = [new Wire(a, b), new Wire(b, a)] as const;
        for (const choice of choices) {
          const wire = wires[choice % 2]!;
          // In order within a channel and direction, in any order between them.
          const from = choice % 4 < 2 ? wire.client : wire.server;
          const at = wire.sent.findIndex((frame) => frame.from === from);
          if (at >= 0) wire.deliver(wire.sent.splice(at, 1)[0]!);
          if (choice % 8 < 4) await new Promise(setImmediate);
        }
        const [loser, winner] = first ? wires : [wires[1], wires[0]];
        loser.close('PEER_REPLACED');
        await winner.settle();
        expect(winner.closedWith).toBeUndefined();
        expect(a.manager.ready(b.info.id) && b.manager.ready(a.info.id)).toBe(true);
        expect(pskOf(a, b)).toBe(pskOf(b, a));
      }),
      { numRuns: 100 },
    );
  });

  test('forgotten, its peer is removed and it is ready no more', async () => {
    const { a, b, wire } = await upPair();
    wire.close('PEER_IDLE_TIMEOUT');
    await a.manager.forget(b.info.id);
    expect(a.tunnel.peers.size).toBe(0);
    expect(a.manager.ready(b.info.id)).toBe(false);
    expect(a.reasons()).toEqual(['tunnel.up', 'tunnel.down']);
    await a.manager.forget(b.info.id);
    expect(a.reasons()).toEqual(['tunnel.up', 'tunnel.down']);
  });

  test('forgotten while its channel is open, it comes back for whoever waits, with the same keys', async () => {
    const { a, b } = await upPair();
    const before = pskOf(a, b);
    await a.manager.forget(b.info.id);
    expect(await a.manager.whenReady(b.info.id, 1000)).toEqual({ ok: true, value: undefined });
    expect(pskOf(a, b)).toBe(before);
    expect(a.tunnel.calls.at(-1)).toBe('handshake 2');
  });
});

describe('an offer that must not be taken', () => {
  const good = (b: TestNode): TunnelOfferFields => ({
    incarnation: b.info.incarnation,
    keyNumber: 1n,
    type: 'wireguard',
    publicKey: b.tunnel.publicKey,
    endpoint: b.endpoint,
  });
  type Cases = [string, (offer: TunnelOfferFields, b: TestNode) => Partial<TunnelOfferFields>, 'before' | 'after'][];
  const cases: Cases = [
    ['another key than was signed', () => ({ publicKey: nobodysPublicKey() }), 'after'],
    ['another endpoint than was signed', () => ({ endpoint: '192.0.2.66:1' }), 'after'],
    ['another key number than was signed', () => ({ keyNumber: 2n }), 'after'],
    ['the signature of an earlier incarnation', (o) => ({ incarnation: o.incarnation - 1n }), 'before'],
    ['a key that is too short', () => ({ publicKey: Buffer.alloc(31, 1) }), 'after'],
    ['a type nobody knows', () => ({ type: 'ipsec' }), 'before'],
    ['an endpoint that is none', () => ({ endpoint: 'node-b.example:51871' }), 'before'],
    ['an endpoint with a line break', () => ({ endpoint: '192.0.2.1:1\nremove=true' }), 'before'],
  ];

  test.each(cases)('%s: the channel closes', async (_, change, when) => {
    const { a, b } = pair();
    const wire = new Wire(a, b);
    const fields = good(b);
    const wrong = { ...fields, ...change(fields, b) };
    const signature = signTunnelOffer(when === 'before' ? wrong : fields, b.key);
    const body = Buffer.from(TunnelOffer.encode(TunnelOffer.create({ ...wrong, signature })).finish());
    a.manager.frame(wire.client, OFFER, body);
    expect(wire.closedWith).toBe('TUNNEL_OFFER_REJECTED');
    expect(a.tunnel.peers.size).toBe(0);
    expect(a.reasons()).toEqual(['tunnel.refused TUNNEL_OFFER_REJECTED']);
  });

  test('a signature by another node', () => {
    const { a, b } = pair();
    const wire = new Wire(a, b);
    const signature = signTunnelOffer(good(b), new TestNode(3).key);
    const body = Buffer.from(TunnelOffer.encode(TunnelOffer.create({ ...good(b), signature })).finish());
    a.manager.frame(wire.client, OFFER, body);
    expect(wire.closedWith).toBe('TUNNEL_OFFER_REJECTED');
  });

  test('a key that the device refuses, such as our own', async () => {
    const { a, b } = pair();
    b.tunnel.failure = new CountersignError('bad-input', "the key is this node's own");
    const wire = new Wire(a, b);
    await wire.settle();
    expect(wire.closedWith).toBe('TUNNEL_OFFER_REJECTED');
  });

  test('no two offers have the same signed bytes', () => {
    const { b } = pair();
    const signature = signTunnelOffer({ ...good(b), endpoint: '1.2.3.4:5' }, b.key);
    expect(verifyTunnelOffer({ ...good(b), endpoint: '1.2.3.4:5' }, signature, b.publicKey)).toBe(true);
    for (const change of [
      { type: 'wireguar' },
      { type: 'wireguard\0' },
      { endpoint: '1.2.3.4:51' },
      { incarnation: 0n },
    ]) {
      expect(verifyTunnelOffer({ ...good(b), endpoint: '1.2.3.4:5', ...change }, signature, b.publicKey)).toBe(false);
    }
  });
});

describe('frames out of order', () => {
  const ready = (keyNumber: bigint) => Buffer.from(TunnelReady.encode(TunnelReady.create({ keyNumber })).finish());

  test('ready before any offer', () => {
    const { a, b } = pair();
    const wire = new Wire(a, b);
    a.manager.frame(wire.client, READY, ready(1n));
    expect(wire.closedWith).toBe('PEER_FRAME_UNEXPECTED');
  });

  test('a second offer, a second ready', async () => {
    for (const frame of ['offer', 'ready'] as const) {
      const { a, b } = pair();
      const wire = new Wire(a, b);
      const offer = wire.sent.find((f) => f.from === wire.server)!;
      await wire.settle();
      if (frame === 'offer') wire.deliver(offer);
      else a.manager.frame(wire.client, READY, ready(1n));
      expect(wire.closedWith).toBe('PEER_FRAME_UNEXPECTED');
    }
  });

  test('ready for a key that is not ours', async () => {
    const { a, b } = pair();
    const wire = new Wire(a, b);
    wire.deliver(wire.sent.find((f) => f.from === wire.server)!);
    a.manager.frame(wire.client, READY, ready(2n));
    expect(wire.closedWith).toBe('TUNNEL_OFFER_REJECTED');
  });

  test('any bytes are refused, closing the channel or throwing, and never reach the device', () => {
    fc.assert(
      fc.property(fc.constantFrom(OFFER, READY), fc.uint8Array({ maxLength: 300 }), (type, bytes) => {
        const { a, b } = pair();
        const wire = new Wire(a, b);
        let threw = false;
        try {
          a.manager.frame(wire.client, type, Buffer.from(bytes));
        } catch {
          threw = true;
        }
        expect(threw || wire.closedWith !== undefined).toBe(true);
        expect(a.tunnel.peers.size).toBe(0);
      }),
      { numRuns: 200 },
    );
  });
});
