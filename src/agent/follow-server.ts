/**
 * What the identity server says, put into force on this node in the order in which it must be: what takes something away first. A version
 * is acked when the listener here is done with it, so the server may say "revoked everywhere" and mean the kernels.
 */
import type { AuthManager } from '../auth/manager.ts';
import type { StartedPeerChannels } from '../channel/peer-channels.ts';
import type { AuditSink } from '../model/audit-event.ts';
import type { Endpoints } from './endpoints.ts';
import type { NodePath } from './path.ts';
import type { PolicyControl } from './policy-control.ts';
import type { ServerClient, TableChange } from './server-client/client.ts';
import type { WorkloadSvids } from './server-client/svids.ts';
import type { Surroundings } from './surroundings.ts';

export interface Following {
  readonly server: Pick<ServerClient, 'onChange' | 'onUrgent'>;
  readonly svids: Pick<WorkloadSvids, 'subscribe'>;
  readonly surroundings: Pick<Surroundings, 'apply'>;
  readonly endpoints: Pick<Endpoints, 'reconcile'>;
  readonly policy: Pick<PolicyControl, 'apply'>;
  readonly manager: AuthManager;
  readonly channels: Pick<StartedPeerChannels, 'revokeCheck'>;
  readonly path: Pick<NodePath, 'forget'>;
  readonly audit: AuditSink;
}

export function followServer(parts: Following): void {
  const { server, surroundings, endpoints, policy, manager, channels, path, audit } = parts;
  let deleted = 0;
  // When it returns, the kernel has no entry that rests on what was revoked.
  const revoke = (): void => {
    deleted += manager.revoked();
    channels.revokeCheck();
  };
  // An authority that went takes with it what was proven by it, and what is being proven.
  const judgeByBundle = (): void => {
    manager.bundlesChanged();
    channels.revokeCheck();
  };
  server.onUrgent((change) => {
    if (change.bundle) judgeByBundle();
    if (change.revocations.length > 0) revoke();
  });
  server.onChange(async (change) => {
    if (change.revocations.length > 0) {
      // Once more, before anything else of the change: those of before there was a listener, and what was proven since.
      revoke();
      audit.emit({ kind: 'revocation.in_force', detail: { auth_entries: deleted } });
      deleted = 0;
    }
    if (change.bundle) judgeByBundle();
    if (isChanged(change.nodes) || change.snapshot) {
      surroundings.apply();
      manager.nodesChanged();
      channels.revokeCheck();
      for (const node of change.nodes.removed) await path.forget(node.id);
    }
    if (isChanged(change.identities) || change.snapshot) {
      const { changed, removed } = change.identities;
      const of = change.snapshot ? undefined : new Set([...changed, ...removed].map(({ identity }) => identity));
      policy.apply(of);
      endpoints.reconcile();
      manager.identitiesChanged(of);
    }
  });
  parts.svids.subscribe(() => manager.svidsChanged());
}

function isChanged(change: TableChange<unknown>): boolean {
  return change.changed.length + change.removed.length > 0;
}
