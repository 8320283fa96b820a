/** Where the authority's private keys live. One interface for memory, files and PKCS#11 tokens: who holds a key signs with it, nobody reads it. */
import type { KeyObject } from 'node:crypto';
import { CountersignError } from '../../src/base/errors.ts';
import type { KeyType } from './key-type.ts';

declare const signable: unique symbol;

/**
 * Bytes that may be signed. Each kind is made in one file, which answers for what it says: lint.ts lets certificates pass, crl.ts writes revocation lists,
 * authority-request.ts requests; a challenge says nothing.
 */
export type Signable = Buffer & { readonly [signable]: 'certificate' | 'crl' | 'request' | 'challenge' };

/** A private key that can be used and not looked at. Signing is synchronous: what a CA does at once it does in one turn. */
export interface SigningKey {
  readonly id: string;
  readonly type: KeyType;
  /** SubjectPublicKeyInfo, DER. */
  readonly publicKey: Buffer;
  /**
   * Signature as X.509 has it: ECDSA-Sig-Value (RFC 3279, section 2.2.3) or RSASSA-PKCS1-v1_5, with the hash of the key's type.
   * @throws CountersignError unavailable: the token that holds it is gone.
   */
  sign(data: Signable): Buffer;
  /** Signature as JWS has it (RFC 7518, sections 3.3 and 3.4): ES256 and ES384 as r‖s, RS256. Throws as sign does. */
  signJws(data: Buffer): Buffer;
}

export interface KeyManager {
  /** Durable when it returns. @throws CountersignError already-exists */
  generate(id: string, type: KeyType): Promise<SigningKey>;
  /** undefined: it holds no such key. @throws CountersignError for one that is there and cannot be used. */
  load(id: string): Promise<SigningKey | undefined>;
  /** Takes over a key that was made elsewhere; nothing happens if it is there already. @throws CountersignError unsupported: a token takes none. */
  adopt(id: string, key: KeyObject): Promise<SigningKey>;
  /** Gone when it returns; also if it was not there. */
  remove(id: string): Promise<void>;
  /** Ids, sorted. */
  list(): Promise<string[]>;
  close(): void;
}

/** An id is a file name and a token's label. */
export function checkKeyId(id: string): void {
  if (!/^[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?$/.test(id)) {
    throw new CountersignError(
      'bad-input',
      `"${id}" is not the id of a key: lower-case letters, digits and -, 64 at most`,
    );
  }
}
