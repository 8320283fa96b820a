/** Authentication for each connection, and fences towards nodes, with a real datapath: what waits, what goes on, what outlives it. */
import { spawn } from 'node:child_process';
import { afterAll, beforeAll, expect, test, vi } from 'vitest';
import { native } from '../../native/index.ts';
import { readPinned } from '../../src/datapath/pinned.ts';
import type { AuthEntry, DatapathSignal, FlowTuple } from '../../src/model/datapath.ts';
import { LOCAL_NODE, nodeId } from '../../src/model/ids.ts';
import { SLOW } from '../support/slow.ts';
import { DatapathClient } from './support/datapath-client.ts';
import { NODE, Pair, policyOf, prefixes, workloads } from './support/pair.ts';

const { a, b } = workloads;
const PORT = 8080;
const TCP = 6;
const soon = { timeout: 3000 * SLOW, interval: 5 };

let pair: Pair;
let datapath: DatapathClient;

const start = async () => {
  // What waits for a proof must not run out on a slow machine.
  const options = pair.options({ holdDeadlineMs: 5000 });
  datapath = await DatapathClient.start(pair.spaces, 'node', options);
};

beforeAll(async () => {
  pair = new Pair('each-flow');
  const server = "require('net').createServer((s) => s.on('error', () => {})).listen(8080, '0.0.0.0')";
  pair.spaces.spawn('b', [process.execPath, '-e', server]);
  await vi.waitFor(() => expect(pair.spaces.exec('b', 'ss -ltn')).toContain(`:${PORT}`), soon);
  await start();
  await datapath.call('setPrefixes', prefixes);
  const { entries, ...tables } = policyOf(PORT);
  const each = entries.map((entry) => ({ ...entry, protocol: TCP, authType: 'spiffe-connection' as const }));
  await datapath.call('setPolicy', { ...tables, entries: each });
  for (const name of ['a', 'b'] as const) await datapath.call('putEndpoint', pair.endpoint(name));
});
afterAll(() => pair.close());

/** Its milliseconds, once it is there. */
function connect(withinMs = 8000 * SLOW): Promise<number> {
  const script = `const t = performance.now(); require('net').connect(${PORT}, '${b.address}').on('connect', () => {
    console.log(performance.now() - t); process.exit(0); }); setTimeout(() => process.exit(2), ${withinMs});`;
  const child = spawn('nsenter', [`--net=/run/netns/${pair.spaces.full('a')}`, process.execPath, '-e', script]);
  let out = '';
  child.stdout.on('data', (data) => {
    out += data;
  });
  return new Promise((resolve, reject) => {
    child.once('exit', (status) => (status === 0 ? resolve(Number(out)) : reject(new Error(`exit ${status}`))));
  });
}

const missOf = (known: ReadonlySet<number>) =>
  vi.waitFor(() => {
    const isNew = ({ kind, held, localPort }: DatapathSignal) => kind === 'auth-miss' && held && !known.has(localPort);
    const found = datapath.signals.find(isNew);
    expect(found).toMatchObject({ authType: 'spiffe-connection', localAddress: a.address, remotePort: PORT });
    return found!;
  }, soon);

/** At both ends, then lets go what waits for it. */
async function prove(miss: DatapathSignal): Promise<number> {
  const expiresAtNs = native().bootTimeNs() + 60_000_000_000n;
  const { epoch } = readPinned(pair.spaces.bpffs, NODE);
  const proof = { remoteNode: LOCAL_NODE, authType: 'spiffe-connection', expiresAtNs, epoch } as const;
  const theirs: FlowTuple = {
    endpoint: b.endpoint,
    localAddress: b.address,
    remoteAddress: a.address,
    protocol: TCP,
    localPort: miss.remotePort,
    remotePort: miss.localPort,
  };
  const entry = (local: typeof a | typeof b, remote: typeof a | typeof b): AuthEntry => ({
    ...proof,
    local: local.identity,
    remote: remote.identity,
  });
  await datapath.call('auth.putFlow', entry(b, a), theirs);
  await datapath.call('auth.putFlow', entry(a, b), miss);
  return datapath.call('hold.release', a.address, b.address, 0n, miss);
}

test('each connection waits for a proof of its own, also beside one that has just been proven', async () => {
  const first = connect();
  const one = await missOf(new Set());
  const second = connect();
  const two = await missOf(new Set([one.localPort]));
  expect(await prove(one)).toBe(1);
  expect(await first).toBeGreaterThan(0);
  expect(await datapath.call('hold.waiting')).toMatchObject([{ packets: 1 }]);
  const third = connect();
  const three = await missOf(new Set([one.localPort, two.localPort]));
  expect(await datapath.call('hold.waiting')).toMatchObject([{ packets: 2 }]);
  expect(await prove(two)).toBe(1);
  expect(await prove(three)).toBe(1);
  await second;
  await third;
  // Both ends of each took theirs.
  const proofs = await datapath.call('auth.listFlows');
  expect(proofs).toHaveLength(6);
  expect(proofs.every(({ taken }) => taken)).toBe(true);
});

test(
  'a connection that nobody proves is not made',
  async () => {
    const known = new Set(datapath.signals.map(({ localPort }) => localPort));
    const refused = connect(1500).catch((error: Error) => error.message);
    const miss = await missOf(known);
    expect(await datapath.call('hold.refuse', a.address, b.address, 'HOLD_REFUSED', miss)).toBe(1);
    expect(await refused).toBe('exit 2');
  },
  15_000 * SLOW,
);

test('fences stand while no agent runs, and the next one finds them, until their endpoint goes', async () => {
  await datapath.call('fences.close', a.endpoint, [nodeId(7), nodeId(8)]);
  await datapath.call('fences.close', b.endpoint, [nodeId(7)]);
  await datapath.call('fences.open', a.endpoint, [nodeId(8)]);
  const stand = [
    { endpoint: a.endpoint, node: 7 },
    { endpoint: b.endpoint, node: 7 },
  ];
  const sorted = (fences: readonly { endpoint: number }[]) => fences.toSorted((x, y) => x.endpoint - y.endpoint);
  expect(sorted(await datapath.call('fences.list'))).toEqual(stand);
  await datapath.kill();
  expect(sorted(readPinned(pair.spaces.bpffs, NODE).fences)).toEqual(stand);
  await start();
  expect(sorted(await datapath.call('fences.list'))).toEqual(stand);
  await datapath.call('removeEndpoint', a.endpoint);
  expect(readPinned(pair.spaces.bpffs, NODE).fences).toEqual(stand.slice(1));
});

test('the kernel says when its programs have ended, and remembers no node that nobody speaks with', async () => {
  await Promise.all([datapath.call('quiesce'), datapath.call('quiesce')]);
  expect(await datapath.call('lastUse', nodeId(7))).toBeUndefined();
});
