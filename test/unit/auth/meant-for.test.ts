/** A packet that waits in the hold queue goes to who had its address when it was sent, or to nobody. */
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import type { DropReason } from '../../../src/base/registry/drop-reasons.gen.ts';
import { PacketHold } from '../../../src/datapath/hold-queue.ts';
import { addressWireBytes } from '../../../src/model/address.ts';
import { type SimNode, type Workload, World } from './world.ts';

let world: World;
let a: SimNode;
let b: SimNode;
let c: SimNode;
let frontend: Workload;
let hold: PacketHold;
let released: string[];
let dropped: DropReason[];

/** Two nodes may host the same addresses, and node A's queue is the real one. */
beforeEach(async () => {
  world = await World.create({ a: ['10.0.1.0/24'], b: ['10.0.2.0/24'], c: ['10.0.3.0/24', '10.0.2.0/24'] });
  [a, b, c] = [world.node('a'), world.node('b'), world.node('c')];
  released = [];
  dropped = [];
  hold = new PacketHold({
    limitTotal: 100,
    limitPerIdentity: 100,
    deadlineMs: 60_000,
    clock: world.time,
    timer: (ms, fire) => world.time.set(ms, fire),
    identityOf: () => frontend.identity,
    write: (packet) => released.push(packet.subarray(20).toString()) > 0,
    left: () => {},
    dropped: (reason) => dropped.push(reason),
  });
});
afterEach(() => world.close());

function packetTo(to: Workload, what: string): Buffer {
  const packet = Buffer.concat([Buffer.alloc(20), Buffer.from(what)]);
  packet[0] = 0x45;
  packet.writeUInt16BE(packet.length, 2);
  packet.set(addressWireBytes(frontend.ip), 12);
  packet.set(addressWireBytes(to.ip), 16);
  return packet;
}

/** The kernel holds it, and says so. */
function send(to: Workload, what: string): void {
  hold.accept(packetTo(to, what));
  world.send(frontend, to.ip);
}

/** From the sender's node nothing is heard of the node: dials hang. */
function dialsHang(node: SimNode): void {
  world.cut('a', node.name);
  const open = async (info: { id: number }) =>
    info.id === node.info.id ? new Promise<never>(() => {}) : (a.channelTo.get(c.info.id) ?? world.connect(a, c));
  a.start({
    hold,
    channels: {
      open: open as never,
      get: ({ id }) => a.channelTo.get(id),
      list: () => [...a.channelTo.values()],
    },
  });
}

describe('an address that moves to a node that never had it', () => {
  test('takes nothing along that was held for its earlier owner elsewhere, and gets what is sent from then on', async () => {
    dialsHang(b);
    frontend = await world.workload('frontend', a, '10.0.1.2', 300);
    const earlier = await world.workload('backend', b, '10.0.2.2', 301);
    send(earlier, 'for the earlier owner');
    await world.pass(500);
    b.manager.closeEndpoint(earlier.endpoint);
    await world.pass(10);
    const successor = await world.workload('successor', c, '10.0.2.2', 302);
    world.require(frontend, successor);
    await world.pass(10);
    // The first one, if the offer of the new owner's node has not come yet; the next is judged by its vouch.
    send(successor, 'for the successor');
    await world.pass(10);
    send(successor, 'for the successor, too');
    await world.pass(10);
    expect(a.believes(successor.ip)).toBe(302);
    expect(released).toEqual(['for the successor', 'for the successor, too']);
    expect(dropped).toEqual(['HOLD_STALE']);
  });
});

describe('an address that changes hands on the sender’s own node', () => {
  test('takes nothing along that was held for its earlier owner', async () => {
    a.start({ hold });
    frontend = await world.workload('frontend', a, '10.0.1.2', 300);
    const earlier = await world.workload('backend', a, '10.0.1.3', 301);
    world.require(frontend, earlier);
    hold.accept(packetTo(earlier, 'for the earlier owner'));
    await world.pass(500);
    a.manager.closeEndpoint(earlier.endpoint);
    const successor = await world.workload('successor', a, '10.0.1.3', 302);
    world.require(frontend, successor);
    await world.pass(200);
    send(successor, 'for the successor');
    await world.pass(10);
    expect(released).toEqual(['for the successor']);
    expect(dropped).toEqual(['HOLD_STALE']);
  });
});
