/** What every signing key must do, whoever holds it. */
import { createPublicKey, verify } from 'node:crypto';
import { expect } from 'vitest';
import type { Signable, SigningKey } from '../../../ca/keys/key-manager.ts';
import { SIGNING } from '../../../ca/keys/key-type.ts';

export const challenge = (text: string): Signable => Buffer.from(text) as Signable;

/** In both forms, as OpenSSL reads them. */
export function expectSigns(key: SigningKey): void {
  const data = challenge('to be signed');
  const publicKey = createPublicKey({ key: key.publicKey, format: 'der', type: 'spki' });
  const { hash } = SIGNING[key.type];
  expect(verify(hash, data, publicKey, key.sign(data))).toBe(true);
  expect(verify(hash, data, { key: publicKey, dsaEncoding: 'ieee-p1363' }, key.signJws(data))).toBe(true);
  expect(verify(hash, Buffer.from('something else'), publicKey, key.sign(data))).toBe(false);
}
