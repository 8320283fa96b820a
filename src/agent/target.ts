/** Who is meant by what a person writes: a workload, an entity, or whoever has an address, as the kernel would see it. */
import { CountersignError } from '../base/errors.ts';
import { parseAddress, prefixContains } from '../model/address.ts';
import type { IdentityRow } from '../model/identity.ts';
import {
  IDENTITY_HOST,
  IDENTITY_REMOTE_NODE,
  IDENTITY_WORLD,
  type IpAddress,
  type SecurityIdentity,
  type SpiffeId,
} from '../model/ids.ts';
import type { Parts } from './views.ts';

export type Target =
  | { readonly kind: 'workload'; readonly row: IdentityRow }
  | {
      readonly kind: 'entity';
      readonly entity: EntityName;
      readonly identity: SecurityIdentity;
      readonly address: IpAddress | undefined;
    }
  /** Outside the cluster, and some rule names a prefix that it is in. */
  | { readonly kind: 'cidr'; readonly identity: SecurityIdentity; readonly address: IpAddress }
  /** Inside a prefix of the cluster, and no node vouches for it. */
  | { readonly kind: 'nobody'; readonly address: IpAddress };

const ENTITIES = { host: IDENTITY_HOST, world: IDENTITY_WORLD, 'remote-node': IDENTITY_REMOTE_NODE } as const;
type EntityName = keyof typeof ENTITIES;

/** An endpoint's name, a SPIFFE ID (or its last segment), an address, a security identity, or host, world, remote-node. */
export function targetOf(parts: Parts, text: string): Target {
  const address = parseAddress(text);
  if (address !== undefined) return targetAt(parts, address);
  const rows = parts.server.identities.rows();
  const endpoint = parts.config.endpoints.find((e) => e.name === text);
  const row =
    rows.find((r) => r.spiffeId === (endpoint?.spiffeId ?? text)) ??
    rows.find((r) => String(r.identity) === text) ??
    rows.find((r) => r.spiffeId.endsWith(`/${text}`));
  if (row !== undefined) return { kind: 'workload', row };
  if (Object.hasOwn(ENTITIES, text)) {
    const entity = text as EntityName;
    return { kind: 'entity', entity, identity: ENTITIES[entity], address: undefined };
  }
  throw new CountersignError(
    'not-found',
    `nobody is called "${text}": give an endpoint's name, a SPIFFE ID, an address, or host, world or remote-node ` +
      '(countersign endpoint list, entry list)',
  );
}

/** In the order in which the kernel asks. */
function targetAt(parts: Parts, address: IpAddress): Target {
  const { server, datapath, config, manager, policy } = parts;
  const spiffeId =
    config.endpoints.find((e) => e.addresses.includes(address))?.spiffeId ??
    manager.vouches().find((v) => v.address === address)?.spiffeId;
  const row = spiffeId === undefined ? undefined : server.identities.bySpiffeId(spiffeId as SpiffeId);
  if (row !== undefined) return { kind: 'workload', row };
  const reserved = datapath.addresses.get(address);
  if (reserved?.reserved === true) {
    const entity = reserved.identity === IDENTITY_HOST ? 'host' : 'remote-node';
    return { kind: 'entity', entity, identity: reserved.identity, address };
  }
  if (server.nodes.nodes().some((node) => node.prefixes.some((prefix) => prefixContains(prefix, address)))) {
    return { kind: 'nobody', address };
  }
  const identity = policy.identityOfAddress(address);
  return identity === IDENTITY_WORLD
    ? { kind: 'entity', entity: 'world', identity, address }
    : { kind: 'cidr', identity, address };
}
