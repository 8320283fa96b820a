/** Object identifiers of the standards we read and write (ours are in base/registry/oids.ts), and their key forms for comparing. */
import { OID_NODE_BINDING, OID_NODE_INCARNATION } from '../base/registry/oids.ts';
import { derOid, oidKey } from './der.ts';

export const OID = {
  // RFC 5480
  ecPublicKey: '1.2.840.10045.2.1',
  p256: '1.2.840.10045.3.1.7',
  p384: '1.3.132.0.34',
  // RFC 5758
  ecdsaSha256: '1.2.840.10045.4.3.2',
  ecdsaSha384: '1.2.840.10045.4.3.3',
  ecdsaSha512: '1.2.840.10045.4.3.4',
  // RFC 8017
  rsaEncryption: '1.2.840.113549.1.1.1',
  rsaSha256: '1.2.840.113549.1.1.11',
  rsaSha384: '1.2.840.113549.1.1.12',
  rsaSha512: '1.2.840.113549.1.1.13',
  // RFC 5280
  subjectKeyIdentifier: '2.5.29.14',
  keyUsage: '2.5.29.15',
  subjectAltName: '2.5.29.17',
  basicConstraints: '2.5.29.19',
  nameConstraints: '2.5.29.30',
  authorityKeyIdentifier: '2.5.29.35',
  extKeyUsage: '2.5.29.37',
  anyExtendedKeyUsage: '2.5.29.37.0',
  serverAuth: '1.3.6.1.5.5.7.3.1',
  clientAuth: '1.3.6.1.5.5.7.3.2',
  // RFC 2985
  extensionRequest: '1.2.840.113549.1.9.14',
  // X.520
  commonName: '2.5.4.3',
  organizationName: '2.5.4.10',
  serialNumber: '2.5.4.5',
  nodeBinding: OID_NODE_BINDING,
  nodeIncarnation: OID_NODE_INCARNATION,
} as const;

export type OidName = keyof typeof OID;

/** From DerReader.oid() to the name above; what is not there is unknown to us. */
export const oidNames: ReadonlyMap<string, OidName> = new Map(
  (Object.keys(OID) as OidName[]).map((name) => [oidKey(OID[name]), name]),
);

/** OBJECT IDENTIFIER, DER. */
export const OID_DER = Object.fromEntries(
  (Object.keys(OID) as OidName[]).map((name) => [name, derOid(OID[name])]),
) as Readonly<Record<OidName, Buffer>>;
