/** Signing keys as an administrator changes them and agents get to know of it: a real server, its admin socket, and agents' streams. */
import { execFile } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { credentials, type ServiceError } from '@grpc/grpc-js';
import { afterEach, expect, test } from 'vitest';
import { caAdmin } from '../../../identity/admin/ca.ts';
import {
  AuthorityRequest,
  CaAdminClient,
  type CrlReply,
  type JsonReply,
} from '../../../proto/gen/countersign/admin/v1/admin.ts';
import type { ServerClient } from '../../../src/agent/server-client/client.ts';
import { createCsr } from '../../../src/pki/csr.ts';
import { generateKey } from '../../../src/pki/keys.ts';
import { decodePem } from '../../../src/pki/pem.ts';
import { verifyX509Svid } from '../../../src/pki/verify.ts';
import { SLOW } from '../../support/slow.ts';
import { collector, quiet, TestServer, until } from './harness.ts';

let server: TestServer;
afterEach(() => server[Symbol.asyncDispose]());

interface Authority {
  readonly kind: string;
  readonly id: string;
  readonly state: string;
  readonly missing: string[];
}
type Act = 'prepareAuthority' | 'activateAuthority' | 'taintAuthority' | 'revokeAuthority';

async function ca<T>(use: (client: CaAdminClient, done: (error: ServiceError | null, reply: T) => void) => unknown) {
  const client = new CaAdminClient(`unix:${join(server.dir, 'admin.sock')}`, credentials.createInsecure());
  try {
    return await new Promise<T>((resolve, reject) => {
      use(client, (error, reply) => (error ? reject(error) : resolve(reply)));
    });
  } finally {
    client.close();
  }
}

async function act(method: Act, kind: string, id = '', waitMs = 5000): Promise<Authority> {
  const request = AuthorityRequest.create({ kind, id, waitMs, reason: 'keyCompromise' });
  return JSON.parse((await ca<JsonReply>((client, done) => client[method](request, done))).json) as Authority;
}

async function list(): Promise<Authority[]> {
  const { json } = await ca<JsonReply>((client, done) => client.listAuthorities({}, done));
  return (JSON.parse(json) as { authorities: Authority[] }).authorities;
}

const find = async (kind: string, state: string) =>
  (await list()).find((each) => each.kind === kind && each.state === state)!.id;
const csr = createCsr(generateKey());

async function issue(client: ServerClient) {
  const [issued] = await client.issue([{ entryId: 'frontend', csr }]);
  if (issued?.ok !== true) throw new Error(issued?.error);
  return issued.value;
}

test('the next key is in every bundle before it signs: the agents’, and bundle.pem', async () => {
  server = await TestServer.start();
  const client = await server.joined('node-a');
  client.onChange(async () => {});
  expect(server.bundle).toHaveLength(1);
  const prepared = await act('prepareAuthority', 'x509');
  expect(prepared).toMatchObject({ kind: 'x509', state: 'prepared', missing: [] });
  expect(client.ownBundle().bundle.authorities).toHaveLength(2);
  await until('bundle.pem', () => server.bundle.length === 2);
  expect(server.modeOf('data/bundle.pem')).toBe(0o644);
  const before = await issue(client);
  await act('activateAuthority', 'x509');
  const after = await issue(client);
  for (const chain of [before, after]) {
    expect(verifyX509Svid(chain, client.ownBundle().bundle, server.clock.nowMs()).ok).toBe(true);
  }
  expect((await list()).filter(({ kind }) => kind === 'x509').map(({ state }) => state)).toEqual(['old', 'active']);
});

test('a connected agent that does not have the bundle stops an activation by name; without waiting it is only named', async () => {
  server = await TestServer.start();
  const client = await server.joined('node-a');
  let release = () => {};
  const released = new Promise<void>((resolve) => {
    release = resolve;
  });
  // it says that nothing is in force on its node until it is let go
  client.onChange(() => released);
  await act('prepareAuthority', 'x509', '', 1);
  await expect(act('activateAuthority', 'x509', '', 100)).rejects.toThrow(
    /1 connected nodes do not have .* node-a; wait longer/,
  );
  expect((await list()).filter(({ kind }) => kind === 'x509').map(({ state }) => state)).toEqual([
    'active',
    'prepared',
  ]);
  const waiting = act('activateAuthority', 'x509', '', 10_000);
  release();
  expect(await waiting).toMatchObject({ state: 'active' });
  await act('prepareAuthority', 'jwt', '', 1);
  expect(await act('activateAuthority', 'jwt', '', 0)).toMatchObject({ state: 'active' });
});

test('when a key is tainted the server’s own SVID is another one at once, and the table’s signatures with it', async () => {
  server = await TestServer.start();
  const client = await server.joined('node-a');
  client.onChange(async () => {});
  const old = await find('x509', 'active');
  await act('prepareAuthority', 'x509');
  await act('activateAuthority', 'x509');
  const { serverSvidNotAfter } = await server.list('getStatus');
  server.clock.offsetMs += 2000;
  await act('taintAuthority', 'x509', old);
  expect((await server.list('getStatus')).serverSvidNotAfter).not.toBe(serverSvidNotAfter);
  expect([...client.ownBundle().tainted]).toEqual([old]);
  expect(client.ownBundle().bundle.authorities).toHaveLength(2);
  expect(client.identities.rows()).toHaveLength(2);
});

test('a key that is revoked is out of every bundle, what it signed is revoked on every node, and the server stays reachable', async () => {
  server = await TestServer.start();
  const client = await server.joined('node-a');
  client.onChange(async () => {});
  const old = await find('x509', 'active');
  const chain = await issue(client);
  await act('prepareAuthority', 'x509');
  await act('activateAuthority', 'x509');
  // its own certificate goes with the key: there is nobody to wait for
  type Listed = { svids: { profile: string; authority: string; revoked: boolean }[] };
  const ofOld = async () =>
    ((await server.list('listSvids')) as Listed).svids.filter(({ authority }) => authority === old);
  expect((await ofOld()).map(({ profile, revoked }) => `${profile} ${revoked}`)).toEqual([
    'workload false',
    'node false',
    'server false',
  ]);
  const revoked = await act('revokeAuthority', 'x509', old, 200);
  expect((await ofOld()).every((svid) => svid.revoked)).toBe(true);
  expect(revoked).toMatchObject({ state: 'revoked' });
  await until('the bundle without it', () => client.ownBundle().bundle.authorities.length === 1);
  const { bundle } = client.ownBundle();
  expect(bundle.authorities).toHaveLength(1);
  expect(verifyX509Svid(chain, bundle, server.clock.nowMs()).ok).toBe(false);
  await until('bundle.pem', () => server.bundle.length === 1);
  const node = await server.joined('node-b');
  expect(node.identities.rows()).toHaveLength(2);
  expect(
    server
      .auditLines()
      .filter(({ kind }) => kind === 'authority.changed')
      .map(({ detail }) => `${detail?.act} ${detail?.kind}`),
  ).toEqual([
    'prepared x509',
    'activated x509',
    'prepared jwt',
    'activated jwt',
    'prepared x509',
    'activated x509',
    'revoked x509',
  ]);
  const actions = server.auditLines().filter(({ kind }) => kind === 'admin.action');
  expect(actions.at(-1)).toMatchObject({
    actor: 'admin',
    detail: { action: 'revoke-authority', kind: 'x509', id: old },
  });
});

test('svid revoke takes a signing key too, and the active one is refused by both', async () => {
  server = await TestServer.start();
  const active = await find('x509', 'active');
  await expect(act('revokeAuthority', 'x509', active)).rejects.toThrow(/is active; activate another one first/);
  await expect(server.revoke({ $case: 'authority', value: active })).rejects.toThrow(/is active; activate another one/);
  await expect(server.revoke({ $case: 'authority', value: 'ab'.repeat(20) })).rejects.toThrow(/no x509 authority abab/);
  await act('prepareAuthority', 'x509', '', 0);
  await act('activateAuthority', 'x509', '', 0);
  const { sequence } = await server.revoke({ $case: 'authority', value: active }, 0);
  expect(sequence).toBe(1n);
  expect(await list()).toHaveLength(2);
});

test('a serial number is revoked however it is written, and one that nobody has is not', async () => {
  server = await TestServer.start();
  const client = await server.joined('node-a');
  for (const write of [
    (hex: string) => hex.replace(/^0+/, ''),
    (hex: string) => `00:${hex.toUpperCase().match(/../g)!.join(':')}`,
  ]) {
    await issue(client);
    const { svids } = (await server.list('listSvids')) as {
      svids: { serial: string; profile: string; revoked: boolean }[];
    };
    const { serial } = svids.find(({ profile, revoked }) => profile === 'workload' && !revoked)!;
    await server.revoke({ $case: 'serial', value: write(serial) }, 0);
    const after = (await server.list('listSvids')) as { svids: { serial: string; revoked: boolean }[] };
    expect(after.svids.find((svid) => svid.serial === serial)).toMatchObject({ revoked: true });
  }
  await expect(server.revoke({ $case: 'serial', value: 'abc123' }, 0)).rejects.toThrow(
    /no SVID has the serial number abc123/,
  );
  await expect(server.revoke({ $case: 'serial', value: 'xyz' }, 0)).rejects.toThrow(/no SVID has the serial number/);
});

test('revocation lists are pushed to agents soon after a revocation, the same that the administrator gets', async () => {
  server = await TestServer.start();
  const client = await server.joined('node-a');
  client.onChange(async () => {});
  const get = () => ca<CrlReply>((admin, done) => admin.getCrls({}, done));
  const before = (await get()).crls;
  expect(client.crls()).toEqual(before);
  await issue(client);
  await server.revoke({ $case: 'spiffeId', value: 'spiffe://example.org/frontend' });
  await until('another list', () => !client.crls()[0]!.equals(before[0]!));
  expect(client.crls()).toEqual((await get()).crls);
});

test('nothing fails while keys rotate again and again under load, with a restart of the server in the middle', {
  timeout: 90_000 * SLOW,
}, async () => {
  server = await TestServer.start();
  const client = await server.joined('node-a');
  client.onChange(async () => {});
  let done = false;
  let down = false;
  let issued = 0;
  const load = async () => {
    while (!done) {
      try {
        const chain = await issue(client);
        const verified = verifyX509Svid(chain, client.ownBundle().bundle, server.clock.nowMs());
        if (!verified.ok) throw new Error(`issued, and ${verified.error}`);
        issued++;
      } catch (thrown) {
        // a server that is away issues nothing; everything else is a failure
        if (!down || !/unavailable|unreachable|cannot|closed/i.test(String(thrown))) throw thrown;
        await new Promise((resolve) => setTimeout(resolve, 20));
      }
    }
  };
  const loads = [load(), load(), load()];
  const seen = new Set<string>();
  const rotate = async () => {
    for (const kind of ['x509', 'jwt']) {
      await act('prepareAuthority', kind);
      await act('activateAuthority', kind);
      await act('taintAuthority', kind, await find(kind, 'old'));
    }
    seen.add(await find('x509', 'active'));
  };
  for (let i = 0; i < 4; i++) await rotate();
  down = true;
  await server.down();
  await server.up();
  await until('the stream to be back', () => client.status().connected);
  const before = issued;
  await until('issuing again', () => issued > before);
  down = false;
  for (let i = 0; i < 4; i++) await rotate();
  done = true;
  await Promise.all(loads);
  expect(seen.size).toBe(8);
  expect(issued).toBeGreaterThan(50);
});

test('each act needs its role: viewers list, only administrators change', async () => {
  server = await TestServer.start();
  const audit = collector();
  const { implementation } = caAdmin({
    actorOf: () => ({ name: 'spiffe://example.org/ops', role: 'registrar' }),
    ca: { authorities: () => [], crls: () => [], upkeep: async () => {} } as never,
    signingKeys: {} as never,
    registry: { entriesWith: () => [] },
    workloadOf: () => 'CERT_CHAIN_EMPTY',
    takeShare: () => {},
    log: quiet,
    audit,
  });
  const methods = [
    'listAuthorities',
    'getCrls',
    'prepareAuthority',
    'activateAuthority',
    'taintAuthority',
    'revokeAuthority',
  ];
  const outcomes = await Promise.all(
    methods.map(
      (name) =>
        new Promise<string>((resolve) => {
          const call = { request: AuthorityRequest.create({ kind: 'x509' }), getPeer: () => '', getPath: () => name };
          const handler = implementation[name] as (call: unknown, done: (error: ServiceError | null) => void) => void;
          handler(call, (error) => resolve(error === null ? 'ok' : error.details));
        }),
    ),
  );
  expect(outcomes.slice(0, 2)).toEqual(['ok', 'ok']);
  for (const outcome of outcomes.slice(2)) expect(outcome).toMatch(/ADMIN_ROLE/);
  expect(audit.events).toHaveLength(4);
});

test('countersign ca does all of it from a shell', { timeout: 90_000 * SLOW }, async () => {
  server = await TestServer.start();
  const run = promisify(execFile);
  const program = join(import.meta.dirname, '../../../src/cli/main.ts');
  const cli = async (...args: string[]) =>
    (await run(process.execPath, [program, 'ca', ...args, '--socket', join(server.dir, 'admin.sock')])).stdout;
  const active = await find('x509', 'active');
  expect(await cli('list')).toMatch(new RegExp(`x509 +${active} +active +ec-p256 +itself`));
  const prepared = JSON.parse(await cli('prepare', 'x509', '-o', 'json')) as Authority;
  expect(await cli('activate', 'x509', prepared.id, '--wait', '1')).toContain('state: active');
  expect(await cli('taint', 'x509', active)).toContain('tainted: true');
  expect(decodePem(await cli('crl'), 'X509 CRL')).toHaveLength(2);
  expect(await cli('revoke', 'x509', active, '--reason', 'keyCompromise')).toContain('state: revoked');
  await Promise.all([
    expect(cli('revoke', 'x509', prepared.id)).rejects.toThrow(/is active; activate another one first/),
    expect(cli('prepare', 'x500')).rejects.toThrow(/kind: x509 or jwt/),
  ]);
  expect(readFileSync(join(server.dir, 'data/bundle.pem'), 'utf8').match(/BEGIN/g)).toHaveLength(1);
});
