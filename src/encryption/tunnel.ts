/**
 * The WireGuard tunnel of this node: one device, a peer for each node that proved itself, allowed IPs exactly the
 * addresses that node vouches for. It remembers what should be, so that a restarted wireguard-go gets it all again.
 */
import { CountersignError } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import type { IpAddress, NodeId } from '../model/ids.ts';
import type { Tunnel, TunnelPeer, TunnelPeerStatus } from '../model/tunnel.ts';
import { KEY_LENGTH, type PeerChange, parseEndpoint, type WireguardDevice } from './device.ts';
import { nobodysPublicKey, rawPrivateKey, type TunnelKey } from './key-file.ts';
import type { Links } from './rtnetlink.ts';

/** A session younger than this sends at once: nothing waits for one. Below WireGuard's REJECT_AFTER_TIME, after which packets wait. */
const FRESH_SECONDS = 170;
/**
 * Between two endings of the sessions with one peer, ms: a peer takes no second handshake within 20 ms of the first (it counts as a flood),
 * and none whose timestamp, exact to 17 ms, has not risen; its next try is five seconds later.
 */
const ENDING_SPACE_MS = 50;
/**
 * Two handshakes that cross on the wire undo each other (both ends answer, neither takes the answer), and WireGuard tries again after five
 * seconds. So whoever ended a session looks whether the next one came about, and ends it again if not: ms, and as much again at random, so
 * that the two ends do not cross again.
 */
const HANDSHAKE_LOOKS_MS = [150, 400, 1_000] as const;
/** Seconds between keepalives: sessions are renewed with nothing to send, so that a dead path shows before it is needed. */
const KEEPALIVE = 25;

export interface TunnelSettings {
  readonly device: string;
  readonly listenPort: number;
  readonly mtu: number;
  /** Of the encrypted packets; 0: none. */
  readonly fwmark: number;
  /** How long peers of an earlier agent that nobody asked for again may stay. */
  readonly orphanMs: number;
  /** For tests that have a clock of their own. Default: the machine's. */
  readonly time?: TunnelTime;
}

export interface TunnelTime {
  /** Unix ms. */
  now(): number;
  sleep(ms: number): Promise<void>;
}

const machineTime: TunnelTime = {
  now: () => Date.now(),
  sleep: (ms) => new Promise((resolve) => setTimeout(resolve, ms).unref()),
};

/** An ending of a session that has not begun: whoever asks meanwhile shares it. */
interface Ending {
  handshake: boolean;
  readonly done: Promise<void>;
}

export class WireguardTunnel implements Tunnel {
  readonly type = 'wireguard';
  readonly #settings: TunnelSettings;
  readonly #key: TunnelKey;
  readonly #device: WireguardDevice;
  readonly #links: Links;
  readonly #log: Logger;
  readonly #peers = new Map<NodeId, TunnelPeer>();
  readonly #handshaken = new Set<NodeId>();
  readonly #owner = new Map<IpAddress, NodeId>();
  /** Peers an earlier agent left on the device, by public key: their sessions go on until somebody claims or ends them. */
  readonly #orphans = new Map<string, Set<IpAddress>>();
  readonly #endings = new Map<NodeId, Ending>();
  readonly #endedMs = new Map<NodeId, number>();
  /** When the last handshake that was seen took place, Unix seconds. */
  readonly #handshakes = new Map<NodeId, number>();
  readonly #time: TunnelTime;
  /** Those who wait for an orphan to be claimed or ended. */
  #claims: (() => void)[] = [];
  /** Peers whose new handshake is awaited, and how often that was looked after. */
  readonly #awaited = new Map<NodeId, number>();
  #closed = false;
  #orphanTimer: NodeJS.Timeout | undefined;
  #queue: Promise<unknown> = Promise.resolve();

  constructor(settings: TunnelSettings, key: TunnelKey, device: WireguardDevice, links: Links, log: Logger) {
    this.#settings = settings;
    this.#time = settings.time ?? machineTime;
    this.#key = key;
    this.#device = device;
    this.#links = links;
    this.#log = log;
  }

  get implementation(): string {
    return this.#device.implementation;
  }

  get device(): string {
    return this.#settings.device;
  }

  /** Changes when wireguard-go had to be restarted. */
  get ifindex(): number {
    return this.#device.ifindex;
  }

  get publicKey(): Buffer {
    return this.#key.publicKey;
  }

  get keyNumber(): number {
    return this.#key.number;
  }

  get listenPort(): number {
    return this.#settings.listenPort;
  }

  /** Brings the device up, keeping what it holds; a device with another key is emptied. */
  async start(): Promise<void> {
    await this.#inTurn(async () => {
      const before = await this.#device.read();
      const ours = before.publicKey?.equals(this.#key.publicKey) === true;
      for (const peer of before.peers) {
        if (ours) this.#orphans.set(peer.publicKey.toString('hex'), new Set(peer.addresses));
        else await this.#device.apply({ peers: [{ publicKey: peer.publicKey, remove: true }] });
      }
      await this.#configure(before.listenPort, !ours);
      if (this.#orphans.size === 0) return;
      this.#log.info({ peers: this.#orphans.size }, 'tunnel: peers of an earlier run go on until they are set anew');
      this.#orphanTimer = setTimeout(() => void this.#inTurn(() => this.#endOrphans()), this.#settings.orphanMs);
      this.#orphanTimer.unref();
    });
  }

  /** Everything anew, for a device that came back empty. `beforeTraffic` runs while it is still down. */
  async restore(beforeTraffic: () => Promise<void>): Promise<void> {
    await this.#inTurn(async () => {
      this.#orphans.clear();
      this.#claimed();
      this.#handshaken.clear();
      this.#handshakes.clear();
      await beforeTraffic();
      await this.#configure(0, true);
      const peers = [...this.#peers.values()].map((peer) => this.#change(peer, KEEPALIVE));
      await this.#device.apply({ peers });
      for (const address of this.#owner.keys()) this.#links.addRoute(this.ifindex, address);
    });
  }

  setPeer(peer: TunnelPeer): Promise<void> {
    return this.#inTurn(async () => {
      this.#check(peer);
      const before = this.#peers.get(peer.node);
      const changes: PeerChange[] = [];
      const id = peer.publicKey.toString('hex');
      if (before === undefined) {
        const orphaned = this.#orphans.get(id);
        if (orphaned !== undefined) {
          // The same node, proven anew: what it had goes on with it, or flows would stop until each address is vouched for again.
          this.#orphans.delete(id);
          for (const address of orphaned) if (!this.#owner.has(address)) this.#owner.set(address, peer.node);
          changes.push({ publicKey: peer.publicKey, remove: true });
        }
      } else if (!sameKeys(before, peer)) {
        // A session lives on under a changed preshared key: only the peer's removal ends it.
        changes.push({ publicKey: before.publicKey, remove: true });
        this.#handshaken.delete(peer.node);
      }
      changes.push(this.#change(peer, this.#handshaken.has(peer.node) ? KEEPALIVE : 0));
      this.#peers.set(peer.node, peer);
      if (changes.length > 1) this.#handshakes.delete(peer.node);
      await this.#device.apply({ peers: changes });
      this.#claimed();
    });
  }

  endSession(node: NodeId, handshake: boolean): Promise<void> {
    const shared = this.#endings.get(node);
    if (shared !== undefined) {
      shared.handshake ||= handshake;
      return shared.done;
    }
    if (!this.#peers.has(node) && this.#orphans.size === 0) return Promise.resolve();
    const ending: Ending = { handshake, done: this.#endInTime(node, () => ending.handshake) };
    this.#endings.set(node, ending);
    return ending.done;
  }

  startHandshake(node: NodeId): Promise<void> {
    return this.#inTurn(async () => {
      const peer = this.#peers.get(node);
      if (peer === undefined || this.#handshaken.has(node)) return;
      this.#handshaken.add(node);
      await this.#device.apply({ peers: [{ publicKey: peer.publicKey, keepalive: KEEPALIVE }] });
    });
  }

  removePeer(node: NodeId): Promise<void> {
    return this.#inTurn(async () => {
      const peer = this.#peers.get(node);
      const addresses = this.#addressesOf(node);
      this.#peers.delete(node);
      this.#handshaken.delete(node);
      this.#handshakes.delete(node);
      this.#awaited.delete(node);
      this.#endedMs.delete(node);
      for (const address of addresses) {
        this.#owner.delete(address);
        this.#links.deleteRoute(this.ifindex, address);
      }
      if (peer !== undefined) await this.#device.apply({ peers: [{ publicKey: peer.publicKey, remove: true }] });
    });
  }

  allow(node: NodeId, address: IpAddress): Promise<void> {
    return this.#inTurn(async () => {
      if (this.#owner.get(address) === node) return;
      await this.#unbind(address);
      this.#owner.set(address, node);
      this.#links.addRoute(this.ifindex, address);
      const peer = this.#peers.get(node);
      // A peer that is not there yet gets its addresses with its keys; until then the route leads nowhere.
      if (peer !== undefined)
        await this.#device.apply({ peers: [{ publicKey: peer.publicKey, addresses: [address] }] });
    });
  }

  async disallow(address: IpAddress): Promise<void> {
    const owner = await this.#inTurn(async () => {
      const node = this.#owner.get(address);
      await this.#unbind(address);
      this.#owner.delete(address);
      this.#links.deleteRoute(this.ifindex, address);
      return node;
    });
    if (owner !== undefined) await this.#flush(owner);
  }

  status(): Promise<readonly TunnelPeerStatus[]> {
    return this.#inTurn(async () => {
      const { peers } = await this.#device.read();
      const nodes = new Map([...this.#peers.values()].map((peer) => [peer.publicKey.toString('hex'), peer.node]));
      return peers.flatMap((peer) => {
        const node = nodes.get(peer.publicKey.toString('hex'));
        if (node === undefined) return [];
        const { endpoint, addresses, lastHandshake, rxBytes, txBytes } = peer;
        const publicKey = peer.publicKey.toString('base64');
        return [{ node, publicKey, endpoint, allowedAddresses: addresses, lastHandshake, rxBytes, txBytes }];
      });
    });
  }

  close(): Promise<void> {
    this.#closed = true;
    clearTimeout(this.#orphanTimer);
    return this.#inTurn(() => this.#device.close());
  }

  destroy(): Promise<void> {
    this.#closed = true;
    clearTimeout(this.#orphanTimer);
    return this.#inTurn(() => this.#device.destroy());
  }

  /** Setting the port it has already would close and open the device's socket for nothing. */
  async #configure(portNow: number, withKey: boolean): Promise<void> {
    const { listenPort, fwmark } = this.#settings;
    const privateKey = rawPrivateKey(this.#key.privateKey);
    await this.#device.apply({
      fwmark,
      ...(withKey ? { privateKey } : {}),
      ...(portNow === listenPort ? {} : { listenPort }),
    });
    privateKey.fill(0);
    this.#links.setUp(this.ifindex, this.#settings.mtu);
  }

  #change(peer: TunnelPeer, keepalive: number): PeerChange {
    const { publicKey, presharedKey } = peer;
    const endpoint = parseEndpoint(peer.endpoint)!;
    return { publicKey, presharedKey, endpoint, keepalive, addresses: this.#addressesOf(peer.node) };
  }

  #addressesOf(node: NodeId): IpAddress[] {
    return [...this.#owner].filter(([, owner]) => owner === node).map(([address]) => address);
  }

  #check(peer: TunnelPeer): void {
    if (peer.publicKey.length !== KEY_LENGTH || peer.presharedKey.length !== KEY_LENGTH) {
      throw refused(`the keys of node ${peer.node} are not ${KEY_LENGTH} bytes`);
    }
    if (parseEndpoint(peer.endpoint) === undefined) throw refused(`the endpoint of node ${peer.node} is not "IP:port"`);
    if (peer.publicKey.equals(this.publicKey)) throw refused(`the key of node ${peer.node} is this node's own`);
    for (const other of this.#peers.values()) {
      if (other.node !== peer.node && other.publicKey.equals(peer.publicKey)) {
        throw refused(`the key of node ${peer.node} is that of node ${other.node}`);
      }
    }
  }

  /**
   * Takes an address from whatever peer has it. WireGuard cannot take one allowed IP away without setting all the others
   * anew, in which gap their packets are lost; so it moves to a peer that is nobody, and that peer is removed.
   */
  async #unbind(address: IpAddress): Promise<void> {
    let bound = this.#owner.has(address);
    for (const addresses of this.#orphans.values()) bound = addresses.delete(address) || bound;
    if (!bound) return;
    const publicKey = nobodysPublicKey();
    await this.#device.apply({
      peers: [
        { publicKey, addresses: [address] },
        { publicKey, remove: true },
      ],
    });
  }

  /**
   * A packet that finds no session waits in the peer, whatever becomes of its address's entry, and goes out with the next one. There are none
   * while a session lives.
   */
  async #flush(node: NodeId): Promise<void> {
    const isFresh = () => {
      const age = this.#time.now() / 1000 - (this.#handshakes.get(node) ?? 0);
      return age >= 0 && age < FRESH_SECONDS;
    };
    if (isFresh() || !this.#peers.has(node)) return;
    await this.#inTurn(() => this.#readHandshakes());
    if (!isFresh()) await this.endSession(node, this.#handshaken.has(node));
  }

  async #readHandshakes(): Promise<void> {
    const { peers } = await this.#device.read();
    const nodes = new Map([...this.#peers.values()].map((peer) => [peer.publicKey.toString('hex'), peer.node]));
    for (const { publicKey, lastHandshake } of peers) {
      const node = nodes.get(publicKey.toString('hex'));
      if (node !== undefined && lastHandshake > 0) this.#handshakes.set(node, lastHandshake);
    }
  }

  async #endInTime(node: NodeId, handshake: () => boolean): Promise<void> {
    try {
      // The session of an earlier run goes on under a key of which nobody knows yet whose it is.
      while (!this.#peers.has(node) && this.#orphans.size > 0) {
        await new Promise<void>((resolve) => this.#claims.push(resolve));
      }
      const waitMs = (this.#endedMs.get(node) ?? 0) + ENDING_SPACE_MS - this.#time.now();
      if (waitMs > 0) await this.#time.sleep(Math.min(waitMs, ENDING_SPACE_MS));
    } finally {
      // From here on another call is another ending.
      await this.#inTurn(async () => {
        this.#endings.delete(node);
        const peer = this.#peers.get(node);
        if (peer === undefined) return;
        this.#endedMs.set(node, this.#time.now());
        this.#handshakes.delete(node);
        if (handshake()) this.#handshaken.add(node);
        const { publicKey } = peer;
        const keepalive = this.#handshaken.has(node) ? KEEPALIVE : 0;
        // Both in one request. The routes stay, so that what comes in between is dropped by the device.
        await this.#device.apply({ peers: [{ publicKey, remove: true }, this.#change(peer, keepalive)] });
        if (keepalive > 0) this.#await(node, this.#awaited.get(node) ?? 0);
      });
    }
  }

  #await(node: NodeId, looks: number): void {
    const lookMs = HANDSHAKE_LOOKS_MS[looks];
    if (lookMs === undefined) {
      this.#awaited.delete(node);
      return;
    }
    this.#awaited.set(node, looks + 1);
    const look = async () => {
      await this.#time.sleep(lookMs * (1 + Math.random()));
      // Another ending began meanwhile, or the peer went: not this one's matter any more.
      if (this.#closed || this.#awaited.get(node) !== looks + 1) return;
      await this.#inTurn(() => this.#readHandshakes());
      if (this.#handshakes.has(node) || !this.#peers.has(node)) this.#awaited.delete(node);
      else await this.endSession(node, true);
    };
    look().catch((error) => this.#log.warn({ err: error }, 'tunnel: whether the handshake came about is not known'));
  }

  #claimed(): void {
    const claims = this.#claims;
    this.#claims = [];
    for (const claim of claims) claim();
  }

  async #endOrphans(): Promise<void> {
    const peers = [...this.#orphans.keys()].map((id) => ({ publicKey: Buffer.from(id, 'hex'), remove: true }));
    const addresses = [...this.#orphans.values()].flatMap((set) => [...set]);
    this.#orphans.clear();
    if (peers.length > 0) await this.#device.apply({ peers });
    for (const address of addresses) if (!this.#owner.has(address)) this.#links.deleteRoute(this.ifindex, address);
    this.#claimed();
  }

  /** One change at a time, in the order they were asked for. */
  #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const done = this.#queue.then(work);
    this.#queue = done.catch(() => {});
    return done;
  }
}

function sameKeys(a: TunnelPeer, b: TunnelPeer): boolean {
  return a.publicKey.equals(b.publicKey) && a.presharedKey.equals(b.presharedKey);
}

function refused(message: string): CountersignError {
  return new CountersignError('bad-input', message);
}
