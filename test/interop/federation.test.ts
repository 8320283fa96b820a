/** Federation with go-spiffe: it asks our bundle endpoints by both profiles, and serves one that a server of ours asks. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { encodeSpiffeBundle } from '../../src/pki/spiffe-bundle.ts';
import { TestServer, until } from '../unit/identity/harness.ts';
import { authorities, bundles, freePort, webAuthority, webCertificate } from '../unit/identity/web.ts';
import { ca } from '../unit/pki/support/forge.ts';
import { buildClients, built, Client } from './cluster.ts';

const dir = mkdtempSync(join(tmpdir(), 'cs-federation-'));
const caFile = join(dir, 'web-ca.pem');
writeFileSync(caFile, webAuthority);
const web = webCertificate(dir, 'web');
const ENDPOINT = 'spiffe://example.org/countersign/server';

let spiffe: TestServer;
let spiffeUrl: string;
beforeAll(async () => {
  await buildClients();
  const port = await freePort();
  spiffeUrl = `https://localhost:${port}/`;
  const listen = { address: '127.0.0.1', port };
  spiffe = await TestServer.start({ federation: { bundleEndpoint: { listen, profile: 'https_spiffe' } } });
}, 600_000);
afterAll(async () => {
  await spiffe?.[Symbol.asyncDispose]();
  rmSync(dir, { recursive: true, force: true });
});

const client = (...args: string[]) =>
  new Client(join(built, 'interop'), ['-socket', 'unix:///nobody', ...args], undefined, {});
const own = async (server: TestServer) =>
  (await bundles(server, (c, done) => c.showBundle({ trustDomain: '' }, done))) as {
    document: string;
    sequence: string;
  };

describe('go-spiffe', () => {
  it('fetches our bundle by https_spiffe, and verifies a JWT-SVID with what came', async () => {
    const node = await spiffe.joined('node-a');
    node.onChange(async () => {});
    await until('the server', () => node.status().connected);
    const { token } = await node.issueJwt('frontend', ['reports']);
    const { document, sequence } = await own(spiffe);
    const file = join(dir, 'example.json');
    writeFileSync(file, document);
    expect(await client('fetch-bundle', 'example.org', spiffeUrl, ENDPOINT, file, token, 'reports').next()).toEqual({
      x509: 1,
      jwt: 1,
      sequence,
      hint: 300,
      id: 'spiffe://example.org/frontend',
    });
    // whom it does not expect there it does not believe
    const wrong = client('fetch-bundle', 'example.org', spiffeUrl, 'spiffe://example.org/other', file);
    await expect(wrong.next()).rejects.toThrow('unexpected ID');
    // the next key is in it before it signs
    const prepare = { kind: 'x509', id: '', reason: 'test', waitMs: 0 };
    await authorities(spiffe, (c, done) => c.prepareAuthority(prepare, done));
    expect(await client('fetch-bundle', 'example.org', spiffeUrl, ENDPOINT, file).next()).toMatchObject({ x509: 2 });
  });

  it('fetches our bundle by https_web', async () => {
    const port = await freePort();
    const listen = { address: '127.0.0.1', port };
    const bundleEndpoint = { listen, path: '/bundle.json', profile: { https_web: web } };
    await using server = await TestServer.start({ federation: { bundleEndpoint } }, []);
    const url = `https://localhost:${port}/bundle.json`;
    const { sequence } = await own(server);
    expect(await client('fetch-bundle', 'example.org', url, 'web', caFile).next()).toMatchObject({ x509: 1, sequence });
  });

  it('serves a bundle that our server takes', async () => {
    const partner = ca({ uris: ['spiffe://partner.org'] });
    const trustDomain = 'partner.org' as never;
    const document = encodeSpiffeBundle({
      trustDomain,
      authorities: [partner.der],
      sequence: 7n,
      refreshHintSeconds: 60,
    });
    const file = join(dir, 'partner.json');
    writeFileSync(file, document);
    const serving = client('serve-bundle', 'partner.org', file, web.certificateFile, web.keyFile);
    const { port } = await serving.next();
    const endpointUrl = `https://localhost:${port}/`;
    const trustDomains = [{ trustDomain: 'partner.org', endpointUrl, profile: 'https_web', caFile }];
    await using server = await TestServer.start({ federation: { trustDomains } }, []);
    const row = await bundles(server, (c, done) => c.refreshBundle({ trustDomain: 'partner.org' }, done));
    expect(row).toMatchObject({ x509Authorities: 1, sequence: '7', refreshHintSeconds: 60, origin: 'endpoint' });
    await serving.end();
  });
});
