/** Writes a to-be-signed certificate from its plan. Everything that does not change stands ready as DER. */
import { hash } from 'node:crypto';
import type { TrustDomain } from '../src/model/ids.ts';
import { trustDomainSpiffeId } from '../src/model/spiffe-id.ts';
import {
  contextConstructed,
  contextPrimitive,
  der,
  derBitString,
  derTime,
  derUnsignedInteger,
  sequence,
  TAG,
} from '../src/pki/der.ts';
import { OID_DER, type OidName } from '../src/pki/oids.ts';
import { SIGNING } from './keys/key-type.ts';
import { type CertificatePlan, isAuthority } from './profile.ts';
import type { Issuer, Signer } from './signer.ts';

const VERSION_3 = Buffer.from([0xa0, 0x03, TAG.integer, 0x01, 0x02]);
const CRITICAL = Buffer.from([TAG.boolean, 1, 0xff]);

/** The subject of an SVID says nothing: its SPIFFE ID is the name. It is there for software that prints subjects. */
const SVID_SUBJECT = name(['organizationName', 'Countersign']);

/** keyCertSign and cRLSign: bits 5 and 6. */
const AUTHORITY_USAGE = extension('keyUsage', Buffer.from([TAG.bitString, 2, 1, 0x06]), true);
const ROOT_BASICS = Buffer.concat([extension('basicConstraints', sequence(CRITICAL), true), AUTHORITY_USAGE]);
/** Path length 0: it signs SVIDs and no further authority (RFC 5280, section 4.2.1.9). */
const INTERMEDIATE_BASICS = Buffer.concat([
  extension('basicConstraints', sequence(CRITICAL, derUnsignedInteger(Buffer.of(0))), true),
  AUTHORITY_USAGE,
]);
/** digitalSignature: bit 0. */
const LEAF_BASICS = Buffer.concat([
  extension('basicConstraints', sequence(), true),
  extension('keyUsage', Buffer.from([TAG.bitString, 2, 7, 0x80]), true),
  extension('extKeyUsage', sequence(OID_DER.serverAuth, OID_DER.clientAuth), false),
]);

/**
 * @param spki SubjectPublicKeyInfo, DER, of an allowed kind.
 * @param serial 16 random bytes.
 */
export function buildTbs(plan: CertificatePlan, { key, issuer }: Signer, spki: Buffer, serial: Buffer): Buffer {
  const subjectKeyId = keyIdentifier(spki);
  const subject = isAuthority(plan) ? authorityName(plan.profile, spki) : SVID_SUBJECT;
  return sequence(
    VERSION_3,
    derUnsignedInteger(serial),
    SIGNING[key.type].identifier,
    issuer?.subjectDer ?? subject,
    sequence(derTime(plan.notBeforeMs), derTime(plan.notAfterMs)),
    subject,
    spki,
    der(
      contextConstructed(3),
      sequence(
        ...(isAuthority(plan) ? authorityExtensions(plan) : leafExtensions(plan)),
        ...keyIds(subjectKeyId, issuer),
      ),
    ),
  );
}

function authorityExtensions(plan: CertificatePlan): Buffer[] {
  return [plan.profile === 'authority' ? ROOT_BASICS : INTERMEDIATE_BASICS, subjectAltName(plan)];
}

function leafExtensions(plan: CertificatePlan): Buffer[] {
  const out = [LEAF_BASICS, subjectAltName(plan)];
  if (plan.nodeBinding !== undefined) out.push(extension('nodeBinding', utf8(plan.nodeBinding), false));
  if (plan.nodeIncarnation !== undefined) {
    out.push(extension('nodeIncarnation', utf8(plan.nodeIncarnation.toString()), false));
  }
  return out;
}

function keyIds(subjectKeyId: Buffer, issuer: Issuer | undefined): Buffer[] {
  const authorityKeyId = sequence(der(contextPrimitive(0), issuer?.subjectKeyId ?? subjectKeyId));
  return [
    extension('subjectKeyIdentifier', der(TAG.octetString, subjectKeyId), false),
    extension('authorityKeyIdentifier', authorityKeyId, false),
  ];
}

function subjectAltName(plan: Pick<CertificatePlan, 'spiffeId' | 'dnsNames'>): Buffer {
  const uri = der(contextPrimitive(6), Buffer.from(plan.spiffeId, 'latin1'));
  const dns = plan.dnsNames.map((dnsName) => der(contextPrimitive(2), Buffer.from(dnsName, 'latin1')));
  return extension('subjectAltName', sequence(uri, ...dns), false);
}

/** Each authority has a name of its own, so that two of them in one bundle are told apart by name, as RFC 5280 wants. DER. */
export function authorityName(profile: CertificatePlan['profile'], spki: Buffer): Buffer {
  return name(
    ['organizationName', 'Countersign'],
    ['commonName', profile === 'authority' ? 'Countersign root' : 'Countersign intermediate'],
    ['serialNumber', keyIdentifier(spki).toString('hex')],
  );
}

/** Extensions, DER, that a request for an intermediate asks for. */
export function authorityExtensionRequest(trustDomain: TrustDomain): Buffer {
  return sequence(INTERMEDIATE_BASICS, subjectAltName({ spiffeId: trustDomainSpiffeId(trustDomain), dnsNames: [] }));
}

/** What keyIdentifier gives, from the ledger's SHA-256 over the SubjectPublicKeyInfo. Both lower-case hex. */
export function keyIdentifierOfDigest(digest: string): string {
  return digest.slice(0, 40);
}

/** The leftmost 160 bits of SHA-256 over the SubjectPublicKeyInfo (RFC 7093, section 2, methods 1 and 4). */
function keyIdentifier(spki: Buffer): Buffer {
  // by way of hex: a buffer of its own from the hash would cost the garbage collector more than the copy
  return Buffer.from(keyIdentifierOfDigest(hash('sha256', spki, 'hex')), 'hex');
}

function extension(oid: OidName, value: Buffer, critical: boolean): Buffer {
  const content = der(TAG.octetString, value);
  return critical ? sequence(OID_DER[oid], CRITICAL, content) : sequence(OID_DER[oid], content);
}

function name(...attributes: readonly [oid: OidName, value: string][]): Buffer {
  return sequence(
    ...attributes.map(([oid, value]) =>
      der(TAG.set, sequence(OID_DER[oid], der(TAG.printableString, Buffer.from(value, 'latin1')))),
    ),
  );
}

function utf8(text: string): Buffer {
  return der(TAG.utf8String, Buffer.from(text, 'utf8'));
}

/** Certificate ::= SEQUENCE { tbsCertificate, signatureAlgorithm, signatureValue }. */
export function assembleCertificate(tbs: Buffer, algorithmIdentifier: Buffer, signature: Buffer): Buffer {
  return sequence(tbs, algorithmIdentifier, derBitString(signature));
}
