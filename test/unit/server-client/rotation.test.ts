/** Signing keys change under load: real server, real agents, real streams. At no moment is something served that does not verify. */
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, expect, test } from 'vitest';
import { Connection } from '../../../src/agent/server-client/transport.ts';
import type { RevocationSubject } from '../../../src/model/identity.ts';
import { validateJwtSvid } from '../../../src/pki/jwt.ts';
import { TestServer, until } from '../identity/harness.ts';
import {
  fetchJwt,
  KeyAdmin,
  refusalOf,
  SELECTORS,
  type Served,
  type StagedAgent,
  serialOf,
  signerOf,
  stageAgent,
  Watch,
} from './rotation-stage.ts';

let server: TestServer;
afterEach(() => server[Symbol.asyncDispose]());

const ENTRIES = ['node-a', 'node-b'].flatMap((node) =>
  [1, 2, 3].map((i) => ({
    id: `${node}-${i}`,
    spiffeId: `spiffe://example.org/${node}/${i}`,
    node,
    selectors: i === 1 ? SELECTORS : [`unix:uid:4${i}`],
  })),
);

async function twoAgents(): Promise<[StagedAgent, StagedAgent]> {
  server = await TestServer.start({}, ENTRIES);
  const tokens = await Promise.all([server.token('node-a'), server.token('node-b')]);
  const a = await stageAgent(server, 'node-a', { joinToken: async () => tokens[0] });
  const b = await stageAgent(server, 'node-b', { joinToken: async () => tokens[1] });
  await until('all SVIDs', () => [a, b].every(({ svids }) => svids.entries().every(({ svid }) => svid !== undefined)));
  return [a, b];
}

/** Every message of every stream is judged by its own bundle and by the last one on each other stream, and the other way round. */
class Judge {
  readonly problems: string[] = [];
  readonly #watches = new Map<string, Watch>();
  messages = 0;

  watch(name: string, agent: StagedAgent): Watch {
    const watch = new Watch(agent.socketPath, (served) => this.#seen(name, served));
    this.#watches.set(name, watch);
    return watch;
  }

  leave(name: string): void {
    this.#watches.get(name)?.close();
    this.#watches.delete(name);
  }

  #seen(name: string, served: Served): void {
    this.messages += 1;
    const now = server.clock.nowMs();
    this.#note(`${name} by its own bundle`, refusalOf(served, served.bundle, now));
    for (const [other, { last }] of this.#watches) {
      if (last === undefined || other === name) continue;
      this.#note(`${name} by ${other}`, refusalOf(served, last.bundle, now));
      this.#note(`${other} by ${name}`, refusalOf(last, served.bundle, now));
    }
  }

  #note(what: string, refusal: string | undefined): void {
    if (refusal !== undefined) this.problems.push(`${what}: ${refusal}`);
  }
}

/** New streams and JWT-SVIDs, one after the other, until it is told to stop. Resolves with what failed. */
function load(agents: readonly StagedAgent[]): () => Promise<{ failed: string[]; done: number }> {
  let stopped = false;
  const failed: string[] = [];
  let done = 0;
  const run = async (agent: StagedAgent, other: StagedAgent) => {
    for (let i = 0; !stopped; i++) {
      const once = new Watch(agent.socketPath, () => {});
      try {
        const served = await until('an SVID', () => {
          if (once.failed !== undefined) throw once.failed;
          return once.last;
        });
        const refusal = refusalOf(served, served.bundle, server.clock.nowMs());
        if (refusal !== undefined) failed.push(`SVID: ${refusal}`);
        const audience = `load-${i}`;
        const token = await fetchJwt(agent.socketPath, audience);
        const [own] = other.svids.snapshot().bundles;
        const judged = validateJwtSvid(token, audience, [own!], server.clock.nowMs());
        if (!judged.ok) failed.push(`JWT-SVID: ${judged.error}`);
        done += 1;
      } catch (thrown) {
        failed.push(String(thrown));
      } finally {
        once.close();
      }
      await new Promise((resolve) => setTimeout(resolve, 60));
    }
  };
  const running = [run(agents[0]!, agents[1]!), run(agents[1]!, agents[0]!)];
  return async () => {
    stopped = true;
    await Promise.all(running);
    return { failed, done };
  };
}

const allUnder = (agents: readonly StagedAgent[], keyId: string) =>
  agents.every(({ svids, client }) =>
    [...svids.entries().map(({ svid }) => svid), client.node.svid()].every(
      (svid) => svid !== undefined && signerOf(svid) === keyId,
    ),
  );

test('prepare, activate, taint, revoke under load: nothing served ever fails to verify, on any agent', async () => {
  const agents = await twoAgents();
  const keys = new KeyAdmin(server);
  const judge = new Judge();
  const watches = [judge.watch('a', agents[0]), judge.watch('b', agents[1])];
  const stop = load(agents);
  await until('the first messages', () => watches.every(({ last }) => last !== undefined));
  const [old, oldJwt] = [await keys.active('x509'), await keys.active('jwt')];
  for (const kind of ['x509', 'jwt'] as const) {
    expect(await keys.prepare(kind)).toMatchObject({ missing: [] });
    await keys.activate(kind);
  }
  const next = await keys.active('x509');
  expect(next).not.toBe(old);
  // an entry that comes now is signed by the new key, while all else still has the old one
  server.writeEntries([...ENTRIES, { ...ENTRIES[0]!, id: 'late', spiffeId: 'spiffe://example.org/late' }]);
  await until('the late one', () => agents[0].svids.snapshot().svidOf('late'));
  for (const [kind, id] of [['x509', old] as const, ['jwt', oldJwt] as const]) await keys.taint(kind, id);
  await until('everything under the new key', () => allUnder(agents, next));
  await keys.revoke('x509', old);
  await keys.revoke('jwt', oldJwt);
  await until('bundles without the old key', () => watches.every(({ last }) => last!.bundle.authorities.length === 1));

  const { failed, done } = await stop();
  expect(judge.problems).toEqual([]);
  expect(failed).toEqual([]);
  expect(done).toBeGreaterThan(4);
  expect(watches.map(({ failed: ended }) => ended)).toEqual([undefined, undefined]);
  expect(watches.map(({ last }) => signerOf(last!))).toEqual([next, next]);
});

test('a tainted key: what it signed is renewed at once, the node SVID too, and served until the next is there', async () => {
  const agents = await twoAgents();
  const keys = new KeyAdmin(server);
  const old = await keys.active('x509');
  await keys.prepare('x509');
  await keys.activate('x509');
  const next = await keys.active('x509');
  await new Promise((resolve) => setTimeout(resolve, 300));
  expect(allUnder(agents, old), 'nothing renews only because another key signs').toBe(true);
  const judge = new Judge();
  const watch = judge.watch('a', agents[0]);
  await until('a message', () => watch.last);
  await keys.taint('x509', old);
  await until('the renewal', () => allUnder(agents, next));
  await until('the stream to have it', () => signerOf(watch.last!) === next);
  expect(watch.failed).toBeUndefined();
  expect(judge.problems).toEqual([]);
});

test('a key that is revoked while SVIDs of it live: they are gone when it is in force, others come by themselves', async () => {
  const [a, b] = await twoAgents();
  const keys = new KeyAdmin(server);
  const old = await keys.active('x509');
  await keys.prepare('x509');
  await keys.activate('x509');
  const next = await keys.active('x509');
  // the node SVIDs first: a node whose own is revoked has to attest anew
  await keys.taint('x509', old);
  await until('the node SVIDs', () => [a, b].every(({ client }) => signerOf(client.node.svid()) === next));
  // their streams go on under the new ones
  while ((await keys.prepare('x509')).missing.length > 0);
  const served = a.svids.snapshot().svidOf('node-a-1')!;
  const { missing } = await keys.revoke('x509', old);
  expect(missing).toEqual([]);
  for (const { svids } of [a, b]) {
    for (const { svid } of svids.entries()) expect(svid === undefined || signerOf(svid) === next).toBe(true);
  }
  expect(a.client.revocations.isRevoked({ ...subjectOf(served), authorities: [old] })).toBe(true);
  await until('new ones', () => allUnder([a, b], next));
});

test('a node whose own signing key is revoked is out at once, and comes back only by attesting anew', async () => {
  const [a] = await twoAgents();
  const keys = new KeyAdmin(server);
  const old = await keys.active('x509');
  await keys.prepare('x509');
  await keys.activate('x509');
  const barred: string[] = [];
  a.client.onBarred((reason) => barred.push(reason));
  await keys.revoke('x509', old);
  expect(a.svids.entries().filter(({ svid }) => svid !== undefined && signerOf(svid) === old)).toEqual([]);
  await until('its end', () => barred.length > 0);
  expect(['AUTH_REVOKED', 'CERT_UNTRUSTED']).toContain(barred[0]);
  await a.close();
  await expect(server.client('node-a', { bundle: server.bundle })).rejects.toMatchObject({ code: 'unauthenticated' });
  const token = await server.token('node-a');
  const again = await stageAgent(server, 'node-a', { bundle: server.bundle, joinToken: async () => token });
  expect(again.client.node.info.incarnation).toBe(2n);
  const next = await keys.active('x509');
  await until('its SVIDs', () => allUnder([again], next));
});

const subjectOf = (svid: {
  spiffeId: Parameters<StagedAgent['client']['revocations']['isRevoked']>[0]['spiffeId'];
}) => ({
  spiffeId: svid.spiffeId,
  serial: '00',
  node: undefined,
  notBeforeMs: Number.MAX_SAFE_INTEGER,
});

test.each(['prepared', 'activated', 'tainted', 'revoked'] as const)(
  'an agent that restarts when the next key is %s begins with what verifies everywhere, without a token',
  async (phase) => {
    const [a, b] = await twoAgents();
    const keys = new KeyAdmin(server);
    const judge = new Judge();
    const stays = judge.watch('b', b);
    await until('a message', () => stays.last);
    const old = await keys.active('x509');
    await keys.prepare('x509');
    if (phase !== 'prepared') await keys.activate('x509');
    const active = await keys.active('x509');
    if (phase === 'tainted' || phase === 'revoked') await keys.taint('x509', old);
    if (phase === 'revoked') {
      await until('everything under the new key', () => allUnder([a, b], active));
      await keys.revoke('x509', old);
    }
    const { incarnation } = a.client.node.info;
    await a.close();
    const again = await stageAgent(server, 'node-a');
    await until('its SVIDs', () => again.svids.entries().every(({ svid }) => svid !== undefined));
    const watch = judge.watch('a', again);
    await until('a message', () => watch.last);
    expect(again.client.node.info.incarnation).toBe(incarnation);
    expect(signerOf(watch.last!)).toBe(active);
    expect(again.client.ownBundle().bundle.authorities).toEqual(b.client.ownBundle().bundle.authorities);
    if (phase === 'tainted') await until('everything under the new key', () => allUnder([again, b], active));
    expect(judge.problems).toEqual([]);
    expect(stays.failed).toBeUndefined();
  },
);

test('an agent that was off during a whole rotation says what it needs, and goes on when it has the new bundle', async () => {
  const [a, b] = await twoAgents();
  const keys = new KeyAdmin(server);
  const pinned = server.bundle;
  const old = await keys.active('x509');
  await a.close();
  await keys.prepare('x509');
  await keys.activate('x509');
  const next = await keys.active('x509');
  // the server itself leaves a tainted key: it is under one now that the agent has never heard of
  await keys.taint('x509', old);
  await until('the other agent', () => allUnder([b], next));
  await expect(server.client('node-a', { bundle: pinned })).rejects.toMatchObject({
    code: 'unauthenticated',
    reason: 'CERT_UNTRUSTED',
    message: expect.stringContaining('server.bundleFile'),
  });
  const again = await stageAgent(server, 'node-a', { bundle: server.bundle });
  await until('its SVIDs', () => allUnder([again], next));
});

test('a node that has to attest anew knows the server by the last bundle it saw, whatever was once handed out', async () => {
  const [a, b] = await twoAgents();
  const keys = new KeyAdmin(server);
  const handedOut = server.bundle;
  const old = await keys.active('x509');
  await keys.prepare('x509');
  await keys.activate('x509');
  const next = await keys.active('x509');
  await keys.taint('x509', old);
  await until('everything under the new key', () => allUnder([a, b], next));
  await keys.revoke('x509', old);
  await until('the bundle', () => a.client.ownBundle().bundle.authorities.length === 1);
  await a.close();
  // its SVID ends meanwhile, and nothing is left of what was handed out
  server.clock.offsetMs += 2 * 3_600_000;
  const token = await server.token('node-a');
  const again = await stageAgent(server, 'node-a', { bundle: handedOut, joinToken: async () => token });
  expect(again.client.node.info.incarnation).toBe(2n);
});

test('a bundle older than the one the node has seen is refused, also after a restart, until another one is handed out', async () => {
  const [a] = await twoAgents();
  const keys = new KeyAdmin(server);
  const before = server.bundle;
  await keys.prepare('x509');
  await until('the bundle', () => a.client.ownBundle().bundle.authorities.length === 2);
  const { sequence } = a.client.ownBundle().bundle;
  await a.close();
  const again = await stageAgent(server, 'node-a', { bundle: before });
  expect(again.client.ownBundle().bundle.sequence).toBe(sequence);
  await again.close();
  // as after a restore: the server's bundle is of before what this node remembers
  const path = join(server.dir, 'node-a/node-identity.json');
  const state = JSON.parse(readFileSync(path, 'utf8')) as { bundleSequence: string };
  writeFileSync(path, JSON.stringify({ ...state, bundleSequence: String(sequence! + 1n) }));
  await expect(server.client('node-a', { bundle: before })).rejects.toThrow(/older trust bundle.*server\.bundleFile/);
  const restored = await stageAgent(server, 'node-a', { bundle: server.bundle });
  expect(restored.client.ownBundle().bundle.sequence).toBe(sequence);
});

test('the line to a server stands on what proved the server: it ends with the key that signed it, and with its authority', async () => {
  const [a] = await twoAgents();
  const keys = new KeyAdmin(server);
  const id = await keys.active('x509');
  const { bundle } = a.client.ownBundle();
  let revoked = '';
  const isRevoked = ({ authorities = [] }: RevocationSubject) => authorities.includes(revoked);
  const options = { addresses: [server.address], bundle, svid: a.client.node.svid(), clock: server.clock };
  const line = new Connection({ ...options, isRevoked });
  server.onClose(() => line.close());
  expect(line.stands(bundle), 'nobody has shown anything yet').toBe(true);
  await line.unary('issue', { csrs: [] }, 5000);
  expect(line.stands(bundle)).toBe(true);
  expect(line.stands({ ...bundle, authorities: [] })).toBe(false);
  revoked = id;
  expect(line.stands(bundle)).toBe(false);
  // and no new one begins
  const next = new Connection({ ...options, isRevoked });
  server.onClose(() => next.close());
  await expect(next.unary('issue', { csrs: [] }, 5000)).rejects.toMatchObject({ reason: 'AUTH_REVOKED' });
});

test('revocation lists of all signing keys reach the workloads, anew when something is revoked', async () => {
  const [a] = await twoAgents();
  const judge = new Judge();
  const watch = judge.watch('a', a);
  const before = await until('a list', () => watch.last?.crls[0]);
  await server.revoke({ $case: 'serial', value: serialOf({ chain: a.svids.snapshot().svidOf('node-a-2')!.chain }) });
  await until('another list', () => watch.last!.crls.length === 1 && !watch.last!.crls[0]!.equals(before));
});
