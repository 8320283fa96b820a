/** VLAN tags that the kernel took off the frame before a program sees it, as every receiving device does. */
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { ethernet, ip, udp } from '../bpf/support/packets.ts';
import { SLOW } from '../support/slow.ts';
import { DatapathClient } from './support/datapath-client.ts';
import { Pair, PORTS, policyOf, prefixes, workloads } from './support/pair.ts';

const Q = 0x8100;
const AD = 0x88a8;
const { a, b } = workloads;
/** In a cluster prefix, and nobody's. */
const elsewhere = ip('10.83.9.9');
const stacks = [
  ['one tag', [{ type: Q, vlan: 5 }]],
  ['a service tag', [{ type: AD, vlan: 5 }]],
  [
    'two tags',
    [
      { type: AD, vlan: 5 },
      { type: Q, vlan: 6 },
    ],
  ],
] as const;

describe('VLAN tags beside the frame', () => {
  let pair: Pair;
  let datapath: DatapathClient;

  beforeAll(async () => {
    pair = new Pair('vlan');
    datapath = await DatapathClient.start(pair.spaces, 'node', pair.options());
    await datapath.call('setPrefixes', prefixes);
    await datapath.call('setPolicy', policyOf(PORTS.allowed));
    for (const name of ['a', 'b'] as const) await datapath.call('putEndpoint', pair.endpoint(name));
    await datapath.call('attachUnderlay', pair.ifindex('u0'));
  });
  afterAll(async () => {
    await datapath?.kill();
    pair?.close();
  });

  const send = (ns: string, device: string, frame: Buffer) =>
    pair.spaces.exec(
      ns,
      `python3 -c "
import socket
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind(('${device}', 0))
try: s.send(bytes.fromhex('${frame.toString('hex')}'))
except OSError as error:
  if error.errno != 105: raise # ENOBUFS: a program dropped it on its way out"`,
    );
  /** Packets dropped so far, by "reason direction"; reasons that the stacks' own chatter makes are left out. */
  const drops = async () =>
    Object.fromEntries(
      (await datapath.call('drops'))
        .filter(({ reason }) => ['VLAN', 'UNENCRYPTED', 'NOT_STAMPED', 'POLICY_DENIED'].includes(reason))
        .map(({ reason, direction, packets }) => [`${reason} ${direction}`, packets]),
    );
  const counted = async (before: Record<string, bigint>, what: string) =>
    vi.waitFor(async () => expect(await drops()).toEqual({ ...before, [what]: (before[what] ?? 0n) + 1n }), {
      timeout: 2000 * SLOW,
    });

  test('an untagged frame of the same kind is not what drops', async () => {
    const before = await drops();
    send('a', 'eth0', ethernet(udp(a.address, b.address, 1, PORTS.allowed)));
    send('a', 'eth0', ethernet(udp(a.address, b.address, 1, PORTS.never)));
    await counted(before, 'POLICY_DENIED egress');
  });

  test.each(stacks)('a workload’s frame with %s is dropped', async (_, tags) => {
    const before = await drops();
    send('a', 'eth0', ethernet(udp(a.address, b.address, 1, PORTS.allowed), { tags }));
    await counted(before, 'VLAN egress');
  });

  test.each(stacks)('%s hides no address on the underlay', async (_, tags) => {
    const before = await drops();
    send('node', 'u1', ethernet(udp(elsewhere, a.address, 1, PORTS.allowed), { tags }));
    await counted(before, 'UNENCRYPTED ingress');
    const between = await drops();
    send('node', 'u1', ethernet(udp(b.address, a.address, 1, PORTS.allowed), { tags }));
    await counted(between, 'NOT_STAMPED ingress');
    const then = await drops();
    send('node', 'u0', ethernet(udp(a.address, elsewhere, 1, PORTS.allowed), { tags }));
    await counted(then, 'NOT_STAMPED egress');
  });

  test('three tags are not read through', async () => {
    const before = await drops();
    const tags = [AD, Q, Q].map((type) => ({ type, vlan: 7 }));
    send('node', 'u1', ethernet(udp(elsewhere, a.address, 1, PORTS.allowed), { tags }));
    await counted(before, 'VLAN ingress');
  });
});
