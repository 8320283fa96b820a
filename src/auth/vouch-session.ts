/** What the receiver's side of leases and fences keeps of one channel, and forgets with it. */
import type { IpAddress } from '../model/ids.ts';
import { AppliedWithdraws } from './vouch-renewal.ts';

export interface Session {
  /** The peer's incarnation once its RESET is applied and acked. */
  incarnation: bigint | undefined;
  /** What RESET says goes on, as far as it was said; undefined once it is all said. */
  keeps: Map<IpAddress, bigint> | undefined;
  resetSeen: boolean;
  readonly openedNs: bigint;
  readonly withdraws: AppliedWithdraws;
  readonly ready: Promise<void>;
  readonly setReady: () => void;
  /** What the peer offered and is being asked for, by address; one promise for all that one request asks. */
  readonly askedBack: Map<IpAddress, Promise<unknown>>;
  /** Requests of that kind that are open, and offers that wait for them. */
  asking: number;
  waiting: number;
  /** Offered, granted, and not taken: asked for again with the next renewal. */
  readonly missed: Set<IpAddress>;
  /** Offered without a grant, and audited. */
  readonly ungranted: Set<IpAddress>;
}

/** `openedNs`: CLOCK_BOOTTIME. */
export function newSession(openedNs: bigint): Session {
  const { promise, resolve } = Promise.withResolvers<void>();
  return {
    incarnation: undefined,
    keeps: new Map(),
    resetSeen: false,
    openedNs,
    withdraws: new AppliedWithdraws(),
    ready: promise,
    setReady: resolve,
    askedBack: new Map(),
    asking: 0,
    waiting: 0,
    missed: new Set(),
    ungranted: new Set(),
  };
}
