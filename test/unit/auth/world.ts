/**
 * Two or three nodes with the real auth manager, certificates, authenticators and authority, on a simulated clock and network. Tables are in
 * memory; a frame can be looked at, dropped, held back or replaced on its way.
 */
import { randomBytes } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type CertificateAuthority, openCertificateAuthority } from '../../../ca/api.ts';
import type { FrameType } from '../../../proto/gen/countersign/peer/v1/peer.ts';
import { flowText } from '../../../src/auth/flow-proofs.ts';
import type { AuthSettings } from '../../../src/auth/ports.ts';
import { ok } from '../../../src/base/errors.ts';
import { parseAddress, prefixContains } from '../../../src/model/address.ts';
import type { AuthType, DatapathSignal } from '../../../src/model/datapath.ts';
import type { IdentityRow, Svid } from '../../../src/model/identity.ts';
import {
  type IpAddress,
  LOCAL_NODE,
  type NodeId,
  type NodeName,
  type SecurityIdentity,
  type SpiffeId,
  securityIdentity,
  type TrustDomain,
} from '../../../src/model/ids.ts';
import { spiffeId } from '../../../src/model/spiffe-id.ts';
import { createCsr } from '../../../src/pki/csr.ts';
import { generateKey } from '../../../src/pki/keys.ts';

import { DOMAIN, type Frame, SimChannel, SimNode, SimTime, type Wire } from './sim-node.ts';

export { DOMAIN, type Frame, type SimNode, SimTime } from './sim-node.ts';

export const address = (text: string): IpAddress => parseAddress(text)!;

export interface Workload {
  readonly node: SimNode;
  readonly ip: IpAddress;
  readonly identity: SecurityIdentity;
  readonly spiffeId: SpiffeId;
  readonly endpoint: number;
}

export class World {
  readonly time: SimTime;
  readonly ca: CertificateAuthority;
  readonly nodes: SimNode[] = [];
  readonly rows = new Map<SecurityIdentity, IdentityRow>();
  readonly bundles = new Map<TrustDomain, { trustDomain: TrustDomain; authorities: readonly Buffer[] }>();
  readonly required = new Map<string, AuthType>();
  readonly denied = new Set<string>();
  settings: Partial<AuthSettings> = {};
  queue: Wire[] = [];
  /** Returns what is delivered in a frame's place; undefined: nothing. */
  intercept: ((frame: Frame) => readonly Frame[] | undefined) | undefined;
  readonly frames: Frame[] = [];
  readonly #cuts = new Set<string>();
  readonly #directory: string;
  #channels = 0;
  #endpoints = 0;

  private constructor(time: SimTime, ca: CertificateAuthority, directory: string) {
    this.time = time;
    this.ca = ca;
    this.#directory = directory;
    this.bundles.set(DOMAIN, { trustDomain: DOMAIN, authorities: ca.bundle().authorities });
  }

  static async create(
    names: Record<string, string[]> = { a: ['10.0.1.0/24'], b: ['10.0.2.0/24'] },
    time = new SimTime(),
  ): Promise<World> {
    const directory = mkdtempSync(join(tmpdir(), 'cs-auth-'));
    const ca = await openCertificateAuthority({ directory: join(directory, 'ca'), trustDomain: DOMAIN, clock: time });
    const world = new World(time, ca, directory);
    for (const [i, [name, prefixes]] of Object.entries(names).entries()) {
      world.nodes.push(new SimNode(world, name, i + 1, prefixes));
    }
    for (const node of world.nodes) node.start();
    return world;
  }

  close(): void {
    this.ca.close();
    rmSync(this.#directory, { recursive: true, force: true });
  }

  node(name: string): SimNode {
    return this.nodes.find((n) => n.name === name)!;
  }

  readonly identities = {
    byIdentity: (identity: SecurityIdentity) => this.rows.get(identity),
    bySpiffeId: (id: SpiffeId) => [...this.rows.values()].find((row) => row.spiffeId === id),
    rows: () => [...this.rows.values()],
  };

  readonly nodeTable = {
    byName: (name: NodeName) => this.nodes.find((n) => n.name === name)?.info,
    byId: (id: NodeId) => this.nodes.find((n) => n.info.id === id)?.info,
    bySpiffeId: (id: SpiffeId) => this.nodes.find((n) => n.info.spiffeId === id)?.info,
    candidates: (ip: IpAddress) =>
      this.nodes.filter((n) => n.info.prefixes.some((p) => prefixContains(p, ip))).map((n) => n.info),
    nodes: () => this.nodes.map((n) => n.info),
  };

  readonly policy = {
    decide: (from: SecurityIdentity, to: SecurityIdentity) => ({
      verdict: this.denied.has(`${from}>${to}`) ? ('deny' as const) : ('allow' as const),
      authType: this.required.get(pairText(from, to)) ?? ('none' as const),
      rule: 1,
    }),
    authTypesOf: (a: SecurityIdentity, b: SecurityIdentity): readonly AuthType[] => {
      const type = this.required.get(pairText(a, b));
      return type === undefined ? [] : [type];
    },
  };

  require(a: Workload, b: Workload, authType: AuthType = 'spiffe'): void {
    this.required.set(pairText(a.identity, b.identity), authType);
  }

  /** An endpoint with an SVID, a row in the identity table and a place on a node. */
  async workload(name: string, node: SimNode, ip: string, identity: number): Promise<Workload> {
    const id = spiffeId(`spiffe://${DOMAIN}/${name}`);
    const numbered = securityIdentity(identity);
    const row = this.rows.get(numbered);
    const nodes = new Set([...(row?.nodes ?? []), node.info.spiffeId]);
    this.rows.set(numbered, { identity: numbered, spiffeId: id, labels: {}, nodes: [...nodes] });
    node.svids.set(numbered, ok(await this.issue(id, node.info.spiffeId)));
    const workload = { node, ip: address(ip), identity: numbered, spiffeId: id, endpoint: ++this.#endpoints };
    node.manager.addEndpoint({ ...workload, addresses: [workload.ip] });
    return workload;
  }

  async issue(id: SpiffeId, node: SpiffeId, ttlSeconds?: number): Promise<Svid> {
    const privateKey = generateKey();
    const request = { csr: createCsr(privateKey), spiffeId: id, node, requester: 'test' };
    const issued = await this.ca.issueWorkloadSvid(ttlSeconds === undefined ? request : { ...request, ttlSeconds });
    if (!issued.ok) throw new Error(issued.error);
    return { spiffeId: id, chain: issued.value.chain, privateKey, notAfterMs: issued.value.notAfterMs };
  }

  connect(client: SimNode, server: SimNode): SimChannel {
    const id = `ch${++this.#channels}`;
    const secret = randomBytes(32);
    const near = new SimChannel(client, server, 'client', `${id}c`, secret);
    const far = new SimChannel(server, client, 'server', `${id}s`, secret);
    near.other = far;
    far.other = near;
    client.channelTo.set(server.info.id, near);
    server.channelTo.set(client.info.id, far);
    client.manager.opened(near);
    server.manager.opened(far);
    return near;
  }

  cut(a: string, b: string): void {
    this.#cuts.add(pairText(a, b));
    const node = this.node(a);
    node.channelTo.get(this.node(b).info.id)?.close('PEER_IDLE_TIMEOUT');
  }

  heal(a: string, b: string): void {
    this.#cuts.delete(pairText(a, b));
  }

  isCut(a: string, b: string): boolean {
    return this.#cuts.has(pairText(a, b));
  }

  /** Until nothing is on the wire and nothing is left to do now. */
  async settle(): Promise<void> {
    for (;;) {
      await new Promise((resolve) => setImmediate(resolve));
      const wire = this.queue.shift();
      if (wire === undefined) return;
      this.#deliver(wire);
    }
  }

  #deliver(wire: Wire): void {
    const { target, ...frame } = wire;
    this.frames.push(frame);
    const instead = this.intercept === undefined ? [frame] : (this.intercept(frame) ?? []);
    for (const { type, body } of instead) inject(target, type, body);
  }

  async pass(ms: number): Promise<void> {
    const untilNs = this.time.bootNs() + BigInt(Math.round(ms * 1e6));
    for (;;) {
      await this.settle();
      const timer = this.time.next(untilNs);
      if (timer === undefined) break;
      timer();
    }
    await this.settle();
  }

  /** A packet that leaves `from` for an address: passes, or is held and signalled as the kernel would. */
  send(from: Workload, to: Workload | IpAddress): 'passed' | 'held' | 'dropped' {
    const remote = typeof to === 'string' ? to : to.ip;
    const { node } = from;
    const believed = node.believes(remote);
    const entry = node.kernelAddresses.get(remote);
    if (believed === undefined) {
      node.manager.signal(this.signalOf('vouch-miss', 'egress', from, remote));
      return 'held';
    }
    const authType = this.required.get(pairText(from.identity, believed));
    if (authType === undefined || node.hasAuth(from.identity, believed, entry!.node)) return 'passed';
    if (node.isRefused(from.identity, believed, entry!.node)) return 'dropped';
    const signal = this.signalOf('auth-miss', 'egress', from, remote);
    node.manager.signal({ ...signal, remoteIdentity: believed, remoteNode: entry!.node, authType });
    return 'held';
  }

  /** The first packet of a flow that policy wants a proof of its own for. */
  sendFlow(from: Workload, to: Workload, localPort: number, remotePort = 80): 'passed' | 'held' {
    const { node } = from;
    const entry = node.kernelAddresses.get(to.ip);
    const signal = { ...this.signalOf('auth-miss', 'egress', from, to.ip), localPort, remotePort };
    if (node.believes(to.ip) === undefined) {
      node.manager.signal({ ...signal, kind: 'vouch-miss' });
      return 'held';
    }
    const proof = node.kernelFlows.get(flowText(signal));
    if (proof !== undefined && proof.expiresAtNs > this.time.bootNs() && proof.epoch >= node.epoch) return 'passed';
    const { identity, node: remoteNode } = entry!;
    node.manager.signal({ ...signal, remoteIdentity: identity, remoteNode, authType: 'spiffe-connection' });
    return 'held';
  }

  /** The receiver's kernel dropped a packet from `remote` to `to`. */
  missAtReceiver(to: Workload, remote: Workload): void {
    const signal = this.signalOf('auth-miss', 'ingress', to, remote.ip);
    to.node.manager.signal({
      ...signal,
      held: false,
      remoteIdentity: remote.identity,
      remoteNode: remote.node.info.id,
      authType: 'spiffe',
    });
  }

  signalOf(
    kind: DatapathSignal['kind'],
    direction: 'egress' | 'ingress',
    from: Workload,
    remote: IpAddress,
  ): DatapathSignal {
    return {
      kind,
      timeNs: this.time.bootNs(),
      suppressed: 0n,
      direction,
      endpoint: from.endpoint,
      localAddress: from.ip,
      remoteAddress: remote,
      localIdentity: from.identity,
      remoteIdentity: securityIdentity(0),
      remoteNode: LOCAL_NODE,
      protocol: 6,
      localPort: 40_000,
      remotePort: 80,
      authType: 'none',
      rule: 1,
      held: true,
      reason: undefined,
      length: 60,
    };
  }
}

/** Hands a frame to a channel's node as the channel layer does: what does not decode closes the channel. */
export function inject(target: SimChannel, type: FrameType, body: Buffer): void {
  if (target.closed) return;
  try {
    target.node.manager.frame(target, type, body);
  } catch {
    target.close('PEER_FRAME_MALFORMED');
  }
}

export function channelOf(node: SimNode, peer: SimNode): SimChannel {
  return node.channelTo.get(peer.info.id)!;
}

function pairText(a: string | number, b: string | number): string {
  return [a, b].sort().join('|');
}
