/** What a stolen node says of addresses, to the real code behind a real TLS channel: floods of what is not its own, and a withdraw that it never acks. */
import { randomBytes } from 'node:crypto';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import {
  FrameType,
  VouchReply,
  VouchRequest,
  Withdraw,
  WithdrawAck,
} from '../../../proto/gen/countersign/peer/v1/peer.ts';
import type { StartedPeerChannels } from '../../../src/channel/peer-channels.ts';
import { addressFromBytes, addressWireBytes } from '../../../src/model/address.ts';
import { nodeSvid, RogueNode, realWorld, startVictim } from './rogue-node.ts';
import { address, type SimNode, type Workload, type World } from './world.ts';

let world: World;
let a: SimNode;
let b: SimNode;
let frontend: Workload;
let backend: Workload;
let channels: StartedPeerChannels;
let rogue: RogueNode;

beforeEach(async () => {
  world = await realWorld();
  a = world.node('a');
  b = world.node('b');
  channels = await startVictim(world, a);
  frontend = await world.workload('frontend', a, '10.0.1.2', 300);
  backend = await world.workload('backend', b, '10.0.2.2', 301);
  world.require(frontend, backend);
  const { port } = channels.addresses()[0]!;
  rogue = await RogueNode.connect(port, b.info, await nodeSvid(world, b.info), [backend]);
  await rogue.introduce(frontend);
  await vi.waitFor(() => expect(a.believes(backend.ip)).toBe(backend.identity), { timeout: 10_000 });
});
afterEach(async () => {
  await rogue.close();
  await channels.close();
  world.close();
});

/** Of the victim's prefix, its own endpoint's among them, and of nobody's. */
const foreign = (i: number) => address(`10.${i % 2 === 0 ? '0.1' : '9.9'}.${1 + (i % 250)}`);

function vouchFor(ip: ReturnType<typeof address>) {
  const { identity, spiffeId } = backend;
  const rest = { generation: 9n, leaseMs: 30_000, earlierOwnerMs: 0n, ownedMs: 0n };
  return { address: addressWireBytes(ip), securityIdentity: identity, spiffeId, ...rest };
}

/** Who the victim asks this node about, from here on. */
function questions(): string[] {
  const asked: string[] = [];
  rogue.heard = ({ type, body }) => {
    if (type !== FrameType.FRAME_TYPE_VOUCH_REQUEST) return;
    asked.push(...VouchRequest.decode(body).addresses.map((bytes) => addressFromBytes(bytes)));
  };
  return asked;
}

/** A question and its answer: what was sent before has been worked on by then. */
const settled = () => rogue.introduce(frontend);

describe('a node that vouches for addresses that are not its own', () => {
  test('by 10,000 offers: it is asked about none of them, and the audit log does not fill', async () => {
    const asked = questions();
    for (let i = 0; i < 10_000; i += 16) {
      const own = Array.from({ length: 16 }, (_, j) => addressWireBytes(foreign(i + j)));
      const request = { nonce: randomBytes(16), addresses: [], own };
      rogue.send(FrameType.FRAME_TYPE_VOUCH_REQUEST, VouchRequest.encode(request));
    }
    await settled();
    expect(new Set(asked)).toEqual(new Set());
    expect([...a.kernelAddresses.values()].filter(({ node }) => node === b.info.id)).toHaveLength(1);
    expect(a.audit.filter(({ reason }) => reason === 'VOUCH_NOT_GRANTED').length).toBeLessThanOrEqual(250);
    expect(rogue.peer.closed).toBe(false);
  });

  test('by 2,000 answers to no question: none comes into force', async () => {
    const before = new Map(a.kernelAddresses);
    for (let i = 0; i < 2_000; i++) {
      const reply = {
        nonce: randomBytes(16),
        incarnation: 1n,
        vouches: [vouchFor(foreign(i)), vouchFor(address('10.0.2.9'))],
      };
      rogue.send(FrameType.FRAME_TYPE_VOUCH_REPLY, VouchReply.encode(reply));
    }
    await settled();
    expect(a.kernelAddresses).toEqual(before);
    expect(a.tunnelAllowed).toEqual(new Map([[backend.ip, b.info.id]]));
  });

  test('beside the one that it was asked for: that one counts alone', async () => {
    rogue.answersWith = (asked) =>
      [...asked, address('10.0.1.2'), address('10.9.9.9'), address('10.0.2.9')].map(vouchFor);
    world.send(frontend, address('10.0.2.77'));
    await vi.waitFor(() => expect(a.believes(address('10.0.2.77'))).toBe(backend.identity), { timeout: 10_000 });
    expect(a.believes(frontend.ip)).toBe(frontend.identity);
    for (const ip of ['10.9.9.9', '10.0.2.9']) expect(a.believes(address(ip))).toBeUndefined();
  });
});

describe('a withdraw that is never acked', () => {
  test('keeps the successor shut towards that node, however much time passes, and open to its neighbours; the ack opens it', async () => {
    rogue.isHonest = false;
    const neighbour = await world.workload('neighbour', a, '10.0.1.9', 309);
    a.manager.closeEndpoint(frontend.endpoint);
    const withdrawn = Withdraw.decode((await rogue.next(FrameType.FRAME_TYPE_WITHDRAW)).body);
    expect(withdrawn.addresses.map((one) => addressFromBytes(one.address))).toEqual([frontend.ip]);
    const successor = await world.workload('successor', a, frontend.ip, 302);
    const fence = `${successor.endpoint}/${b.info.id}`;
    await vi.waitFor(() => expect(a.opened).toContain(successor.endpoint), { timeout: 10_000 });
    expect(a.kernelFences).toContain(fence);
    expect(world.send(neighbour, successor)).toBe('passed');
    world.time.skip(3_600_000);
    expect(await vouchedTo(frontend)).toEqual([]);
    expect(a.kernelFences).toContain(fence);
    rogue.send(FrameType.FRAME_TYPE_WITHDRAW_ACK, WithdrawAck.encode({ id: withdrawn.id }));
    await vi.waitFor(() => expect(a.kernelFences).not.toContain(fence), { timeout: 10_000 });
    await vi.waitFor(async () => expect(await vouchedTo(frontend)).toEqual([302]), { timeout: 10_000 });
  });

  /** As whom the victim vouches for the workload's address, to this node. */
  async function vouchedTo({ ip }: Workload): Promise<number[]> {
    const request = { nonce: randomBytes(16), addresses: [addressWireBytes(ip)], own: [] };
    rogue.send(FrameType.FRAME_TYPE_VOUCH_REQUEST, VouchRequest.encode(request));
    const { vouches } = VouchReply.decode((await rogue.next(FrameType.FRAME_TYPE_VOUCH_REPLY)).body);
    return vouches.map(({ securityIdentity }) => securityIdentity);
  }
});
