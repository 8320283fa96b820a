import {
  chmodSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { describe, expect, it } from 'vitest';
import { makeAuthority } from '../../../ca/authority.ts';
import { SoftwareKey } from '../../../ca/keys/software-key.ts';
import type { TrustDomain } from '../../../src/model/ids.ts';
import { parseCertificate } from '../../../src/pki/certificate.ts';
import { generateKey, privateKeyPem } from '../../../src/pki/keys.ts';
import { encodePem } from '../../../src/pki/pem.ts';
import { verifyX509Svid } from '../../../src/pki/verify.ts';
import { bundleOf, FRONTEND, NODE_A, START, TD, withCa, workloadRequest } from './support.ts';

const modeOf = (path: string) => statSync(path).mode & 0o777;

const DAY = 86_400_000;
const keyFiles = (directory: string) => readdirSync(join(directory, 'keys')).sort();
const x509KeyFile = (directory: string) =>
  join(directory, 'keys', keyFiles(directory).find((name) => name.startsWith('x509-'))!);

describe('the authority on disk', () => {
  it('is a self-signed CA for a year with the SPIFFE ID of its trust domain', async () => {
    await withCa(async ({ open }) => {
      const ca = await open();
      const parsed = parseCertificate(ca.bundle().authorities[0]!);
      expect(parsed).toMatchObject({
        ok: true,
        value: {
          isCa: true,
          spiffeId: 'spiffe://example.org',
          keyUsage: (1 << 5) | (1 << 6),
          notBeforeMs: START - 10_000,
          notAfterMs: START + 365 * DAY,
        },
      });
    });
  });

  it('is readable by its owner alone', async () => {
    await withCa(async ({ open, directory }) => {
      await (await open()).issueWorkloadSvid(workloadRequest());
      expect(modeOf(join(directory, 'keys'))).toBe(0o700);
      expect(keyFiles(directory).map((name) => modeOf(join(directory, 'keys', name)))).toEqual([0o600, 0o600]);
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

  const stories: [string, (directory: string) => void, RegExp][] = [
    [
      'key that the group may read',
      (d) => chmodSync(x509KeyFile(d), 0o640),
      /x509-.*\.key: group or others may read.*chmod 600/,
    ],
    ['key that the world may read', (d) => chmodSync(x509KeyFile(d), 0o604), /chmod 600/],
    [
      'directory of keys that the group may enter',
      (d) => chmodSync(join(d, 'keys'), 0o750),
      /keys: group or others may enter; run chmod 700/,
    ],
    ['state directory that others may write to', (d) => chmodSync(d, 0o777), /others may write to it; run chmod 700/],
    ['missing key', (d) => rmSync(x509KeyFile(d)), /active x509 authority .* is missing; restore it from a backup/],
    ['missing directory of keys', (d) => rmSync(join(d, 'keys'), { recursive: true }), /is missing; restore it/],
    ['empty key', (d) => writeFileSync(x509KeyFile(d), ''), /\.key: no PEM block "PRIVATE KEY"/],
    [
      'key of another authority',
      (d) => writeFileSync(x509KeyFile(d), privateKeyPem(generateKey())),
      /is not the one the ledger knows by that name/,
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
      const key = x509KeyFile(directory);
      renameSync(key, join(directory, 'elsewhere.key'));
      symlinkSync(join(directory, 'elsewhere.key'), key);
      await expect(open()).rejects.toThrow(/it is a link/);
    });
  });

  it('an error about a broken key does not hold it', async () => {
    await withCa(async ({ open, directory }) => {
      (await open()).close();
      const path = x509KeyFile(directory);
      const secret = readFileSync(path, 'utf8').split('\n')[1]!;
      writeFileSync(path, readFileSync(path, 'utf8').replace(secret, `${secret.slice(0, -4)}????`));
      await expect(open()).rejects.toSatisfy((error: Error) => !error.message.includes(secret.slice(0, 16)));
    });
  });

  it('of another trust domain or from the future is refused', async () => {
    await withCa(async ({ open, clock }) => {
      (await open()).close();
      await expect(open({ trustDomain: 'other.org' as TrustDomain })).rejects.toThrow(
        /of the trust domain example\.org, not other\.org/,
      );
      clock.move(-3_600_000);
      await expect(open()).rejects.toThrow(/not valid yet; check the clock/);
    });
  });

  it('goes on with a new authority in place of a lost key if it is told to, and the old one stays in the bundle', async () => {
    await withCa(async ({ open, directory }) => {
      const ca = await open();
      const before = ca.bundle();
      const issued = await ca.issueWorkloadSvid(workloadRequest());
      ca.close();
      rmSync(x509KeyFile(directory));
      const again = await open({ replaceLostKeys: true });
      expect(again.bundle().authorities).toHaveLength(2);
      expect(again.bundle().authorities).toContainEqual(before.authorities[0]);
      expect(again.bundle().sequence > before.sequence).toBe(true);
      if (!issued.ok) throw new Error(issued.error);
      expect(verifyX509Svid(issued.value.chain, bundleOf(again), START).ok).toBe(true);
      const fresh = await again.issueWorkloadSvid(workloadRequest());
      if (!fresh.ok) throw new Error(fresh.error);
      expect(verifyX509Svid(fresh.value.chain, bundleOf(again), START).ok).toBe(true);
      expect(verifyX509Svid(fresh.value.chain, { trustDomain: TD, authorities: before.authorities }, START).ok).toBe(
        false,
      );
    });
  });
});

/** What version 1 left: authority/ and a ledger with one table for certificates. */
async function writeVersion1(directory: string, lifeMs = 3650 * DAY) {
  const privateKey = generateKey();
  const { certificate } = await makeAuthority(new SoftwareKey('old', privateKey), TD, {
    notBeforeMs: START - 10_000,
    notAfterMs: START + lifeMs,
  });
  const place = join(directory, 'authority');
  mkdirSync(place, { mode: 0o700 });
  writeFileSync(join(place, 'ca.key'), privateKeyPem(privateKey), { mode: 0o600 });
  writeFileSync(join(place, 'ca.crt'), encodePem('CERTIFICATE', certificate.der));
  const database = new DatabaseSync(join(directory, 'ledger.db'));
  database.exec(`
    PRAGMA journal_mode = WAL;
    CREATE TABLE svid (
      serial TEXT NOT NULL, profile TEXT NOT NULL, spiffe_id TEXT NOT NULL, node TEXT, key_id TEXT NOT NULL,
      not_before_ms INTEGER NOT NULL, not_after_ms INTEGER NOT NULL, issued_ms INTEGER NOT NULL, requester TEXT NOT NULL
    ) STRICT;
    CREATE INDEX svid_by_not_after ON svid (not_after_ms);
    CREATE TABLE revocation (
      sequence INTEGER PRIMARY KEY, kind TEXT NOT NULL, what TEXT NOT NULL, issued_until INTEGER NOT NULL,
      reason TEXT NOT NULL, revoked_ms INTEGER NOT NULL
    ) STRICT;
    INSERT INTO svid VALUES ('ab01', 'workload', '${FRONTEND}', '${NODE_A}', 'k', ${START - 10_000}, ${START + 3_600_000}, ${START}, 'x');
    INSERT INTO svid VALUES ('ab02', 'node', '${NODE_A}', NULL, 'k', ${START - 10_000}, ${START + 3_600_000}, ${START}, 'x');
    INSERT INTO revocation VALUES (7, 'serial', 'ab01', ${START / 1000 - 10}, 'stolen', ${START});
    PRAGMA user_version = 1;`);
  database.close();
  return certificate;
}

describe('an authority of an earlier version', () => {
  it('is taken over with its key, its certificates and its revocations, once', async () => {
    await withCa(async ({ open, directory }) => {
      const old = await writeVersion1(directory);
      const ca = await open();
      expect(ca.bundle().authorities).toEqual([old.der]);
      expect(existsSync(join(directory, 'authority'))).toBe(false);
      expect(ca.listSvids().map(({ serial, authority }) => [serial, authority])).toEqual([
        ['ab02', old.subjectKeyId!.toString('hex')],
        ['ab01', old.subjectKeyId!.toString('hex')],
      ]);
      expect(ca.revocations()).toMatchObject([{ sequence: 7n, what: { serial: 'ab01' } }]);
      const issued = await ca.issueWorkloadSvid(workloadRequest());
      if (!issued.ok) throw new Error(issued.error);
      expect(verifyX509Svid(issued.value.chain, { trustDomain: TD, authorities: [old.der] }, START).ok).toBe(true);
      ca.close();
      expect((await open()).bundle().authorities).toEqual([old.der]);
    });
  });

  it('is taken over by a start that follows one which was cut off', async () => {
    await withCa(async ({ open, directory }) => {
      const old = await writeVersion1(directory);
      const files = ['ca.key', 'ca.crt'].map(
        (name) => [name, readFileSync(join(directory, 'authority', name))] as const,
      );
      (await open()).close();
      // as if the directory had not been removed any more
      mkdirSync(join(directory, 'authority'), { mode: 0o700 });
      for (const [name, content] of files) writeFileSync(join(directory, 'authority', name), content, { mode: 0o600 });
      const ca = await open();
      expect(ca.bundle().authorities).toEqual([old.der]);
      expect(existsSync(join(directory, 'authority'))).toBe(false);
    });
  });

  const stories: [string, (directory: string) => void, RegExp][] = [
    ['key that the group may read', (d) => chmodSync(join(d, 'authority/ca.key'), 0o640), /ca\.key: .*chmod 600/],
    ['directory that the group may enter', (d) => chmodSync(join(d, 'authority'), 0o750), /authority: group or others/],
    ['missing key', (d) => rmSync(join(d, 'authority/ca.key')), /ca\.key: /],
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
    [
      'key of another authority',
      (d) => writeFileSync(join(d, 'authority/ca.key'), privateKeyPem(generateKey())),
      /ca\.key is not the key of ca\.crt/,
    ],
  ];

  it.each(stories)('with a %s is refused with the file and what to do', async (_, spoil, message) => {
    await withCa(async ({ open, directory }) => {
      await writeVersion1(directory);
      spoil(directory);
      await expect(open()).rejects.toThrow(message);
    });
  });

  it('whose keys are to be kept elsewhere from now on stays in a file until it is rotated', async () => {
    await withCa(async ({ open, directory }) => {
      const old = await writeVersion1(directory);
      const settings = { keys: { type: 'memory' } } as const;
      (await open(settings)).close();
      const ca = await open(settings);
      expect(ca.bundle().authorities).toEqual([old.der]);
      expect(keyFiles(directory)).toHaveLength(1);
    });
  });
});
