/** What a key is in a token: the attributes it is made with, read back and refused by (PKCS#11 3.0, sections 4.7 to 4.9). */
import { createPublicKey } from 'node:crypto';
import { CountersignError } from '../../src/base/errors.ts';
import { der, derBitString, derOid, derUnsignedInteger, readDer, sequence, TAG } from '../../src/pki/der.ts';
import { OID, OID_DER } from '../../src/pki/oids.ts';
import type { KeyType } from './key-type.ts';
import type { Constants, KeyHandle, KeyPairTemplates, Token } from './pkcs11-token.ts';

export function keyPairTemplates(c: Constants, type: KeyType, label: string): KeyPairTemplates {
  const both = [
    { type: c.CKA_TOKEN, value: true },
    { type: c.CKA_LABEL, value: label },
    { type: c.CKA_ID, value: Buffer.from(label, 'utf8') },
  ];
  return {
    mechanism: type.startsWith('rsa') ? c.CKM_RSA_PKCS_KEY_PAIR_GEN : c.CKM_EC_KEY_PAIR_GEN,
    publicKey: [
      ...both,
      { type: c.CKA_PRIVATE, value: false },
      { type: c.CKA_VERIFY, value: true },
      ...parameters(c, type),
    ],
    privateKey: [
      ...both,
      { type: c.CKA_PRIVATE, value: true },
      { type: c.CKA_SENSITIVE, value: true },
      { type: c.CKA_EXTRACTABLE, value: false },
      { type: c.CKA_SIGN, value: true },
      { type: c.CKA_DECRYPT, value: false },
      { type: c.CKA_UNWRAP, value: false },
      { type: c.CKA_DERIVE, value: false },
    ],
  };
}

function parameters(c: Constants, type: KeyType) {
  switch (type) {
    case 'ec-p256':
      return [{ type: c.CKA_EC_PARAMS, value: derOid(OID.p256) }];
    case 'ec-p384':
      return [{ type: c.CKA_EC_PARAMS, value: derOid(OID.p384) }];
    case 'rsa-3072':
    case 'rsa-4096':
      return [
        { type: c.CKA_MODULUS_BITS, value: type === 'rsa-3072' ? 3072 : 4096 },
        { type: c.CKA_PUBLIC_EXPONENT, value: Buffer.of(1, 0, 1) },
      ];
  }
}

/** A key that was ever outside of the token, or may leave it, is not what the operator asked for. @throws CountersignError bad-input */
export function refuseExtractable(token: Token, handle: KeyHandle, id: string): void {
  const c = token.constants;
  const [extractable, never, sensitive, always, local] = token
    .attributes(handle, [
      c.CKA_EXTRACTABLE,
      c.CKA_NEVER_EXTRACTABLE,
      c.CKA_SENSITIVE,
      c.CKA_ALWAYS_SENSITIVE,
      c.CKA_LOCAL,
    ])
    .map((value) => value[0] === 1);
  if (!extractable && never && sensitive && always && local) return;
  throw new CountersignError(
    'bad-input',
    `${token.name}: the key ${id} was not made in the token or may leave it; remove it from the token and let the authority make a new one`,
  );
}

/** SubjectPublicKeyInfo, DER. */
export function publicKeyOf(token: Token, handle: KeyHandle): Buffer {
  const c = token.constants;
  const [keyType] = token.attributes(handle, [c.CKA_KEY_TYPE]);
  const spki = keyType!.readUInt32LE(0) === c.CKK_RSA ? rsaSpki(token, handle) : ecSpki(token, handle);
  // through OpenSSL: what it writes is what certificates and requests hold
  return createPublicKey({ key: spki, format: 'der', type: 'spki' }).export({ format: 'der', type: 'spki' });
}

function ecSpki(token: Token, handle: KeyHandle): Buffer {
  const c = token.constants;
  const [curve, wrapped] = token.attributes(handle, [c.CKA_EC_PARAMS, c.CKA_EC_POINT]);
  // ECPoint in an OCTET STRING (PKCS#11 3.0 current mechanisms, section 2.3.3)
  const point = readDer(wrapped!, 256, (reader) => reader.content(TAG.octetString));
  if (!point.ok)
    throw new CountersignError('unsupported', `${token.name}: a public key that does not read: ${point.error}`);
  return sequence(sequence(OID_DER.ecPublicKey, curve!), derBitString(point.value));
}

function rsaSpki(token: Token, handle: KeyHandle): Buffer {
  const c = token.constants;
  const [modulus, exponent] = token.attributes(handle, [c.CKA_MODULUS, c.CKA_PUBLIC_EXPONENT]);
  const key = sequence(derUnsignedInteger(modulus!), derUnsignedInteger(exponent!));
  return sequence(sequence(OID_DER.rsaEncryption, der(TAG.null)), derBitString(key));
}
