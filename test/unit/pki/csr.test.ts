import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { createCsr, verifyCsr } from '../../../src/pki/csr.ts';
import { generateKey, privateKeyPem, publicKeyDer } from '../../../src/pki/keys.ts';
import { encodePem } from '../../../src/pki/pem.ts';
import { ed25519Key, keyOf, rsaKey } from './support/forge.ts';

const key = generateKey();
const csr = createCsr(key);

/** A request as OpenSSL makes it. */
function opensslCsr(pem: string, ...more: string[]): Buffer {
  const directory = mkdtempSync(join(tmpdir(), 'countersign-csr-'));
  try {
    const path = join(directory, 'key.pem');
    writeFileSync(path, pem, { mode: 0o600 });
    return execFileSync('openssl', ['req', '-new', '-key', path, '-subj', '/CN=whoever', '-outform', 'DER', ...more]);
  } finally {
    rmSync(directory, { recursive: true });
  }
}

describe('verifyCsr', () => {
  it('gives the key of a request that its holder signed', () => {
    expect(verifyCsr(csr)).toEqual({ ok: true, value: publicKeyDer(key) });
  });

  it('takes requests of OpenSSL for P-256, P-384 and RSA, whatever else they ask for', () => {
    const wish = ['-addext', 'subjectAltName=URI:spiffe://example.org/admin', '-addext', 'basicConstraints=CA:TRUE'];
    for (const other of [generateKey(), keyOf('P-384'), rsaKey(2048)]) {
      expect(verifyCsr(opensslCsr(privateKeyPem(other), ...wish))).toEqual({ ok: true, value: publicKeyDer(other) });
    }
  });

  it('refuses keys that are not allowed', () => {
    for (const weak of [keyOf('P-521'), rsaKey(1024), ed25519Key()]) {
      expect(verifyCsr(opensslCsr(privateKeyPem(weak)))).toEqual({ ok: false, error: 'CERT_WEAK_KEY' });
    }
  });

  it('refuses a request for another one’s key', () => {
    const stolen = Buffer.from(csr);
    const at = stolen.indexOf(publicKeyDer(key));
    publicKeyDer(generateKey()).copy(stolen, at);
    expect(verifyCsr(stolen)).toEqual({ ok: false, error: 'ISSUE_CSR_INVALID' });
  });

  it('refuses a request cut at any byte or with any byte changed, and never throws', () => {
    for (let i = 0; i < csr.length; i++) {
      expect(verifyCsr(csr.subarray(0, i))).toEqual({ ok: false, error: 'ISSUE_CSR_INVALID' });
      const bent = Buffer.from(csr);
      bent[i]! ^= 0x41;
      expect(verifyCsr(bent).ok).toBe(false);
    }
    fc.assert(fc.property(fc.uint8Array(), (bytes) => !verifyCsr(Buffer.from(bytes)).ok));
  });

  it('refuses a request that is too large', () => {
    expect(verifyCsr(Buffer.alloc(8193))).toEqual({ ok: false, error: 'ISSUE_CSR_INVALID' });
  });
});

describe('createCsr', () => {
  it('makes what OpenSSL verifies', () => {
    const run = () =>
      execFileSync('openssl', ['req', '-verify', '-noout'], {
        input: encodePem('CERTIFICATE REQUEST', csr),
        stdio: 'pipe',
      });
    expect(run).not.toThrow();
  });

  it('says so when the key is of another kind', () => {
    expect(() => createCsr(keyOf('P-384'))).toThrow(/P-256/);
  });
});
