import { execFileSync } from 'node:child_process';
import {
  chmodSync,
  copyFileSync,
  mkdtempSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { type MadeAuthority, makeAuthority } from '../../../ca/authority.ts';
import { buildTbs } from '../../../ca/build.ts';
import type { SigningKey } from '../../../ca/keys/key-manager.ts';
import { KEY_TYPES, type KeyType } from '../../../ca/keys/key-type.ts';
import { MemoryKeys } from '../../../ca/keys/memory.ts';
import { lintTbs } from '../../../ca/lint.ts';
import { planWorkload } from '../../../ca/profile.ts';
import { randomSerial } from '../../../ca/serial.ts';
import { signCertificate } from '../../../ca/sign.ts';
import { signerOf } from '../../../ca/signer.ts';
import { openUpstream, type UpstreamConfig } from '../../../ca/upstream/upstream.ts';
import { generateKey, privateKeyPem, publicKeyDer } from '../../../src/pki/keys.ts';
import { encodePem } from '../../../src/pki/pem.ts';
import { verifyX509Svid } from '../../../src/pki/verify.ts';
import { INTERMEDIATE, OpensslCas } from './openssl-ca.ts';
import { FRONTEND, NODE_A, TD } from './support.ts';
import { type VaultRequest, VaultServer } from './vault-server.ts';

const HOUR = 3_600_000;
const clock = { nowMs: () => Date.now(), bootNs: () => process.hrtime.bigint() };

let home: string;
let cas: OpensslCas;
let key: SigningKey;
beforeEach(async () => {
  home = mkdtempSync(join(tmpdir(), 'countersign-upstream-'));
  cas = new OpensslCas(home);
  key = await new MemoryKeys().generate('x509-1', 'ec-p256');
});
afterEach(() => rmSync(home, { recursive: true, force: true }));

function make(config: UpstreamConfig, { hours = 24, of = key } = {}): Promise<MadeAuthority> {
  const second = Math.floor(Date.now() / 1000) * 1000;
  const validity = { notBeforeMs: second - 10_000, notAfterMs: second + hours * HOUR };
  return Promise.resolve().then(() => makeAuthority(of, TD, validity, openUpstream(config, TD, clock)));
}

/** A workload's SVID under the authority is accepted by us and by openssl. */
function expectIssues(made: MadeAuthority, signing = key): void {
  const second = Math.floor(Date.now() / 1000) * 1000;
  const spki = publicKeyDer(generateKey());
  const plan = planWorkload(FRONTEND, NODE_A, [], { notBeforeMs: second, notAfterMs: second + HOUR });
  const signer = signerOf(signing, made.certificate);
  const linted = lintTbs(buildTbs(plan, signer, spki, randomSerial()), plan, signer, spki);
  if (!linted.ok) throw new Error(linted.error.join());
  const leaf = signCertificate(linted.value);
  const verified = verifyX509Svid([leaf, ...made.chain], { trustDomain: TD, authorities: made.roots }, Date.now());
  expect(verified).toMatchObject({ ok: true, value: { spiffeId: FRONTEND } });
  const write = (name: string, ders: readonly Buffer[]) => {
    writeFileSync(join(home, name), ders.map((der) => encodePem('CERTIFICATE', der)).join(''));
    return join(home, name);
  };
  const files = [
    '-CAfile',
    write('roots', made.roots),
    '-untrusted',
    write('chain', made.chain),
    write('leaf', [leaf]),
  ];
  for (const purpose of ['sslserver', 'sslclient']) {
    execFileSync('openssl', ['verify', '-x509_strict', '-no-CApath', '-purpose', purpose, ...files]);
  }
}

describe('an upstream authority in files', () => {
  const files = (name = 'root') => ({
    type: 'disk' as const,
    certFile: join(home, `${name}.crt`),
    keyFile: join(home, `${name}.key`),
  });

  it.each<[KeyType, string]>([
    ['ec-p256', 'p256'],
    ['ec-p384', 'p384'],
    ['rsa-3072', 'rsa3072'],
    ['ec-p256', 'rsa3072'],
  ])('signs an intermediate of type %s with its key of type %s', async (type, upstream) => {
    cas.make('root', { key: upstream });
    const signing = await new MemoryKeys().generate('x509-1', type);
    const made = await make(files(), { of: signing });
    expect(made.chain).toHaveLength(1);
    expect(made.certificate).toMatchObject({ isCa: true, pathLength: 0, spiffeId: 'spiffe://example.org' });
    expectIssues(made, signing);
  });

  it('may be an intermediate itself, in a chain up to a root in bundleFile', async () => {
    const root = cas.make('root', { key: 'rsa3072' });
    const middle = cas.make('middle', { issuer: root });
    const issuing = cas.make('issuing', { issuer: middle, key: 'p384' });
    writeFileSync(issuing.certFile, issuing.certificate + middle.certificate);
    const made = await make({ ...files('issuing'), bundleFile: root.certFile });
    expect(made.chain).toHaveLength(3);
    expect(made.roots).toHaveLength(1);
    expectIssues(made);
    await expect(make(files('issuing'))).rejects.toThrow(
      /ca\.upstream\.bundleFile: the upstream certificate is not a root/,
    );
  });

  it('is read again: replaced files are used for the next intermediate', async () => {
    cas.make('root');
    const upstream = openUpstream(files(), TD, clock);
    const validity = () => ({ notBeforeMs: Date.now() - 10_000, notAfterMs: Date.now() + HOUR });
    const before = await makeAuthority(key, TD, validity(), upstream);
    const other = cas.make('other');
    renameSync(other.certFile, join(home, 'root.crt'));
    await expect(makeAuthority(key, TD, validity(), upstream)).rejects.toThrow(
      /it is not the key of .*root\.crt; replace both together/,
    );
    renameSync(other.keyFile, join(home, 'root.key'));
    const after = await makeAuthority(key, TD, validity(), upstream);
    expect(after.roots).not.toEqual(before.roots);
    expectIssues(after);
  });

  it('is not outlived by what it signs', async () => {
    cas.make('root', { days: 1 });
    const made = await make(files(), { hours: 1000 });
    expect(made.certificate.notAfterMs).toBeLessThan(Date.now() + 24 * HOUR);
    expectIssues(made);
  });

  it('is not outlived either where its own issuer ends first', async () => {
    const root = cas.make('root', { days: 1 });
    const issuing = cas.make('issuing', { issuer: root, days: 20 });
    const made = await make({ ...files('issuing'), bundleFile: root.certFile }, { hours: 1000 });
    expect(made.certificate.notAfterMs).toBeLessThan(Date.now() + 24 * HOUR);
    expect(issuing.certificate).toBeDefined();
    expectIssues(made);
  });

  const own = 'subjectAltName=URI:spiffe://example.org\n';
  const base = 'basicConstraints=critical,CA:true\nkeyUsage=critical,keyCertSign,cRLSign\nsubjectKeyIdentifier=hash\n';
  it.each<[string, () => void, RegExp]>([
    [
      'a key that the group may read',
      () => chmodSync(join(home, 'root.key'), 0o640),
      /ca\.upstream\.keyFile: .*root\.key: group or others may read it; run chmod 600/,
    ],
    [
      'a key that is a link',
      () => {
        renameSync(join(home, 'root.key'), join(home, 'k'));
        symlinkSync(join(home, 'k'), join(home, 'root.key'));
      },
      /ca\.upstream\.keyFile: .*it is a link/,
    ],
    [
      'a key that is missing',
      () => rmSync(join(home, 'root.key')),
      /ca\.upstream\.keyFile: .*root\.key: there is no such file/,
    ],
    [
      'a key that is cut',
      () => writeFileSync(join(home, 'root.key'), readFileSync(join(home, 'root.key')).subarray(0, 90)),
      /ca\.upstream\.keyFile: .*root\.key: .*no end/,
    ],
    [
      'a key that is encrypted',
      () =>
        writeFileSync(
          join(home, 'root.key'),
          generateKey().export({ type: 'pkcs8', format: 'pem', cipher: 'aes-256-cbc', passphrase: 'x' }),
        ),
      /root\.key: not plain PKCS#8; write it anew with: openssl pkcs8 -topk8 -nocrypt/,
    ],
    [
      'another key',
      () => writeFileSync(join(home, 'root.key'), privateKeyPem(generateKey())),
      /ca\.upstream\.keyFile: .*is not the key of .*root\.crt/,
    ],
    [
      'a certificate that is missing',
      () => rmSync(join(home, 'root.crt')),
      /ca\.upstream\.certFile: .*root\.crt: there is no such file/,
    ],
    [
      'a certificate that is cut',
      () => writeFileSync(join(home, 'root.crt'), readFileSync(join(home, 'root.crt')).subarray(0, 90)),
      /ca\.upstream\.certFile: .*no end/,
    ],
    [
      'a certificate that is none',
      () => writeFileSync(join(home, 'root.crt'), encodePem('CERTIFICATE', Buffer.alloc(80, 48))),
      /certFile: .*certificate 1 does not parse/,
    ],
    [
      'a certificate that is no authority’s',
      () =>
        void cas.make('root', {
          extensions:
            'basicConstraints=critical,CA:false\nkeyUsage=critical,digitalSignature\nsubjectKeyIdentifier=hash\n',
        }),
      /may not sign others \(cA, keyCertSign\)/,
    ],
    [
      'a certificate that may not sign certificates',
      () => void cas.make('root', { extensions: base.replace('keyCertSign,', '') }),
      /may not sign others/,
    ],
    [
      'a certificate that allows no authority below it',
      () => void cas.make('root', { extensions: base.replace('CA:true', 'CA:true,pathlen:0') }),
      /path length of 0 allows no further authority/,
    ],
    [
      'a certificate with name constraints',
      () => void cas.make('root', { extensions: `${base}nameConstraints=permitted;DNS:example.org\n` }),
      /name constraints, which agents refuse/,
    ],
    [
      'a certificate of another trust domain',
      () => void cas.make('root', { extensions: base + own.replace('example.org', 'other.org') }),
      /of another trust domain than example\.org/,
    ],
    ['a certificate that has ended', () => void cas.make('root', { days: -1 }), /certFile: .*it ended at 20/],
  ])('is refused with %s', async (_, spoil, message) => {
    cas.make('root');
    spoil();
    await expect(make(files())).rejects.toThrow(message);
  });

  it('is refused if its root has ended', async () => {
    const root = cas.make('root', { days: -1 });
    cas.make('issuing', { issuer: root });
    await expect(make({ ...files('issuing'), bundleFile: root.certFile })).rejects.toThrow(
      /it does not outlive those above it; one ends at 20/,
    );
  });

  it('may be of the own trust domain, and name itself so', async () => {
    cas.make('root', { extensions: base + own });
    expectIssues(await make(files()));
  });
});

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
