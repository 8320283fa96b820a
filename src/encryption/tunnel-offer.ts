/** What a node signs of its tunnel key, with its node SVID: the tunnel is then as authentic as the channel it was offered on. */
import { type KeyObject, sign, verify } from 'node:crypto';

export interface TunnelOfferFields {
  /** Of the node that offers, as its certificate proves it. */
  readonly incarnation: bigint;
  readonly keyNumber: bigint;
  readonly type: string;
  readonly publicKey: Buffer;
  /** "IP:port" or "[IPv6]:port" */
  readonly endpoint: string;
}

const CONTEXT = Buffer.from('countersign tunnel key v1\n');

/** Type ends in a zero byte and the key has a fixed length, so that no two offers have the same bytes. @throws RangeError otherwise */
function signedBytes(fields: TunnelOfferFields): Buffer {
  if (fields.publicKey.length !== 32) throw new RangeError('a tunnel public key has 32 bytes');
  if (fields.type.includes('\0')) throw new RangeError('a tunnel type holds no zero byte');
  const numbers = Buffer.alloc(16);
  numbers.writeBigUInt64BE(fields.incarnation, 0);
  numbers.writeBigUInt64BE(fields.keyNumber, 8);
  return Buffer.concat([
    CONTEXT,
    numbers,
    Buffer.from(`${fields.type}\0`),
    fields.publicKey,
    Buffer.from(fields.endpoint),
  ]);
}

/** ECDSA with SHA-256, DER. */
export function signTunnelOffer(fields: TunnelOfferFields, nodeKey: KeyObject): Buffer {
  return sign('sha256', signedBytes(fields), nodeKey);
}

export function verifyTunnelOffer(fields: TunnelOfferFields, signature: Buffer, leafPublicKey: KeyObject): boolean {
  return (
    fields.publicKey.length === 32 &&
    !fields.type.includes('\0') &&
    verify('sha256', signedBytes(fields), leafPublicKey, signature)
  );
}
