/**
 * Exported authenticators (RFC 9261, section 5): Certificate, CertificateVerify and Finished, bound to one TLS
 * connection by its exporter and to one request by the transcript. Pure: octets in, octets or a reason out.
 */
import { sign, verify } from 'node:crypto';
import { err, ok, type Result } from '../../base/errors.ts';
import type { ReasonCode } from '../../base/registry/reason-codes.ts';
import type { ChannelRole } from '../../channel/peer-channel.ts';
import type { Svid } from '../../model/identity.ts';
import { publicKeyOf } from '../../pki/certificate.ts';
import { readChainCertificate } from '../../pki/verify.ts';
import { type AuthenticatorHash, HASH_LENGTH } from './finished-key.ts';
import type { AuthenticatorKeys, SenderKeys } from './keys.ts';
import { type AuthenticatorRequest, parseRequest } from './request.ts';
import { SIGNATURE_SCHEMES, type SignatureScheme } from './schemes.ts';
import { Transcript } from './transcript.ts';
import { HANDSHAKE_HEADER_OCTETS, HANDSHAKE_TYPE, lengthField, WireError, WireReader } from './wire.ts';

/** It must fit into one peer frame with what surrounds it. */
export const MAX_AUTHENTICATOR_OCTETS = 32_768;
const MAX_CHAIN = 8;

/**
 * What a verified authenticator says. There is no way to a chain but through here: the holder of the leaf's key is the
 * peer of this very channel, answering this very request. Whether the chain may be trusted is the caller's to judge.
 */
export type AuthenticatorOutcome =
  | { readonly kind: 'proved'; readonly chain: readonly Buffer[] }
  /** An empty authenticator (section 6): an authenticated no. */
  | { readonly kind: 'refused' };

/**
 * Answers the peer's request with this SVID. AUTH_BAD_REQUEST if the request cannot be read or came from the wrong role;
 * AUTH_REFUSED if it accepts no signature scheme that the key can make (answer with createEmptyAuthenticator).
 */
export function createAuthenticator(keys: AuthenticatorKeys, request: Buffer, svid: Svid): Result<Buffer, ReasonCode> {
  const asked = parseRequest(request, other(keys.role));
  if (!asked.ok) return asked;
  const scheme = chooseScheme(asked.value, svid);
  if (scheme === undefined) return err('AUTH_REFUSED');

  const transcript = new Transcript(keys.hash, keys.own).add(request);
  const start = transcript.length;
  addCertificate(transcript, asked.value.context, svid.chain);
  const signature = sign(scheme.hash, transcript.signedContent(), scheme.input(svid.privateKey));
  transcript.open(HANDSHAKE_TYPE.certificateVerify);
  transcript.uint(2, scheme.code).uint(2, signature.length).add(signature).close();
  const mac = transcript.finishedMac();
  transcript.open(HANDSHAKE_TYPE.finished).addDigest(mac).close();
  const authenticator = transcript.since(start);
  if (authenticator.length > MAX_AUTHENTICATOR_OCTETS) return err('CERT_CHAIN_TOO_LONG');
  return ok(authenticator);
}

/**
 * Refuses the peer's request under the channel's own authentication (section 6): a Finished over a Certificate message
 * without entries, which is not sent. AUTH_BAD_REQUEST if the request cannot be read.
 */
export function createEmptyAuthenticator(keys: AuthenticatorKeys, request: Buffer): Result<Buffer, ReasonCode> {
  const asked = parseRequest(request, other(keys.role));
  if (!asked.ok) return asked;
  const transcript = emptyTranscript(keys.hash, keys.own, asked.value);
  const mac = transcript.finishedMac();
  const start = transcript.length;
  return ok(transcript.open(HANDSHAKE_TYPE.finished).addDigest(mac).close().since(start));
}

/**
 * Verifies the peer's answer to `request`, which this side made. In this order: the messages are well formed and echo
 * the request's context (AUTH_BAD_AUTHENTICATOR), Finished (AUTH_BAD_FINISHED: another channel, request or sender, or
 * altered), the leaf can be read (CERT_MALFORMED, CERT_WEAK_KEY), CertificateVerify (AUTH_BAD_SIGNATURE).
 * Does not judge the chain, and does not remember: RequestLedger makes an answer count once.
 */
export function verifyAuthenticator(
  keys: AuthenticatorKeys,
  request: Buffer,
  authenticator: Buffer,
): Result<AuthenticatorOutcome, ReasonCode> {
  const asked = parseRequest(request, keys.role);
  return asked.ok ? verifyAnswer(keys, asked.value, authenticator) : asked;
}

/** verifyAuthenticator for a request that was read already. */
export function verifyAnswer(
  keys: AuthenticatorKeys,
  asked: AuthenticatorRequest,
  authenticator: Buffer,
): Result<AuthenticatorOutcome, ReasonCode> {
  const parsed = parseAuthenticator(authenticator, asked.context, HASH_LENGTH[keys.hash]);
  if (parsed === undefined) return err('AUTH_BAD_AUTHENTICATOR');

  if (parsed.kind === 'empty') {
    const transcript = emptyTranscript(keys.hash, keys.peer, asked);
    return transcript.isFinishedMac(parsed.finished) ? ok({ kind: 'refused' }) : err('AUTH_BAD_FINISHED');
  }

  const transcript = new Transcript(keys.hash, keys.peer).add(asked.octets).add(parsed.certificate);
  const content = transcript.signedContent();
  if (!transcript.add(parsed.certificateVerify).isFinishedMac(parsed.finished)) return err('AUTH_BAD_FINISHED');

  const leaf = readChainCertificate(parsed.chain[0]!);
  if (!leaf.ok) return leaf;
  const key = publicKeyOf(leaf.value);
  if (key === undefined) return err('CERT_WEAK_KEY');
  const scheme = SIGNATURE_SCHEMES.find(({ code }) => code === parsed.scheme);
  if (scheme === undefined || !asked.schemes.includes(scheme.code) || !scheme.fits(key)) {
    return err('AUTH_BAD_SIGNATURE');
  }
  if (!verify(scheme.hash, content, scheme.input(key), parsed.signature)) return err('AUTH_BAD_SIGNATURE');
  // Copies: the chain outlives the frame it came in. The leaf's is the one that was parsed.
  const [, ...above] = parsed.chain;
  return ok({ kind: 'proved', chain: [leaf.value.der, ...above.map((der) => Buffer.from(der))] });
}

function other(role: ChannelRole): ChannelRole {
  return role === 'client' ? 'server' : 'client';
}

/** The requester's preference decides (RFC 9261, section 5.2.2). */
function chooseScheme(asked: AuthenticatorRequest, svid: Svid): SignatureScheme | undefined {
  for (const code of asked.schemes) {
    const scheme = SIGNATURE_SCHEMES.find((known) => known.code === code);
    if (scheme?.fits(svid.privateKey)) return scheme;
  }
  return undefined;
}

const NO_EXTENSIONS = lengthField(2, 0);

/** RFC 8446, section 4.4.2. No CertificateEntry carries extensions: our requests offer none that could stand there. */
function addCertificate(transcript: Transcript, context: Buffer, chain: readonly Buffer[]): void {
  transcript.open(HANDSHAKE_TYPE.certificate);
  transcript.uint(1, context.length).add(context).add(certificateList(chain)).close();
}

const certificateLists = new WeakMap<readonly Buffer[], Buffer>();

/** certificate_list with its length; the same for every authenticator of an SVID. */
function certificateList(chain: readonly Buffer[]): Buffer {
  let list = certificateLists.get(chain);
  if (list === undefined) {
    const entries = Buffer.concat(chain.flatMap((der) => [lengthField(3, der.length), der, NO_EXTENSIONS]));
    list = Buffer.concat([lengthField(3, entries.length), entries]);
    certificateLists.set(chain, list);
  }
  return list;
}

const NO_ENTRIES: readonly Buffer[] = [];

/** Section 6: over a Certificate message without entries, which does not travel. */
function emptyTranscript(hash: AuthenticatorHash, sender: SenderKeys, asked: AuthenticatorRequest): Transcript {
  const transcript = new Transcript(hash, sender).add(asked.octets);
  addCertificate(transcript, asked.context, NO_ENTRIES);
  return transcript;
}

type ParsedAuthenticator =
  | { readonly kind: 'empty'; readonly finished: Buffer }
  | {
      readonly kind: 'full';
      readonly chain: readonly Buffer[];
      readonly scheme: number;
      readonly signature: Buffer;
      readonly certificate: Buffer;
      readonly certificateVerify: Buffer;
      readonly finished: Buffer;
    };

/** Not exported: nobody gets at an unproven chain. undefined: malformed, or it answers another request. */
function parseAuthenticator(octets: Buffer, context: Buffer, macLength: number): ParsedAuthenticator | undefined {
  if (octets.length > MAX_AUTHENTICATOR_OCTETS) return undefined;
  try {
    const reader = new WireReader(octets);
    if (octets[0] === HANDSHAKE_TYPE.finished) return { kind: 'empty', finished: readFinished(reader, macLength) };
    const certificate = reader.message(HANDSHAKE_TYPE.certificate);
    const certificateVerify = reader.message(HANDSHAKE_TYPE.certificateVerify);
    const finished = readFinished(reader, macLength);
    const chain = readCertificate(certificate, context);
    const scheme = certificateVerify.uint(2);
    const signature = certificateVerify.vector(2, 1);
    certificateVerify.end();
    return {
      kind: 'full',
      chain,
      scheme,
      signature,
      certificate: certificate.octets(HANDSHAKE_HEADER_OCTETS),
      certificateVerify: certificateVerify.octets(HANDSHAKE_HEADER_OCTETS),
      finished,
    };
  } catch (thrown) {
    if (thrown instanceof WireError) return undefined;
    throw thrown;
  }
}

function readFinished(reader: WireReader, macLength: number): Buffer {
  const body = reader.message(HANDSHAKE_TYPE.finished);
  reader.end();
  if (body.length !== macLength) throw new WireError('a Finished of another length');
  return body.octets();
}

function readCertificate(body: WireReader, context: Buffer): Buffer[] {
  if (!body.nested(1).equals(context)) throw new WireError('another certificate_request_context');
  const list = body.nested(3);
  body.end();
  const chain: Buffer[] = [];
  while (!list.done) {
    chain.push(list.vector(3, 1));
    // RFC 9261, section 5.2.1: only extensions that the request offered. It offered none for a CertificateEntry.
    if (list.uint(2) !== 0) throw new WireError('an extension that was not offered');
    if (chain.length > MAX_CHAIN) throw new WireError('too many certificates');
  }
  if (chain.length === 0) throw new WireError('no certificate: a refusal is a Finished alone');
  return chain;
}
