/** Offers: every open endpoint is made known to each peer before its first packet, within bounds that a hostile peer cannot stretch. */
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { FrameType, VouchRequest } from '../../../proto/gen/countersign/peer/v1/peer.ts';
import { addressFromBytes, addressWireBytes } from '../../../src/model/address.ts';
import type { IpAddress } from '../../../src/model/ids.ts';
import { address, channelOf, type Frame, inject, type SimNode, type Workload, World } from './world.ts';

let world: World;
let a: SimNode;
let b: SimNode;
let c: SimNode;
let frontend: Workload;
let backend: Workload;

beforeEach(async () => {
  world = await World.create({ a: ['10.0.1.0/24'], b: ['10.0.2.0/24'], c: ['10.0.3.0/24'] });
  a = world.node('a');
  b = world.node('b');
  c = world.node('c');
  frontend = await world.workload('frontend', a, '10.0.1.2', 300);
  backend = await world.workload('backend', b, '10.0.2.2', 301);
});
afterEach(() => world.close());

async function meet() {
  world.send(frontend, backend);
  await world.settle();
}

async function connect(client: SimNode, server: SimNode) {
  const channel = world.connect(client, server);
  await world.settle();
  return channel;
}

const requestsOf = (from: SimNode) =>
  world.frames
    .filter((frame) => frame.from === from.name && frame.type === FrameType.FRAME_TYPE_VOUCH_REQUEST)
    .map((frame) => VouchRequest.decode(frame.body));
const offersTo = (to: SimNode) =>
  world.frames
    .filter((frame) => frame.to === to.name && frame.type === FrameType.FRAME_TYPE_VOUCH_REQUEST)
    .flatMap((frame) => VouchRequest.decode(frame.body).own.map(addressFromBytes));
const offersOf = (from: SimNode) => requestsOf(from).map((request) => request.own.map(addressFromBytes));
const askedBy = (from: SimNode) => requestsOf(from).flatMap((request) => request.addresses.map(addressFromBytes));

/** As a peer that made it up would say it to `node`. */
function injectOffer(node: SimNode, from: SimNode, own: readonly IpAddress[]) {
  const request = { nonce: Buffer.alloc(16), addresses: [], own: own.map(addressWireBytes) };
  const body = Buffer.from(VouchRequest.encode(request).finish());
  inject(channelOf(node, from), FrameType.FRAME_TYPE_VOUCH_REQUEST, body);
}

/** The tunnel takes a packet in only from the node that it expects its source behind. */
const arrives = (from: Workload, at: SimNode) => at.tunnelAllowed.get(from.ip) === from.node.info.id;
const addressesIn = (prefix: string, count: number) =>
  Array.from({ length: count }, (_, i) => address(`${prefix}.${i + 10}`));
const dropRequests = (to: string) => (frame: Frame) =>
  frame.type === FrameType.FRAME_TYPE_VOUCH_REQUEST && frame.to === to ? undefined : [frame];

describe('no packet that its own node lets go dies unseen in the peer’s tunnel', () => {
  test('after the peer restarted with a new tunnel, while the sender’s proofs live on', async () => {
    world.require(frontend, backend);
    await meet();
    const { generation } = b.kernelAddresses.get(backend.ip)!;
    channelOf(a, b).close('PEER_IDLE_TIMEOUT');
    b.tunnelAllowed.clear();
    b.kernelAddresses.clear();
    b.start({ firstLife: false });
    b.manager.addEndpoint({ ...backend, addresses: [backend.ip] }, generation);
    await connect(b, a);
    expect(world.send(frontend, backend), 'nothing holds it: nobody would ask').toBe('passed');
    expect(arrives(frontend, b)).toBe(true);
    expect(b.believes(frontend.ip)).toBe(frontend.identity);
  });

  test('after the peer’s agent restarted with its tables kept: the tunnel learns again what they hold, and no proof is lost', async () => {
    world.require(frontend, backend);
    await meet();
    const { generation } = b.kernelAddresses.get(backend.ip)!;
    channelOf(a, b).close('PEER_IDLE_TIMEOUT');
    b.tunnelAllowed.clear();
    b.log.length = 0;
    b.start({ firstLife: false });
    b.manager.addEndpoint({ ...backend, addresses: [backend.ip] }, generation);
    await connect(b, a);
    expect(world.send(frontend, backend)).toBe('passed');
    expect(arrives(frontend, b)).toBe(true);
    expect(b.log.filter((line) => line.startsWith('vouch-') || line.startsWith('auth'))).toEqual([]);
    expect(world.send(backend, frontend)).toBe('passed');
  });

  test('from a second workload, in a flow that needs no proof, to a destination that its node knows already', async () => {
    const second = await world.workload('second', a, '10.0.1.3', 302);
    await meet();
    expect(world.send(second, backend), 'nothing holds it: nobody would ask').toBe('passed');
    expect(arrives(second, b)).toBe(true);
    expect(b.believes(second.ip)).toBe(second.identity);
  });

  test('from an endpoint that opens later, on channels that are open already', async () => {
    await meet();
    await connect(a, c);
    const later = await world.workload('later', a, '10.0.1.4', 303);
    await world.settle();
    expect(world.send(later, backend)).toBe('passed');
    expect([arrives(later, b), arrives(later, c)]).toEqual([true, true]);
  });

  test('from one that opens while a second channel replaces the first', async () => {
    await meet();
    const before = channelOf(a, b);
    world.connect(a, b);
    const later = await world.workload('later', a, '10.0.1.4', 303);
    await world.settle();
    before.close('PEER_REPLACED');
    await world.settle();
    expect(arrives(later, b)).toBe(true);
  });

  test('a held packet waits until the peer’s tunnel expects it, though it was offered before', async () => {
    const gate = Promise.withResolvers<void>();
    b.tunnelGate = gate.promise;
    await meet();
    expect(a.released).toEqual([]);
    gate.resolve();
    await world.settle();
    expect(a.released).toEqual(['10.0.1.2>10.0.2.2']);
    expect(arrives(frontend, b)).toBe(true);
  });

  test('an offer that the peer could not take up is made again with the next renewals', async () => {
    await meet();
    b.tunnelReady = { ok: false, error: 'AUTH_NO_TUNNEL' };
    const later = await world.workload('later', a, '10.0.1.4', 303);
    await world.settle();
    expect(arrives(later, b)).toBe(false);
    b.tunnelReady = { ok: true, value: undefined };
    await world.pass(31_000);
    expect(arrives(later, b)).toBe(true);
    expect(b.believes(frontend.ip)).toBe(frontend.identity);
  });
});

describe('what is offered', () => {
  test('never an endpoint that is fenced; its successor once it opens', async () => {
    await meet();
    world.intercept = (frame) => (frame.type === FrameType.FRAME_TYPE_WITHDRAW_ACK ? undefined : [frame]);
    a.manager.closeEndpoint(frontend.endpoint);
    const successor = await world.workload('successor', a, '10.0.1.2', 304);
    await connect(a, c);
    world.frames.length = 0;
    await world.pass(60_000);
    expect(offersTo(b), 'it is open to others only').toEqual([]);
    expect(offersTo(c)).toEqual([successor.ip]);
    world.intercept = undefined;
    await connect(b, a);
    await world.pass(200);
    expect(offersTo(b)).toContain(successor.ip);
    expect(b.believes(successor.ip)).toBe(successor.identity);
  });

  test('never an endpoint that is closed', async () => {
    const second = await world.workload('second', a, '10.0.1.3', 302);
    a.manager.closeEndpoint(frontend.endpoint);
    await connect(a, b);
    expect(offersOf(a).flat()).toEqual([second.ip]);
    expect(b.believes(frontend.ip)).toBeUndefined();
  });

  test('more than sixteen addresses in several requests, each asked back in one', async () => {
    const many = addressesIn('10.0.1', 40);
    a.manager.addEndpoint({ ...frontend, endpoint: 70, addresses: many });
    await connect(a, b);
    expect(offersOf(a).map((own) => own.length)).toEqual([16, 16, 9, 0]);
    expect(offersOf(a).flat().sort()).toEqual([frontend.ip, ...many].sort());
    expect(requestsOf(b).map((request) => request.addresses.length)).toEqual([0, 16, 16, 9]);
    expect(many.map((ip) => b.believes(ip))).toEqual(many.map(() => frontend.identity));
  });

  test('more of them than the queue holds leave room for a packet’s question', async () => {
    world.settings = { queueSize: 4 };
    a.start();
    a.manager.addEndpoint({ ...frontend, addresses: [frontend.ip] });
    a.manager.addEndpoint({ ...frontend, endpoint: 70, addresses: addressesIn('10.0.1', 200) });
    await meet();
    expect(a.refused).toEqual([]);
    expect(a.released).toHaveLength(1);
  });

  test('what the peer knows already it does not ask again', async () => {
    await meet();
    expect(askedBy(b)).toEqual([frontend.ip]);
    injectOffer(b, a, [frontend.ip, frontend.ip]);
    await world.settle();
    expect(askedBy(b)).toEqual([frontend.ip]);
    channelOf(a, b).close('PEER_REPLACED');
    world.frames.length = 0;
    await connect(a, b);
    expect(askedBy(b), 'RESET says that it goes on').toEqual([]);
  });
});

describe('an offer that should not be', () => {
  test('of addresses outside the node’s prefixes is not asked for, and audited once', async () => {
    await connect(a, b);
    world.frames.length = 0;
    const foreign = address('10.0.3.3');
    for (let i = 0; i < 3; i++) {
      injectOffer(b, a, [foreign, foreign]);
      await world.settle();
    }
    expect(askedBy(b)).toEqual([]);
    expect(b.audit.filter((event) => event.kind === 'vouch.refused')).toMatchObject([
      { reason: 'VOUCH_NOT_GRANTED', source: { address: '10.0.3.3', node: 'a' } },
    ]);
  });

  test('of endless such addresses fills no audit log', async () => {
    await connect(a, b);
    for (let i = 0; i < 250; i++) injectOffer(b, a, [address(`10.9.9.${i}`)]);
    expect(b.reasons('vouch.refused')).toHaveLength(64);
  });

  test('of addresses that are never answered for: a few questions are open, and other peers are not kept out', async () => {
    world.settings = { queueSize: 32 };
    b.start();
    b.manager.addEndpoint({ ...backend, addresses: [backend.ip] });
    await connect(c, b);
    world.frames.length = 0;
    world.intercept = dropRequests('c');
    for (const ip of addressesIn('10.0.3', 200)) injectOffer(b, c, [ip]);
    await world.settle();
    expect(askedBy(b)).toHaveLength(2);
    await meet();
    expect(a.released).toHaveLength(1);
    expect(arrives(frontend, b)).toBe(true);
  });

  test('of one address again and again asks for it once at a time, and few offers wait', async () => {
    await connect(c, b);
    world.frames.length = 0;
    world.intercept = dropRequests('c');
    const ip = address('10.0.3.3');
    for (let i = 0; i < 200; i++) injectOffer(b, c, [ip]);
    await world.settle();
    expect(askedBy(b)).toEqual([ip]);
    const answers = world.frames.filter((f) => f.from === 'b' && f.type === FrameType.FRAME_TYPE_VOUCH_REPLY);
    expect(answers, 'no more than 64 offers wait').toHaveLength(200 - 64);
    await world.pass(2_100);
    injectOffer(b, c, [ip]);
    await world.settle();
    expect(askedBy(b)).toEqual([ip, ip]);
  });

  test('before RESET closes the channel: nothing would bound the wait', async () => {
    world.intercept = (frame) =>
      frame.type === FrameType.FRAME_TYPE_RESET && frame.from === 'c' ? undefined : [frame];
    await connect(c, b);
    const far = channelOf(b, c);
    injectOffer(b, c, [address('10.0.3.3')]);
    expect(far.closeReason).toBe('PEER_FRAME_UNEXPECTED');
  });
});
