/** What the audit log holds. src/audit/ writes it; everyone else only says what happened. docs/audit-events.md lists the kinds. */
import type { DropReason } from '../base/registry/drop-reasons.gen.ts';
import type { ReasonCode } from '../base/registry/reason-codes.ts';

export type AuditKind =
  | 'agent.started'
  | 'agent.stopped'
  | 'server.started'
  | 'server.stopped'
  | 'node.attested'
  | 'node.evicted'
  | 'node.banned'
  | 'node.unbanned'
  | 'node.attest_refused'
  | 'workload.attested'
  | 'workload.refused'
  | 'svid.issued'
  | 'svid.refused'
  | 'svid.received'
  | 'svid.revoked'
  | 'revocation.in_force'
  | 'authority.changed'
  | 'authority.signed'
  | 'entry.changed'
  | 'token.created'
  | 'bundle.changed'
  | 'bundle.refused'
  | 'peer.opened'
  | 'peer.closed'
  | 'peer.refused'
  | 'vouch.given'
  | 'vouch.taken'
  | 'vouch.refused'
  | 'vouch.withdrawn'
  | 'lease.expired'
  | 'auth.succeeded'
  | 'auth.failed'
  | 'auth.renewed'
  | 'auth.expired'
  | 'auth.revoked'
  | 'policy.changed'
  | 'policy.refused'
  | 'packet.dropped'
  | 'tunnel.up'
  | 'tunnel.down'
  | 'tunnel.refused'
  | 'endpoint.opened'
  | 'endpoint.closed'
  | 'admin.action'
  | 'admin.refused'
  | 'audit.repaired'
  | 'audit.lost'
  | 'packet.observed'
  | 'policy.warning'
  | 'enforcement.stopped'
  | 'enforcement.started'
  | 'datapath.detached';

export interface AuditParty {
  readonly spiffeId?: string;
  readonly identity?: number;
  readonly node?: string;
  readonly address?: string;
  readonly port?: number;
}

/** No field ever holds a key, a token or payload. */
export interface AuditEvent {
  readonly kind: AuditKind;
  readonly reason?: ReasonCode | DropReason | `UNKNOWN_${number}`;
  /** Ties a packet's miss, the handshake, the map write and the verdict together. */
  readonly correlation?: string;
  readonly source?: AuditParty;
  readonly destination?: AuditParty;
  /** Who acted, for admin actions and issuance. */
  readonly actor?: string;
  /** "file:line rule" of the policy that decided. */
  readonly policy?: string;
  /** Further facts, flat: strings, numbers, booleans. */
  readonly detail?: Readonly<Record<string, string | number | boolean>>;
}

export interface AuditSink {
  emit(event: AuditEvent): void;
}
