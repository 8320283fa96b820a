/** Frames that were cut, stretched or made up: of each type, at each octet. */

import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { MessageFns } from '../../../proto/gen/countersign/peer/v1/peer.ts';
import * as peer from '../../../proto/gen/countersign/peer/v1/peer.ts';
import { encodeFrame, FrameReader, MAX_FRAME_OCTETS } from '../../../src/channel/frame.ts';
import type { NodeInfo } from '../../../src/model/identity.ts';
import { createTestAuthority, type TestAuthority } from './certificates.ts';
import { eventually, TestCluster, type TestNode } from './node.ts';
import { greetedTls, type RawPeer } from './raw-peer.ts';

const { FrameType } = peer;
const bytes = (length: number, value: number) => Buffer.alloc(length, value);

interface Sample {
  readonly codec: MessageFns<unknown>;
  readonly body: Uint8Array;
}

function sample<T>(codec: MessageFns<T>, message: Parameters<MessageFns<T>['fromPartial']>[0]): Sample {
  return { codec: codec as MessageFns<unknown>, body: codec.encode(codec.fromPartial(message)).finish() };
}

/** Every field set, so that every octet of the encoding stands for something. */
const samples: { [Name in Exclude<keyof typeof FrameType, 'FRAME_TYPE_UNSPECIFIED' | 'UNRECOGNIZED'>]: Sample } = {
  FRAME_TYPE_HELLO: sample(peer.Hello, {
    ...{ minVersion: 1, maxVersion: 1, features: ['one', 'two'], nodeName: 'evil', nodeId: 102, incarnation: 1n },
    succeeds: bytes(32, 7),
  }),
  FRAME_TYPE_PING: sample(peer.Ping, { nonce: 2n ** 60n }),
  FRAME_TYPE_PONG: sample(peer.Pong, { nonce: 2n ** 60n }),
  FRAME_TYPE_CLOSE: sample(peer.Close, { reason: 'PEER_IDLE' }),
  FRAME_TYPE_VOUCH_REQUEST: sample(peer.VouchRequest, {
    ...{ nonce: bytes(16, 1), addresses: [bytes(4, 10), bytes(16, 2)], own: [bytes(4, 11)] },
  }),
  FRAME_TYPE_VOUCH_REPLY: sample(peer.VouchReply, {
    ...{ nonce: bytes(16, 1), incarnation: 3n },
    vouches: [
      {
        ...{ address: bytes(4, 10), securityIdentity: 256, spiffeId: 'spiffe://example.org/a' },
        ...{ generation: 9n, leaseMs: 30_000 },
      },
    ],
  }),
  FRAME_TYPE_WITHDRAW: sample(peer.Withdraw, {
    ...{ id: 1n, incarnation: 3n, addresses: [{ address: bytes(16, 2), generation: 9n }] },
  }),
  FRAME_TYPE_WITHDRAW_ACK: sample(peer.WithdrawAck, { id: 300n }),
  FRAME_TYPE_RESET: sample(peer.Reset, { incarnation: 300n }),
  FRAME_TYPE_RESET_ACK: sample(peer.ResetAck, { incarnation: 300n }),
  FRAME_TYPE_RENEW: sample(peer.Renew, { nonce: bytes(16, 1), incarnation: 3n, version: 300n }),
  FRAME_TYPE_RENEW_REPLY: sample(peer.RenewReply, { nonce: bytes(16, 1), ok: true, leaseMs: 30_000 }),
  FRAME_TYPE_PROVE_REQUEST: sample(peer.ProveRequest, {
    ...{ exchange: 1n, localIdentity: 256, remoteIdentity: 257, authType: 1, authenticatorRequest: bytes(40, 3) },
    flow: { localAddress: bytes(4, 1), remoteAddress: bytes(4, 2), protocol: 6, localPort: 4000, remotePort: 80 },
  }),
  FRAME_TYPE_PROVE_CHALLENGE: sample(peer.ProveChallenge, { exchange: 1n, authenticatorRequest: bytes(40, 3) }),
  FRAME_TYPE_PROVE_PROOF: sample(peer.ProveProof, { exchange: 1n, authenticator: bytes(200, 3) }),
  FRAME_TYPE_PROVE_RESULT: sample(peer.ProveResult, {
    ...{ exchange: 1n, ok: true, reason: 'AUTH_REFUSED', validMs: 1n, authenticator: bytes(9, 3) },
  }),
  FRAME_TYPE_MISS: sample(peer.Miss, { localIdentity: 256, remoteIdentity: 257 }),
  FRAME_TYPE_PROVE_PAIRS: sample(peer.ProvePairs, {
    ...{ exchange: 1n, authType: 1, pairs: [{ localIdentity: 256, remoteIdentity: 257 }] },
  }),
  FRAME_TYPE_PAIRS_RESULT: sample(peer.PairsResult, {
    ...{ exchange: 1n, verdicts: [{ ok: true, reason: 'AUTH_REFUSED', validMs: 300n }] },
  }),
  FRAME_TYPE_TUNNEL_OFFER: sample(peer.TunnelOffer, {
    ...{ keyNumber: 1n, type: 'wireguard', publicKey: bytes(32, 4), endpoint: '192.0.2.1:51871' },
    signature: bytes(64, 5),
  }),
  FRAME_TYPE_TUNNEL_READY: sample(peer.TunnelReady, { keyNumber: 300n }),
};
const names = Object.keys(samples) as (keyof typeof samples)[];

describe.each(names)('%s', (name) => {
  const { codec, body } = samples[name];
  const frame = encodeFrame(FrameType[name], body)!;

  it('cut at any octet is no frame', () => {
    for (let cut = 0; cut < frame.length; cut++) {
      const reader = new FrameReader();
      reader.feed(frame.subarray(0, cut));
      expect(reader.next()).toBeUndefined();
      reader.feed(frame.subarray(cut));
      expect(reader.next()).toMatchObject({ ok: true, value: { type: FrameType[name] } });
    }
  });

  it('whose message is cut at any octet does not decode, or decodes to less than was sent', () => {
    for (let cut = 0; cut < body.length; cut++) {
      const prefix = body.subarray(0, cut);
      let again: Uint8Array;
      try {
        again = codec.encode(codec.decode(prefix)).finish();
      } catch {
        continue;
      }
      expect(Buffer.from(prefix).subarray(0, again.length).equals(again), `cut at ${cut}`).toBe(true);
    }
  });

  it('with any octet altered, or any appended, throws at most', () => {
    fc.assert(
      fc.property(
        fc.nat({ max: body.length - 1 }),
        fc.nat({ max: 255 }),
        fc.uint8Array({ maxLength: 20 }),
        (at, to, tail) => {
          const altered = Buffer.concat([body, tail]);
          altered[at] = to;
          try {
            codec.decode(altered);
          } catch (thrown) {
            expect(thrown).toBeInstanceOf(Error);
          }
        },
      ),
    );
  });
});

describe('on a real socket', () => {
  let authority: TestAuthority;
  let cluster: TestCluster;
  let victim: TestNode;
  let evil: NodeInfo;
  beforeAll(async () => {
    authority = createTestAuthority('example.org');
    cluster = new TestCluster(authority);
    victim = await cluster.start('victim', { limits: { probeMs: 50 } });
    evil = cluster.list('evil');
  });
  afterAll(async () => {
    await cluster.close();
    authority.close();
  });
  let opened = 0;
  async function open(): Promise<RawPeer> {
    await eventually(() => expect(victim.channels.list()).toEqual([]));
    const connection = await greetedTls(victim.port, cluster.svidOf(evil));
    connection.hello(evil);
    opened++;
    await eventually(() => expect(victim.opened).toHaveLength(opened));
    return connection;
  }
  const ended = () => victim.closed.map(({ reason }) => reason);

  it('a frame of each type that stops before its last octet is not delivered; the end of the connection ends the channel', async () => {
    for (const name of names) {
      const connection = await open();
      const frame = encodeFrame(FrameType[name], samples[name].body)!;
      connection.socket.end(frame.subarray(0, frame.length - 1));
      await eventually(() => expect(victim.closed).toHaveLength(opened));
      expect(ended().at(-1), name).toBe('PEER_CHANNEL_CLOSED');
    }
    expect(victim.frames).toEqual([]);
  });

  it('a length above 64 KiB is refused before an octet of the frame is there, for each type', async () => {
    for (const name of names) {
      const connection = await open();
      const header = Buffer.alloc(5);
      header.writeUInt32BE(MAX_FRAME_OCTETS + 1, 0);
      header[4] = FrameType[name];
      connection.socket.write(header);
      await eventually(() => expect(connection.farewell(), name).toBe('PEER_FRAME_TOO_LARGE'));
      connection.socket.destroy();
    }
    expect(victim.frames).toEqual([]);
  });

  it('of the channel’s own frames, each cut of the message ends the channel or is a whole message', async () => {
    for (const name of ['FRAME_TYPE_PING', 'FRAME_TYPE_PONG', 'FRAME_TYPE_HELLO'] as const) {
      for (let cut = 0; cut < samples[name].body.length; cut += name === 'FRAME_TYPE_HELLO' ? 7 : 1) {
        const before = victim.closed.length;
        const connection = await open();
        connection.frame(FrameType[name], samples[name].body.subarray(0, cut));
        if (name === 'FRAME_TYPE_PING' && cut === 0) {
          // an empty message is a ping with the number 0
          await eventually(() => expect(connection.frames().at(-1)?.type).toBe(FrameType.FRAME_TYPE_PONG));
          connection.socket.destroy();
          await eventually(() => expect(victim.closed.length).toBeGreaterThan(before));
          continue;
        }
        await eventually(() => expect(connection.farewell()).toMatch(/^PEER_FRAME_(MALFORMED|UNEXPECTED)$/));
        connection.socket.destroy();
      }
    }
    expect(victim.frames).toEqual([]);
  });
});
