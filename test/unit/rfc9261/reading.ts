/**
 * A second reading of RFC 9261 and of the RFC 8446 messages it uses, written from their text with node:crypto alone. It shares
 * no line with src/auth/rfc9261, so that what both agree on is what the RFC says and not a mistake made once.
 */
import { createHash, createHmac, createSign, createVerify, type KeyObject, X509Certificate } from 'node:crypto';
import type { TLSSocket } from 'node:tls';

export type Role = 'client' | 'server';

/** Section 5.1. */
export function exported(socket: TLSSocket, sender: Role, what: 'handshake context' | 'finished key'): Buffer {
  const length = socket.getCipher().name.endsWith('384') ? 48 : 32;
  return socket.exportKeyingMaterial(length, `EXPORTER-${sender} authenticator ${what}`, Buffer.alloc(0));
}

export function hashName(socket: TLSSocket): string {
  return socket.getCipher().name.endsWith('384') ? 'sha384' : 'sha256';
}

const u8 = (n: number) => Buffer.from([n]);
const u16 = (n: number) => Buffer.from([n >> 8, n & 255]);
const u24 = (n: number) => Buffer.from([n >> 16, (n >> 8) & 255, n & 255]);
/** RFC 8446, section 4: msg_type, uint24 length, body. */
export const handshake = (type: number, body: Buffer) => Buffer.concat([u8(type), u24(body.length), body]);
export const opaque8 = (data: Buffer) => Buffer.concat([u8(data.length), data]);
export const opaque16 = (data: Buffer) => Buffer.concat([u16(data.length), data]);
export const opaque24 = (data: Buffer) => Buffer.concat([u24(data.length), data]);
export const extension = (type: number, data: Buffer) => Buffer.concat([u16(type), opaque16(data)]);
export const signatureAlgorithms = (codes: readonly number[]) => extension(13, opaque16(Buffer.concat(codes.map(u16))));

/** Section 4: certificate_request (13) from a server, client_certificate_request (17) from a client. */
export function request(requester: Role, context: Buffer, extensions: Buffer): Buffer {
  return handshake(requester === 'server' ? 13 : 17, Buffer.concat([opaque8(context), opaque16(extensions)]));
}

export interface Entry {
  readonly der: Buffer;
  readonly extensions?: Buffer;
}

/** RFC 8446, section 4.4.2. */
export function certificate(context: Buffer, entries: readonly Entry[]): Buffer {
  const list = entries.map(({ der, extensions }) =>
    Buffer.concat([opaque24(der), opaque16(extensions ?? Buffer.alloc(0))]),
  );
  return handshake(11, Buffer.concat([opaque8(context), opaque24(Buffer.concat(list))]));
}

export interface Making {
  readonly socket: TLSSocket;
  readonly sender: Role;
  readonly request: Buffer;
  readonly context: Buffer;
  readonly entries: readonly Entry[];
  readonly key: KeyObject;
  readonly code: number;
  readonly hash: string;
  /** For a wrong one. */
  readonly contextString?: string;
  readonly signWith?: { readonly padding: number; readonly saltLength: number };
}

/** Section 5.2. */
export function authenticator(making: Making): Buffer {
  const { socket, sender, entries, key } = making;
  const digest = (data: Buffer) => createHash(hashName(socket)).update(data).digest();
  const handshakeContext = exported(socket, sender, 'handshake context');
  const certificateMessage = certificate(making.context, entries);
  const covered = Buffer.concat([
    Buffer.from(' '.repeat(64)),
    Buffer.from(making.contextString ?? 'Exported Authenticator'),
    u8(0),
    digest(Buffer.concat([handshakeContext, making.request, certificateMessage])),
  ]);
  const signature = createSign(making.hash)
    .update(covered)
    .sign({ key, ...making.signWith });
  const verifyMessage = handshake(15, Buffer.concat([u16(making.code), opaque16(signature)]));
  return Buffer.concat([
    certificateMessage,
    verifyMessage,
    finished(socket, sender, Buffer.concat([making.request, certificateMessage, verifyMessage])),
  ]);
}

/** Section 6. */
export function emptyAuthenticator(socket: TLSSocket, sender: Role, asked: Buffer, context: Buffer): Buffer {
  return finished(socket, sender, Buffer.concat([asked, certificate(context, [])]));
}

/** Section 5.2.3, over what follows the Handshake Context. */
export function finished(socket: TLSSocket, sender: Role, messages: Buffer): Buffer {
  const name = hashName(socket);
  const transcript = createHash(name)
    .update(exported(socket, sender, 'handshake context'))
    .update(messages)
    .digest();
  return handshake(
    20,
    createHmac(name, exported(socket, sender, 'finished key'))
      .update(transcript)
      .digest(),
  );
}

/** Takes an authenticator apart and checks each part; returns the chain, or throws with the section that is broken. */
export function check(socket: TLSSocket, sender: Role, asked: Buffer, answer: Buffer): Buffer[] {
  const messages: { type: number; body: Buffer; whole: Buffer }[] = [];
  for (let at = 0; at < answer.length; ) {
    const length = answer.readUIntBE(at + 1, 3);
    const whole = answer.subarray(at, at + 4 + length);
    messages.push({ type: whole[0]!, body: whole.subarray(4), whole });
    at += whole.length;
  }
  const [first, second, third, ...more] = messages;
  if (first?.type !== 11 || second?.type !== 15 || third?.type !== 20 || more.length > 0) throw new Error('5.2.4');

  const contextLength = asked[4]!;
  const context = asked.subarray(5, 5 + contextLength);
  if (first.body[0] !== contextLength || !first.body.subarray(1, 1 + contextLength).equals(context))
    throw new Error('5.2.1');
  const list = first.body.subarray(1 + contextLength + 3);
  if (first.body.readUIntBE(1 + contextLength, 3) !== list.length) throw new Error('8446 4.4.2');
  const chain: Buffer[] = [];
  for (let at = 0; at < list.length; ) {
    const length = list.readUIntBE(at, 3);
    chain.push(list.subarray(at + 3, at + 3 + length));
    if (list.readUInt16BE(at + 3 + length) !== 0) throw new Error('5.2.1 extensions');
    at += 3 + length + 2;
  }

  const name = hashName(socket);
  const handshakeContext = exported(socket, sender, 'handshake context');
  const transcript = createHash(name)
    .update(Buffer.concat([handshakeContext, asked, first.whole]))
    .digest();
  const covered = Buffer.concat([
    Buffer.alloc(64, 32),
    Buffer.from('Exported Authenticator'),
    Buffer.from([0]),
    transcript,
  ]);
  const code = second.body.readUInt16BE(0);
  const signature = second.body.subarray(4);
  if (second.body.readUInt16BE(2) !== signature.length) throw new Error('8446 4.4.3');
  const hash = ({ 1027: 'sha256', 1283: 'sha384', 2052: 'sha256', 2053: 'sha384', 2054: 'sha512' } as const)[code];
  if (hash === undefined) throw new Error('5.2.2 scheme');
  const key = new X509Certificate(chain[0]!).publicKey;
  // 6: RSA_PKCS1_PSS_PADDING, -1: salt as long as the digest
  const options = code >> 8 === 8 ? { padding: 6, saltLength: -1 } : {};
  if (
    !createVerify(hash)
      .update(covered)
      .verify({ key, ...options }, signature)
  )
    throw new Error('5.2.2');
  const expected = finished(socket, sender, Buffer.concat([asked, first.whole, second.whole]));
  if (!expected.equals(third.whole)) throw new Error('5.2.3');
  return chain;
}
