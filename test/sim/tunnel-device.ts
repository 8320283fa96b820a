/**
 * A WireGuard device as the kernel or wireguard-go is one, behind the product's own port: peers, allowed IPs, sessions made by
 * handshakes over the simulated underlay, packets staged while there is no session. It outlives the agent.
 */
import type { DeviceChange, DeviceState, PeerChange, WireguardDevice } from '../../src/encryption/device.ts';
import type { IpAddress } from '../../src/model/ids.ts';
import type { Event } from './engine.ts';
import type { Machine } from './machine.ts';
import type { Packet } from './packet.ts';

/** WireGuard, section 6.1: REKEY_TIMEOUT, REKEY_ATTEMPT_TIME; MAX_STAGED_PACKETS of the kernel. */
const RETRY_MS = 5_000;
const GIVE_UP_MS = 90_000;
const MAX_STAGED = 128;
const REJECT_AFTER_MS = 180_000;

export interface Session {
  readonly id: number;
}

interface Peer {
  readonly key: string;
  psk: string;
  readonly allowed: Set<IpAddress>;
  /** Sends under it. */
  current: Session | undefined;
  /** Still taken. */
  previous: Session | undefined;
  /** A responder's, until the initiator used it. */
  next: Session | undefined;
  staged: Packet[];
  /** Unix ms, by this machine's clock; 0: never. */
  handshakenMs: number;
  handshake: Attempt | undefined;
  /** Of the other side's initiations: an earlier one that comes late is a replay. */
  initiatedAt: number;
}

/** An initiation: what answers an earlier one is not taken. */
interface Attempt {
  readonly at: number;
  readonly sinceMs: number;
  readonly retry: Event;
}

export class TunnelDevice implements WireguardDevice {
  readonly implementation = 'wireguard-go';
  readonly ifindex = 7;
  readonly machine: Machine;
  publicKey = '';
  readonly peers = new Map<string, Peer>();
  #listenPort = 0;

  constructor(machine: Machine) {
    this.machine = machine;
  }

  async apply(change: DeviceChange): Promise<void> {
    const { world } = this.machine;
    const act = () => {
      if (change.listenPort !== undefined) this.#listenPort = change.listenPort;
      if (change.privateKey !== undefined) {
        this.publicKey = world.publicKeyOf(change.privateKey);
        this.peers.clear();
      }
      for (const peer of change.peers ?? []) this.#change(peer);
    };
    // The request and its answer each take a moment; the agent may be gone before either.
    await this.machine.sleep(world.random.between(0.02, 0.3), act);
    await this.machine.sleep(world.random.between(0.02, 0.3));
  }

  async read(): Promise<DeviceState> {
    await this.machine.sleep(0.1);
    return {
      publicKey: this.publicKey === '' ? undefined : Buffer.from(this.publicKey, 'hex'),
      listenPort: this.#listenPort,
      peers: [...this.peers.values()].map((peer) => ({
        publicKey: Buffer.from(peer.key, 'hex'),
        endpoint: '192.0.2.1:51820',
        addresses: [...peer.allowed],
        lastHandshake: Math.floor(peer.handshakenMs / 1000),
        rxBytes: 0n,
        txBytes: 0n,
      })),
    };
  }

  async close(): Promise<void> {}

  async destroy(): Promise<void> {
    this.peers.clear();
  }

  /** After to_tunnel passed it: the allowed IPs name the peer, and it waits there for a session. */
  transmit(packet: Packet) {
    const peer = [...this.peers.values()].find((p) => p.allowed.has(packet.to));
    if (peer === undefined) return this.machine.drop(packet, 'tunnel: no peer');
    if (peer.current !== undefined) return this.#seal(peer, peer.current, packet);
    this.machine.world.transition('tunnel staged');
    peer.staged.push(packet);
    if (peer.staged.length > MAX_STAGED) this.machine.drop(peer.staged.shift()!, 'tunnel: staged too many');
    this.#handshake(peer);
  }

  /** From the underlay. */
  receive(session: number, packet: Packet | undefined) {
    const { world } = this.machine;
    for (const peer of this.peers.values()) {
      if (peer.next?.id === session) {
        peer.previous = peer.current;
        peer.current = peer.next;
        peer.next = undefined;
        peer.handshakenMs = this.machine.tunnelNowMs();
        this.#flush(peer);
      } else if (peer.current?.id !== session && peer.previous?.id !== session) continue;
      if (packet === undefined) return;
      if (!peer.allowed.has(packet.from)) return this.machine.drop(packet, 'tunnel: source not allowed');
      return this.machine.received(packet);
    }
    if (packet !== undefined) {
      world.transition('tunnel refused a session');
      this.machine.drop(packet, 'tunnel: no session');
    }
  }

  /** REJECT_AFTER_TIME: what a long silence does, all at once, by the tunnel's clock too. */
  age() {
    this.machine.silenceMs += REJECT_AFTER_MS;
    for (const peer of this.peers.values()) {
      peer.current = undefined;
      peer.previous = undefined;
      peer.next = undefined;
    }
  }

  /** Memory as of a snapshot. */
  copyTo(other: TunnelDevice) {
    other.publicKey = this.publicKey;
    for (const [key, peer] of this.peers) {
      other.peers.set(key, { ...peer, allowed: new Set(peer.allowed), staged: [...peer.staged], handshake: undefined });
    }
  }

  #change(change: PeerChange) {
    const key = change.publicKey.toString('hex');
    const { machine } = this;
    if (change.remove === true) {
      const peer = this.peers.get(key);
      if (peer === undefined) return;
      if (peer.handshake !== undefined) peer.handshake.retry.cancelled = true;
      for (const packet of peer.staged) machine.drop(packet, 'tunnel: peer removed');
      peer.staged = [];
      for (const address of peer.allowed) machine.trace.tunnelDisallow(address, key);
      if (peer.current !== undefined || peer.previous !== undefined || peer.next !== undefined)
        machine.trace.sessionDrop(key);
      this.peers.delete(key);
      return;
    }
    let peer = this.peers.get(key);
    if (peer === undefined) {
      peer = {
        key,
        psk: '',
        allowed: new Set(),
        current: undefined,
        previous: undefined,
        next: undefined,
        staged: [],
        handshakenMs: 0,
        handshake: undefined,
        initiatedAt: 0,
      };
      this.peers.set(key, peer);
    }
    if (change.presharedKey !== undefined) peer.psk = change.presharedKey.toString('hex');
    for (const address of change.addresses ?? []) {
      if (peer.allowed.has(address)) continue;
      for (const other of this.peers.values())
        if (other.allowed.delete(address)) machine.trace.tunnelDisallow(address, other.key);
      peer.allowed.add(address);
      machine.trace.tunnelAllow(address, key);
    }
    if ((change.keepalive ?? 0) > 0 && peer.current === undefined) this.#handshake(peer);
  }

  #handshake(peer: Peer) {
    if (peer.handshake !== undefined) return;
    const { engine } = this.machine.world;
    this.#attempt(peer, engine.nowMs);
  }

  #attempt(peer: Peer, sinceMs: number) {
    const { machine } = this;
    const { engine, underlay, random } = machine.world;
    if (this.peers.get(peer.key) !== peer) return;
    if (engine.nowMs - sinceMs > GIVE_UP_MS) {
      for (const packet of peer.staged) machine.drop(packet, 'tunnel: no handshake');
      peer.staged = [];
      peer.handshake = undefined;
      return;
    }
    // REKEY_TIMEOUT with jitter: handshakes that cross find each other.
    const retry = engine.after(RETRY_MS + random.between(0, 333), machine.kernelOwner, () =>
      this.#attempt(peer, sinceMs),
    );
    const attempt = { at: machine.world.nextSession(), sinceMs, retry };
    peer.handshake = attempt;
    underlay.datagram(machine, peer.key, (other) => other.device?.respond(this, peer, attempt));
  }

  /** The responder: agrees if it has the initiator as a peer with the same preshared key. */
  respond(initiator: TunnelDevice, there: Peer, attempt: Attempt) {
    const here = this.peers.get(initiator.publicKey);
    if (here === undefined || here.psk !== there.psk || attempt.at <= here.initiatedAt) return;
    here.initiatedAt = attempt.at;
    const session = { id: this.machine.world.nextSession() };
    here.next = session;
    this.machine.world.underlay.datagram(this.machine, initiator.publicKey, (machine) => {
      if (machine.device !== initiator || initiator.peers.get(there.key) !== there || there.handshake !== attempt)
        return;
      attempt.retry.cancelled = true;
      there.handshake = undefined;
      there.previous = there.current;
      there.current = session;
      there.handshakenMs = initiator.machine.tunnelNowMs();
      if (there.staged.length === 0) initiator.#keepalive(there, session);
      initiator.#flush(there);
    });
  }

  #flush(peer: Peer) {
    const session = peer.current;
    if (session === undefined) return;
    if (peer.handshake !== undefined) {
      peer.handshake.retry.cancelled = true;
      peer.handshake = undefined;
    }
    for (const packet of peer.staged.splice(0)) this.#seal(peer, session, packet);
  }

  #keepalive(peer: Peer, session: Session) {
    this.machine.world.underlay.datagram(this.machine, peer.key, (other) =>
      other.device?.receive(session.id, undefined),
    );
  }

  #seal(peer: Peer, session: Session, packet: Packet) {
    this.machine.world.underlay.datagram(
      this.machine,
      peer.key,
      (other) => other.device?.receive(session.id, packet),
      packet,
    );
  }
}
