/** VLAN tags: none on a workload's interface; on the underlay they hide nobody's address. */
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { CFG_ALLOW_UNBOUND } from '../../src/datapath/layout.ts';
import { type Kernel, stamped, unavailable } from './support/kernel.ts';
import { ethernet, udp } from './support/packets.ts';
import { A, EGRESS, families, INGRESS, makeWorld, settle } from './support/world.ts';

const Q = 0x8100; // IEEE 802.1Q
const AD = 0x88a8; // IEEE 802.1ad
const stacks = [
  ['one tag', [{ type: Q, vlan: 100 }]],
  ['a service tag', [{ type: AD, vlan: 100 }]],
  [
    'two tags',
    [
      { type: AD, vlan: 100 },
      { type: Q, vlan: 200 },
    ],
  ],
  [
    'two customer tags',
    [
      { type: Q, vlan: 100 },
      { type: Q, vlan: 200 },
    ],
  ],
  ['a tag of priority alone', [{ type: Q, vlan: 0xe000 }]],
] as const;

describe.skipIf(unavailable)('VLAN tags', () => {
  let kernel: Kernel;
  beforeAll(() => {
    kernel = makeWorld();
  });
  beforeEach(() => {
    settle(kernel);
    kernel.policy({ local: A.identity, direction: EGRESS });
    kernel.policy({ local: A.identity, direction: INGRESS });
  });
  afterAll(() => kernel?.close());

  describe.each(families)('$name', (f) => {
    describe.each(stacks)('%s', (_, tags) => {
      test('on a workload’s interface is dropped in both directions, also in a running flow', () => {
        expect(kernel.run('from_workload', ethernet(udp(f.a, f.r, 1, 53))).action).toBe('pass');
        const vlan = { action: 'drop', reasons: ['VLAN'] };
        expect(kernel.run('from_workload', ethernet(udp(f.a, f.r, 1, 53), { tags }))).toMatchObject(vlan);
        expect(kernel.run('to_workload', ethernet(udp(f.r, f.a, 53, 1), { tags }))).toMatchObject(vlan);
      });

      test('on the underlay lets no workload’s address in or out in clear', () => {
        const clear = (from: typeof f.a, to: typeof f.a) => ethernet(udp(from, to, 1, 53), { tags });
        const unencrypted = { action: 'drop', reasons: ['UNENCRYPTED'] };
        expect(kernel.run('from_netdev', clear(f.r, f.a))).toMatchObject(unencrypted);
        expect(kernel.run('from_netdev', clear(f.nobody, f.a))).toMatchObject(unencrypted);
        expect(kernel.run('from_netdev', clear(f.b, f.a)).reasons).toEqual(['NOT_STAMPED']);
        expect(kernel.run('to_netdev', clear(f.a, f.r), { mark: stamped(A.endpoint) })).toMatchObject(unencrypted);
        expect(kernel.run('to_netdev', clear(f.a, f.world)).reasons).toEqual(['NOT_STAMPED']);
      });

      test('on the underlay does not stop what may pass', () => {
        const node = ethernet(udp(f.remoteNode, f.host, 1, 53), { tags });
        expect(kernel.run('from_netdev', node)).toMatchObject({ action: 'pass', mark: 0 });
        expect(kernel.run('to_netdev', ethernet(udp(f.host, f.remoteNode, 1, 53), { tags })).action).toBe('pass');
        kernel.config({ flags: CFG_ALLOW_UNBOUND });
        const bound = kernel.run('from_netdev', ethernet(udp(f.r, f.a, 1, 53), { tags }));
        expect(bound).toMatchObject({ action: 'pass', mark: (3 << 28) >>> 0 });
      });
    });

    test('more tags than two are not looked behind: nothing passes', () => {
      const tags = [Q, Q, Q].map((type, vlan) => ({ type, vlan }));
      const packet = ethernet(udp(f.remoteNode, f.host, 1, 53), { tags });
      expect(kernel.run('from_netdev', packet)).toMatchObject({ action: 'drop', reasons: ['VLAN'] });
      expect(kernel.run('to_netdev', packet)).toMatchObject({ action: 'drop', reasons: ['VLAN'] });
    });

    test('a packet cut behind its tags is dropped', () => {
      const tags = [{ type: Q, vlan: 1 }];
      const whole = ethernet(udp(f.r, f.a, 1, 53), { tags });
      for (let length = 60; length < whole.length; length++) {
        const verdict = kernel.run('from_netdev', whole.subarray(0, length));
        expect(verdict.action, `${length}`).toBe('drop');
      }
    });
  });

  test('a tagged frame that carries no IP is none of ours', () => {
    const arp = ethernet(Buffer.alloc(60), { type: 0x0806, tags: [{ type: Q, vlan: 5 }] });
    expect(kernel.run('from_netdev', arp).action).toBe('pass');
    expect(kernel.run('to_netdev', arp).action).toBe('pass');
  });
});
