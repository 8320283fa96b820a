/** The proofs in force: which pair of identities has authenticated, until when. */

import { AUTH_TYPE_CODE, type AuthEntry, type AuthKey, type AuthTable, type AuthType } from '../model/datapath.ts';
import { nodeId, securityIdentity } from '../model/ids.ts';
import type { ConfigWriter } from './config.ts';
import { createFlowProofs } from './flow-proofs.ts';
import { AUTH_REFUSED } from './layout.ts';
import type { DatapathMaps } from './maps.ts';

export function createAuthTable(maps: DatapathMaps, config: ConfigWriter): AuthTable {
  return {
    get epoch() {
      return config.current.epoch;
    },
    put(entry) {
      maps.cs_auth.put(keyOf(entry), { expires_ns: entry.expiresAtNs, epoch: entry.epoch, flags: 0 });
    },
    putAll(entries) {
      maps.cs_auth.putBatch(
        entries.map(
          (entry) => [keyOf(entry), { expires_ns: entry.expiresAtNs, epoch: entry.epoch, flags: 0 }] as const,
        ),
      );
    },
    raiseEpoch() {
      config.set({ epoch: config.current.epoch + 1 });
      config.bumpRevision();
      return config.current.epoch;
    },
    delete(keys) {
      const deleted = maps.cs_auth.deleteBatch(keys.map(keyOf));
      // After the deletion, and also when nothing was there: the entry may have gone by eviction while a flow lives on.
      config.bumpRevision();
      return deleted;
    },
    refuse(keys, untilNs) {
      const value = { expires_ns: untilNs, epoch: config.current.epoch, flags: AUTH_REFUSED };
      maps.cs_auth.putBatch(keys.map((key) => [keyOf(key), value] as const));
      // After the proofs are overwritten, as with a deletion.
      config.bumpRevision();
    },
    forgetRefusals() {
      const refusals = maps.cs_auth.entries().filter(([, value]) => (value.flags & AUTH_REFUSED) !== 0);
      if (refusals.length > 0) maps.cs_auth.deleteBatch(refusals.map(([key]) => key));
    },
    list: () => readAuthEntries(maps),
    ...createFlowProofs(maps, config),
  };
}

export function readAuthEntries(maps: DatapathMaps): AuthEntry[] {
  return maps.cs_auth.entries().flatMap(([key, value]) => {
    const authType = authTypeOf(key.auth_type);
    if (authType === undefined || (value.flags & AUTH_REFUSED) !== 0) return [];
    return [
      {
        local: securityIdentity(key.local),
        remote: securityIdentity(key.remote),
        remoteNode: nodeId(key.remote_node),
        authType,
        expiresAtNs: value.expires_ns,
        epoch: value.epoch,
      },
    ];
  });
}

export function authTypeOf(code: number): AuthType | undefined {
  for (const [name, value] of Object.entries(AUTH_TYPE_CODE)) if (value === code) return name as AuthType;
  return undefined;
}

function keyOf(key: AuthKey) {
  return {
    local: key.local,
    remote: key.remote,
    remote_node: key.remoteNode,
    auth_type: AUTH_TYPE_CODE[key.authType],
  };
}
