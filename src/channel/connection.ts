/** One connection between two proven nodes: hello, frames, keep-alive, back-pressure, end. */
import { randomBytes, timingSafeEqual } from 'node:crypto';
import type { TLSSocket } from 'node:tls';
import { Close, FrameType, Ping, Pong } from '../../proto/gen/countersign/peer/v1/peer.ts';
import type { Clock } from '../base/clock.ts';
import { EXPORTER_LABELS } from '../base/registry/exporter-labels.ts';
import { type ReasonCode, reasonCodes } from '../base/registry/reason-codes.ts';
import type { NodeInfo } from '../model/identity.ts';
import type { Certificate } from '../pki/certificate.ts';
import { encodeFrame, FrameReader } from './frame.ts';
import { encodeHello, type PeerHello, readHello, SUCCESSION_OCTETS } from './hello.ts';
import type { ChannelLimits } from './limits.ts';
import type { ProvenNode } from './node-verifier.ts';
import type { ChannelRole, PeerChannel } from './peer-channel.ts';
import { hashOf } from './tls.ts';

/** greeting: no hello from the peer yet. settling: both said hello, the node decides whether this channel stays. */
type Phase = 'greeting' | 'settling' | 'open' | 'closed';

/** Who ended it. */
export type ClosedBy = 'self' | 'peer';

/** The node's side of a connection: who is told. */
export interface ConnectionHost {
  /** Is there an open channel to the node? */
  has(node: NodeInfo): boolean;
  /** The peer's hello agrees with its certificate. Answer with `open` or `close`. */
  greeted(connection: Connection, hello: PeerHello): void;
  /** A frame above the channel's own types, on an open channel. May throw: the body does not decode. */
  frame(connection: Connection, type: FrameType, body: Buffer): void;
  /** Once, from whatever phase. `wasOpen`: the layers above know of it. */
  closed(connection: Connection, reason: ReasonCode, by: ClosedBy, wasOpen: boolean): void;
}

export interface ConnectionParts {
  readonly id: string;
  readonly socket: TLSSocket;
  readonly role: ChannelRole;
  readonly self: NodeInfo;
  readonly peer: ProvenNode;
  /** "address:port" as text, for logs and audit. */
  readonly remote: { readonly address: string; readonly port: number };
  /** notAfter of the own node SVID, Unix ms. */
  readonly selfValidUntilMs: number;
  /** The channel this one is dialed to replace. */
  readonly succeeds: Connection | undefined;
  readonly limits: ChannelLimits;
  readonly clock: Clock;
  readonly host: ConnectionHost;
  /** Once: undefined when it opens, the reason when it ends before. */
  settled(reason: ReasonCode | undefined): void;
}

/** Pings whose answer is still accepted. */
const MAX_PINGS = 16;

export class Connection implements PeerChannel {
  readonly id: string;
  readonly role: ChannelRole;
  readonly hash: 'sha256' | 'sha384';
  /** For the audit log. */
  readonly cipher: string;
  /** When the socket is gone. */
  readonly ended: Promise<void>;
  readonly validUntilMs: number;
  readonly proven: ProvenNode;
  readonly remote: ConnectionParts['remote'];
  readonly #parts: ConnectionParts;
  readonly #socket: TLSSocket;
  readonly #reader = new FrameReader();
  /** Told true by the answer, false by the end of the channel. */
  readonly #pings = new Map<bigint, (alive: boolean) => void>();
  #phase: Phase = 'greeting';
  #version = 0;
  /** Reading is stopped because the peer does not read. */
  #clogged = false;
  #openedNs = 0n;
  #lastFrameNs: bigint;
  #lastPingNs: bigint;

  constructor(parts: ConnectionParts) {
    this.#parts = parts;
    this.#socket = parts.socket;
    this.id = parts.id;
    this.role = parts.role;
    this.proven = parts.peer;
    this.remote = parts.remote;
    this.hash = hashOf(parts.socket);
    this.cipher = parts.socket.getCipher().standardName;
    this.ended = new Promise((resolve) => parts.socket.once('close', () => resolve()));
    this.validUntilMs = Math.min(parts.peer.validUntilMs, parts.selfValidUntilMs);
    this.#lastFrameNs = parts.clock.bootNs();
    this.#lastPingNs = this.#lastFrameNs;
  }

  get peer(): NodeInfo {
    return this.proven.info;
  }

  get peerCertificate(): Certificate {
    return this.proven.leaf;
  }

  get closed(): boolean {
    return this.#phase === 'closed';
  }

  get isOpen(): boolean {
    return this.#phase === 'open';
  }

  get version(): number {
    return this.#version;
  }

  /** Since it opened, ms. */
  get ageMs(): number {
    return Number((this.#parts.clock.bootNs() - this.#openedNs) / 1_000_000n);
  }

  get dialedByLower(): boolean {
    const selfIsLower = this.#parts.self.name < this.peer.name;
    return selfIsLower === (this.role === 'client');
  }

  /** Starts to read; the responder speaks first, which tells the initiator that its certificate was accepted. */
  greet(): void {
    const socket = this.#socket;
    socket.setNoDelay(true);
    socket.on('data', (chunk: Buffer) => this.#onData(chunk));
    socket.on('drain', () => this.#onDrain());
    socket.on('error', () => this.#end('PEER_CHANNEL_CLOSED', 'peer'));
    socket.on('end', () => this.#end('PEER_CHANNEL_CLOSED', 'peer'));
    socket.on('close', () => this.#end('PEER_CHANNEL_CLOSED', 'peer'));
    if (this.role === 'server') this.#write(FrameType.FRAME_TYPE_HELLO, encodeHello(this.#parts.self, Buffer.alloc(0)));
  }

  /** The node keeps this channel: frames flow from now on. */
  open(): void {
    if (this.#phase !== 'settling') return;
    this.#phase = 'open';
    this.#openedNs = this.#parts.clock.bootNs();
    this.#lastFrameNs = this.#openedNs;
    this.#parts.settled(undefined);
  }

  /** After `open` and after the layers above were told: deliver what has waited meanwhile. */
  flow(): void {
    if (this.#phase !== 'open') return;
    this.#readFrames();
    this.#resumeIfWanted();
  }

  send(type: FrameType, body: Uint8Array): void {
    if (this.#phase === 'open') this.#write(type, body);
  }

  exportKey(label: string, context: Uint8Array, length: number): Buffer {
    const key: Buffer | undefined = this.closed
      ? undefined
      : this.#socket.exportKeyingMaterial(length, label, Buffer.from(context));
    if (key === undefined) throw new Error(`peer channel ${this.id} is closed: no keys can be drawn from it`);
    return key;
  }

  /** What a redial shows to prove that it replaces this channel. */
  successionProof(): Buffer {
    return this.exportKey(EXPORTER_LABELS.channelSuccession, Buffer.alloc(0), SUCCESSION_OCTETS);
  }

  /** Does this proof show that the peer holds the other channel's secrets? */
  isSuccessorOf(other: Connection, proof: Buffer): boolean {
    return this.role === 'server'
      ? proof.length === SUCCESSION_OCTETS && other.isOpen && timingSafeEqual(proof, other.successionProof())
      : this.#parts.succeeds === other;
  }

  close(reason: ReasonCode): void {
    this.#end(reason, 'self');
  }

  /** Does the peer answer within the probe deadline? */
  probe(): Promise<boolean> {
    return new Promise((resolve) => {
      if (!this.isOpen) return resolve(false);
      const timer = setTimeout(() => resolve(false), this.#parts.limits.probeMs);
      this.#ping((alive) => {
        clearTimeout(timer);
        resolve(alive);
      });
    });
  }

  /** Called at every tick while open: keep-alive and ends. */
  tick(nowNs: bigint, nowMs: number): void {
    if (this.#phase !== 'open') return;
    const { pingAfterMs, idleMs } = this.#parts.limits;
    const silentMs = Number(nowNs - this.#lastFrameNs) / 1e6;
    const sincePingMs = Number(nowNs - this.#lastPingNs) / 1e6;
    if (nowMs >= this.validUntilMs) this.close('CERT_EXPIRED');
    else if (silentMs >= idleMs) this.close('PEER_IDLE_TIMEOUT');
    else if (silentMs >= pingAfterMs && sincePingMs >= pingAfterMs) this.#ping(() => {});
  }

  #onData(chunk: Buffer): void {
    if (this.closed) return;
    this.#reader.feed(chunk);
    this.#readFrames();
  }

  #readFrames(): void {
    while (this.#phase === 'greeting' || this.#phase === 'open') {
      const next = this.#reader.next();
      if (next === undefined) return;
      if (!next.ok) {
        this.close(next.error);
        return;
      }
      // Whole frames count, not octets: one octet a second does not keep a channel alive.
      this.#lastFrameNs = this.#parts.clock.bootNs();
      this.#onFrame(next.value.type, next.value.body);
    }
    // Settling: the rest of the piece stays in the reader until the node has decided.
    if (this.#phase === 'settling') this.#socket.pause();
  }

  #onFrame(type: FrameType, body: Buffer): void {
    if (type === FrameType.FRAME_TYPE_CLOSE) {
      this.#onClose(body);
      return;
    }
    if (this.#phase === 'greeting') {
      if (type !== FrameType.FRAME_TYPE_HELLO) {
        this.close('PEER_FRAME_UNEXPECTED');
        return;
      }
      this.#onHello(body);
      return;
    }
    try {
      switch (type) {
        case FrameType.FRAME_TYPE_HELLO:
          this.close('PEER_FRAME_UNEXPECTED');
          return;
        case FrameType.FRAME_TYPE_PING:
          this.#write(FrameType.FRAME_TYPE_PONG, Pong.encode(Ping.decode(body)).finish());
          return;
        case FrameType.FRAME_TYPE_PONG:
          this.#onPong(Pong.decode(body).nonce);
          return;
        default:
          this.#parts.host.frame(this, type, body);
          return;
      }
    } catch {
      this.close('PEER_FRAME_MALFORMED');
    }
  }

  #onHello(body: Buffer): void {
    const hello = readHello(body, this.peer);
    if (!hello.ok) {
      this.close(hello.error);
      return;
    }
    if (this.role === 'client') {
      const predecessor = this.#parts.succeeds;
      const proof = predecessor?.isOpen ? predecessor.successionProof() : Buffer.alloc(0);
      this.#write(FrameType.FRAME_TYPE_HELLO, encodeHello(this.#parts.self, proof));
      if (this.closed) return;
    }
    this.#version = hello.value.version;
    this.#phase = 'settling';
    this.#parts.host.greeted(this, hello.value);
  }

  #onPong(nonce: bigint): void {
    const answered = this.#pings.get(nonce);
    if (answered === undefined) {
      this.close('PEER_FRAME_UNEXPECTED');
      return;
    }
    this.#pings.delete(nonce);
    answered(true);
  }

  #onClose(body: Buffer): void {
    let reason = 'PEER_CHANNEL_CLOSED';
    try {
      reason = Close.decode(body).reason;
    } catch {
      // A peer that leaves may leave badly.
    }
    this.#end(Object.hasOwn(reasonCodes, reason) ? (reason as ReasonCode) : 'PEER_CHANNEL_CLOSED', 'peer');
  }

  #ping(answered: (alive: boolean) => void): void {
    const nonce = randomBytes(8).readBigUInt64BE();
    const oldest = this.#pings.size >= MAX_PINGS ? this.#pings.keys().next().value : undefined;
    if (oldest !== undefined) this.#pings.delete(oldest);
    this.#pings.set(nonce, answered);
    this.#lastPingNs = this.#parts.clock.bootNs();
    this.#write(FrameType.FRAME_TYPE_PING, Ping.encode({ nonce }).finish());
  }

  #write(type: FrameType, body: Uint8Array): void {
    const socket = this.#socket;
    if (this.closed || !socket.writable) return;
    const frame = encodeFrame(type, body);
    if (frame === undefined) {
      this.close('PEER_FRAME_TOO_LARGE');
      return;
    }
    socket.write(frame);
    const { pauseAtBytes, sendQueueBytes } = this.#parts.limits;
    if (socket.writableLength > sendQueueBytes) {
      this.#end('PEER_SEND_QUEUE_FULL', 'self');
    } else if (socket.writableLength > pauseAtBytes && !this.#clogged) {
      // Whoever does not read our answers is not heard further.
      this.#clogged = true;
      socket.pause();
    }
  }

  #onDrain(): void {
    this.#clogged = false;
    this.#resumeIfWanted();
  }

  #resumeIfWanted(): void {
    if (!this.#clogged && this.#phase !== 'settling') this.#socket.resume();
  }

  #end(reason: ReasonCode, by: ClosedBy): void {
    if (this.#phase === 'closed') return;
    const wasOpen = this.#phase === 'open';
    this.#phase = 'closed';
    // Whoever waits to take the place of this one need not wait for the deadline.
    for (const answered of this.#pings.values()) answered(false);
    this.#pings.clear();
    const socket = this.#socket;
    if (reason === 'PEER_SEND_QUEUE_FULL' || socket.destroyed) {
      socket.destroy();
    } else {
      const farewell =
        by === 'self' ? encodeFrame(FrameType.FRAME_TYPE_CLOSE, Close.encode({ reason }).finish()) : undefined;
      endSocket(socket, farewell, this.#parts.limits.lingerMs);
    }
    if (!wasOpen) this.#parts.settled(reason);
    this.#parts.host.closed(this, reason, by, wasOpen);
  }
}

/** Flushes a last frame, then ends; destroyed after `lingerMs` whatever the peer does. What it still sends is dropped. */
export function endSocket(socket: TLSSocket, farewell: Buffer | undefined, lingerMs: number): void {
  const timer = setTimeout(() => socket.destroy(), lingerMs);
  socket.once('close', () => clearTimeout(timer));
  socket.resume();
  if (farewell === undefined) socket.end();
  else socket.end(farewell);
}
