/** Certificate revocation lists as bytes (RFC 5280, section 5): version 2, complete, of one signing key, with what that key's certificates need and no more. */
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
} from '../src/pki/der.ts';
import { OID_DER } from '../src/pki/oids.ts';
import type { Signable, SigningKey } from './keys/key-manager.ts';
import { SIGNING } from './keys/key-type.ts';

const TAG_ENUMERATED = 0x0a;
const CRL_NUMBER = derOid('2.5.29.20');
const REASON_CODE = derOid('2.5.29.21');
const VERSION_2 = derUnsignedInteger(Buffer.of(1));

/**
 * CRLReason (section 5.3.1) by its name there. certificateHold and removeFromCRL are left out: what is revoked here stays revoked. unspecified
 * is said by saying nothing.
 */
export const REASON_CODES: Readonly<Record<string, number>> = {
  unspecified: 0,
  keyCompromise: 1,
  cACompromise: 2,
  affiliationChanged: 3,
  superseded: 4,
  cessationOfOperation: 5,
  privilegeWithdrawn: 9,
  aACompromise: 10,
};

export interface CrlEntry {
  /** Lower-case hex. */
  readonly serial: string;
  /** Unix ms. */
  readonly revokedMs: number;
  /** See REASON_CODES. */
  readonly reasonCode: number;
}

export interface CrlFields {
  /** Name of the signing certificate, DER. */
  readonly issuerDer: Buffer;
  readonly authorityKeyId: Buffer;
  readonly number: number;
  /** Unix ms, cut to seconds. */
  readonly thisUpdateMs: number;
  readonly nextUpdateMs: number;
  readonly entries: readonly CrlEntry[];
}

/** CertificateList, DER. */
export function signCrl(key: SigningKey, fields: CrlFields): Buffer {
  const algorithm = SIGNING[key.type].identifier;
  const tbs = sequence(
    VERSION_2,
    algorithm,
    fields.issuerDer,
    derTime(fields.thisUpdateMs),
    // section 5.1.2.5: it must be there
    derTime(fields.nextUpdateMs),
    // section 5.1.2.6: absent if there are none
    ...(fields.entries.length > 0 ? [sequence(...fields.entries.map(entry))] : []),
    der(
      contextConstructed(0),
      sequence(
        // sections 5.2.1 and 5.2.3: both must be there, neither is critical
        extension(OID_DER.authorityKeyIdentifier, sequence(der(contextPrimitive(0), fields.authorityKeyId))),
        extension(CRL_NUMBER, derUnsignedInteger(magnitude(fields.number))),
      ),
    ),
  );
  return sequence(tbs, algorithm, derBitString(key.sign(tbs as Signable)));
}

function entry({ serial, revokedMs, reasonCode }: CrlEntry): Buffer {
  const reason = reasonCode === 0 ? [] : [sequence(extension(REASON_CODE, der(TAG_ENUMERATED, Buffer.of(reasonCode))))];
  return sequence(derUnsignedInteger(Buffer.from(serial, 'hex')), derTime(revokedMs), ...reason);
}

function extension(oid: Buffer, value: Buffer): Buffer {
  return sequence(oid, der(TAG.octetString, value));
}

function magnitude(value: number): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64BE(BigInt(value));
  return bytes;
}
