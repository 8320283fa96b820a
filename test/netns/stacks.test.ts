/** The datapath between real network stacks: throughput, loss, path MTU, fragments, SCTP. Nothing is dropped that should pass. */
import { execFileSync } from 'node:child_process';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, describe, expect, test, vi } from 'vitest';
import { SLOW } from '../support/slow.ts';
import { Lab, WORLD4, WORLD6 } from './support/lab.ts';

const policy = (name: string, spec: string) => `---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: ${name}}
spec: ${spec}
`;
/** The server takes port 5201 and 7000 from the client, by the protocols named; the client may also go out into the world. */
const POLICIES =
  policy(
    'server',
    `{endpointSelector: {matchLabels: {app: server}}, ingress: [{fromEndpoints: [{matchLabels: {app: client}}], toPorts: [{ports: [
      {port: "5201", protocol: TCP}, {port: "5300", protocol: TCP}, {port: "5201", protocol: UDP}, {port: "7000", endPort: 7001, protocol: UDP}, {port: "5201", protocol: SCTP}]}]}]}`,
  ) +
  policy(
    'client',
    `{endpointSelector: {matchLabels: {app: client}}, egress: [{toEndpoints: [{matchLabels: {app: server}}]}, {toEntities: [world]}]}`,
  );

const lab = new Lab('st', {
  workloads: [
    { name: 'client', labels: { app: 'client' } },
    { name: 'server', labels: { app: 'server' } },
  ],
  world: true,
});
const { spaces } = lab;
const families = [
  ['IPv4', '-4', lab.address4('server'), WORLD4],
  ['IPv6', '-6', lab.address6('server'), WORLD6],
] as const;

interface Iperf {
  readonly error?: string;
  readonly end: {
    readonly sum_received: { readonly bytes: number };
  };
}

/** Many kernels (this tier's usual one among them) have none; the vm tier's do. */
const hasSctp = (() => {
  try {
    execFileSync('sh', ['-c', 'modprobe -q sctp; command -v socat && test -e /proc/net/sctp'], { stdio: 'ignore' });
    return true;
  } catch {
    return false;
  }
})();
const listening = (ns: string, port: number) =>
  vi.waitFor(() => expect(spaces.exec(ns, 'ss -ltun')).toContain(`:${port} `), { timeout: 5000 * SLOW });
const iperf = (args: string): Iperf => {
  spaces.succeeds('client', `iperf3 -J ${args} >/run/cs-t-st-iperf.json`);
  return JSON.parse(spaces.exec('client', 'cat /run/cs-t-st-iperf.json; rm /run/cs-t-st-iperf.json'));
};
const TRANSFER = join(import.meta.dirname, 'support/transfer.ts');
/** Whether all the bytes came, as they were sent. */
const moves = (to: string, bytes: number) =>
  spaces.succeeds('client', `timeout ${20 * SLOW} ${process.execPath} ${TRANSFER} send ${to} 5300 ${bytes}`);
/** Segments that the client's stack has sent again so far. */
const resent = () => Number(/TcpRetransSegs\s+(\d+)/.exec(spaces.exec('client', 'nstat -asz TcpRetransSegs'))![1]);
/** Drops by reason since the call. */
const dropsSince = async (): Promise<() => Promise<Record<string, number>>> => {
  const before = await lab.drops();
  return async () => {
    const now = await lab.drops();
    return Object.fromEntries(
      Object.entries(now).flatMap(([k, n]) => (n > (before[k] ?? 0) ? [[k, n - (before[k] ?? 0)]] : [])),
    );
  };
};

beforeAll(async () => {
  if (!hasSctp)
    console.log('SCTP is not tried here: this kernel has none, or socat is not installed; the vm tier tries it');
  await lab.open();
  await lab.policy(POLICIES);
  lab.spawn('server', 'iperf3', '-s', '-p', '5201');
  lab.spawn('world', 'iperf3', '-s', '-p', '5201');
  for (const ns of ['server', 'world']) {
    lab.spawn(ns, process.execPath, TRANSFER, 'receive', '5300');
    await listening(ns, 5201);
    await listening(ns, 5300);
  }
}, 60_000 * SLOW);

afterEach(() => {
  for (const ns of ['node', 'router']) spaces.succeeds(ns, 'nft flush ruleset');
});

afterAll(() => lab.close());

describe.each(families)('over %s', (family, flag, server, world) => {
  test('bulk TCP in both directions passes whole, segmentation offload included', async () => {
    const drops = await dropsSince();
    for (const direction of ['', '-R']) {
      const result = iperf(`${flag} -c ${server} -p 5201 -n 64M ${direction}`);
      expect(result.error).toBeUndefined();
      // It counts what has come when the sender stops: what lies in the buffers then is missing.
      expect(result.end.sum_received.bytes).toBeGreaterThan(32 << 20);
    }
    expect(moves(server, 32 << 20)).toBe(true);
    expect(await drops()).toEqual({});
  });

  test('many connections at once pass; the port beside the allowed one does not', async () => {
    const result = iperf(`${flag} -c ${server} -p 5201 -P 16 -n 16M`);
    expect(result.error).toBeUndefined();
    const drops = await dropsSince();
    expect(spaces.succeeds('client', `timeout 0.5 iperf3 ${flag} -c ${server} -p 5202 -t 1`)).toBe(false);
    expect((await drops()).POLICY_DENIED).toBeGreaterThan(0);
  });

  test('TCP under 3 percent of loss is sent again until all of it is there', async () => {
    spaces.exec(
      'node',
      'nft add table inet l; nft add chain inet l f "{ type filter hook forward priority 0; }"; nft add rule inet l f numgen random mod 100 lt 3 drop',
    );
    const drops = await dropsSince();
    const before = resent();
    // Whole segmentation offload packets are lost: enough of them that some are.
    expect(moves(server, 32 << 20)).toBe(true);
    expect(resent()).toBeGreaterThan(before);
    expect(await drops()).toEqual({});
  });

  test('path MTU discovery works through it: the error that belongs to an allowed flow arrives', async () => {
    spaces.exec('router', 'ip link set dev out0 mtu 1300');
    spaces.exec('world', 'ip link set dev eth0 mtu 1300');
    spaces.succeeds('client', 'ip route flush cache; ip -6 route flush cache');
    const drops = await dropsSince();
    expect(spaces.succeeds('client', `ping ${flag} -n -c1 -W1 -M do -s 1400 ${world}`)).toBe(false);
    expect(spaces.exec('client', `ip route get ${world}`)).toContain('mtu 1300');
    expect(moves(world, 4 << 20)).toBe(true);
    expect(await drops()).toEqual({});
  });

  test('a path MTU black hole is survived by probing, as it would be without us', async () => {
    const icmp = family === 'IPv4' ? 'ip protocol icmp' : 'icmpv6 type packet-too-big';
    // The router makes the error itself: it is taken away on its way out, as a thoughtless firewall does.
    spaces.exec(
      'router',
      `nft add table inet l; nft add chain inet l o "{ type filter hook output priority 0; }"; nft add rule inet l o ${icmp} drop`,
    );
    spaces.succeeds('client', 'ip route flush cache; ip -6 route flush cache');
    spaces.exec('client', 'sysctl -qw net.ipv4.tcp_mtu_probing=2 net.ipv4.tcp_base_mss=1024');
    expect(moves(world, 1 << 20)).toBe(true);
    expect(spaces.exec('client', `ip route get ${world}`)).not.toContain('mtu');
    spaces.exec('client', 'sysctl -qw net.ipv4.tcp_mtu_probing=0');
  });

  test('UDP datagrams of many fragments arrive whole, and come back; those of a port that is not allowed do not arrive', async () => {
    const program = `const s = require('dgram').createSocket(process.argv[1] === '-6' ? 'udp6' : 'udp4');
      s.on('message', (m, from) => s.send(m, from.port, from.address)).bind(Number(process.argv[2]), () => console.log('bound'));`;
    const echoes = [7000, 7002].map((port) =>
      lab.spawn('server', process.execPath, '-e', program, '--', flag, String(port)),
    );
    await listening('server', 7000);
    await listening('server', 7002);
    const ask = `const s = require('dgram').createSocket(process.argv[1] === '-6' ? 'udp6' : 'udp4');
      const data = require('crypto').randomBytes(20000); let got = 0;
      s.on('message', (m) => { if (m.equals(data) && ++got === 5) { console.log('whole'); process.exit(0); } });
      for (let i = 0; i < 5; i++) s.send(data, Number(process.argv[3]), process.argv[2]);
      setTimeout(() => { console.log(got); process.exit(1); }, Number(process.argv[4]));`;
    const run = (port: number, ms: number) =>
      spaces.succeeds(
        'client',
        `${process.execPath} -e "$(cat <<'X'\n${ask}\nX\n)" -- ${flag} ${server} ${port} ${ms}`,
      );
    let drops = await dropsSince();
    expect(run(7000, 5000 * SLOW)).toBe(true);
    expect(await drops()).toEqual({});
    drops = await dropsSince();
    expect(run(7002, 300)).toBe(false);
    const found = await drops();
    expect(found.POLICY_DENIED).toBeGreaterThanOrEqual(5);
    expect(Object.keys(found).sort()).toEqual(['FRAGMENT_NO_FIRST', 'POLICY_DENIED']);
    for (const echo of echoes) echo.kill();
  });

  if (hasSctp)
    test('SCTP associations open, carry data and close', async () => {
      const listener = lab.spawn('server', 'socat', '-u', `SCTP${flag.slice(1)}-LISTEN:5201,fork`, 'STDOUT');
      let out = '';
      listener.stdout!.on('data', (data) => {
        out += data;
      });
      await vi.waitFor(() => expect(spaces.exec('server', 'ss -lnS')).toContain(':5201'), { timeout: 5000 * SLOW });
      const target = family === 'IPv6' ? `[${server}]` : server;
      expect(
        spaces.succeeds('client', `echo over-sctp | timeout 10 socat -u STDIN SCTP${flag.slice(1)}:${target}:5201`),
      ).toBe(true);
      await vi.waitFor(() => expect(out).toContain('over-sctp'), { timeout: 5000 * SLOW });
      expect(spaces.succeeds('client', `echo x | timeout 2 socat -u STDIN SCTP${flag.slice(1)}:${target}:5202`)).toBe(
        false,
      );
      listener.kill();
    });
});
