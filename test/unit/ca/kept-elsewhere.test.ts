/** A whole identity server whose keys are in a token, or whose authority another one signed: with an agent, through rotations and restarts. */
import { execFileSync } from 'node:child_process';
import { createPublicKey } from 'node:crypto';
import { mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { credentials } from '@grpc/grpc-js';
import { jwtVerify } from 'jose';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { CaAdminClient } from '../../../proto/gen/countersign/admin/v1/admin.ts';
import { parseCertificate } from '../../../src/pki/certificate.ts';
import { createCsr } from '../../../src/pki/csr.ts';
import { generateKey } from '../../../src/pki/keys.ts';
import { encodePem } from '../../../src/pki/pem.ts';
import { verifyX509Svid } from '../../../src/pki/verify.ts';
import { TestServer } from '../identity/harness.ts';
import { OpensslCas } from './openssl-ca.ts';
import { SoftHsm } from './soft-hsm.ts';
import { FRONTEND, NODE_A, START, TD, withCa, workloadRequest } from './support.ts';
import { VaultServer } from './vault-server.ts';

/** As the token's session says it, or the next try to open one; in the log it stands in JSON. */
const GONE = /PKCS#11 token \\?"ca|labelled \\?"ca/;

describe('an authority whose keys are in a PKCS#11 token', () => {
  let hsm: SoftHsm;
  beforeEach(() => {
    hsm = new SoftHsm();
  });
  afterEach(() => hsm.remove());

  it('issues X.509- and JWT-SVIDs, rotates and restarts, and no file of it holds a key', async () => {
    await withCa(async ({ open, directory }) => {
      const options = { keys: hsm.config, keyType: 'ec-p384', jwtKeyType: 'rsa-3072' } as const;
      const ca = await open(options);
      const first = await ca.issueWorkloadSvid(workloadRequest());
      await ca.prepare('x509');
      await ca.activate('x509');
      const second = await ca.issueWorkloadSvid(workloadRequest());
      for (const outcome of [first, second]) {
        if (!outcome.ok) throw new Error(outcome.error);
        expect(verifyX509Svid(outcome.value.chain, { trustDomain: TD, ...ca.bundle() }, START).ok).toBe(true);
      }
      const bundle = ca.bundle();
      expect(ca.crls()).toHaveLength(2);
      const jwt = await ca.issueJwtSvid({ spiffeId: FRONTEND, audience: ['backend'], node: NODE_A, requester: NODE_A });
      if (!jwt.ok) throw new Error(jwt.error);
      const [signer] = bundle.jwtAuthorities;
      const verified = await jwtVerify(
        jwt.value.token,
        createPublicKey({ key: signer!.publicKey, format: 'der', type: 'spki' }),
        { algorithms: ['RS256'], audience: 'backend', currentDate: new Date(START) },
      );
      expect(verified.payload.sub).toBe(FRONTEND);
      ca.close();
      const again = await open(options);
      expect(again.bundle()).toEqual(bundle);
      expect((await again.issueWorkloadSvid(workloadRequest())).ok).toBe(true);
      expect(readdirSync(directory).filter((name) => !name.startsWith('ledger.db'))).toEqual([]);
    });
  });

  it('issues and records nothing while the token is gone, and goes on when it is back', async () => {
    await withCa(async ({ open }) => {
      const ca = await open({ keys: hsm.config });
      await ca.issueWorkloadSvid(workloadRequest());
      const plugIn = hsm.unplug();
      await expect(ca.issueWorkloadSvid(workloadRequest())).rejects.toMatchObject({
        code: 'unavailable',
        message: expect.stringMatching(GONE),
      });
      await expect(ca.prepare('x509')).rejects.toThrow(GONE);
      expect(ca.listSvids()).toHaveLength(1);
      plugIn();
      for (let tries = 0; ; tries++) {
        const outcome = await ca.issueWorkloadSvid(workloadRequest()).catch(() => undefined);
        if (outcome?.ok) break;
        expect(tries).toBeLessThan(50);
        await new Promise((resolve) => setTimeout(resolve, 100));
      }
      expect(ca.listSvids()).toHaveLength(2);
    });
  });

  it('answers agents with UNAVAILABLE while the token is gone, and they keep what they have', async () => {
    await using server = await TestServer.start({ ca: { keys: hsm.config } });
    const client = await server.joined('node-a');
    const request = () => client.issue([{ entryId: 'frontend', csr: createCsr(generateKey()) }]);
    const plugIn = hsm.unplug();
    await expect(request()).rejects.toMatchObject({
      code: 'unavailable',
      message: expect.stringMatching(GONE),
    });
    expect(server.logged.some((line) => GONE.test(line))).toBe(true);
    expect(server.logged.some((line) => line.includes(SoftHsm.pin))).toBe(false);
    expect(client.status().connected).toBe(true);
    plugIn();
    for (let tries = 0; !(await request().catch(() => undefined))?.[0]?.ok; tries++) {
      expect(tries).toBeLessThan(50);
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  });

  it('was one with keys on disk: the old key signs until the rotation, the next is made in the token', async () => {
    await withCa(async ({ open, directory }) => {
      const passphraseFile = join(hsm.home, 'passphrase');
      writeFileSync(passphraseFile, 'correct horse battery staple', { mode: 0o600 });
      const before = await open({ keys: { type: 'disk', passphraseFile } });
      const bundle = before.bundle().authorities;
      before.close();
      const ca = await open({ keys: { ...hsm.config, former: { passphraseFile } } });
      expect(ca.bundle().authorities).toEqual(bundle);
      expect((await ca.issueWorkloadSvid(workloadRequest())).ok).toBe(true);
      const next = await ca.prepare('x509');
      await ca.activate('x509');
      expect(hsm.tool('--list-objects', '--type', 'privkey')).toContain('countersign example.org x509-');
      const [old] = ca.authorities().filter(({ kind, state }) => kind === 'x509' && state === 'old');
      await ca.revokeAuthority('x509', old!.id, 'moved into the token');
      expect(ca.authorities().find(({ id }) => id === next.id)?.state).toBe('active');
      expect(readdirSync(join(directory, 'keys')).filter((name) => name.startsWith('x509'))).toEqual([]);
      expect((await ca.issueWorkloadSvid(workloadRequest())).ok).toBe(true);
    });
  });

  it('does not begin anew when the token holds other keys', async () => {
    await withCa(async ({ open }) => {
      const ca = await open({ keys: hsm.config });
      ca.close();
      hsm.unplug();
      await expect(open({ keys: hsm.config })).rejects.toThrow(/no token is labelled "ca"/);
      hsm.initToken('ca');
      await expect(open({ keys: hsm.config })).rejects.toThrow(
        /the key x509-[0-9a-f]+ of the active x509 authority .* is missing; restore it/,
      );
    });
  });
});

describe('an authority that another one signed', () => {
  let home: string;
  let cas: OpensslCas;
  let vault: VaultServer | undefined;
  beforeEach(() => {
    home = mkdtempSync(join(tmpdir(), 'countersign-upstream-'));
    cas = new OpensslCas(home);
  });
  afterEach(() => {
    vault?.close();
    vault = undefined;
    rmSync(home, { recursive: true, force: true });
  });

  async function settings(kind: 'files' | 'Vault') {
    const root = cas.make('root', { key: 'p384' });
    const issuing = cas.make('issuing', { issuer: root });
    if (kind === 'files') {
      return { type: 'disk', certFile: issuing.certFile, keyFile: issuing.keyFile, bundleFile: root.certFile };
    }
    const tls = cas.make('tls', {
      extensions: 'subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:true\nsubjectKeyIdentifier=hash\n',
    });
    vault = await VaultServer.start(cas, issuing, tls, [root.certificate]);
    const tokenFile = join(home, 'token');
    writeFileSync(tokenFile, 'hvs.root', { mode: 0o600 });
    return { type: 'vault', address: vault.address, caFile: tls.certFile, auth: { type: 'token', tokenFile } };
  }

  it.each(['files', 'Vault'] as const)(
    'by %s serves nodes that trust its root alone, through a rotation and a restart',
    async (kind) => {
      await using server = await TestServer.start({ ca: { upstream: await settings(kind), rootTtl: '7d' } });
      const { bundle } = server;
      expect(bundle).toHaveLength(1);
      const client = await server.joined('node-a');
      // who listens puts into force
      client.onChange(() => {});
      // the handshakes of both sides were with a leaf and two certificates above it
      expect(client.node.svid().chain).toHaveLength(3);
      const [issued] = await client.issue([{ entryId: 'frontend', csr: createCsr(generateKey()) }]);
      if (!issued?.ok) throw new Error(issued?.error);
      for (const chain of [client.node.svid().chain, issued.value]) {
        const verified = verifyX509Svid(chain, { trustDomain: TD, authorities: bundle }, server.clock.nowMs());
        expect(verified.ok).toBe(true);
      }
      const leaf = issued.value;
      const pem = (name: string, ders: readonly Buffer[]) => {
        writeFileSync(join(home, name), ders.map((der) => encodePem('CERTIFICATE', der)).join(''));
        return join(home, name);
      };
      const files = [
        '-CAfile',
        pem('ca', bundle),
        '-untrusted',
        pem('chain', leaf.slice(1)),
        pem('leaf', leaf.slice(0, 1)),
      ];
      execFileSync('openssl', ['verify', '-x509_strict', '-no-CApath', ...files]);
      const issuerOf = (chain: readonly Buffer[]) => chain[1]!.toString('hex');
      const rotate = (step: 'prepareAuthority' | 'activateAuthority') =>
        new Promise<void>((resolve, reject) => {
          const request = { kind: 'x509', id: '', reason: '', waitMs: 5000 };
          caAdmin[step](request, (error) => (error ? reject(error) : resolve()));
        });
      const caAdmin = new CaAdminClient(`unix:${join(server.dir, 'admin.sock')}`, credentials.createInsecure());
      server.onClose(() => caAdmin.close());
      await rotate('prepareAuthority');
      await rotate('activateAuthority');
      const [next] = await client.issue([{ entryId: 'frontend', csr: createCsr(generateKey()) }]);
      if (!next?.ok) throw new Error(next?.error);
      expect(issuerOf(next.value)).not.toBe(issuerOf(leaf));
      // the root is the same: nobody had to be told anything
      expect(verifyX509Svid(next.value, { trustDomain: TD, authorities: bundle }, server.clock.nowMs()).ok).toBe(true);
      const node = client.node.svid().chain;
      await client.close();

      await server.down();
      await server.up();
      expect(server.bundle).toEqual(bundle);
      const again = await server.client('node-a');
      expect(again.node.svid().chain).toEqual(node);
    },
  );

  it('does not come up without its upstream, and names it', async () => {
    const upstream = await settings('Vault');
    vault!.close();
    await expect(TestServer.start({ ca: { upstream } })).rejects.toThrow(
      /Vault at 127\.0\.0\.1:\d+: it cannot be reached/,
    );
  });

  it('works on without its upstream until it needs the next authority', async () => {
    const upstream = await settings('Vault');
    await using server = await TestServer.start({ ca: { upstream } });
    vault!.close();
    await server.down();
    await server.up();
    const client = await server.joined('node-a');
    expect(parseCertificate(client.node.svid().chain[1]!).ok).toBe(true);
  });
});
