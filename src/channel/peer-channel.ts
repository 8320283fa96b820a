/** A peer channel: one TLS 1.3 connection between two agents that have both shown a valid node SVID and said hello. */
import type { FrameType } from '../../proto/gen/countersign/peer/v1/peer.ts';
import type { ReasonCode } from '../base/registry/reason-codes.ts';
import type { NodeInfo } from '../model/identity.ts';
import type { Certificate } from '../pki/certificate.ts';

/** TLS role of this side: RFC 9261 keys depend on it. */
export type ChannelRole = 'client' | 'server';

export interface PeerChannel {
  readonly peer: NodeInfo;
  /** The peer's node SVID, verified. */
  readonly peerCertificate: Certificate;
  readonly role: ChannelRole;
  /** Unique in this process, for logs and correlation. */
  readonly id: string;
  /** Least of both node SVIDs' notAfter, Unix ms. */
  readonly validUntilMs: number;
  /** For people: the protocol version that both agreed on, and for how long the channel is open, ms. */
  readonly version?: number;
  readonly ageMs?: number;
  /** Hash of the cipher suite: what RFC 9261 and the exporter lengths follow. */
  readonly hash: 'sha256' | 'sha384';
  /** Throws nothing: a frame on a closed channel is dropped. */
  send(type: FrameType, body: Uint8Array): void;
  /** RFC 8446, section 7.5. Same bytes on both ends. `length` is part of the derivation. */
  exportKey(label: string, context: Uint8Array, length: number): Buffer;
  /** Sends Close with the reason and ends the connection. */
  close(reason: ReasonCode): void;
  readonly closed: boolean;
}

/** What the layers above (vouches, authentication, tunnels) are told. One handler gets every frame above the channel's own types. */
export interface PeerChannelEvents {
  opened(channel: PeerChannel): void;
  /** A body that does not decode: throw, and the channel closes with PEER_FRAME_MALFORMED. */
  frame(channel: PeerChannel, type: FrameType, body: Buffer): void;
  closed(channel: PeerChannel, reason: ReasonCode): void;
}

/** All channels of this node. */
export interface PeerChannels {
  /** The open channel to a node, opening one if there is none. Rejects with CountersignError whose `reason` is a ReasonCode. */
  open(node: NodeInfo): Promise<PeerChannel>;
  get(node: NodeInfo): PeerChannel | undefined;
  list(): readonly PeerChannel[];
}
