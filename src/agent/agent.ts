/**
 * The agent, wired up: the identity server's word in, the kernel's verdicts out, peers in between. Every part is told here what
 * it needs of the others; none of them knows another by name.
 */
import { sign } from 'node:crypto';
import { existsSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { type AuditLog, openAuditLog } from '../audit/log.ts';
import { type AuthManager, createAuthManager, isAuthFrame } from '../auth/manager.ts';
import type { Clock } from '../base/clock.ts';
import { asError, CountersignError } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import { NET } from '../base/registry/net.ts';
import { reasonCodes } from '../base/registry/reason-codes.ts';
import { systemTimers } from '../base/timers.ts';
import { parseDialAddress } from '../channel/dial-address.ts';
import type { PeerChannelEvents } from '../channel/peer-channel.ts';
import { type StartedPeerChannels, startPeerChannels } from '../channel/peer-channels.ts';
import { type Datapath, openDatapath } from '../datapath/datapath.ts';
import type { AuditEvent } from '../model/audit-event.ts';
import type { DatapathSignal } from '../model/datapath.ts';
import { type IpAddress, LOCAL_NODE, type NodeId } from '../model/ids.ts';
import { startWorkloadApi } from '../workload/workload-api.ts';
import { type AdminHandlers, serveAdmin } from './admin-socket.ts';
import { flushAuth, testAuth } from './auth-admin.ts';
import { readBootstrapBundle, readJoinToken, readNodeCertificate, underlayIndex } from './bootstrap.ts';
import { startCheckpoints } from './checkpoints.ts';
import type { AgentConfig } from './config.ts';
import { Endpoints } from './endpoints.ts';
import { Enforcement, enforcementAtStart } from './enforcement.ts';
import { explainPair } from './explain.ts';
import { followServer } from './follow-server.ts';
import { watchInterfaces } from './interfaces.ts';
import { checkFilter, Monitor } from './monitor.ts';
import { BPF_OBJECT } from './operate.ts';
import { type PacketNames, packetEvent } from './packet-events.ts';
import { openPath } from './path.ts';
import { PolicyControl } from './policy-control.ts';
import { connectServer } from './server-client/client.ts';
import { WorkloadSvids } from './server-client/svids.ts';
import { StandingChannels } from './standing-channels.ts';
import { StartingStatus } from './starting.ts';
import { Surroundings } from './surroundings.ts';
import { withProvidedSvids } from './svid-source.ts';
import * as views from './views.ts';

/** Everything is looked at this often, besides every change that the agent is told of. */
const RECONCILE_MS = 500;
/** A node's leases are renewed for so many of them after it was last needed. */
const IDLE_LEASES = 4;
/** The host's own addresses: all of its interfaces are read for them. */
const HOST_ADDRESSES_MS = 5_000;

export interface Agent {
  /** Resolves when this process can no longer be the node: it is to be closed, and started anew. */
  readonly barred: Promise<CountersignError>;
  close(): Promise<void>;
}

export async function startAgent(config: AgentConfig, clock: Clock, log: Logger): Promise<Agent> {
  const closers: (() => void | Promise<void>)[] = [];
  const { promise: barred, resolve: bar } = Promise.withResolvers<CountersignError>();
  const closeAll = async (): Promise<void> => {
    for (const close of closers.splice(0).reverse()) await close();
  };
  try {
    await start(config, clock, log, closers, bar);
  } catch (thrown) {
    await closeAll();
    throw thrown;
  }
  return { barred, close: closeAll };
}

async function start(
  config: AgentConfig,
  clock: Clock,
  log: Logger,
  closers: (() => void | Promise<void>)[],
  bar: (why: CountersignError) => void,
): Promise<void> {
  const origin = `${config.trustDomain}/node/${config.node.name}`;
  const auditLog: AuditLog = openAuditLog({ dir: join(config.dataDir, 'audit'), origin, clock, log });
  closers.push(() => auditLog.close());
  const names = new Map(config.endpoints.flatMap(({ name, addresses }) => addresses.map((a) => [a, name] as const)));
  const audit = new Monitor(auditLog, {
    workloadAt: (address) => names.get(address),
    setSample: (oneOf) => datapath.setVerdictSample(oneOf),
    nowMs: () => clock.nowMs(),
  });

  // The kernel first: from here on nothing unproven passes, whatever else fails.
  let onSignal: (signal: DatapathSignal) => void = () => {};
  const inForce = enforcementAtStart(config.dataDir, log);
  const datapath = startDatapath(config, inForce.stopped, clock, log, (signal) => onSignal(signal));
  closers.push(() => datapath.close());
  // Before anything that may wait: break-glass works while the server is down.
  const enforcement = new Enforcement({
    dataDir: config.dataDir,
    node: config.node.name,
    inForce,
    setStopped: (stopped) => datapath.setFlags({ stopped }),
    audit,
    log,
  });
  closers.push(() => enforcement.close());
  datapath.attachUnderlay(underlayIndex(config));

  const bundle = readBootstrapBundle(config);
  const stateDir = join(config.dataDir, 'node');
  const firstLife = !existsSync(stateDir);
  const starting = new StartingStatus(config.sockets.admin, config.node.name);
  closers.push(() => starting.close());
  const server = await connectServer({
    addresses: config.server.addresses,
    trustDomain: config.trustDomain,
    bundle: [...bundle],
    nodeName: config.node.name,
    joinToken: () => readJoinToken(config),
    ...(config.server.attestor.type === 'x509pop' ? { x509pop: async () => readNodeCertificate(config) } : {}),
    stateDir,
    peerAddresses: [...config.peer.listen],
    clock,
    log,
    audit,
    waiting: (why) => starting.waiting(why),
  });
  closers.push(() => server.close());
  await starting.close();
  server.onBarred((reason) => {
    const message = `node ${config.node.name}: ${reasonCodes[reason]} (${reason}); this process ends, the next one asks for a new incarnation`;
    bar(new CountersignError('unavailable', message));
  });
  if (config.server.joinTokenFile !== undefined) rmSync(config.server.joinTokenFile, { force: true });
  const self = () => ({ info: server.node.info, svid: server.node.svid() });
  const certifyLog = () =>
    auditLog.certify((bytes) => {
      const svid = server.node.svid();
      return { chain: [...svid.chain], signature: sign('sha256', bytes, svid.privateKey) };
    });
  certifyLog();
  // By the SVID of now: what signed the one before may leave the bundle that the log is verified with.
  server.onNodeSvid(() => {
    try {
      certifyLog();
    } catch (thrown) {
      log.error({ err: asError(thrown) }, 'the key of the audit log could not be certified anew');
    }
  });
  audit.emit({
    kind: 'agent.started',
    source: { node: config.node.name, spiffeId: server.node.info.spiffeId },
    detail: { attach: datapath.attachMode },
  });
  closers.push(() => audit.emit({ kind: 'agent.stopped', source: { node: config.node.name } }));

  const checkpoints = startCheckpoints(auditLog, server, log);
  closers.push(() => checkpoints.close());
  // At the start, so that a log that was set back shows before anything is added to it.
  void checkpoints.send();

  const svids = new WorkloadSvids({ client: server, clock, log, audit });
  closers.push(() => svids.close());
  const svidSource = withProvidedSvids(svids, config.endpoints, server.identities, log);

  const path = await openPath({ config, datapath, self, audit, log });
  closers.push(() => path.close());

  // What an agent of before saw of its peers: an older incarnation of one stays barred, whatever the server says.
  const seen = incarnationsSeen(datapath);

  // Vouches in the pinned maps are in force only together with their binding in the tunnel: a new path has none.
  if (!path.continues) forgetVouches(datapath);

  // Channels tell the manager and the manager asks the channels: the events are bound late.
  let manager: AuthManager;
  const events: PeerChannelEvents = {
    opened(channel) {
      path.channelOpened(channel);
      manager.opened(channel);
    },
    frame(channel, type, body) {
      if (isAuthFrame(type)) manager.frame(channel, type, body);
      else path.frame(channel, type, body);
    },
    closed(channel, reason) {
      path.channelClosed(channel);
      manager.closed(channel, reason);
    },
  };
  const channels: StartedPeerChannels = await startPeerChannels({
    self,
    nodes: server.nodes,
    bundles: server.bundles,
    revocations: server.revocations,
    trustDomain: config.trustDomain,
    seenIncarnation: (node) => seen.get(node),
    staticAddresses: new Map(config.peer.static.map(({ node, addresses }) => [node, addresses])),
    listen: config.peer.listen.map((text) => {
      const { host, port } = parseDialAddress(text)!;
      return { address: host, port };
    }),
    clock,
    audit,
    log,
    events,
  });
  closers.push(() => channels.close());

  let endpoints: Endpoints;
  const idleAfterNs = BigInt(IDLE_LEASES * config.authentication.lease) * 1_000_000n;
  manager = createAuthManager({
    self: server.node.info,
    firstLife,
    channels,
    hold: datapath.hold,
    authTable: datapath.auth,
    addresses: datapath.addresses,
    identities: server.identities,
    nodes: server.nodes,
    svids: svidSource,
    bundles: server.bundles,
    revocations: server.revocations,
    tainted: () => server.ownBundle().tainted,
    policy: () => policy,
    tunnel: path.binding,
    fences: datapath.fences,
    quiesce: () => datapath.quiesce(),
    lastUse: (node) => datapath.lastUse(node),
    inUse: (node) => standing.isWanted(node) || clock.bootNs() - manager.lastUseOf(node) < idleAfterNs,
    endpointOpened: (endpoint) => endpoints.opened(endpoint.endpoint),
    audit,
    clock,
    timers: systemTimers,
    log,
    settings: {
      leaseMs: config.authentication.lease,
      maxAuthAgeMs: config.authentication.maxAuthAge,
      queueSize: config.authentication.queueSize,
      preAuthentication: config.authentication.preAuthentication,
    },
  });
  // Before the channels and the tables: an authentication under way must not write what is closed.
  closers.push(() => manager.close());
  const interfaces = watchInterfaces({ changed: (names) => endpoints.reconcileInterfaces(names), log });
  closers.push(() => interfaces.close());
  endpoints = new Endpoints({
    configs: config.endpoints,
    interfaces,
    datapath,
    host: {
      add: (own, continues) => manager.addEndpoint(own, continues),
      close: (id) => manager.closeEndpoint(id),
      waitsFor: (id) => manager.waitsFor(id).map((node) => server.nodes.byId(node)?.name ?? `node ${node}`),
    },
    identities: server.identities,
    audit,
    log,
  });
  const surroundings = new Surroundings(datapath, server, config);
  const policy = new PolicyControl({
    ...config.policies,
    nodeLabels: config.node.labels,
    datapath,
    identities: server.identities,
    locals: () => endpoints.view().flatMap((e) => (e.identity === undefined ? [] : [e.identity])),
    changed: (of) => manager.policyChanged(of),
    audit,
    log,
  });
  closers.push(() => policy.close());

  const packetNames: PacketNames = {
    identities: server.identities,
    nodes: server.nodes,
    nodeName: config.node.name,
    ruleOf: (signal) => policy.ruleOf(signal),
  };
  onSignal = (signal) => {
    const event = packetEvent(signal, packetNames);
    if (event?.kind === 'packet.allowed') audit.allowed(event);
    else if (event !== undefined) audit.emit(event as AuditEvent);
    manager.signal(signal);
  };
  closers.push(() => endpoints.close());
  followServer({ server, svids, surroundings, endpoints, policy, manager, channels, path, audit });
  const standing = new StandingChannels({
    self: server.node.info,
    channels,
    nodes: server.nodes,
    identities: server.identities,
    requiredPeers: () => policy.requiredPeers(),
    lastUseOf: (node) => manager.lastUseOf(node),
    limit: config.authentication.preAuthentication.channels,
    log,
  });
  standing.apply();
  manager.reconnect();
  const timer = setInterval(() => {
    endpoints.reconcile();
    standing.apply();
  }, RECONCILE_MS);
  closers.push(() => clearInterval(timer));
  const addresses = setInterval(() => surroundings.reconcile(), HOST_ADDRESSES_MS);
  closers.push(() => clearInterval(addresses));

  const workloadApi = await startWorkloadApi({
    socketPath: config.sockets.workload,
    attestation: { ...config.workloadAttestation, deadlineMs: config.workloadAttestation.deadline },
    feed: svids,
    audit,
    clock,
    log,
  });
  closers.push(() => workloadApi.close());
  const parts: views.Parts = {
    config,
    server,
    svids,
    datapath,
    path,
    channels,
    manager,
    endpoints,
    policy,
    enforcement,
    auditLog,
    clock,
  };
  const admin = await serveAdmin(config.sockets.admin, handlers(parts, audit));
  closers.push(() => admin.close());
  log.info({ node: config.node.name, attach: datapath.attachMode, tunnel: path.describe() }, 'ready');
}

function startDatapath(
  config: AgentConfig,
  stopped: boolean,
  clock: Clock,
  log: Logger,
  onSignal: (signal: DatapathSignal) => void,
): Datapath {
  return openDatapath({
    node: config.node.name,
    bpffs: config.bpffs,
    objectPath: BPF_OBJECT,
    holdDevice: config.hold.device,
    holdLimitPerIdentity: Math.min(config.hold.limitPerIdentity, config.hold.limitTotal),
    holdLimitTotal: config.hold.limitTotal,
    holdDeadlineMs: config.hold.deadline,
    signalIntervalMs: config.datapath.signalInterval,
    peerPort: parseDialAddress(config.peer.listen[0]!)?.port ?? NET.peerPort,
    hostExempt: {
      servers: [...config.server.addresses, ...config.peer.static.flatMap(({ addresses }) => addresses)].flatMap(
        (text) => {
          const at = parseDialAddress(text);
          return at === undefined ? [] : [{ address: at.host as IpAddress, port: at.port }];
        },
      ),
      udpPorts: config.encryption.enabled ? [config.encryption.wireguard.port] : [],
    },
    allowUnboundPath: config.authentication.allowUnboundPath,
    observe: config.enforcement === 'observe',
    stopped,
    encrypt: config.encryption.enabled,
    exempt: config.exempt,
    attach: config.datapath.attach,
    clock,
    onSignal,
    log,
  });
}

function incarnationsSeen(datapath: Datapath): ReadonlyMap<NodeId, bigint> {
  const seen = new Map<NodeId, bigint>();
  for (const { node, incarnation, reserved } of datapath.addresses.list()) {
    if (!reserved && incarnation > (seen.get(node) ?? 0n)) seen.set(node, incarnation);
  }
  return seen;
}

function forgetVouches(datapath: Datapath): void {
  for (const entry of datapath.addresses.list()) {
    if (!entry.reserved && entry.node !== LOCAL_NODE) datapath.addresses.delete(entry.address);
  }
}

function handlers(parts: views.Parts, audit: Monitor): AdminHandlers {
  return {
    status: () => views.status(parts),
    endpoints: () => parts.endpoints.view(),
    vouches: () => views.vouches(parts),
    auth: () => parts.manager.list(),
    flushAuth: (request) => flushAuth(parts, request, audit),
    testAuth: (request) => testAuth(parts, request),
    peers: () => views.peers(parts),
    drops: () => views.drops(parts),
    dropPairs: () => views.dropPairs(parts),
    policy: () => ({ rules: parts.policy.rules(), warnings: parts.policy.warnings() }),
    explain: (request) => explainPair(parts, request),
    reloadPolicy: () => parts.policy.reload(),
    monitor: (filter, sink) => audit.listen(checkFilter(filter), sink),
  };
}
