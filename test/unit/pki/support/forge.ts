/** Makes certificates that no honest authority would: every field can be bent, and the signature is right unless told otherwise. */
import { createPrivateKey, generateKeyPairSync, type KeyObject, sign } from 'node:crypto';
import type { TrustBundle } from '../../../../src/model/identity.ts';
import type { TrustDomain } from '../../../../src/model/ids.ts';
import {
  contextConstructed,
  contextPrimitive,
  der,
  derBitString,
  derOid,
  derTime,
  derUnsignedInteger,
  sequence,
  TAG,
} from '../../../../src/pki/der.ts';
import { generateKey, publicKeyDer } from '../../../../src/pki/keys.ts';
import { OID, type OidName } from '../../../../src/pki/oids.ts';

/** Noon of a day in the life of these certificates. */
export const NOW = Date.UTC(2026, 5, 15, 12);
export const HOUR = 3_600_000;

export interface ForgeOptions {
  key?: KeyObject;
  /** undefined: self-signed. */
  issuer?: Forged;
  issuerName?: Buffer;
  subject?: Buffer;
  serial?: Buffer;
  version?: Buffer;
  notBefore?: Buffer;
  notAfter?: Buffer;
  notBeforeMs?: number;
  notAfterMs?: number;
  /** Replaces all of the extensions. */
  extensions?: Buffer[] | undefined;
  /** URI SANs; [] leaves the extension out. */
  uris?: string[];
  otherNames?: Buffer[];
  sanCritical?: boolean;
  /** undefined: no basic constraints. */
  ca?: { isCa: boolean; pathLength?: number } | null;
  keyUsage?: number[] | null;
  keyUsageCritical?: boolean;
  extKeyUsage?: string[] | null;
  more?: Buffer[];
  algorithm?: OidName;
  hash?: string;
  spki?: Buffer;
  /** Bends the signature. */
  signature?: (right: Buffer) => Buffer;
}

export interface Forged {
  der: Buffer;
  key: KeyObject;
  subject: Buffer;
}

export const KU = { digitalSignature: 0, keyEncipherment: 2, keyCertSign: 5, crlSign: 6 };

export function ca(options: ForgeOptions = {}): Forged {
  return forge({
    subject: name('Test CA'),
    ca: { isCa: true },
    keyUsage: [KU.keyCertSign, KU.crlSign],
    uris: ['spiffe://example.org'],
    ...options,
  });
}

export function leaf(issuer: Forged, options: ForgeOptions = {}): Forged {
  return forge({
    issuer,
    subject: name('Test leaf'),
    ca: { isCa: false },
    keyUsage: [KU.digitalSignature],
    extKeyUsage: [OID.serverAuth, OID.clientAuth],
    uris: ['spiffe://example.org/ns/shop/sa/frontend'],
    ...options,
  });
}

export function bundleOf(...authorities: Forged[]): TrustBundle {
  return { trustDomain: 'example.org' as TrustDomain, authorities: authorities.map((authority) => authority.der) };
}

export function forge(options: ForgeOptions): Forged {
  const key = options.key ?? generateKey();
  const subject = options.subject ?? name('Nobody');
  const signer = options.issuer?.key ?? key;
  const algorithm = sequence(derOid(OID[options.algorithm ?? 'ecdsaSha256']));
  const tbs = sequence(
    options.version ?? Buffer.from([0xa0, 3, 2, 1, 2]),
    options.serial ?? derUnsignedInteger(Buffer.from('1122334455667788', 'hex')),
    algorithm,
    options.issuerName ?? options.issuer?.subject ?? subject,
    sequence(
      options.notBefore ?? derTime(options.notBeforeMs ?? NOW - HOUR),
      options.notAfter ?? derTime(options.notAfterMs ?? NOW + HOUR),
    ),
    subject,
    options.spki ?? publicKeyDer(key),
    der(contextConstructed(3), sequence(...(options.extensions ?? extensionsOf(options)))),
  );
  const right = sign(options.hash ?? 'sha256', tbs, signer);
  const signature = options.signature?.(right) ?? right;
  return { der: sequence(tbs, algorithm, derBitString(signature)), key, subject };
}

function extensionsOf(options: ForgeOptions): Buffer[] {
  const out: Buffer[] = [];
  if (options.ca) out.push(extension(OID.basicConstraints, basicConstraints(options.ca), true));
  if (options.keyUsage) out.push(extension(OID.keyUsage, bits(options.keyUsage), options.keyUsageCritical ?? true));
  if (options.extKeyUsage)
    out.push(extension(OID.extKeyUsage, sequence(...options.extKeyUsage.map((oid) => derOid(oid))), false));
  const names = [...(options.uris ?? []).map(uri), ...(options.otherNames ?? [])];
  if (names.length > 0) out.push(extension(OID.subjectAltName, sequence(...names), options.sanCritical ?? false));
  out.push(...(options.more ?? []));
  return out;
}

function basicConstraints({ isCa, pathLength }: { isCa: boolean; pathLength?: number }): Buffer {
  const parts: Buffer[] = isCa ? [Buffer.from([1, 1, 0xff])] : [];
  if (pathLength !== undefined) parts.push(der(TAG.integer, Buffer.of(pathLength)));
  return sequence(...parts);
}

export function extension(oid: string, value: Buffer, critical: boolean): Buffer {
  const flag = critical ? [Buffer.from([1, 1, 0xff])] : [];
  return sequence(derOid(oid), ...flag, der(TAG.octetString, value));
}

export function uri(text: string): Buffer {
  return der(contextPrimitive(6), Buffer.from(text, 'latin1'));
}

export function dns(text: string): Buffer {
  return der(contextPrimitive(2), Buffer.from(text, 'latin1'));
}

/** Named bits below 8. */
export function bits(set: number[]): Buffer {
  const byte = set.reduce((sum, bit) => sum | (0x80 >> bit), 0);
  return der(TAG.bitString, Buffer.of(7 - Math.max(...set), byte));
}

export function name(commonName: string): Buffer {
  return sequence(
    der(TAG.set, sequence(derOid(OID.commonName), der(TAG.printableString, Buffer.from(commonName, 'latin1')))),
  );
}

export const EMPTY_NAME = sequence();

export function keyOf(curve: 'P-384' | 'P-521' | 'secp256k1'): KeyObject {
  return generateKeyPairSync('ec', { namedCurve: curve }).privateKey;
}

/** RSA keys are slow to make: each size is made once. */
export function rsaKey(bits: number): KeyObject {
  const made = rsaKeys.get(bits) ?? generateKeyPairSync('rsa', { modulusLength: bits }).privateKey;
  rsaKeys.set(bits, made);
  return made;
}

const rsaKeys = new Map<number, KeyObject>();

export function ed25519Key(): KeyObject {
  const { privateKey } = generateKeyPairSync('ed25519');
  return createPrivateKey(privateKey.export({ type: 'pkcs8', format: 'pem' }));
}
