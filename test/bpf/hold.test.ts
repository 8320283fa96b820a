/** The hold queue: bounded per identity and in all, in order, and what comes back is judged as if it were new. */
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { type Kernel, stamped, unavailable } from './support/kernel.ts';
import { ethernet, ip, ipPacket, tcp, udp } from './support/packets.ts';
import { A, allowBoth, B, EGRESS, families, makeWorld, R, settle } from './support/world.ts';

describe.skipIf(unavailable)('the hold queue', () => {
  let kernel: Kernel;
  beforeAll(() => {
    kernel = makeWorld();
  });
  beforeEach(() => {
    settle(kernel);
    allowBoth(kernel, 1);
  });
  afterAll(() => kernel?.close());

  const send = (packet: Buffer) => kernel.run('from_workload', ethernet(packet));
  const giveBack = (packet: Buffer, mark = 0) => kernel.run('from_hold', packet, { mark });
  const prove = () => kernel.auth({ local: A.identity, remote: R.identity, node: R.node });

  describe.each(families)('$name', (f) => {
    const packet = udp(f.a, f.r, 40000, 53);

    test('a packet that comes back after the proof passes with its endpoint’s stamp', () => {
      expect(send(packet).action).toBe('hold');
      prove();
      expect(giveBack(packet)).toEqual({ action: 'pass', mark: stamped(A.endpoint), reasons: [] });
    });

    test('one that comes back too early is dropped, never held again', () => {
      send(packet);
      expect(giveBack(packet)).toMatchObject({ action: 'drop', reasons: ['AUTH_REQUIRED'] });
      kernel.removeAddress(f.r);
      expect(giveBack(packet)).toMatchObject({ action: 'drop', reasons: ['NO_VOUCH'] });
    });

    test('a mark it brings along is worth nothing', () => {
      expect(giveBack(packet, stamped(A.endpoint))).toMatchObject({ action: 'drop', reasons: ['AUTH_REQUIRED'] });
    });

    test('policy counts as of now', () => {
      send(packet);
      prove();
      kernel.clear('cs_policy');
      expect(giveBack(packet)).toMatchObject({ action: 'drop', reasons: ['POLICY_DENIED'] });
    });

    test('it dies with its endpoint: fenced, gone, or replaced by another', () => {
      send(packet);
      prove();
      kernel.endpoint({ ...A, open: false });
      expect(giveBack(packet)).toMatchObject({ action: 'drop', reasons: ['FENCED'] });
      kernel.removeEndpoint();
      expect(giveBack(packet)).toMatchObject({ action: 'drop', reasons: ['INVALID_SOURCE_IP'] });
      kernel.endpoint({ endpoint: 9, identity: A.identity });
      expect(giveBack(packet)).toMatchObject({ action: 'drop', reasons: ['INVALID_SOURCE_IP'] });
      kernel.removeAddress(f.a);
      expect(giveBack(packet)).toMatchObject({ action: 'drop', reasons: ['INVALID_SOURCE_IP'] });
    });

    test('nobody else’s packets come out of the hold device', () => {
      for (const source of [f.r, f.nobody, f.host, f.world]) {
        expect(giveBack(udp(source, f.r, 1, 53))).toMatchObject({ action: 'drop', reasons: ['INVALID_SOURCE_IP'] });
      }
    });

    test('the limit of an identity holds; another identity is not concerned', () => {
      kernel.config({ hold_limit_identity: 3 });
      for (let i = 0; i < 3; i++) expect(send(udp(f.a, f.r, 40000 + i, 53)).action).toBe('hold');
      for (let i = 0; i < 3; i++) {
        expect(send(udp(f.a, f.r, 41000 + i, 53))).toMatchObject({ action: 'drop', reasons: ['HOLD_FULL'] });
      }
      expect(kernel.hold('cs_hold_taken', A.identity)).toBe(3n);
      expect(kernel.hold('cs_hold_taken', 0)).toBe(3n);

      kernel.endpoint({ endpoint: A.endpoint, identity: B.identity });
      kernel.policy({ local: B.identity, remote: R.identity, direction: EGRESS }, { auth: 1 });
      expect(send(packet).action).toBe('hold');
    });

    test('the limit over all holds', () => {
      kernel.config({ hold_limit_total: 2 });
      for (let i = 0; i < 2; i++) expect(send(udp(f.a, f.r, 40000 + i, 53)).action).toBe('hold');
      expect(send(packet).reasons).toEqual(['HOLD_FULL']);
      expect(kernel.hold('cs_hold_taken', A.identity)).toBe(2n);
    });

    test('what the agent returned is free again', () => {
      kernel.config({ hold_limit_identity: 1, hold_limit_total: 1 });
      expect(send(packet).action).toBe('hold');
      expect(send(packet).reasons).toEqual(['HOLD_FULL']);
      kernel.returnHeld(A.identity, 1n);
      expect(send(packet).reasons).toEqual(['HOLD_FULL']); // the total is still taken
      kernel.returnHeld(0, 1n);
      expect(send(packet).action).toBe('hold');
    });

    test('a limit of zero holds nothing', () => {
      kernel.config({ hold_limit_identity: 0 });
      expect(send(packet).reasons).toEqual(['HOLD_FULL']);
      expect(kernel.hold('cs_hold_taken', 0)).toBe(0n);
    });

    test('later packets of a flow queue behind the held ones, and the flow runs free when the last has come back', () => {
      for (let i = 0; i < 2; i++) expect(send(packet).action).toBe('hold');
      prove();
      expect(send(packet).action).toBe('hold'); // the third: must not overtake
      expect(giveBack(packet).action).toBe('pass');
      expect(giveBack(packet).action).toBe('pass');
      expect(send(packet).action).toBe('hold'); // the third still waits
      expect(giveBack(packet).action).toBe('pass');
      expect(kernel.flows()).toEqual([]);
      expect(giveBack(packet).action).toBe('pass');
      expect(kernel.flows()).toHaveLength(1);
      expect(send(packet)).toMatchObject({ action: 'pass', reasons: [] });
      expect(send(udp(f.a, f.r, 40001, 53)).action).toBe('pass');
    });

    test('packets the agent dropped do not keep a flow waiting', () => {
      expect(send(packet).action).toBe('hold');
      kernel.returnHeld(A.identity, 1n);
      prove();
      expect(send(packet).action).toBe('pass');
    });

    describe('a packet that stands for several', () => {
      const many = (gso: { gsoSize: number; gsoSegments?: number }, port = 53) =>
        kernel.run('from_workload', ethernet(udp(f.a, f.r, 40000, port)), gso);

      test('takes the room of all of them', () => {
        expect(many({ gsoSize: 1400, gsoSegments: 40 }).action).toBe('hold');
        expect(kernel.hold('cs_hold_taken', A.identity)).toBe(40n);
        expect(kernel.hold('cs_hold_taken', 0)).toBe(40n);
        expect(many({ gsoSize: 1400, gsoSegments: 45 }).action).toBe('hold');
        expect(many({ gsoSize: 1400, gsoSegments: 16 }).reasons).toEqual(['HOLD_FULL']);
        expect(many({ gsoSize: 1400, gsoSegments: 15 }).action).toBe('hold');
        expect(kernel.hold('cs_hold_taken', A.identity)).toBe(100n);
        expect(send(packet).reasons).toEqual(['HOLD_FULL']);
      });

      test('whose sender did not count them takes what its length can be cut into', () => {
        expect(many({ gsoSize: 10 }).action).toBe('hold');
        const length = BigInt(ethernet(packet).length);
        expect(kernel.hold('cs_hold_taken', A.identity)).toBe(length / 10n + 1n);
      });

      test('that is more than the limit alone is dropped, and takes nothing', () => {
        expect(many({ gsoSize: 1400, gsoSegments: 101 }).reasons).toEqual(['HOLD_FULL']);
        kernel.config({ hold_limit_total: 30 });
        expect(many({ gsoSize: 1400, gsoSegments: 31 }).reasons).toEqual(['HOLD_FULL']);
        expect(kernel.hold('cs_hold_taken', A.identity)).toBe(0n);
        expect(kernel.hold('cs_hold_taken', 0)).toBe(0n);
      });

      test('keeps its flow waiting until the last of them has come back', () => {
        expect(many({ gsoSize: 1400, gsoSegments: 3 }).action).toBe('hold');
        prove();
        for (let i = 0; i < 3; i++) {
          expect(send(packet).action).toBe('hold'); // behind it
          expect(giveBack(packet).action).toBe('pass');
        }
        for (let i = 0; i < 3; i++) expect(giveBack(packet).action).toBe('pass');
        expect(send(packet).action).toBe('pass');
      });
    });

    test('more returned than taken is an empty queue, not a full one', () => {
      kernel.config({ hold_limit_identity: 2, hold_limit_total: 2 });
      kernel.returnHeld(A.identity, 5n);
      kernel.returnHeld(0, 5n);
      for (let i = 0; i < 2; i++) expect(send(packet).action).toBe('hold');
      prove();
      expect(send(packet).action).toBe('pass'); // nothing waits, says the agent
    });

    test('a reply whose proof has run out is held like any packet that leaves', () => {
      prove();
      const request = kernel.run('to_workload', ethernet(tcp(f.r, f.a, 40000, 80)), { mark: 2 << 28 });
      expect(request.action).toBe('pass');
      kernel.clear('cs_auth');
      kernel.bump();
      const reply = tcp(f.a, f.r, 80, 40000, 0x12);
      expect(send(reply).action).toBe('hold');
      expect(giveBack(reply)).toMatchObject({ action: 'drop', reasons: ['AUTH_REQUIRED'] });
      prove();
      expect(giveBack(reply)).toMatchObject({ action: 'pass', mark: stamped(A.endpoint) });
    });
  });

  test('what is not understood is not held', () => {
    const [v4] = families;
    const unknown = ipPacket(v4!.a, v4!.r, 47, Buffer.alloc(32));
    expect(send(unknown)).toMatchObject({ action: 'drop', reasons: ['UNKNOWN_L4'] });
    expect(giveBack(unknown)).toMatchObject({ action: 'drop', reasons: ['UNKNOWN_L4'] });
    expect(giveBack(udp(ip('8.9.1.10'), v4!.r, 1, 2)).action).toBe('drop');
  });
});
