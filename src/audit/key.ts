/**
 * The log's own signing key, and its certification by the node: a signature over the verifier key with the node SVID's key,
 * so that an auditor needs nothing but the trust bundle to know whose log it is.
 */
import { createPrivateKey, createPublicKey, generateKeyPairSync, type KeyObject, verify } from 'node:crypto';
import { existsSync, readFileSync, renameSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { CountersignError, err, ok, type Result } from '../base/errors.ts';
import { reasonCodes } from '../base/registry/reason-codes.ts';
import type { TrustBundle } from '../model/identity.ts';
import { parseCertificate } from '../pki/certificate.ts';
import { verifyX509Svid } from '../pki/verify.ts';
import { KEY_CERT_FILE, SIGNING_KEY_FILE, VKEY_FILE } from './layout.ts';
import { encodeVkey, type NoteVerifier, noteVerifier } from './note.ts';

/** Keeps this signature apart from everything else a node SVID's key signs. */
const CERTIFY_CONTEXT = 'countersign audit log key v1\n';

/** Signs exactly these bytes with the node SVID's key (ECDSA, SHA-256, DER). `chain`: DER, leaf first. */
export type Certify = (bytes: Buffer) => { readonly chain: readonly Buffer[]; readonly signature: Buffer };

export interface LogKey {
  readonly verifier: NoteVerifier;
  readonly privateKey: KeyObject;
}

/** Reads the key, making it at the first start. @throws CountersignError permission-denied if others may read it. */
export function openLogKey(dir: string, origin: string): LogKey {
  const path = join(dir, SIGNING_KEY_FILE);
  if (!existsSync(path)) {
    const { privateKey } = generateKeyPairSync('ed25519');
    writeWhole(path, privateKey.export({ type: 'pkcs8', format: 'pem' }).toString());
  }
  if ((statSync(path).mode & 0o077) !== 0) {
    throw new CountersignError('permission-denied', `${path}: others may read the signing key; chmod 600 it`);
  }
  let privateKey: KeyObject;
  try {
    privateKey = createPrivateKey(readFileSync(path));
  } catch {
    throw new CountersignError('bad-input', `${path}: not a PEM private key; restore it from a backup`);
  }
  if (privateKey.asymmetricKeyType !== 'ed25519') {
    throw new CountersignError('bad-input', `${path}: not an Ed25519 key; restore it from a backup`);
  }
  const verifier = noteVerifier(origin, createPublicKey(privateKey));
  const vkey = `${encodeVkey(verifier)}\n`;
  const vkeyPath = join(dir, VKEY_FILE);
  if (!existsSync(vkeyPath)) {
    writeWhole(vkeyPath, vkey);
  } else if (readFileSync(vkeyPath, 'utf8') !== vkey) {
    throw new CountersignError(
      'bad-input',
      `${vkeyPath}: is of another key or origin than ${SIGNING_KEY_FILE} and "${origin}"; a log keeps both for life`,
    );
  }
  return { verifier, privateKey };
}

export function certifiedBytes(verifier: NoteVerifier): Buffer {
  return Buffer.from(`${CERTIFY_CONTEXT}${encodeVkey(verifier)}\n`);
}

/** Replaces the certification: a newer one is by the chain that the newest bundle verifies. */
export function writeKeyCertificate(dir: string, verifier: NoteVerifier, certify: Certify): void {
  const { chain, signature } = certify(certifiedBytes(verifier));
  const body = { chain: chain.map((der) => der.toString('base64')), signature: signature.toString('base64') };
  writeWhole(join(dir, KEY_CERT_FILE), `${JSON.stringify(body, null, 2)}\n`);
}

/** Whose key it is, as the bundle proves. An SVID outlives its log by design, so its time is that of the certification. */
export function verifyKeyCertificate(
  dir: string,
  verifier: NoteVerifier,
  bundle: TrustBundle,
  nowMs: number,
): Result<string, string> {
  const path = join(dir, KEY_CERT_FILE);
  if (!existsSync(path)) return err(`${KEY_CERT_FILE} is missing: nothing ties the signing key to a node`);
  const parsed = parseKeyCertificate(readFileSync(path, 'utf8'));
  if (parsed === undefined) return err(`${KEY_CERT_FILE} is malformed`);
  const leaf = parseCertificate(parsed.chain[0]!);
  if (!leaf.ok) return err(`${KEY_CERT_FILE}: ${reasonCodes[leaf.error]}`);
  const svid = verifyX509Svid(parsed.chain, bundle, Math.min(nowMs, leaf.value.notAfterMs));
  if (!svid.ok) return err(`${KEY_CERT_FILE}: ${reasonCodes[svid.error]}`);
  if (svid.value.spiffeId !== `spiffe://${verifier.name}`) {
    return err(`${KEY_CERT_FILE}: ${svid.value.spiffeId} certifies the log of ${verifier.name}, which is not its own`);
  }
  if (!verify('sha256', certifiedBytes(verifier), svid.value.leaf.publicKey, parsed.signature)) {
    return err(`${KEY_CERT_FILE}: the node's signature over the signing key does not verify`);
  }
  return ok(svid.value.spiffeId);
}

function parseKeyCertificate(text: string): { chain: Buffer[]; signature: Buffer } | undefined {
  if (text.length > 65536) return undefined;
  try {
    const body: unknown = JSON.parse(text);
    if (typeof body !== 'object' || body === null) return undefined;
    const { chain, signature } = body as { chain?: unknown; signature?: unknown };
    if (!Array.isArray(chain) || chain.length === 0 || typeof signature !== 'string') return undefined;
    if (!chain.every((c): c is string => typeof c === 'string')) return undefined;
    return { chain: chain.map((c) => Buffer.from(c, 'base64')), signature: Buffer.from(signature, 'base64') };
  } catch {
    return undefined;
  }
}

function writeWhole(path: string, content: string): void {
  writeFileSync(`${path}.tmp`, content, { mode: 0o600, flush: true });
  renameSync(`${path}.tmp`, path);
}
