/**
 * The tunnel's session as what bounds the life of a packet (rules 4 to 7 of leases and fences): two nodes with a real WireGuard, and somebody in
 * the middle who holds a datagram back and lets it go later. wireguard-go as a rule, the kernel's in the emulated machine.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { parseAddress } from '../../src/model/address.ts';
import { nodeId } from '../../src/model/ids.ts';
import { SLOW } from '../support/slow.ts';
import { Namespaces } from './support/namespaces.ts';
import { WireguardNode } from './support/wireguard-node.ts';

const nodes = {
  a: { id: nodeId(1), device: 'cs-t-sea', underlay: '192.0.2.1', inner: parseAddress('10.88.1.2')! },
  b: { id: nodeId(2), device: 'cs-t-seb', underlay: '192.0.2.2', inner: parseAddress('10.88.2.2')! },
} as const;
type Name = keyof typeof nodes;
const PORT = 51998;
const implementation = process.env.COUNTERSIGN_VM === '1' ? 'kernel' : 'wireguard-go';
const soon = { timeout: 4000 * SLOW, interval: 20 };
/** Outer headers of a captured frame: Ethernet, IPv4, UDP. */
const OUTER = 14 + 20 + 8;
/** First octet of a WireGuard message that carries a packet. */
const TRANSPORT = 4;

let spaces: Namespaces;
let dir: string;
let a: WireguardNode;
let b: WireguardNode;

/** Who begins the handshake looks whether it came about, and begins anew with an empty queue if not. */
async function join2(key: number, begins: Name = 'a'): Promise<void> {
  const presharedKey = Buffer.alloc(32, key);
  const endpoint = (name: Name) => `${nodes[name].underlay}:${PORT}`;
  await b.call('setPeer', { node: nodes.a.id, publicKey: a.publicKey, presharedKey, endpoint: endpoint('a') });
  await a.call('setPeer', { node: nodes.b.id, publicKey: b.publicKey, presharedKey, endpoint: endpoint('b') });
  await b.call('allow', nodes.a.id, nodes.a.inner);
  await a.call('allow', nodes.b.id, nodes.b.inner);
  if (begins === 'a') await a.call('startHandshake', nodes.b.id);
  else await b.call('startHandshake', nodes.a.id);
  await expect.poll(() => pings('a', 'b'), soon).toBe(true);
}

async function part(): Promise<void> {
  await a.call('removePeer', nodes.b.id);
  await b.call('removePeer', nodes.a.id);
}

const pings = (from: Name, to: Name) =>
  spaces.succeeds(from, `ping -n -q -W 0.5 -c 1 -I ${nodes[from].inner} ${nodes[to].inner}`);

/** Echo requests and replies that came in: they are in the tunnel alone. */
function received(name: Name): number {
  const [names, values] = spaces.exec(name, 'grep ^Icmp: /proc/net/snmp').trim().split('\n');
  const of = (field: string) => Number(values!.split(' ')[names!.split(' ').indexOf(field)]);
  return of('InEchos') + of('InEchoReps');
}

const cut = () => spaces.exec('u', 'ip link set dev va nomaster');
const mend = () => spaces.exec('u', 'ip link set dev va master br0');

/** The datagrams with a packet in them that `send` makes A send, and that do not arrive. */
async function heldBack(send: () => void): Promise<Buffer[]> {
  const filter = ['udp', 'and', 'dst', 'port', String(PORT)];
  const tcpdump = spaces.spawn('u', [
    'tcpdump',
    '--immediate-mode',
    '-Q',
    'in',
    '-U',
    '-w',
    '-',
    '-ni',
    'va',
    ...filter,
  ]);
  const chunks: Buffer[] = [];
  tcpdump.stdout!.on('data', (chunk: Buffer) => chunks.push(chunk));
  await new Promise<void>((resolve) => {
    tcpdump.stderr!.on('data', (text: Buffer) => text.includes('listening on') && resolve());
  });
  cut();
  send();
  await expect.poll(() => transports(Buffer.concat(chunks)).length, soon).toBeGreaterThan(0);
  const ended = new Promise((resolve) => tcpdump.once('close', resolve));
  tcpdump.kill('SIGINT');
  await ended;
  mend();
  return transports(Buffer.concat(chunks));
}

/** pcap(5): a header of 24 octets, then records with one of 16. */
function transports(pcap: Buffer): Buffer[] {
  const found: Buffer[] = [];
  for (let at = 24; at + 16 <= pcap.length; ) {
    const length = pcap.readUInt32LE(at + 8);
    const datagram = pcap.subarray(at + 16 + OUTER, at + 16 + length);
    // A keepalive is one, too, with nothing in it.
    if (datagram[0] === TRANSPORT && datagram.length > 32) found.push(datagram);
    at += 16 + length;
  }
  return found;
}

/** WireGuard looks at a datagram's contents, not at where it comes from. */
function letGo(datagrams: readonly Buffer[]): void {
  const script = `
    const socket = require('node:dgram').createSocket('udp4');
    const all = ${JSON.stringify(datagrams.map((d) => d.toString('base64')))};
    let left = all.length;
    for (const one of all) socket.send(Buffer.from(one, 'base64'), ${PORT}, '${nodes.b.underlay}', () => --left || socket.close());`;
  spaces.exec('a', `${process.execPath} -e "${script.replaceAll('"', '\\"')}"`);
}

beforeAll(async () => {
  dir = mkdtempSync(join(tmpdir(), 'cs-t-se-'));
  spaces = new Namespaces('se');
  for (const ns of ['u', 'a', 'b']) spaces.add(ns);
  spaces.exec('u', 'ip link add br0 type bridge mcast_snooping 0; ip link set dev br0 up');
  for (const name of ['a', 'b'] as const) {
    const { underlay, inner } = nodes[name];
    spaces.exec('u', `ip link add v${name} type veth peer name eth0 netns ${spaces.full(name)}`);
    spaces.exec('u', `ip link set dev v${name} master br0 up`);
    spaces.exec(
      name,
      `ip addr add ${underlay}/24 dev eth0; ip link set dev eth0 up; ip addr add ${inner}/32 dev lo; ip link set dev lo up`,
    );
  }
  const open = (name: Name) =>
    WireguardNode.start(spaces, name, {
      device: nodes[name].device,
      listenPort: PORT,
      keyFile: join(dir, `${name}.key`),
      mtu: 1400,
      implementation,
      runDir: join(dir, name),
    });
  [a, b] = await Promise.all([open('a'), open('b')]);
});

afterAll(async () => {
  await a?.call('destroy').catch(() => {});
  await b?.call('destroy').catch(() => {});
  spaces?.clear();
  rmSync(dir, { recursive: true, force: true });
});

describe('a packet that somebody on the path held back', () => {
  test('is taken as long as its session lives: this is what a successor must be kept from', async () => {
    await join2(1);
    const held = await heldBack(() => void pings('a', 'b'));
    const before = received('b');
    letGo(held);
    await expect.poll(() => received('b'), soon).toBe(before + held.length);
    await part();
  });

  test('is dropped once the receiver has ended the session, and the flow goes on at once', async () => {
    await join2(2);
    const held = await heldBack(() => void pings('a', 'b'));
    await b.call('endSession', nodes.a.id, true);
    const before = received('b');
    letGo(held);
    await expect.poll(() => pings('a', 'b'), soon).toBe(true);
    expect(received('b'), 'the answered one alone').toBe(before + 1);
    await part();
  });

  test('the same when the sender’s end is ended after it: the receiver’s decides', async () => {
    await join2(3);
    const held = await heldBack(() => void pings('a', 'b'));
    await Promise.all([a.call('endSession', nodes.b.id, true), b.call('endSession', nodes.a.id, true)]);
    await expect.poll(() => pings('a', 'b'), soon).toBe(true);
    const before = received('b');
    letGo(held);
    expect(pings('a', 'b')).toBe(true);
    expect(received('b')).toBe(before + 1);
    await part();
  });
});

describe('a packet that waits for a session', () => {
  test('goes out with the next one: this is what an address’s end must empty', async () => {
    await join2(4, 'b');
    await b.call('removePeer', nodes.a.id);
    await a.call('endSession', nodes.b.id, false);
    const before = received('b');
    expect(pings('a', 'b')).toBe(false);
    await b.call('setPeer', {
      node: nodes.a.id,
      publicKey: a.publicKey,
      presharedKey: Buffer.alloc(32, 4),
      endpoint: `${nodes.a.underlay}:${PORT}`,
    });
    await b.call('allow', nodes.a.id, nodes.a.inner);
    await b.call('startHandshake', nodes.a.id);
    await expect.poll(() => received('b'), soon).toBe(before + 1);
    await part();
  });

  test('does not, once its address is taken away, though the address comes back', async () => {
    await join2(5, 'b');
    await b.call('removePeer', nodes.a.id);
    await a.call('endSession', nodes.b.id, false);
    const before = received('b');
    expect(pings('a', 'b')).toBe(false);
    await a.call('disallow', nodes.b.inner);
    await a.call('allow', nodes.b.id, nodes.b.inner);
    await b.call('setPeer', {
      node: nodes.a.id,
      publicKey: a.publicKey,
      presharedKey: Buffer.alloc(32, 5),
      endpoint: `${nodes.a.underlay}:${PORT}`,
    });
    await b.call('allow', nodes.a.id, nodes.a.inner);
    await b.call('startHandshake', nodes.a.id);
    await expect.poll(() => pings('b', 'a'), soon).toBe(true);
    expect(received('b'), 'the answer to its own alone').toBe(before + 1);
    await part();
  });
});

describe('ending a session', () => {
  test('many times in a row, from both ends, costs no five seconds of WireGuard’s patience', async () => {
    await join2(6);
    for (let i = 0; i < 5; i++) {
      await Promise.all([a.call('endSession', nodes.b.id, true), b.call('endSession', nodes.a.id, true)]);
    }
    await expect.poll(() => pings('a', 'b'), soon).toBe(true);
    expect(pings('b', 'a')).toBe(true);
    await part();
  });

  test('lets nothing out in clear: packets go nowhere else meanwhile', async () => {
    await join2(7);
    const flow = spaces.spawn('a', [
      'ping',
      '-n',
      '-q',
      '-i',
      '0.002',
      '-c',
      '300',
      '-I',
      nodes.a.inner,
      nodes.b.inner,
    ]);
    const tcpdump = spaces.spawn('u', [
      'tcpdump',
      '--immediate-mode',
      '-U',
      '-s',
      '0',
      '-w',
      '-',
      '-ni',
      'br0',
      'icmp',
    ]);
    const seen: Buffer[] = [];
    tcpdump.stdout!.on('data', (chunk: Buffer) => seen.push(chunk));
    await new Promise<void>((resolve) => {
      tcpdump.stderr!.on('data', (text: Buffer) => text.includes('listening on') && resolve());
    });
    for (let i = 0; i < 5; i++) await a.call('endSession', nodes.b.id, true);
    await new Promise((resolve) => flow.once('close', resolve));
    const ended = new Promise((resolve) => tcpdump.once('close', resolve));
    tcpdump.kill('SIGINT');
    await ended;
    expect(Buffer.concat(seen).length, 'pcap’s own header').toBe(24);
    await part();
  });

  test('of a node that has no peer is done at once', async () => {
    await a.call('endSession', nodeId(77), true);
    expect(await a.call('status')).toEqual([]);
  });
});
