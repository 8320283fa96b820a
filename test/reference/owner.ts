/** Whose address is this, and may the place a packet came from speak for it? */
import type { Address, Reason, State } from './state.ts';
import { HOST, NEVER, REMOTE_NODE, WORLD } from './state.ts';

export interface Owner {
  readonly kind: 'nobody' | 'local' | 'node' | 'reserved' | 'world';
  /** 0: not known. */
  readonly identity: number;
  readonly node: number;
  readonly endpoint: number;
  readonly leaseEnds: number;
  readonly encrypt: boolean;
}

const bitsOf = (address: Address): string =>
  [...address].map((digit) => Number.parseInt(digit, 16).toString(2).padStart(4, '0')).join('');

export function inPrefix(address: Address, prefix: Address, length: number): boolean {
  return bitsOf(address).slice(0, length) === bitsOf(prefix).slice(0, length);
}

/** An exact entry, else the narrowest prefix, else the world. */
export function ownerOf(state: State, address: Address): Owner {
  const exact = state.addresses.get(address);
  if (exact !== undefined) return exact;
  const nobodyKnows = { node: 0, endpoint: 0, leaseEnds: NEVER };
  const covering = state.prefixes.filter((p) => inPrefix(address, p.address, p.length));
  const narrowest = covering.toSorted((a, b) => b.length - a.length)[0];
  if (narrowest === undefined) return { kind: 'world', identity: WORLD, encrypt: false, ...nobodyKnows };
  const { encrypt } = narrowest;
  if (narrowest.cluster) return { kind: 'nobody', identity: 0, encrypt, ...nobodyKnows };
  return { kind: 'world', identity: narrowest.identity ?? WORLD, encrypt, ...nobodyKnows };
}

/** A workload's address, known or not. */
export const isWorkload = (owner: Owner): boolean =>
  owner.kind === 'local' || owner.kind === 'node' || owner.kind === 'nobody';

export const isHost = (owner: Owner): boolean => owner.kind === 'reserved' && owner.identity === HOST;

/** Bits 28 to 31 of a mark. */
export const MARK = { none: 0, stamped: 1, tunnel: 2, underlay: 3 } as const;
export const kindOf = (mark: number): number => mark >>> 28;
export const senderOf = (mark: number): number => (mark >>> 16) & 0xfff;

/** The upper half, as a flow remembers it: what its packets carry when they come in. */
export const markOf = (kind: number, endpoint = 0): number => kind * 0x1000 + (endpoint & 0xfff);

/** The stamp names a live endpoint of this node, and the source is that endpoint's. */
export function stampRefusal(state: State, mark: number, source: Owner): Reason | undefined {
  if (kindOf(mark) !== MARK.stamped) return 'NOT_STAMPED';
  const sender = senderOf(mark);
  if (source.kind !== 'local' || source.endpoint !== sender) return 'SPOOFED_STAMP';
  return endpointById(state, sender)?.open === true ? undefined : 'NOT_STAMPED';
}

/** The endpoint of that number, where it sent its last packet from, if it is still there. */
export function endpointById(state: State, id: number) {
  const ifindex = state.lastSeen.get(id);
  const endpoint = ifindex === undefined ? undefined : state.endpoints.get(ifindex);
  return endpoint?.id === id ? endpoint : undefined;
}

/** Coming in: leases and fences, rule 8; and what is to come through the tunnel comes through nothing else. */
export function originRefusal(state: State, mark: number, source: Owner): Reason | undefined {
  switch (kindOf(mark)) {
    case MARK.stamped:
      return stampRefusal(state, mark, source);
    case MARK.tunnel:
      // What another node has: its workloads, its own addresses. An address nobody vouches for is refused by that name.
      if (source.node !== 0 || source.kind === 'nobody' || source.identity === REMOTE_NODE) return undefined;
      return source.encrypt ? undefined : 'NOT_STAMPED';
    case MARK.underlay:
      if (!state.config.allowUnbound || source.encrypt) return 'UNENCRYPTED';
      return source.kind === 'node' || source.kind === 'nobody' ? undefined : 'NOT_STAMPED';
    case MARK.none:
      if (source.kind === 'local') return 'NOT_STAMPED';
      return isWorkload(source) || source.encrypt ? 'UNENCRYPTED' : undefined;
    default:
      return 'NOT_STAMPED';
  }
}

/** The upper half of the mark that packets from there are to carry. */
export function originExpected(state: State, remote: Owner): number {
  if (remote.kind === 'local') return markOf(MARK.stamped, remote.endpoint);
  if (remote.encrypt) return markOf(MARK.tunnel);
  if (remote.kind === 'node') return markOf(state.config.allowUnbound ? MARK.underlay : MARK.tunnel);
  return markOf(MARK.none);
}
