/** A share that comes back with time: so many tokens flow in each second, and no more are saved up than its size. */
export interface TokenBucket {
  tokens: number;
  /** Boot time of the last refill. */
  atNs: bigint;
}

export function fullBucket(size: number, nowNs: bigint): TokenBucket {
  return { tokens: size, atNs: nowNs };
}

export function refill(bucket: TokenBucket, nowNs: bigint, perSecond: number, size: number): void {
  bucket.tokens = Math.min(size, bucket.tokens + (Number(nowNs - bucket.atNs) / 1e9) * perSecond);
  bucket.atNs = nowNs;
}

/** All of them or none. */
export function take(bucket: TokenBucket, tokens: number): boolean {
  if (bucket.tokens < tokens) return false;
  bucket.tokens -= tokens;
  return true;
}
