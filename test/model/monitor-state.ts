/** What the monitor remembers of owners, entries, requests and withdraws, and how versions compare. */
export interface Version {
  readonly incarnation: bigint;
  readonly generation: bigint;
}

export interface Owner extends Version {
  readonly identity: unknown;
  readonly open: Set<string>;
}

export interface Entry extends Version {
  readonly peer: string;
  readonly identity: unknown;
  leaseEnd: number;
}

export interface Request {
  readonly peer: string;
  readonly t: number;
  readonly ips: Set<string>;
  leaseMs: number;
  readonly granted: Map<string, Version & { readonly identity: unknown }>;
}

export interface Said {
  readonly entries: readonly (Version & { readonly ip: string })[];
  acked: boolean;
}

export const isNewer = (a: Version, b: Version) =>
  a.incarnation > b.incarnation || (a.incarnation === b.incarnation && a.generation > b.generation);

/** Which generations of an IP a peer may hold. */
export const key = (...parts: readonly unknown[]) => parts.join('|');

export function isOpen(owner: Owner, peer: string): boolean {
  return owner.open.has(peer) || owner.open.has('*');
}
