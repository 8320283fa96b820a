import { createCipheriv, generateKeyPairSync, pbkdf2Sync } from 'node:crypto';
import {
  chmodSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { KeyDirectory } from '../../../ca/keys/blobs.ts';
import type { KeyManager } from '../../../ca/keys/key-manager.ts';
import { KEY_TYPES, type KeyType } from '../../../ca/keys/key-type.ts';
import { type KeysConfig, openFormerKeys, openKeys } from '../../../ca/keys/open.ts';
import { StoredKeys } from '../../../ca/keys/stored-keys.ts';
import { generateKey, privateKeyDer, publicKeyDer } from '../../../src/pki/keys.ts';
import { expectSigns } from './signs.ts';
import { TD } from './support.ts';

const PASSPHRASE = 'correct horse battery staple';

let home: string;
let directory: string;
let passphraseFile: string;
let keyFile: string;
beforeEach(() => {
  home = mkdtempSync(join(tmpdir(), 'countersign-keys-'));
  directory = join(home, 'keys');
  passphraseFile = secret('passphrase', `${PASSPHRASE}\n`);
  keyFile = secret('key-file', Buffer.alloc(32, 7));
});
afterEach(() => rmSync(home, { recursive: true, force: true }));

function secret(name: string, content: string | Buffer): string {
  const path = join(home, name);
  writeFileSync(path, content, { mode: 0o600 });
  return path;
}

const open = (config: KeysConfig = { type: 'disk' }): KeyManager => openKeys(config, { trustDomain: TD, directory });
const sealedBy = (): Record<string, KeysConfig> => ({
  passphrase: { type: 'disk', passphraseFile },
  'key file': { type: 'disk', keyFile },
});
const place = (id: string) => join(directory, `${id}.key`);

describe.each(['memory', 'disk'] as const)('keys of kind %s', (type) => {
  it.each<KeyType>(KEY_TYPES)('sign as X.509 and JWS want it, with a key of type %s', async (keyType) => {
    const keys = open({ type });
    const key = await keys.generate('x509-1', keyType);
    expect(key).toMatchObject({ id: 'x509-1', type: keyType });
    expectSigns(key);
    expect(await keys.load('x509-1')).toBe(key);
  });

  it('are listed, made once, and gone when removed', async () => {
    const keys = open({ type });
    await keys.generate('b', 'ec-p256');
    await keys.generate('a', 'ec-p256');
    await expect(keys.generate('a', 'ec-p256')).rejects.toThrow(/a key/);
    expect(await keys.list()).toEqual(['a', 'b']);
    await keys.remove('a');
    await keys.remove('a');
    expect(await keys.list()).toEqual(['b']);
    expect(await keys.load('a')).toBeUndefined();
  });

  it('take over a key that was made before, once', async () => {
    const keys = open({ type });
    const old = generateKey();
    const adopted = await keys.adopt('x509-1', old);
    expect(adopted.publicKey).toEqual(publicKeyDer(old));
    expect((await keys.adopt('x509-1', generateKey())).publicKey).toEqual(adopted.publicKey);
    expectSigns(adopted);
  });

  it.each(['', '../x', 'A', 'a/b', 'a.b', '-a', 'a'.repeat(65)])('are not named "%s"', async (id) => {
    await expect(open({ type }).generate(id, 'ec-p256')).rejects.toThrow(/not the id of a key/);
    await expect(open({ type }).adopt(id, generateKey())).rejects.toThrow(/not the id of a key/);
  });

  it('are of no other type', async () => {
    const { privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 });
    await expect(open({ type }).adopt('a', privateKey)).rejects.toThrow(/one of ec-p256, ec-p384, rsa-3072, rsa-4096/);
  });
});

describe('keys on disk', () => {
  it('are the same after a restart, each 0600 in a directory 0700', async () => {
    const key = await open().generate('x509-1', 'ec-p384');
    expect((await open().load('x509-1'))?.publicKey).toEqual(key.publicKey);
    expect(statSync(directory).mode & 0o777).toBe(0o700);
    expect(readdirSync(directory)).toEqual(['x509-1.key']);
    expect(statSync(place('x509-1')).mode & 0o777).toBe(0o600);
  });

  it('are begun anew over what a crash left half written', async () => {
    const keys = open();
    writeFileSync(`${place('a')}.new`, 'half');
    expect(await keys.list()).toEqual([]);
    expect(readdirSync(directory)).toEqual([]);
  });

  it.each<[string, () => void, RegExp]>([
    ['readable by the group', () => chmodSync(place('a'), 0o640), /a\.key: group or others may read it; run chmod 600/],
    ['readable by the world', () => chmodSync(place('a'), 0o604), /run chmod 600/],
    ['empty', () => writeFileSync(place('a'), ''), /a\.key: no PEM block "PRIVATE KEY"/],
    ['cut', () => writeFileSync(place('a'), readFileSync(place('a')).subarray(0, 60)), /a\.key: line 1: .*no end/],
    [
      'no key',
      () => writeFileSync(place('a'), '-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n'),
      /a\.key: not a PKCS#8/,
    ],
    ['huge', () => writeFileSync(place('a'), Buffer.alloc(100_000)), /a\.key: larger than 65536 bytes/],
    [
      'a directory',
      () => {
        rmSync(place('a'));
        mkdirSync(place('a'), { mode: 0o700 });
      },
      /a\.key: not a file/,
    ],
  ])('are refused if one is %s', async (_, spoil, message) => {
    await open().generate('a', 'ec-p256');
    spoil();
    await expect(open().load('a')).rejects.toThrow(message);
  });

  it('are not followed through a link', async () => {
    await open().generate('a', 'ec-p256');
    renameSync(place('a'), join(home, 'elsewhere'));
    symlinkSync(join(home, 'elsewhere'), place('a'));
    await expect(open().load('a')).rejects.toThrow(/a\.key: it is a link/);
  });

  it('are not kept in a directory that others may enter', async () => {
    mkdirSync(directory, { mode: 0o750 });
    expect(() => open()).toThrow(/keys: group or others may enter; run chmod 700/);
  });

  it('in a replicated store are encrypted or not kept', () => {
    const replicated = Object.assign(new KeyDirectory(directory), { replicated: true });
    expect(() => new StoredKeys(replicated, undefined)).toThrow(/must be encrypted; set passphraseFile or keyFile/);
  });
});

describe.each(['passphrase', 'key file'])('keys encrypted with a %s', (kind) => {
  const config = () => sealedBy()[kind]!;

  it('are the same after a restart, and their file holds nothing of them', async () => {
    const old = generateKey();
    const adopted = await open(config()).adopt('a', old);
    const made = await open(config()).generate('b', 'ec-p256');
    const again = open(config());
    expect((await again.load('a'))?.publicKey).toEqual(adopted.publicKey);
    expect((await again.load('b'))?.publicKey).toEqual(made.publicKey);
    expectSigns((await again.load('a'))!);
    const content = readFileSync(place('a'));
    expect(content.toString('latin1')).toMatch(/^COUNTERSIGN SEALED KEY 1\n/);
    const scalar = privateKeyDer(old).subarray(36, 68);
    for (const form of [scalar, Buffer.from(scalar.toString('base64')), Buffer.from(scalar.toString('hex'))]) {
      expect(content.includes(form)).toBe(false);
    }
  });

  it('were plain before: the first use encrypts them', async () => {
    const plain = await open().generate('a', 'ec-p256');
    expect((await open(config()).load('a'))?.publicKey).toEqual(plain.publicKey);
    expect(readFileSync(place('a'), 'latin1')).not.toContain('PRIVATE KEY');
    expect(statSync(place('a')).mode & 0o777).toBe(0o600);
    await expect(open().load('a')).rejects.toThrow(/a\.key: it is encrypted; name its secret/);
  });

  it('are encrypted anew when the secret is changed, and the old one opens them no more', async () => {
    const made = await open(config()).generate('a', 'ec-p256');
    const fresh = secret('fresh', Buffer.alloc(32, 9));
    const before = kind === 'passphrase' ? { passphraseFile } : { keyFile };
    expect((await open({ type: 'disk', keyFile: fresh, former: before }).load('a'))?.publicKey).toEqual(made.publicKey);
    expect((await open({ type: 'disk', keyFile: fresh }).load('a'))?.publicKey).toEqual(made.publicKey);
    await expect(open(config()).load('a')).rejects.toThrow(/a\.key: it /);
  });

  it('serve on when keys are kept elsewhere, with the former secret', async () => {
    const made = await open(config()).generate('a', 'ec-p256');
    const before = kind === 'passphrase' ? { passphraseFile } : { keyFile };
    const elsewhere = { type: 'pkcs11', module: '/m', token: 't', pinFile: '/p' } as const;
    const former = openFormerKeys({ ...elsewhere, former: before }, directory);
    expectSigns((await former.load('a'))!);
    expect((await former.load('a'))?.publicKey).toEqual(made.publicKey);
    expect(readFileSync(place('a'), 'latin1')).not.toContain('PRIVATE KEY');
    await expect(openFormerKeys(elsewhere, directory).load('a')).rejects.toThrow(/in ca\.keys\.former/);
  });

  it('are not sealed with anything once it is closed', async () => {
    const keys = open(config());
    await keys.generate('a', 'ec-p256');
    keys.close();
    await expect(keys.generate('b', 'ec-p256')).rejects.toThrow(/is closed/);
    expect(readdirSync(directory)).toEqual(['a.key']);
  });

  it('are refused with another secret, without a word of either', async () => {
    await open(config()).generate('a', 'ec-p256');
    secret('passphrase', 'another passphrase altogether');
    secret('key-file', Buffer.alloc(32, 8));
    const refused = await open(config())
      .load('a')
      .catch((error: Error) => error.message);
    expect(refused).toMatch(new RegExp(`a\\.key: it cannot be decrypted: .* or the ${kind} is another`));
    expect(refused).not.toMatch(/horse|another passphrase/);
  });

  it('say which secret they need if it is the other kind', async () => {
    await open(config()).generate('a', 'ec-p256');
    const other = kind === 'passphrase' ? 'key file' : 'passphrase';
    await expect(open(sealedBy()[other]!).load('a')).rejects.toThrow(`it is encrypted with a ${kind}, not a ${other}`);
  });

  it('are refused under another name: nobody can swap two of them', async () => {
    await open(config()).generate('a', 'ec-p256');
    renameSync(place('a'), place('b'));
    await expect(open(config()).load('b')).rejects.toThrow(/b\.key: it cannot be decrypted/);
  });

  it('are refused if any byte is changed or missing', async () => {
    const keys = open(config());
    await keys.generate('a', 'ec-p256');
    const whole = readFileSync(place('a'));
    // another salt would take a derivation of its own
    const from = whole.indexOf('"nonce"');
    const again = open(config());
    for (let at = from; at < whole.length - 1; at += 7) {
      const changed = Buffer.from(whole);
      changed[at] = changed[at]! ^ 1;
      writeFileSync(place('a'), changed);
      await expect(again.load('a'), `byte ${at}`).rejects.toThrow(/a\.key: /);
    }
    for (const length of [0, 10, 25, 26, 60, from, whole.length - 3]) {
      writeFileSync(place('a'), whole.subarray(0, length));
      await expect(again.load('a'), `${length} bytes`).rejects.toThrow(/a\.key: /);
    }
  });
});

it('keys that were encrypted in FIPS mode, by PBKDF2, are opened, as the format says', async () => {
  const key = generateKey();
  const salt = Buffer.alloc(16, 1);
  const nonce = Buffer.alloc(12, 2);
  const cipher = createCipheriv('aes-256-gcm', pbkdf2Sync(PASSPHRASE, salt, 600_000, 32, 'sha256'), nonce);
  cipher.setAAD(Buffer.from('COUNTERSIGN SEALED KEY 1\na'));
  const ciphertext = Buffer.concat([cipher.update(privateKeyDer(key)), cipher.final(), cipher.getAuthTag()]);
  const fields = Object.entries({ salt, nonce, ciphertext }).map(([name, value]) => [name, value.toString('base64')]);
  const keys = open({ type: 'disk', passphraseFile });
  const text = JSON.stringify({ kdf: 'pbkdf2-sha256', ...Object.fromEntries(fields) });
  writeFileSync(place('a'), `COUNTERSIGN SEALED KEY 1\n${text}\n`, { mode: 0o600 });
  expect((await keys.load('a'))?.publicKey).toEqual(publicKeyDer(key));
});

describe('the secret that keys are encrypted with', () => {
  it.each<[string, () => KeysConfig, RegExp]>([
    [
      'a passphrase that others may read',
      () => {
        chmodSync(passphraseFile, 0o644);
        return { type: 'disk', passphraseFile };
      },
      /passphrase: group or others may read it; run chmod 600/,
    ],
    [
      'a passphrase that is short',
      () => ({ type: 'disk', passphraseFile: secret('short', 'hunter2\n') }),
      /ca\.keys\.passphraseFile: .*shorter than 16 characters/,
    ],
    [
      'a passphrase behind an empty line',
      () => ({ type: 'disk', passphraseFile: secret('late', `\n${PASSPHRASE}`) }),
      /first line/,
    ],
    [
      'a passphrase file that is missing',
      () => ({ type: 'disk', passphraseFile: join(home, 'none') }),
      /none: there is no such file/,
    ],
    [
      'a key file that others may read',
      () => {
        chmodSync(keyFile, 0o640);
        return { type: 'disk', keyFile };
      },
      /key-file: group or others/,
    ],
    [
      'a key file that is short',
      () => ({ type: 'disk', keyFile: secret('short', Buffer.alloc(31)) }),
      /ca\.keys\.keyFile: .* has 31 bytes; make one of 32/,
    ],
  ])('is not %s', (_, config, message) => {
    expect(() => open(config())).toThrow(message);
  });
});
