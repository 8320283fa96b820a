/** What the authentication of pairs needs from outside its own files and src/model: policy, the tunnel, the settings. */
import type { Result } from '../base/errors.ts';
import type { ReasonCode } from '../base/registry/reason-codes.ts';
import type { AuthType } from '../model/datapath.ts';
import type { NodeInfo } from '../model/identity.ts';
import type { IpAddress, NodeId, SecurityIdentity } from '../model/ids.ts';

/** The policies in force, of both sides together; CompiledPolicy in src/policy is one. */
export interface PolicyDecisions {
  /** `from` opens a flow to `to`: verdict of both sides' hooks, the stronger auth type of both, index of the rule (0: none). */
  decide(
    from: SecurityIdentity,
    to: SecurityIdentity,
    protocol: number,
    port: number,
  ): { readonly verdict: 'allow' | 'deny'; readonly authType: AuthType; readonly rule: number };
  /** What traffic between the two, in either direction, needs. Empty: policy denies it all or requires no proof. */
  authTypesOf(a: SecurityIdentity, b: SecurityIdentity): readonly AuthType[];
}

/**
 * The tunnel as far as a vouch needs it. Without encryption (authentication.allowUnboundPath): always ready, nothing to bind.
 * The same calls as Tunnel in src/model/tunnel.ts.
 */
export interface TunnelBinding {
  /** Resolves when the authenticated tunnel to the node is up, or with why it is not. Bounded in time. */
  whenReady(node: NodeInfo): Promise<Result<void, ReasonCode>>;
  allow(node: NodeId, address: IpAddress): Promise<void>;
  /** Resolves when nothing more comes in from the address, and nothing that waited to go there will go. */
  disallow(address: IpAddress): Promise<void>;
  /**
   * Ends the session with the node; a new handshake starts at once. When it resolves, nothing that was sent under the session is taken
   * any more, and nothing that waited for one is sent. Calls that wait together share one.
   */
  endSession(node: NodeId): Promise<void>;
}

/**
 * How long a packet that somebody delays on the path may still be taken: no session of the tunnel lives longer (WireGuard's
 * REJECT_AFTER_TIME).
 */
export const SESSION_LIFE_MS = 180_000;

/** Times in ms. */
export interface AuthSettings {
  /** Lease this node gives, and the longest it takes from others. */
  readonly leaseMs: number;
  /** Rule 6: a successor on an address is not opened before this has passed since the earlier owner closed. */
  readonly drainMs: number;
  readonly vouchTimeoutMs: number;
  readonly authTimeoutMs: number;
  /** A proof, and an auth entry, lives no longer. */
  readonly maxAuthAgeMs: number;
  readonly backoffMinMs: number;
  readonly backoffMaxMs: number;
  /** Authentications and vouch requests under way, each. */
  readonly queueSize: number;
  readonly preAuthentication: PreAuthSettings;
}

export interface PreAuthSettings {
  /** Pairs that policy requires are proven as soon as both sides are known, before a packet asks. */
  readonly enabled: boolean;
  /** Exchanges of this kind per second; PAIRS_PER_EXCHANGE pairs that need no proof of their own count as one. */
  readonly rate: number;
}

export const DEFAULT_AUTH_SETTINGS: AuthSettings = {
  leaseMs: 30_000,
  drainMs: 100,
  vouchTimeoutMs: 2_000,
  authTimeoutMs: 5_000,
  maxAuthAgeMs: 3_600_000,
  backoffMinMs: 1_000,
  backoffMaxMs: 30_000,
  queueSize: 1024,
  preAuthentication: { enabled: false, rate: 200 },
};
