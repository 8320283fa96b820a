/** Who is meant by FROM and TO where there is no agent to ask: a workload of the file, labels, an address, an entity. */
import { entrySchema } from '../../../identity/entry-spec.ts';
import { CountersignError } from '../../base/errors.ts';
import { parseAddress } from '../../model/address.ts';
import type { IdentityRow, Labels } from '../../model/identity.ts';
import {
  IDENTITY_HOST,
  IDENTITY_REMOTE_NODE,
  IDENTITY_WORLD,
  type IpAddress,
  type SecurityIdentity,
} from '../../model/ids.ts';
import type { Workloads } from './sources.ts';

export type Party =
  | { readonly kind: 'workload'; readonly row: IdentityRow }
  /** Nobody of the file: a workload with exactly these labels. */
  | { readonly kind: 'labels'; readonly labels: Labels }
  /** Outside the cluster: what is inside is known by name only. */
  | { readonly kind: 'address'; readonly address: IpAddress }
  | { readonly kind: 'entity'; readonly entity: Entity; readonly identity: SecurityIdentity };

const ENTITIES = { host: IDENTITY_HOST, world: IDENTITY_WORLD, 'remote-node': IDENTITY_REMOTE_NODE } as const;
type Entity = keyof typeof ENTITIES;

/** Why nobody is meant, with the fix. */
export class UnknownParty extends CountersignError {
  constructor(message: string) {
    super('bad-input', message);
  }
}

/** A workload is meant before an entity of the same name, as `explain` has it. @throws UnknownParty */
export function partyOf(text: string, workloads: Workloads): Party {
  const address = parseAddress(text);
  if (address !== undefined) return { kind: 'address', address };
  const row = workloads.byName(text);
  if (row !== undefined) return { kind: 'workload', row };
  if (Object.hasOwn(ENTITIES, text)) {
    const entity = text as Entity;
    return { kind: 'entity', entity, identity: ENTITIES[entity] };
  }
  if (text.includes('=')) return { kind: 'labels', labels: parseLabels(text) };
  throw new UnknownParty(
    `nobody is called "${text}"; give the id, SPIFFE ID or last part of a SPIFFE ID of an entry, labels such as app=web, ` +
      'an address outside the cluster, or host, remote-node or world',
  );
}

/** "app=web,env=prod". @throws UnknownParty */
export function parseLabels(text: string): Labels {
  const pairs = text.split(',').map((part) => {
    const at = part.indexOf('=');
    if (at < 1) throw new UnknownParty(`"${text}": write labels as key=value, separated by commas`);
    return [part.slice(0, at).trim(), part.slice(at + 1).trim()] as const;
  });
  const checked = entrySchema.shape.labels.safeParse(Object.fromEntries(pairs));
  if (checked.success && new Set(pairs.map(([key]) => key)).size === pairs.length) return checked.data;
  const [issue] = checked.success ? [] : checked.error.issues;
  throw new UnknownParty(`"${text}": ${issue === undefined ? 'a label stands twice; keep one' : issue.message}`);
}
