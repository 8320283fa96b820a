/** Trust bundles as an administrator sees and changes them: the own one and those of federated trust domains. */
import { type BundleAdminServer, BundleAdminService } from '../../proto/gen/countersign/admin/v1/admin.ts';
import { CountersignError } from '../../src/base/errors.ts';
import type { TrustBundle } from '../../src/model/identity.ts';
import type { TrustDomain } from '../../src/model/ids.ts';
import { parseTrustDomain } from '../../src/model/spiffe-id.ts';
import { encodePem } from '../../src/pki/pem.ts';
import { encodeSpiffeBundle } from '../../src/pki/spiffe-bundle.ts';
import type { ForeignBundle, ForeignBundles } from '../federation/foreign-bundles.ts';
import { type Actor, type AdminContext, type AdminService, handlers, json } from './service.ts';

export interface BundleAdminOptions extends AdminContext {
  readonly trustDomain: TrustDomain;
  readonly ownBundle: () => TrustBundle;
  readonly foreign: ForeignBundles;
}

export function bundleAdmin(options: BundleAdminOptions): AdminService {
  const { trustDomain: own, ownBundle, foreign, audit } = options;
  const handler = handlers(options);
  const acted = ({ name }: Actor, action: string, trustDomain: TrustDomain) =>
    audit.emit({ kind: 'admin.action', actor: name, detail: { action, trustDomain } });

  const implementation: BundleAdminServer = {
    listBundles: handler('viewer', () =>
      json({ bundles: [{ own: true, ...summary(own, ownBundle()) }, ...foreign.list().map(foreignJson)] }),
    ),
    showBundle: handler('viewer', (request) => {
      const trustDomain = request.trustDomain === '' ? own : trustDomainOf(request);
      const bundle = trustDomain === own ? ownBundle() : foreign.bundleOf(trustDomain);
      if (bundle === undefined) {
        throw new CountersignError('not-found', `there is no bundle of ${trustDomain}; see: countersign bundle list`);
      }
      return json({
        ...summary(trustDomain, bundle),
        certificates: bundle.authorities.map((der) => encodePem('CERTIFICATE', der)),
        document: encodeSpiffeBundle(bundle),
      });
    }),
    setBundle: handler('admin', (request, actor) => {
      const trustDomain = trustDomainOf(request);
      const set = foreign.set(trustDomain, request.document, actor.name);
      acted(actor, 'set-bundle', trustDomain);
      return json(foreignJson(set));
    }),
    deleteBundle: handler('admin', (request, actor) => {
      const trustDomain = trustDomainOf(request);
      foreign.delete(trustDomain, actor.name);
      acted(actor, 'delete-bundle', trustDomain);
      return json({ trustDomain });
    }),
    refreshBundle: handler('registrar', async (request, actor) => {
      const trustDomain = trustDomainOf(request);
      acted(actor, 'refresh-bundle', trustDomain);
      return json(foreignJson(await foreign.refresh(trustDomain)));
    }),
  };
  return { definition: BundleAdminService, implementation };
}

function trustDomainOf({ trustDomain }: { trustDomain: string }): TrustDomain {
  const parsed = parseTrustDomain(trustDomain);
  if (!parsed.ok) throw new CountersignError('bad-input', `trust domain: ${parsed.error}; correct it`);
  return parsed.value;
}

/** The sequence number is text: JSON numbers of many readers lose what is beyond 2^53. */
function summary(trustDomain: TrustDomain, bundle: TrustBundle | undefined) {
  return {
    trustDomain,
    x509Authorities: bundle?.authorities.length ?? 0,
    jwtAuthorities: bundle?.jwtAuthorities?.length ?? 0,
    sequence: bundle?.sequence?.toString(),
    refreshHintSeconds: bundle?.refreshHintSeconds,
  };
}

function foreignJson({ trustDomain, bundle, origin, changedAtMs, endpoint, ...state }: ForeignBundle) {
  const { refreshedAtMs, lastFailure, nextRefreshMs } = state;
  return {
    own: false,
    ...summary(trustDomain, bundle),
    origin,
    changedAt: time(changedAtMs),
    ...(endpoint === undefined
      ? {}
      : {
          endpoint: {
            url: endpoint.endpointUrl.href,
            profile: endpoint.profile === 'https_web' ? 'https_web' : 'https_spiffe',
            ...(endpoint.profile === 'https_web' ? {} : { spiffeId: endpoint.profile.https_spiffe }),
            refreshedAt: time(refreshedAtMs),
            nextRefresh: time(nextRefreshMs),
            ...(lastFailure === undefined
              ? {}
              : { lastFailure: { ...lastFailure, atMs: undefined, at: time(lastFailure.atMs) } }),
          },
        }),
  };
}

function time(ms: number | undefined): string | undefined {
  return ms === undefined ? undefined : new Date(ms).toISOString();
}
