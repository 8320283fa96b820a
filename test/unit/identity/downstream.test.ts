import { execFileSync } from 'node:child_process';
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { credentials } from '@grpc/grpc-js';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { openCertificateAuthority } from '../../../ca/api.ts';
import { authorityRequest } from '../../../ca/authority-request.ts';
import { buildTbs } from '../../../ca/build.ts';
import { MemoryKeys } from '../../../ca/keys/memory.ts';
import { lintTbs } from '../../../ca/lint.ts';
import { type CertificatePlan, planDownstream, planNode, planWorkload } from '../../../ca/profile.ts';
import { randomSerial } from '../../../ca/serial.ts';
import { signCertificate } from '../../../ca/sign.ts';
import { type Signer, signerOf } from '../../../ca/signer.ts';
import { downstreamHandler } from '../../../identity/admin/downstream.ts';
import {
  CaAdminClient,
  ListEntriesRequest,
  ServerAdminClient,
  type SignDownstreamAuthorityReply,
} from '../../../proto/gen/countersign/admin/v1/admin.ts';
import type { ServerClient } from '../../../src/agent/server-client/client.ts';
import { Connection } from '../../../src/agent/server-client/transport.ts';
import type { Svid } from '../../../src/model/identity.ts';
import type { NodeName, TrustDomain } from '../../../src/model/ids.ts';
import { spiffeId } from '../../../src/model/spiffe-id.ts';
import { type Certificate, parseCertificate } from '../../../src/pki/certificate.ts';
import { createCsr } from '../../../src/pki/csr.ts';
import { KEY_USAGE } from '../../../src/pki/extensions.ts';
import { generateKey, privateKeyPem, publicKeyDer } from '../../../src/pki/keys.ts';
import { decodePem, encodePem } from '../../../src/pki/pem.ts';
import { PinnedCredentials } from '../../../src/pki/server-credentials.ts';
import { signersOf, verifyX509Svid } from '../../../src/pki/verify.ts';
import { replaceFiles } from '../../../src/workload/outputs/directory.ts';
import { pemFiles } from '../../../src/workload/outputs/files.ts';
import { OpensslCas } from '../ca/openssl-ca.ts';
import { collector, ENTRIES, quiet, TestServer, TRUST_DOMAIN, until } from './harness.ts';

const ID = (name: string) => `spiffe://${TRUST_DOMAIN}/${name}`;
const LISTEN = { address: '127.0.0.1', port: 0 };
const HOUR_MS = 3_600_000;

let upper: TestServer;
let node: ServerClient;
let door = 0;
const closing: (() => unknown)[] = [];

/** A server with its door for administrators, and a node that got its SVIDs from it. */
async function startUpper(overrides: Record<string, unknown> = {}): Promise<void> {
  const admin = { listen: LISTEN, roles: [{ spiffeId: ID('boss'), role: 'admin' }] };
  upper = await TestServer.start({ admin, ...overrides }, [
    ...ENTRIES,
    { id: 'boss', spiffeId: ID('boss'), node: 'node-a' },
  ]);
  closing.push(() => upper[Symbol.asyncDispose]());
  await upper.putEntry(BELOW);
  node = await upper.joined('node-a');
  const line = await until('the port', () => upper.logged.findLast((text) => text.includes('administration over TLS')));
  door = (JSON.parse(line) as { port: number }).port;
}

const BELOW = {
  id: 'below',
  spiffeId: ID('below'),
  node: 'node-a',
  selectors: ['unix:uid:1002'],
  downstream: true,
};

beforeEach(() => startUpper());
afterEach(async () => {
  for (const close of closing.splice(0).reverse()) await close();
});

async function svidOf(id: string, from = node): Promise<Svid> {
  const privateKey = generateKey();
  const [issued] = await from.issue([{ entryId: id, csr: createCsr(privateKey) }]);
  if (!issued?.ok) throw new Error(issued?.error);
  return { spiffeId: spiffeId(ID(id)), chain: issued.value, privateKey, notAfterMs: Date.now() + HOUR_MS };
}

/** The files that `countersign svid watch` keeps. */
async function writeSvid(id: string): Promise<string> {
  const dir = join(upper.dir, `svid-${id}`);
  mkdirSync(dir, { recursive: true });
  const rest = { spiffeId: spiffeId(ID(id)), hint: '', crls: [], federatedBundles: new Map() };
  const { chain, privateKey } = await svidOf(id);
  replaceFiles(dir, pemFiles({ ...rest, chain, privateKey, bundle: upper.bundle }));
  return dir;
}

/** A server of its own that has its authority from the upper one. */
async function startLower(upstream: Record<string, unknown> = {}): Promise<TestServer> {
  const svid = await writeSvid('below');
  const config = { type: 'countersign', addresses: [`127.0.0.1:${door}`], svid, ...upstream };
  const lower = new TestServer();
  closing.push(() => lower[Symbol.asyncDispose]());
  lower.overrides = { ca: { upstream: config }, admin: { listen: LISTEN } };
  lower.clock.offsetMs = upper.clock.offsetMs;
  lower.writeEntries(ENTRIES);
  await lower.up();
  return lower;
}

/** Of a server's own socket. */
function caOf(server: TestServer): CaAdminClient {
  const client = new CaAdminClient(`unix:${join(server.dir, 'admin.sock')}`, credentials.createInsecure());
  closing.push(() => client.close());
  return client;
}

function authorityAct(server: TestServer, act: 'prepareAuthority' | 'activateAuthority'): Promise<unknown> {
  return new Promise((resolve) => {
    const request = { kind: 'x509', id: '', reason: '', waitMs: 0 };
    caOf(server)[act](request, (error, reply) => resolve(error ?? JSON.parse(reply.json)));
  });
}

function clientWith<T extends { close(): void }>(
  make: new (target: string, credentials: PinnedCredentials, options: object) => T,
  svid: Svid | undefined,
  port = door,
): T {
  const bundle = { trustDomain: TRUST_DOMAIN, authorities: upper.bundle };
  const options = { 'grpc.default_authority': 'countersign', 'grpc.use_local_subchannel_pool': 1 };
  const client = new make(`127.0.0.1:${port}`, new PinnedCredentials({ bundle, svid, clock: upper.clock }), options);
  closing.push(() => client.close());
  return client;
}

type Outcome = { code: number; details: string } | SignDownstreamAuthorityReply;
function ask(client: CaAdminClient, csr = createCsr(generateKey()), ttlSeconds = 3600): Promise<Outcome> {
  return new Promise((resolve) => {
    client.signDownstreamAuthority({ csr, ttlSeconds }, (error, reply) => resolve((error as never) ?? reply));
  });
}
async function signed(client: CaAdminClient, csr?: Buffer, ttlSeconds?: number): Promise<SignDownstreamAuthorityReply> {
  const outcome = await ask(client, csr, ttlSeconds);
  if ('details' in outcome) throw new Error(outcome.details);
  return outcome;
}
const refused = (reason: string, code = 7) => ({ code, details: expect.stringContaining(reason) });

function certificate(der: Buffer | undefined): Certificate {
  const parsed = parseCertificate(der!);
  if (!parsed.ok) throw new Error(parsed.error);
  return parsed.value;
}

const verify = (chain: readonly Buffer[], authorities = upper.bundle) =>
  verifyX509Svid(chain, { trustDomain: TRUST_DOMAIN, authorities }, Date.now());

/** As openssl judges it under the upper server's bundle. @throws what openssl says */
function opensslVerify([leaf, ...above]: readonly Buffer[]): void {
  const write = (name: string, ders: readonly Buffer[]) => {
    const file = join(upper.dir, name);
    writeFileSync(file, ders.map((der) => encodePem('CERTIFICATE', der)).join(''));
    return file;
  };
  const files = ['-CAfile', write('roots.pem', upper.bundle), '-untrusted', write('above.pem', above)];
  execFileSync('openssl', ['verify', '-x509_strict', '-no-CApath', ...files, write('leaf.pem', [leaf!])], {
    stdio: 'pipe',
  });
}

/** An authority that a test holds the key of, as a server below does. */
async function authority(): Promise<{ signer: Signer; chain: readonly Buffer[] }> {
  const key = await new MemoryKeys().generate('x509-1', 'ec-p256');
  const client = clientWith(CaAdminClient, await svidOf('below'));
  const { chain } = await signed(client, authorityRequest(key, TRUST_DOMAIN));
  return { signer: signerOf(key, certificate(chain[0])), chain };
}

describe('a server below', () => {
  test('gets its authority from another one, and what it issues verifies under that one’s bundle', async () => {
    const lower = await startLower();
    expect(lower.bundle).toEqual(upper.bundle);
    const workload = await lower.joined('node-b');
    const { chain } = await svidOf('backend', workload);
    expect(chain).toHaveLength(2);
    expect(verify(chain)).toMatchObject({ ok: true, value: { spiffeId: ID('backend') } });
    opensslVerify(chain);

    const { svids } = (await upper.list('listSvids')) as { svids: Record<string, unknown>[] };
    const listed = svids.filter(({ profile }) => profile === 'downstream');
    expect(listed).toMatchObject([{ spiffeId: `spiffe://${TRUST_DOMAIN}`, node: ID('node/node-a'), revoked: false }]);
    const event = upper.auditLines().find(({ kind }) => kind === 'authority.signed');
    expect(event).toMatchObject({
      actor: ID('below'),
      source: { spiffeId: ID('below'), node: 'node-a' },
      detail: { serial: listed[0]!.serial },
    });
  });

  test('reads the SVID anew each time: with one that was written since it gets its next authority', async () => {
    const lower = await startLower();
    const prepare = () => authorityAct(lower, 'prepareAuthority');
    await upper.revoke({ $case: 'spiffeId', value: ID('below') }, 1);
    expect(await prepare()).toMatchObject({ code: 16, details: expect.stringContaining('AUTH_REVOKED') });
    await upper.putEntry({ ...BELOW, hint: 'again' });
    // what is issued within ten seconds is taken for what was revoked
    upper.clock.offsetMs += 12_000;
    await writeSvid('below');
    expect(await prepare()).toMatchObject({ state: 'prepared', upstream: true });
  });

  test('does not start with a server above that is another’s, cannot be reached, or refuses', async () => {
    const other = new OpensslCas(upper.dir).make('other');
    await expect(startLower({ bundleFile: other.certFile })).rejects.toThrow(/not the identity server of this trust/);
    await expect(startLower({ svid: '/nowhere' })).rejects.toThrow(/ca\.upstream\.svid: \/nowhere: not there/);
    await expect(startLower({ addresses: ['127.0.0.1:1'] })).rejects.toMatchObject({ code: 'unavailable' });
    await upper.putEntry({ ...BELOW, downstream: false });
    await expect(startLower()).rejects.toThrow(/identity server at 127.0.0.1:\d+: ISSUE_NOT_DOWNSTREAM/);
  });

  test('with an SVID of another trust domain is told so before it asks', async () => {
    const trustDomain = 'elsewhere.org' as TrustDomain;
    const directory = join(upper.dir, 'elsewhere');
    const ca = await openCertificateAuthority({ directory, trustDomain, clock: upper.clock });
    closing.push(() => ca.close());
    const privateKey = generateKey();
    const [id, on] = [spiffeId('spiffe://elsewhere.org/below'), spiffeId('spiffe://elsewhere.org/node/node-a')];
    const csr = createCsr(privateKey);
    const issued = await ca.issueWorkloadSvid({ csr, spiffeId: id, node: on, requester: 'test' });
    if (!issued.ok) throw new Error(issued.error);
    const svid = join(upper.dir, 'svid-elsewhere');
    mkdirSync(svid);
    const rest = { spiffeId: id, hint: '', crls: [], federatedBundles: new Map() };
    const bundle = ca.bundle().authorities;
    replaceFiles(svid, pemFiles({ ...rest, chain: issued.value.chain, privateKey, bundle }));
    await expect(startLower({ svid })).rejects.toThrow(/is not of the trust domain example\.org/);
  });

  test('has every root of the bundle above, and one that ends before its own authority is no obstacle', async () => {
    await startUpper({ ca: { rootTtl: '2h' }, admin: { listen: LISTEN } });
    upper.clock.offsetMs = 40 * 60_000;
    await authorityAct(upper, 'prepareAuthority');
    expect(await authorityAct(upper, 'activateAuthority')).toMatchObject({ state: 'active' });
    expect(upper.bundle).toHaveLength(2);
    const lower = await startLower();
    expect(lower.bundle.map(String).sort()).toEqual(upper.bundle.map(String).sort());
    const { chain } = await svidOf('backend', await lower.joined('node-b'));
    const above = certificate(chain[1]);
    expect(above.notAfterMs).toBeGreaterThan(certificate(upper.bundle[0]).notAfterMs);
    const under = { trustDomain: TRUST_DOMAIN, authorities: upper.bundle };
    expect(verifyX509Svid(chain, under, upper.clock.nowMs())).toMatchObject({ ok: true });
  });

  test('under an upper server whose own authority signs SVIDs alone is told so', async () => {
    const { certFile, keyFile } = new OpensslCas(upper.dir).make('root');
    await startUpper({
      ca: { upstream: { type: 'disk', certFile, keyFile } },
      admin: { listen: LISTEN },
    });
    const client = clientWith(CaAdminClient, await svidOf('below'));
    expect(await ask(client)).toMatchObject(refused('give the server below that upstream itself', 12));
  });
});

describe('an authority is refused to', () => {
  test('whoever has no entry that says downstream, be it an administrator', async () => {
    expect(await ask(clientWith(CaAdminClient, await svidOf('frontend')))).toMatchObject(
      refused('ISSUE_NOT_DOWNSTREAM'),
    );
    expect(await ask(clientWith(CaAdminClient, await svidOf('boss')))).toMatchObject(refused('ISSUE_NOT_DOWNSTREAM'));
    expect(await ask(clientWith(CaAdminClient, node.node.svid()))).toMatchObject(refused('ISSUE_NOT_DOWNSTREAM'));
    expect(await ask(clientWith(CaAdminClient, undefined))).toMatchObject(refused('CERT_CHAIN_EMPTY', 16));
    expect(await ask(caOf(upper))).toMatchObject(refused('ISSUE_NOT_DOWNSTREAM'));
    expect(upper.auditLines()).toContainEqual(
      expect.objectContaining({ kind: 'admin.refused', reason: 'ISSUE_NOT_DOWNSTREAM', actor: ID('boss') }),
    );
  });

  test('the same SPIFFE ID on a node whose entry does not say it', async () => {
    await upper.putEntry({ ...BELOW, id: 'elsewhere', node: 'node-b', downstream: false });
    const other = await upper.joined('node-b');
    const svid = { ...(await svidOf('elsewhere', other)), spiffeId: spiffeId(ID('below')) };
    expect(await ask(clientWith(CaAdminClient, svid))).toMatchObject(refused('ISSUE_NOT_DOWNSTREAM'));
  });

  test('whose entry is gone, whose SVID is revoked, whose node was sent away: at the next call', async () => {
    const client = clientWith(CaAdminClient, await svidOf('below'));
    await signed(client);
    await new Promise((done) => upper.admin.deleteEntry({ id: 'below' }, done));
    expect(await ask(client)).toMatchObject(refused('ISSUE_NOT_DOWNSTREAM'));
    await upper.putEntry(BELOW);
    await signed(client);
    await upper.nodeAction('evictNode', 'node-a');
    expect(await ask(client)).toMatchObject(refused('ATTEST_NODE_EVICTED', 16));
    await upper.revoke({ $case: 'spiffeId', value: ID('below') }, 1);
    expect(await ask(client)).toMatchObject(refused('AUTH_REVOKED', 16));
  });

  test('whose entry is barred, whatever else there is of its SPIFFE ID', async () => {
    await upper.revoke({ $case: 'spiffeId', value: ID('below') }, 1);
    await upper.putEntry({ ...BELOW, id: 'plain', downstream: false });
    upper.clock.offsetMs += 12_000;
    const svid = { ...(await svidOf('plain')), spiffeId: spiffeId(ID('below')) };
    expect(await ask(clientWith(CaAdminClient, svid))).toMatchObject(refused('ISSUE_REVOKED'));
  });

  test('who lost the right while it was being signed', async () => {
    const entry = { ...BELOW, spiffeId: spiffeId(ID('below')), node: 'node-a' as NodeName, barred: false };
    const entries = [entry as never];
    const audit = collector();
    const handler = downstreamHandler({
      actorOf: () => 'ADMIN_ROLE',
      workloadOf: () => ({ spiffeId: entry.spiffeId, node: entry.node }),
      registry: { entriesWith: () => entries },
      takeShare: () => {},
      ca: {
        trustDomain: TRUST_DOMAIN,
        bundle: () => ({ authorities: [] }),
        signDownstream: async () => {
          entries.pop();
          return { ok: true, value: { chain: [Buffer.of(1)], serial: '01', notAfterMs: 0 } };
        },
      } as never,
      log: quiet,
      audit,
    });
    const call = { request: { csr: Buffer.of(), ttlSeconds: 0 }, getPeer: () => 'x', getPath: () => 'y' };
    const outcome = await new Promise((resolve) => handler(call as never, (error, reply) => resolve(error ?? reply)));
    expect(outcome).toMatchObject(refused('ISSUE_NOT_DOWNSTREAM'));
    expect(audit.events.map(({ kind }) => kind)).toEqual(['admin.refused']);
  });

  test('a node that asks for more than its share', async () => {
    await startUpper({ limits: { svidsPerNode: 1 }, admin: { listen: LISTEN } });
    const client = clientWith(CaAdminClient, await svidOf('below'));
    let last: Outcome | undefined;
    for (let i = 0; i < 40; i++) {
      const outcomes = await Promise.all(Array.from({ length: 20 }, () => ask(client)));
      last = outcomes.find((outcome) => 'details' in outcome);
      if (last !== undefined) break;
    }
    expect(last).toMatchObject(refused('ISSUE_RATE', 8));
  });

  test('a request that its key did not sign', async () => {
    const csr = createCsr(generateKey());
    csr[csr.length - 1]! ^= 1;
    expect(await ask(clientWith(CaAdminClient, await svidOf('below')), csr)).toMatchObject(
      refused('ISSUE_CSR_INVALID'),
    );
  });
});

test('it may do nothing else there', async () => {
  const client = clientWith(ServerAdminClient, await svidOf('below'));
  const outcome = await new Promise((resolve) => {
    client.listEntries(ListEntriesRequest.create(), (error) => resolve(error));
  });
  expect(outcome).toMatchObject(refused('ADMIN_ROLE'));
});

test('of a request nothing but the key is taken, and its life ends with the limit and with the authority above', async () => {
  const client = clientWith(CaAdminClient, await svidOf('below'));
  const config = join(upper.dir, 'csr.cnf');
  writeFileSync(
    config,
    `[req]\ndistinguished_name=dn\nreq_extensions=ext\nprompt=no\n[dn]\nCN=spiffe://other.org\nO=Somebody\n[ext]
basicConstraints=critical,CA:true,pathlen:7\nkeyUsage=critical,digitalSignature,keyCertSign
subjectAltName=URI:spiffe://example.org/boss,URI:spiffe://other.org,DNS:a.example.org\nextendedKeyUsage=clientAuth\n`,
  );
  const key = generateKey();
  const keyFile = join(upper.dir, 'csr.key');
  writeFileSync(keyFile, privateKeyPem(key), { mode: 0o600 });
  const pem = execFileSync('openssl', ['req', '-new', '-key', keyFile, '-config', config]).toString();
  const { chain, roots } = await signed(client, decodePem(pem, 'CERTIFICATE REQUEST')[0], 30 * 86_400);
  expect(chain).toHaveLength(1);
  expect(roots).toEqual(upper.bundle);
  const made = certificate(chain[0]);
  expect(made).toMatchObject({
    spiffeId: `spiffe://${TRUST_DOMAIN}`,
    uriSanCount: 1,
    dnsNames: [],
    isCa: true,
    pathLength: 0,
    keyUsage: KEY_USAGE.keyCertSign | KEY_USAGE.crlSign,
    extKeyUsage: undefined,
  });
  expect(made.spki).toEqual(publicKeyDer(key));
  expect(made.subjectDer.includes('Somebody')).toBe(false);
  expect(made.notAfterMs - Date.now()).toBeLessThanOrEqual(24 * HOUR_MS);
  expect(made.notAfterMs - Date.now()).toBeGreaterThan(23 * HOUR_MS);
  expect(certificate((await signed(client, undefined, 600)).chain[0]).notAfterMs - Date.now()).toBeLessThan(HOUR_MS);

  await startUpper({ ca: { rootTtl: '2h' }, admin: { listen: LISTEN } });
  const short = await signed(clientWith(CaAdminClient, await svidOf('below')), undefined, 86_400);
  expect(certificate(short.chain[0]).notAfterMs).toBe(certificate(upper.bundle[0]).notAfterMs);
});

describe('an authority of a server below', () => {
  test('cannot sign another that verifies', async () => {
    const { signer, chain } = await authority();
    const second = Math.floor(Date.now() / 1000) * 1000;
    const validity = { notBeforeMs: second - 1000, notAfterMs: second + 60_000 };
    // what it would take: a lint that lets it pass, as a program of its own has none
    const sub = await new MemoryKeys().generate('x509-2', 'ec-p256');
    const loose = { ...signer, issuer: { ...signer.issuer!, pathLength: undefined } };
    const plan = planDownstream(TRUST_DOMAIN, validity);
    const make = (by: Signer, what: typeof plan, spki: Buffer) => {
      const linted = lintTbs(buildTbs(what, by, spki, randomSerial()), what, by, spki);
      if (!linted.ok) throw new Error(linted.error.join());
      return signCertificate(linted.value);
    };
    const below = make(loose, plan, sub.publicKey);
    const spki = publicKeyDer(generateKey());
    const leaf = make(signerOf(sub, certificate(below)), planNode(TRUST_DOMAIN, 'n' as NodeName, 0n, validity), spki);
    expect(verify([leaf, below, ...chain])).toEqual({ ok: false, error: 'CERT_PATH_LENGTH' });
    expect(() => opensslVerify([leaf, below, ...chain])).toThrow(/path length constraint exceeded/);
    expect(() => make(signer, plan, sub.publicKey)).toThrow(/its authority may have another below it/);
  });

  test('names nobody at the server above: neither an administrator nor a node', async () => {
    const { signer, chain } = await authority();
    const second = Math.floor(Date.now() / 1000) * 1000;
    const privateKey = generateKey();
    const spki = publicKeyDer(privateKey);
    const validity = { notBeforeMs: second - 1000, notAfterMs: second + 60_000 };
    const forge = (plan: CertificatePlan): Svid => {
      const linted = lintTbs(buildTbs(plan, signer, spki, randomSerial()), plan, signer, spki);
      if (!linted.ok) throw new Error(linted.error.join());
      const forged = [signCertificate(linted.value), ...chain];
      expect(verify(forged)).toMatchObject({ ok: true, value: { spiffeId: plan.spiffeId } });
      return { spiffeId: plan.spiffeId, chain: forged, privateKey, notAfterMs: validity.notAfterMs };
    };
    const boss = planWorkload(spiffeId(ID('boss')), spiffeId(ID('node/node-a')), [], validity);
    const client = clientWith(ServerAdminClient, forge(boss));
    const outcome = await new Promise((resolve) => {
      client.listEntries(ListEntriesRequest.create(), (error) => resolve(error));
    });
    expect(outcome).toMatchObject(refused('CERT_DOWNSTREAM', 16));

    const svid = forge(planNode(TRUST_DOMAIN, 'node-a' as NodeName, 9n, validity));
    const bundle = { trustDomain: TRUST_DOMAIN, authorities: upper.bundle };
    const connection = new Connection({ addresses: [upper.address], bundle, svid, clock: upper.clock });
    closing.push(() => connection.close());
    const request = { csrs: [{ entryId: 'frontend', csr: createCsr(generateKey()) }] };
    await expect(connection.unary('issue', request, 5000)).rejects.toThrow(/CERT_DOWNSTREAM/);
  });

  test('takes nobody for a node whom the server above, or one beside it, issued an SVID', async () => {
    const lower = await startLower();
    const { signer, chain } = await authority();
    const second = Math.floor(Date.now() / 1000) * 1000;
    const privateKey = generateKey();
    const spki = publicKeyDer(privateKey);
    const plan = planNode(TRUST_DOMAIN, 'node-a' as NodeName, 9n, {
      notBeforeMs: second - 1000,
      notAfterMs: second + 60_000,
    });
    const linted = lintTbs(buildTbs(plan, signer, spki, randomSerial()), plan, signer, spki);
    if (!linted.ok) throw new Error(linted.error.join());
    const beside = {
      spiffeId: plan.spiffeId,
      chain: [signCertificate(linted.value), ...chain],
      privateKey,
      notAfterMs: plan.notAfterMs,
    };
    const bundle = { trustDomain: TRUST_DOMAIN, authorities: upper.bundle };
    const request = { csrs: [{ entryId: 'frontend', csr: createCsr(generateKey()) }] };
    for (const svid of [beside, await svidOf('below')]) {
      expect(verify(svid.chain).ok).toBe(true);
      const connection = new Connection({ addresses: [lower.address], bundle, svid, clock: lower.clock });
      closing.push(() => connection.close());
      await expect(connection.unary('issue', request, 5000)).rejects.toThrow(/CERT_DOWNSTREAM/);
    }
  });

  test.each(['serial', 'spiffeId', 'node'] as const)(
    'falls with a revocation by %s, and all that it signed with it',
    async (by) => {
      const lower = await startLower();
      const workload = await lower.joined('node-b');
      const { chain } = await svidOf('backend', workload);
      const other = await upper.joined('node-b');
      const verdict = verify(chain);
      if (!verdict.ok) throw new Error(verdict.error);
      const { leaf, authorities } = verdict.value;
      const subject = { ...leaf, spiffeId: leaf.spiffeId!, node: leaf.nodeBinding, authorities };
      expect(other.revocations.isRevoked(subject)).toBe(false);

      const { svids } = (await upper.list('listSvids')) as { svids: { serial: string; profile: string }[] };
      const { serial } = svids.find(({ profile }) => profile === 'downstream')!;
      const value = { serial, spiffeId: ID('below'), node: 'node-a' }[by];
      await upper.revoke({ $case: by, value } as never, 1);
      // what an agent above holds against every proof
      await until('the revocation', () => other.revocations.isRevoked(subject));
      expect(signersOf([leaf])).toContain(certificate(chain[1]).subjectKeyId!.toString('hex'));
      const after = (await upper.list('listSvids')) as { svids: { serial: string; revoked: boolean }[] };
      expect(after.svids.find((row) => row.serial === serial)?.revoked).toBe(true);

      expect(upper.auditLines()).toContainEqual(
        expect.objectContaining({
          kind: 'svid.revoked',
          detail: expect.objectContaining({ what: 'authority', value: leaf.authorityKeyId!.toString('hex') }),
        }),
      );

      // and what OpenSSL reads of the list
      const crls = await new Promise<Buffer[]>((resolve, reject) => {
        caOf(upper).getCrls({}, (error, reply) => (error === null ? resolve(reply.crls) : reject(error)));
      });
      const crl = join(upper.dir, 'crl.der');
      writeFileSync(crl, crls[0]!);
      const text = execFileSync('openssl', ['crl', '-inform', 'DER', '-in', crl, '-noout', '-text']).toString();
      expect(text.toLowerCase().replaceAll(':', '')).toContain(serial);
    },
  );
});

test('the flag is kept over a restart, shown, and taken back by an update', async () => {
  const shown = async () => {
    const { entries } = (await upper.list('listEntries')) as { entries: { id: string; downstream: boolean }[] };
    return entries.find(({ id }) => id === 'below')?.downstream;
  };
  expect(await shown()).toBe(true);
  await upper.down();
  await upper.up();
  expect(await shown()).toBe(true);
  await upper.putEntry({ ...BELOW, downstream: false }, 'update');
  expect(await shown()).toBe(false);
});
