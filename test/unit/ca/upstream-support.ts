/** What the tests of upstream authorities share: a directory, authorities in it, and a look at whether what they signed can issue. */
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect } from 'vitest';
import { type MadeAuthority, makeAuthority } from '../../../ca/authority.ts';
import { buildTbs } from '../../../ca/build.ts';
import type { SigningKey } from '../../../ca/keys/key-manager.ts';
import { MemoryKeys } from '../../../ca/keys/memory.ts';
import { lintTbs } from '../../../ca/lint.ts';
import { planWorkload } from '../../../ca/profile.ts';
import { randomSerial } from '../../../ca/serial.ts';
import { signCertificate } from '../../../ca/sign.ts';
import { signerOf } from '../../../ca/signer.ts';
import { openUpstream, type UpstreamConfig } from '../../../ca/upstream/upstream.ts';
import { generateKey, publicKeyDer } from '../../../src/pki/keys.ts';
import { encodePem } from '../../../src/pki/pem.ts';
import { verifyX509Svid } from '../../../src/pki/verify.ts';
import { OpensslCas } from './openssl-ca.ts';
import { FRONTEND, NODE_A, TD } from './support.ts';

export const HOUR = 3_600_000;
export const clock = { nowMs: () => Date.now(), bootNs: () => process.hrtime.bigint() };

/** The test's own directory, the authorities that openssl makes in it, and the key that is to be signed. */
export let home: string;
export let cas: OpensslCas;
export let key: SigningKey;

/** Each test of the file gets its own. */
export function eachInItsOwnHome(): void {
  beforeEach(async () => {
    home = mkdtempSync(join(tmpdir(), 'countersign-upstream-'));
    cas = new OpensslCas(home);
    key = await new MemoryKeys().generate('x509-1', 'ec-p256');
  });
  afterEach(() => rmSync(home, { recursive: true, force: true }));
}

export function make(config: UpstreamConfig, { hours = 24, of = key } = {}): Promise<MadeAuthority> {
  const second = Math.floor(Date.now() / 1000) * 1000;
  const validity = { notBeforeMs: second - 10_000, notAfterMs: second + hours * HOUR };
  return Promise.resolve().then(() => makeAuthority(of, TD, validity, openUpstream(config, TD, clock)));
}

/** A workload's SVID under the authority is accepted by us and by openssl. */
export function expectIssues(made: MadeAuthority, signing = key): void {
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
