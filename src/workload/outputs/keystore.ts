/**
 * PKCS#12 (RFC 7292) as a JVM reads it. node-forge derives and encrypts; the bags are put together here, because node-forge itself
 * takes RSA keys and certificates only.
 */
import { createHmac } from 'node:crypto';
import forge from 'node-forge';
import { contextConstructed, der, derOid, derUnsignedInteger, sequence, TAG } from '../../pki/der.ts';
import { privateKeyDer } from '../../pki/keys.ts';
import type { FetchedSvid } from '../client.ts';

/** PKCS#9 and RFC 7292, appendix D; the last is Oracle's mark of a certificate that is trusted (ORACLE_TrustedKeyUsage). */
const OID = {
  data: '1.2.840.113549.1.7.1',
  shroudedKeyBag: '1.2.840.113549.1.12.10.1.2',
  certBag: '1.2.840.113549.1.12.10.1.3',
  x509Certificate: '1.2.840.113549.1.9.22.1',
  friendlyName: '1.2.840.113549.1.9.20',
  localKeyId: '1.2.840.113549.1.9.21',
  trustedKeyUsage: '2.16.840.1.113894.746875.1.1',
  anyExtendedKeyUsage: '2.5.29.37.0',
  sha256: '2.16.840.1.101.3.4.2.1',
} as const;

/** Java's own default for its keystores. */
const ITERATIONS = 10_000;
const SALT_BYTES = 20;
/** RFC 7292, appendix B.3: the third purpose is the key of the integrity check. */
const MAC_PURPOSE = 3;
const MAC_BYTES = 32;
const ALIAS = 'svid';

/** The private key and its chain under the alias `svid`. */
export function keystore(svid: FetchedSvid, password: string): Buffer {
  const shrouded = forge.pki.encryptPrivateKeyInfo(
    forge.asn1.fromDer(privateKeyDer(svid.privateKey).toString('binary')),
    password,
    { algorithm: 'aes256', prfAlgorithm: 'sha256', count: ITERATIONS, saltSize: SALT_BYTES } as { algorithm: 'aes256' },
  );
  const keyId = attribute(OID.localKeyId, der(TAG.octetString, Buffer.of(1)));
  const name = attribute(OID.friendlyName, bmpString(ALIAS));
  const key = bag(OID.shroudedKeyBag, bytesOf(shrouded), [name, keyId]);
  const chain = svid.chain.map((certificate, i) => certificateBag(certificate, i === 0 ? [name, keyId] : []));
  return pfx([chain, [key]], password);
}

/** The authorities, each as a trusted certificate entry `bundle-<number>`. */
export function truststore(authorities: readonly Buffer[], password: string): Buffer {
  const bags = authorities.map((certificate, i) =>
    certificateBag(certificate, [
      attribute(OID.friendlyName, bmpString(`bundle-${i + 1}`)),
      attribute(OID.trustedKeyUsage, derOid(OID.anyExtendedKeyUsage)),
    ]),
  );
  return pfx([bags], password);
}

/** One plain ContentInfo for each list of bags; a private key's bag is encrypted by itself. */
function pfx(contents: readonly (readonly Buffer[])[], password: string): Buffer {
  const safes = contents.map((bags) => contentInfo(sequence(...bags)));
  const authenticatedSafe = sequence(...safes);
  const salt = forge.random.getBytesSync(SALT_BYTES);
  const macKey = forge.pkcs12.generateKey(
    password,
    forge.util.createBuffer(salt),
    MAC_PURPOSE,
    ITERATIONS,
    MAC_BYTES,
    forge.md.sha256.create(),
  );
  const mac = createHmac('sha256', Buffer.from(macKey.getBytes(), 'binary')).update(authenticatedSafe).digest();
  const digestInfo = sequence(sequence(derOid(OID.sha256), der(TAG.null)), der(TAG.octetString, mac));
  const macData = sequence(digestInfo, der(TAG.octetString, Buffer.from(salt, 'binary')), integer(ITERATIONS));
  return sequence(integer(3), contentInfo(authenticatedSafe), macData);
}

function contentInfo(content: Buffer): Buffer {
  return sequence(derOid(OID.data), der(contextConstructed(0), der(TAG.octetString, content)));
}

function certificateBag(certificate: Buffer, attributes: readonly Buffer[]): Buffer {
  const value = der(contextConstructed(0), der(TAG.octetString, certificate));
  return bag(OID.certBag, sequence(derOid(OID.x509Certificate), value), attributes);
}

function bag(kind: string, value: Buffer, attributes: readonly Buffer[]): Buffer {
  // DER orders a SET OF by its encodings (X.690, section 11.6)
  const set = attributes.length === 0 ? [] : [der(TAG.set, ...attributes.toSorted(Buffer.compare))];
  return sequence(derOid(kind), der(contextConstructed(0), value), ...set);
}

function attribute(kind: string, value: Buffer): Buffer {
  return sequence(derOid(kind), der(TAG.set, value));
}

const BMP_STRING = 0x1e;
function bmpString(text: string): Buffer {
  return der(BMP_STRING, Buffer.from(text, 'utf16le').swap16());
}

function integer(value: number): Buffer {
  const magnitude = Buffer.alloc(4);
  magnitude.writeUInt32BE(value);
  return derUnsignedInteger(magnitude);
}

function bytesOf(element: forge.asn1.Asn1): Buffer {
  return Buffer.from(forge.asn1.toDer(element).getBytes(), 'binary');
}
