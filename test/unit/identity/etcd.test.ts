import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { ServerClient } from '../../../src/agent/server-client/client.ts';
import { parseCertificate } from '../../../src/pki/certificate.ts';
import { createCsr } from '../../../src/pki/csr.ts';
import { generateKey } from '../../../src/pki/keys.ts';
import { eventually, Several } from './several.ts';

let several: Several;

// One pair for all tests: whoever leads when a test begins is its first. Each test has nodes and entries of its own.
beforeAll(async () => {
  several = await Several.start();
}, 120_000);
afterAll(() => several[Symbol.asyncDispose]());

const entry = (node: string, n: number) => ({
  id: `${node}-${n}`,
  spiffeId: `spiffe://example.org/${node}/${n}`,
  node,
  selectors: [`unix:uid:${n}`],
});
const csr = () => createCsr(generateKey());

/** Repeats what was refused as unavailable, as every client of ours does. */
async function retried<T>(what: string, act: () => Promise<T>): Promise<T> {
  return eventually(what, act, 30_000);
}

async function issue(client: ServerClient, entryId: string): Promise<string> {
  const [result] = await client.issue([{ entryId, csr: csr() }]);
  if (result?.ok !== true) throw new Error(`not issued: ${JSON.stringify(result)}`);
  const leaf = parseCertificate(result.value[0]!);
  return leaf.ok ? leaf.value.serial : '';
}

test('killing the server that serves loses nothing that was acknowledged, and every request that is retried succeeds', async () => {
  const first = await several.leader();
  const client = await several.client('node-a', first);
  const acknowledged: string[] = [];
  const serials: string[] = [];
  for (let n = 0; n < 5; n++) {
    await first.putEntry(entry('node-a', n));
    acknowledged.push(`node-a-${n}`);
  }
  await eventually('the entries', () => client.entries().length === 5);
  // both go on while the server is killed in the middle of it
  let killed = false;
  let running = true;
  const issuing = (async () => {
    while (running) serials.push(await retried('a certificate', () => issue(client, 'node-a-0')));
  })();
  const writing = (async () => {
    for (let n = 5; running; n++) {
      await retried('an entry', async () => {
        await (await several.leader()).putEntry(entry('node-a', n));
        return true;
      });
      acknowledged.push(`node-a-${n}`);
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
  })();
  await eventually('some work', () => serials.length > 20 && acknowledged.length > 20);
  const beforeKill = serials.length;
  await first.signal('SIGKILL');
  killed = true;
  const second = await several.leader(first);
  expect(second).not.toBe(first);
  await eventually('work at the other server', () => serials.length > beforeKill + 20);
  running = false;
  await Promise.all([issuing, writing]);
  expect(killed).toBe(true);
  // every acknowledged entry reached the agent from the new leader
  await eventually('all entries', () => {
    const known = new Set(client.entries().map(({ id }) => id));
    return acknowledged.every((id) => known.has(id));
  });
  // every certificate that left stands in the ledger, once
  const ledger = await second.list<{ serial: string }>('listSvids', 'svids');
  const listed = new Set(ledger.map(({ serial }) => serial));
  expect(listed.size).toBe(ledger.length);
  expect(new Set(serials).size).toBe(serials.length);
  expect(serials.filter((serial) => !listed.has(serial))).toEqual([]);
  // the killed one comes back as the standby and says who serves
  first.up();
  const status = await eventually('the standby', async () => {
    const found = await first.status();
    return found.role === 'standby' && found.serving !== undefined ? found : undefined;
  });
  expect(status).toMatchObject({ datastore: 'etcd', serving: { address: second.address } });
  await expect(first.putEntry(entry('node-a', 9999))).rejects.toThrow(
    `this server stands by, ask the one that serves: `,
  );
}, 120_000);

test('a revocation that was acknowledged is known to the next leader, and so is every node with its incarnation', async () => {
  const first = await several.leader();
  const client = await several.client('node-b', first);
  await first.putEntry(entry('node-b', 1));
  await eventually('the entry', () => client.entries().length === 1);
  const serial = await issue(client, 'node-b-1');
  const { sequence } = await first.revoke({ $case: 'serial', value: serial });
  const { id, incarnation } = client.node.info;
  await first.signal('SIGKILL');
  const second = await several.leader(first);
  const svids = await second.list<{ serial: string; revoked: boolean }>('listSvids', 'svids');
  expect(svids.find((svid) => svid.serial === serial)).toMatchObject({ revoked: true });
  expect(sequence).toBeGreaterThan(0n);
  const nodes = await second.list<{ name: string }>('listNodes', 'nodes');
  expect(nodes.find(({ name }) => name === 'node-b')).toMatchObject({ id, incarnation: Number(incarnation) });
  // the agent found it by itself and was told of the revocation
  await eventually('the agent at the other server', () => client.status().connected);
  expect(client.node.info).toMatchObject({ id, incarnation });
  first.up();
}, 120_000);

test('while etcd is down nothing is acknowledged and nothing is recorded; afterwards one of them serves again', async () => {
  const first = await several.leader();
  const client = await several.client('node-c', first);
  await first.putEntry(entry('node-c', 1));
  await eventually('the entry', () => client.entries().length === 1);
  await several.etcd.down();
  const refused = await first.putEntry(entry('node-c', 2)).then(
    () => 'acknowledged',
    (error: Error) => error.message,
  );
  expect(refused).toMatch(
    /etcd does not answer: whether this was recorded is not known; ask again|does not lead|stands by/,
  );
  await expect(issue(client, 'node-c-1')).rejects.toMatchObject({ code: 'unavailable' });
  // neither serves now, and each says why
  for (const server of several.servers) {
    await eventually(`the word of ${server.name}`, async () => {
      const { role, problem } = await server.status();
      return role === 'standby' && /etcd at http.*:/.test(String(problem));
    });
    await expect(server.putEntry(entry('node-c', 3))).rejects.toThrow(/stands by, and cannot follow/);
  }
  await several.etcd.up();
  const next = await several.leader();
  await retried('the agent', () => issue(client, 'node-c-1'));
  await next.putEntry(entry('node-c', 4));
  await eventually('what was acknowledged after', () => client.entries().some(({ id }) => id === 'node-c-4'));
  expect(client.entries().some(({ id }) => id === 'node-c-3')).toBe(false);
}, 120_000);

test('a leader that slept through its lease can neither issue nor push nor answer when it wakes', async () => {
  const first = await several.leader();
  const client = await several.client('node-d', first);
  // one that knows no other server
  const captive = await several.client('node-f', first, { addresses: [first.address] });
  await first.putEntry(entry('node-d', 1));
  await first.putEntry(entry('node-f', 1));
  await eventually('the entries', () => client.entries().length + captive.entries().length === 2);
  await first.signal('SIGSTOP');
  // asked while it sleeps: it is answered, if at all, when it wakes
  const late = Promise.allSettled([
    first.putEntry(entry('node-f', 66)),
    first.revoke({ $case: 'spiffeId', value: 'spiffe://example.org/node-d/1' }),
    captive.issue([{ entryId: 'node-f-1', csr: csr() }]),
  ]);
  const second = await several.leader(first);
  await second.putEntry(entry('node-d', 2));
  await retried('a certificate from the other', () => issue(client, 'node-d-2'));
  await first.signal('SIGCONT');
  const outcomes = await late;
  // of the calls to the sleeper none succeeded
  expect(outcomes.map(({ status }) => status)).toEqual(['rejected', 'rejected', 'rejected']);
  await eventually('it to stand by', async () => (await first.status()).role === 'standby');
  expect(client.entries().map(({ id }) => id)).toEqual(['node-d-1', 'node-d-2']);
  expect(captive.entries().map(({ id }) => id)).toEqual(['node-f-1']);
  const svids = await second.list<{ spiffeId: string; revoked: boolean }>('listSvids', 'svids');
  expect(svids.filter(({ spiffeId, revoked }) => revoked && spiffeId.includes('/node-d/'))).toEqual([]);
  // and it follows again: it has what was written without it
  const { followed } = await first.status();
  await second.putEntry(entry('node-d', 3));
  await eventually('the log', async () => Number((await first.status()).followed) > Number(followed));
}, 120_000);

test('a server with another passphrase does not lead: it says so and the first goes on', async () => {
  const first = await several.leader();
  const second = several.other(first);
  await second.signal('SIGTERM');
  const other = join(several.dir, 'other-passphrase');
  writeFileSync(other, 'something else entirely\n', { mode: 0o600 });
  const config = join(second.dir, 'server.yaml');
  writeFileSync(config, readFileSync(config, 'utf8').replace(join(several.dir, 'passphrase'), other));
  await first.signal('SIGTERM');
  second.logged = '';
  second.up();
  await eventually('its refusal', () => /passphrase/.test(second.logged));
  expect(second.logged).not.toContain('identity server ready');
  first.up();
  expect(await several.leader(second)).toBe(first);
}, 120_000);

test('an etcd that lost its data is not taken for a new one: no server makes a new authority', async () => {
  const first = await several.leader();
  const second = several.other(first);
  if (second.isUp) await second.signal('SIGKILL');
  await first.signal('SIGTERM');
  await several.etcd.wipe();
  first.up();
  const status = await eventually('its word', async () => {
    const found = await first.status();
    return found.problem === undefined ? undefined : found;
  });
  expect(status).toMatchObject({ role: 'standby' });
  expect(status.problem).toMatch(/etcd holds no state, but it held one: restore a backup/);
}, 120_000);
