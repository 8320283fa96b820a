/** What a stack sends as one and the wire carries as many: how it waits in the hold queue, and what the queue's count makes of it. */
import { createInterface } from 'node:readline';
import { afterAll, beforeAll, beforeEach, describe, expect, test, vi } from 'vitest';
import { native } from '../../native/index.ts';
import { readPinned } from '../../src/datapath/pinned.ts';
import { parseAddress, parsePrefix } from '../../src/model/address.ts';
import type { PolicyTables } from '../../src/model/datapath.ts';
import {
  IDENTITY_HOST,
  IDENTITY_REMOTE_NODE,
  IDENTITY_WORLD,
  LOCAL_NODE,
  securityIdentity,
} from '../../src/model/ids.ts';
import { SLOW } from '../support/slow.ts';
import { DatapathClient } from './support/datapath-client.ts';
import { NODE, Pair, workloads } from './support/pair.ts';

const v6 = { a: parseAddress('fd83:1::2')!, b: parseAddress('fd83:2::2')! };
const a = { v4: workloads.a.address, v6: v6.a };
const b = { v4: workloads.b.address, v6: v6.b };
const PORT = 9001;
const soon = { timeout: 3000 * SLOW, interval: 10 };

/** Everything between the two needs a proof. */
const policy: PolicyTables = {
  classes: [workloads.a.identity, workloads.b.identity, IDENTITY_HOST, IDENTITY_WORLD, IDENTITY_REMOTE_NODE].map(
    (identity) => {
      const both = { egress: identity, ingress: identity };
      return { identity, local: both, remote: both, portBits: { egress: 1, ingress: 1 } };
    },
  ),
  entries: (
    [
      [workloads.a.identity, workloads.b.identity, 'egress'],
      [workloads.b.identity, workloads.a.identity, 'ingress'],
    ] as const
  ).map(([local, remote, direction]) => ({
    local,
    remote,
    direction,
    protocol: 0,
    port: 0,
    portBits: 0,
    verdict: 'allow',
    authType: 'spiffe',
    rule: 1,
  })),
  cidrs: [],
  host: { egress: false, ingress: false },
};

describe('packets that stand for several', () => {
  let pair: Pair;
  let datapath: DatapathClient;
  /** What arrived: "first byte, length" of each datagram. */
  const arrived: string[] = [];

  beforeAll(async () => {
    pair = new Pair('gso');
    const { spaces } = pair;
    spaces.exec('node', 'sysctl -qw net.ipv6.conf.all.forwarding=1');
    for (const [n, name] of [
      [1, 'a'],
      [2, 'b'],
    ] as const) {
      // Larger than what the tunnel or a network would take: the hold device must not be what refuses a packet.
      spaces.exec('node', `ip link set dev v-${name} mtu 9000; ip addr add fd83:${n}::1/64 dev v-${name} nodad`);
      spaces.exec(
        name,
        `ip link set dev eth0 mtu 9000; ip addr add fd83:${n}::2/64 dev eth0 nodad; ip -6 route add default via fd83:${n}::1`,
      );
    }
    for (const address of [b.v4, b.v6]) {
      const receiver = spaces.spawn('b', [
        'python3',
        '-c',
        `import socket
s = socket.socket(socket.AF_INET6 if ':' in '${address}' else socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
s.bind(('${address}', ${PORT}))
while True:
  data = s.recv(70000)
  print(data[0], len(data), flush=True)`,
      ]);
      createInterface({ input: receiver.stdout! }).on('line', (line) => arrived.push(line));
    }
    await vi.waitFor(() => expect(spaces.exec('b', 'ss -lun').match(/:9001/g)).toHaveLength(2), soon);
    datapath = await DatapathClient.start(spaces, 'node', options());
    await datapath.call('setPrefixes', [
      { prefix: parsePrefix('10.83.0.0/16')!, identity: securityIdentity(2), cluster: true },
      { prefix: parsePrefix('fd83::/16')!, identity: securityIdentity(2), cluster: true },
    ]);
    await datapath.call('setPolicy', policy);
    for (const name of ['a', 'b'] as const) {
      const endpoint = pair.endpoint(name);
      await datapath.call('putEndpoint', { ...endpoint, addresses: [...endpoint.addresses, v6[name]] });
    }
  });
  afterAll(async () => {
    await datapath?.kill();
    pair?.close();
  });

  const options = () => pair.options({ holdLimitPerIdentity: 64, holdLimitTotal: 100, holdDeadlineMs: 2000 * SLOW });
  const proof = (local: number, remote: number) => ({
    local: securityIdentity(local),
    remote: securityIdentity(remote),
    remoteNode: LOCAL_NODE,
    authType: 'spiffe' as const,
    expiresAtNs: native().bootTimeNs() + 60_000_000_000n,
    epoch: readPinned(pair.spaces.bpffs, NODE).epoch,
  });
  const both = () => [
    proof(workloads.b.identity, workloads.a.identity),
    proof(workloads.a.identity, workloads.b.identity),
  ];
  const taken = async () => (await datapath.call('held')).taken;
  /** One system call: `count` datagrams of `size` bytes, which leave the workload as one packet if they are more than one. */
  const send = (to: string, count: number, size: number) =>
    pair.spaces.exec(
      'a',
      `python3 -c "
import socket
s = socket.socket(socket.AF_INET6 if ':' in '${to}' else socket.AF_INET, socket.SOCK_DGRAM)
s.bind(('', 40000))
if ${count} > 1: s.setsockopt(socket.SOL_UDP, 103, ${size})
s.sendto(b''.join(bytes([i]) * ${size} for i in range(${count})), ('${to}', ${PORT}))
"`,
    );
  const waiting = async () => (await datapath.call('hold.waiting')).reduce((sum, pair) => sum + pair.packets, 0);

  // An outcome goes on for a while, for packets of its pair that were still on the way.
  beforeEach(async () => {
    arrived.length = 0;
    await datapath.call('auth.delete', both());
    await new Promise((resolve) => setTimeout(resolve, 1300));
  });

  test.each([
    ['IPv4', a.v4, b.v4],
    ['IPv6', a.v6, b.v6],
  ])('over %s they wait as what they are cut into, and arrive in their order', async (_family, from, to) => {
    const before = await taken();
    send(to, 40, 1000);
    await vi.waitFor(async () => expect(await waiting()).toBe(40), soon);
    expect((await taken()) - before).toBe(40n);
    for (const entry of both()) await datapath.call('auth.put', entry);
    expect(await datapath.call('hold.release', from, to)).toBe(40);
    await vi.waitFor(() => expect(arrived).toHaveLength(40), soon);
    expect(arrived).toEqual(Array.from({ length: 40 }, (_, i) => `${i} 1000`));
    expect(await waiting()).toBe(0);
  });

  test('one that has no room as a whole is dropped as a whole, and the count of the queue comes back to nothing', async () => {
    const before = await taken();
    const drops = async () =>
      (await datapath.call('drops')).find((d) => d.reason === 'HOLD_FULL' && d.direction === 'egress')?.packets ?? 0n;
    const full = await drops();
    send(b.v4, 40, 1000);
    await vi.waitFor(async () => expect(await waiting()).toBe(40), soon);
    send(b.v4, 30, 1000);
    await vi.waitFor(async () => expect(await drops()).toBe(full + 1n), soon);
    send(b.v4, 24, 1000);
    await vi.waitFor(async () => expect(await waiting()).toBe(64), soon);
    expect((await taken()) - before).toBe(64n);
    expect(await datapath.call('hold.refuse', a.v4, b.v4, 'HOLD_REFUSED')).toBe(64);
    // Room for everything again.
    await new Promise((resolve) => setTimeout(resolve, 200));
    send(b.v4, 40, 1000);
    await vi.waitFor(async () => expect(await waiting()).toBe(40), soon);
    await datapath.call('hold.refuse', a.v4, b.v4, 'HOLD_REFUSED');
  });

  test.each([
    ['IPv4', a.v4, b.v4],
    ['IPv6', a.v6, b.v6],
  ])(
    'over %s a packet as large as its interface takes, and the fragments of a larger one, arrive whole',
    async (_, from, to) => {
      send(to, 1, 8900);
      send(to, 1, 30_000);
      await vi.waitFor(async () => expect(await waiting()).toBe(5), soon);
      for (const entry of both()) await datapath.call('auth.put', entry);
      expect(await datapath.call('hold.release', from, to)).toBe(5);
      await vi.waitFor(() => expect(arrived).toEqual(['0 8900', '0 30000']), soon);
    },
  );

  test('what waits when its process dies goes nowhere, and the next one counts it as lost', async () => {
    send(b.v4, 20, 1000);
    await vi.waitFor(async () => expect(await waiting()).toBe(20), soon);
    await datapath.kill();
    send(b.v4, 4, 1000); // there is no device to hold it any more
    datapath = await DatapathClient.start(pair.spaces, 'node', options());
    const lost = (await datapath.call('drops')).find((d) => d.reason === 'HOLD_LOST');
    expect(lost).toMatchObject({ packets: 24n, direction: 'egress' });
    for (const entry of both()) await datapath.call('auth.put', entry);
    send(b.v4, 2, 500);
    await vi.waitFor(() => expect(arrived).toEqual(['0 500', '1 500']), soon);
  });
});
