/** An identity server, put together: everything but the process around it. */
import { chmodSync, existsSync, mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { openCertificateAuthority } from '../ca/api.ts';
import { openAuditLog } from '../src/audit/log.ts';
import type { Clock } from '../src/base/clock.ts';
import { asError } from '../src/base/errors.ts';
import type { Logger } from '../src/base/log.ts';
import { systemTimers } from '../src/base/timers.ts';
import { bundleAdmin } from './admin/bundles.ts';
import { caAdmin } from './admin/ca.ts';
import { coreAdmin } from './admin/core.ts';
import { adminTls } from './admin/mtls.ts';
import { roles } from './admin/roles.ts';
import { serveAdminSocket, UNIX_PEER } from './admin/socket.ts';
import { joinTokenAttestor, type NodeAttestor } from './attest.ts';
import type { ServerConfig } from './config.ts';
import { loadEntriesFile, watchEntriesFile } from './entries-file.ts';
import { startFederation } from './federation/federation.ts';
import { Feed } from './feed.ts';
import { Listener } from './listener.ts';
import { Nodes } from './nodes.ts';
import { Registry } from './registry.ts';
import { createService } from './service.ts';
import { Signer } from './signer.ts';
import { SigningKeys } from './signing-keys.ts';
import { Store } from './store.ts';
import { SyncHub } from './sync.ts';
import { x509popAttestor } from './x509pop.ts';

export interface IdentityServer {
  /** The port it listens on. */
  readonly port: number;
  close(): Promise<void>;
}

/** Starts it; what was opened is closed again if something fails. @throws CountersignError */
export async function startServer(config: ServerConfig, clock: Clock, log: Logger): Promise<IdentityServer> {
  const closers: (() => unknown)[] = [];
  const close = async () => {
    for (const closer of closers.splice(0).reverse()) await closer();
  };
  try {
    return { port: await start(config, clock, log, closers), close };
  } catch (thrown) {
    await close();
    throw thrown;
  }
}

async function start(config: ServerConfig, clock: Clock, log: Logger, closers: (() => unknown)[]): Promise<number> {
  const { trustDomain, dataDir } = config;
  const limits = (seconds: number) => ({ defaultTtlSeconds: seconds, maxTtlSeconds: Math.max(seconds, 86_400) });
  makeDataDir(dataDir);

  const ca = await openCertificateAuthority({
    directory: join(dataDir, 'ca'),
    trustDomain,
    clock,
    workloadTtl: limits(config.ca.workloadTtl),
    nodeTtl: limits(config.ca.nodeTtl),
    serverTtl: limits(config.ca.serverTtl),
    onError: (error) => log.error({ err: error }, 'the certificate authority could not do what was due'),
  });
  closers.push(() => ca.close());
  const store = new Store(join(dataDir, 'identity.db'));
  closers.push(() => store.close());
  const signer = await Signer.create(ca);

  const origin = `${trustDomain}/countersign/server`;
  const certify = (bytes: Buffer) => signer.certify(bytes);
  const audit = openAuditLog({ dir: config.audit.dir, origin, clock, log, certify });
  closers.push(() => audit.close());

  const feed = new Feed(store);
  const nodes = new Nodes({ store, feed, ca, configured: config.nodes });
  const registry = new Registry({ store, feed, trustDomain, nodeNames: nodes.names, audit });
  if (config.entriesFile !== undefined) {
    loadEntriesFile(registry, config.entriesFile);
    closers.push(watchEntriesFile(registry, config.entriesFile, log));
  }
  const durable = async () => {};
  const federation = await startFederation({
    config,
    ca,
    store,
    feed,
    svid: () => signer.svid,
    durable,
    clock,
    audit,
    log,
  });
  closers.push(() => federation.close());
  const hub = new SyncHub({ feed, registry, nodes, ca, signer, federated: federation.synced, clock, log, audit });
  closers.push(() => hub.close());
  hub.prepare();

  const service = createService({
    nodes,
    hub,
    attest: {
      attestors: attestorsOf(config, { store, nodes, clock }),
      nodes,
      ca,
      clock,
      audit,
      isLive: (name) => hub.isLive(name),
      hold: (name) => hub.expect(name),
    },
    issue: { ca, registry, nodes, clock, audit, issuer: config.oidc?.issuer },
    checkpoints: { store, trustDomain, clock, audit },
    callerOf: (peer) => listener.caller(peer),
    clock,
    log,
  });
  closers.push(() => service.close());
  const listener = new Listener({
    address: config.listen.address,
    port: config.listen.port,
    limits: config.limits,
    bundle: () => ({ trustDomain, authorities: ca.bundle().authorities }),
    svid: () => signer.svid,
    clock,
    log,
    audit,
    accept: service.accept,
  });
  const renewed = () => {
    audit.certify(certify);
    feed.publish({ signer: true });
  };
  const renew = async () => {
    await signer.renew();
    renewed();
  };
  const bundleFile = join(dataDir, 'bundle.pem');
  const signingKeys = new SigningKeys({ ca, feed, signer, hub, renew, bundleFile, durable, audit, log });
  closers.push(() => signingKeys.close());
  const port = await listener.listen();
  closers.push(() => listener.close());

  const startedAt = new Date(clock.nowMs()).toISOString();
  const status = () => ({
    trustDomain,
    address: `${config.listen.address}:${port}`,
    startedAt,
    version: feed.version,
    nodes: { configured: config.nodes.length, attested: nodes.members().length, connected: hub.live().length },
    entries: registry.size,
    identities: registry.rows().size,
    revocations: ca.revocations().length,
    connections: listener.connections,
    serverSvidNotAfter: new Date(signer.svid.notAfterMs).toISOString(),
    audit: { size: audit.size, lost: audit.lost },
  });
  const adminRoles = roles({ configured: config.admin.roles, registry });
  const tls =
    config.admin.listen === undefined
      ? undefined
      : adminTls({
          ...config.admin.listen,
          ca,
          roles: adminRoles,
          bundle: () => ({ trustDomain, authorities: ca.bundle().authorities }),
          svid: () => signer.svid,
          clock,
          log,
          audit,
        });
  // Whoever may open the socket is the administrator.
  const actorOf = (peer: string) =>
    peer === UNIX_PEER
      ? ({ name: 'admin', role: 'admin' } as const)
      : (tls?.actorOf(peer) ?? ('PEER_CHANNEL_CLOSED' as const));
  const core = coreAdmin({
    ca,
    store,
    registry,
    nodes,
    feed,
    hub,
    signingKeys,
    clock,
    log,
    audit,
    status,
    actorOf,
    roles: adminRoles,
  });
  const authorities = caAdmin({ ca, signingKeys, hub, log, audit, actorOf });
  const ownBundle = () => ({ trustDomain, ...ca.bundle() });
  const bundles = bundleAdmin({ trustDomain, ownBundle, foreign: federation.foreign, log, audit, actorOf });
  const services = [core, authorities, bundles];
  closers.push(await serveAdminSocket(config.adminSocket, services));
  if (tls !== undefined) {
    closers.push(() => tls.close());
    const adminPort = await tls.serve(services);
    log.info({ address: config.admin.listen?.address, port: adminPort }, 'administration over TLS');
  }
  federation.foreign.start();

  closers.push(keepRenewed(signer, clock, log, renewed));
  audit.emit({ kind: 'server.started', detail: { port, entries: registry.size } });
  closers.push(() => audit.emit({ kind: 'server.stopped' }));
  log.info({ address: config.listen.address, port, trustDomain }, 'identity server ready');
  return port;
}

function attestorsOf(
  { attestors: { join_token, x509pop } }: ServerConfig,
  { store, nodes, clock }: { store: Store; nodes: Nodes; clock: Clock },
): NodeAttestor[] {
  const attestors: NodeAttestor[] = [];
  if (join_token.enabled) attestors.push(joinTokenAttestor(store, clock));
  if (x509pop !== undefined) attestors.push(x509popAttestor({ config: x509pop, nodes, clock }));
  return attestors;
}

/** The server's own SVID is renewed at half its life; after a failure again in a while. */
function keepRenewed(signer: Signer, clock: Clock, log: Logger, renewed: () => void): () => void {
  const RETRY_MS = 10_000;
  let cancel = () => {};
  const plan = (waitMs: number) => {
    cancel = systemTimers.set(waitMs, () => void renewal());
  };
  const half = () => (signer.svid.notBeforeMs + signer.svid.notAfterMs) / 2 - clock.nowMs();
  const renewal = async () => {
    try {
      if (half() <= 0) {
        await signer.renew();
        renewed();
      }
      plan(Math.max(half(), 1000));
    } catch (thrown) {
      log.error({ err: asError(thrown) }, 'the server could not renew its own SVID');
      plan(RETRY_MS);
    }
  };
  plan(Math.max(half(), 1000));
  return () => cancel();
}

/** Others may pass through it to bundle.pem; everything else in it keeps itself private. */
function makeDataDir(path: string): void {
  if (existsSync(path)) return;
  mkdirSync(path, { recursive: true, mode: 0o711 });
  chmodSync(path, 0o711);
}
