import { execFileSync } from 'node:child_process';
import { createPrivateKey, createPublicKey, X509Certificate } from 'node:crypto';
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { SLOW } from '../../support/slow.ts';
import { until } from './stage.ts';
import { SvidStage } from './svid-stage.ts';

// each of them starts several processes
vi.setConfig({ testTimeout: 60_000 * SLOW, hookTimeout: 60_000 * SLOW });

let stage: SvidStage;
beforeEach(async () => {
  stage = await SvidStage.open();
});
afterEach(async () => stage[Symbol.asyncDispose]());

const openssl = (...args: string[]) => execFileSync('openssl', args, { encoding: 'utf8', stdio: 'pipe' });
const file = (name: string) => join(stage.out, name);
const modeOf = (path: string) => statSync(path).mode & 0o777;
const claimsOf = (token: string) => JSON.parse(Buffer.from(token.split('.')[1]!, 'base64url').toString());
const leafIn = (directory = stage.out) => new X509Certificate(readFileSync(join(directory, 'svid.pem')));

describe('countersign svid fetch', () => {
  it('writes PEM that OpenSSL verifies, with a key that only its owner reads and that is of the certificate', async () => {
    const { status, stdout, stderr } = await stage.cli('fetch', '--write', stage.out);
    expect({ status, stdout, stderr }).toEqual({ status: 0, stdout: 'spiffe://example.org/web\n', stderr: '' });
    expect(
      openssl(
        'verify',
        '-x509_strict',
        '-CAfile',
        file('bundle.pem'),
        '-untrusted',
        file('svid.pem'),
        file('svid.pem'),
      ),
    ).toMatch(/: OK/);
    expect(['key.pem', 'svid.pem', 'bundle.pem'].map((name) => modeOf(file(name)))).toEqual([0o600, 0o644, 0o644]);
    expect(leafIn().checkPrivateKey(createPrivateKey(readFileSync(file('key.pem'))))).toBe(true);
    expect(leafIn().subjectAltName).toBe('URI:spiffe://example.org/web');
  });

  it('takes the SVID that is asked for, of several, and says which there are when it is none of them', async () => {
    const { stdout } = await stage.cli('fetch', '--spiffe-id', 'spiffe://example.org/web-admin', '-o', 'json');
    expect(JSON.parse(stdout)).toEqual({ spiffeId: 'spiffe://example.org/web-admin' });
    const none = await stage.cli('fetch', '--spiffe-id', 'spiffe://example.org/other');
    expect(none.status).toBe(1);
    expect(none.stderr).toContain('no SVID spiffe://example.org/other; it has spiffe://example.org/web,');
  });

  it('gives a JWT-SVID for the audiences asked for, on stdout or as a file that only its owner reads', async () => {
    const shown = await stage.cli('fetch', '--audience', 'db', 'cache');
    expect(shown).toMatchObject({ status: 0, stderr: '' });
    expect(claimsOf(shown.stdout)).toMatchObject({ sub: 'spiffe://example.org/web', aud: ['cache', 'db'] });
    const written = await stage.cli('fetch', '--audience', 'db', '--write', stage.out);
    expect(written.stdout).toBe('spiffe://example.org/web\n');
    expect(modeOf(file('jwt_svid.token'))).toBe(0o600);
    expect(claimsOf(readFileSync(file('jwt_svid.token'), 'utf8'))).toMatchObject({ aud: ['db'] });
    await stage.cli('fetch', '--write', stage.out);
    expect(existsSync(file('jwt_svid.token'))).toBe(false);
  });

  it('writes the revocation list, by which OpenSSL refuses what was taken back', async () => {
    await stage.cli('fetch', '--write', stage.out);
    const old = join(stage.directory, 'old.pem');
    copyFileSync(file('svid.pem'), old);
    const refused = () => {
      try {
        openssl('verify', '-crl_check', '-CAfile', file('bundle.pem'), '-CRLfile', file('crl.pem'), old);
        return false;
      } catch (thrown) {
        return (thrown as { stderr: string }).stderr.includes('certificate revoked');
      }
    };
    expect(refused()).toBe(false);
    await stage.takeBack(leafIn().serialNumber);
    while (!refused()) await stage.cli('fetch', '--write', stage.out);
  });

  it('writes a keystore that OpenSSL reads: key and chain under one password, which is made once and kept 0600', async () => {
    expect((await stage.cli('fetch', '--write', stage.out, '--pkcs12')).status).toBe(0);
    const password = readFileSync(file('keystore.password'), 'utf8');
    expect(password).toMatch(/^[\w-]{43}\n$/);
    const modes = ['keystore.password', 'keystore.p12', 'truststore.p12'].map((name) => modeOf(file(name)));
    expect(modes).toEqual([0o600, 0o600, 0o600]);
    const read = (name: string, ...more: string[]) =>
      openssl('pkcs12', '-in', file(name), '-passin', `file:${file('keystore.password')}`, '-nodes', ...more);
    const keyed = read('keystore.p12');
    expect(createPublicKey(createPrivateKey(keyed)).export({ format: 'jwk' })).toEqual(
      leafIn().publicKey.export({ format: 'jwk' }),
    );
    expect(keyed.match(/BEGIN CERTIFICATE/g)).toHaveLength(
      readFileSync(file('svid.pem'), 'utf8').match(/BEGIN/g)!.length,
    );
    const trusted = read('truststore.p12', '-nokeys');
    expect(new X509Certificate(trusted.slice(trusted.indexOf('-----'))).raw).toEqual(
      new X509Certificate(readFileSync(file('bundle.pem'))).raw,
    );
    expect(() => openssl('pkcs12', '-in', file('keystore.p12'), '-passin', 'pass:another', '-nodes')).toThrow(
      /invalid password/,
    );
    await stage.cli('fetch', '--write', stage.out, '--pkcs12');
    expect(readFileSync(file('keystore.password'), 'utf8')).toBe(password);
  });

  if (existsSync('/usr/bin/keytool')) {
    it('writes keystores that a JVM reads: a private key entry, and certificates that it trusts', async () => {
      const passwordFile = join(stage.directory, 'password');
      writeFileSync(passwordFile, 'correct horse battery staple\n', { mode: 0o600 });
      expect((await stage.cli('fetch', '--write', stage.out, '--pkcs12', '--password-file', passwordFile)).status).toBe(
        0,
      );
      expect(existsSync(file('keystore.password'))).toBe(false);
      const list = (name: string) =>
        execFileSync(
          'keytool',
          [
            '-J-Xshare:auto',
            '-list',
            '-v',
            '-storetype',
            'PKCS12',
            '-keystore',
            file(name),
            '-storepass:file',
            passwordFile,
          ],
          { encoding: 'utf8' },
        );
      const keyed = list('keystore.p12');
      expect(keyed).toMatch(/Alias name: svid\n.*\nEntry type: PrivateKeyEntry/);
      expect(keyed).toContain('URIName: spiffe://example.org/web');
      expect(list('truststore.p12')).toMatch(/Alias name: bundle-1\n.*\nEntry type: trustedCertEntry/);
    });
  }

  it('refuses a directory that others may write into, and a password that others may read', async () => {
    mkdirSync(stage.out);
    chmodSync(stage.out, 0o777);
    const wide = await stage.cli('fetch', '--write', stage.out);
    expect(wide).toMatchObject({
      status: 2,
      stderr: `countersign: others may write into ${stage.out}; chmod go-w it\n`,
    });
    chmodSync(stage.out, 0o755);
    const passwordFile = join(stage.directory, 'password');
    writeFileSync(passwordFile, 'correct horse battery staple\n', { mode: 0o644 });
    const read = await stage.cli('fetch', '--write', stage.out, '--pkcs12', '--password-file', passwordFile);
    expect(read.status).not.toBe(0);
    expect(read.stderr).toContain('chmod 600');
    chmodSync(passwordFile, 0o600);
    writeFileSync(passwordFile, 'short\n');
    const short = await stage.cli('fetch', '--write', stage.out, '--pkcs12', '--password-file', passwordFile);
    expect(short).toMatchObject({ status: 2, stderr: expect.stringContaining('6 to 128') });
    expect(readdirSync(stage.out)).toEqual([]);
    expect((await stage.cli('fetch', '--pkcs12')).status).toBe(2);
  });
});

describe('countersign svid watch', () => {
  it('writes each new SVID and then runs the command, which gets the directory and no secret', async () => {
    const seen = join(stage.directory, 'seen');
    const script = `cat /proc/self/environ "/proc/$$/cmdline" > "$0.tmp"; openssl x509 -in "$COUNTERSIGN_SVID_DIR/svid.pem" -noout -serial >> "$0.tmp"; mv "$0.tmp" "$0"`;
    const watch = stage.watch('--pkcs12', '--', 'sh', '-c', script, seen);
    expect(await watch.next()).toMatchObject({ spiffeId: 'spiffe://example.org/web', directory: stage.out });
    const first = leafIn();
    const said = () => existsSync(seen) && readFileSync(seen, 'latin1');
    await until(() => (said() || '').includes(`serial=${first.serialNumber}`));
    await stage.takeBack(first.serialNumber.toLowerCase());
    await watch.next();
    const second = leafIn();
    expect(second.serialNumber).not.toBe(first.serialNumber);
    await until(() => (said() || '').includes(`serial=${second.serialNumber}`));
    expect(second.checkPrivateKey(createPrivateKey(readFileSync(file('key.pem'))))).toBe(true);
    const told = said() || '';
    expect(told).toContain(`COUNTERSIGN_SVID_DIR=${stage.out}`);
    expect(told).not.toContain('PRIVATE KEY');
    expect(told).not.toContain(readFileSync(file('keystore.password'), 'utf8').trim());
    expect(await watch.end('SIGTERM')).toBe(0);
  });

  it('renews the JWT-SVID at half its life, and not before', async () => {
    await stage[Symbol.asyncDispose]();
    stage = await SvidStage.open({ ca: { jwtTtl: '10s' } });
    const watch = stage.watch('--audience', 'db');
    const expiries = new Set<string>();
    while (expiries.size < 2) {
      const { jwtNotAfter } = await watch.next();
      if (jwtNotAfter !== undefined) expiries.add(jwtNotAfter);
    }
    const [first, second] = [...expiries].map((text) => Date.parse(text));
    expect(second! - first!).toBeGreaterThan(3_000);
    expect(second! - first!).toBeLessThan(8_000);
    expect(claimsOf(readFileSync(file('jwt_svid.token'), 'utf8')).exp * 1000).toBe(second);
  });

  it('goes on when the agent went away and came back, and says so once', async () => {
    const watch = stage.watch();
    await watch.next();
    const first = leafIn();
    await stage.agentDown();
    await until(() => watch.stderr.includes('nobody serves there'));
    expect(leafIn().serialNumber).toBe(first.serialNumber);
    await stage.takeBack(first.serialNumber.toLowerCase());
    await stage.agentUp();
    await watch.next();
    expect(leafIn().serialNumber).not.toBe(first.serialNumber);
    expect(watch.stderr.match(/nobody serves there/g)).toHaveLength(1);
    expect(await watch.end('SIGINT')).toBe(0);
  });

  it('signals the process of a pid file, and says what is wrong with the file or the command while the SVIDs go on', async () => {
    const pidFile = join(stage.directory, 'pid');
    writeFileSync(pidFile, '1\n');
    const watch = stage.watch('--pid-file', pidFile, '--signal', 'SIGUSR2', '--', '/nonexistent');
    await watch.next();
    await until(() => watch.stderr.includes('/nonexistent cannot be run: ENOENT'));
    expect(watch.stderr).toContain(`${pidFile} holds no process id; nobody was told`);
    let signalled = 0;
    const count = () => void signalled++;
    process.on('SIGUSR2', count);
    try {
      writeFileSync(pidFile, `${process.pid}\n`);
      await stage.takeBack(leafIn().serialNumber.toLowerCase());
      await watch.next();
      await until(() => signalled === 1);
    } finally {
      process.off('SIGUSR2', count);
    }
  });
});
