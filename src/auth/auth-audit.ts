/** What the audit log is told of authentications: who with whom, in which role, until when, or why not. */
import type { Clock } from '../base/clock.ts';
import type { ReasonCode } from '../base/registry/reason-codes.ts';
import type { AuditParty, AuditSink } from '../model/audit-event.ts';
import type { AuthKey } from '../model/datapath.ts';
import type { IdentityTable } from '../model/identity.ts';
import { LOCAL_NODE, type NodeId, type SecurityIdentity } from '../model/ids.ts';
import type { AuthRecord, WhyGone } from './auth-entries.ts';
import { msOfNs } from './units.ts';

export interface AuthAuditOptions {
  /** This node's name. */
  readonly self: string;
  nodeName(node: NodeId): string | undefined;
  readonly identities: IdentityTable;
  readonly audit: AuditSink;
  readonly clock: Clock;
}

export class AuthAudit {
  readonly #options: AuthAuditOptions;

  constructor(options: AuthAuditOptions) {
    this.#options = options;
  }

  /** @param handshakeMs from the packet's miss; undefined: the peer began. */
  succeeded(record: AuthRecord, handshakeMs: number | undefined): void {
    const { local, remote, remoteNode, correlation, initiated } = record;
    const validMs = Math.floor(msOfNs(record.expiresAtNs - this.#options.clock.bootNs()));
    const parties = this.#parties(local, remote, remoteNode);
    this.#options.audit.emit({
      kind: record.renews ? 'auth.renewed' : 'auth.succeeded',
      correlation,
      ...(initiated ? parties : swap(parties)),
      detail: {
        role: initiated ? 'initiator' : 'responder',
        valid_ms: validMs,
        ...(handshakeMs === undefined ? {} : { handshake_ms: Math.round(handshakeMs * 1000) / 1000 }),
      },
    });
  }

  /** @param correlation of the exchange that the peer began; undefined: this node did. */
  failed(key: AuthKey, reason: ReasonCode, correlation: string | undefined): void {
    const parties = this.#parties(key.local, key.remote, key.remoteNode);
    this.#options.audit.emit({
      kind: 'auth.failed',
      reason,
      ...(correlation === undefined ? parties : { ...swap(parties), correlation }),
      detail: { role: correlation === undefined ? 'initiator' : 'responder' },
    });
  }

  gone(record: AuthRecord, why: WhyGone): void {
    const { local, remote, correlation, remoteNode } = record;
    this.#options.audit.emit({ ...why, correlation, ...this.#parties(local, remote, remoteNode) });
  }

  #parties(local: SecurityIdentity, remote: SecurityIdentity, node: NodeId) {
    const { self } = this.#options;
    const remoteName = node === LOCAL_NODE ? self : this.#options.nodeName(node);
    return { source: this.#party(local, self), destination: this.#party(remote, remoteName) };
  }

  #party(identity: SecurityIdentity, node: string | undefined): AuditParty {
    const row = this.#options.identities.byIdentity(identity);
    return {
      identity,
      ...(row === undefined ? {} : { spiffeId: row.spiffeId }),
      ...(node === undefined ? {} : { node }),
    };
  }
}

function swap(parties: { source: AuditParty; destination: AuditParty }) {
  return { source: parties.destination, destination: parties.source };
}
