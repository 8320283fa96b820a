/** The node's X25519 key on disk, 0600, made at the first start. WireGuard wants the raw bytes; nothing here ever prints them. */
import { createPrivateKey, createPublicKey, generateKeyPairSync, type KeyObject } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, renameSync, statSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { CountersignError } from '../base/errors.ts';
import { KEY_LENGTH } from './device.ts';

/** RFC 8410, section 7: everything of the PKCS#8 form that stands before the 32 bytes. */
const PKCS8_X25519 = Buffer.from('302e020100300506032b656e04220420', 'hex');

export interface TunnelKey {
  /** Rises with each new key of this node. */
  readonly number: number;
  readonly privateKey: KeyObject;
  readonly publicKey: Buffer;
}

/** @throws CountersignError permission-denied if others may read the file, bad-input if it is no key file */
export function openTunnelKey(path: string): TunnelKey {
  if (!existsSync(path)) writeKeyFile(path);
  if ((statSync(path).mode & 0o077) !== 0) {
    throw new CountersignError('permission-denied', `${path}: others may read the tunnel key; chmod 600 it`);
  }
  const match = /^(\d{1,15}) ([A-Za-z0-9+/]{43}=)\n$/.exec(readFileSync(path, 'latin1'));
  const raw = Buffer.from(match?.[2] ?? '', 'base64');
  if (match === null || raw.length !== KEY_LENGTH) {
    throw new CountersignError('bad-input', `${path}: not a tunnel key file; remove it and a new key is made`);
  }
  const key = Buffer.concat([PKCS8_X25519, raw]);
  const privateKey = createPrivateKey({ key, format: 'der', type: 'pkcs8' });
  key.fill(0);
  return { number: Number(match[1]), privateKey, publicKey: rawPublicKey(createPublicKey(privateKey)) };
}

function writeKeyFile(path: string): void {
  mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
  const raw = rawPrivateKey(generateKeyPairSync('x25519').privateKey);
  writeFileSync(`${path}.tmp`, `1 ${raw.toString('base64')}\n`, { mode: 0o600, flush: true });
  renameSync(`${path}.tmp`, path);
}

export function rawPrivateKey(key: KeyObject): Buffer {
  return key.export({ type: 'pkcs8', format: 'der' }).subarray(PKCS8_X25519.length);
}

export function rawPublicKey(key: KeyObject): Buffer {
  return Buffer.from(key.export({ type: 'spki', format: 'der' }).subarray(-KEY_LENGTH));
}

/** The public key of raw private bytes, as WireGuard clamps them (RFC 7748, section 5). */
export function publicKeyOfRaw(raw: Buffer): Buffer {
  const privateKey = createPrivateKey({ key: Buffer.concat([PKCS8_X25519, raw]), format: 'der', type: 'pkcs8' });
  return rawPublicKey(createPublicKey(privateKey));
}

/** A public key whose private half nobody has: what is bound to it can be neither sent nor received. */
export function nobodysPublicKey(): Buffer {
  return rawPublicKey(generateKeyPairSync('x25519').publicKey);
}
