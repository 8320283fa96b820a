/**
 * Is this chain a valid X.509-SVID now, and whose? Every rule of the X.509-SVID standard and of RFC 5280 path validation
 * (section 6) is a named step that refuses with one reason, in the order of `verifyX509Svid`. A certificate's story: the
 * peer showed it in an authenticator or a handshake; after this, src/auth/ asks whether it is the right one and not revoked.
 */
import { err, ok, type Result } from '../base/errors.ts';
import type { ReasonCode } from '../base/registry/reason-codes.ts';
import type { TrustBundle } from '../model/identity.ts';
import type { SpiffeId, TrustDomain } from '../model/ids.ts';
import { pathOf, trustDomainOf } from '../model/spiffe-id.ts';
import { verifySignature } from './algorithms.ts';
import {
  type Certificate,
  certificateDigest,
  hasSigner,
  MAX_CERTIFICATE_BYTES,
  parseCertificate,
  publicKeyOf,
  rememberSigner,
} from './certificate.ts';
import { CertificateCache } from './certificate-cache.ts';
import { KEY_USAGE } from './extensions.ts';
import { OID } from './oids.ts';

/** Leaf and intermediates as sent. */
const MAX_CHAIN_LENGTH = 5;
/** Authorities of one bundle that are looked at. */
const MAX_AUTHORITIES = 64;

export interface VerifiedSvid {
  readonly spiffeId: SpiffeId;
  readonly leaf: Certificate;
  /** As it was shown: the leaf and what came with it. */
  readonly chain: readonly Certificate[];
  /** Unix ms: the least notAfter of the path, its trust anchor included. The verdict holds no longer. */
  readonly validUntilMs: number;
  /** As RevocationSubject.authorities: of the path, its trust anchor included. The same array for the same signers. */
  readonly authorities: readonly string[];
}

type Refusal = ReasonCode | undefined;

/** Only what verified, so that garbage cannot push out what is in use. */
const svids = new CertificateCache(1024);
const authorities = new CertificateCache(1024);
/** Parsed, proven by nothing: bridges the moment between an authenticator's signature and its chain. Small, as anybody can fill it. */
const unproven = new CertificateCache(64);
/** By the very buffer that a certificate was parsed from, which nobody else writes to: spares the digest. */
const byOwnDer = new WeakMap<Buffer, Certificate>();

/**
 * @param chain DER, leaf first, each followed by its issuer; the root may be left out or sent.
 * @param bundle of the trust domain the caller expects the SVID in.
 */
export function verifyX509Svid(
  chain: readonly Buffer[],
  bundle: TrustBundle,
  nowMs: number,
): Result<VerifiedSvid, ReasonCode> {
  const parsed = parseChain(chain);
  if (!parsed.ok) return parsed;
  const certificates = parsed.value;
  const leaf = certificates[0]!;

  const refusal = checkOneLeaf(certificates, bundle);
  if (refusal !== undefined) return err(refusal);
  const path = rememberedPath(certificates, bundle, nowMs) ?? findPath(certificates, bundle);
  if (!path.ok) return path;
  const pathRefusal = checkValidity(path.value, nowMs);
  if (pathRefusal !== undefined) return err(pathRefusal);

  // what was sent besides is not proven; the anchor has a cache of its own
  for (const certificate of path.value.slice(0, -1)) svids.add(certificate);
  const validUntilMs = Math.min(...path.value.map((certificate) => certificate.notAfterMs));
  return ok({ spiffeId: leaf.spiffeId!, leaf, chain: certificates, validUntilMs, authorities: signersOf(path.value) });
}

/** Steps 3 to 6. */
function findPath(
  certificates: readonly Certificate[],
  bundle: TrustBundle,
): Result<readonly Certificate[], ReasonCode> {
  const leaf = certificates[0]!;
  const refusal = checkLeafIdentity(leaf) ?? checkLeafUsage(leaf) ?? checkTrustDomain(leaf, bundle.trustDomain);
  if (refusal !== undefined) return err(refusal);
  const path = buildPath(certificates, bundle);
  if (path.ok) paths.set(leaf, { chain: certificates, trustDomain: bundle.trustDomain, path: path.value });
  return path;
}

/** Lists of key identifiers, one copy of each: ten thousand proofs rest on a handful of authorities. */
const signerLists = new Map<string, readonly string[]>();
const MAX_SIGNER_LISTS = 256;

/**
 * Key identifiers of whoever signed a certificate of the chain, lower-case hex (RFC 5280, sections 4.2.1.1 and 4.2.1.2): what a revocation
 * of a signing key may name. Of a chain that was not verified it is what the chain says.
 */
export function signersOf(chain: readonly Certificate[]): readonly string[] {
  const own = chain.slice(1).flatMap(({ subjectKeyId }) => subjectKeyId ?? []);
  const named = chain.flatMap(({ authorityKeyId }) => authorityKeyId ?? []);
  const list = [...new Set([...own, ...named].map((id) => id.toString('hex')))].sort();
  const known = signerLists.get(list.join());
  if (known !== undefined) return known;
  if (signerLists.size >= MAX_SIGNER_LISTS) signerLists.clear();
  signerLists.set(list.join(), list);
  return list;
}

/** The last path of each leaf. */
const paths = new WeakMap<
  Certificate,
  { readonly chain: readonly Certificate[]; readonly trustDomain: TrustDomain; readonly path: readonly Certificate[] }
>();

/**
 * A path that these very certificates had before: steps 3 to 6 say of it what they said then, as long as its authority is one of the trust
 * domain's. All else in them is immutable. One that has ended is no longer of use: there may be another.
 */
function rememberedPath(certificates: readonly Certificate[], bundle: TrustBundle, nowMs: number) {
  const known = paths.get(certificates[0]!);
  if (known === undefined || known.trustDomain !== bundle.trustDomain) return undefined;
  const { chain, path } = known;
  if (chain.length !== certificates.length || chain.some((one, i) => one !== certificates[i])) return undefined;
  if (checkValidity(path, nowMs) !== undefined) return undefined;
  const authority = path.at(-1)!.der;
  return bundle.authorities.slice(0, MAX_AUTHORITIES).some((der) => der.equals(authority)) ? ok(path) : undefined;
}

/** Step 1: there is a chain, it is short, and all of it is DER that RFC 5280 allows. */
function parseChain(chain: readonly Buffer[]): Result<Certificate[], ReasonCode> {
  if (chain.length === 0) return err('CERT_CHAIN_EMPTY');
  if (chain.length > MAX_CHAIN_LENGTH) return err('CERT_CHAIN_TOO_LONG');
  const certificates: Certificate[] = [];
  for (const der of chain) {
    const certificate = readChainCertificate(der);
    if (!certificate.ok) return certificate;
    certificates.push(certificate.value);
  }
  return ok(certificates);
}

/**
 * A certificate of a peer's chain, parsed once however often it is shown. CERT_MALFORMED as parseCertificate. It proves nothing: for
 * the key that an authenticator is to be checked with, before verifyX509Svid says whose it is.
 */
export function readChainCertificate(der: Buffer): Result<Certificate, ReasonCode> {
  if (der.length > MAX_CERTIFICATE_BYTES) return err('CERT_MALFORMED');
  const same = byOwnDer.get(der);
  if (same !== undefined) return ok(same);
  const digest = certificateDigest(der);
  const known = svids.get(digest) ?? unproven.get(digest);
  if (known !== undefined) return ok(known);
  const parsed = parseCertificate(der);
  if (parsed.ok) {
    unproven.add(parsed.value);
    byOwnDer.set(parsed.value.der, parsed.value);
  }
  return parsed;
}

/**
 * Step 2: the first certificate is an end entity and the only one. A peer is whom its first certificate names: a second leaf is
 * the attempt to be taken for another. What the bundle lists signs, and never authenticates (X.509-SVID, section 5.2).
 */
function checkOneLeaf(certificates: readonly Certificate[], bundle: TrustBundle): Refusal {
  const leaf = certificates[0]!;
  if (leaf.isCa || bundle.authorities.some((der) => der.equals(leaf.der))) return 'CERT_LEAF_IS_CA';
  return certificates.every((certificate, i) => i === 0 || certificate.isCa) ? undefined : 'CERT_CHAIN_SECOND_LEAF';
}

/** Step 3: exactly one URI SAN, and it is the SPIFFE ID of a workload or node (X.509-SVID, sections 2 and 5.2). */
function checkLeafIdentity(leaf: Certificate): Refusal {
  if (leaf.uriSanCount !== 1) return 'CERT_URI_SAN_COUNT';
  if (leaf.spiffeId === undefined) return 'CERT_SPIFFE_ID_INVALID';
  if (pathOf(leaf.spiffeId) === '') return 'CERT_NO_PATH';
  // RFC 5280, section 4.2.1.6: without a subject the SAN is the name and must not be passed over
  if (leaf.subjectIsEmpty && !leaf.subjectAltNameCritical) return 'CERT_MALFORMED';
  return undefined;
}

/** Step 4: the key may sign handshakes and nothing else (X.509-SVID, sections 4.3 and 4.4). */
function checkLeafUsage(leaf: Certificate): Refusal {
  const usage = leaf.keyUsage;
  if (usage === undefined || !leaf.keyUsageCritical) return 'CERT_KEY_USAGE';
  if ((usage & KEY_USAGE.digitalSignature) === 0) return 'CERT_KEY_USAGE';
  if ((usage & (KEY_USAGE.keyCertSign | KEY_USAGE.crlSign)) !== 0) return 'CERT_KEY_USAGE';
  const purposes = leaf.extKeyUsage;
  if (purposes !== undefined && !(purposes.includes(OID.serverAuth) && purposes.includes(OID.clientAuth))) {
    return 'CERT_EXT_KEY_USAGE';
  }
  return checkAnyCertificate(leaf);
}

/** Step 5: only the bundle of the SVID's own trust domain may vouch for it. */
function checkTrustDomain(leaf: Certificate, trustDomain: TrustDomain): Refusal {
  return trustDomainOf(leaf.spiffeId!) === trustDomain ? undefined : 'CERT_TRUST_DOMAIN';
}

/** What holds for each certificate of a path: everything critical is understood, key and algorithm are allowed. */
function checkAnyCertificate(certificate: Certificate): Refusal {
  if (certificate.unknownCritical !== undefined) return 'CERT_CRITICAL_EXTENSION';
  if (certificate.keyKind === undefined || certificate.signatureAlgorithm === undefined) return 'CERT_WEAK_KEY';
  return publicKeyOf(certificate) === undefined ? 'CERT_MALFORMED' : undefined;
}

/**
 * Step 6: from the leaf upwards, each certificate is signed by an authority of the bundle, which ends the path, or by the next one
 * of the chain, which must be a signing certificate itself. RFC 5280, section 6.1, with names compared as bytes.
 */
function buildPath(certificates: readonly Certificate[], bundle: TrustBundle): Result<Certificate[], ReasonCode> {
  const path = [certificates[0]!];
  for (let i = 0; ; i++) {
    const subject = certificates[i]!;
    const anchored = findAnchor(subject, path, bundle);
    if (anchored?.ok) return ok([...path, anchored.value]);
    const next = certificates[i + 1];
    if (next === undefined || !isNamedAsIssuerOf(next, subject)) return anchored ?? err('CERT_UNTRUSTED');
    const refusal = checkSigner(next, path, bundle.trustDomain) ?? checkLink(subject, next);
    if (refusal !== undefined) return err(refusal);
    path.push(next);
  }
}

/** The authority that signed `subject`, the refusal of the only ones that could have, or undefined if none is named as its issuer. */
function findAnchor(
  subject: Certificate,
  path: readonly Certificate[],
  bundle: TrustBundle,
): Result<Certificate, ReasonCode> | undefined {
  let refused: ReasonCode | undefined;
  for (const der of bundle.authorities.slice(0, MAX_AUTHORITIES)) {
    const authority = authorityOf(der);
    if (authority === undefined || !isNamedAsIssuerOf(authority, subject)) continue;
    const refusal = checkSigner(authority, path, bundle.trustDomain) ?? checkLink(subject, authority);
    if (refusal === undefined) return ok(authority);
    refused ??= refusal;
  }
  return refused === undefined ? undefined : err(refused);
}

/** An authority that does not parse vouches for nothing; the others of its bundle still do. */
function authorityOf(der: Buffer): Certificate | undefined {
  const cached = authorities.get(certificateDigest(der));
  if (cached !== undefined) return cached;
  const parsed = parseCertificate(der);
  if (!parsed.ok) return undefined;
  authorities.add(parsed.value);
  return parsed.value;
}

/** By name and, where both tell, by key identifier (RFC 5280, section 4.2.1.1): several keys may share a name during a rotation. */
function isNamedAsIssuerOf(issuer: Certificate, subject: Certificate): boolean {
  if (!issuer.subjectDer.equals(subject.issuerDer)) return false;
  const wanted = subject.authorityKeyId;
  return wanted === undefined || issuer.subjectKeyId === undefined || issuer.subjectKeyId.equals(wanted);
}

/** A certificate that signs (RFC 5280, section 6.1.4 k to n; X.509-SVID, sections 3 and 4). `below` is the path from the leaf up to it. */
function checkSigner(signer: Certificate, below: readonly Certificate[], trustDomain: TrustDomain): Refusal {
  if (!signer.isCa) return 'CERT_ISSUER_NOT_CA';
  if (signer.keyUsage === undefined || (signer.keyUsage & KEY_USAGE.keyCertSign) === 0) return 'CERT_ISSUER_NOT_CA';
  const purposes = signer.extKeyUsage;
  if (purposes !== undefined && !permitsBothPurposes(purposes)) return 'CERT_EXT_KEY_USAGE';
  // name constraints are not evaluated, so a signer that carries some may not sign for us, be they critical or not
  if (signer.hasNameConstraints) return 'CERT_NAME_CONSTRAINT';
  if (signer.pathLength !== undefined) {
    const intermediates = below.filter((c, i) => i > 0 && !c.subjectDer.equals(c.issuerDer)).length;
    if (intermediates > signer.pathLength) return 'CERT_PATH_LENGTH';
  }
  return checkSignerIdentity(signer, trustDomain) ?? checkAnyCertificate(signer);
}

function permitsBothPurposes(purposes: readonly string[]): boolean {
  if (purposes.includes(OID.anyExtendedKeyUsage)) return true;
  return purposes.includes(OID.serverAuth) && purposes.includes(OID.clientAuth);
}

/** X.509-SVID, section 3: a signing certificate need not have a SPIFFE ID; one that it has is that of the trust domain itself. */
function checkSignerIdentity(signer: Certificate, trustDomain: TrustDomain): Refusal {
  if (signer.uriSanCount === 0) return undefined;
  if (signer.uriSanCount > 1) return 'CERT_URI_SAN_COUNT';
  if (signer.spiffeId === undefined || pathOf(signer.spiffeId) !== '') return 'CERT_SPIFFE_ID_INVALID';
  return trustDomainOf(signer.spiffeId) === trustDomain ? undefined : 'CERT_TRUST_DOMAIN';
}

/** The signature of one link. Checked once per pair of certificates. */
function checkLink(subject: Certificate, issuer: Certificate): Refusal {
  if (hasSigner(subject, issuer)) return undefined;
  const { signatureAlgorithm, tbs, signature } = subject;
  if (signatureAlgorithm === undefined || issuer.keyKind === undefined) return 'CERT_WEAK_KEY';
  if (!verifySignature(signatureAlgorithm, issuer.keyKind, issuer.publicKey, tbs, signature))
    return 'CERT_BAD_SIGNATURE';
  rememberSigner(subject, issuer);
  return undefined;
}

/** Step 7: every certificate of the path is valid now. Never cached. */
function checkValidity(path: readonly Certificate[], nowMs: number): Refusal {
  for (const certificate of path) {
    if (nowMs < certificate.notBeforeMs) return 'CERT_NOT_YET_VALID';
    if (nowMs > certificate.notAfterMs) return 'CERT_EXPIRED';
  }
  return undefined;
}
