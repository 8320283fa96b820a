/** The extensions of a certificate (RFC 5280, section 4.2) that path validation and the X.509-SVID standard look at. */
import type { SpiffeId } from '../model/ids.ts';
import { parseSpiffeId } from '../model/spiffe-id.ts';
import { contextPrimitive, DerError, type DerReader, oidText, TAG } from './der.ts';
import { oidNames } from './oids.ts';

const MAX_EXTENSIONS = 32;
const MAX_GENERAL_NAMES = 64;
const MAX_KEY_PURPOSES = 32;

/** Bits of KeyUsage (RFC 5280, section 4.2.1.3) as DerReader.namedBits numbers them. */
export const KEY_USAGE = {
  digitalSignature: 1 << 0,
  keyCertSign: 1 << 5,
  crlSign: 1 << 6,
} as const;

export interface Extensions {
  /** Bits of KEY_USAGE; undefined: the extension is not there. */
  keyUsage: number | undefined;
  keyUsageCritical: boolean;
  /** Dotted; undefined: the extension is not there. */
  extKeyUsage: readonly string[] | undefined;
  isCa: boolean;
  hasBasicConstraints: boolean;
  basicConstraintsCritical: boolean;
  pathLength: number | undefined;
  hasSubjectAltName: boolean;
  subjectAltNameCritical: boolean;
  uriSanCount: number;
  /** Of the only URI SAN, if it is a valid SPIFFE ID. */
  spiffeId: SpiffeId | undefined;
  dnsNames: readonly string[];
  subjectKeyId: Buffer | undefined;
  authorityKeyId: Buffer | undefined;
  hasNameConstraints: boolean;
  /** Dotted; a critical extension that nothing here understands. */
  unknownCritical: string | undefined;
  nodeBinding: SpiffeId | undefined;
  nodeIncarnation: bigint | undefined;
}

function noExtensions(): Extensions {
  return {
    keyUsage: undefined,
    keyUsageCritical: false,
    extKeyUsage: undefined,
    isCa: false,
    hasBasicConstraints: false,
    basicConstraintsCritical: false,
    pathLength: undefined,
    hasSubjectAltName: false,
    subjectAltNameCritical: false,
    uriSanCount: 0,
    spiffeId: undefined,
    dnsNames: [],
    subjectKeyId: undefined,
    authorityKeyId: undefined,
    hasNameConstraints: false,
    unknownCritical: undefined,
    nodeBinding: undefined,
    nodeIncarnation: undefined,
  };
}

/** Extensions ::= SEQUENCE SIZE (1..MAX) OF Extension. One that stands twice is an error (section 4.2). */
export function readExtensions(reader: DerReader): Extensions {
  const out = noExtensions();
  const seen: string[] = [];
  const list = reader.enter(TAG.sequence);
  do {
    const extension = list.enter(TAG.sequence);
    const oid = extension.oid();
    let critical = false;
    if (extension.peek() === TAG.boolean) {
      critical = extension.boolean();
      if (!critical) throw new DerError('a default value is written out');
    }
    // extnValue is an OCTET STRING that holds DER
    const value = extension.enter(TAG.octetString);
    extension.end();
    if (seen.includes(oid)) throw new DerError('an extension stands twice');
    if (seen.push(oid) > MAX_EXTENSIONS) throw new DerError('too many extensions');
    if (readKnown(out, oid, critical, value)) value.end();
    else if (critical) out.unknownCritical ??= oidText(oid);
  } while (!list.atEnd);
  return out;
}

/** False: not an extension that is understood here; its value was not looked at. */
function readKnown(out: Extensions, oid: string, critical: boolean, value: DerReader): boolean {
  switch (oidNames.get(oid)) {
    case 'keyUsage':
      out.keyUsage = value.namedBits();
      out.keyUsageCritical = critical;
      // section 4.2.1.3: at least one bit
      if (out.keyUsage === 0) throw new DerError('a key usage without a bit');
      return true;
    case 'extKeyUsage':
      out.extKeyUsage = readKeyPurposes(value);
      return true;
    case 'basicConstraints':
      out.hasBasicConstraints = true;
      out.basicConstraintsCritical = critical;
      readBasicConstraints(out, value);
      return true;
    case 'subjectAltName':
      out.hasSubjectAltName = true;
      out.subjectAltNameCritical = critical;
      readSubjectAltName(out, value);
      return true;
    case 'subjectKeyIdentifier':
      out.subjectKeyId = value.content(TAG.octetString);
      return true;
    case 'authorityKeyIdentifier':
      out.authorityKeyId = readAuthorityKeyId(value);
      return true;
    case 'nameConstraints':
      out.hasNameConstraints = true;
      value.skip();
      return true;
    case 'nodeBinding': {
      const parsed = parseSpiffeId(value.latin1(TAG.utf8String));
      if (!parsed.ok) throw new DerError('the node binding is not a SPIFFE ID');
      out.nodeBinding = parsed.value.id;
      return true;
    }
    case 'nodeIncarnation': {
      const text = value.latin1(TAG.utf8String);
      if (!/^(0|[1-9][0-9]{0,19})$/.test(text) || BigInt(text) > 0xffff_ffff_ffff_ffffn) {
        throw new DerError('the node incarnation is not a number of 64 bits');
      }
      out.nodeIncarnation = BigInt(text);
      return true;
    }
    default:
      return false;
  }
}

function readKeyPurposes(value: DerReader): string[] {
  const list = value.enter(TAG.sequence);
  const purposes: string[] = [];
  do {
    if (purposes.push(purposeText(list.oid())) > MAX_KEY_PURPOSES) throw new DerError('too many key purposes');
  } while (!list.atEnd);
  return purposes;
}

const purposeTexts = new Map([...oidNames.keys()].map((key) => [key, oidText(key)]));
const purposeText = (key: string): string => purposeTexts.get(key) ?? oidText(key);

function readBasicConstraints(out: Extensions, value: DerReader): void {
  const constraints = value.enter(TAG.sequence);
  if (constraints.peek() === TAG.boolean) {
    out.isCa = constraints.boolean();
    if (!out.isCa) throw new DerError('a default value is written out');
  }
  if (!constraints.atEnd) {
    out.pathLength = constraints.smallInteger();
    // section 4.2.1.9: only where cA is true
    if (!out.isCa) throw new DerError('a path length without cA');
  }
  constraints.end();
}

/** GeneralNames (section 4.2.1.6). Of the names only URI and DNS are looked into. */
function readSubjectAltName(out: Extensions, value: DerReader): void {
  const names = value.enter(TAG.sequence);
  const dnsNames: string[] = [];
  let count = 0;
  do {
    if (++count > MAX_GENERAL_NAMES) throw new DerError('too many names');
    const tag = names.peek();
    if (tag === contextPrimitive(6)) {
      const uri = ascii(names.latin1(tag));
      out.uriSanCount++;
      const parsed = out.uriSanCount === 1 ? parseSpiffeId(uri) : undefined;
      out.spiffeId = parsed?.ok ? parsed.value.id : undefined;
    } else if (tag === contextPrimitive(2)) {
      dnsNames.push(ascii(names.latin1(tag)));
    } else if (GENERAL_NAME_TAGS.includes(tag)) {
      names.skip();
    } else {
      throw new DerError('not a general name');
    }
  } while (!names.atEnd);
  out.dnsNames = dnsNames;
}

/** otherName, rfc822Name, x400Address, directoryName, ediPartyName, iPAddress, registeredID. */
const GENERAL_NAME_TAGS: readonly number[] = [0xa0, 0x81, 0xa3, 0xa4, 0xa5, 0x87, 0x88];

function readAuthorityKeyId(value: DerReader): Buffer | undefined {
  const fields = value.enter(TAG.sequence);
  const keyId = fields.peek() === contextPrimitive(0) ? fields.content(contextPrimitive(0)) : undefined;
  if (fields.peek() === 0xa1) fields.skip();
  if (fields.peek() === contextPrimitive(2)) fields.skip();
  fields.end();
  return keyId;
}

/** IA5String. */
function ascii(text: string): string {
  for (let i = 0; i < text.length; i++) if (text.charCodeAt(i) > 0x7f) throw new DerError('not ASCII');
  return text;
}
