/** Federation of one server, put together: its bundle endpoint, the OpenID Connect documents, and the bundles of others. */
import type { CertificateAuthority } from '../../ca/api.ts';
import type { Bundle } from '../../proto/gen/countersign/server/v1/server.ts';
import type { Clock } from '../../src/base/clock.ts';
import type { Logger } from '../../src/base/log.ts';
import { systemTimers } from '../../src/base/timers.ts';
import type { AuditSink } from '../../src/model/audit-event.ts';
import type { TrustBundle } from '../../src/model/identity.ts';
import { encodeSpiffeBundle } from '../../src/pki/spiffe-bundle.ts';
import type { ServerConfig } from '../config.ts';
import type { Feed } from '../feed.ts';
import type { ServerSvid } from '../signer.ts';
import type { Store } from '../store.ts';
import type { FederatedSource } from '../sync.ts';
import { fileCredentials, svidCredentials } from './credentials.ts';
import { ForeignBundles } from './foreign-bundles.ts';
import { serveHttps } from './https-server.ts';
import { oidcDocuments } from './oidc.ts';

export interface FederationOptions {
  readonly config: Pick<ServerConfig, 'trustDomain' | 'federation' | 'oidc'>;
  readonly ca: CertificateAuthority;
  readonly store: Store;
  readonly feed: Feed;
  readonly svid: () => ServerSvid;
  /** Resolves when everything that was written is so on disk as the store has it: nothing is published before. */
  readonly durable: () => Promise<void>;
  readonly clock: Clock;
  readonly audit: AuditSink;
  readonly log: Logger;
}

export interface Federation {
  readonly foreign: ForeignBundles;
  /** As Sync sends them to agents. */
  readonly synced: FederatedSource;
  close(): void;
}

/** @throws CountersignError */
export async function startFederation(options: FederationOptions): Promise<Federation> {
  const { config, ca, store, feed, svid, durable, clock, audit, log } = options;
  const { bundleEndpoint, trustDomains } = config.federation;
  const { oidc } = config;
  const ownBundle = (): TrustBundle => ({ trustDomain: config.trustDomain, ...ca.bundle() });
  const published = async (): Promise<TrustBundle> => {
    const bundle = ownBundle();
    await durable();
    return bundle;
  };
  const closers: (() => void)[] = [];
  const close = () => {
    for (const closer of closers.splice(0).reverse()) closer();
  };
  try {
    if (bundleEndpoint !== undefined) {
      const { listen, path, profile } = bundleEndpoint;
      const credentials =
        profile === 'https_spiffe'
          ? svidCredentials(svid, feed)
          : fileCredentials(profile.https_web, systemTimers, log);
      const documents = { [path]: async () => encodeSpiffeBundle(await published()) };
      closers.push(await serveHttps({ field: 'federation.bundleEndpoint', ...listen, credentials, documents, log }));
    }
    if (oidc !== undefined) {
      const credentials = fileCredentials(oidc.tls, systemTimers, log);
      const documents = oidcDocuments(oidc.issuer, published);
      closers.push(await serveHttps({ field: 'oidc', ...oidc.listen, credentials, documents, log }));
    }
    const foreign = new ForeignBundles({
      trustDomain: config.trustDomain,
      configured: trustDomains,
      ownBundle,
      isRevoked: (subject) => ca.isRevoked(subject),
      store,
      feed,
      clock,
      timers: systemTimers,
      audit,
      log,
    });
    closers.push(() => foreign.close());
    const synced: FederatedSource = {
      list: () => foreign.trustDomains(),
      bundleOf: (trustDomain) => {
        const bundle = foreign.bundleOf(trustDomain);
        return bundle === undefined ? undefined : foreignBundleMessage(bundle);
      },
    };
    return { foreign, synced, close };
  } catch (thrown) {
    close();
    throw thrown;
  }
}

function foreignBundleMessage(bundle: TrustBundle): Bundle {
  const { authorities, jwtAuthorities = [], sequence = 0n, refreshHintSeconds = 0 } = bundle;
  return {
    certificates: [...authorities],
    sequence,
    jwtAuthorities: jwtAuthorities.map(({ keyId, publicKey }) => ({ keyId, publicKey, expiresAt: 0n, tainted: false })),
    refreshHintSeconds,
    taintedKeyIds: [],
  };
}
