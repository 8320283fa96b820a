/** The hold queue under a clock that stands still and leaps: order, bounds, deadlines, and nothing read loosely. */
import fc from 'fast-check';
import { beforeEach, describe, expect, test } from 'vitest';
import type { DropReason } from '../../../src/base/registry/drop-reasons.gen.ts';
import { PacketHold } from '../../../src/datapath/hold-queue.ts';
import { packetAddresses, packetFlow } from '../../../src/datapath/ip-header.ts';
import { addressWireBytes, isIpv4, parseAddress } from '../../../src/model/address.ts';
import { type IpAddress, type SecurityIdentity, securityIdentity } from '../../../src/model/ids.ts';

const ip = (text: string) => parseAddress(text)!;
const [frontend, backend, other] = [ip('10.0.1.2'), ip('10.0.2.2'), ip('10.0.1.3')];
const [frontend6, backend6] = [ip('fd00:1::2'), ip('fd00:2::2')];
const identities = new Map<IpAddress, SecurityIdentity>([
  [frontend, securityIdentity(300)],
  [frontend6, securityIdentity(300)],
  [other, securityIdentity(301)],
]);

function packet(source: IpAddress, destination: IpAddress, payload = 'x'): Buffer {
  const body = Buffer.from(payload);
  const four = isIpv4(source);
  const header = Buffer.alloc(four ? 20 : 40);
  if (four) {
    header[0] = 0x45;
    header.writeUInt16BE(20 + body.length, 2);
  } else {
    header[0] = 0x60;
    header.writeUInt16BE(body.length, 4);
  }
  header.set(addressWireBytes(source), four ? 12 : 8);
  header.set(addressWireBytes(destination), four ? 16 : 24);
  return Buffer.concat([header, body]);
}

function world(limits: { limitTotal?: number; limitPerIdentity?: number } = {}) {
  let nowNs = 1_000_000_000n;
  let due: { atNs: bigint; fire: () => void } | undefined;
  const written: Buffer[] = [];
  const dropped: DropReason[] = [];
  const left = new Map<number | undefined, number>();
  let writable = true;
  const hold = new PacketHold({
    limitTotal: 100,
    limitPerIdentity: 10,
    ...limits,
    deadlineMs: 500,
    clock: { nowMs: () => Number(nowNs / 1_000_000n), bootNs: () => nowNs },
    timer: (ms, fire) => {
      due = { atNs: nowNs + BigInt(ms) * 1_000_000n, fire };
      return () => {
        due = undefined;
      };
    },
    identityOf: (local) => identities.get(local),
    write: (bytes) => {
      if (writable) written.push(bytes);
      return writable;
    },
    left: (identity, packets) => void left.set(identity, (left.get(identity) ?? 0) + packets),
    dropped: (reason) => void dropped.push(reason),
  });
  return {
    hold,
    written,
    dropped,
    left,
    jam: () => {
      writable = false;
    },
    advance(ms: number) {
      const until = nowNs + BigInt(ms) * 1_000_000n;
      while (due !== undefined && due.atNs <= until) {
        nowNs = due.atNs;
        const { fire } = due;
        due = undefined;
        fire();
      }
      nowNs = until;
    },
    armed: () => due !== undefined,
    now: () => nowNs,
  };
}

describe('hold queue', () => {
  let w: ReturnType<typeof world>;
  beforeEach(() => {
    w = world();
  });

  test('a pair’s packets wait, and go on in the order they came', () => {
    const sent = ['1', '2', '3'].map((n) => packet(frontend, backend, n));
    w.hold.accept(sent[0]!);
    w.hold.accept(packet(other, backend, 'not this pair'));
    w.hold.accept(sent[1]!);
    w.hold.accept(sent[2]!);
    expect(w.written).toEqual([]);
    expect(w.hold.waiting()).toEqual([
      { local: frontend, remote: backend, packets: 3, sinceNs: 1_000_000_000n },
      { local: other, remote: backend, packets: 1, sinceNs: 1_000_000_000n },
    ]);
    expect(w.hold.release(frontend, backend)).toBe(3);
    expect(w.written).toEqual(sent);
    expect(w.left.get(300)).toBe(3);
    expect(w.hold.waiting()).toHaveLength(1);
  });

  test('IPv6 pairs wait and are released like IPv4 pairs', () => {
    w.hold.accept(packet(frontend6, backend6));
    expect(w.hold.release(frontend6, backend6)).toBe(1);
    expect(w.written).toHaveLength(1);
  });

  test('a refused pair is dropped under the reason that was given', () => {
    w.hold.accept(packet(frontend, backend));
    w.hold.accept(packet(frontend, backend));
    expect(w.hold.refuse(frontend, backend, 'HOLD_REFUSED')).toBe(2);
    expect(w.dropped).toEqual(['HOLD_REFUSED', 'HOLD_REFUSED']);
    expect(w.left.get(300)).toBe(2);
    expect(w.written).toEqual([]);
  });

  test('drops what was held before the remote address had its owner of now, also what turns up later', () => {
    w.hold.accept(packet(frontend, backend, 'for the earlier owner'));
    w.advance(100);
    const since = w.now();
    w.hold.accept(packet(frontend, backend, 'for this one'));
    expect(w.hold.release(frontend, backend, since)).toBe(1);
    expect(w.written.map(String)).toEqual([expect.stringContaining('for this one')]);
    expect(w.dropped).toEqual(['HOLD_STALE']);
    w.hold.release(frontend, backend, w.now() + 1n);
    w.hold.accept(packet(frontend, backend, 'late'));
    expect(w.dropped).toEqual(['HOLD_STALE', 'HOLD_STALE']);
    expect(w.left.get(300)).toBe(3);
  });

  describe('of one flow alone', () => {
    const flow = (localPort: number, protocol = 17) => ({ protocol, localPort, remotePort: 53 });
    const datagram = (localPort: number, protocol = 17, fragment = 0) => {
      const bytes = packet(frontend, backend, '01234567');
      bytes[9] = protocol;
      bytes.writeUInt16BE(fragment, 6);
      bytes.writeUInt16BE(localPort, 20);
      bytes.writeUInt16BE(53, 22);
      return bytes;
    };

    test('its packets go on, the pair’s others wait', () => {
      const [first, second, again] = [datagram(1), datagram(2), datagram(1)];
      for (const bytes of [first, second, datagram(1, 6), again]) w.hold.accept(bytes);
      expect(w.hold.release(frontend, backend, 0n, flow(1))).toBe(2);
      expect(w.written).toEqual([first, again]);
      expect(w.hold.waiting()).toMatchObject([{ packets: 2 }]);
      expect(w.hold.refuse(frontend, backend, 'HOLD_REFUSED', flow(2))).toBe(1);
      expect(w.hold.refuse(frontend, backend, 'HOLD_REFUSED', flow(3))).toBe(0);
      expect(w.hold.waiting()).toMatchObject([{ packets: 1 }]);
      expect(w.hold.release(frontend, backend)).toBe(1);
      expect(w.left.get(300)).toBe(4);
      expect(w.hold.isEmpty()).toBe(true);
    });

    test('what of it turns up later goes the same way, what is of another waits', () => {
      w.hold.release(frontend, backend, 0n, flow(1));
      w.hold.refuse(frontend, backend, 'HOLD_REFUSED', flow(2));
      for (const port of [1, 2, 3]) w.hold.accept(datagram(port));
      expect(w.written).toEqual([datagram(1)]);
      expect(w.dropped).toEqual(['HOLD_REFUSED']);
      expect(w.hold.waiting()).toMatchObject([{ packets: 1 }]);
      w.hold.forget(backend);
      w.hold.accept(datagram(1));
      expect(w.hold.waiting()).toMatchObject([{ packets: 2 }]);
    });

    test('a later fragment, which names no flow, goes with the first that is released', () => {
      w.hold.accept(datagram(1));
      w.hold.accept(datagram(7, 17, 0x20));
      expect(w.hold.release(frontend, backend, 0n, flow(1))).toBe(2);
    });

    test('the next owner of the address is not spoken to by what waited for the last, and the endpoint’s end drops all', () => {
      w.hold.accept(datagram(1));
      expect(w.hold.release(frontend, backend, w.now() + 1n, flow(1))).toBe(0);
      expect(w.dropped).toEqual(['HOLD_STALE']);
      w.hold.accept(datagram(2));
      w.hold.dropAddress(frontend);
      w.hold.accept(datagram(1));
      expect(w.hold.waiting()).toMatchObject([{ packets: 1 }]);
      expect(w.written).toEqual([]);
    });

    test.each([
      ['TCP', packet(frontend, backend, '\x12\x34\x00\x50....'), 6, [6, 0x1234, 80]],
      ['SCTP over IPv6', packet(frontend6, backend6, '\x12\x34\x00\x50....'), 132, [132, 0x1234, 80]],
      ['an echo', packet(frontend, backend, '\x08\x00..\x00\x09..'), 1, [1, 9, 8]],
      ['an answer to an echo', packet(frontend6, backend6, '\x7f\x00..\x00\x09..').fill(129, 40, 41), 58, [58, 128, 9]],
      ['another ICMP message', packet(frontend, backend, '\x0d\x00..\x00\x09..'), 1, undefined],
      ['another protocol', packet(frontend, backend, '........'), 47, undefined],
      ['IPv6 with a header between', packet(frontend6, backend6, '........'), 60, undefined],
      ['what is cut short', packet(frontend, backend, '\x12\x34'), 17, undefined],
    ] as const)('the flow of a packet, as the kernel names it: %s', (_, bytes, protocol, expected) => {
      bytes[bytes[0]! >> 4 === 4 ? 9 : 6] = protocol;
      const named = expected && { protocol: expected[0], localPort: expected[1], remotePort: expected[2] };
      expect(packetFlow(bytes)).toEqual(named);
    });
  });

  test('what was released to one owner of an address is not released to the next', () => {
    w.hold.release(frontend, backend);
    w.hold.forget(backend);
    w.hold.accept(packet(frontend, backend));
    expect(w.written).toEqual([]);
    expect(w.hold.waiting()).toHaveLength(1);
  });

  test('a packet still in the device when its pair was settled shares the outcome, but not for long', () => {
    w.hold.release(frontend, backend);
    w.advance(1199); // as long as the kernel may let others queue behind it
    w.hold.accept(packet(frontend, backend, 'late'));
    expect(w.written).toHaveLength(1);
    w.advance(1);
    w.hold.accept(packet(frontend, backend, 'later'));
    expect(w.hold.waiting()).toHaveLength(1);
    w.hold.refuse(frontend, backend, 'HOLD_REFUSED');
    w.hold.accept(packet(frontend, backend, 'late'));
    expect(w.dropped).toEqual(['HOLD_REFUSED', 'HOLD_REFUSED']);
    w.advance(101);
    w.hold.accept(packet(frontend, backend, 'new'));
    expect(w.hold.waiting()).toHaveLength(1);
  });

  test('a packet that waited to its deadline is dropped then, younger ones are not', () => {
    w.hold.accept(packet(frontend, backend, 'old'));
    w.advance(300);
    w.hold.accept(packet(frontend, backend, 'young'));
    w.advance(199);
    expect(w.dropped).toEqual([]);
    w.advance(2);
    expect(w.dropped).toEqual(['HOLD_DEADLINE']);
    expect(w.hold.release(frontend, backend)).toBe(1);
    expect(w.written.map((p) => p.subarray(20).toString())).toEqual(['young']);
    expect(w.left.get(300)).toBe(2);
  });

  test('with nothing waiting no timer runs', () => {
    w.hold.accept(packet(frontend, backend));
    w.advance(2000);
    expect(w.dropped).toEqual(['HOLD_DEADLINE']);
    expect(w.armed()).toBe(false);
  });

  test('neither one identity nor all together wait beyond their bounds', () => {
    for (let i = 0; i < 12; i++) w.hold.accept(packet(frontend, backend));
    expect(w.dropped).toEqual(['HOLD_FULL', 'HOLD_FULL']);
    w.hold.accept(packet(other, backend));
    expect(w.hold.waiting().map((p) => p.packets)).toEqual([10, 1]);
    const small = world({ limitTotal: 2 });
    for (let i = 0; i < 3; i++) small.hold.accept(packet(i === 0 ? other : frontend, backend));
    expect(small.dropped).toEqual(['HOLD_FULL']);
  });

  test('a packet of nobody on this node is dropped', () => {
    w.hold.accept(packet(backend, frontend));
    expect(w.dropped).toEqual(['NO_ENDPOINT']);
    expect(w.left).toEqual(new Map([[undefined, 1]]));
  });

  test("what the stack tells the device's own link about multicast is no packet of an endpoint that went", () => {
    w.hold.accept(packet(ip('::'), ip('ff02::16')));
    w.hold.accept(packet(ip('192.0.0.8'), ip('224.0.0.22')));
    expect(w.dropped).toEqual(['MEMBERSHIP', 'MEMBERSHIP']);
  });

  test('what an endpoint sent dies with it, and so does a release that was for it', () => {
    w.hold.accept(packet(frontend, backend));
    w.hold.release(frontend, other);
    w.hold.dropAddress(frontend);
    expect(w.dropped).toEqual(['NO_ENDPOINT']);
    w.hold.accept(packet(frontend, other)); // of the successor on this address
    expect(w.written).toEqual([]);
  });

  test('a device that takes nothing more is a drop, and is counted', () => {
    w.hold.accept(packet(frontend, backend));
    w.jam();
    w.hold.release(frontend, backend);
    expect(w.dropped).toEqual(['HOLD_FAILED']);
    expect(w.left.get(300)).toBe(1);
  });

  test('every packet that came in leaves exactly once, whatever happens', () => {
    const pair = fc.constantFrom([frontend, backend], [other, backend], [frontend, other], [frontend6, backend6]);
    const step = fc.oneof(
      pair.map(([a, b]) => ({ kind: 'accept', a: a!, b: b! }) as const),
      pair.map(([a, b]) => ({ kind: 'release', a: a!, b: b! }) as const),
      pair.map(([a, b]) => ({ kind: 'refuse', a: a!, b: b! }) as const),
      fc.integer({ min: 0, max: 700 }).map((ms) => ({ kind: 'advance', ms }) as const),
    );
    fc.assert(
      fc.property(fc.array(step, { maxLength: 200 }), (steps) => {
        const v = world({ limitTotal: 12, limitPerIdentity: 8 });
        let accepted = 0;
        for (const s of steps) {
          if (s.kind === 'accept') {
            v.hold.accept(packet(s.a, s.b));
            accepted++;
          } else if (s.kind === 'release') v.hold.release(s.a, s.b);
          else if (s.kind === 'refuse') v.hold.refuse(s.a, s.b, 'HOLD_REFUSED');
          else v.advance(s.ms);
          const waiting = v.hold.waiting().reduce((n, p) => n + p.packets, 0);
          const gone = [...v.left.values()].reduce((n, c) => n + c, 0);
          expect(waiting).toBeLessThanOrEqual(12);
          expect(gone + waiting).toBe(accepted);
          expect(v.written.length + v.dropped.length + waiting).toBe(accepted);
        }
        v.advance(2000);
        expect(v.hold.isEmpty()).toBe(true);
      }),
    );
  });
});

describe('addresses of a packet', () => {
  test('a header that contradicts the packet is refused', () => {
    const good = packet(frontend, backend, 'payload');
    expect(packetAddresses(good)).toEqual({ source: frontend, destination: backend });
    expect(packetAddresses(good.subarray(0, 19))).toBeUndefined();
    expect(packetAddresses(good.subarray(0, good.length - 1))).toBeUndefined();
    expect(packetAddresses(Buffer.concat([good, Buffer.alloc(1)]))).toBeUndefined();
    for (const first of [0x35, 0x44, 0x4f, 0x55, 0x00]) {
      const bad = Buffer.from(good);
      bad[0] = first;
      expect(packetAddresses(bad), first.toString(16)).toBeUndefined();
    }
    const six = packet(frontend6, backend6, 'payload');
    expect(packetAddresses(six)).toEqual({ source: frontend6, destination: backend6 });
    expect(packetAddresses(six.subarray(0, six.length - 1))).toBeUndefined();
  });

  test('an IPv4-mapped address inside IPv6 does not pass for the IPv4 endpoint', () => {
    const spoofed = packet(frontend6, backend6);
    spoofed.fill(0, 8, 24);
    spoofed.fill(0xff, 18, 20);
    addressWireBytes(frontend).copy(spoofed, 20);
    expect(packetAddresses(spoofed)).toBeUndefined();
  });

  test('no bytes make it throw', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 100 }), (bytes) => {
        const packet = Buffer.from(bytes);
        if (packetAddresses(packet) !== undefined) packetFlow(packet);
      }),
    );
  });
});
