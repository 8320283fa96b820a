/** A node's lives: reboots, restored snapshots, clones. Each gets an incarnation of its own, or none. */
import { cpSync, existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, type Server, type Socket, connect as tcpConnect } from 'node:net';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { afterEach, expect, test } from 'vitest';
import { loadNodeState } from '../../../src/agent/server-client/node-state.ts';
import { renewNodeSvid } from '../../../src/agent/server-client/renewal.ts';
import { openSync } from '../../../src/agent/server-client/sync-stream.ts';
import { Connection } from '../../../src/agent/server-client/transport.ts';
import type { ReasonCode } from '../../../src/base/registry/reason-codes.ts';
import type { SpiffeId } from '../../../src/model/ids.ts';
import { TestClock, TestServer, TRUST_DOMAIN, until } from '../identity/harness.ts';

let server: TestServer;
afterEach(() => server[Symbol.asyncDispose]());

const NODE_A = 'spiffe://example.org/node/node-a' as SpiffeId;
const stateOf = (name = 'node-a') => loadNodeState(join(server.dir, name), NODE_A, server.bundle)!;
const copy = (from: string, to: string) => cpSync(join(server.dir, from), join(server.dir, to), { recursive: true });
const bundle = () => ({ trustDomain: TRUST_DOMAIN, authorities: server.bundle });
const refusals = () => server.auditLines().filter((line) => line.kind === 'node.attest_refused');

/** Does this certificate still let its holder in? */
async function callsWith(state: NonNullable<ReturnType<typeof loadNodeState>>): Promise<ReasonCode | 'welcome'> {
  const connection = new Connection({
    addresses: [server.address],
    bundle: bundle(),
    svid: state.svid,
    clock: server.clock,
  });
  try {
    await connection.unary('issue', { csrs: [] }, 1_000);
    return 'welcome';
  } catch (thrown) {
    return (thrown as { reason: ReasonCode }).reason;
  } finally {
    connection.close();
  }
}

test('after a reboot a node is another incarnation, without a token, and the certificate of before is barred', async () => {
  server = await TestServer.start();
  const watcher = await server.joined('node-b');
  const first = await server.joined('node-a', { bootId: 'boot 1' });
  const before = stateOf();
  await first.close();
  const again = await server.client('node-a', { bootId: 'boot 1' });
  expect(again.node.info.incarnation).toBe(1n);
  await again.close();
  const rebooted = await server.client('node-a', { bootId: 'boot 2' });
  expect(rebooted.node.info).toMatchObject({ id: first.node.info.id, incarnation: 2n });
  // peers get to know at once: they bar the one of before
  await until('the peer to know', () => watcher.nodes.byName('node-a' as never)?.incarnation === 2n);
  expect(await callsWith(before)).toBe('PEER_INCARNATION_BARRED');
  await rebooted.close();
  expect((await server.client('node-a', { bootId: 'boot 2' })).node.info.incarnation).toBe(2n);
  expect(
    server
      .auditLines()
      .filter(({ kind }) => kind === 'node.attested')
      .map(({ detail }) => detail),
  ).toMatchObject([
    { attestor: 'join_token', incarnation: 1 },
    { attestor: 'join_token', incarnation: 1 },
    { attestor: 'node_svid', incarnation: 2 },
  ]);
});

test('after a reboot with the server down the node is nobody until the server is back', async () => {
  server = await TestServer.start();
  await (await server.joined('node-a', { bootId: 'boot 1' })).close();
  const options = server.clientOptions('node-a', { bootId: 'boot 2' });
  await server.down();
  await expect(server.client('node-a', { ...options, signal: AbortSignal.timeout(300) })).rejects.toThrow();
  expect(stateOf()).toMatchObject({ incarnation: 1n, life: { bootId: 'boot 1' } });
  let there = false;
  const waits: string[] = [];
  const waiting = (why: string) => void waits.push(why);
  const joining = server.client('node-a', { ...options, waiting }).finally(() => {
    there = true;
  });
  await new Promise((resolve) => setTimeout(resolve, 300));
  expect(there).toBe(false);
  expect(waits.at(-1)).toMatch(/the node needs a new incarnation first \(ATTEST_NEW_LIFE\); identity server at 127/);
  await server.up();
  expect((await joining).node.info.incarnation).toBe(2n);
});

test('a state that does not say in which life it was gets a new incarnation', async () => {
  server = await TestServer.start();
  const first = await server.joined('node-a', { bootId: 'boot 1' });
  await first.close();
  const path = join(server.dir, 'node-a/node-identity.json');
  const { life: _, session: __, ...old } = JSON.parse(readFileSync(path, 'utf8'));
  // as version 1 wrote it, of which the server has no number of a stream either
  writeFileSync(path, JSON.stringify({ ...old, version: 1 }));
  await server.down();
  const database = new DatabaseSync(join(server.dir, 'data/identity.db'));
  database.exec('UPDATE nodes SET session_issued = 0, session_confirmed = 0');
  database.close();
  await server.up();
  expect((await server.client('node-a', { bootId: 'boot 1' })).node.info.incarnation).toBe(2n);
});

test('a wall clock that jumps ends this process as the node, and the next start is a new life', async () => {
  server = await TestServer.start();
  const clock = new TestClock();
  let jumpMs = 0;
  const jumpy = { nowMs: () => clock.nowMs() + jumpMs, bootNs: () => clock.bootNs() };
  const first = await server.joined('node-a', { clock: jumpy });
  const barred: ReasonCode[] = [];
  first.onBarred((reason) => barred.push(reason));
  jumpMs = 4_000;
  await new Promise((resolve) => setTimeout(resolve, 1_100));
  expect(barred).toEqual([]);
  jumpMs += 60_000;
  await until('the jump to be seen', () => barred.length > 0);
  expect(barred).toEqual(['ATTEST_NEW_LIFE']);
  await first.close();
  expect((await server.client('node-a', { clock: jumpy })).node.info.incarnation).toBe(2n);
});

test('a new incarnation whose answer was lost is not the end: there is one more, and the lost one is barred', async () => {
  server = await TestServer.start();
  await (await server.joined('node-a', { bootId: 'boot 1' })).close();
  const state = stateOf();
  const connection = new Connection({
    addresses: [server.address],
    bundle: bundle(),
    svid: state.svid,
    clock: server.clock,
  });
  const lost = await renewNodeSvid(connection, state, bundle(), server.clock.nowMs(), true);
  connection.close();
  expect(lost.incarnation).toBe(2n);
  // nobody else gets in for the while in which its holder is awaited
  server.clock.offsetMs += 10_000;
  const rebooted = await server.client('node-a', { bootId: 'boot 2' });
  expect(rebooted.node.info.incarnation).toBe(3n);
  expect(await callsWith({ ...state, ...lost })).toBe('PEER_INCARNATION_BARRED');
  expect(await callsWith(state)).toBe('PEER_INCARNATION_BARRED');
  // the certificate of before cannot be renewed to a newer one either, now that the new one was shown
  const late = new Connection({ addresses: [server.address], bundle: bundle(), svid: state.svid, clock: server.clock });
  await expect(renewNodeSvid(late, state, bundle(), server.clock.nowMs(), true)).rejects.toMatchObject({
    reason: 'PEER_INCARNATION_BARRED',
  });
  late.close();
});

test('while a node is there, nobody takes a new incarnation under its name', async () => {
  server = await TestServer.start();
  const first = await server.joined('node-a', { bootId: 'boot 1' });
  await until('its session to be on disk', () => stateOf().session === 1n);
  copy('node-a', 'clone');
  const signal = AbortSignal.timeout(400);
  await expect(server.client('node-a', { stateName: 'clone', bootId: 'boot 2', signal })).rejects.toThrow();
  expect(first.status().connected).toBe(true);
  expect(first.node.info.incarnation).toBe(1n);
  const { nodes } = await server.list('listNodes');
  expect(nodes).toMatchObject([{ name: 'node-a', incarnation: 1 }, {}]);
});

for (const bootId of ['boot 1', 'boot 2']) {
  const how = bootId === 'boot 1' ? 'in the same boot' : 'and booted';
  test(`a data directory that was set back to a snapshot, ${how}, must attest anew`, async () => {
    server = await TestServer.start();
    await (await server.joined('node-a', { bootId: 'boot 1' })).close();
    copy('node-a', 'snapshot');
    // it runs on
    await (await server.client('node-a', { bootId: 'boot 1' })).close();
    await (await server.client('node-a', { bootId: 'boot 1' })).close();
    rmSync(join(server.dir, 'node-a'), { recursive: true });
    copy('snapshot', 'node-a');
    await expect(server.client('node-a', { bootId })).rejects.toThrow(/join token/);
    expect(refusals().at(-1)).toMatchObject({ reason: 'ATTEST_NODE_CLONED', source: { node: 'node-a' } });
    const token = await server.token('node-a');
    const back = await server.client('node-a', { bootId, joinToken: async () => token });
    expect(back.node.info.incarnation).toBe(2n);
  });
}

/** Between an agent and the server: as good as a node that is paused, or away, when it is cut. */
class Line {
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();
  #cut = false;

  constructor() {
    this.#server = createServer((inner) => {
      if (this.#cut) {
        inner.destroy();
        return;
      }
      const outer = tcpConnect(server.port, '127.0.0.1');
      for (const [from, to] of [
        [inner, outer],
        [outer, inner],
      ] as const) {
        this.#sockets.add(from);
        from.on('error', () => {});
        from.on('close', () => to.destroy());
        from.pipe(to);
      }
    });
  }

  async listen(): Promise<string> {
    await new Promise<void>((resolve) => this.#server.listen(0, '127.0.0.1', resolve));
    server.onClose(() => {
      this.cut();
      this.#server.close();
    });
    return `127.0.0.1:${(this.#server.address() as { port: number }).port}`;
  }

  cut(): void {
    this.#cut = true;
    for (const socket of this.#sockets) socket.destroy();
    this.#sockets.clear();
  }

  mend(): void {
    this.#cut = false;
  }
}

test('of a node and its clone one goes on: the other learns that it is not the node any more', async () => {
  server = await TestServer.start();
  const line = new Line();
  const address = await line.listen();
  const first = await server.joined('node-a', { addresses: [address] });
  await until('its session to be on disk', () => stateOf().session === 1n);
  copy('node-a', 'clone');
  const barred: ReasonCode[] = [];
  first.onBarred((reason) => barred.push(reason));
  // the node is paused, or cut off; meanwhile its clone comes up under its name
  line.cut();
  await until('the loss', () => !first.status().connected);
  const clone = await server.client('node-a', { stateName: 'clone' });
  expect(clone.node.info.incarnation).toBe(1n);
  line.mend();
  await until('a try that the clone stands in the way of', () => /already/.test(first.status().lastError ?? ''));
  expect(barred).toEqual([]);
  await clone.close();
  await until('the refusal', () => barred.length > 0);
  expect(barred).toEqual(['ATTEST_NODE_CLONED']);
  expect(first.status().connected).toBe(false);
  // it does not try again by itself
  const known = refusals().length;
  await new Promise((resolve) => setTimeout(resolve, 300));
  expect(refusals()).toHaveLength(known);
});

test('a node that is cut off again and again, with nobody else there, stays the node', async () => {
  server = await TestServer.start();
  const line = new Line();
  const address = await line.listen();
  const client = await server.joined('node-a', { addresses: [address] });
  const barred: ReasonCode[] = [];
  client.onBarred((reason) => barred.push(reason));
  for (let i = 0; i < 5; i++) {
    line.cut();
    await until('the loss', () => !client.status().connected);
    line.mend();
    await until('it to be back', () => client.status().connected);
  }
  expect(barred).toEqual([]);
  expect(client.node.info.incarnation).toBe(1n);
  expect(stateOf().session).toBeGreaterThanOrEqual(6n);
});

test('a number that was never confirmed is good as long as it is the last one, and the one before it too', async () => {
  server = await TestServer.start();
  const first = await server.joined('node-a');
  await first.close();
  copy('node-a', 'before');
  // the server gave the next number; whether it came to the disk only the node knows
  const svid = stateOf().svid;
  const unconfirmed = async (session: bigint) => {
    const connection = new Connection({ addresses: [server.address], bundle: bundle(), svid, clock: server.clock });
    const given = await new Promise<bigint>((resolve, reject) => {
      const stream = openSync(connection, { peerAddresses: [], session }, (message) => {
        resolve(message.session);
        stream.handOver();
      });
      stream.ended.catch(reject);
    });
    connection.close();
    await new Promise((resolve) => setTimeout(resolve, 50));
    return given;
  };
  const { session } = stateOf();
  const lost = await unconfirmed(session);
  expect(lost).toBe(session + 1n);
  const kept = await unconfirmed(session);
  expect(kept).toBe(session + 2n);
  await expect(unconfirmed(lost)).rejects.toMatchObject({ reason: 'ATTEST_NODE_CLONED' });
  expect(await unconfirmed(kept)).toBe(session + 3n);
});

test('a server whose database was set back takes the nodes as they are: none is locked out, and none older comes back', async () => {
  server = await TestServer.start();
  await (await server.joined('node-a', { bootId: 'boot 1' })).close();
  const older = stateOf();
  await server.down();
  copy('data', 'backup');
  await server.up();
  for (const bootId of ['boot 2', 'boot 2', 'boot 3']) await (await server.client('node-a', { bootId })).close();
  await server.down();
  // nodes, not what the CA issued: that is kept by itself
  for (const name of ['identity.db', 'identity.db-wal', 'identity.db-shm']) {
    rmSync(join(server.dir, 'data', name), { force: true });
    if (existsSync(join(server.dir, 'backup', name))) copy(`backup/${name}`, `data/${name}`);
  }
  await server.up();
  const back = await server.client('node-a', { bootId: 'boot 3' });
  expect(back.node.info.incarnation).toBe(3n);
  expect(await callsWith(older)).toBe('PEER_INCARNATION_BARRED');
  await back.close();
  expect((await server.client('node-a', { bootId: 'boot 4' })).node.info.incarnation).toBe(4n);
});
