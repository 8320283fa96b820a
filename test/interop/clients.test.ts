/** Clients that others wrote, each against a running identity server and a running agent. */
import { execFile } from 'node:child_process';
import { createPrivateKey, X509Certificate } from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { TrustDomain } from '../../src/model/ids.ts';
import { encodeSpiffeBundle } from '../../src/pki/spiffe-bundle.ts';
import { ca } from '../unit/pki/support/forge.ts';
import { type Client, Cluster, PARTNER, TRUST_DOMAIN, UID } from './cluster.ts';

let cluster: Cluster;
/** Clients whose SVID lives for a minute, begun before everything else. */
let renewed: { go: Client; python: Client; files: Client; directory: string };
beforeAll(async () => {
  cluster = await Cluster.up((what) => process.stderr.write(`  ${what}\n`));
  const directory = cluster.directoryOf(UID.brief, 'brief');
  const { socket } = cluster;
  renewed = {
    go: cluster.go(UID.brief, 'x509'),
    python: cluster.python(UID.brief, 'x509'),
    files: cluster.watchAs(UID.brief, 'svid', 'watch', '--socket', socket, '--write', directory, '-o', 'json'),
    directory,
  };
}, 600_000);
afterAll(async () => cluster?.down());

interface Authority {
  readonly kind: string;
  readonly state: string;
  readonly id: string;
}

const id = (name: string) => `spiffe://example.org/${name}`;

/** The node asks for another at once. */
const takeBack = (serial: string) => cluster.server('svid', 'revoke', '--serial', serial);

describe('go-spiffe', () => {
  it('takes the X.509-SVID of its user, verifies it, and sees the next one pushed', async () => {
    const web = cluster.go(UID.web, 'x509');
    const first = await web.next();
    expect(first).toMatchObject({ id: id('web'), verified: id('web'), hint: 'web', authorities: 1 });
    await takeBack(first.serial);
    const second = await web.until(({ serial }) => serial !== first.serial);
    expect(second).toMatchObject({ id: id('web'), verified: id('web') });
    await web.end();
  });

  it('is refused with PermissionDenied where no entry names its user', async () => {
    const nobody = cluster.goRefused(UID.nobody, 'x509');
    await expect(nobody.next()).rejects.toThrow(/PermissionDenied/);
  });

  it('makes mutual TLS between two workloads, each sure of the other, and none with a third', async () => {
    const server = cluster.go(UID.db, 'serve', id('web'));
    const { url } = await server.next();
    const good = cluster.go(UID.web, 'call', url, id('db'), '3');
    expect(await good.next()).toMatchObject({ calls: 3, failed: 0, answer: id('web'), serverSerials: 1 });
    const wrongServer = cluster.go(UID.web, 'call', url, id('web'), '1');
    expect(await wrongServer.next()).toMatchObject({ failed: 1, why: expect.stringContaining('unexpected ID') });
    const wrongClient = cluster.go(UID.db, 'call', url, id('db'), '1');
    expect(await wrongClient.next()).toMatchObject({ failed: 1 });
    await server.end();
  });

  it('loses no connection while the SVIDs of both sides are replaced under it', async () => {
    const server = cluster.go(UID.db, 'serve', id('web'));
    const { url } = await server.next();
    const calls = cluster.go(UID.web, 'call', url, id('db'), '0');
    const serials = [(await calls.next()).serverSerial];
    for (const uid of [UID.db, UID.web, UID.db]) {
      const watch = cluster.go(uid, 'x509');
      const { serial } = await watch.next();
      await takeBack(serial);
      await watch.until((said) => said.serial !== serial);
      await watch.end();
      if (uid === UID.db) serials.push((await calls.next()).serverSerial);
    }
    expect(new Set(serials).size).toBe(3);
    expect(await calls.end()).toMatchObject({ failed: 0, why: '', serverSerials: 3 });
    await server.end();
  });

  it('loses no connection while the authority changes its signing key', async () => {
    const server = cluster.go(UID.db, 'serve', id('web'));
    const { url } = await server.next();
    const watch = cluster.go(UID.web, 'x509');
    const before = await watch.next();
    const calls = cluster.go(UID.web, 'call', url, id('db'), '0');
    await calls.next();
    await cluster.server('ca', 'prepare', 'x509');
    await watch.until((said) => said.authorities === before.authorities + 1);
    await cluster.server('ca', 'activate', 'x509');
    const { authorities } = (await cluster.server('ca', 'list')) as { authorities: Authority[] };
    const old = authorities.find(({ kind, state }) => kind === 'x509' && state === 'old')!;
    // everything that the old key signed is replaced at once
    await cluster.server('ca', 'taint', 'x509', old.id);
    const after = await watch.until(({ serial }) => serial !== before.serial);
    expect(after).toMatchObject({ verified: id('web'), authorities: before.authorities + 1 });
    await cluster.server('ca', 'revoke', 'x509', old.id);
    await watch.until(({ authorities }) => authorities === before.authorities);
    // the server's, too
    await calls.next();
    expect(await calls.end()).toMatchObject({ failed: 0, why: '', serverSerials: 2 });
    await watch.end();
    await server.end();
  });

  it('takes a JWT-SVID and judges it by the pushed bundle; it is accepted for its audience alone', async () => {
    const jwt = await cluster.go(UID.web, 'jwt', 'db', 'cache').next();
    expect(jwt).toMatchObject({ id: id('web'), audience: expect.arrayContaining(['db', 'cache']) });
    const check = (token: string, audience: string) => cluster.go(UID.db, 'check', token, audience).next();
    expect(await check(jwt.token, 'db')).toEqual({ here: id('web'), agent: id('web') });
    expect(await check(jwt.token, 'cache')).toEqual({ here: id('web'), agent: id('web') });
    expect(await check(jwt.token, 'other')).toEqual({ here: 'refused', agent: 'refused' });
    const [header, payload, signature] = jwt.token.split('.');
    const forged = Buffer.from(Buffer.from(payload, 'base64url').toString().replace('/web', '/db')).toString(
      'base64url',
    );
    expect(await check([header, forged, signature].join('.'), 'db')).toEqual({ here: 'refused', agent: 'refused' });
  });

  it('accepts JWT-SVIDs of both keys while the authority changes the one that signs them', async () => {
    const check = async (token: string) => cluster.go(UID.db, 'check', token, 'db').next();
    const before = await cluster.go(UID.web, 'jwt', 'db').next();
    await cluster.server('ca', 'prepare', 'jwt');
    await cluster.server('ca', 'activate', 'jwt');
    const after = await cluster.go(UID.web, 'jwt', 'another').next();
    expect(after.keys).toBe(before.keys + 1);
    const kid = ({ token }: { token: string }) =>
      JSON.parse(Buffer.from(token.split('.')[0]!, 'base64url').toString()).kid;
    expect(kid(after)).not.toBe(kid(before));
    expect(await check(before.token)).toEqual({ here: id('web'), agent: id('web') });
  });
});

describe('the bundle of another trust domain', () => {
  it('is pushed to the workload whose entry federates with it, by go-spiffe and by SDS, and to no other', async () => {
    const workload = cluster.go(UID.db, 'x509');
    expect(await workload.next()).toMatchObject({ federated: [] });
    const envoy = cluster.go(UID.db, 'sds', 'ALL');
    expect((await envoy.next()).secrets.ALL.domains).toEqual({ [TRUST_DOMAIN]: 1 });
    const authority = ca({ uris: [`spiffe://${PARTNER}`] }).der;
    const file = join(cluster.stage.dir, 'partner.json');
    writeFileSync(
      file,
      encodeSpiffeBundle({ trustDomain: PARTNER as TrustDomain, authorities: [authority], sequence: 1n }),
    );
    await cluster.server('bundle', 'set', PARTNER, '--file', file);
    await workload.until(({ federated }) => federated.includes(PARTNER));
    await envoy.until(({ secrets }) => secrets.ALL.domains[PARTNER] === 1);
    const other = cluster.go(UID.web, 'x509');
    expect(await other.next()).toMatchObject({ federated: [] });
    for (const client of [workload, envoy, other]) await client.end();
  });
});

describe('Envoy, by the published Secret Discovery Service', () => {
  it('gets the SVID, the bundle of its trust domain and that of all, and the next SVID pushed', async () => {
    const envoy = cluster.go(UID.web, 'sds', 'default', 'ROOTCA', 'ALL');
    const { secrets } = await envoy.next();
    expect(secrets.default).toMatchObject({ certificate: id('web') });
    expect(secrets.ROOTCA).toMatchObject({ authorities: 1 });
    expect(secrets.ALL).toMatchObject({ validator: 'envoy.tls.cert_validator.spiffe', domains: { 'example.org': 1 } });
    await takeBack(secrets.default.serial);
    const pushed = await envoy.until((said) => said.secrets.default.serial !== secrets.default.serial);
    expect(pushed.secrets.default).toMatchObject({ certificate: id('web') });
    await envoy.end();
  });

  it('gets nothing where no entry names its user', async () => {
    await expect(cluster.go(UID.nobody, 'sds', 'default').next()).rejects.toThrow(/PermissionDenied/);
  });
});

describe('py-spiffe', () => {
  it('takes the X.509-SVID of its user and sees the next one pushed', async () => {
    const web = cluster.python(UID.web, 'x509');
    const first = await web.next();
    expect(first).toMatchObject({ id: id('web'), authorities: 1 });
    await takeBack(first.serial);
    const pushed = await web.until(({ serial }) => serial !== first.serial);
    expect(pushed.id).toBe(id('web'));
    await web.end();
  });

  it('takes a JWT-SVID, judges it by the bundle that its source holds, and asks the agent', async () => {
    const said = await cluster.python(UID.db, 'jwt', 'web').next();
    expect(said).toEqual({ id: id('db'), audience: ['web'], agent: id('db') });
  });
});

describe('openssl verify', () => {
  const openssl = async (...args: string[]) => (await promisify(execFile)('openssl', args)).stdout;

  it('accepts what `countersign svid fetch` wrote, and with the CRL refuses it once it is revoked', async () => {
    const written = async (name: string) => {
      const directory = cluster.directoryOf(UID.web, name);
      await cluster.fetchFiles(UID.web, directory);
      return (file: string) => join(directory, file);
    };
    const before = await written('before');
    const verify = (svid: (file: string) => string, now: (file: string) => string, ...more: string[]) =>
      openssl(
        'verify',
        '-x509_strict',
        ...more,
        '-CAfile',
        now('bundle.pem'),
        '-CRLfile',
        now('crl.pem'),
        svid('svid.pem'),
      );
    expect(await verify(before, before, '-crl_check')).toMatch(/: OK/);
    const { serialNumber } = new X509Certificate(readFileSync(before('svid.pem')));
    await takeBack(serialNumber.toLowerCase());
    const after = await written('after');
    expect(await verify(after, after, '-crl_check')).toMatch(/: OK/);
    await expect(verify(before, after, '-crl_check')).rejects.toMatchObject({
      stderr: expect.stringContaining('certificate revoked'),
    });
  });
});

describe('an SVID that lives for a minute', () => {
  it('is another at half its life, without anybody asking, for go-spiffe, py-spiffe and the files of `countersign svid watch`', async () => {
    const { go, python, files, directory } = renewed;
    const first = await go.next();
    expect(await python.next()).toMatchObject({ serial: first.serial });
    const { notAfter } = await files.next();
    expect(Date.parse(notAfter)).toBe(Date.parse(first.notAfter));
    // forced rotations of the tests above come sooner
    let before = first;
    const renewal = await go.until((said) => {
      const laterMs = Date.parse(said.notAfter) - Date.parse(before.notAfter);
      before = said;
      return laterMs > 20_000;
    });
    await python.until(({ serial }) => serial === renewal.serial);
    await files.until((said) => Date.parse(said.notAfter) === Date.parse(renewal.notAfter));
    const written = new X509Certificate(readFileSync(join(directory, 'svid.pem')));
    expect(written.serialNumber.toLowerCase()).toBe(renewal.serial);
    expect(written.checkPrivateKey(createPrivateKey(readFileSync(join(directory, 'key.pem'))))).toBe(true);
  });
});
