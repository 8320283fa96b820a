/** An identity server, put together: everything but the process around it. */
import { join } from 'node:path';
import { openAuditLog } from '../src/audit/log.ts';
import type { Clock } from '../src/base/clock.ts';
import { asError, CountersignError } from '../src/base/errors.ts';
import type { Logger } from '../src/base/log.ts';
import { backupHandler } from './admin/backup.ts';
import { bundleAdmin } from './admin/bundles.ts';
import { caAdmin } from './admin/ca.ts';
import { coreAdmin } from './admin/core.ts';
import { roles as rolesOf } from './admin/roles.ts';
import { attestorsOf } from './attestors.ts';
import type { ServerConfig } from './config.ts';
import { type Datastore, localDatastore, makeDataDir } from './datastore.ts';
import { adminDoors } from './doors.ts';
import { loadEntriesFile, watchEntriesFile } from './entries-file.ts';
import { startFederation } from './federation/federation.ts';
import { Feed } from './feed.ts';
import { Listener } from './listener.ts';
import { nodeShares } from './node-share.ts';
import { Nodes } from './nodes.ts';
import { limitRefusals } from './refusal-audit.ts';
import { Registry } from './registry.ts';
import { keepRenewed } from './renewal.ts';
import { createService } from './service.ts';
import { Signer } from './signer.ts';
import { SigningKeys } from './signing-keys.ts';
import { openState } from './state.ts';
import { SyncHub } from './sync.ts';

export interface IdentityServer {
  /** The port it listens on. */
  readonly port: number;
  close(): Promise<void>;
}

/**
 * Starts it; what was opened is closed again if something fails.
 * @param datastore left out: the data directory, which is this server's alone
 * @throws CountersignError
 */
export async function startServer(
  config: ServerConfig,
  clock: Clock,
  log: Logger,
  datastore: Datastore = localDatastore(config.dataDir),
): Promise<IdentityServer> {
  const closers: (() => unknown)[] = [];
  const close = async () => {
    for (const closer of closers.splice(0).reverse()) await closer();
  };
  try {
    return { port: await start(config, datastore, clock, log, closers), close };
  } catch (thrown) {
    await close();
    // a full disk, one that went: no fault of the settings, and nothing that was left half done
    if ((thrown as NodeJS.ErrnoException).code !== 'ERR_SQLITE_ERROR') throw thrown;
    const message = `dataDir: ${config.dataDir}: ${asError(thrown).message}; make room, or see to the disk, and start again`;
    throw new CountersignError('unavailable', message, { cause: thrown });
  }
}

async function start(
  config: ServerConfig,
  datastore: Datastore,
  clock: Clock,
  log: Logger,
  closers: (() => unknown)[],
): Promise<number> {
  const { trustDomain, dataDir } = config;
  const { interceptors } = datastore;
  const durable = () => datastore.durable();
  makeDataDir(dataDir);
  const { ca, store, sources } = await openState(config, datastore, clock, log, closers);
  const signer = await Signer.create(ca);
  const svid = () => signer.svid;

  const certify = (bytes: Buffer) => signer.certify(bytes);
  const origin = `${trustDomain}/countersign/server`;
  const audit = openAuditLog({ dir: config.audit.dir, origin, clock, log, certify });
  closers.push(() => audit.close());
  const refusals = limitRefusals(audit, clock);

  const feed = new Feed(store);
  const nodes = new Nodes({ store, feed, ca, configured: config.nodes });
  const registry = new Registry({ store, feed, trustDomain, nodeNames: nodes.names, audit });
  if (config.entriesFile !== undefined) {
    loadEntriesFile(registry, config.entriesFile);
    closers.push(watchEntriesFile(registry, config.entriesFile, log));
  }
  const federation = await startFederation({ config, ca, store, feed, svid, durable, clock, audit, log });
  closers.push(() => federation.close());
  const hub = new SyncHub({ feed, registry, nodes, ca, signer, federated: federation.synced, clock, log, audit });
  closers.push(() => hub.close());
  hub.prepare();

  const takeShare = nodeShares({
    perSecond: config.limits.svidsPerNode,
    entriesOf: (node) => registry.countOf(node),
    clock,
    audit,
  });
  const service = createService({
    nodes,
    hub,
    attest: {
      attestors: attestorsOf(config, { store, nodes, clock }),
      nodes,
      ca,
      clock,
      audit: refusals,
      isLive: (name) => hub.isLive(name),
      hold: (name) => hub.expect(name),
    },
    issue: { ca, registry, nodes, clock, audit, issuer: config.oidc?.issuer },
    takeShare,
    checkpoints: { store, trustDomain, clock, audit },
    callerOf: (peer) => listener.caller(peer),
    interceptors,
    clock,
    log,
  });
  closers.push(() => service.close());
  const listener = new Listener({
    ...config.listen,
    limits: config.limits,
    bundle: () => ({ trustDomain, authorities: ca.bundle().authorities }),
    isOwnKey: (id) => ca.authorities().some((authority) => authority.kind === 'x509' && authority.id === id),
    svid,
    clock,
    log,
    audit: refusals,
    accept: service.accept,
  });
  const renew = async () => {
    await signer.renew(registry.rows().values(), durable);
    audit.certify(certify);
    feed.publish({ signer: true });
  };
  // The first handshake and bundle.pem show certificates that were made just now.
  await durable();
  const bundleFile = join(dataDir, 'bundle.pem');
  const signingKeys = new SigningKeys({ ca, feed, signer, hub, renew, bundleFile, durable, audit, log });
  closers.push(() => signingKeys.close());
  const port = await listener.listen();
  closers.push(() => listener.close());

  const startedAt = new Date(clock.nowMs()).toISOString();
  const status = () => ({
    trustDomain,
    address: `${config.listen.address}:${port}`,
    datastore: config.datastore.type,
    role: 'serving',
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
  const roles = rolesOf({ configured: config.admin.roles, registry });
  const doors = adminDoors({ config, ca, signer, nodes, roles, interceptors, clock, log, audit: refusals });
  const admin = { actorOf: doors.actorOf, log, audit: refusals };
  const backup = backupHandler(admin, sources);
  const ownBundle = () => ({ trustDomain, ...ca.bundle() });
  await doors.serve(
    [
      coreAdmin({ ...admin, ca, store, registry, nodes, feed, hub, signingKeys, clock, status, roles, backup }),
      caAdmin({ ...admin, ca, signingKeys, registry, workloadOf: doors.workloadOf, takeShare }),
      bundleAdmin({ ...admin, trustDomain, ownBundle, foreign: federation.foreign }),
    ],
    closers,
  );
  federation.foreign.start();

  closers.push(keepRenewed(signer, clock, log, renew));
  audit.emit({ kind: 'server.started', detail: { port, entries: registry.size } });
  closers.push(() => audit.emit({ kind: 'server.stopped' }));
  log.info({ address: config.listen.address, port, trustDomain }, 'identity server ready');
  return port;
}
