import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import type { CertificateAuthority } from '../../../ca/api.ts';
import { spiffeId } from '../../../src/model/spiffe-id.ts';
import { createCsr } from '../../../src/pki/csr.ts';
import { generateKey } from '../../../src/pki/keys.ts';
import { encodePem } from '../../../src/pki/pem.ts';
import { FRONTEND, NAME_A, NODE_A, START, type TestCa, withCa, workloadRequest } from './support.ts';

const HOUR = 3_600_000;

interface Listed {
  readonly serials: string[];
  readonly text: string;
  readonly number: number;
}

/** As OpenSSL reads it, having verified its signature with the authority. */
async function read(ca: CertificateAuthority, index = 0): Promise<Listed> {
  await ca.upkeep();
  const [directory, file] = temporary({
    'crl.der': ca.crls()[index]!,
    'bundle.pem': ca
      .bundle()
      .authorities.map((der) => encodePem('CERTIFICATE', der))
      .join(''),
  });
  try {
    const done = openssl(
      'crl',
      '-inform',
      'DER',
      '-in',
      file('crl.der'),
      '-CAfile',
      file('bundle.pem'),
      '-text',
      '-noout',
    );
    expect(done.stderr).toContain('verify OK');
    return {
      serials: [...done.stdout.matchAll(/Serial Number: ([0-9A-F]+)/g)].map((match) => match[1]!.toLowerCase()),
      text: done.stdout,
      number: Number(/X509v3 CRL Number: \s*(\d+)/.exec(done.stdout)![1]),
    };
  } finally {
    rmSync(directory, { recursive: true });
  }
}

/** What `openssl verify -crl_check` says of a chain at a time. */
async function verify(ca: CertificateAuthority, chain: readonly Buffer[], nowMs: number): Promise<string> {
  await ca.upkeep();
  const pems = (label: string, ders: readonly Buffer[]) => ders.map((der) => encodePem(label, der)).join('');
  const [directory, file] = temporary({
    'leaf.pem': pems('CERTIFICATE', chain.slice(0, 1)),
    'bundle.pem': pems('CERTIFICATE', ca.bundle().authorities),
    'crls.pem': pems('X509 CRL', ca.crls()),
  });
  try {
    const time = String(Math.floor(nowMs / 1000));
    const all = ['-CAfile', file('bundle.pem'), '-CRLfile', file('crls.pem'), '-attime', time, file('leaf.pem')];
    const done = openssl('verify', '-x509_strict', '-crl_check_all', ...all);
    return done.status === 0 ? 'OK' : (/error \d+ at .*: (.*)/.exec(done.stdout + done.stderr)?.[1] ?? done.stderr);
  } finally {
    rmSync(directory, { recursive: true });
  }
}

function openssl(...args: string[]): { status: number; stdout: string; stderr: string } {
  try {
    // its good words go to standard error too
    const command = ['-c', 'exec openssl "$@" 2>&1', 'openssl', ...args];
    const text = execFileSync('sh', command, { encoding: 'utf8' });
    return { status: 0, stdout: text, stderr: text };
  } catch (thrown) {
    const { status, stdout } = thrown as { status: number; stdout: string };
    return { status, stdout, stderr: stdout };
  }
}

function temporary(files: Record<string, Buffer | string>): [directory: string, file: (name: string) => string] {
  const directory = mkdtempSync(join(tmpdir(), 'countersign-crl-'));
  for (const [name, content] of Object.entries(files)) writeFileSync(join(directory, name), content);
  return [directory, (name) => join(directory, name)];
}

const csr = createCsr(generateKey());

async function workload(ca: CertificateAuthority, id = FRONTEND, node = NODE_A) {
  const outcome = await ca.issueWorkloadSvid({ ...workloadRequest(csr), spiffeId: id, node });
  if (!outcome.ok) throw new Error(outcome.error);
  return outcome.value;
}

async function nodeSvid(ca: CertificateAuthority) {
  const outcome = await ca.issueNodeSvid({ csr, name: NAME_A, incarnation: 1n, requester: 'token' });
  if (!outcome.ok) throw new Error(outcome.error);
  return outcome.value;
}

const active = (ca: CertificateAuthority) =>
  ca.authorities().find(({ kind, state }) => kind === 'x509' && state === 'active')!.id;

describe('the CRL', () => {
  it('is there from the first moment, version 2, with a number, the authority’s key identifier and nothing revoked', async () => {
    await withCa(async ({ open }) => {
      const ca = await open();
      const { text, serials, number } = await read(ca);
      expect(serials).toEqual([]);
      expect(text).toContain('Version 2 (0x1)');
      expect(text).toContain('No Revoked Certificates');
      expect(text.toLowerCase().replaceAll(':', '')).toContain(active(ca));
      expect(number).toBe(START / 1000);
      expect(text).toContain('Last Update: Jun 15 11:59:50 2026 GMT');
      expect(text).toContain('Next Update: Jun 16 12:00:00 2026 GMT');
    });
  });

  it('is one for each signing key, from the moment in which the key is published', async () => {
    await withCa(async ({ open }) => {
      const ca = await open({ keyType: 'ec-p384' });
      await ca.prepare('x509');
      expect(ca.crls()).toHaveLength(2);
      expect((await read(ca, 0)).text).toContain('ecdsa-with-SHA384');
      expect((await read(ca, 1)).serials).toEqual([]);
    });
  });

  it.each<[string, (test: { mine: string }) => Parameters<CertificateAuthority['revoke']>[0], string[]]>([
    ['a serial number', ({ mine }) => ({ serial: mine }), ['mine']],
    ['a SPIFFE ID', () => ({ spiffeId: FRONTEND }), ['mine', 'same']],
    ['a node', () => ({ node: NAME_A }), ['mine', 'other', 'node']],
  ])('lists what a revocation by %s covers, and nothing else', async (_, target, expected) => {
    await withCa(async ({ open }) => {
      const ca = await open();
      const issued = {
        mine: await workload(ca),
        same: await workload(ca, FRONTEND, spiffeId('spiffe://example.org/node/b')),
        other: await workload(ca, spiffeId('spiffe://example.org/other')),
        node: await nodeSvid(ca),
      };
      for (const { chain } of Object.values(issued)) expect(await verify(ca, chain, START)).toBe('OK');
      ca.revoke(target({ mine: issued.mine.serial }), 'stolen');
      const { serials } = await read(ca);
      const names = Object.entries(issued).filter(([, { serial }]) => serials.includes(serial));
      expect(names.map(([name]) => name)).toEqual(expected);
      for (const [name, { chain }] of Object.entries(issued)) {
        expect(await verify(ca, chain, START)).toBe(expected.includes(name) ? 'certificate revoked' : 'OK');
      }
    });
  });

  it('leaves out what is issued later, and holds what was still being issued', async () => {
    await withCa(async ({ open, clock }) => {
      const ca = await open();
      const underway = workload(ca);
      ca.revoke({ spiffeId: FRONTEND }, '');
      // a list is signed before it is in the ledger
      await ca.upkeep();
      const before = await underway;
      clock.move(1000);
      const after = await workload(ca);
      // as the authority does by itself after two seconds
      await ca.upkeep();
      const { serials } = await read(ca);
      expect(serials).toContain(before.serial);
      expect(serials).not.toContain(after.serial);
    });
  });

  it('is told of soon after a revocation, once for many', async () => {
    await withCa(async ({ open }) => {
      const ca = await open();
      const { serial } = await workload(ca);
      let told = 0;
      const changed = new Promise<void>((resolve) => {
        ca.onChange(({ crls }) => {
          if (crls !== true) return;
          told++;
          resolve();
        });
      });
      for (let i = 0; i < 20; i++) ca.revoke({ spiffeId: spiffeId(`spiffe://example.org/n${i}`) }, '');
      ca.revoke({ serial }, '');
      await changed;
      expect(told).toBe(1);
      expect((await read(ca)).serials).toEqual([serial]);
    });
  });

  it.each([
    ['keyCompromise', 'Key Compromise'],
    ['superseded', 'Superseded'],
    ['taken from a laptop', undefined],
  ])('says the reason %j in the words of RFC 5280', async (reason, word) => {
    await withCa(async ({ open }) => {
      const ca = await open();
      const { serial } = await workload(ca);
      ca.revoke({ serial }, reason);
      const { text } = await read(ca);
      if (word === undefined) expect(text).not.toContain('X509v3 CRL Reason Code');
      else expect(text).toContain(word);
    });
  });

  it('grows its number with each CRL, and with the clock over a ledger that was set back', async () => {
    await withCa(async ({ open, clock }) => {
      const ca = await open();
      const numbers = [(await read(ca)).number];
      for (const id of ['a', 'b']) {
        const { serial } = await workload(ca, spiffeId(`spiffe://example.org/${id}`));
        ca.revoke({ serial }, '');
        numbers.push((await read(ca)).number);
      }
      expect(numbers).toEqual([numbers[0], numbers[0]! + 1, numbers[0]! + 2]);
      ca.close();
      clock.move(HOUR);
      expect((await read(await open())).number).toBe(clock.nowMs() / 1000);
    });
  });

  it('is renewed at half its life, and drops what ended only after it was on one CRL more', async () => {
    await withCa(async ({ open, clock }) => {
      const ca = await open();
      const { serial } = await workload(ca);
      ca.revoke({ serial }, '');
      const first = await read(ca);
      clock.move(11 * HOUR);
      await ca.upkeep();
      expect((await read(ca)).number).toBe(first.number);
      clock.move(HOUR + 60_000);
      await ca.upkeep();
      const second = await read(ca);
      expect(second.number).toBeGreaterThan(first.number);
      // it ended eleven hours ago
      expect(second.serials).toEqual([serial]);
      clock.move(13 * HOUR);
      await ca.upkeep();
      expect((await read(ca)).serials).toEqual([]);
    });
  });

  it('of a clock that was set back is signed anew, so that it is not from the future', async () => {
    await withCa(async ({ open, clock }) => {
      clock.move(HOUR);
      const ca = await open();
      clock.move(HOUR);
      await ca.prepare('x509');
      const { serial } = await workload(ca);
      ca.revoke({ serial }, '');
      const before = await read(ca);
      clock.move(-HOUR);
      await ca.upkeep();
      const after = await read(ca);
      expect(after.number).toBeGreaterThan(before.number);
      expect(after.text).toContain('Last Update: Jun 15 12:59:50 2026 GMT');
      expect(after.serials).toEqual([serial]);
    });
  });

  it('still lists what was revoked, after a restart', async () => {
    await withCa(async ({ open }) => {
      const ca = await open();
      const { serial } = await workload(ca);
      ca.revoke({ serial }, '');
      ca.close();
      expect((await read(await open())).serials).toEqual([serial]);
    });
  });

  it('goes with its key: what an old authority signed is on the old one’s', async () => {
    await withCa(async ({ open }: TestCa) => {
      const ca = await open();
      const old = await workload(ca);
      await ca.prepare('x509');
      await ca.activate('x509');
      const fresh = await workload(ca);
      ca.revoke({ spiffeId: FRONTEND }, '');
      expect((await read(ca, 0)).serials).toEqual([old.serial]);
      expect((await read(ca, 1)).serials).toEqual([fresh.serial]);
      await ca.revokeAuthority('x509', ca.authorities().find(({ state }) => state === 'old')!.id, '');
      expect(ca.crls()).toHaveLength(1);
      expect(await verify(ca, old.chain, START)).not.toBe('OK');
    });
  });
});

describe('a clock that was set back an hour', () => {
  it('does not keep a certificate of before out of a revocation by name', async () => {
    await withCa(async ({ open, clock }) => {
      const ca = await open();
      clock.move(2 * HOUR);
      const { serial, notBeforeMs } = await workload(ca);
      clock.move(-HOUR);
      ca.revoke({ spiffeId: FRONTEND }, '');
      expect(ca.isRevoked({ spiffeId: FRONTEND, serial, node: NODE_A, notBeforeMs })).toBe(true);
      expect((await read(ca)).serials).toEqual([serial]);
      ca.close();
      // the same of a restart: the ledger knows
      const again = await open();
      ca.close();
      again.revoke({ node: NAME_A }, '');
      expect(again.isRevoked({ spiffeId: FRONTEND, serial: '', node: NODE_A, notBeforeMs })).toBe(true);
    });
  });

  it('goes on issuing, with times of its own, and no serial number twice', async () => {
    await withCa(async ({ open, clock }) => {
      const ca = await open();
      clock.move(2 * HOUR);
      const before = await workload(ca);
      clock.move(-HOUR);
      const after = await workload(ca);
      expect(after.notBeforeMs).toBe(before.notBeforeMs - HOUR);
      expect(new Set(ca.listSvids().map(({ serial }) => serial)).size).toBe(2);
    });
  });
});
