/** Mutual authentication as the kernel checks it: vouch, lease, proof, epoch, and the hold queue for what is missing. */
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { CFG_OBSERVE, CLASS_ASKS } from '../../src/datapath/layout.ts';
import { SLOW } from '../support/slow.ts';
import { type Kernel, MARK_TUNNEL, stamped, unavailable } from './support/kernel.ts';
import { ethernet, tcp, udp } from './support/packets.ts';
import { A, allowBoth, B, EGRESS, families, HOST, INGRESS, makeWorld, R, settle, WORLD } from './support/world.ts';

const SPIFFE = 1;
const ALWAYS_FAIL = 2;
/** Long enough for a few packets, short enough to wait for. */
const SOON_NS = 40_000_000n * BigInt(SLOW);

describe.skipIf(unavailable)('authentication', () => {
  let kernel: Kernel;
  beforeAll(() => {
    kernel = makeWorld();
  });
  beforeEach(() => {
    settle(kernel);
    allowBoth(kernel, SPIFFE);
  });
  afterAll(() => kernel?.close());

  const dropsWith = (reason: string) => ({ action: 'drop', reasons: [reason] });

  describe.each(families)('$name', (f) => {
    const send = () => kernel.run('from_workload', ethernet(udp(f.a, f.r, 40000, 53)));
    const receive = () => kernel.run('to_workload', ethernet(udp(f.r, f.a, 40000, 53)), { mark: MARK_TUNNEL });
    /** As the agent does: nothing of A waits any more once the proof is written. */
    const prove = (value = {}) => {
      kernel.auth({ local: A.identity, remote: R.identity, node: R.node }, value);
      kernel.returnHeld(A.identity, kernel.hold('cs_hold_taken', A.identity));
    };

    test('a proof for the pair and the node lets packets pass, both ways', () => {
      prove();
      expect(send()).toMatchObject({ action: 'pass', mark: stamped(A.endpoint) });
      expect(receive().action).toBe('pass');
    });

    test('with and without the class’s hint that it asks for proofs, the same is decided', () => {
      const plain = { local: [A.identity, A.identity], remote: [A.identity, A.identity], portBits: [1, 1] } as const;
      const hinted = { ...plain, portBits: [(1 | CLASS_ASKS) >>> 0, (1 | CLASS_ASKS) >>> 0] } as const;
      const values = [undefined, {}, { expires: 1n }, { epoch: 0 }, { refused: true }, { refused: true, expires: 1n }];
      for (const value of values) {
        const seen = [plain, hinted].map((row) => {
          kernel.clear('cs_auth');
          kernel.clear('cs_flows');
          kernel.config({ hold_ifindex: 0 });
          kernel.classRow(A.identity, row);
          if (value !== undefined) prove(value);
          return [send(), receive()];
        });
        expect(seen[0]).toEqual(seen[1]);
      }
      // A hint where nothing asks, and for somebody who has no SVID, changes nothing.
      allowBoth(kernel, 0);
      kernel.policy({ local: A.identity, direction: EGRESS });
      kernel.classRow(A.identity, hinted);
      kernel.clear('cs_auth');
      for (const remote of [f.r, f.host, f.world, f.b]) {
        expect(kernel.run('from_workload', ethernet(udp(f.a, remote, 7, 53))).action).toBe('pass');
      }
    });

    test('without it, what leaves is held and what comes in is dropped', () => {
      expect(send()).toMatchObject({ action: 'hold', reasons: [] });
      expect(receive()).toMatchObject(dropsWith('AUTH_REQUIRED'));
    });

    test.each([
      ['the other direction of the pair', { local: R.identity, remote: A.identity, node: R.node }],
      ['another local identity', { local: B.identity, remote: R.identity, node: R.node }],
      ['another remote identity', { local: A.identity, remote: R.identity + 1, node: R.node }],
      ['another node', { local: A.identity, remote: R.identity, node: R.node + 1 }],
      ['this node', { local: A.identity, remote: R.identity, node: 0 }],
    ])('a proof for %s does not count', (_, key) => {
      kernel.auth(key);
      expect(send().action).toBe('hold');
      expect(receive()).toMatchObject(dropsWith('AUTH_REQUIRED'));
    });

    test('an expired proof is none', () => {
      prove({ expires: kernel.now() - 1n });
      expect(send().action).toBe('hold');
      expect(receive()).toMatchObject(dropsWith('AUTH_EXPIRED'));
    });

    test('a proof ends to the nanosecond, also for the flow it let pass', () => {
      const end = kernel.now() + SOON_NS;
      prove({ expires: end });
      expect(send().action).toBe('pass');
      while (kernel.now() < end);
      expect(send().action).toBe('hold');
    });

    test('a refused pair drops at once, also a flow that was proven before, and none of it is held', () => {
      prove();
      expect(send().action).toBe('pass');
      const until = kernel.now() + SOON_NS;
      kernel.auth({ local: A.identity, remote: R.identity, node: R.node }, { refused: true, expires: until });
      kernel.bump();
      const taken = kernel.hold('cs_hold_taken', A.identity);
      expect(send()).toMatchObject(dropsWith('AUTH_REFUSED'));
      expect(receive()).toMatchObject(dropsWith('AUTH_REFUSED'));
      expect(kernel.hold('cs_hold_taken', A.identity)).toBe(taken);
      while (kernel.now() < until);
      // The time is over: the next packet asks again.
      expect(send().action).toBe('hold');
    });

    test('a proof of an earlier epoch is none', () => {
      kernel.config({ epoch: 2 });
      prove({ epoch: 1 });
      expect(send().action).toBe('hold');
      expect(receive()).toMatchObject(dropsWith('AUTH_EPOCH'));
      prove({ epoch: 2 });
      expect(send().action).toBe('pass');
    });

    test('an address that nobody vouches for is held going out and dropped coming in', () => {
      prove();
      kernel.removeAddress(f.r);
      expect(send().action).toBe('hold');
      expect(receive()).toMatchObject(dropsWith('NO_VOUCH'));
    });

    test('a lease that has run out is the same', () => {
      prove();
      kernel.address(f.r, { ...R, lease: kernel.now() - 1n });
      expect(send().action).toBe('hold');
      expect(receive()).toMatchObject(dropsWith('LEASE_EXPIRED'));
    });

    test('a lease’s end also ends the flows that rest on it', () => {
      prove();
      const end = kernel.now() + SOON_NS;
      kernel.address(f.r, { ...R, lease: end });
      expect(send().action).toBe('pass');
      expect(receive().action).toBe('pass');
      while (kernel.now() < end);
      expect(receive()).toMatchObject(dropsWith('LEASE_EXPIRED'));
      expect(send().action).toBe('hold');
    });

    test('with no hold device what leaves is dropped with its reason', () => {
      kernel.config({ hold_ifindex: 0 });
      expect(send()).toMatchObject(dropsWith('AUTH_REQUIRED'));
      prove({ expires: 1n });
      expect(send()).toMatchObject(dropsWith('AUTH_EXPIRED'));
      kernel.removeAddress(f.r);
      expect(send()).toMatchObject(dropsWith('NO_VOUCH'));
    });

    test('test-always-fail fails at once, proof or not', () => {
      allowBoth(kernel, ALWAYS_FAIL);
      prove();
      expect(send()).toMatchObject(dropsWith('AUTH_ALWAYS_FAIL'));
      expect(receive()).toMatchObject(dropsWith('AUTH_ALWAYS_FAIL'));
    });

    test('an auth type this program does not know fails', () => {
      allowBoth(kernel, 9);
      prove();
      expect(send()).toMatchObject(dropsWith('AUTH_ALWAYS_FAIL'));
    });

    test.each([
      ['the host', 'host', HOST],
      ['the world', 'world', WORLD],
    ] as const)('%s holds no SVID: required never lets it pass and nothing is held', (_, who, identity) => {
      kernel.policy({ local: A.identity, remote: identity, direction: EGRESS }, { auth: SPIFFE });
      kernel.policy({ local: A.identity, remote: identity, direction: INGRESS }, { auth: SPIFFE });
      kernel.auth({ local: A.identity, remote: identity, node: 0 });
      expect(kernel.run('from_workload', ethernet(udp(f.a, f[who], 1, 53)))).toMatchObject(
        dropsWith('AUTH_NOT_A_WORKLOAD'),
      );
      expect(kernel.run('to_workload', ethernet(udp(f[who], f.a, 1, 53)))).toMatchObject(
        dropsWith('AUTH_NOT_A_WORKLOAD'),
      );
    });

    test('a pair on one node needs its proof for node 0', () => {
      kernel.policy({ local: A.identity, remote: B.identity, direction: EGRESS }, { auth: SPIFFE });
      const packet = ethernet(udp(f.a, f.b, 40000, 53));
      expect(kernel.run('from_workload', packet).action).toBe('hold');
      kernel.auth({ local: A.identity, remote: B.identity, node: 0 });
      kernel.returnHeld(A.identity, 1n);
      expect(kernel.run('from_workload', packet).action).toBe('pass');
    });

    test('revoking means: entry deleted, revision raised; the next packet of the running flow is judged anew', () => {
      prove();
      expect(kernel.run('from_workload', ethernet(tcp(f.a, f.r, 40000, 80))).action).toBe('pass');
      const reply = ethernet(tcp(f.r, f.a, 80, 40000, 0x12));
      expect(kernel.run('to_workload', reply, { mark: MARK_TUNNEL }).action).toBe('pass');
      kernel.clear('cs_auth');
      kernel.bump();
      expect(kernel.run('to_workload', reply, { mark: MARK_TUNNEL })).toMatchObject(dropsWith('AUTH_REQUIRED'));
      expect(kernel.run('from_workload', ethernet(tcp(f.a, f.r, 40000, 80, 0x10))).action).toBe('hold');
    });

    test('observe mode lets a refused pair pass too', () => {
      kernel.config({ flags: CFG_OBSERVE });
      prove({ refused: true });
      expect(send()).toMatchObject({ action: 'pass', reasons: [], observed: ['AUTH_REFUSED'] });
    });

    test('observe mode lets it pass, counted and told', async () => {
      kernel.config({ flags: CFG_OBSERVE });
      await kernel.drainEvents();
      expect(send()).toEqual({
        action: 'pass',
        mark: stamped(A.endpoint),
        reasons: [],
        observed: ['AUTH_REQUIRED'],
      });
      expect(receive()).toMatchObject({ action: 'pass', reasons: [], observed: ['AUTH_REQUIRED'] });
      expect(await kernel.drainEvents()).toMatchObject([
        { kind: 5, reason: 128, direction: EGRESS, held: 0 },
        // So that the agent tries the authentication.
        { kind: 2, reason: 0, direction: EGRESS, held: 0 },
        { kind: 5, reason: 128, direction: INGRESS, held: 0 },
        { kind: 2, reason: 0, direction: INGRESS, held: 0 },
      ]);
    });
  });
});
