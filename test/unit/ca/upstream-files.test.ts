/** An upstream authority in files signs the intermediate, and is refused, naming what to put right, when its files are not in order. */
import { chmodSync, readFileSync, renameSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { makeAuthority } from '../../../ca/authority.ts';
import type { KeyType } from '../../../ca/keys/key-type.ts';
import { MemoryKeys } from '../../../ca/keys/memory.ts';
import { openUpstream } from '../../../ca/upstream/upstream.ts';
import { generateKey, privateKeyPem } from '../../../src/pki/keys.ts';
import { encodePem } from '../../../src/pki/pem.ts';
import { TD } from './support.ts';
import { cas, clock, eachInItsOwnHome, expectIssues, HOUR, home, key, make } from './upstream-support.ts';

eachInItsOwnHome();

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
