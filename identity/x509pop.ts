/**
 * Node attestation by a certificate that the operator's own authority gave the node: its chain is judged by RFC 5280, section 6.1,
 * the node answers a challenge with its key, and the certificate says what the node is called.
 */
import { statSync } from 'node:fs';
import { status } from '@grpc/grpc-js';
import type { Clock } from '../src/base/clock.ts';
import { asError, CountersignError, err, ok, type Result } from '../src/base/errors.ts';
import { readPublicFile } from '../src/base/private-file.ts';
import type { ReasonCode } from '../src/base/registry/reason-codes.ts';
import type { NodeName } from '../src/model/ids.ts';
import { verifySignature } from '../src/pki/algorithms.ts';
import { type Certificate, parseCertificate, publicKeyOf } from '../src/pki/certificate.ts';
import { type DerReader, readDer, TAG } from '../src/pki/der.ts';
import { KEY_USAGE } from '../src/pki/extensions.ts';
import { OID, oidNames } from '../src/pki/oids.ts';
import { decodePem } from '../src/pki/pem.ts';
import { createNonce, parsePayload, verifyAnswer, X509POP } from '../src/pki/x509pop.ts';
import type { NodeAttestor } from './attest.ts';
import type { Nodes } from './nodes.ts';
import { Refusal } from './refusal.ts';

const MAX_BUNDLE_BYTES = 256 << 10;
const MAX_NAME_BYTES = 8192;
/** What `openssl x509 -req` makes without extensions is of version 1. */
const NEEDED = 'each certificate must be of X.509 version 3; give it at least one extension, such as its key usage';

export interface X509PopConfig {
  /** PEM: the authorities whose certificates let a node in. Read anew when the file changes. */
  readonly caFile: string;
  /** Which name of the certificate is the node's: the subject's common name, or its only DNS name. */
  readonly nodeName: 'common-name' | 'dns-name';
  /** What the name in the certificate ends in after a dot, besides the node's name. */
  readonly domain?: string | undefined;
  /** May a node that has attested so attest again? Its earlier certificate is barred then. */
  readonly reattest: 'allow' | 'never';
}

export interface X509PopOptions {
  readonly config: X509PopConfig;
  readonly nodes: Pick<Nodes, 'node' | 'spiffeIdOf'>;
  readonly clock: Clock;
}

/** @throws CountersignError bad-input if the file of authorities cannot be read. */
export function x509popAttestor({ config, nodes, clock }: X509PopOptions): NodeAttestor {
  const authorities = authoritiesOf(config.caFile);
  authorities();
  return {
    type: X509POP,
    async verify(name, { payload, csr }, challenge) {
      const refused = (reason: ReasonCode, advice?: string) => new Refusal(reason, status.UNAUTHENTICATED, advice);
      // 1. The chain ends in an authority of the configuration, and it is this node's.
      const chain = parsePayload(payload);
      if (chain === undefined) throw refused('ATTEST_PROOF_INVALID');
      const leaf = verifyChain(chain, authorities(), clock.nowMs());
      if (!leaf.ok) throw refused(leaf.error, leaf.error === 'CERT_MALFORMED' ? NEEDED : undefined);
      if (nameIn(leaf.value, config) !== name) throw refused('ATTEST_PROOF_INVALID');
      // 2. Whoever asks holds the certificate's key, now and for this request.
      const question = createNonce();
      const answer = await challenge(question);
      const claim = { node: nodes.spiffeIdOf(name), csr };
      if (!verifyAnswer(question, answer, claim, leaf.value.publicKey, leaf.value.keyKind!)) {
        throw refused('ATTEST_PROOF_INVALID');
      }
      // 3. It has not done so before, if once is all it may.
      const known = nodes.node(name);
      if (config.reattest === 'never' && known?.attestor === X509POP && !known.evicted) {
        throw new Refusal('ATTEST_ONCE_ONLY', status.ALREADY_EXISTS, `evict it first: countersign node evict ${name}`);
      }
      return { consume: () => true };
    },
  };
}

/** The file's certificates, parsed once as long as it stays as it is. */
function authoritiesOf(path: string): () => readonly Certificate[] {
  let known: { stamp: string; certificates: readonly Certificate[] } | undefined;
  return () => {
    try {
      const { mtimeMs, size, ino } = statSync(path);
      const stamp = `${mtimeMs} ${size} ${ino}`;
      if (known?.stamp !== stamp) {
        const ders = decodePem(readPublicFile(path, MAX_BUNDLE_BYTES).toString('utf8'), 'CERTIFICATE');
        const certificates = ders.map((der, i) => {
          const parsed = parseCertificate(der);
          if (!parsed.ok || !parsed.value.isCa) {
            throw new CountersignError('bad-input', `certificate ${i + 1} is not that of an authority; remove it`);
          }
          return parsed.value;
        });
        known = { stamp, certificates };
      }
      return known.certificates;
    } catch (thrown) {
      const message = `attestors.x509pop.caFile: ${path}: ${asError(thrown).message}`;
      throw new CountersignError('bad-input', message, { cause: thrown });
    }
  };
}

/** The leaf, if its path is valid now (RFC 5280, section 6.1). Names are compared as bytes; name constraints are refused, not evaluated. */
export function verifyChain(
  ders: readonly Buffer[],
  anchors: readonly Certificate[],
  nowMs: number,
): Result<Certificate, ReasonCode> {
  const chain: Certificate[] = [];
  for (const der of ders) {
    const parsed = parseCertificate(der);
    if (!parsed.ok) return parsed;
    chain.push(parsed.value);
  }
  const leaf = chain[0];
  if (leaf === undefined) return err('CERT_CHAIN_EMPTY');
  const usage = leaf.keyUsage ?? KEY_USAGE.digitalSignature;
  if (leaf.isCa) return err('CERT_LEAF_IS_CA');
  if ((usage & KEY_USAGE.digitalSignature) === 0) return err('CERT_KEY_USAGE');
  const purposes = leaf.extKeyUsage ?? [OID.clientAuth];
  if (!purposes.includes(OID.clientAuth) && !purposes.includes(OID.anyExtendedKeyUsage)) {
    return err('CERT_EXT_KEY_USAGE');
  }
  for (const [i, subject] of chain.entries()) {
    const refusal = checkAny(subject, nowMs);
    if (refusal !== undefined) return err(refusal);
    const anchor = anchors.find((candidate) => isIssuer(candidate, subject, i, nowMs));
    if (anchor !== undefined) return ok(leaf);
    const next = chain[i + 1];
    if (next === undefined || !isIssuer(next, subject, i, nowMs)) return err('CERT_UNTRUSTED');
  }
  return err('CERT_UNTRUSTED');
}

/** What holds for each certificate of a path. */
function checkAny(certificate: Certificate, nowMs: number): ReasonCode | undefined {
  if (nowMs < certificate.notBeforeMs) return 'CERT_NOT_YET_VALID';
  if (nowMs > certificate.notAfterMs) return 'CERT_EXPIRED';
  if (certificate.unknownCritical !== undefined) return 'CERT_CRITICAL_EXTENSION';
  if (certificate.keyKind === undefined || certificate.signatureAlgorithm === undefined) return 'CERT_WEAK_KEY';
  return publicKeyOf(certificate) === undefined ? 'CERT_MALFORMED' : undefined;
}

/** May it have signed, and did it? @param below intermediates between it and the leaf. */
function isIssuer(issuer: Certificate, subject: Certificate, below: number, nowMs: number): boolean {
  if (!issuer.subjectDer.equals(subject.issuerDer)) return false;
  const wanted = subject.authorityKeyId;
  if (wanted !== undefined && issuer.subjectKeyId !== undefined && !issuer.subjectKeyId.equals(wanted)) return false;
  if (!issuer.isCa || (issuer.keyUsage !== undefined && (issuer.keyUsage & KEY_USAGE.keyCertSign) === 0)) return false;
  if (issuer.hasNameConstraints || (issuer.pathLength !== undefined && below > issuer.pathLength)) return false;
  if (checkAny(issuer, nowMs) !== undefined) return false;
  const { signatureAlgorithm, tbs, signature } = subject;
  return verifySignature(signatureAlgorithm!, issuer.keyKind!, issuer.publicKey, tbs, signature);
}

/** The node's name by the configured rule; undefined: the certificate has not exactly one such name, or not in the domain. */
export function nameIn(
  leaf: Certificate,
  { nodeName, domain }: Pick<X509PopConfig, 'nodeName' | 'domain'>,
): NodeName | undefined {
  const names = nodeName === 'dns-name' ? leaf.dnsNames : commonNames(leaf.subjectDer);
  const [name] = names;
  if (name === undefined || names.length > 1) return undefined;
  if (domain === undefined) return name as NodeName;
  return name.endsWith(`.${domain}`) ? (name.slice(0, -domain.length - 1) as NodeName) : undefined;
}

function commonNames(subjectDer: Buffer): string[] {
  const read = readDer(subjectDer, MAX_NAME_BYTES, (reader) => {
    const names: string[] = [];
    const rdns = reader.enter(TAG.sequence);
    while (!rdns.atEnd) {
      const set = rdns.enter(TAG.set);
      while (!set.atEnd) readAttribute(set.enter(TAG.sequence), names);
    }
    return names;
  });
  return read.ok ? read.value : [];
}

/** Of a common name only what is ASCII: a node's name is. */
function readAttribute(attribute: DerReader, names: string[]): void {
  const type = oidNames.get(attribute.oid());
  const tag = attribute.peek();
  if (type !== 'commonName') {
    attribute.skip();
    return;
  }
  const PRINTABLE_STRING = 0x13;
  names.push(tag === TAG.utf8String || tag === PRINTABLE_STRING ? attribute.content(tag).toString('latin1') : '');
}
