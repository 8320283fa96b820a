/** Peers that are not what they should be: each is refused with its reason, in time, and the others do not notice. */
import { once } from 'node:events';
import { createServer, type TLSSocket } from 'node:tls';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { FrameType } from '../../../proto/gen/countersign/peer/v1/peer.ts';
import type { NodeInfo, Svid } from '../../../src/model/identity.ts';
import { createTestAuthority, type TestAuthority } from './certificates.ts';
import { eventually, TestCluster, TestNode } from './node.ts';
import { credentialsOf, greetedTls, RawPeer, rawTcp, rawTls } from './raw-peer.ts';

let authority: TestAuthority;
let foreign: TestAuthority;
let cluster: TestCluster;
let victim: TestNode;
let friend: TestNode;
let evil: NodeInfo;
let evilSvid: Svid;
beforeAll(() => {
  authority = createTestAuthority('example.org');
  foreign = createTestAuthority('example.org');
  evilSvid = authority.issue({ spiffeId: 'spiffe://example.org/node/evil', incarnation: '1' });
});
afterAll(() => {
  authority.close();
  foreign.close();
});
beforeEach(async () => {
  cluster = new TestCluster(authority);
  victim = await cluster.start('victim', { limits: { handshakeMs: 400, probeMs: 100, halfOpen: 4 } });
  friend = await cluster.start('friend');
  evil = cluster.list('evil');
  await friend.channels.open(victim.info);
  await eventually(() => expect(victim.opened).toHaveLength(1));
});
/** Whatever happened: the friend's channel stands and still carries frames. */
afterEach(async () => {
  const before = victim.frames.length;
  friend.channels.get(victim.info)!.send(TestNode.someType, Buffer.from('still here'));
  await eventually(() => expect(victim.frames).toHaveLength(before + 1));
  expect(friend.closed).toEqual([]);
  await cluster.close();
});

/** A frame of 60,000 octets, one after the other. */
function dripping(peer: RawPeer, type: FrameType, everyMs: number): NodeJS.Timeout {
  peer.socket.write(Buffer.from([0, 0, 0xea, 0x60, type]));
  return setInterval(() => peer.socket.writable && peer.socket.write(Buffer.from([0])), everyMs);
}

async function refusedWith(reason: string): Promise<void> {
  await eventually(() => expect(victim.refusals()).toEqual([reason]));
}

describe('before TLS is done', () => {
  it('garbage ends the connection', async () => {
    const peer = rawTcp(victim.port);
    await once(peer.socket, 'connect');
    const { localPort } = peer.socket;
    peer.socket.write('GET / HTTP/1.1\r\n\r\n');
    await refusedWith('PEER_HANDSHAKE_FAILED');
    expect(victim.audit.at(-1)).toMatchObject({ source: { address: '127.0.0.1', port: localPort } });
    await eventually(() => expect(peer.closed).toBe(true));
  });

  it('silence ends it at the deadline', async () => {
    const peer = rawTcp(victim.port);
    await refusedWith('PEER_HANDSHAKE_TIMEOUT');
    await eventually(() => expect(peer.closed).toBe(true));
  });

  it('an octet now and then does not move the deadline', async () => {
    const peer = rawTcp(victim.port);
    const hello = Buffer.from('16030100c8010000c40303', 'hex');
    let at = 0;
    const drip = setInterval(() => peer.socket.write(hello.subarray(at % hello.length, (at++ % hello.length) + 1)), 40);
    await refusedWith('PEER_HANDSHAKE_TIMEOUT');
    clearInterval(drip);
    await eventually(() => expect(peer.closed).toBe(true));
  });

  it('TLS 1.2, another group and another protocol are refused', async () => {
    rawTls(victim.port, evilSvid, { minVersion: 'TLSv1.2', maxVersion: 'TLSv1.2' });
    await eventually(() => expect(victim.refusals()).toEqual(['PEER_HANDSHAKE_FAILED']));
    rawTls(victim.port, evilSvid, { ALPNProtocols: ['h2'] });
    await eventually(() => expect(victim.refusals()).toEqual(['PEER_HANDSHAKE_FAILED', 'PEER_ALPN_MISMATCH']));
    victim.clock.advance(1_001);
    const classical = rawTls(victim.port, evilSvid, { ecdhCurve: 'X25519' });
    await eventually(() => expect(victim.refusals()).toHaveLength(3));
    await eventually(() => expect(classical.closed).toBe(true));
  });

  it('strangers who take all places do not keep a listed node out', async () => {
    const strangers = Array.from({ length: 12 }, () => rawTcp(victim.port));
    await eventually(() => expect(victim.refusals()).toEqual(['PEER_TOO_MANY_CONNECTIONS']));
    // Sources in the node table have as many places again: 127.0.0.1 is listed here, so 8 are taken, 4 refused.
    await eventually(() => expect(strangers.filter(({ closed }) => closed)).toHaveLength(4));
    await eventually(() => expect(strangers.filter(({ closed }) => closed)).toHaveLength(12));
    const late = await cluster.start('late');
    await late.channels.open(victim.info);
    expect(victim.refusals()).toEqual(['PEER_TOO_MANY_CONNECTIONS', 'PEER_HANDSHAKE_TIMEOUT']);
  });
});

describe('by its certificate', () => {
  const cases: { name: string; reason: string; svid: () => Svid | undefined }[] = [
    { name: 'none', reason: 'CERT_CHAIN_EMPTY', svid: () => undefined },
    {
      name: 'an expired one',
      reason: 'CERT_EXPIRED',
      svid: () => authority.issue({ spiffeId: evil.spiffeId, incarnation: '1', notAfter: -60 }),
    },
    {
      name: 'one that is not valid yet',
      reason: 'CERT_NOT_YET_VALID',
      svid: () => authority.issue({ spiffeId: evil.spiffeId, incarnation: '1', notBefore: 60 }),
    },
    {
      name: 'one of another trust domain',
      reason: 'CERT_TRUST_DOMAIN',
      svid: () => authority.issue({ spiffeId: 'spiffe://example.com/node/evil', incarnation: '1' }),
    },
    {
      name: 'one of another authority',
      reason: 'CERT_BAD_SIGNATURE|CERT_UNTRUSTED',
      svid: () => foreign.issue({ spiffeId: evil.spiffeId, incarnation: '1' }),
    },
    {
      name: 'one of a workload',
      reason: 'PEER_UNKNOWN_NODE',
      svid: () => authority.issue({ spiffeId: 'spiffe://example.org/ns/default/sa/web', incarnation: '1' }),
    },
    {
      name: 'one of a node that is not listed',
      reason: 'PEER_UNKNOWN_NODE',
      svid: () => authority.issue({ spiffeId: 'spiffe://example.org/node/ghost', incarnation: '1' }),
    },
    {
      name: 'a second leaf behind its own',
      reason: 'CERT_CHAIN_SECOND_LEAF',
      svid: () => ({ ...evilSvid, chain: [...evilSvid.chain, ...friend.svid.chain] }),
    },
  ];
  for (const { name, reason, svid } of cases) {
    it(`${name}: refused, without an octet but the certificate of the handshake`, async () => {
      const peer = rawTls(victim.port, svid());
      let shown: string | undefined;
      peer.socket.once('secureConnect', () => {
        shown = peer.socket.getPeerX509Certificate()?.subjectAltName;
      });
      await eventually(() => expect(victim.refusals()).toHaveLength(1));
      expect(reason.split('|')).toContain(victim.refusals()[0]);
      await eventually(() => expect(peer.closed).toBe(true));
      expect(shown).toBe('URI:spiffe://example.org/node/victim');
      expect(peer.octets).toBe(0);
    });
  }

  it('of a lower incarnation than one already seen: refused, also before the node table knows', async () => {
    const newer = authority.issue({ spiffeId: evil.spiffeId, incarnation: '7' });
    const peer = await greetedTls(victim.port, newer);
    peer.hello({ ...evil, incarnation: 7n });
    await eventually(() => expect(victim.opened).toHaveLength(2));
    const older = rawTls(victim.port, authority.issue({ spiffeId: evil.spiffeId, incarnation: '6' }));
    await refusedWith('PEER_INCARNATION_BARRED');
    await eventually(() => expect(older.farewell()).toBe('PEER_INCARNATION_BARRED'));
    expect(victim.closed).toEqual([]);
  });

  it('without an incarnation: refused, and told why', async () => {
    const peer = rawTls(victim.port, authority.issue({ spiffeId: evil.spiffeId }));
    await refusedWith('PEER_CERTIFICATE_REJECTED');
    await eventually(() => expect(peer.farewell()).toBe('PEER_CERTIFICATE_REJECTED'));
  });

  it('of a lower incarnation than one that opened since its handshake: refused, also when that one does not answer', async () => {
    const older = await greetedTls(victim.port, authority.issue({ spiffeId: evil.spiffeId, incarnation: '7' }));
    const newer = await greetedTls(victim.port, authority.issue({ spiffeId: evil.spiffeId, incarnation: '8' }));
    newer.hello({ ...evil, incarnation: 8n });
    await eventually(() => expect(victim.opened).toHaveLength(2));
    newer.socket.pause();
    older.hello({ ...evil, incarnation: 7n });
    await refusedWith('PEER_INCARNATION_BARRED');
    await new Promise((resolve) => setTimeout(resolve, 200));
    expect(victim.opened).toHaveLength(2);
    expect(victim.closed).toEqual([]);
  });

  it('of a lower incarnation than one that outlived the last agent: refused', async () => {
    const again = await cluster.start('again', { seenIncarnation: (node) => (node === evil.id ? 4n : undefined) });
    const peer = rawTls(again.port, authority.issue({ spiffeId: evil.spiffeId, incarnation: '3' }));
    await eventually(() => expect(again.refusals()).toEqual(['PEER_INCARNATION_BARRED']));
    peer.socket.destroy();
    await greetedTls(again.port, authority.issue({ spiffeId: evil.spiffeId, incarnation: '4' }));
  });

  it('revoked: refused, and told why', async () => {
    victim.revoked = ({ node }) => node === evil.spiffeId;
    const peer = rawTls(victim.port, evilSvid);
    await refusedWith('AUTH_REVOKED');
    await eventually(() => expect(peer.closed).toBe(true));
    expect(peer.farewell()).toBe('AUTH_REVOKED');
    expect(peer.frames().map(({ type }) => type)).toEqual([FrameType.FRAME_TYPE_CLOSE]);
  });

  it('without ALPN it still connects, and is refused then', async () => {
    const peer = rawTls(victim.port, evilSvid, { ALPNProtocols: [] });
    await refusedWith('PEER_ALPN_MISMATCH');
    await eventually(() => expect(peer.closed).toBe(true));
    expect(peer.octets).toBe(0);
  });

  it('a resumed session is refused', async () => {
    const first = await greetedTls(victim.port, evilSvid);
    first.hello(evil);
    await eventually(() => expect(victim.opened).toHaveLength(2));
    const session = first.socket.getSession()!;
    first.socket.destroy();
    await eventually(() => expect(victim.closed).toHaveLength(1));
    const second = rawTls(victim.port, evilSvid, { session });
    await refusedWith('PEER_RESUMPTION_REFUSED');
    await eventually(() => expect(second.closed).toBe(true));
    expect(second.octets).toBe(0);
  });
});

describe('a proven node', () => {
  it('that says nothing after the handshake is dropped at the deadline', async () => {
    const peer = await greetedTls(victim.port, evilSvid);
    await refusedWith('PEER_HELLO_TIMEOUT');
    await eventually(() => expect(peer.closed).toBe(true));
    expect(peer.farewell()).toBe('PEER_HELLO_TIMEOUT');
    // who this node is, which its certificate said already, and not a word of what lives on it
    expect(peer.frames().map(({ type }) => type)).toEqual([FrameType.FRAME_TYPE_HELLO, FrameType.FRAME_TYPE_CLOSE]);
    expect(victim.opened).toHaveLength(1);
  });

  it('that says hello an octet at a time is dropped at the same deadline', async () => {
    const peer = await greetedTls(victim.port, evilSvid);
    const drip = dripping(peer, FrameType.FRAME_TYPE_HELLO, 40);
    await refusedWith('PEER_HELLO_TIMEOUT');
    clearInterval(drip);
    expect(victim.opened).toHaveLength(1);
  });

  it('that sends a frame an octet at a time on an open channel is silent: it is closed, however long that goes on', async () => {
    const patient = await cluster.start('patient', { limits: { pingAfterMs: 60_000, idleMs: 400 } });
    const peer = await greetedTls(patient.port, evilSvid);
    peer.hello(evil);
    await eventually(() => expect(patient.opened).toHaveLength(1));
    const drip = dripping(peer, TestNode.someType, 20);
    await eventually(() => expect(patient.closed.map(({ reason }) => reason)).toEqual(['PEER_IDLE_TIMEOUT']));
    clearInterval(drip);
    expect(patient.frames).toEqual([]);
  });

  const hellos: { name: string; reason: string; speak: (peer: RawPeer) => void }[] = [
    {
      name: 'another frame than a hello',
      reason: 'PEER_FRAME_UNEXPECTED',
      speak: (peer) => peer.frame(TestNode.someType),
    },
    {
      name: 'a hello that does not decode',
      reason: 'PEER_FRAME_MALFORMED',
      speak: (peer) => peer.frame(FrameType.FRAME_TYPE_HELLO, Buffer.from([0xff, 0xff])),
    },
    {
      name: 'versions from the future',
      reason: 'PEER_VERSION_MISMATCH',
      speak: (peer) => peer.hello(evil, { minVersion: 3, maxVersion: 4 }),
    },
    {
      name: 'versions of the past',
      reason: 'PEER_VERSION_MISMATCH',
      speak: (peer) => peer.hello(evil, { minVersion: 1, maxVersion: 1 }),
    },
    {
      name: 'versions upside down',
      reason: 'PEER_VERSION_MISMATCH',
      speak: (peer) => peer.hello(evil, { minVersion: 3, maxVersion: 1 }),
    },
    {
      name: 'the name of another node',
      reason: 'PEER_HELLO_MISMATCH',
      speak: (peer) => peer.hello(evil, { nodeName: 'friend' }),
    },
    {
      name: 'the id of another node',
      reason: 'PEER_HELLO_MISMATCH',
      speak: (peer) => peer.hello(evil, { nodeId: 101 }),
    },
    {
      name: 'another incarnation than its certificate',
      reason: 'PEER_HELLO_MISMATCH',
      speak: (peer) => peer.hello(evil, { incarnation: 2n }),
    },
    {
      name: 'a thousand features',
      reason: 'PEER_FRAME_MALFORMED',
      speak: (peer) => peer.hello(evil, { features: Array(1000).fill('x') }),
    },
  ];
  for (const { name, reason, speak } of hellos) {
    it(`that begins with ${name} is refused`, async () => {
      const peer = await greetedTls(victim.port, evilSvid);
      speak(peer);
      await refusedWith(reason);
      await eventually(() => expect(peer.farewell()).toBe(reason));
      expect(victim.opened).toHaveLength(1);
    });
  }

  it('speaks any version that both know', async () => {
    const peer = await greetedTls(victim.port, evilSvid);
    peer.hello(evil, { minVersion: 0, maxVersion: 9, features: ['unheard-of'] });
    await eventually(() => expect(victim.opened).toHaveLength(2));
  });

  const frames: { name: string; reason: string; speak: (peer: RawPeer) => void }[] = [
    { name: 'a frame of an unknown type', reason: 'PEER_FRAME_UNKNOWN', speak: (peer) => peer.frame(99) },
    { name: 'a frame of type 0', reason: 'PEER_FRAME_UNKNOWN', speak: (peer) => peer.frame(0) },
    { name: 'a second hello', reason: 'PEER_FRAME_UNEXPECTED', speak: (peer) => peer.hello(evil) },
    {
      name: 'a pong that nobody asked for',
      reason: 'PEER_FRAME_UNEXPECTED',
      speak: (peer) => peer.frame(FrameType.FRAME_TYPE_PONG),
    },
    {
      name: 'an empty frame',
      reason: 'PEER_FRAME_MALFORMED',
      speak: (peer) => peer.socket.write(Buffer.alloc(4)),
    },
    {
      name: 'the mere announcement of an oversized frame',
      reason: 'PEER_FRAME_TOO_LARGE',
      speak: (peer) => peer.socket.write(Buffer.from('00010001', 'hex')),
    },
    {
      name: 'a ping that does not decode',
      reason: 'PEER_FRAME_MALFORMED',
      speak: (peer) => peer.frame(FrameType.FRAME_TYPE_PING, Buffer.from([0xff])),
    },
  ];
  for (const { name, reason, speak } of frames) {
    it(`that sends ${name} on an open channel is dropped`, async () => {
      const peer = await greetedTls(victim.port, evilSvid);
      peer.hello(evil);
      await eventually(() => expect(victim.opened).toHaveLength(2));
      speak(peer);
      await eventually(() => expect(victim.closed.map((end) => end.reason)).toEqual([reason]));
      expect(victim.audit.at(-1)).toMatchObject({ kind: 'peer.closed', reason, source: { node: 'evil' } });
      await eventually(() => expect(peer.farewell()).toBe(reason));
    });
  }

  it('under the name of a living one is refused: the first stays', async () => {
    const first = await greetedTls(victim.port, evilSvid);
    first.hello(evil);
    await eventually(() => expect(victim.opened).toHaveLength(2));
    const answering = setInterval(() => {
      for (const { type, body } of first.frames())
        if (type === FrameType.FRAME_TYPE_PING) first.frame(FrameType.FRAME_TYPE_PONG, body);
    }, 5);
    const second = await greetedTls(victim.port, evilSvid);
    second.hello(evil);
    await refusedWith('PEER_NODE_IN_USE');
    clearInterval(answering);
    await eventually(() => expect(second.farewell()).toBe('PEER_NODE_IN_USE'));
  });

  it('that lost its old connection takes its place again when the old one does not answer', async () => {
    const first = await greetedTls(victim.port, evilSvid);
    first.hello(evil);
    await eventually(() => expect(victim.opened).toHaveLength(2));
    first.socket.pause();
    const second = await greetedTls(victim.port, evilSvid);
    second.hello(evil);
    second.frame(TestNode.someType, Buffer.from('sent while waiting'));
    await eventually(() => expect(victim.opened).toHaveLength(3));
    expect(victim.closed.map(({ reason }) => reason)).toEqual(['PEER_IDLE_TIMEOUT']);
    await eventually(() => expect(victim.frames.map(({ body }) => body.toString())).toEqual(['sent while waiting']));
  });

  it("cannot take a living one's place with a guessed proof of succession", async () => {
    const first = await greetedTls(victim.port, evilSvid);
    first.hello(evil);
    await eventually(() => expect(victim.opened).toHaveLength(2));
    const second = await greetedTls(victim.port, evilSvid);
    second.hello(evil, {
      succeeds: second.socket.exportKeyingMaterial(32, 'EXPORTER-countersign-succession', Buffer.alloc(0)),
    });
    await eventually(() => expect(first.frames().some(({ type }) => type === FrameType.FRAME_TYPE_PING)).toBe(true));
    expect(victim.closed).toEqual([]);
    second.socket.destroy();
  });

  it('that does not read is not read from, and is dropped when too much waits for it', async () => {
    const flooded = await cluster.start('flooded', {
      limits: { sendQueueBytes: 8 * 1024 * 1024, pauseAtBytes: 64 * 1024 },
      onFrame: (channel) => {
        for (let i = 0; i < 16; i++) channel.send(TestNode.someType, Buffer.alloc(65_000));
      },
    });
    const peer = await greetedTls(flooded.port, evilSvid);
    peer.hello(evil);
    await eventually(() => expect(flooded.opened).toHaveLength(1));
    peer.socket.pause();
    for (let i = 0; i < 200; i++) peer.frame(TestNode.someType);
    // The first frames fill the queue; those already read from the socket in one piece may fill it over.
    await eventually(() => expect(flooded.closed.map(({ reason }) => reason)).toEqual(['PEER_SEND_QUEUE_FULL']));
    expect(flooded.frames.length).toBeLessThan(200);
  });
});

describe('a responder that is not what it should be', () => {
  async function impostor(svid: Svid, alpn: string[], onSecure: (socket: TLSSocket) => void): Promise<string> {
    const server = createServer(
      {
        ...credentialsOf(svid),
        minVersion: 'TLSv1.3',
        requestCert: true,
        rejectUnauthorized: false,
        ca: [],
        ALPNProtocols: alpn,
      },
      onSecure,
    );
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    const address = server.address();
    if (address === null || typeof address === 'string') throw new Error('no address');
    cluster.nodes.push({ channels: { close: async () => void server.close() } } as unknown as TestNode);
    return `127.0.0.1:${address.port}`;
  }
  const dial = async (address: string) => {
    await expect(victim.channels.open({ ...evil, peerAddresses: [address] })).rejects.toThrow();
    return victim.refusals();
  };

  it('gets no word from the initiator before it says hello: its certificate alone opens nothing', async () => {
    const peers: RawPeer<TLSSocket>[] = [];
    const address = await impostor(evilSvid, ['countersign/1'], (socket) => peers.push(new RawPeer(socket)));
    expect(await dial(address)).toEqual(['PEER_HELLO_TIMEOUT']);
    await eventually(() => expect(peers[0]!.frames().map(({ type }) => type)).toEqual([FrameType.FRAME_TYPE_CLOSE]));
  });

  it('is refused when it is another node than the one dialed', async () => {
    const address = await impostor(friend.svid, ['countersign/1'], (socket) => new RawPeer(socket));
    expect(await dial(address)).toEqual(['PEER_CERTIFICATE_REJECTED']);
  });

  it('is refused when it does not speak the protocol', async () => {
    const address = await impostor(evilSvid, [], (socket) => new RawPeer(socket));
    expect(await dial(address)).toEqual(['PEER_ALPN_MISMATCH']);
  });

  it('that refuses is believed, with its reason', async () => {
    const address = await impostor(evilSvid, ['countersign/1'], (socket) => {
      new RawPeer(socket).frame(
        FrameType.FRAME_TYPE_CLOSE,
        Buffer.concat([Buffer.from([10, 12]), Buffer.from('AUTH_REVOKED')]),
      );
    });
    expect(await dial(address)).toEqual(['AUTH_REVOKED']);
  });

  it('that refuses with a reason nobody knows closes the channel all the same', async () => {
    const address = await impostor(evilSvid, ['countersign/1'], (socket) => {
      new RawPeer(socket).frame(
        FrameType.FRAME_TYPE_CLOSE,
        Buffer.concat([Buffer.from([10, 8]), Buffer.from('toString')]),
      );
    });
    expect(await dial(address)).toEqual(['PEER_CHANNEL_CLOSED']);
  });
});
