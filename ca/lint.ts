/**
 * Step 2 of issuing: reads the bytes that are about to be signed as a stranger would, and holds them against RFC 5280, every MUST of
 * the X.509-SVID standard and the plan. Only what passes becomes a `Linted`, and only a `Linted` can be signed, once.
 */
import { err, ok, type Result } from '../src/base/errors.ts';
import { pathOf, trustDomainOf } from '../src/model/spiffe-id.ts';
import { parseTbsCertificate, type TbsFields } from '../src/pki/certificate.ts';
import { KEY_USAGE } from '../src/pki/extensions.ts';
import { OID } from '../src/pki/oids.ts';
import type { CertificatePlan } from './profile.ts';

let make: (tbs: Buffer) => Linted;

/** A one-use permit to sign exactly these bytes. Made by lintTbs alone. */
export class Linted {
  #tbs: Buffer | undefined;

  private constructor(tbs: Buffer) {
    this.#tbs = tbs;
  }

  static {
    make = (tbs) => new Linted(tbs);
  }

  /** @throws Error the second time. */
  take(): Buffer {
    const tbs = this.#tbs;
    if (tbs === undefined) throw new Error('this permit to sign was used before');
    this.#tbs = undefined;
    return tbs;
  }
}

/** The authority that is going to sign. */
export interface LintIssuer {
  readonly subjectDer: Buffer;
  readonly subjectKeyId: Buffer | undefined;
  readonly notBeforeMs: number;
  readonly notAfterMs: number;
}

/** @param issuer undefined: self-signed. An error lists every broken rule, as sentences. */
export function lintTbs(
  tbs: Buffer,
  plan: CertificatePlan,
  issuer: LintIssuer | undefined,
  spki: Buffer,
): Result<Linted, readonly string[]> {
  // a copy: what is signed must be what was read here
  const bytes = Buffer.from(tbs);
  const parsed = parseTbsCertificate(bytes);
  if (!parsed.ok) return err([`it does not parse: ${parsed.error}`]);
  const fields = parsed.value;
  const rules = [
    ...commonRules(fields, plan, spki),
    ...issuerRules(fields, issuer),
    ...(plan.profile === 'authority' ? authorityRules(fields) : leafRules(fields, plan)),
  ];
  const broken = rules.filter(([holds]) => !holds).map(([, rule]) => rule);
  return broken.length === 0 ? ok(make(bytes)) : err(broken);
}

type Rule = readonly [holds: boolean, rule: string];

function commonRules(fields: TbsFields, plan: CertificatePlan, spki: Buffer): Rule[] {
  return [
    [fields.signatureAlgorithm === 'ecdsaSha256', 'the signature algorithm is that of the authority key'],
    [fields.keyKind !== undefined, 'the key is of an allowed kind'],
    [fields.spki.equals(spki), 'the key is the one that was asked for'],
    [fields.serialBytes >= 8, 'the serial number has at least 64 bits (RFC 5280, section 4.1.2.2, and CA practice)'],
    [fields.notBeforeMs === plan.notBeforeMs, 'notBefore is as planned'],
    [fields.notAfterMs === plan.notAfterMs, 'notAfter is as planned'],
    [fields.notBeforeMs < fields.notAfterMs, 'the validity is not empty'],
    [fields.unknownCritical === undefined, 'no critical extension is unknown'],
    [!fields.hasNameConstraints, 'there are no name constraints'],
    [fields.uriSanCount === 1, 'there is exactly one URI SAN (X.509-SVID, section 2)'],
    [fields.spiffeId === plan.spiffeId, 'the SPIFFE ID is as planned'],
    [!fields.subjectIsEmpty || fields.subjectAltNameCritical, 'the SAN is critical if the subject is empty'],
    [fields.keyUsageCritical, 'the key usage is critical (X.509-SVID, section 4.3)'],
    [fields.basicConstraintsCritical, 'the basic constraints are critical (RFC 5280, section 4.2.1.9)'],
    [fields.subjectKeyId?.length === 20, 'there is a subject key identifier'],
    [sameList(fields.dnsNames, plan.dnsNames), 'the DNS names are as planned'],
    [fields.dnsNames.every(isDnsName), 'the DNS names are DNS names (RFC 1123, section 2.1)'],
    [fields.nodeBinding === plan.nodeBinding, 'the node binding is as planned'],
    [fields.nodeIncarnation === plan.nodeIncarnation, 'the node incarnation is as planned'],
  ];
}

function issuerRules(fields: TbsFields, issuer: LintIssuer | undefined): Rule[] {
  if (issuer === undefined) return [[fields.issuerDer.equals(fields.subjectDer), 'a root is its own issuer']];
  const keyId = issuer.subjectKeyId;
  return [
    [fields.issuerDer.equals(issuer.subjectDer), 'the issuer is the authority'],
    [
      keyId !== undefined && fields.authorityKeyId?.equals(keyId) === true,
      'the authority key identifier is the authority’s',
    ],
    [fields.notBeforeMs >= issuer.notBeforeMs, 'it does not begin before its authority'],
    [fields.notAfterMs <= issuer.notAfterMs, 'it does not outlive its authority'],
  ];
}

function authorityRules(fields: TbsFields): Rule[] {
  return [
    [fields.isCa, 'an authority is a CA (X.509-SVID, section 4.1)'],
    [fields.keyUsage === (KEY_USAGE.keyCertSign | KEY_USAGE.crlSign), 'the key usage is keyCertSign and cRLSign'],
    [fields.spiffeId !== undefined && pathOf(fields.spiffeId) === '', 'the SPIFFE ID of an authority has no path'],
  ];
}

function leafRules(fields: TbsFields, plan: CertificatePlan): Rule[] {
  const purposes = fields.extKeyUsage ?? [];
  const { spiffeId, nodeBinding } = fields;
  return [
    [!fields.isCa && fields.pathLength === undefined, 'a leaf is not a CA (X.509-SVID, section 4.1)'],
    [fields.keyUsage === KEY_USAGE.digitalSignature, 'the key usage is digitalSignature alone'],
    [sameList(purposes, [OID.serverAuth, OID.clientAuth]), 'the key purposes are serverAuth and clientAuth'],
    [spiffeId !== undefined && pathOf(spiffeId) !== '', 'the SPIFFE ID of a leaf has a path'],
    [
      (plan.profile === 'workload') === (nodeBinding !== undefined),
      'a workload, and only a workload, is bound to a node',
    ],
    [
      (plan.profile === 'node') === (fields.nodeIncarnation !== undefined),
      'a node, and only a node, has an incarnation',
    ],
    [
      spiffeId === undefined || nodeBinding === undefined || trustDomainOf(nodeBinding) === trustDomainOf(spiffeId),
      'the node is of the same trust domain',
    ],
  ];
}

function sameList(a: readonly string[], b: readonly string[]): boolean {
  return a.length === b.length && a.every((value, i) => value === b[i]);
}

function isDnsName(text: string): boolean {
  return text.length <= 253 && text.split('.').every((label) => /^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$/i.test(label));
}
