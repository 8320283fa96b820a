/**
 * Is what an upstream gave us an authority for our key, and will what it signs be accepted? Every rule for a signing certificate is held against it,
 * and an SVID that never leaves is signed with the key and verified as agents verify.
 */
import { CountersignError } from '../../src/base/errors.ts';
import type { NodeName, TrustDomain } from '../../src/model/ids.ts';
import { trustDomainSpiffeId } from '../../src/model/spiffe-id.ts';
import { type Certificate, parseCertificate } from '../../src/pki/certificate.ts';
import { KEY_USAGE } from '../../src/pki/extensions.ts';
import { generateKey, publicKeyDer } from '../../src/pki/keys.ts';
import { verifyX509Svid } from '../../src/pki/verify.ts';
import { buildTbs } from '../build.ts';
import type { SigningKey } from '../keys/key-manager.ts';
import { lintTbs } from '../lint.ts';
import { planNode, type Validity } from '../profile.ts';
import { randomSerial } from '../serial.ts';
import { signCertificate } from '../sign.ts';
import { signerOf } from '../signer.ts';
import type { Minted } from './upstream.ts';

/** An SVID of 5 certificates is the longest that is accepted (src/pki/verify.ts). */
const MAX_CHAIN_LENGTH = 4;
/** Between its clock and ours. */
const CLOCK_TOLERANCE_MS = 10 * 60_000;
/** Below this it is not worth activating. */
const MIN_LIFE_MS = 5 * 60_000;

export interface Asked {
  readonly key: SigningKey;
  readonly trustDomain: TrustDomain;
  readonly validity: Validity;
  /** For messages. */
  readonly upstream: string;
}

type Rule = readonly [holds: boolean, rule: string];

/** The intermediate. @throws CountersignError bad-input listing each broken rule. */
export function checkMinted({ chain, roots }: Minted, asked: Asked): Certificate {
  const refuse = (broken: string) =>
    new CountersignError(
      'bad-input',
      `${asked.upstream}: its certificate for our authority is refused; what must hold: ${broken}`,
    );
  if (chain.length === 0 || chain.length > MAX_CHAIN_LENGTH)
    throw refuse(`there are 1 to ${MAX_CHAIN_LENGTH} certificates below the root`);
  const path = pathOf(
    chain.map((der) => parsed(der, refuse)),
    roots.map((der) => parsed(der, refuse)),
  );
  const certificate = path[0]!;
  const rules = [
    ...intermediateRules(certificate, asked),
    ...path.slice(1).flatMap((one) => issuerRules(one, certificate, asked)),
  ];
  const broken = rules.filter(([holds]) => !holds).map(([, rule]) => rule);
  if (broken.length > 0) throw refuse(broken.join('; '));
  const verdict = verifyProbe(path, { chain, roots }, asked);
  if (verdict !== undefined) throw refuse(`what it signs is accepted; an SVID of it would be refused with ${verdict}`);
  return certificate;
}

/** When the first of those above it ends. Unix ms; undefined: not before it. */
export function endsBefore({ chain, roots }: Minted): number | undefined {
  const readable = (ders: readonly Buffer[]) =>
    ders.map((der) => parseCertificate(der)).flatMap((one) => (one.ok ? [one.value] : []));
  const [certificate, ...above] = pathOf(readable(chain), readable(roots));
  const endMs = Math.min(...above.map((one) => one.notAfterMs));
  return certificate !== undefined && endMs < certificate.notAfterMs ? endMs : undefined;
}

/** A bundle may list roots besides that are about to end or that just began: only those that signed the chain count, or all if none seems to have. */
function pathOf(chain: readonly Certificate[], roots: readonly Certificate[]): Certificate[] {
  const last = chain.at(-1);
  const signed = roots.filter(
    ({ subjectDer, subjectKeyId }) =>
      last?.issuerDer.equals(subjectDer) === true &&
      (last.authorityKeyId === undefined || subjectKeyId === undefined || last.authorityKeyId.equals(subjectKeyId)),
  );
  return [...chain, ...(signed.length > 0 ? signed : roots)];
}

function parsed(der: Buffer, refuse: (broken: string) => CountersignError): Certificate {
  const certificate = parseCertificate(der);
  if (!certificate.ok) throw refuse('every certificate parses (RFC 5280, section 4.1)');
  return certificate.value;
}

/** RFC 5280, section 4.2, and X.509-SVID, sections 3 and 4, for a certificate that signs SVIDs and CRLs. */
function intermediateRules(certificate: Certificate, { key, trustDomain, validity }: Asked): Rule[] {
  const usage = certificate.keyUsage ?? 0;
  const { notBeforeMs, notAfterMs, uriSanCount, spiffeId } = certificate;
  return [
    [certificate.spki.equals(key.publicKey), 'its key is the one that was asked for'],
    [certificate.isCa, 'it is a CA (X.509-SVID, section 4.1)'],
    [certificate.basicConstraintsCritical, 'the basic constraints are critical (RFC 5280, section 4.2.1.9)'],
    [(usage & KEY_USAGE.keyCertSign) !== 0, 'the key usage has keyCertSign (X.509-SVID, section 4.3)'],
    [(usage & KEY_USAGE.crlSign) !== 0, 'the key usage has cRLSign (RFC 5280, section 4.2.1.3), as it signs CRLs'],
    [!certificate.hasNameConstraints, 'there are no name constraints'],
    [certificate.unknownCritical === undefined, 'no critical extension is unknown'],
    [certificate.subjectKeyId !== undefined, 'there is a subject key identifier (RFC 5280, section 4.2.1.2)'],
    [!certificate.subjectIsEmpty, 'the subject is not empty (RFC 5280, section 4.1.2.6)'],
    [uriSanCount <= 1, 'there is at most one URI SAN (X.509-SVID, section 2)'],
    [
      uriSanCount === 0 || spiffeId === trustDomainSpiffeId(trustDomain),
      `its SPIFFE ID, if there is one, is spiffe://${trustDomain} (X.509-SVID, section 3.2)`,
    ],
    [
      notAfterMs <= validity.notAfterMs + CLOCK_TOLERANCE_MS,
      `it ends when it was asked to, ${isoOf(validity.notAfterMs)}, or earlier; it ends at ${isoOf(notAfterMs)}`,
    ],
    [
      notAfterMs - validity.notBeforeMs >= MIN_LIFE_MS,
      `it lives for ${MIN_LIFE_MS / 60_000} minutes or more; it ends at ${isoOf(notAfterMs)}`,
    ],
    [
      notBeforeMs <= validity.notBeforeMs + CLOCK_TOLERANCE_MS,
      `it is valid by now; it begins at ${isoOf(notBeforeMs)}`,
    ],
  ];
}

function issuerRules(issuer: Certificate, certificate: Certificate, { validity }: Asked): Rule[] {
  const { notBeforeMs, notAfterMs } = issuer;
  const begun = notBeforeMs <= validity.notBeforeMs + CLOCK_TOLERANCE_MS;
  return [
    [notAfterMs >= certificate.notAfterMs, `it does not outlive those above it; one ends at ${isoOf(notAfterMs)}`],
    [begun, `those above it are valid by now; one begins at ${isoOf(notBeforeMs)}`],
  ];
}

/** Undefined: accepted. The reason code otherwise. */
function verifyProbe(
  path: readonly Certificate[],
  { chain, roots }: Minted,
  { key, trustDomain }: Asked,
): string | undefined {
  const certificate = path[0]!;
  const signer = signerOf(key, certificate);
  // the first moment at which all of them are valid: clocks differ a little
  const nowMs = Math.max(...path.map((one) => one.notBeforeMs));
  const plan = planNode(trustDomain, 'probe' as NodeName, 0n, { notBeforeMs: nowMs, notAfterMs: nowMs + 1000 });
  const spki = publicKeyDer(generateKey());
  const linted = lintTbs(buildTbs(plan, signer, spki, randomSerial()), plan, signer, spki);
  if (!linted.ok) return linted.error.join('; ');
  const verdict = verifyX509Svid([signCertificate(linted.value), ...chain], { trustDomain, authorities: roots }, nowMs);
  return verdict.ok ? undefined : verdict.error;
}

function isoOf(ms: number): string {
  return new Date(ms).toISOString();
}
