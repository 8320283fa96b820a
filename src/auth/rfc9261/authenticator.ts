/**
 * Exported authenticators (RFC 9261, section 5): Certificate, CertificateVerify and Finished, bound to one TLS
 * connection by its exporter and to one request by the transcript. Pure: octets in, octets or a reason out.
 */
import { createHmac, hash as digest, sign, timingSafeEqual, verify } from 'node:crypto';
import { err, ok, type Result } from '../../base/errors.ts';
import type { ReasonCode } from '../../base/registry/reason-codes.ts';
import type { ChannelRole } from '../../channel/peer-channel.ts';
import type { Svid } from '../../model/identity.ts';
import { publicKeyOf } from '../../pki/certificate.ts';
import { readChainCertificate } from '../../pki/verify.ts';
import { type AuthenticatorHash, type AuthenticatorKeys, HASH_LENGTH, type SenderKeys } from './keys.ts';
import { type AuthenticatorRequest, parseRequest } from './request.ts';
import { SIGNATURE_SCHEMES, type SignatureScheme } from './schemes.ts';
import { HANDSHAKE_TYPE, handshakeMessage, lengthField, WireError, WireReader } from './wire.ts';

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

  const certificate = certificateMessage(asked.value.context, svid.chain);
  const transcript = Buffer.concat([keys.own.handshakeContext, request, certificate]);
  const content = signedContent(digest(keys.hash, transcript, 'buffer'));
  const signature = sign(scheme.hash, content, scheme.input(svid.privateKey));
  const certificateVerify = handshakeMessage(
    HANDSHAKE_TYPE.certificateVerify,
    lengthField(2, scheme.code),
    lengthField(2, signature.length),
    signature,
  );
  const finished = finishedMac(keys.hash, keys.own, Buffer.concat([transcript, certificateVerify]));
  const authenticator = Buffer.concat([
    certificate,
    certificateVerify,
    handshakeMessage(HANDSHAKE_TYPE.finished, finished),
  ]);
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
  return ok(handshakeMessage(HANDSHAKE_TYPE.finished, emptyMac(keys.hash, keys.own, asked.value)));
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
  if (!asked.ok) return asked;
  const parsed = parseAuthenticator(authenticator, asked.value.context, HASH_LENGTH[keys.hash]);
  if (parsed === undefined) return err('AUTH_BAD_AUTHENTICATOR');

  if (parsed.kind === 'empty') {
    const expected = emptyMac(keys.hash, keys.peer, asked.value);
    return timingSafeEqual(expected, parsed.finished) ? ok({ kind: 'refused' }) : err('AUTH_BAD_FINISHED');
  }

  const transcript = Buffer.concat([keys.peer.handshakeContext, request, parsed.certificate]);
  const expected = finishedMac(keys.hash, keys.peer, Buffer.concat([transcript, parsed.certificateVerify]));
  if (!timingSafeEqual(expected, parsed.finished)) return err('AUTH_BAD_FINISHED');

  const leaf = readChainCertificate(parsed.chain[0]!);
  if (!leaf.ok) return leaf;
  const key = publicKeyOf(leaf.value);
  if (key === undefined) return err('CERT_WEAK_KEY');
  const scheme = SIGNATURE_SCHEMES.find(({ code }) => code === parsed.scheme);
  if (scheme === undefined || !asked.value.schemes.includes(scheme.code) || !scheme.fits(key)) {
    return err('AUTH_BAD_SIGNATURE');
  }
  const content = signedContent(digest(keys.hash, transcript, 'buffer'));
  if (!verify(scheme.hash, content, scheme.input(key), parsed.signature)) return err('AUTH_BAD_SIGNATURE');
  return ok({ kind: 'proved', chain: parsed.chain });
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
function certificateMessage(context: Buffer, chain: readonly Buffer[]): Buffer {
  const entries = chain.flatMap((der) => [lengthField(3, der.length), der, NO_EXTENSIONS]);
  const length = entries.reduce((sum, part) => sum + part.length, 0);
  const { certificate } = HANDSHAKE_TYPE;
  return handshakeMessage(certificate, lengthField(1, context.length), context, lengthField(3, length), ...entries);
}

/** RFC 9261, section 5.2.2: 64 octets of 0x20, the context string, one zero octet, the hashed transcript. */
const signedPrefix = Buffer.concat([Buffer.alloc(64, 0x20), Buffer.from('Exported Authenticator\0', 'ascii')]);

function signedContent(transcriptHash: Buffer): Buffer {
  return Buffer.concat([signedPrefix, transcriptHash]);
}

/** RFC 9261, section 5.2.3. */
function finishedMac(hash: AuthenticatorHash, sender: SenderKeys, transcript: Buffer): Buffer {
  return createHmac(hash, sender.finishedKey)
    .update(digest(hash, transcript, 'buffer'))
    .digest();
}

function emptyMac(hash: AuthenticatorHash, sender: SenderKeys, asked: AuthenticatorRequest): Buffer {
  const transcript = Buffer.concat([sender.handshakeContext, asked.octets, certificateMessage(asked.context, [])]);
  return finishedMac(hash, sender, transcript);
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
    const chain = readCertificate(certificate.body, context);
    const body = new WireReader(certificateVerify.body);
    const scheme = body.uint(2);
    const signature = body.vector(2, 1);
    body.end();
    return {
      kind: 'full',
      chain,
      scheme,
      signature,
      certificate: certificate.octets,
      certificateVerify: certificateVerify.octets,
      finished,
    };
  } catch (thrown) {
    if (thrown instanceof WireError) return undefined;
    throw thrown;
  }
}

function readFinished(reader: WireReader, macLength: number): Buffer {
  const { body } = reader.message(HANDSHAKE_TYPE.finished);
  reader.end();
  if (body.length !== macLength) throw new WireError('a Finished of another length');
  return body;
}

function readCertificate(body: Buffer, context: Buffer): Buffer[] {
  const reader = new WireReader(body);
  if (!reader.vector(1).equals(context)) throw new WireError('another certificate_request_context');
  const list = new WireReader(reader.vector(3));
  reader.end();
  const chain: Buffer[] = [];
  while (!list.done) {
    // A copy: the chain outlives the frame it came in.
    chain.push(Buffer.from(list.vector(3, 1)));
    // RFC 9261, section 5.2.1: only extensions that the request offered. It offered none for a CertificateEntry.
    if (list.vector(2).length !== 0) throw new WireError('an extension that was not offered');
    if (chain.length > MAX_CHAIN) throw new WireError('too many certificates');
  }
  if (chain.length === 0) throw new WireError('no certificate: a refusal is a Finished alone');
  return chain;
}
