/** All peer channels of a node: listens, dials, keeps one for each pair of nodes, and renews it before it must end. */

import type { Clock } from '../base/clock.ts';
import type { Logger } from '../base/log.ts';
import type { ReasonCode } from '../base/registry/reason-codes.ts';
import type { AuditSink } from '../model/audit-event.ts';
import type { NodeInfo } from '../model/identity.ts';
import type { SpiffeId } from '../model/ids.ts';
import type { AttemptContext, NodeSelf } from './attempt.ts';
import type { ClosedBy, Connection, ConnectionHost } from './connection.ts';
import { DialAddresses, type StaticAddresses } from './dial-address.ts';
import { DialBackoff, type DialFailure } from './dial-backoff.ts';
import { Dialer } from './dialer.ts';
import { PeerChannelError } from './error.ts';
import type { PeerHello } from './hello.ts';
import { type ChannelLimits, DEFAULT_CHANNEL_LIMITS } from './limits.ts';
import { Listener } from './listener.ts';
import { NodeVerifier, type VerifierSources } from './node-verifier.ts';
import type { PeerChannel, PeerChannelEvents, PeerChannels } from './peer-channel.ts';
import { type PendingOpen, PendingOpens } from './pending-opens.ts';
import { RefusalLog } from './refusals.ts';
import { settle } from './settle.ts';
import { DEFAULT_GROUPS } from './tls.ts';

export interface ChannelOptions extends VerifierSources {
  /** Asked anew for every connection, so that a renewed node SVID is used at once. */
  self(): NodeSelf;
  /** Port 0: any. */
  readonly listen: readonly { readonly address: string; readonly port: number }[];
  /** Where to dial nodes besides what the node table says, and before that. */
  readonly staticAddresses?: StaticAddresses;
  readonly limits?: Partial<ChannelLimits>;
  readonly clock: Clock;
  readonly audit: AuditSink;
  readonly log: Logger;
  readonly events: PeerChannelEvents;
  /** TLS groups, colon-separated. Default: X25519MLKEM768 alone. */
  readonly groups?: string;
}

export interface StartedPeerChannels extends PeerChannels {
  /** Where it listens. */
  addresses(): readonly { readonly address: string; readonly port: number }[];
  /** Judges every peer's node SVID again (revocations, bundle, node table) and closes the channels that fail. Call when any of these changed. */
  revokeCheck(): void;
  /** Why dials of the node failed since a channel to it was last open. */
  lastFailure(node: NodeInfo): DialFailure | undefined;
  /** Closes all channels with PEER_SHUTDOWN and stops listening. */
  close(): Promise<void>;
}

/** @throws the error of listen(2), EADDRINUSE say. */
export async function startPeerChannels(options: ChannelOptions): Promise<StartedPeerChannels> {
  const set = new PeerChannelSet(options);
  await set.listen();
  return set;
}

class PeerChannelSet implements StartedPeerChannels, ConnectionHost {
  readonly #options: ChannelOptions;
  readonly #limits: ChannelLimits;
  readonly #refusals: RefusalLog;
  readonly #verifier: NodeVerifier;
  readonly #listener: Listener;
  readonly #dialer: Dialer;
  readonly #backoff: DialBackoff;
  readonly #ticker: NodeJS.Timeout;
  /** Open channels; one for each node. */
  readonly #current = new Map<SpiffeId, Connection>();
  readonly #pending = new PendingOpens();
  /** Replaced, until their peer has followed. */
  readonly #draining = new Set<Connection>();
  /** When a channel this node dialed is next to be renewed, boot ns. */
  readonly #redialAtNs = new WeakMap<Connection, bigint>();
  readonly #redialing = new Set<SpiffeId>();
  #closing = false;

  constructor(options: ChannelOptions) {
    this.#options = options;
    this.#limits = { ...DEFAULT_CHANNEL_LIMITS, ...options.limits };
    this.#refusals = new RefusalLog(options.audit, options.clock);
    this.#verifier = new NodeVerifier(options);
    const context: AttemptContext = {
      self: options.self,
      limits: this.#limits,
      clock: options.clock,
      verifier: this.#verifier,
      refusals: this.#refusals,
      groups: options.groups ?? DEFAULT_GROUPS,
      host: this,
    };
    const addresses = new DialAddresses(options.nodes, options.staticAddresses ?? new Map(), options.clock);
    this.#listener = new Listener(context, addresses, () => this.#current.size);
    this.#dialer = new Dialer(context, addresses);
    this.#backoff = new DialBackoff(this.#limits, options.clock);
    this.#ticker = setInterval(() => this.#tick(), this.#limits.tickMs);
    this.#ticker.unref();
  }

  async listen(): Promise<void> {
    try {
      await this.#listener.listen(this.#options.listen);
    } catch (error) {
      await this.close();
      throw error;
    }
  }

  addresses() {
    return this.#listener.addresses();
  }

  get(node: NodeInfo): PeerChannel | undefined {
    return this.#current.get(node.spiffeId);
  }

  has(node: NodeInfo): boolean {
    return this.#current.has(node.spiffeId);
  }

  list(): readonly PeerChannel[] {
    return [...this.#current.values()];
  }

  lastFailure(node: NodeInfo): DialFailure | undefined {
    return this.#backoff.last(node);
  }

  open(node: NodeInfo): Promise<PeerChannel> {
    if (this.#closing) return Promise.reject(new PeerChannelError('PEER_SHUTDOWN', node.name));
    const current = this.#current.get(node.spiffeId);
    if (current !== undefined) return Promise.resolve(current);
    const waiting = this.#pending.get(node);
    if (waiting !== undefined) return waiting.promise;
    const failed = this.#backoff.failure(node);
    if (failed !== undefined) return Promise.reject(new PeerChannelError(failed, node.name));
    const pending = this.#pending.add(node);
    void this.#dialFor(pending);
    return pending.promise;
  }

  async #dialFor(pending: PendingOpen): Promise<void> {
    const { node } = pending;
    if (node.spiffeId === this.#options.self().info.spiffeId) {
      this.#pending.giveUp(pending, 'PEER_NODE_IN_USE');
    } else if (this.#current.size >= this.#limits.connections) {
      this.#pending.giveUp(pending, 'PEER_TOO_MANY_CONNECTIONS');
    } else {
      const reason = await this.#dial(node, undefined);
      if (reason === 'PEER_REPLACED') {
        // The peer prefers the channel that it dials itself: that one is on its way.
        setTimeout(() => this.#pending.giveUp(pending, reason), this.#limits.handshakeMs).unref();
      } else if (reason !== undefined) {
        this.#backoff.failed(node, reason);
        this.#pending.giveUp(pending, reason);
      }
    }
  }

  async #dial(node: NodeInfo, succeeds: Connection | undefined): Promise<ReasonCode | undefined> {
    try {
      return await this.#dialer.dial(node, succeeds);
    } catch (error) {
      this.#options.log.error({ err: error, node: node.name }, 'dialing a node threw');
      return 'PEER_UNREACHABLE';
    }
  }

  greeted(incoming: Connection, hello: PeerHello): void {
    // Rule BarLowerIncarnation: a newer life may have shown itself, or a revocation come, since the handshake.
    const again = this.#verifier.verify(incoming.proven.chain, incoming.peer.spiffeId);
    if (!again.ok) {
      incoming.close(again.error);
      return;
    }
    const existing = this.#current.get(incoming.peer.spiffeId);
    if (existing === undefined) {
      this.#install(incoming);
      return;
    }
    const verdict = settle(
      {
        existingFromLower: existing.dialedByLower,
        incomingFromLower: incoming.dialedByLower,
        existingAgeMs: existing.ageMs,
        existingIncarnation: existing.peer.incarnation,
        incomingIncarnation: incoming.peer.incarnation,
        succeeds: incoming.isSuccessorOf(existing, hello.succeeds),
      },
      // So long a dial to one address can take that began before the other end's channel was there.
      this.#limits.connectMs + this.#limits.handshakeMs,
    );
    if (verdict.kind === 'replace') {
      this.#install(incoming);
      return;
    }
    void existing.probe().then((alive) => {
      if (incoming.closed) return;
      if (alive) {
        incoming.close(verdict.refusal);
        return;
      }
      // Frees its place unless it has gone already; whoever is there now is judged afresh.
      existing.close('PEER_IDLE_TIMEOUT');
      this.greeted(incoming, hello);
    });
  }

  /** Make before break: the new channel is told to the layers above before the old one closes. */
  #install(connection: Connection): void {
    const { spiffeId } = connection.peer;
    this.#endEarlierLives(connection);
    const previous = this.#current.get(spiffeId);
    this.#current.set(spiffeId, connection);
    connection.open();
    this.#planRedial(connection);
    this.#audit('peer.opened', connection, undefined, undefined);
    this.#tell('opened', () => this.#options.events.opened(connection));
    this.#backoff.succeeded(connection.peer);
    this.#pending.kept(connection);
    if (previous !== undefined) this.#replace(previous, connection);
    connection.flow();
  }

  /** Rule LowerChannelsClose: nothing is heard from an earlier life once a newer one can be. Break before make. */
  #endEarlierLives({ peer }: Connection): void {
    for (const connection of [...this.#current.values(), ...this.#draining]) {
      if (connection.peer.spiffeId === peer.spiffeId && connection.peer.incarnation < peer.incarnation) {
        connection.close('PEER_INCARNATION_BARRED');
      }
    }
  }

  /** After a redial the other end closes the old channel, once it has the new one: until then it still speaks on the old. */
  #replace(previous: Connection, next: Connection): void {
    if (next.role === 'server' || previous.role === 'server') {
      previous.close('PEER_REPLACED');
      return;
    }
    this.#draining.add(previous);
    setTimeout(() => previous.close('PEER_REPLACED'), this.#limits.lingerMs).unref();
  }

  frame(connection: Connection, type: Parameters<PeerChannelEvents['frame']>[1], body: Buffer): void {
    this.#options.events.frame(connection, type, body);
  }

  closed(connection: Connection, reason: ReasonCode, by: ClosedBy, wasOpen: boolean): void {
    if (this.#current.get(connection.peer.spiffeId) === connection) this.#current.delete(connection.peer.spiffeId);
    this.#draining.delete(connection);
    if (wasOpen) {
      this.#audit('peer.closed', connection, reason, by);
      this.#tell('closed', () => this.#options.events.closed(connection, reason));
    } else {
      const { spiffeId, name } = connection.peer;
      const party = { ...connection.remote, spiffeId, node: name };
      this.#refusals.refused(reason, connection.remote.address, {
        ...(connection.role === 'server' ? { source: party } : { destination: party }),
        detail: { channel: connection.id, by },
      });
    }
  }

  /** A fault in a layer above ends neither this node's other channels nor the agent. */
  #tell(what: string, event: () => void): void {
    try {
      event();
    } catch (error) {
      this.#options.log.error({ err: error }, `a handler of the peer channel event "${what}" threw`);
    }
  }

  #audit(
    kind: 'peer.opened' | 'peer.closed',
    connection: Connection,
    reason: ReasonCode | undefined,
    by: ClosedBy | undefined,
  ): void {
    const peer = { ...connection.remote, spiffeId: connection.peer.spiffeId, node: connection.peer.name };
    const { info } = this.#options.self();
    const self = { spiffeId: info.spiffeId, node: info.name };
    const dialed = connection.role === 'client';
    this.#options.audit.emit({
      kind,
      ...(reason === undefined ? {} : { reason }),
      source: dialed ? self : peer,
      destination: dialed ? peer : self,
      detail: {
        channel: connection.id,
        incarnation: connection.peer.incarnation.toString(),
        cipher: connection.cipher,
        validUntil: new Date(connection.validUntilMs).toISOString(),
        ...(by === undefined ? {} : { by }),
      },
    });
  }

  /** Only the side that dialed redials. After four fifths of the certificates' rest, and at least hourly. */
  #planRedial(connection: Connection): void {
    if (connection.role !== 'client') return;
    const { redialAfterMs, redialRetryMs } = this.#limits;
    const rest = connection.validUntilMs - this.#options.clock.nowMs();
    // Spread, so that a fleet started at once does not redial at once.
    const inMs = Math.max(redialRetryMs, Math.min(redialAfterMs, rest * 0.8) * (1 - 0.1 * Math.random()));
    this.#redialAtNs.set(connection, this.#options.clock.bootNs() + BigInt(Math.round(inMs)) * 1_000_000n);
  }

  #tick(): void {
    const { clock, nodes } = this.#options;
    const nowNs = clock.bootNs();
    const nowMs = clock.nowMs();
    for (const connection of [...this.#current.values()]) {
      connection.tick(nowNs, nowMs);
      const due = this.#redialAtNs.get(connection);
      if (connection.closed || due === undefined || nowNs < due) continue;
      this.#redialAtNs.set(connection, nowNs + BigInt(this.#limits.redialRetryMs) * 1_000_000n);
      void this.#redial(nodes.bySpiffeId(connection.peer.spiffeId) ?? connection.peer, connection);
    }
  }

  async #redial(node: NodeInfo, connection: Connection): Promise<void> {
    if (this.#redialing.has(node.spiffeId)) return;
    this.#redialing.add(node.spiffeId);
    const reason = await this.#dial(node, connection);
    this.#redialing.delete(node.spiffeId);
    if (reason !== undefined)
      this.#options.log.warn({ node: node.name, reason }, 'redial failed; the channel in place stays');
  }

  revokeCheck(): void {
    for (const connection of [...this.#current.values(), ...this.#draining]) {
      const { chain, info } = connection.proven;
      const again = this.#verifier.verify(chain, info.spiffeId);
      if (!again.ok) connection.close(again.error);
    }
  }

  async close(): Promise<void> {
    this.#closing = true;
    clearInterval(this.#ticker);
    this.#dialer.abandon();
    this.#pending.giveUpAll('PEER_SHUTDOWN');
    const stopped = this.#listener.close();
    const ended = [...this.#current.values(), ...this.#draining].map((connection) => {
      connection.close('PEER_SHUTDOWN');
      return connection.ended;
    });
    await Promise.all([stopped, ...ended]);
  }
}
