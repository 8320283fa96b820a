/**
 * The tunnel to each peer node, negotiated on its channel: offers are exchanged and verified, the preshared key is drawn
 * from the channel's TLS exporter, both ends set the peer, both say so.
 *
 * Order: the server's end sets its peer first and says ready, then the client's end, which then starts the handshake. A
 * handshake that meets an end without the keys is lost, and WireGuard tries again only after five seconds; in this order
 * the one that counts finds both ends set, also when live traffic started others before.
 */
import { FrameType, TunnelOffer, TunnelReady } from '../../proto/gen/countersign/peer/v1/peer.ts';
import { asError, CountersignError, err, ok, type Result } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import { EXPORTER_LABELS } from '../base/registry/exporter-labels.ts';
import type { ReasonCode } from '../base/registry/reason-codes.ts';
import type { PeerChannel } from '../channel/peer-channel.ts';
import type { AuditSink } from '../model/audit-event.ts';
import type { NodeInfo, Svid } from '../model/identity.ts';
import type { NodeId } from '../model/ids.ts';
import type { Tunnel, TunnelPeer } from '../model/tunnel.ts';
import { KEY_LENGTH, parseEndpoint } from './device.ts';
import { signTunnelOffer, verifyTunnelOffer } from './tunnel-offer.ts';

export interface TunnelManagerOptions {
  readonly tunnel: Tunnel;
  /** This node as it is now. `svid` must be the one its channels are opened with. */
  readonly self: () => {
    readonly info: NodeInfo;
    readonly svid: Svid;
    /** "IP:port" at which this peer reaches our device. */
    readonly underlayEndpoint: (peer: NodeInfo) => string;
  };
  readonly audit: AuditSink;
  readonly log: Logger;
}

export interface TunnelManager {
  channelOpened(channel: PeerChannel): void;
  /** False: not a frame of the tunnel. @throws on a body that does not decode, which closes the channel. */
  frame(channel: PeerChannel, type: FrameType, body: Buffer): boolean;
  /** A tunnel that is ready outlives its channel. */
  channelClosed(channel: PeerChannel): void;
  ready(node: NodeId): boolean;
  /** AUTH_NO_TUNNEL when the time is over; sooner, why there will be none on this channel. Opens no channel. */
  whenReady(node: NodeId, timeoutMs: number): Promise<Result<void, ReasonCode>>;
  /** Ends the tunnel: no lease needs it any more. An open channel can bring it back when somebody waits for it. */
  forget(node: NodeId): Promise<void>;
  /** See Tunnel. A new handshake starts at once if both ends have set their keys. */
  endSession(node: NodeId): Promise<void>;
}

/** One channel's negotiation. */
interface Session {
  readonly channel: PeerChannel;
  readonly ownKeyNumber: bigint;
  /** From the verified offer, with the preshared key. */
  peer: TunnelPeer | undefined;
  peerKeyNumber: bigint;
  setting: boolean;
  set: boolean;
  peerIsSet: boolean;
}

interface NodeState {
  readonly sessions: Set<Session>;
  /** Whose keys are on the device. */
  current: Session | undefined;
  /** The last one that both ends had set: what to return to when a change of keys is broken off. */
  agreed: Session | undefined;
  ready: boolean;
  readonly waiting: Set<(result: Result<void, ReasonCode>) => void>;
}

export function createTunnelManager(options: TunnelManagerOptions): TunnelManager {
  return new Manager(options);
}

class Manager implements TunnelManager {
  readonly #options: TunnelManagerOptions;
  readonly #nodes = new Map<NodeId, NodeState>();

  constructor(options: TunnelManagerOptions) {
    this.#options = options;
  }

  channelOpened(channel: PeerChannel): void {
    const { tunnel, self } = this.#options;
    const { info, svid, underlayEndpoint } = self();
    const keyNumber = BigInt(tunnel.keyNumber);
    const session: Session = {
      channel,
      ownKeyNumber: keyNumber,
      peer: undefined,
      peerKeyNumber: 0n,
      setting: false,
      set: false,
      peerIsSet: false,
    };
    const state = this.#stateOf(channel.peer.id);
    this.#endEarlierLife(state, channel.peer);
    state.sessions.add(session);
    const offer = {
      incarnation: info.incarnation,
      keyNumber,
      type: tunnel.type,
      publicKey: tunnel.publicKey,
      endpoint: underlayEndpoint(channel.peer),
    };
    const signature = signTunnelOffer(offer, svid.privateKey);
    const body = TunnelOffer.encode(TunnelOffer.create({ ...offer, signature })).finish();
    channel.send(FrameType.FRAME_TYPE_TUNNEL_OFFER, body);
  }

  frame(channel: PeerChannel, type: FrameType, body: Buffer): boolean {
    if (type !== FrameType.FRAME_TYPE_TUNNEL_OFFER && type !== FrameType.FRAME_TYPE_TUNNEL_READY) return false;
    const session = this.#sessionOf(channel);
    if (session === undefined) return true;
    if (type === FrameType.FRAME_TYPE_TUNNEL_OFFER) this.#onOffer(session, TunnelOffer.decode(body));
    else this.#onReady(session, TunnelReady.decode(body));
    return true;
  }

  channelClosed(channel: PeerChannel): void {
    const session = this.#sessionOf(channel);
    if (session === undefined) return;
    const state = this.#stateOf(channel.peer.id);
    state.sessions.delete(session);
    if (state.current === session) {
      // Two channels at once (both ends dialed): the ends may have set them in different order. The one that stays decides.
      const other = newest([...state.sessions].filter((s) => s.setting));
      if (other !== undefined) return void this.#set(state, other);
      if (!isAgreed(session)) {
        state.current = undefined;
        state.ready = false;
        // TunnelOfIncarnation: the keys of an earlier life of the peer are none.
        const isSameLife = state.agreed?.channel.peer.incarnation === channel.peer.incarnation;
        if (state.agreed !== undefined && isSameLife) return void this.#set(state, state.agreed);
      }
    }
    if (!state.ready && state.sessions.size === 0) settle(state, err('PEER_CHANNEL_CLOSED'));
    this.#tidy(channel.peer.id, state);
  }

  ready(node: NodeId): boolean {
    return this.#nodes.get(node)?.ready === true;
  }

  whenReady(node: NodeId, timeoutMs: number): Promise<Result<void, ReasonCode>> {
    const state = this.#stateOf(node);
    if (state.ready) return Promise.resolve(ok(undefined));
    const { promise, resolve } = Promise.withResolvers<Result<void, ReasonCode>>();
    const timer = setTimeout(() => done(err('AUTH_NO_TUNNEL')), timeoutMs);
    const done = (result: Result<void, ReasonCode>) => {
      clearTimeout(timer);
      state.waiting.delete(done);
      this.#tidy(node, state);
      resolve(result);
    };
    state.waiting.add(done);
    if (state.current === undefined) {
      const known = newest([...state.sessions].filter(isAgreed));
      if (known !== undefined) void this.#set(state, known);
    }
    return promise;
  }

  async forget(node: NodeId): Promise<void> {
    const state = this.#nodes.get(node);
    if (state === undefined) return;
    const was = state.current ?? state.agreed;
    state.current = undefined;
    state.agreed = undefined;
    state.ready = false;
    settle(state, err('AUTH_NO_TUNNEL'));
    this.#tidy(node, state);
    await this.#options.tunnel.removePeer(node);
    if (was !== undefined) this.#audit('tunnel.down', was);
  }

  endSession(node: NodeId): Promise<void> {
    return this.#options.tunnel.endSession(node, this.ready(node));
  }

  #onOffer(session: Session, offer: TunnelOffer): void {
    const { channel } = session;
    if (session.peer !== undefined) {
      channel.close('PEER_FRAME_UNEXPECTED');
      return;
    }
    const fields = { ...offer, incarnation: channel.peer.incarnation };
    const acceptable =
      offer.type === this.#options.tunnel.type &&
      offer.publicKey.length === KEY_LENGTH &&
      parseEndpoint(offer.endpoint) !== undefined &&
      verifyTunnelOffer(fields, offer.signature, channel.peerCertificate.publicKey);
    if (!acceptable) {
      this.#refuse(session, 'TUNNEL_OFFER_REJECTED');
      return;
    }
    const own = this.#options.tunnel.publicKey;
    session.peerKeyNumber = offer.keyNumber;
    session.peer = {
      node: channel.peer.id,
      publicKey: Buffer.from(offer.publicKey),
      // Both ends put the keys in the same order, so that both draw the same secret for this pair of keys only.
      presharedKey: channel.exportKey(
        EXPORTER_LABELS.wireguardPresharedKey,
        Buffer.concat([own, offer.publicKey].sort(Buffer.compare)),
        KEY_LENGTH,
      ),
      endpoint: offer.endpoint,
    };
    this.#advance(session);
  }

  #onReady(session: Session, message: TunnelReady): void {
    const { channel } = session;
    // Each end says it once, after both have offered; the client's end answers the server's.
    const tooSoon = session.peer === undefined || (channel.role === 'server' && !session.setting);
    if (tooSoon || session.peerIsSet) {
      channel.close('PEER_FRAME_UNEXPECTED');
      return;
    }
    if (message.keyNumber !== session.ownKeyNumber) {
      this.#refuse(session, 'TUNNEL_OFFER_REJECTED');
      return;
    }
    session.peerIsSet = true;
    this.#advance(session);
  }

  #advance(session: Session): void {
    const state = this.#stateOf(session.channel.peer.id);
    if (!session.setting && (session.channel.role === 'server' || session.peerIsSet)) {
      session.setting = true;
      void this.#set(state, session);
    } else if (state.current === session && isAgreed(session)) {
      this.#agreed(state, session);
    }
  }

  /** TunnelOfIncarnation: a key serves one life of the peer, and goes before anything of the next one is believed. */
  #endEarlierLife(state: NodeState, peer: NodeInfo): void {
    const was = state.current ?? state.agreed;
    if (was === undefined || was.channel.peer.incarnation >= peer.incarnation) return;
    state.current = undefined;
    state.agreed = undefined;
    state.ready = false;
    this.#audit('tunnel.down', was);
    this.#options.tunnel.removePeer(peer.id).catch((error) => {
      this.#options.log.error(
        { err: asError(error), peer: peer.name },
        'tunnel: an earlier life of the peer is not gone',
      );
    });
  }

  /** Puts the session's keys on the device. What is called last is on it last. */
  async #set(state: NodeState, session: Session): Promise<void> {
    const { tunnel, log } = this.#options;
    state.current = session;
    state.ready = false;
    try {
      await tunnel.setPeer(session.peer!);
    } catch (error) {
      log.error({ err: asError(error), peer: session.channel.peer.name }, 'tunnel: the peer could not be set');
      if (state.current === session) state.current = undefined;
      const theirs = error instanceof CountersignError && error.code === 'bad-input';
      return this.#refuse(session, theirs ? 'TUNNEL_OFFER_REJECTED' : 'TUNNEL_FAILED');
    }
    const again = session.set;
    session.set = true;
    if (!again) {
      const body = TunnelReady.encode(TunnelReady.create({ keyNumber: session.peerKeyNumber })).finish();
      session.channel.send(FrameType.FRAME_TYPE_TUNNEL_READY, body);
    }
    if (state.current === session && isAgreed(session)) this.#agreed(state, session, again);
  }

  #agreed(state: NodeState, session: Session, again = false): void {
    state.agreed = session;
    state.ready = true;
    if (again || session.channel.role === 'client') {
      this.#options.tunnel.startHandshake(session.channel.peer.id).catch((error) => {
        this.#options.log.warn({ err: asError(error) }, 'tunnel: the handshake waits for the first packet');
      });
    }
    this.#audit('tunnel.up', session);
    settle(state, ok(undefined));
  }

  /** A peer whose offer is wrong loses the channel; our own failure is no fault of the peer. */
  #refuse(session: Session, reason: 'TUNNEL_OFFER_REJECTED' | 'TUNNEL_FAILED'): void {
    this.#audit('tunnel.refused', session, reason);
    settle(this.#stateOf(session.channel.peer.id), err(reason));
    if (reason === 'TUNNEL_OFFER_REJECTED') session.channel.close(reason);
  }

  #audit(kind: 'tunnel.up' | 'tunnel.down' | 'tunnel.refused', session: Session, reason?: ReasonCode): void {
    const { tunnel, audit } = this.#options;
    const { channel, peer } = session;
    audit.emit({
      kind,
      ...(reason === undefined ? {} : { reason }),
      correlation: channel.id,
      destination: { node: channel.peer.name, spiffeId: channel.peer.spiffeId },
      detail: {
        type: tunnel.type,
        implementation: tunnel.implementation,
        ...(peer === undefined ? {} : { endpoint: peer.endpoint, keyNumber: Number(session.peerKeyNumber) }),
      },
    });
  }

  #stateOf(node: NodeId): NodeState {
    let state = this.#nodes.get(node);
    if (state === undefined) {
      state = { sessions: new Set(), current: undefined, agreed: undefined, ready: false, waiting: new Set() };
      this.#nodes.set(node, state);
    }
    return state;
  }

  #sessionOf(channel: PeerChannel): Session | undefined {
    const sessions = this.#nodes.get(channel.peer.id)?.sessions ?? [];
    return [...sessions].find((session) => session.channel === channel);
  }

  /** Nothing is kept of a node that has no tunnel, no channel and nobody waiting. */
  #tidy(node: NodeId, state: NodeState): void {
    if (state.current === undefined && state.sessions.size === 0 && state.waiting.size === 0) {
      if (this.#nodes.get(node) === state) this.#nodes.delete(node);
    }
  }
}

function isAgreed(session: Session): boolean {
  return session.set && session.peerIsSet;
}

function newest(sessions: readonly Session[]): Session | undefined {
  return sessions.at(-1);
}

function settle(state: NodeState, result: Result<void, ReasonCode>): void {
  for (const done of [...state.waiting]) done(result);
}
