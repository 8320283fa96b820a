/** An encrypted path between nodes, whatever makes it. src/encryption/ implements it; the agent feeds it. */
import type { IpAddress, NodeId } from './ids.ts';

/** A peer of the tunnel device. Keys are raw bytes and never printed. */
export interface TunnelPeer {
  readonly node: NodeId;
  /** 32 bytes, X25519. */
  readonly publicKey: Buffer;
  /** 32 bytes from the peer channel's TLS exporter. */
  readonly presharedKey: Buffer;
  /** "IP:port" or "[IPv6]:port" on the underlay. */
  readonly endpoint: string;
}

export interface TunnelPeerStatus {
  readonly node: NodeId;
  readonly publicKey: string;
  readonly endpoint: string;
  readonly allowedAddresses: readonly IpAddress[];
  /** Unix seconds, 0: never. */
  readonly lastHandshake: number;
  readonly rxBytes: bigint;
  readonly txBytes: bigint;
}

export interface Tunnel {
  readonly type: 'wireguard';
  /** "kernel" or "wireguard-go". */
  readonly implementation: string;
  readonly device: string;
  readonly ifindex: number;
  readonly publicKey: Buffer;
  readonly keyNumber: number;
  readonly listenPort: number;
  /** Adds or replaces the peer of this node. A change of keys removes the old peer first, so that its session ends. */
  setPeer(peer: TunnelPeer): Promise<void>;
  /** Starts the handshake now rather than with the first packet: when both ends have set the peer, and from one end only. */
  startHandshake(node: NodeId): Promise<void>;
  /** Ends the peer's session; routes and allowed addresses go with it. */
  removePeer(node: NodeId): Promise<void>;
  /** Binds a remote workload's address to the node's peer, with its route through the device. Break before make between peers. */
  allow(node: NodeId, address: IpAddress): Promise<void>;
  /** Resolves when nothing that waited for a session goes there any more. */
  disallow(address: IpAddress): Promise<void>;
  /**
   * Ends the session with the node, and keeps the peer: when it resolves, nothing that was sent under the session is taken any more, and
   * nothing that waited for one is sent. Nothing goes in clear meanwhile: it is dropped. `handshake`: starts a new one at once; both
   * ends must have set the peer. Calls that wait together share one.
   */
  endSession(node: NodeId, handshake: boolean): Promise<void>;
  status(): Promise<readonly TunnelPeerStatus[]>;
  /** Leaves device and process standing (an agent restart finds them again); `destroy` takes them away. */
  close(): Promise<void>;
  destroy(): Promise<void>;
}
