/**
 * Step 2 of issuing: reads the bytes that are about to be signed as a stranger would, and holds them against RFC 5280, every MUST of
 * the X.509-SVID standard and the plan. Only what passes becomes a `Linted`, and only a `Linted` can be signed, once.
 */
import { err, ok, type Result } from '../src/base/errors.ts';
import { pathOf, trustDomainOf } from '../src/model/spiffe-id.ts';
import { parseTbsCertificate, type TbsFields } from '../src/pki/certificate.ts';
import { KEY_USAGE } from '../src/pki/extensions.ts';
import { OID } from '../src/pki/oids.ts';
import type { Signable, SigningKey } from './keys/key-manager.ts';
import { SIGNING } from './keys/key-type.ts';
import { type ExtensionList, listExtensions } from './lint-extensions.ts';
import { type CertificatePlan, isAuthority } from './profile.ts';
import type { Signer } from './signer.ts';

interface Permit {
  readonly tbs: Signable;
  readonly key: SigningKey;
}

let make: (permit: Permit) => Linted;

/** A one-use permit to sign exactly these bytes with exactly this key. Made by lintTbs alone. */
export class Linted {
  #permit: Permit | undefined;

  private constructor(permit: Permit) {
    this.#permit = permit;
  }

  static {
    make = (permit) => new Linted(permit);
  }

  /** @throws Error the second time. */
  take(): Permit {
    const permit = this.#permit;
    if (permit === undefined) throw new Error('this permit to sign was used before');
    this.#permit = undefined;
    return permit;
  }
}

/** @param spki the key that was asked for, DER. An error lists every broken rule, as sentences. */
export function lintTbs(
  tbs: Buffer,
  plan: CertificatePlan,
  signer: Signer,
  spki: Buffer,
): Result<Linted, readonly string[]> {
  // a copy: what is signed must be what was read here
  const bytes = Buffer.from(tbs);
  const parsed = parseTbsCertificate(bytes);
  if (!parsed.ok) return err([`it does not parse: ${parsed.error}`]);
  const fields = parsed.value;
  const extensions = listExtensions(bytes);
  if (extensions === undefined) return err(['its extensions do not parse']);
  const rules = [
    ...commonRules(fields, plan, spki),
    ...extensionRules(extensions, plan),
    ...signerRules(fields, signer, spki),
    ...(isAuthority(plan) ? authorityRules(fields, plan, signer) : leafRules(fields, plan)),
  ];
  const broken = rules.filter(([holds]) => !holds).map(([, rule]) => rule);
  return broken.length === 0 ? ok(make({ tbs: bytes as Signable, key: signer.key })) : err(broken);
}

type Rule = readonly [holds: boolean, rule: string];

function commonRules(fields: TbsFields, plan: CertificatePlan, spki: Buffer): Rule[] {
  return [
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

/** What each profile has, in the order of build.ts. Those of RFC 5280, sections 4.2.1.1 and 4.2.1.2, must not be critical; ours need not be understood. */
const AUTHORITY_EXTENSIONS = extensionSet('basicConstraints!', 'keyUsage!', 'subjectAltName');
const SVID_EXTENSIONS = ['basicConstraints!', 'keyUsage!', 'extKeyUsage', 'subjectAltName'];
const EXTENSIONS: Readonly<Record<CertificatePlan['profile'], string>> = {
  authority: AUTHORITY_EXTENSIONS,
  intermediate: AUTHORITY_EXTENSIONS,
  downstream: AUTHORITY_EXTENSIONS,
  workload: extensionSet(...SVID_EXTENSIONS, 'nodeBinding'),
  node: extensionSet(...SVID_EXTENSIONS, 'nodeIncarnation'),
  server: extensionSet(...SVID_EXTENSIONS),
};

function extensionSet(...names: string[]): string {
  return [...names, 'subjectKeyIdentifier', 'authorityKeyIdentifier'].join();
}

function extensionRules({ names, alternativeNames }: ExtensionList, plan: CertificatePlan): Rule[] {
  return [
    [
      names.join() === EXTENSIONS[plan.profile],
      'it has the extensions of its profile and no others, each as critical as it must be (RFC 5280, section 4.2)',
    ],
    [alternativeNames === 1 + plan.dnsNames.length, 'the SAN holds the SPIFFE ID and DNS names, and no other names'],
  ];
}

function signerRules(fields: TbsFields, { key, issuer }: Signer, spki: Buffer): Rule[] {
  const algorithm: Rule = [
    fields.signatureAlgorithm === SIGNING[key.type].algorithm,
    'the signature algorithm is that of the signing key (RFC 5280, section 4.1.1.2)',
  ];
  if (issuer === undefined) {
    return [
      algorithm,
      [fields.issuerDer.equals(fields.subjectDer), 'a root is its own issuer'],
      [key.publicKey.equals(spki), 'a root is signed with its own key'],
    ];
  }
  return [
    algorithm,
    [fields.issuerDer.equals(issuer.subjectDer), 'the issuer is the authority'],
    [
      fields.authorityKeyId?.equals(issuer.subjectKeyId) === true,
      'the authority key identifier is the authority’s (RFC 5280, section 4.2.1.1)',
    ],
    [fields.notBeforeMs >= issuer.notBeforeMs, 'it does not begin before its authority'],
    [fields.notAfterMs <= issuer.notAfterMs, 'it does not outlive its authority'],
  ];
}

function authorityRules(fields: TbsFields, plan: CertificatePlan, { issuer }: Signer): Rule[] {
  const { spiffeId } = fields;
  return [
    [fields.isCa, 'an authority is a CA (X.509-SVID, section 4.1)'],
    [fields.keyUsage === (KEY_USAGE.keyCertSign | KEY_USAGE.crlSign), 'the key usage is keyCertSign and cRLSign'],
    [fields.extKeyUsage === undefined, 'an authority has no key purposes of its own'],
    [spiffeId !== undefined && pathOf(spiffeId) === '', 'the SPIFFE ID of an authority has no path'],
    [
      (plan.profile === 'authority') === (issuer === undefined),
      'a root signs itself, an intermediate is signed by another authority',
    ],
    [
      fields.pathLength === (plan.profile === 'authority' ? undefined : 0),
      'an intermediate, and only an intermediate, has the path length 0',
    ],
    [issuer?.pathLength !== 0, 'its authority may have another below it (RFC 5280, section 4.2.1.9)'],
    [fields.nodeBinding === undefined && fields.nodeIncarnation === undefined, 'an authority is not bound to a node'],
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
