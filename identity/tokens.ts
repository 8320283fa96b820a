/** Join tokens: a secret that lets one named node in, once, for a while. Only its SHA-256 is ever kept. */
import { hash, randomBytes, timingSafeEqual } from 'node:crypto';
import type { NodeName } from '../src/model/ids.ts';
import type { Store, TokenRecord } from './store.ts';

const TOKEN_BYTES = 32;
/** base64url of 32 bytes. */
const TOKEN_SHAPE = /^[A-Za-z0-9_-]{43}$/;

export function createToken(store: Store, node: NodeName, expiresAtMs: number, nowMs: number): string {
  const token = randomBytes(TOKEN_BYTES).toString('base64url');
  store.deleteTokensExpiredBefore(nowMs);
  store.addToken({ hash: digest(token), node, expiresAtMs });
  return token;
}

/** The record of a token that is good for this node now; it is not taken yet. Unknown, used, expired, another's: no difference. */
export function findToken(store: Store, token: string, node: NodeName, nowMs: number): TokenRecord | undefined {
  if (!TOKEN_SHAPE.test(token)) return undefined;
  const wanted = digest(token);
  let found: TokenRecord | undefined;
  for (const record of store.tokensOf(node)) {
    if (timingSafeEqual(record.hash, wanted) && nowMs < record.expiresAtMs) found = record;
  }
  return found;
}

function digest(token: string): Buffer {
  return hash('sha256', token, 'buffer');
}
