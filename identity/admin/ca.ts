/** The signing keys, as an administrator sees and changes them. Every change is an audit event. */

import type { AuthorityInfo, AuthorityKind } from '../../ca/api.ts';
import {
  type AuthorityRequest,
  type CaAdminServer,
  CaAdminService,
} from '../../proto/gen/countersign/admin/v1/admin.ts';
import { CountersignError } from '../../src/base/errors.ts';
import type { SigningKeys } from '../signing-keys.ts';
import { type DownstreamOptions, downstreamHandler } from './downstream.ts';
import { type Actor, type AdminService, handlers, json } from './service.ts';

const MAX_WAIT_MS = 60_000;

export interface CaAdminOptions extends DownstreamOptions {
  readonly signingKeys: SigningKeys;
}

export function caAdmin(options: CaAdminOptions): AdminService {
  const { ca, signingKeys, audit } = options;
  const handler = handlers(options);
  const acted = ({ name }: Actor, action: string, kind: AuthorityKind, { id }: { readonly id: string }) =>
    audit.emit({ kind: 'admin.action', actor: name, detail: { action, kind, id } });
  const reply = async (request: AuthorityRequest, authority: AuthorityInfo, detail: object = {}) => {
    const { slow, away } = await signingKeys.behind(Math.min(request.waitMs, MAX_WAIT_MS));
    return json({ ...authorityJson(authority), missing: [...slow, ...away].sort(), ...detail });
  };

  const implementation: CaAdminServer = {
    listAuthorities: handler('viewer', () => json({ authorities: ca.authorities().map(authorityJson) })),
    prepareAuthority: handler('admin', async (request, actor) => {
      const kind = kindOf(request);
      const authority = await ca.prepare(kind);
      acted(actor, 'prepare-authority', kind, authority);
      return reply(request, authority);
    }),
    activateAuthority: handler('admin', async (request, actor) => {
      const kind = kindOf(request);
      const id = request.id === '' ? undefined : request.id;
      await waitForBundle(options, request.waitMs);
      const authority = await ca.activate(kind, id);
      acted(actor, 'activate-authority', kind, authority);
      return reply(request, authority);
    }),
    taintAuthority: handler('admin', async (request, actor) => {
      const kind = kindOf(request);
      const authority = await signingKeys.taint(kind, idOf(request));
      acted(actor, 'taint-authority', kind, authority);
      return reply(request, authority);
    }),
    revokeAuthority: handler('admin', async (request, actor) => {
      const kind = kindOf(request);
      const authority = await signingKeys.revoke(kind, idOf(request), request.reason);
      acted(actor, 'revoke-authority', kind, authority);
      return reply(request, authority);
    }),
    getCrls: handler('viewer', async () => {
      // with what was revoked just now
      await ca.upkeep();
      return { crls: ca.crls() };
    }),
    signDownstreamAuthority: downstreamHandler(options),
  };
  return { definition: CaAdminService, implementation };
}

/**
 * What a new key signs is refused by whoever does not have it in his bundle yet. An agent that is connected has it in a moment; one that does not
 * get it in the time given stops the act. Those who are away get the bundle before anything else when they are back.
 */
async function waitForBundle({ signingKeys }: CaAdminOptions, waitMs: number): Promise<void> {
  if (waitMs === 0) return;
  const { slow } = await signingKeys.behind(Math.min(waitMs, MAX_WAIT_MS));
  if (slow.length === 0) return;
  const some = slow.slice(0, 5).join(', ');
  throw new CountersignError(
    'unavailable',
    `${slow.length} connected nodes do not have the latest bundle yet, such as ${some}; wait longer (--wait), evict them, or go on without them (--wait 0)`,
  );
}

function kindOf({ kind }: AuthorityRequest): AuthorityKind {
  if (kind === 'x509' || kind === 'jwt') return kind;
  throw new CountersignError('bad-input', 'kind: x509 or jwt');
}

function idOf({ id }: AuthorityRequest): string {
  if (id === '') throw new CountersignError('bad-input', 'id: name the authority; see: countersign ca list');
  return id;
}

function authorityJson({ notBeforeMs, notAfterMs, ...authority }: AuthorityInfo) {
  return {
    ...authority,
    notBefore: new Date(notBeforeMs).toISOString(),
    notAfter: new Date(notAfterMs).toISOString(),
  };
}
