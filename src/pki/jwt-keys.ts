/** Public keys that verify JWT-SVIDs (JWT-SVID, section 2.1): which of the algorithms each is for. Read from bundles that others publish. */
import type { KeyObject } from 'node:crypto';
import { importPublicKey } from './keys.ts';

/** 'rsa': of RS* and PS*; a curve: of the one ES* that belongs to it (RFC 7518, section 3.4). */
export type JwtKeyKind = 'rsa' | 'P-256' | 'P-384' | 'P-521';

export interface JwtKey {
  readonly key: KeyObject;
  readonly kind: JwtKeyKind;
}

/** RFC 7518, sections 3.3 and 3.5: "A key of size 2048 bits or larger MUST be used". */
const MIN_RSA_BITS = 2048;
/** Above this a verification costs its sender nothing and us milliseconds. */
const MAX_RSA_BITS = 8192;

const CURVES: Readonly<Record<string, JwtKeyKind>> = { prime256v1: 'P-256', secp384r1: 'P-384', secp521r1: 'P-521' };

/** By the buffer that a bundle keeps, so that it is forgotten with it. */
const known = new WeakMap<Buffer, JwtKey | 'none'>();

/** @param spki DER. Undefined: no key that a JWT-SVID may be signed with. */
export function jwtKeyOf(spki: Buffer): JwtKey | undefined {
  let found = known.get(spki);
  if (found === undefined) {
    const key = importPublicKey(spki);
    const kind = key === undefined ? undefined : kindOf(key);
    found = key === undefined || kind === undefined ? 'none' : { key, kind };
    known.set(spki, found);
  }
  return found === 'none' ? undefined : found;
}

export function kindOf(key: KeyObject): JwtKeyKind | undefined {
  const { asymmetricKeyType, asymmetricKeyDetails } = key;
  if (asymmetricKeyType === 'ec') return CURVES[asymmetricKeyDetails?.namedCurve ?? ''];
  if (asymmetricKeyType !== 'rsa') return undefined;
  const { modulusLength = 0, publicExponent = 0n } = asymmetricKeyDetails ?? {};
  if (modulusLength < MIN_RSA_BITS || modulusLength > MAX_RSA_BITS) return undefined;
  return publicExponent >= 3n && publicExponent < 1n << 32n ? 'rsa' : undefined;
}
