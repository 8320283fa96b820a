/**
 * Peer channels between simulated agents. Settling, and who waits for a channel, are the product's own; the connection itself is
 * simulated: frames in order, delays, cuts that each end learns of in its own time, silence that ends a channel.
 */
import { hash } from 'node:crypto';
import type { FrameType } from '../../proto/gen/countersign/peer/v1/peer.ts';
import type { ReasonCode } from '../../src/base/registry/reason-codes.ts';
import { DialBackoff } from '../../src/channel/dial-backoff.ts';
import { PeerChannelError } from '../../src/channel/error.ts';
import { DEFAULT_CHANNEL_LIMITS } from '../../src/channel/limits.ts';
import type { ChannelRole, PeerChannel, PeerChannels } from '../../src/channel/peer-channel.ts';
import { type PendingOpen, PendingOpens } from '../../src/channel/pending-opens.ts';
import { settle } from '../../src/channel/settle.ts';
import type { NodeInfo } from '../../src/model/identity.ts';
import type { SpiffeId } from '../../src/model/ids.ts';
import type { Agent } from './agent.ts';
import type { World } from './world.ts';

/** One connection: both ends, and whether anything still gets through. */
class Link {
  readonly id: string;
  readonly #keys = new Map<string, Buffer>();
  broken = false;

  constructor(id: string) {
    this.id = id;
  }

  /** Both ends draw the same. */
  exportKey(label: string, context: Uint8Array, length: number): Buffer {
    const text = `${this.id}\0${label}\0${length}\0${Buffer.from(context).toString('latin1')}`;
    const known = this.#keys.get(text);
    if (known !== undefined) return known;
    const key = hash('sha512', text, 'buffer').subarray(0, length);
    this.#keys.set(text, key);
    return key;
  }
}

export class ChannelEnd implements PeerChannel {
  readonly agent: Agent;
  readonly link: Link;
  readonly role: ChannelRole;
  readonly peer: NodeInfo;
  readonly peerCertificate: PeerChannel['peerCertificate'];
  readonly id: string;
  readonly validUntilMs = Number.MAX_SAFE_INTEGER;
  readonly hash = 'sha256';
  readonly succeeds: ChannelEnd | undefined;
  other!: ChannelEnd;
  phase: 'settling' | 'open' | 'closed' = 'settling';
  openedMs = 0;
  #lastArrivalMs = 0;
  readonly #early: (() => void)[] = [];

  constructor(agent: Agent, peer: Agent, role: ChannelRole, link: Link, succeeds: ChannelEnd | undefined) {
    this.agent = agent;
    this.link = link;
    this.role = role;
    this.peer = { ...peer.self };
    this.peerCertificate = peer.certificate;
    this.id = `${link.id}${role === 'client' ? 'c' : 's'}`;
    this.succeeds = succeeds;
  }

  get closed(): boolean {
    return this.phase === 'closed';
  }

  get dialedByLower(): boolean {
    return this.agent.self.name < this.peer.name === (this.role === 'client');
  }

  send(type: FrameType, body: Uint8Array) {
    if (this.phase !== 'open') return;
    const bytes = Buffer.from(body);
    this.agent.machine.trace.frameSent(this, type, bytes);
    this.#carry(() => this.other.#take(type, bytes));
  }

  exportKey(label: string, context: Uint8Array, length: number): Buffer {
    if (this.closed) throw new Error(`peer channel ${this.id} is closed: no keys can be drawn from it`);
    return this.link.exportKey(label, context, length);
  }

  close(reason: ReasonCode) {
    if (this.closed) return;
    this.#carry(() => this.other.end(reason));
    this.end(reason);
  }

  open() {
    this.phase = 'open';
    this.openedMs = this.agent.machine.world.engine.nowMs;
  }

  /** After the layers above were told: deliver what has waited meanwhile. */
  flow() {
    for (const take of this.#early.splice(0)) take();
  }

  /** The other end is not told. */
  end(reason: ReasonCode) {
    if (this.phase === 'closed') return;
    const wasOpen = this.phase === 'open';
    this.phase = 'closed';
    this.agent.channels.ended(this, reason, wasOpen);
  }

  /** Does the peer answer? */
  probe(done: (alive: boolean) => void) {
    const { world } = this.agent.machine;
    const { other, agent } = this;
    let over = false;
    const finish = (alive: boolean) => {
      if (over) return;
      over = true;
      done(alive);
    };
    world.engine.after(DEFAULT_CHANNEL_LIMITS.probeMs, agent.owner, () => finish(false));
    this.#carry(() => {
      if (other.phase === 'open') other.#carry(() => finish(this.phase === 'open'));
    });
  }

  /** In order behind what was sent before; lost when the connection is broken by then. */
  #carry(arrive: () => void) {
    const { world } = this.agent.machine;
    const { other } = this;
    if (this.link.broken) return;
    // A little later than the last, so that no rounding puts it before.
    const at = Math.max(this.#lastArrivalMs + 1e-6, world.engine.nowMs + world.channelDelay());
    this.#lastArrivalMs = at;
    const take = () => {
      if (!this.link.broken) arrive();
    };
    world.engine.after(at - world.engine.nowMs, other.agent.owner, take, true);
  }

  #take(type: FrameType, body: Buffer) {
    if (this.phase === 'settling') this.#early.push(() => this.#take(type, body));
    if (this.phase !== 'open') return;
    const { agent } = this;
    agent.machine.trace.frameTaken(this, type, body);
    try {
      agent.frame(this, type, body);
    } catch (thrown) {
      agent.machine.world.fault(`frame ${type} refused as malformed: ${String(thrown)}`);
      this.close('PEER_FRAME_MALFORMED');
    }
  }
}

/** All channels of one agent: src/channel/peer-channels.ts without its sockets. */
export class SimChannels implements PeerChannels {
  readonly #agent: Agent;
  readonly #world: World;
  readonly #current = new Map<SpiffeId, ChannelEnd>();
  readonly #pending = new PendingOpens();
  readonly #backoff: DialBackoff;
  /** Rule BarLowerIncarnation: the highest that a certificate has shown, and what the server's table says. */
  readonly #highest = new Map<SpiffeId, bigint>();
  /** Every end that is not closed. */
  readonly ends = new Set<ChannelEnd>();

  constructor(agent: Agent) {
    this.#agent = agent;
    this.#world = agent.machine.world;
    this.#backoff = new DialBackoff(DEFAULT_CHANNEL_LIMITS, agent.machine, () => this.#world.random.next());
  }

  get(node: NodeInfo): ChannelEnd | undefined {
    return this.#current.get(node.spiffeId);
  }

  list(): readonly ChannelEnd[] {
    return [...this.#current.values()];
  }

  open(node: NodeInfo): Promise<PeerChannel> {
    const current = this.#current.get(node.spiffeId);
    if (current !== undefined) return Promise.resolve(current);
    const waiting = this.#pending.get(node);
    if (waiting !== undefined) return waiting.promise;
    const failed = this.#backoff.failure(node);
    if (failed !== undefined) return Promise.reject(new PeerChannelError(failed, node.name));
    const pending = this.#pending.add(node);
    this.dial(node, undefined, pending);
    return pending.promise;
  }

  /** TCP, TLS and both hellos: the client is greeted first, the server one way later. */
  dial(node: NodeInfo, succeeds: ChannelEnd | undefined, pending: PendingOpen | undefined) {
    const world = this.#world;
    const { engine } = world;
    const agent = this.#agent;
    const giveUp = (reason: ReasonCode) => {
      if (pending === undefined || this.#pending.get(node) !== pending) return;
      this.#backoff.failed(node, reason);
      this.#pending.giveUp(pending, reason);
    };
    const delay = world.channelDelay() * 3 + world.random.between(0.5, 3);
    world.transition(succeeds === undefined ? 'channel dialed' : 'channel redialed');
    engine.after(delay, agent.owner, () => {
      const peer = world.agentAt(node.name);
      if (
        peer === undefined ||
        peer.owner.dead ||
        !peer.isReady ||
        world.isCut(agent.self.name, node.name) ||
        peer.machine.pausedAtMs !== undefined
      ) {
        const isRefused = peer?.isReady !== true && !world.isCut(agent.self.name, node.name);
        engine.after(isRefused ? 1 : DEFAULT_CHANNEL_LIMITS.connectMs, agent.owner, () => giveUp('PEER_UNREACHABLE'));
        return;
      }
      // Each end verifies the other's node SVID.
      if (this.#isBarred(peer.self) || peer.channels.#isBarred(agent.self)) {
        world.transition('channel barred');
        return giveUp('PEER_INCARNATION_BARRED');
      }
      const link = new Link(`ch${world.nextLink()}`);
      const near = new ChannelEnd(agent, peer, 'client', link, succeeds);
      const far = new ChannelEnd(peer, agent, 'server', link, succeeds?.other);
      near.other = far;
      far.other = near;
      this.ends.add(near);
      peer.channels.ends.add(far);
      engine.after(world.channelDelay(), peer.owner, () => {
        if (!link.broken && far.phase === 'settling') peer.channels.#greeted(far);
      });
      this.#greeted(near);
      if (pending !== undefined)
        engine.after(DEFAULT_CHANNEL_LIMITS.handshakeMs, agent.owner, () => giveUp('PEER_HANDSHAKE_TIMEOUT'));
    });
  }

  #isBarred(peer: NodeInfo): boolean {
    const known = this.#agent.machine.knownIncarnation(peer.name);
    const highest = this.#highest.get(peer.spiffeId) ?? 0n;
    if (peer.incarnation < highest || peer.incarnation < known) return true;
    this.#highest.set(peer.spiffeId, peer.incarnation);
    return false;
  }

  /** A connection ended, or a peer's. */
  ended(end: ChannelEnd, reason: ReasonCode, wasOpen: boolean) {
    this.ends.delete(end);
    if (this.#current.get(end.peer.spiffeId) === end) this.#current.delete(end.peer.spiffeId);
    if (!wasOpen) return;
    this.#world.transition(`channel closed ${reason}`);
    // Both are honest here.
    if (reason === 'PEER_FRAME_UNEXPECTED' || reason === 'PEER_FRAME_MALFORMED' || reason === 'TUNNEL_OFFER_REJECTED')
      this.#world.fault(`the channel ${end.id} of ${end.agent.self.name} with ${end.peer.name} was closed: ${reason}`);
    end.agent.machine.trace.channelClose(end);
    this.#agent.closed(end, reason);
  }

  /** As PeerChannelSet does it. */
  #greeted(incoming: ChannelEnd) {
    const existing = this.#current.get(incoming.peer.spiffeId);
    if (existing === undefined) return this.#install(incoming);
    const verdict = settle(
      {
        existingFromLower: existing.dialedByLower,
        incomingFromLower: incoming.dialedByLower,
        existingAgeMs: this.#world.engine.nowMs - existing.openedMs,
        existingIncarnation: existing.peer.incarnation,
        incomingIncarnation: incoming.peer.incarnation,
        succeeds: incoming.succeeds !== undefined && incoming.succeeds === existing,
      },
      DEFAULT_CHANNEL_LIMITS.handshakeMs,
    );
    this.#world.transition(`settle ${verdict.kind}`);
    if (verdict.kind === 'replace') return this.#install(incoming);
    existing.probe((alive) => {
      if (incoming.closed) return;
      if (alive) return incoming.close(verdict.refusal);
      existing.close('PEER_IDLE_TIMEOUT');
      this.#greeted(incoming);
    });
  }

  #install(end: ChannelEnd) {
    const previous = this.#current.get(end.peer.spiffeId);
    this.#current.set(end.peer.spiffeId, end);
    end.open();
    this.#agent.machine.trace.channelOpen(end);
    this.#agent.opened(end);
    this.#backoff.succeeded(end.peer);
    this.#pending.kept(end);
    if (previous !== undefined) {
      if (end.role === 'server' || previous.role === 'server') previous.close('PEER_REPLACED');
      else
        this.#world.engine.after(DEFAULT_CHANNEL_LIMITS.lingerMs, this.#agent.owner, () =>
          previous.close('PEER_REPLACED'),
        );
    }
    end.flow();
  }

  /** Nothing gets through any more; each end that lives learns of it in its own time. */
  breakAll(which: (end: ChannelEnd) => boolean, learnMs: () => number) {
    for (const end of [...this.ends]) {
      if (!which(end)) continue;
      end.link.broken = true;
      for (const side of [end, end.other]) {
        if (side.agent.owner.dead) continue;
        this.#world.engine.after(learnMs(), side.agent.owner, () => side.end('PEER_IDLE_TIMEOUT'));
      }
    }
  }
}
