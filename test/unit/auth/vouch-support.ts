/** What the tests of leases and fences share: three nodes with two workloads, forged answers, and who is open to whom. */
import { afterEach, beforeEach } from 'vitest';
import { FrameType, VouchReply } from '../../../proto/gen/countersign/peer/v1/peer.ts';
import { type Frame, type SimNode, type Workload, World } from './world.ts';

/** The test's network, its nodes, and a workload on A and one on B. */
export let world: World;
export let a: SimNode;
export let b: SimNode;
export let c: SimNode;
export let frontend: Workload;
export let backend: Workload;

/** Each test of the file gets its own. */
export function eachInItsOwnWorld(): void {
  beforeEach(async () => {
    world = await World.create({ a: ['10.0.1.0/24'], b: ['10.0.2.0/24'], c: ['10.0.3.0/24'] });
    a = world.node('a');
    b = world.node('b');
    c = world.node('c');
    frontend = await world.workload('frontend', a, '10.0.1.2', 300);
    backend = await world.workload('backend', b, '10.0.2.2', 301);
  });
  afterEach(() => world.close());
}

export async function meet() {
  world.send(frontend, backend);
  await world.settle();
}

/** Rewrites the vouches that B gives. */
export function forge(change: (reply: VouchReply) => VouchReply) {
  world.intercept = (frame) => {
    if (frame.type !== FrameType.FRAME_TYPE_VOUCH_REPLY || frame.from !== 'b') return [frame];
    const body = Buffer.from(VouchReply.encode(change(VouchReply.decode(frame.body))).finish());
    return [{ ...frame, body }];
  };
}

/** An address is asked for twice: when its node offers it, and when a packet wants to go there. */
export const refusals = () => a.reasons('vouch.refused');
export const isWithdraw = (frame: Frame) => frame.type === FrameType.FRAME_TYPE_WITHDRAW;
export const isWithdrawAck = (frame: Frame) => frame.type === FrameType.FRAME_TYPE_WITHDRAW_ACK;

/** The workload's address passes to another identity on the same node. */
export async function replaceBackend(known = true): Promise<Workload> {
  if (known) b.manager.closeEndpoint(backend.endpoint);
  return world.workload('successor', b, '10.0.2.2', 302);
}

/** As the kernel has it: open, and no fence towards the peer. */
export const isOpenTo = ({ node, endpoint }: Workload, peer: SimNode) =>
  node.opened.includes(endpoint) && !node.kernelFences.has(`${endpoint}/${peer.info.id}`);
