/**
 * One life of an agent: the product's auth manager, endpoints, tunnel manager, WireGuard tunnel and standing channels, wired as
 * src/agent/agent.ts wires them, over a simulated kernel, device and network. What it remembers dies with it.
 */

import type { FrameType } from '../../proto/gen/countersign/peer/v1/peer.ts';
import { Endpoints } from '../../src/agent/endpoints.ts';
import { StandingChannels } from '../../src/agent/standing-channels.ts';
import { type AuthManager, createAuthManager, isAuthFrame } from '../../src/auth/manager.ts';
import type { TunnelBinding } from '../../src/auth/ports.ts';
import { CountersignError } from '../../src/base/errors.ts';
import type { ReasonCode } from '../../src/base/registry/reason-codes.ts';
import type { PeerChannel } from '../../src/channel/peer-channel.ts';
import type { Datapath } from '../../src/datapath/datapath.ts';
import { createTunnelManager, type TunnelManager } from '../../src/encryption/manager.ts';
import { WireguardTunnel } from '../../src/encryption/tunnel.ts';
import type { AuditEvent } from '../../src/model/audit-event.ts';
import type { NodeInfo } from '../../src/model/identity.ts';
import { LOCAL_NODE } from '../../src/model/ids.ts';
import type { Owner } from './engine.ts';
import { SILENT } from './log.ts';
import type { Machine } from './machine.ts';
import { type ChannelEnd, SimChannels } from './network.ts';
import { TunnelDevice } from './tunnel-device.ts';

/** The agent looks twice as often; here it is told of every change besides. */
const RECONCILE_MS = 1_000;
const READY_TIMEOUT_MS = 4_000;

export class Agent {
  readonly machine: Machine;
  readonly owner: Owner;
  readonly self: NodeInfo;
  readonly certificate: PeerChannel['peerCertificate'];
  readonly channels: SimChannels;
  manager!: AuthManager;
  endpoints!: Endpoints;
  isReady = false;
  #tunnels!: TunnelManager;
  #standing!: StandingChannels;

  constructor(machine: Machine) {
    const { world } = machine;
    this.machine = machine;
    this.owner = { machine, dead: false };
    this.self = world.selfInfo(machine);
    this.certificate = world.material.nodeCertificate(machine.name);
    this.channels = new SimChannels(this);
  }

  /** As src/agent/agent.ts: kernel, path, manager, endpoints. */
  async start(): Promise<void> {
    const { machine } = this;
    const { world } = machine;
    const datapath = machine.kernel.datapath(this.owner) as unknown as Datapath;
    const audit = { emit: (event: AuditEvent) => world.audited(machine, event) };
    const timers = machine.timersOf(this.owner);
    const continues = machine.device !== undefined;
    machine.device ??= new TunnelDevice(machine);
    const key = world.material.tunnelKey(machine.name);
    const time = {
      now: () => machine.tunnelNowMs(),
      sleep: (ms: number) => new Promise<void>((resolve) => timers.set(ms, resolve)),
    };
    const tunnel = new WireguardTunnel(
      { device: 'wg', listenPort: 51_820, mtu: 1_420, fwmark: 0, orphanMs: 60_000, time },
      key,
      machine.device,
      { addRoute: () => {}, deleteRoute: () => {}, setUp: () => {} } as never,
      SILENT,
    );
    await tunnel.start();
    const nodeSvid = world.material.nodeSvid(machine.name);
    this.#tunnels = createTunnelManager({
      tunnel,
      self: () => ({ info: this.self, svid: nodeSvid, underlayEndpoint: () => '192.0.2.1:51820' }),
      audit,
      log: SILENT,
    });
    if (!continues)
      for (const entry of datapath.addresses.list())
        if (!entry.reserved && entry.node !== LOCAL_NODE) datapath.addresses.delete(entry.address);
    const binding: TunnelBinding = {
      whenReady: (node) => this.#tunnels.whenReady(node.id, READY_TIMEOUT_MS),
      allow: (node, address) => tunnel.allow(node, address),
      disallow: (address) => tunnel.disallow(address),
      endSession: async (node) => {
        if (!world.faults.noEndSession) await this.#tunnels.endSession(node);
      },
    };
    const firstLife = !machine.hasState;
    machine.hasState = true;
    machine.trace.event('agent-start', { incarnation: this.self.incarnation });
    this.manager = createAuthManager({
      self: this.self,
      firstLife,
      channels: this.channels,
      hold: datapath.hold,
      authTable: datapath.auth,
      addresses: datapath.addresses,
      identities: world.identities,
      nodes: world.nodes,
      svids: { svidOf: (identity) => world.material.svid(machine.name, identity) },
      bundles: world.material,
      revocations: { isRevoked: (subject) => world.isRevoked(machine, subject) },
      policy: () => machine.policy,
      tunnel: binding,
      lastUse: (node) => datapath.lastUse(node),
      fences: datapath.fences,
      quiesce: () => datapath.quiesce(),
      trace: machine.trace.vouches(),
      endpointOpened: (endpoint) => this.endpoints.opened(endpoint.endpoint),
      audit,
      clock: machine,
      timers,
      log: SILENT,
      settings: world.settings,
      random: () => world.random.next(),
    });
    machine.kernel.onSignal = (signal) => this.manager.signal(signal);
    this.#endpoints(datapath);
    this.#standing = new StandingChannels({
      self: this.self,
      channels: this.channels,
      nodes: world.nodes,
      identities: world.identities,
      requiredPeers: () => machine.policyInForce.requiredPeers(this.endpoints.view().flatMap((e) => e.identity ?? [])),
      lastUseOf: (node) => this.manager.lastUseOf(node),
      limit: 64,
      log: SILENT,
    });
    this.#standing.apply();
    this.manager.reconnect();
    const tick = () => {
      this.endpoints.reconcile();
      this.#standing.apply();
      timers.set(RECONCILE_MS, tick);
    };
    timers.set(RECONCILE_MS, tick);
    this.isReady = true;
  }

  opened(channel: ChannelEnd): void {
    this.#tunnels.channelOpened(channel);
    this.manager.opened(channel);
  }

  closed(channel: ChannelEnd, reason: ReasonCode): void {
    this.#tunnels.channelClosed(channel);
    this.manager.closed(channel, reason);
  }

  /** @throws on a body that does not decode. */
  frame(channel: ChannelEnd, type: FrameType, body: Buffer): void {
    if (isAuthFrame(type)) this.manager.frame(channel, type, body);
    else if (!this.#tunnels.frame(channel, type, body)) throw new CountersignError('bad-input', `frame type ${type}`);
  }

  /** The interfaces changed: what was configured for them comes or goes. */
  interfacesChanged(): void {
    if (!this.isReady) return;
    this.endpoints.reconcile();
  }

  /** Each workload that may ever be here has its line in the configuration, and its interface when it lives. */
  #endpoints(datapath: Datapath): void {
    const { machine } = this;
    const { world } = machine;
    const configs = world.configsOf(machine.name);
    this.endpoints = new Endpoints({
      configs,
      interfaces: { indexOf: (name) => machine.interfaceOf(Number(name.slice(1)))?.ifindex },
      datapath,
      host: {
        add: (own, continues) => this.manager.addEndpoint(own, continues),
        close: (id) => this.manager.closeEndpoint(id),
      },
      identities: world.identities,
      audit: { emit: (event) => world.audited(machine, event) },
      log: SILENT,
    });
    this.endpoints.reconcile();
  }
}
