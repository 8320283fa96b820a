import { chmodSync, mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, onTestFinished, test } from 'vitest';
import { openTunnelKey, publicKeyOfRaw, rawPrivateKey } from '../../../src/encryption/key-file.ts';

function directory(): string {
  const dir = mkdtempSync(join(tmpdir(), 'cs-t-key-'));
  onTestFinished(() => rmSync(dir, { recursive: true, force: true }));
  return dir;
}

test('the key is made once, for the owner only, and found again', () => {
  const path = join(directory(), 'sub', 'tunnel.key');
  const made = openTunnelKey(path);
  expect(statSync(path).mode & 0o777).toBe(0o600);
  const found = openTunnelKey(path);
  expect(found.publicKey).toEqual(made.publicKey);
  expect(found.number).toBe(1);
  expect(publicKeyOfRaw(rawPrivateKey(found.privateKey))).toEqual(found.publicKey);
});

test('the public key is the one RFC 7748, section 6.1, names', () => {
  const secret = Buffer.from('5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb', 'hex');
  expect(publicKeyOfRaw(secret).toString('hex')).toBe(
    'de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f',
  );
});

test('a file that others may read is refused', () => {
  const path = join(directory(), 'tunnel.key');
  openTunnelKey(path);
  chmodSync(path, 0o640);
  expect(() => openTunnelKey(path)).toThrow(/chmod 600/);
});

test('a file that holds no key is refused, and not shown', () => {
  const path = join(directory(), 'tunnel.key');
  writeFileSync(path, 'hunter2', { mode: 0o600 });
  expect(() => openTunnelKey(path)).toThrow(/not a tunnel key file/);
  expect(() => openTunnelKey(path)).not.toThrow(/hunter2/);
});
