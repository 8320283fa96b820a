import {
  chmodSync,
  existsSync,
  mkdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import type { TrustDomain } from '../../../src/model/ids.ts';
import { parseCertificate } from '../../../src/pki/certificate.ts';
import { generateKey, privateKeyPem } from '../../../src/pki/keys.ts';
import { decodePem } from '../../../src/pki/pem.ts';
import { START, withCa, workloadRequest } from './support.ts';

const modeOf = (path: string) => statSync(path).mode & 0o777;

describe('the authority on disk', () => {
  it('is a self-signed CA for ten years with the SPIFFE ID of its trust domain', async () => {
    await withCa(async ({ open, directory }) => {
      const ca = await open();
      const parsed = parseCertificate(ca.bundle().authorities[0]!);
      expect(parsed).toMatchObject({
        ok: true,
        value: {
          isCa: true,
          spiffeId: 'spiffe://example.org',
          keyUsage: (1 << 5) | (1 << 6),
          notBeforeMs: START - 10_000,
          notAfterMs: START + 3650 * 86_400_000,
        },
      });
      const [stored] = decodePem(readFileSync(join(directory, 'authority/ca.crt'), 'utf8'), 'CERTIFICATE');
      expect(stored).toEqual(ca.bundle().authorities[0]);
    });
  });

  it('is readable by its owner alone', async () => {
    await withCa(async ({ open, directory }) => {
      await (await open()).issueWorkloadSvid(workloadRequest());
      expect(modeOf(join(directory, 'authority'))).toBe(0o700);
      expect(modeOf(join(directory, 'authority/ca.key'))).toBe(0o600);
      for (const file of ['ledger.db', 'ledger.db-wal']) expect(modeOf(join(directory, file))).toBe(0o600);
    });
  });

  it('is the same after a restart', async () => {
    await withCa(async ({ open }) => {
      const ca = await open();
      const before = ca.bundle();
      ca.close();
      expect((await open()).bundle()).toEqual(before);
    });
  });

  it('is held by one process at a time', async () => {
    await withCa(async ({ open }) => {
      await open();
      await expect(open()).rejects.toThrow(/ledger\.db: another process holds it/);
    });
  });

  it('is begun anew over what a crash left of a first start', async () => {
    await withCa(async ({ open, directory }) => {
      const halfWritten = join(directory, 'authority.new');
      mkdirSync(halfWritten, { recursive: true });
      writeFileSync(join(halfWritten, 'ca.key'), 'half');
      await open();
      expect(existsSync(halfWritten)).toBe(false);
    });
  });

  const stories: [string, (directory: string) => void, RegExp][] = [
    [
      'key that the group may read',
      (d) => chmodSync(join(d, 'authority/ca.key'), 0o640),
      /ca\.key: group or others may read the key; run chmod 600/,
    ],
    ['key that the world may read', (d) => chmodSync(join(d, 'authority/ca.key'), 0o604), /chmod 600/],
    [
      'directory that the group may enter',
      (d) => chmodSync(join(d, 'authority'), 0o750),
      /authority: group or others may enter; run chmod 700/,
    ],
    ['state directory that others may write to', (d) => chmodSync(d, 0o777), /others may write to it; run chmod 700/],
    ['missing key', (d) => rmSync(join(d, 'authority/ca.key')), /ca\.key: it is missing/],
    ['missing certificate', (d) => rmSync(join(d, 'authority/ca.crt')), /ca\.crt: it is missing/],
    [
      'missing authority beside a ledger',
      (d) => rmSync(join(d, 'authority'), { recursive: true }),
      /the ledger lists certificates/,
    ],
    [
      'cut certificate',
      (d) => writeFileSync(join(d, 'authority/ca.crt'), readFileSync(join(d, 'authority/ca.crt')).subarray(0, 100)),
      /ca\.crt: line 1: .*no end/,
    ],
    ['empty key', (d) => writeFileSync(join(d, 'authority/ca.key'), ''), /ca\.key: no PEM block "PRIVATE KEY"/],
    [
      'key of another authority',
      (d) => writeFileSync(join(d, 'authority/ca.key'), privateKeyPem(generateKey())),
      /ca\.key is not the key of ca\.crt/,
    ],
    [
      'ledger that is no database',
      (d) => writeFileSync(join(d, 'ledger.db'), 'not a database, but long enough to be read as one'.repeat(100)),
      /ledger\.db: /,
    ],
  ];

  it.each(stories)('a %s is refused with the file and what to do', async (_, spoil, message) => {
    await withCa(async ({ open, directory }) => {
      const ca = await open();
      await ca.issueWorkloadSvid(workloadRequest());
      ca.close();
      spoil(directory);
      await expect(open()).rejects.toThrow(message);
    });
  });

  it('a key that is a link is not followed', async () => {
    await withCa(async ({ open, directory }) => {
      (await open()).close();
      const key = join(directory, 'authority/ca.key');
      renameSync(key, join(directory, 'elsewhere.key'));
      symlinkSync(join(directory, 'elsewhere.key'), key);
      await expect(open()).rejects.toThrow(/it is a link/);
    });
  });

  it('an error about a broken key does not hold it', async () => {
    await withCa(async ({ open, directory }) => {
      (await open()).close();
      const path = join(directory, 'authority/ca.key');
      const secret = readFileSync(path, 'utf8').split('\n')[1]!;
      writeFileSync(path, readFileSync(path, 'utf8').replace(secret, `${secret.slice(0, -4)}????`));
      await expect(open()).rejects.toSatisfy((error: Error) => !error.message.includes(secret.slice(0, 16)));
    });
  });

  it('of another trust domain, expired or from the future is refused', async () => {
    await withCa(async ({ open, clock }) => {
      (await open({ authorityTtlDays: 1 })).close();
      await expect(open({ trustDomain: 'other.org' as TrustDomain })).rejects.toThrow(
        /of the trust domain example\.org, not other\.org/,
      );
      clock.move(-60_000);
      await expect(open()).rejects.toThrow(/not valid yet/);
      clock.move(2 * 86_400_000);
      await expect(open()).rejects.toThrow(/expired/);
    });
  });
});
