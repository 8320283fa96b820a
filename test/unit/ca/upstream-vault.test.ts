/** Vault as the upstream authority: what it is asked, what it gives that is not believed, and what is said when it fails. */
import { execFileSync } from 'node:child_process';
import { chmodSync, copyFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, describe, expect, it } from 'vitest';
import { KEY_TYPES } from '../../../ca/keys/key-type.ts';
import { MemoryKeys } from '../../../ca/keys/memory.ts';
import type { UpstreamConfig } from '../../../ca/upstream/upstream.ts';
import { INTERMEDIATE } from './openssl-ca.ts';
import { cas, eachInItsOwnHome, expectIssues, HOUR, home, make } from './upstream-support.ts';
import { type VaultRequest, VaultServer } from './vault-server.ts';

eachInItsOwnHome();

describe('Vault as the upstream authority', () => {
  let vault: VaultServer;
  let config: Extract<UpstreamConfig, { type: 'vault' }>;
  const asked = (): VaultRequest => vault.requests.at(-1)!;
  const secret = (name: string, content: string) => {
    writeFileSync(join(home, name), content, { mode: 0o600 });
    return join(home, name);
  };

  async function start(issuer = cas.make('pki'), above: string[] = []) {
    const tls = cas.make('tls', {
      extensions: 'subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:true\nsubjectKeyIdentifier=hash\n',
    });
    vault = await VaultServer.start(cas, issuer, tls, above);
    config = {
      type: 'vault',
      address: vault.address,
      caFile: tls.certFile,
      mount: 'pki',
      auth: { type: 'token', tokenFile: secret('token', 'hvs.root\n') },
      timeoutSeconds: 5,
    };
  }
  afterEach(() => vault.close());

  it.each(KEY_TYPES.filter((type) => type !== 'rsa-4096'))('signs an intermediate of type %s', async (type) => {
    await start(cas.make('pki', { key: type === 'rsa-3072' ? 'rsa3072' : 'p384' }));
    const signing = await new MemoryKeys().generate('x509-1', type);
    const made = await make(config, { of: signing });
    expect(made.certificate).toMatchObject({ pathLength: 0, spiffeId: 'spiffe://example.org' });
    expectIssues(made, signing);
    expect(asked()).toMatchObject({
      path: '/v1/pki/root/sign-intermediate',
      headers: { 'x-vault-token': 'hvs.root', 'x-vault-request': 'true' },
      body: {
        uri_sans: 'spiffe://example.org',
        max_path_length: 0,
        ttl: '86410s',
        format: 'pem',
        exclude_cn_from_sans: true,
      },
    });
  });

  it('is sent a request whose signature openssl verifies', async () => {
    await start();
    await make(config);
    writeFileSync(join(home, 'csr'), String(asked().body.csr));
    const text = execFileSync('openssl', ['req', '-in', join(home, 'csr'), '-noout', '-text', '-verify'], {
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    expect(text).toMatch(/URI:spiffe:\/\/example\.org/);
    expect(text).toMatch(/CA:TRUE, pathlen:0/);
  });

  it('may be an intermediate below a root that it knows, or that bundleFile names', async () => {
    const root = cas.make('root');
    const issuing = cas.make('issuing', { issuer: root });
    await start(issuing, [root.certificate]);
    const made = await make(config);
    expect(made.chain).toHaveLength(2);
    expectIssues(made);
    vault.caChain = [issuing.certificate];
    await expect(make(config)).rejects.toThrow(
      /does not know the root of its issuer; name a file with it by ca\.upstream\.bundleFile/,
    );
    expectIssues(await make({ ...config, bundleFile: root.certFile }));
  });

  it('is asked in its namespace and for one of its issuers', async () => {
    await start();
    await make({ ...config, namespace: 'team-a', issuer: 'second' });
    expect(asked()).toMatchObject({
      path: '/v1/pki/issuer/second/sign-intermediate',
      headers: { 'x-vault-namespace': 'team-a' },
    });
  });

  it.each(['approle', 'kubernetes'] as const)('takes a login by %s, whose token is revoked after use', async (type) => {
    await start();
    const auth =
      type === 'approle'
        ? {
            type,
            mount: 'approle',
            roleIdFile: secret('role-id', 'role-1'),
            secretIdFile: secret('secret-id', 'secret-1\n'),
          }
        : { type, mount: 'kubernetes', role: 'countersign', tokenFile: secret('jwt', 'service-account-jwt\n') };
    expectIssues(await make({ ...config, auth }));
    expect(vault.requests.map(({ path }) => path)).toEqual([
      `/v1/auth/${type}/login`,
      '/v1/pki/root/sign-intermediate',
      '/v1/auth/token/revoke-self',
    ]);
    expect([...vault.tokens]).toEqual(['hvs.root']);
  });

  it('is followed from a standby to the active node, once and to HTTPS alone', async () => {
    await start();
    const active = vault.address;
    vault.answer = ({ path }) =>
      vault.requests.length === 1 ? { status: 307, location: `${active}${path}` } : undefined;
    expectIssues(await make(config));
    vault.answer = ({ path }) => ({ status: 307, location: `${active}${path}` });
    await expect(make(config)).rejects.toThrow(/answers pki\/root\/sign-intermediate with 307/);
    vault.answer = () => ({ status: 307, location: 'http://127.0.0.1:1/v1/x' });
    await expect(make(config)).rejects.toThrow(/redirects to where no token is sent/);
  });

  it('is asked for a shorter life if what it gives would outlive its issuer', async () => {
    await start(cas.make('pki', { days: 1 }));
    const made = await make(config, { hours: 1000 });
    expect(made.certificate.notAfterMs).toBeLessThan(Date.now() + 24 * HOUR);
    expect(vault.requests).toHaveLength(2);
    expectIssues(made);
  });

  const plain = (extensions: string) => ({ extensions });
  it.each<[string, (body: Record<string, unknown>) => ReturnType<VaultServer['signed']>, RegExp]>([
    ['another key', (body) => vault.signed(body, { csr: otherRequest() }), /its key is the one that was asked for/],
    [
      'no CA',
      (body) =>
        vault.signed(
          body,
          plain('basicConstraints=critical,CA:false\nkeyUsage=critical,digitalSignature\nsubjectKeyIdentifier=hash\n'),
        ),
      /it is a CA \(X\.509-SVID/,
    ],
    [
      'a life longer than asked for',
      (body) => vault.signed(body, { seconds: 3 * 86_400 }),
      /it ends when it was asked to, .* or earlier; it ends at/,
    ],
    [
      'a life that begins in an hour',
      (body) => vault.signed(body, { beginsInSeconds: 3600 }),
      /it is valid by now; it begins at/,
    ],
    ['a life of a minute', (body) => vault.signed(body, { seconds: 60 }), /it lives for 5 minutes or more/],
    [
      'another trust domain',
      (body) => vault.signed({ ...body, uri_sans: 'spiffe://other.org' }),
      /its SPIFFE ID, if there is one, is spiffe:\/\/example\.org/,
    ],
    [
      'a SPIFFE ID with a path',
      (body) => vault.signed({ ...body, uri_sans: 'spiffe://example.org/admin' }),
      /its SPIFFE ID/,
    ],
    [
      'name constraints',
      (body) => vault.signed(body, plain(`${INTERMEDIATE}nameConstraints=critical,permitted;DNS:example.org\n`)),
      /no name constraints/,
    ],
    [
      'no right to sign certificates',
      (body) => vault.signed(body, plain(INTERMEDIATE.replace('keyCertSign,', ''))),
      /keyCertSign/,
    ],
    ['no right to sign CRLs', (body) => vault.signed(body, plain(INTERMEDIATE.replace(',cRLSign', ''))), /cRLSign/],
    [
      'key purposes that SVIDs cannot have under it',
      (body) => vault.signed(body, plain(`${INTERMEDIATE}extendedKeyUsage=codeSigning\n`)),
      /CERT_EXT_KEY_USAGE/,
    ],
    [
      'an unknown critical extension',
      (body) => vault.signed(body, plain(`${INTERMEDIATE}1.2.3.4=critical,ASN1:NULL\n`)),
      /no critical extension is unknown/,
    ],
  ])('is not believed when it gives a certificate with %s', async (_, sign, message) => {
    await start();
    vault.answer = ({ body }) => sign(body);
    await expect(make(config)).rejects.toThrow(message);
  });

  it('is not believed when its certificate is not signed by the root that it names', async () => {
    await start();
    const root = cas.make('pki2');
    vault.answer = ({ body }) => {
      const answer = vault.signed(body) as { status: number; body: { data: Record<string, unknown> } };
      // a root of the same name with another key
      copyFileSync(root.keyFile, join(home, 'pki.key'));
      const forged = cas.make('pki').certificate;
      Object.assign(answer.body.data, { issuing_ca: forged, ca_chain: [forged] });
      return answer;
    };
    await expect(make(config)).rejects.toThrow(/would be refused with CERT_(UNTRUSTED|BAD_SIGNATURE)/);
  });

  it.each<[string, () => void, RegExp]>([
    [
      'a token that may not',
      () => secret('token', 'hvs.other'),
      /answers pki\/root\/sign-intermediate with 403 \(permission denied\); give the token a policy with the capability update/,
    ],
    [
      'a token that others may read',
      () => chmodSync(join(home, 'token'), 0o644),
      /ca\.upstream\.auth\.tokenFile: .*run chmod 600/,
    ],
    ['an empty token', () => secret('token', '\n'), /ca\.upstream\.auth\.tokenFile: .* is empty or not one line/],
    [
      'a wrong mount',
      () => {
        config = { ...config, mount: 'nowhere' };
      },
      /with 404 \(no handler for route .*\); mount a PKI engine there, or correct ca\.upstream\.mount/,
    ],
    [
      'a sealed Vault',
      () => {
        vault.answer = () => ({ status: 503, body: { errors: ['Vault is sealed'] } });
      },
      /with 503 \(Vault is sealed\); see whether it is unsealed/,
    ],
    [
      'a wrong CA',
      () => {
        config = { ...config, caFile: cas.make('other').certFile };
      },
      /its TLS certificate is not trusted \(.*\); name its CA by ca\.upstream\.caFile/,
    ],
    [
      'a TLS certificate that only its own CA vouches for',
      () => {
        config = { ...config, caFile: undefined };
      },
      /its TLS certificate is not trusted/,
    ],
    ['nobody there', () => vault.close(), /cannot be reached \(ECONNREFUSED\); correct ca\.upstream\.address/],
    [
      'no answer',
      () => {
        config = { ...config, timeoutSeconds: 1 };
        vault.answer = () => new Promise(() => {});
      },
      /did not answer within 1 s/,
    ],
    [
      'an endless answer',
      () => {
        vault.answer = () => ({ status: 200, body: 'x'.repeat(2_000_000) });
      },
      /an answer of more than 262144 bytes/,
    ],
    [
      'an answer that is not JSON',
      () => {
        vault.answer = () => ({ status: 200, body: '<html>' });
      },
      /answers pki\/root\/sign-intermediate with 200; see what it says/,
    ],
    [
      'an answer without a certificate',
      () => {
        vault.answer = () => ({ status: 200, body: { data: {} } });
      },
      /its answer holds no certificate/,
    ],
    [
      'an answer with a broken certificate',
      () => {
        vault.answer = () => ({ status: 200, body: { data: { certificate: 'x' } } });
      },
      /its answer: no PEM block/,
    ],
    [
      'a wrong secret id',
      () => {
        config = {
          ...config,
          auth: {
            type: 'approle',
            mount: 'approle',
            roleIdFile: secret('r', 'role-1'),
            secretIdFile: secret('s', 'wrong-secret'),
          },
        };
      },
      /answers auth\/approle\/login with 400 \(invalid role or secret ID\); correct ca\.upstream\.auth/,
    ],
  ])('says what to do about %s, and no secret', async (_, spoil, message) => {
    await start();
    spoil();
    const error = await make(config).then(
      () => undefined,
      (thrown: Error) => thrown,
    );
    expect(error?.message).toMatch(message);
    expect(error?.message).not.toMatch(/hvs\.|wrong-secret|role-1/);
  });

  function otherRequest(): string {
    const path = cas.key('stranger');
    return execFileSync('openssl', ['req', '-new', '-key', path, '-subj', '/CN=x'], { encoding: 'utf8' });
  }
});
