/**
 * node:crypto as some of the product's files get it in the simulation: signatures by keys that the simulation made are hashes over
 * the public key and the same octets, so that everything around them (transcripts, chains, contexts, order) is judged as
 * always at a hundredth of the cost. `useRealSignatures` gives the real ones back, for the schedules that are for them.
 */
import * as real from 'node:crypto';

export * from 'node:crypto';

let isReal = true;
let counter = 0;
const names = new WeakMap<real.KeyObject, string>();

export function useRealSignatures(yes: boolean): void {
  isReal = yes;
  counter = 0;
}

type KeyInput = real.KeyObject | { readonly key: real.KeyObject };

export function sign(algorithm: string, data: Buffer, key: KeyInput): Buffer {
  if (isReal) return real.sign(algorithm, data, key as real.SignKeyObjectInput);
  return real.hash('sha256', Buffer.concat([Buffer.from(nameOf(key)), data]), 'buffer');
}

export function verify(algorithm: string, data: Buffer, key: KeyInput, signature: Buffer): boolean {
  if (isReal) return real.verify(algorithm, data, key as real.VerifyKeyObjectInput, signature);
  return real.hash('sha256', Buffer.concat([Buffer.from(nameOf(key)), data]), 'buffer').equals(signature);
}

/** Nonces differ, and are the same in the same schedule. */
export function randomBytes(length: number): Buffer {
  if (isReal) return real.randomBytes(length);
  const bytes = Buffer.alloc(length);
  bytes.writeUInt32BE(++counter, 0);
  return bytes;
}

export function randomFillSync(bytes: Buffer): Buffer {
  return isReal ? real.randomFillSync(bytes) : bytes;
}

/** Keys that nobody has. */
export function generateKeyPairSync(type: 'x25519') {
  if (isReal) return real.generateKeyPairSync(type);
  const publicKey = Buffer.alloc(32);
  publicKey.writeUInt32BE(++counter, 0);
  return { publicKey: { export: () => publicKey }, privateKey: undefined };
}

const publicKeys = new WeakMap<real.KeyObject, real.KeyObject>();

export function createPublicKey(key: real.KeyObject): real.KeyObject {
  if (isReal) return real.createPublicKey(key);
  const known = publicKeys.get(key) ?? real.createPublicKey(key);
  publicKeys.set(key, known);
  return known;
}

/** The public key, as text. */
function nameOf(input: KeyInput): string {
  const key = input instanceof real.KeyObject ? input : input.key;
  const known = names.get(key);
  if (known !== undefined) return known;
  const publicKey = key.type === 'private' ? real.createPublicKey(key) : key;
  const name = publicKey.export({ type: 'spki', format: 'der' }).toString('base64');
  names.set(key, name);
  return name;
}
