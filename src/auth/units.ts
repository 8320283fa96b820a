/** Milliseconds of settings and certificates, nanoseconds of the kernel's clock. */
export function nsOfMs(ms: number): bigint {
  return BigInt(Math.floor(ms * 1_000)) * 1_000n;
}

export function msOfNs(ns: bigint): number {
  return Number(ns) / 1_000_000;
}

export function laterOf(a: bigint, b: bigint): bigint {
  if (a > b) return a;
  return b;
}

export function earlierOf(a: bigint, b: bigint): bigint {
  if (a < b) return a;
  return b;
}
