/** Two workloads on one node, real veths, the real datapath: what passes, what waits, what drops and why; also without an agent. */
import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, describe, expect, test, vi } from 'vitest';
import { native } from '../../native/index.ts';
import type { AttachMode, AttachSetting } from '../../src/datapath/attach.ts';
import { readPinned } from '../../src/datapath/pinned.ts';
import { parseAddress, parsePrefix } from '../../src/model/address.ts';
import type { AuthEntry, DropCount, EndpointAttachment, PolicyEntry, PolicyTables } from '../../src/model/datapath.ts';
import {
  IDENTITY_HOST,
  IDENTITY_REMOTE_NODE,
  IDENTITY_WORLD,
  type IpAddress,
  LOCAL_NODE,
  securityIdentity,
} from '../../src/model/ids.ts';
import { SLOW } from '../support/slow.ts';
import { DatapathClient } from './support/datapath-client.ts';
import { Capture, Namespaces } from './support/namespaces.ts';

const objectPath = join(import.meta.dirname, '../../build/bpf/datapath.bpf.o');
const ip = (text: string) => parseAddress(text)!;
const a = { v4: ip('10.77.1.2'), v6: ip('fd77:1::2'), identity: securityIdentity(300), endpoint: 1 };
const b = { v4: ip('10.77.2.2'), v6: ip('fd77:2::2'), identity: securityIdentity(301), endpoint: 2 };

const second = 1_000_000_000n;
const soon = { timeout: 1000 * SLOW };

/** Each identity in a class of its own, under its own number. */
function tables(entries: readonly PolicyEntry[]): PolicyTables {
  const classes = [a.identity, b.identity, IDENTITY_HOST, IDENTITY_WORLD, IDENTITY_REMOTE_NODE].map((identity) => {
    const both = { egress: identity, ingress: identity };
    return { identity, local: both, remote: both, portBits: { egress: 1, ingress: 1 } };
  });
  return { classes, entries, cidrs: [], host: { egress: false, ingress: false } };
}

function pairPolicy(authType: PolicyEntry['authType'], observed?: PolicyEntry['observed']): PolicyTables {
  const any = { protocol: 0, port: 0, portBits: 0, verdict: 'allow', authType, rule: 1 } as const;
  const entry = observed === undefined ? any : { ...any, observed };
  return tables([
    { ...entry, local: a.identity, remote: b.identity, direction: 'egress' },
    { ...entry, local: b.identity, remote: a.identity, direction: 'ingress' },
  ]);
}

function proof(local: typeof a, remote: typeof a, epoch: number, seconds = 60n): AuthEntry {
  return {
    local: local.identity,
    remote: remote.identity,
    remoteNode: LOCAL_NODE,
    authType: 'spiffe',
    expiresAtNs: native().bootTimeNs() + seconds * second,
    epoch,
  };
}

function packetsOf(drops: readonly DropCount[], reason: string, direction = 'egress'): bigint {
  return drops.find((d) => d.reason === reason && d.direction === direction)?.packets ?? 0n;
}

/** What the agent would choose by itself, and clsact where that is not it. */
const attachments: readonly (readonly [AttachMode, AttachSetting])[] = native().tcxSupported()
  ? [
      ['tcx', 'auto'],
      ['clsact', 'clsact'],
    ]
  : [['clsact', 'auto']];

describe.each(attachments)('datapath by %s', (mode, attach) => {
  let spaces: Namespaces;
  let datapath: DatapathClient;
  let endpoints: EndpointAttachment[];
  const captures: Capture[] = [];

  const open = () =>
    DatapathClient.start(spaces, 'node', {
      node: 'node-a.test',
      bpffs: spaces.bpffs,
      objectPath,
      holdDevice: 'cs-hold0',
      holdLimitPerIdentity: 16,
      holdLimitTotal: 64,
      holdDeadlineMs: 1500 + 500 * (SLOW - 1),
      signalIntervalMs: 100,
      peerPort: 4250,
      allowUnboundPath: false,
      observe: false,
      attach,
      mapSizes: { cs_flows: 4096 },
    });
  const capture = async (ns: string, filter: string) => {
    const started = new Capture(spaces, ns, 'eth0', filter);
    captures.push(started);
    await started.ready;
    return started;
  };
  const ping = (to: string, seconds = 1) => spaces.succeeds('a', `ping -n -c1 -W${seconds} ${to} >/dev/null`);
  /** A TCP connection a → b, made in the background. Resolves to its milliseconds. */
  const connect = (to: string, timeoutMs = 5000 * SLOW): Promise<number> =>
    new Promise((resolve, reject) => {
      const script = `const t = performance.now(); require('net').connect(8080, '${to}').on('connect', () => {
        console.log(performance.now() - t); process.exit(0); }).on('error', (e) => { console.error(e.code); process.exit(1); });
        setTimeout(() => process.exit(2), ${timeoutMs});`;
      const child = spawn('nsenter', [`--net=/run/netns/${spaces.full('a')}`, process.execPath, '-e', script]);
      let out = '';
      child.stdout.on('data', (data) => {
        out += data;
      });
      child.once('exit', (status) => (status === 0 ? resolve(Number(out)) : reject(new Error(`exit ${status}`))));
    });
  const authenticate = async (seconds = 60n) => {
    const { epoch } = readPinned(spaces.bpffs, 'node-a.test');
    await datapath.call('auth.put', proof(b, a, epoch, seconds));
    await datapath.call('auth.put', proof(a, b, epoch, seconds));
  };
  /** Lets one packet of the pair wait, which it does not while an earlier outcome of the pair still goes. */
  const holdOne = (from: IpAddress, to: IpAddress) =>
    vi.waitFor(
      async () => {
        spaces.succeeds('a', `ping -n -c1 -W0.02 ${to} >/dev/null`);
        expect(await datapath.call('hold.waiting')).toContainEqual(
          expect.objectContaining({ local: from, remote: to, packets: 1 }),
        );
      },
      { timeout: 4000 * SLOW, interval: 20 },
    );
  const forget = async () => {
    await datapath.call('auth.delete', [proof(a, b, 0), proof(b, a, 0)]);
  };

  beforeAll(async () => {
    spaces = new Namespaces('dp');
    for (const ns of ['node', 'a', 'b']) spaces.add(ns);
    spaces.mountBpffs();
    spaces.exec(
      'node',
      'sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.conf.all.rp_filter=1',
    );
    for (const [name, workload, n] of [
      ['a', a, 1],
      ['b', b, 2],
    ] as const) {
      spaces.exec('node', `ip link add veth-${name} type veth peer name eth0 netns ${spaces.full(name)}`);
      spaces.exec(
        'node',
        `ip addr add 10.77.${n}.1/24 dev veth-${name}; ip addr add fd77:${n}::1/64 dev veth-${name} nodad; ip link set dev veth-${name} up`,
      );
      spaces.exec(
        name,
        `ip link set dev eth0 up; ip addr add ${workload.v4}/24 dev eth0; ip addr add ${workload.v6}/64 dev eth0 nodad;
         ip route add default via 10.77.${n}.1; ip -6 route add default via fd77:${n}::1`,
      );
    }
    spaces.spawn('b', [
      process.execPath,
      '-e',
      "require('net').createServer((s) => s.on('error', () => {})).listen(8080, '::')",
    ]);
    await vi.waitFor(() => expect(spaces.exec('b', 'ss -ltn')).toContain(':8080'), soon);
    datapath = await open();
    const index = (name: string) =>
      native().withNetns(`/run/netns/${spaces.full('node')}`, () => native().ifIndex(name));
    const mac = (ns: string) => {
      const text = /link\/ether (\S+)/.exec(spaces.exec(ns, 'ip -o link show dev eth0'))![1]!;
      return Buffer.from(text.replaceAll(':', ''), 'hex');
    };
    endpoints = [a, b].map((w, i) => ({
      endpoint: w.endpoint,
      identity: w.identity,
      generation: 1n,
      ifindex: index(i === 0 ? 'veth-a' : 'veth-b'),
      mac: mac(i === 0 ? 'a' : 'b'),
      addresses: [w.v4, w.v6],
      open: true,
    }));
    await datapath.call('setPrefixes', [
      { prefix: parsePrefix('10.77.0.0/16')!, identity: securityIdentity(2), cluster: true },
      { prefix: parsePrefix('fd77::/16')!, identity: securityIdentity(2), cluster: true },
    ]);
    for (const endpoint of endpoints) await datapath.call('putEndpoint', endpoint);
  });

  afterEach(async () => {
    for (const started of captures.splice(0)) await started.stop();
  });

  afterAll(() => spaces.clear());

  test('what no rule allows is dropped as POLICY_DENIED, counted, signalled, and does not arrive', async () => {
    expect(datapath.attachMode).toBe(mode);
    await datapath.call('setPolicy', tables([]));
    const arrived = await capture('b', `host ${a.v4} or host ${a.v6}`);
    const before = packetsOf(await datapath.call('drops'), 'POLICY_DENIED');
    expect(ping(b.v4)).toBe(false);
    expect(ping(b.v6)).toBe(false);
    expect(packetsOf(await datapath.call('drops'), 'POLICY_DENIED') - before).toBe(2n);
    await vi.waitFor(
      () =>
        expect(datapath.signals).toContainEqual(
          expect.objectContaining({
            kind: 'drop',
            reason: 'POLICY_DENIED',
            direction: 'egress',
            localAddress: a.v4,
            remoteAddress: b.v4,
            localIdentity: a.identity,
            remoteIdentity: b.identity,
          }),
        ),
      soon,
    );
    expect(arrived.lines).toEqual([]);
  });

  test('what a rule allows passes, over IPv4 and IPv6, ICMP and TCP; a rule for one way does not open the other', async () => {
    await datapath.call('setPolicy', pairPolicy('none'));
    expect(ping(b.v4)).toBe(true);
    expect(ping(b.v6)).toBe(true);
    expect(await connect(b.v4)).toBeLessThan(1000);
    expect(await connect(b.v6)).toBeLessThan(1000);
    expect(spaces.succeeds('b', `ping -n -c1 -W1 ${a.v4} >/dev/null`)).toBe(false);
  });

  test.each([
    ['IPv4', a.v4, b.v4],
    ['IPv6', a.v6, b.v6],
  ])(
    'the first packet waits for the proof and goes on without a retransmission, over %s',
    async (_family, from, to) => {
      await datapath.call('setPolicy', pairPolicy('spiffe'));
      await forget();
      const sent = await capture(
        'a',
        `host ${to} and tcp[tcpflags] & tcp-syn != 0 or (ip6 and host ${to} and ip6[53] & 2 != 0)`,
      );
      datapath.signals.length = 0;
      const connected = connect(to);
      await vi.waitFor(async () => expect(await datapath.call('hold.waiting')).toHaveLength(1), {
        ...soon,
        interval: 2,
      });
      expect(await datapath.call('hold.waiting')).toMatchObject([{ local: from, remote: to, packets: 1 }]);
      await vi.waitFor(
        () =>
          expect(datapath.signals).toContainEqual(
            expect.objectContaining({
              kind: 'auth-miss',
              held: true,
              direction: 'egress',
              authType: 'spiffe',
              remotePort: 8080,
            }),
          ),
        soon,
      );
      await authenticate();
      expect(await datapath.call('hold.release', from, to)).toBe(1);
      expect(await connected).toBeLessThan(900); // a retransmission would come after 1,000 ms
      await vi.waitFor(() => expect(sent.lines.length).toBeGreaterThanOrEqual(2), soon);
      expect(sent.lines.filter((line) => line.includes('Flags [S],'))).toHaveLength(1);
      expect(ping(to)).toBe(true);
    },
  );

  test('a packet that is released without a proof does not arrive', async () => {
    await datapath.call('setPolicy', pairPolicy('spiffe'));
    await forget();
    const arrived = await capture('b', `host ${a.v4} and icmp`);
    await holdOne(a.v4, b.v4);
    const drops = await datapath.call('drops');
    expect(await datapath.call('hold.release', a.v4, b.v4)).toBe(1);
    await vi.waitFor(
      async () =>
        expect(packetsOf(await datapath.call('drops'), 'AUTH_REQUIRED') - packetsOf(drops, 'AUTH_REQUIRED')).toBe(1n),
      soon,
    );
    expect(arrived.lines).toEqual([]);
  });

  test('a refused packet, and one that nobody asks for, are dropped under their own reasons, and the budget is free again', async () => {
    await forget();
    const drops = await datapath.call('drops');
    await holdOne(a.v4, b.v4);
    expect(await datapath.call('hold.refuse', a.v4, b.v4, 'HOLD_REFUSED')).toBe(1);
    await holdOne(a.v6, b.v6);
    await vi.waitFor(
      async () => {
        const now = await datapath.call('drops');
        expect(packetsOf(now, 'HOLD_REFUSED') - packetsOf(drops, 'HOLD_REFUSED')).toBe(1n);
        expect(packetsOf(now, 'HOLD_DEADLINE') - packetsOf(drops, 'HOLD_DEADLINE')).toBe(1n);
      },
      { timeout: 4000 * SLOW },
    );
    expect(await datapath.call('hold.waiting')).toEqual([]);
  });

  test('no more than the budget waits; what is too much is dropped as HOLD_FULL', async () => {
    await forget();
    const drops = await datapath.call('drops');
    await holdOne(a.v4, b.v4);
    spaces.succeeds('a', `ping -n -q -c40 -i0.002 -W0.1 ${b.v4} >/dev/null`);
    const now = await datapath.call('drops');
    expect(packetsOf(now, 'HOLD_FULL') - packetsOf(drops, 'HOLD_FULL')).toBe(25n);
    expect(await datapath.call('hold.refuse', a.v4, b.v4, 'HOLD_REFUSED')).toBe(16);
    await holdOne(a.v4, b.v4);
    await datapath.call('hold.refuse', a.v4, b.v4, 'HOLD_REFUSED');
  });

  /** Pings without a pause, does something, and sees that the sender goes on while nothing more arrives. */
  const stops = async (change: () => Promise<unknown>) => {
    const arrived = await capture('b', `src host ${a.v4} and icmp`);
    const sent = await capture('a', `src host ${a.v4} and icmp`);
    const pinger = spaces.spawn('a', ['ping', '-n', '-i', '0.01', b.v4]);
    await vi.waitFor(() => expect(arrived.lines.length).toBeGreaterThan(10), soon);
    await change();
    const changed = Date.now() + 1;
    const since = (capture: Capture) => capture.timesMs.filter((ms) => ms > changed);
    await vi.waitFor(() => expect(since(sent).length).toBeGreaterThan(20), soon);
    expect(since(arrived)).toEqual([]);
    pinger.kill();
  };

  test('a proof that is taken back stops a flow that lives on it, with the next packet', async () => {
    await authenticate();
    await stops(forget);
    await datapath.call('hold.refuse', a.v4, b.v4, 'HOLD_REFUSED');
  });

  test('a proof that runs out is a miss by itself', async () => {
    await authenticate(1n);
    expect(ping(b.v4)).toBe(true);
    await vi.waitFor(() => expect(ping(b.v4)).toBe(false), { timeout: 5000 * SLOW });
    await datapath.call('hold.refuse', a.v4, b.v4, 'HOLD_REFUSED');
  });

  test('raising the epoch makes every proof so far a miss', async () => {
    await authenticate();
    expect(ping(b.v4)).toBe(true);
    await datapath.call('raiseEpoch');
    expect(ping(b.v4)).toBe(false);
    await datapath.call('hold.refuse', a.v4, b.v4, 'HOLD_REFUSED');
    await authenticate();
    expect(ping(b.v4)).toBe(true);
  });

  test('a changed policy is in force at once and whole, for flows too, and the half that was in force is gone', async () => {
    await datapath.call('setPolicy', pairPolicy('none'));
    await stops(() => datapath.call('setPolicy', tables([])));
    expect(ping(b.v4)).toBe(false);
    await datapath.call('setPolicy', pairPolicy('spiffe'));
    expect(readPinned(spaces.bpffs, 'node-a.test').policy).toHaveLength(2);
    expect(ping(b.v4)).toBe(true);
  });

  test('what a policy that only observes would drop passes, is counted as observed and told, and is no drop', async () => {
    await datapath.call('setPolicy', pairPolicy('none', { verdict: 'deny', authType: 'none', rule: 7 }));
    datapath.signals.length = 0;
    const [drops, observed] = [await datapath.call('drops'), await datapath.call('observed')];
    const since = async () => {
      const now = await datapath.call('observed');
      return packetsOf(now, 'POLICY_DENY_RULE') - packetsOf(observed, 'POLICY_DENY_RULE');
    };
    expect(ping(b.v4)).toBe(true);
    expect(ping(b.v6)).toBe(true);
    expect(await since()).toBeGreaterThanOrEqual(2n);
    expect(await datapath.call('drops')).toEqual(drops);
    await vi.waitFor(
      () =>
        expect(datapath.signals).toContainEqual(
          expect.objectContaining({ kind: 'observed', reason: 'POLICY_DENY_RULE', rule: 7, direction: 'egress' }),
        ),
      soon,
    );
  });

  test('allowed verdicts are told only while they are asked for, with what decided', async () => {
    await datapath.call('setPolicy', pairPolicy('none'));
    datapath.signals.length = 0;
    expect(ping(b.v4)).toBe(true);
    await datapath.call('setVerdictSample', 1);
    expect(ping(b.v6)).toBe(true);
    await vi.waitFor(
      () =>
        expect(datapath.signals).toContainEqual(
          expect.objectContaining({
            kind: 'verdict',
            direction: 'egress',
            remoteAddress: b.v6,
            rule: 1,
            reason: undefined,
          }),
        ),
      soon,
    );
    expect(datapath.signals.some((signal) => signal.kind === 'verdict' && signal.remoteAddress === b.v4)).toBe(false);
    await datapath.call('setVerdictSample', 0);
  });

  test('drops are counted by pair of identities too', async () => {
    const count = async () =>
      (await datapath.call('pairDrops')).find(
        (d) => d.local === a.identity && d.remote === b.identity && d.reason === 'POLICY_DENIED',
      )?.packets ?? 0n;
    const before = await count();
    await datapath.call('setPolicy', tables([]));
    expect(ping(b.v4)).toBe(false);
    expect((await count()) - before).toBe(1n);
    await datapath.call('setPolicy', pairPolicy('spiffe'));
    await authenticate();
  });

  test('a closed endpoint neither sends nor receives', async () => {
    await datapath.call('putEndpoint', { ...endpoints[1]!, open: false });
    expect(ping(b.v4)).toBe(false);
    expect(spaces.succeeds('b', `ping -n -c1 -W1 10.77.2.1 >/dev/null`)).toBe(false);
    expect(packetsOf(await datapath.call('drops'), 'FENCED')).toBeGreaterThan(0n);
    await datapath.call('putEndpoint', endpoints[1]!);
    expect(ping(b.v4)).toBe(true);
  });

  test('what a reader of the pins sees is what the agent wrote', async () => {
    const pinned = readPinned(spaces.bpffs, 'node-a.test');
    expect(pinned.auth).toEqual(await datapath.call('auth.list'));
    expect(pinned.auth).toHaveLength(2);
    expect([...pinned.endpoints].sort((x, y) => x.endpoint - y.endpoint)).toEqual(
      endpoints.map((e) => ({ ...e, addresses: [...e.addresses].sort() })),
    );
    expect(pinned.addresses.map((e) => e.address).sort()).toEqual([a.v4, a.v6, b.v4, b.v6].sort());
    expect(packetsOf(pinned.drops, 'POLICY_DENIED')).toBeGreaterThan(0n);
    expect(() => readPinned(spaces.bpffs, 'node-z')).toThrow('no datapath of node node-z');
  });

  test('a second agent in the same namespace is refused', async () => {
    await expect(open()).rejects.toThrow('does another agent run');
    expect(ping(b.v4)).toBe(true);
  });

  test('without its agent the node keeps what is proven and lets nothing new pass', async () => {
    await authenticate();
    expect(ping(b.v4)).toBe(true);
    await datapath.kill();
    const arrived = await capture('a', `src host ${b.v4} and icmp[icmptype] = icmp-echo`);
    expect(ping(b.v4)).toBe(true);
    expect(spaces.succeeds('b', `ping -n -c1 -W1 ${a.v4} >/dev/null`)).toBe(false); // no rule
    expect(arrived.lines).toEqual([]);
    expect(readPinned(spaces.bpffs, 'node-a.test').auth).toHaveLength(2);
  });

  test('the next agent goes on from the same maps, and proofs of before are still good', async () => {
    const before = readPinned(spaces.bpffs, 'node-a.test');
    datapath = await open();
    const after = readPinned(spaces.bpffs, 'node-a.test');
    expect({ ...after, revision: 0n, drops: [] }).toEqual({ ...before, revision: 0n, drops: [] });
    expect(after.revision).toBeGreaterThan(before.revision);
    for (const endpoint of endpoints) await datapath.call('putEndpoint', endpoint);
    expect(ping(b.v4)).toBe(true);
    await forget();
    const connected = connect(b.v4);
    await vi.waitFor(async () => expect(await datapath.call('hold.waiting')).toHaveLength(1), { ...soon, interval: 2 });
    await authenticate();
    await datapath.call('hold.release', a.v4, b.v4);
    expect(await connected).toBeLessThan(900);
  });

  test('an endpoint that was removed sends nothing, although its interface lives on', async () => {
    await datapath.call('removeEndpoint', a.endpoint);
    const arrived = await capture('b', `src host ${a.v4}`); // b may still speak to a of a connection that was
    const before = packetsOf(await datapath.call('drops'), 'NO_ENDPOINT');
    expect(ping(b.v4)).toBe(false);
    expect(ping('10.77.1.1')).toBe(false); // nor to the node itself
    expect(packetsOf(await datapath.call('drops'), 'NO_ENDPOINT') - before).toBeGreaterThanOrEqual(2n);
    expect(arrived.lines).toEqual([]);
    expect((await datapath.call('listEndpoints')).map((e) => e.endpoint)).toEqual([b.endpoint]);
    expect(await datapath.call('addresses.get', a.v4)).toBeUndefined();
  });

  test('an uninstall leaves no pin and no program behind', async () => {
    await datapath.call('destroy');
    expect(existsSync(join(spaces.bpffs, 'countersign'))).toBe(false);
    expect(spaces.exec('node', 'tc filter show dev veth-a ingress; tc filter show dev veth-b egress')).toBe('');
    expect(spaces.exec('node', 'ip -o link')).not.toContain('cs-hold0');
    expect(ping(b.v4)).toBe(true);
    await datapath.kill();
  });
});
