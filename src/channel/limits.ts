/** Every bound a peer channel holds to. All can be set; the defaults suit a node with some thousand peers. */
export interface ChannelLimits {
  /** TCP connect to one address of a node, ms. */
  readonly connectMs: number;
  /** From the accepted or connected socket to both hellos, ms. Then the socket is destroyed. */
  readonly handshakeMs: number;
  /** How long a living channel has to answer a ping before a newcomer of the same node takes its place, ms. */
  readonly probeMs: number;
  /** After this long without a frame from the peer: ping, ms. */
  readonly pingAfterMs: number;
  /** After this long without a frame from the peer: close, ms. */
  readonly idleMs: number;
  /** Fresh secrets at least this often, ms. */
  readonly redialAfterMs: number;
  /** Between two tries to redial, ms. */
  readonly redialRetryMs: number;
  /** After a dial that failed the node is left alone, from this long, ms, doubling with each failure, */
  readonly dialBackoffMinMs: number;
  /** up to this long, ms. Jittered. */
  readonly dialBackoffMaxMs: number;
  /** How long a closing socket may take to flush its last frame, ms. */
  readonly lingerMs: number;
  /** How often ages are looked at, ms. */
  readonly tickMs: number;
  /** Inbound connections that have not said hello yet, over all sources. */
  readonly halfOpen: number;
  /** The same for one source: an IPv4 address or an IPv6 /64. */
  readonly halfOpenPerSource: number;
  /** All connections of this node. */
  readonly connections: number;
  /** New inbound connections of one source: sustained rate per second, and burst. */
  readonly acceptsPerSecond: number;
  readonly acceptBurst: number;
  /** Sources remembered at once for that. */
  readonly sources: number;
  /** Handshakes begun for all sources together: sustained rate per second, and burst. Listed nodes have as many again. */
  readonly handshakesPerSecond: number;
  readonly handshakeBurst: number;
  /** Octets waiting to be sent at which this side stops reading from the peer. */
  readonly pauseAtBytes: number;
  /** Octets waiting to be sent at which the channel closes. */
  readonly sendQueueBytes: number;
}

export const DEFAULT_CHANNEL_LIMITS: ChannelLimits = {
  connectMs: 2_000,
  handshakeMs: 5_000,
  probeMs: 1_000,
  pingAfterMs: 10_000,
  idleMs: 30_000,
  redialAfterMs: 3_300_000,
  redialRetryMs: 10_000,
  dialBackoffMinMs: 200,
  dialBackoffMaxMs: 10_000,
  lingerMs: 1_000,
  tickMs: 1_000,
  halfOpen: 256,
  halfOpenPerSource: 16,
  connections: 8_192,
  acceptsPerSecond: 10,
  acceptBurst: 40,
  sources: 4_096,
  handshakesPerSecond: 100,
  handshakeBurst: 200,
  pauseAtBytes: 256 * 1024,
  sendQueueBytes: 4 * 1024 * 1024,
};
