/** Who may do what over TLS: roles by SPIFFE ID, from the configuration and from entries that say `admin`. */
import type { SpiffeId } from '../../src/model/ids.ts';
import type { Registry } from '../registry.ts';
import { ROLES, type Role } from './service.ts';

export interface RoleSource {
  /** undefined: none. */
  roleOf(spiffeId: SpiffeId): Role | undefined;
}

export interface RolesOptions {
  readonly configured: readonly { readonly spiffeId: SpiffeId; readonly role: Role }[];
  readonly registry: Pick<Registry, 'entriesWith'>;
}

export function roles({ configured, registry }: RolesOptions): RoleSource {
  return {
    roleOf(spiffeId) {
      let highest: Role | undefined;
      for (const { spiffeId: named, role } of configured) {
        if (named === spiffeId && rankOf(role) > rankOf(highest)) highest = role;
      }
      for (const { admin } of registry.entriesWith(spiffeId)) if (admin) return 'admin';
      return highest;
    },
  };
}

/** -1: no role. */
export function rankOf(role: Role | undefined): number {
  return role === undefined ? -1 : ROLES.indexOf(role);
}
