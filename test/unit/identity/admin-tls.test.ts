import { execFile } from 'node:child_process';
import { chmodSync, mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { connect as tlsConnect } from 'node:tls';
import { promisify } from 'node:util';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { openCertificateAuthority } from '../../../ca/api.ts';
import {
  ListEntriesRequest,
  RevokeSvidRequest,
  ServerAdminClient,
} from '../../../proto/gen/countersign/admin/v1/admin.ts';
import type { ServerClient } from '../../../src/agent/server-client/client.ts';
import type { Svid } from '../../../src/model/identity.ts';
import type { TrustDomain } from '../../../src/model/ids.ts';
import { nodeSpiffeId, spiffeId } from '../../../src/model/spiffe-id.ts';
import { createCsr } from '../../../src/pki/csr.ts';
import { generateKey } from '../../../src/pki/keys.ts';
import { PinnedCredentials } from '../../../src/pki/server-credentials.ts';
import { replaceFiles } from '../../../src/workload/outputs/directory.ts';
import { pemFiles } from '../../../src/workload/outputs/files.ts';
import { SELECTORS, stageAgent } from '../server-client/rotation-stage.ts';
import { TestServer, TRUST_DOMAIN, until } from './harness.ts';

const ID = (name: string) => `spiffe://${TRUST_DOMAIN}/${name}`;
const PEOPLE = ['viewer', 'registrar', 'admin', 'nobody', 'by-entry', 'short'] as const;

let server: TestServer;
let node: ServerClient;
let port = 0;

beforeAll(async () => {
  const roles = (['viewer', 'registrar', 'admin', 'short'] as const).map((role) => ({
    spiffeId: ID(role),
    role: role === 'short' ? 'admin' : role,
  }));
  const entries = PEOPLE.map((id) => ({ id, spiffeId: ID(id), node: 'node-a', admin: id === 'by-entry' }));
  server = await TestServer.start({ admin: { listen: { address: '127.0.0.1', port: 0 }, roles } }, entries);
  node = await server.joined('node-a');
  const line = await until('the port', () => server.logged.find((text) => text.includes('administration over TLS')));
  port = (JSON.parse(line) as { port: number }).port;
});
afterAll(() => server[Symbol.asyncDispose]());

/** A fresh SVID of an entry. */
async function svidOf(id: string): Promise<Svid> {
  const privateKey = generateKey();
  const [issued] = await node.issue([{ entryId: id, csr: createCsr(privateKey) }]);
  if (!issued?.ok) throw new Error(issued?.error);
  return { spiffeId: spiffeId(ID(id)), chain: issued.value, privateKey, notAfterMs: Date.now() + 3_600_000 };
}

function clientWith(svid: Svid | undefined): ServerAdminClient {
  const bundle = { trustDomain: TRUST_DOMAIN, authorities: server.bundle };
  const credentials = new PinnedCredentials({ bundle, svid, clock: server.clock });
  const options = { 'grpc.default_authority': 'countersign', 'grpc.use_local_subchannel_pool': 1 };
  const client = new ServerAdminClient(`127.0.0.1:${port}`, credentials, options);
  server.onClose(() => client.close());
  return client;
}

const clientOf = async (id: string) => clientWith(await svidOf(id));

type Outcome = { code: number; details: string } | 'ok';
const outcome = (ask: (done: (error: unknown) => void) => unknown) =>
  new Promise<Outcome>((resolve) => {
    ask((error) => resolve(error === null ? 'ok' : (error as Outcome)));
  });
const list = (client: ServerAdminClient) => outcome((done) => client.listEntries(ListEntriesRequest.create(), done));
const put = (client: ServerAdminClient, entry: object, mode = '') =>
  outcome((done) => client.putEntry({ json: JSON.stringify(entry), mode }, done));
const remove = (client: ServerAdminClient, id: string) => outcome((done) => client.deleteEntry({ id }, done));
const ban = (client: ServerAdminClient) => outcome((done) => client.banNode({ node: 'node-b', reason: 'test' }, done));
const token = (client: ServerAdminClient, nodeName: string) =>
  outcome((done) => client.createJoinToken({ nodeName, ttlSeconds: 60 }, done));

const entry = { id: 'new', spiffeId: ID('new'), node: 'node-b', selectors: ['unix:uid:7'] };
const denied = { code: 7, details: expect.stringContaining('ADMIN_ROLE') };

test('each role may do what it says and no more', async () => {
  const [viewer, registrar, admin] = await Promise.all(['viewer', 'registrar', 'admin'].map(clientOf));
  expect(await list(viewer!)).toBe('ok');
  expect(await put(viewer!, entry)).toMatchObject(denied);
  expect(await token(viewer!, 'node-b')).toMatchObject(denied);
  expect(await ban(viewer!)).toMatchObject(denied);

  expect(await put(registrar!, entry)).toBe('ok');
  expect(await remove(registrar!, 'new')).toBe('ok');
  expect(await token(registrar!, 'node-b')).toBe('ok');
  expect(await ban(registrar!)).toMatchObject(denied);

  expect(await ban(admin!)).toBe('ok');
  expect(await outcome((done) => admin!.unbanNode({ node: 'node-b', reason: '' }, done))).toBe('ok');

  const lines = server.auditLines();
  expect(lines).toContainEqual(
    expect.objectContaining({ kind: 'entry.changed', actor: ID('registrar'), source: expect.anything() }),
  );
  expect(lines).toContainEqual(expect.objectContaining({ kind: 'token.created', actor: ID('registrar') }));
  expect(lines).toContainEqual(expect.objectContaining({ kind: 'node.banned', actor: ID('admin') }));
  expect(lines).toContainEqual(
    expect.objectContaining({ kind: 'admin.refused', reason: 'ADMIN_ROLE', actor: ID('viewer') }),
  );
});

test('an entry that says admin gives the role, as long as it is there', async () => {
  const client = await clientOf('by-entry');
  expect(await ban(client)).toBe('ok');
  await server.nodeAction('unbanNode', 'node-b');
  await expect(clientOf('nobody').then(list)).resolves.toMatchObject(denied);
});

test('a registrar cannot make itself an administrator', async () => {
  const registrar = await clientOf('registrar');
  // by an entry that says so
  expect(await put(registrar, { ...entry, admin: true })).toMatchObject(denied);
  // by an entry of its own with the SPIFFE ID of an administrator, from the settings or from an entry
  expect(await put(registrar, { ...entry, spiffeId: ID('admin') })).toMatchObject(denied);
  expect(await put(registrar, { ...entry, spiffeId: ID('by-entry') })).toMatchObject(denied);
  // by an entry whose workload could sign itself an administrator's SVID, or by one that could be taken for it
  expect(await put(registrar, { ...entry, downstream: true })).toMatchObject(denied);
  await server.putEntry({ ...entry, id: 'below', spiffeId: ID('below'), downstream: true });
  expect(await put(registrar, { ...entry, spiffeId: ID('below') })).toMatchObject(denied);
  expect(await put(registrar, { ...entry, id: 'below', spiffeId: ID('below') })).toMatchObject(denied);
  expect(await remove(registrar, 'below')).toMatchObject(denied);
  expect(await token(registrar, 'node-b')).toMatchObject(denied);
  expect(await outcome((done) => server.admin.deleteEntry({ id: 'below' }, done))).toBe('ok');
  // by becoming the node that an administrator's workload runs on
  expect(await token(registrar, 'node-a')).toMatchObject(denied);
  // by another selector for what is an administrator's already
  await server.putEntry({ ...entry, id: 'boss', spiffeId: ID('boss'), admin: true });
  const taken = { ...entry, id: 'boss', spiffeId: ID('boss'), selectors: ['unix:uid:1001'] };
  expect(await put(registrar, taken)).toMatchObject(denied);
  expect(await remove(registrar, 'boss')).toMatchObject(denied);
  expect(await token(registrar, 'node-b')).toMatchObject(denied);
});

test('without an SVID, with one of another trust domain or of another authority, nothing is answered', async () => {
  const refused = (reason: string) => ({ code: 16, details: expect.stringContaining(reason) });
  expect(await list(clientWith(undefined))).toMatchObject(refused('CERT_CHAIN_EMPTY'));
  for (const [trustDomain, reason] of [
    [TRUST_DOMAIN, 'CERT_UNTRUSTED'],
    ['elsewhere.org' as TrustDomain, 'CERT_TRUST_DOMAIN'],
  ] as const) {
    const ca = await openCertificateAuthority({
      directory: join(server.dir, `ca-${trustDomain}`),
      trustDomain,
      clock: server.clock,
    });
    server.onClose(() => ca.close());
    const privateKey = generateKey();
    const id = spiffeId(`spiffe://${trustDomain}/admin`);
    const issued = await ca.issueWorkloadSvid({
      csr: createCsr(privateKey),
      spiffeId: id,
      node: nodeSpiffeId(trustDomain, 'node-a' as never),
      requester: 'test',
    });
    if (!issued.ok) throw new Error(issued.error);
    const svid = { spiffeId: id, chain: issued.value.chain, privateKey, notAfterMs: Date.now() + 1e6 };
    expect(await list(clientWith(svid))).toMatchObject(refused(reason));
  }
  // a node of the trust domain has no role here
  expect(await list(clientWith(node.node.svid()))).toMatchObject(denied);
});

test('a revoked SVID is refused at the next call of an open connection', async () => {
  const client = await clientOf('short');
  expect(await list(client)).toBe('ok');
  const revoking = RevokeSvidRequest.create({ what: { $case: 'spiffeId', value: ID('short') }, waitMs: 1 });
  expect(await outcome((done) => server.admin.revokeSvid(revoking, done))).toBe('ok');
  expect(await list(client)).toMatchObject({ code: 16, details: expect.stringContaining('AUTH_REVOKED') });
});

test('an SVID that is bound to a node is refused while that node is evicted', async () => {
  await server.putEntry({ id: 'away', spiffeId: ID('away'), node: 'node-b', selectors: ['unix:uid:8'], admin: true });
  const other = await server.joined('node-b');
  const privateKey = generateKey();
  const [issued] = await other.issue([{ entryId: 'away', csr: createCsr(privateKey) }]);
  if (!issued?.ok) throw new Error(issued?.error);
  const svid = { spiffeId: spiffeId(ID('away')), chain: issued.value, privateKey, notAfterMs: Date.now() + 3_600_000 };
  const client = clientWith(svid);
  expect(await list(client)).toBe('ok');
  await server.nodeAction('evictNode', 'node-b');
  const refused = { code: 16, details: expect.stringContaining('ATTEST_NODE_EVICTED') };
  expect(await list(client)).toMatchObject(refused);
});

test('an SVID that ends is refused at the next call of an open connection', async () => {
  const client = await clientOf('viewer');
  expect(await list(client)).toBe('ok');
  server.clock.offsetMs += 2 * 3_600_000;
  const after = await list(client);
  server.clock.offsetMs -= 2 * 3_600_000;
  expect(after).toMatchObject({ code: 16, details: expect.stringContaining('CERT_EXPIRED') });
});

test('only TLS 1.3 is spoken', async () => {
  const protocol = (maxVersion: 'TLSv1.2' | 'TLSv1.3') =>
    new Promise((resolve) => {
      const socket = tlsConnect({ port, rejectUnauthorized: false, ALPNProtocols: ['h2'], maxVersion });
      socket.on('error', () => resolve('refused'));
      socket.on('close', () => resolve('refused'));
      socket.on('data', () => {
        resolve(socket.getProtocol());
        socket.destroy();
      });
    });
  expect(await protocol('TLSv1.3')).toBe('TLSv1.3');
  expect(await protocol('TLSv1.2')).toBe('refused');
});

test('the command line asks over TLS with the files of an SVID', async () => {
  const dir = join(server.dir, 'svid');
  const { chain, privateKey } = await svidOf('registrar');
  mkdirSync(dir);
  const rest = { spiffeId: spiffeId(ID('registrar')), hint: '', crls: [], federatedBundles: new Map() };
  replaceFiles(dir, pemFiles({ ...rest, chain, privateKey, bundle: server.bundle }));
  const run = (...args: string[]) => {
    const cli = join(import.meta.dirname, '../../../bin/countersign');
    return promisify(execFile)(cli, [...args, '--server', `127.0.0.1:${port}`, '--svid', dir, '-o', 'json']);
  };
  const spec = ['--spiffe-id', ID('cli'), '--node', 'node-b', '--selector', 'unix:uid:9', '--id', 'cli'];
  const made = JSON.parse((await run('entry', 'create', ...spec, '--jwt-ttl', '60', '--hint', 'h')).stdout);
  expect(made).toMatchObject({ id: 'cli', jwtTtlSeconds: 60, hint: 'h', admin: false });
  await expect(run('entry', 'create', ...spec)).rejects.toMatchObject({ stderr: expect.stringContaining('exists') });
  const changed = JSON.parse(
    (await run('entry', 'update', 'cli', '--dns-name', 'a.example.org', '--unset', 'hint')).stdout,
  );
  expect(changed).toMatchObject({ id: 'cli', jwtTtlSeconds: 60, hint: '', dnsNames: ['a.example.org'] });
  const { entries } = JSON.parse((await run('entry', 'list', '--node', 'node-b', '--selector', 'unix:uid:9')).stdout);
  expect(entries).toEqual([changed]);
  await expect(run('entry', 'update', 'cli', '--downstream')).rejects.toMatchObject({
    stderr: expect.stringContaining('ADMIN_ROLE'),
  });
  await expect(run('node', 'ban', 'node-b')).rejects.toMatchObject({
    stderr: expect.stringContaining('needs the role admin'),
  });
  chmodSync(join(dir, 'current', 'key.pem'), 0o644);
  await expect(run('entry', 'list')).rejects.toMatchObject({ stderr: expect.stringContaining('chmod 600') });
});

test('the command line asks over TLS as the workload that it is, by the Workload API', async () => {
  const id = { spiffeId: ID('operator'), node: 'node-b', selectors: SELECTORS, admin: true };
  await server.putEntry({ id: 'operator', ...id });
  const joinToken = await server.token('node-b');
  const { socketPath, svids } = await stageAgent(server, 'node-b', { joinToken: async () => joinToken });
  await until('its SVID', () => svids.snapshot().svidOf('operator'));
  const cli = join(import.meta.dirname, '../../../bin/countersign');
  const door = ['--server', `127.0.0.1:${port}`, '--svid', `unix:${socketPath}`];
  const banned = await promisify(execFile)(cli, ['node', 'ban', 'node-a', ...door, '-o', 'json']);
  expect(JSON.parse(banned.stdout)).toMatchObject({ node: 'node-a', banned: true });
  expect(server.auditLines()).toContainEqual(expect.objectContaining({ kind: 'node.banned', actor: ID('operator') }));
});
