/** Two real identity servers that federate both ways, an agent at one of them, and OpenID Connect clients that others wrote. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { request } from 'node:https';
import { type Socket, connect as tcpConnect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { connect } from 'node:tls';
import { createRemoteJWKSet, customFetch, jwtVerify } from 'jose';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { stringify } from 'yaml';
import { serverConfigSchema } from '../../../identity/config.ts';
import { fileCredentials, svidCredentials } from '../../../identity/federation/credentials.ts';
import { type HttpsServerOptions, serveHttps } from '../../../identity/federation/https-server.ts';
import type { FeedListener } from '../../../identity/feed.ts';
import type { ServerClient } from '../../../src/agent/server-client/client.ts';
import { parseConfig } from '../../../src/base/config-file.ts';
import type { Timers } from '../../../src/base/timers.ts';
import type { TrustBundle } from '../../../src/model/identity.ts';
import type { TrustDomain } from '../../../src/model/ids.ts';
import { derUnsignedInteger } from '../../../src/pki/der.ts';
import { validateJwtSvid } from '../../../src/pki/jwt.ts';
import { privateKeyPem } from '../../../src/pki/keys.ts';
import { parseSpiffeBundle } from '../../../src/pki/spiffe-bundle.ts';
import { quiet, TestServer, until } from './harness.ts';
import { authorities, bundles, freePort, webAuthority, webCertificate, webLeaf } from './web.ts';

const PARTNER = 'partner.org';
const dir = mkdtempSync(join(tmpdir(), 'cs-federation-'));
const web = webCertificate(dir, 'web');
const caFile = join(dir, 'web-ca.pem');
writeFileSync(caFile, webAuthority);

const refresh = (server: TestServer, trustDomain: string) =>
  bundles(server, (client, done) => client.refreshBundle({ trustDomain }, done));
const set = (server: TestServer, trustDomain: string, document: string) =>
  bundles(server, (client, done) => client.setBundle({ trustDomain, document }, done));
const show = async (server: TestServer, trustDomain = '') =>
  (await bundles(server, (client, done) => client.showBundle({ trustDomain }, done))) as {
    certificates: string[];
    document: string;
    sequence: string;
  };
const list = async (server: TestServer) =>
  (await bundles(server, (client, done) => client.listBundles({}, done))).bundles as Record<string, unknown>[];
const rotate = (server: TestServer, step: 'prepareAuthority' | 'activateAuthority', kind: string) =>
  authorities(server, (client, done) => client[step]({ kind, id: '', reason: 'test', waitMs: 0 }, done));

let home: TestServer;
let partner: TestServer;
let issuer: string;
let homeEndpoint: string;

beforeAll(async () => {
  const [homePort, partnerPort, oidcPort] = await Promise.all([freePort(), freePort(), freePort()]);
  issuer = `https://localhost:${oidcPort}/tenant`;
  homeEndpoint = `https://localhost:${homePort}/bundle`;
  home = await TestServer.start({
    federation: {
      bundleEndpoint: {
        listen: { address: '127.0.0.1', port: homePort },
        path: '/bundle',
        profile: { https_web: web },
      },
      trustDomains: [
        {
          trustDomain: PARTNER,
          endpointUrl: `https://localhost:${partnerPort}/`,
          profile: { https_spiffe: `spiffe://${PARTNER}/countersign/server` },
        },
      ],
    },
    oidc: { issuer, listen: { address: '127.0.0.1', port: oidcPort }, tls: web },
  });
  partner = await TestServer.start(
    {
      trustDomain: PARTNER,
      nodes: [],
      federation: {
        bundleEndpoint: { listen: { address: '127.0.0.1', port: partnerPort }, profile: 'https_spiffe' },
        trustDomains: [{ trustDomain: 'example.org', endpointUrl: homeEndpoint, profile: 'https_web', caFile }],
      },
    },
    [],
  );
});
afterAll(async () => {
  await home[Symbol.asyncDispose]();
  await partner[Symbol.asyncDispose]();
  rmSync(dir, { recursive: true, force: true });
});

/** One agent for all that is asked of one. */
let joined: Promise<ServerClient> | undefined;
function nodeA(): Promise<ServerClient> {
  joined ??= home.joined('node-a').then((client) => {
    client.onChange(async () => {});
    return client;
  });
  return joined;
}

describe('two servers', () => {
  it('federate both ways, one by https_web at once, one by https_spiffe once a first bundle was given', async () => {
    await refresh(partner, 'example.org');
    expect((await show(partner, 'example.org')).certificates).toEqual((await show(home)).certificates);

    await expect(refresh(home, PARTNER)).rejects.toThrow('there is no bundle of partner.org to verify it with');
    await set(home, PARTNER, (await show(partner)).document);
    const row = await refresh(home, PARTNER);
    expect(row).toMatchObject({
      trustDomain: PARTNER,
      origin: 'endpoint',
      x509Authorities: 1,
      jwtAuthorities: 1,
      endpoint: { profile: 'https_spiffe', spiffeId: `spiffe://${PARTNER}/countersign/server` },
    });
    expect((await show(home, PARTNER)).certificates).toEqual((await show(partner)).certificates);
    expect(await list(home)).toMatchObject([
      { trustDomain: 'example.org', own: true },
      { trustDomain: PARTNER, own: false },
    ]);
    const told = home.auditLines().filter(({ kind }) => kind.startsWith('bundle.'));
    expect(told.map(({ kind, reason }) => reason ?? kind)).toEqual([
      'BUNDLE_ENDPOINT_UNTRUSTED',
      'bundle.changed',
      'bundle.changed',
    ]);
  });

  it('send what they hold to their agents, and each change of it', async () => {
    const client = await nodeA();
    const held = () => client.federatedBundles().find(({ trustDomain }) => trustDomain === PARTNER);
    const before = await until('the bundle', held);
    expect(before.jwtAuthorities).toHaveLength(1);
    await rotate(partner, 'prepareAuthority', 'x509');
    await refresh(home, PARTNER);
    const after = await until('the changed bundle', () => held()?.authorities.length === 2 && held());
    expect(after.sequence).toBeGreaterThan(before.sequence!);
  });

  it('follow a rotation of the key that the endpoint itself is proven with', async () => {
    await rotate(partner, 'prepareAuthority', 'x509');
    await refresh(home, PARTNER);
    const old = await endpointLeaf(partner);
    await rotate(partner, 'activateAuthority', 'x509');
    // a new life of the server: its SVID is one of the new key's
    await partner.down();
    await partner.up();
    expect(await endpointLeaf(partner)).not.toBe(old);
    expect(await refresh(home, PARTNER)).toMatchObject({ x509Authorities: 2 });
  });

  it('refuse a bundle for their own trust domain', async () => {
    await expect(set(home, 'example.org', (await show(partner)).document)).rejects.toThrow('BUNDLE_OWN_TRUST_DOMAIN');
    expect((await show(home)).certificates).toHaveLength(1);
  });

  it('refuse the bundle of one trust domain as that of another', async () => {
    await expect(set(home, 'third.org', (await show(partner)).document)).rejects.toThrow('BUNDLE_MALFORMED');
    await expect(show(home, 'third.org')).rejects.toThrow('there is no bundle of third.org');
  });

  it('keep the last good bundle over a restart while the other is away, and give it up when told', async () => {
    const before = await show(home, PARTNER);
    await partner.down();
    await home.down();
    await home.up();
    expect(await show(home, PARTNER)).toEqual(before);
    await expect(refresh(home, PARTNER)).rejects.toThrow('BUNDLE_UNREACHABLE');
    expect(await show(home, PARTNER)).toEqual(before);
    await bundles(home, (client, done) => client.deleteBundle({ trustDomain: PARTNER }, done));
    await expect(show(home, PARTNER)).rejects.toThrow('there is no bundle');
    await partner.up();
    // no trust on first use, nor on second
    await expect(refresh(home, PARTNER)).rejects.toThrow('BUNDLE_ENDPOINT_UNTRUSTED');
  });
});

/** What the endpoint of the partner shows. */
async function endpointLeaf(server: TestServer): Promise<string> {
  const { port } = server.config().federation.bundleEndpoint!.listen;
  const socket = connect({ host: '127.0.0.1', port, rejectUnauthorized: false });
  await new Promise((resolve) => socket.once('secureConnect', resolve));
  const { fingerprint256 } = socket.getPeerX509Certificate()!;
  socket.destroy();
  return fingerprint256;
}

/** As a browser would, with the test's own authority. */
function fetched(url: string, method = 'GET'): Promise<Response> {
  return new Promise((resolve, reject) => {
    const sent = request(url, { method, ca: webAuthority }, (response) => {
      const chunks: Buffer[] = [];
      response.on('data', (chunk: Buffer) => chunks.push(chunk));
      response.on('end', () => {
        const headers = response.headers as Record<string, string>;
        resolve(new Response(Buffer.concat(chunks), { status: response.statusCode ?? 0, headers }));
      });
    });
    sent.on('error', reject);
    sent.end();
  });
}

describe('the bundle endpoint', () => {
  it('serves the bundle as JSON, by GET alone, and nothing else', async () => {
    const answer = await fetched(homeEndpoint);
    expect(answer.headers.get('content-type')).toBe('application/json');
    const text = await answer.text();
    expect(parseSpiffeBundle(text, 'example.org' as TrustDomain)).toMatchObject({ ok: true });
    expect(text).toBe((await show(home)).document);
    for (const method of ['POST', 'PUT', 'DELETE', 'HEAD', 'OPTIONS'])
      expect((await fetched(homeEndpoint, method)).status, method).toBe(405);
    for (const path of ['/', '/bundle/', '/../bundle/x', '/__proto__', '/keys'])
      expect((await fetched(new URL(path, homeEndpoint).href)).status, path).toBe(404);
  });

  it('speaks TLS 1.2 and 1.3 and nothing older', async () => {
    const { port } = new URL(homeEndpoint);
    const spoken = (version: 'TLSv1.1' | 'TLSv1.2' | 'TLSv1.3') =>
      new Promise((resolve) => {
        const options = { minVersion: version, maxVersion: version, ciphers: 'DEFAULT@SECLEVEL=0' } as const;
        const socket = connect({ host: '127.0.0.1', port: Number(port), rejectUnauthorized: false, ...options });
        socket.once('secureConnect', () => resolve(socket.getProtocol()));
        socket.once('error', () => resolve('refused'));
      });
    expect(await Promise.all([spoken('TLSv1.1'), spoken('TLSv1.2'), spoken('TLSv1.3')])).toEqual([
      'refused',
      'TLSv1.2',
      'TLSv1.3',
    ]);
  });
});

describe('OpenID Connect', () => {
  it('clients that others wrote verify a JWT-SVID by the discovery document alone', async () => {
    const client = await nodeA();
    await until('the server', () => client.status().connected);
    const { token } = await client.issueJwt('frontend', ['reports']);
    const discovery = (await (await fetched(`${issuer}/.well-known/openid-configuration`)).json()) as {
      issuer: string;
      jwks_uri: string;
      id_token_signing_alg_values_supported: string[];
    };
    expect(discovery).toMatchObject({
      issuer,
      response_types_supported: ['id_token'],
      subject_types_supported: ['public'],
    });
    const keys = createRemoteJWKSet(new URL(discovery.jwks_uri), { [customFetch]: (url) => fetched(url) });
    const algorithms = discovery.id_token_signing_alg_values_supported;
    const verified = await jwtVerify(token, keys, { issuer, audience: 'reports', algorithms });
    expect(verified.payload).toMatchObject({ sub: 'spiffe://example.org/frontend', aud: ['reports'], iss: issuer });
    await expect(jwtVerify(token, keys, { issuer, audience: 'other' })).rejects.toThrow('aud');

    // and the same token by the rules of SPIFFE, with the bundle that the node has
    const bundle: TrustBundle = client.ownBundle().bundle;
    expect(validateJwtSvid(token, 'reports', [bundle], Date.now())).toMatchObject({
      ok: true,
      value: { spiffeId: 'spiffe://example.org/frontend' },
    });

    // a key that is only prepared is published before it signs
    await rotate(home, 'prepareAuthority', 'jwt');
    expect(((await (await fetched(discovery.jwks_uri)).json()) as { keys: unknown[] }).keys).toHaveLength(2);
  });

  it('publishes keys of JWT-SVIDs and nothing else', async () => {
    const { keys } = (await (await fetched(`${issuer}/keys`)).json()) as { keys: Record<string, unknown>[] };
    expect(keys.length).toBeGreaterThan(0);
    for (const key of keys) {
      expect(Object.keys(key).sort()).toEqual(['alg', 'crv', 'kid', 'kty', 'use', 'x', 'y']);
      expect(key.use).toBe('sig');
    }
    expect((await fetched(`${issuer}/`)).status).toBe(404);
  });
});

describe('a JWT-SVID', () => {
  it('is issued for entries of the asking node alone, for audiences within bounds, and stands in the audit log', async () => {
    const client = await home.joined('node-b');
    client.onChange(async () => {});
    const ask = (entry: string, audience: string[]) => client.issueJwt(entry, audience);
    await expect(ask('frontend', ['a'])).rejects.toThrow('ISSUE_NOT_YOUR_ENTRY');
    await expect(ask('nothing', ['a'])).rejects.toThrow('ISSUE_NOT_YOUR_ENTRY');
    const bad = [[], [''], ['a\nb'], ['x'.repeat(2049)], ['x'.repeat(2048), 'y'.repeat(2048), 'z']];
    for (const audience of [...bad, Array.from({ length: 17 }, (_, i) => `a${i}`)])
      await expect(ask('backend', audience)).rejects.toThrow('JWT_AUDIENCE');
    const { token } = await ask('backend', ['a', 'b', 'a']);
    expect(validateJwtSvid(token, 'b', [client.ownBundle().bundle], Date.now())).toMatchObject({
      value: { claims: { aud: ['a', 'b'], sub: 'spiffe://example.org/backend' } },
    });
    const issued = home.auditLines().findLast(({ kind }) => kind === 'svid.issued');
    expect(issued).toMatchObject({ detail: { entry: 'backend', type: 'jwt', audience: 'a b' } });
    expect(home.filesWith(token)).toEqual([]);
    await home.revoke({ $case: 'spiffeId', value: 'spiffe://example.org/backend' }, 0);
    await expect(ask('backend', ['a'])).rejects.toThrow('ISSUE_REVOKED');
    // nor later: what was issued is revoked, and the entry is barred until it is registered anew
    home.clock.offsetMs += 5_000;
    await expect(ask('backend', ['a'])).rejects.toThrow('ISSUE_REVOKED');
  });
});

describe('a certificate in files', () => {
  it('is taken up when it was renewed, and kept as it is when the files are wrong', () => {
    const files = webCertificate(dir, 'renewed');
    let tick = () => {};
    const timers: Timers = {
      set: (_, fn) => {
        tick = fn;
        return () => {};
      },
    };
    const credentials = fileCredentials(files, timers, quiet);
    let changes = 0;
    credentials.watch(() => {
      changes += 1;
    });
    const first = credentials.current;
    tick();
    expect(changes).toBe(0);
    rmSync(files.keyFile);
    tick();
    expect(credentials.current).toBe(first);
    webCertificate(dir, 'renewed');
    tick();
    expect(changes).toBe(1);
    expect(credentials.current.cert).not.toBe(first.cert);
  });
});

describe('an HTTPS server of documents', () => {
  const { cert, key } = { cert: readFileSync(web.certificateFile, 'utf8'), key: readFileSync(web.keyFile, 'utf8') };
  const serving = async (more: Partial<HttpsServerOptions> = {}) => {
    const port = await freePort();
    const credentials = { current: { cert, key }, watch: () => () => {} };
    const documents = { '/': () => '{}' };
    const options = { field: 'test', address: '127.0.0.1', port, credentials, documents, log: quiet, ...more };
    return { port, close: await serveHttps(options) };
  };
  const closed = (socket: Socket) =>
    new Promise((resolve) => {
      socket.on('error', () => {});
      socket.resume().once('close', resolve);
    });

  it('cuts off who is slow: in the handshake, in a header, and who asks nothing', async () => {
    const deadlines = { handshake: 100, headers: 100, request: 200, idle: 200, check: 20 };
    const { port, close } = await serving({ deadlines });
    const at = { host: '127.0.0.1', port };
    const silent = tcpConnect(at);
    const half = connect({ ...at, rejectUnauthorized: false }, () => half.write('GET / HTTP/1.1\r\nhost: x\r\n'));
    const dripping = connect({ ...at, rejectUnauthorized: false }, () => dripping.write('GET / HTTP/1.1\r\nx: '));
    const drip = setInterval(() => dripping.write('y'), 20);
    const mute = connect({ ...at, rejectUnauthorized: false });
    await Promise.all([silent, half, dripping, mute].map(closed));
    clearInterval(drip);
    expect((await fetched(`https://localhost:${port}/`)).status).toBe(200);
    close();
  });

  it('shows a new SVID from the moment on in which the server has it', async () => {
    const svidOf = (serial: number) => {
      const shown = webLeaf({ serial: derUnsignedInteger(Buffer.of(serial)) });
      return { chain: [shown.der], privateKey: shown.key, notBeforeMs: 0, notAfterMs: 0 };
    };
    let svid = svidOf(1);
    const listeners: FeedListener[] = [];
    const feed = {
      watch: (listener: FeedListener) => {
        listeners.push(listener);
        return () => {};
      },
    };
    const { port, close } = await serving({ credentials: svidCredentials(() => svid, feed) });
    const shown = async () => {
      const socket = connect({ host: '127.0.0.1', port, rejectUnauthorized: false });
      await new Promise((resolve) => socket.once('secureConnect', resolve));
      const { serialNumber } = socket.getPeerX509Certificate()!;
      socket.destroy();
      return serialNumber;
    };
    expect(await shown()).toBe('01');
    svid = svidOf(2);
    for (const listener of listeners) listener(1, { bundle: true });
    expect(await shown()).toBe('01');
    for (const listener of listeners) listener(2, { signer: true });
    expect(await shown()).toBe('02');
    close();
  });

  it('says of a document that cannot be made nothing but that', async () => {
    const documents = {
      '/': () => {
        throw new Error('secret');
      },
    };
    const { port, close } = await serving({ documents });
    const answer = await fetched(`https://localhost:${port}/`);
    expect([answer.status, await answer.text()]).toEqual([500, '']);
    close();
  });

  it('that finds its port taken says which setting to change', async () => {
    const { port, close } = await serving();
    await expect(serving({ port })).rejects.toThrow(`test.listen: 127.0.0.1 port ${port}: cannot listen (EADDRINUSE)`);
    close();
  });
});

describe('the configuration', () => {
  const base = {
    apiVersion: 'countersign.dev/v1alpha1',
    kind: 'ServerConfig',
    trustDomain: 'example.org',
    dataDir: '/tmp/x',
    listen: { address: '127.0.0.1' },
    audit: { dir: '/tmp/x/audit' },
  };
  const check = (change: object) => () =>
    parseConfig('server.yaml', stringify({ ...base, ...change }), serverConfigSchema);
  const foreign = (change: object) =>
    check({
      federation: {
        trustDomains: [{ trustDomain: PARTNER, endpointUrl: 'https://p.org/', profile: 'https_web', ...change }],
      },
    });
  const oidc = (change: object) =>
    check({
      oidc: { issuer: 'https://oidc.example.org', listen: { address: '127.0.0.1', port: 1 }, tls: web, ...change },
    });

  it.each<[string, () => unknown, string]>([
    [
      'the own trust domain',
      foreign({ trustDomain: 'example.org' }),
      "federation.trustDomains[0].trustDomain: example.org is this server's own",
    ],
    ['an endpoint without TLS', foreign({ endpointUrl: 'http://p.org/' }), 'not an https:// URL'],
    [
      'a password in the URL',
      foreign({ endpointUrl: 'https://a:b@p.org/' }),
      'a user or password cannot be in the URL',
    ],
    ['an unknown profile', foreign({ profile: 'https_any' }), 'federation.trustDomains[0].profile'],
    [
      'an endpoint that is a trust domain',
      foreign({ profile: { https_spiffe: 'spiffe://partner.org' } }),
      'federation.trustDomains[0].profile',
    ],
    [
      'authorities for https_spiffe',
      foreign({ profile: { https_spiffe: 'spiffe://partner.org/x' }, caFile: '/x' }),
      'only https_web has one',
    ],
    ['an issuer with a query', oidc({ issuer: 'https://oidc.example.org/?x' }), 'an issuer has no query'],
    ['an issuer with a slash at its end', oidc({ issuer: 'https://oidc.example.org/' }), 'end it without a slash'],
    ['an issuer in capitals', oidc({ issuer: 'https://OIDC.example.org' }), 'write it as https://oidc.example.org'],
    ['an issuer without TLS', oidc({ issuer: 'http://oidc.example.org' }), 'not an https:// URL'],
  ])('with %s is refused', (_, parse, message) => {
    expect(parse).toThrow(message);
  });

  it('with one trust domain listed twice is refused', () => {
    const item = { trustDomain: PARTNER, endpointUrl: 'https://p.org/', profile: 'https_web' };
    expect(check({ federation: { trustDomains: [item, item] } })).toThrow('list each once');
  });

  it.each([
    ['a key that others may read', () => webWith({ mode: 0o644 }), 'run chmod 600'],
    [
      'a key of another certificate',
      () => ({ ...web, keyFile: webCertificate(dir, 'other').keyFile }),
      'is not the key of',
    ],
    ['no certificate', () => ({ ...web, certificateFile: join(dir, 'none.crt') }), 'there is no such file'],
  ])('with %s keeps a server from starting', async (_, tls, message) => {
    const listen = { address: '127.0.0.1', port: 0 };
    const starting = TestServer.start({ oidc: { issuer: 'https://localhost', listen, tls: tls() } }, []);
    await expect(starting).rejects.toThrow(message);
  });
  function webWith({ mode }: { mode: number }) {
    const files = webCertificate(dir, 'open');
    rmSync(files.keyFile);
    writeFileSync(files.keyFile, privateKeyPem(webLeaf().key), { mode });
    return files;
  }
});
