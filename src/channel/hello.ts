/** The first frame of both sides: which protocol versions, which node. */
import { Hello } from '../../proto/gen/countersign/peer/v1/peer.ts';
import { err, ok, type Result } from '../base/errors.ts';
import type { ReasonCode } from '../base/registry/reason-codes.ts';
import type { NodeInfo } from '../model/identity.ts';

export const ALPN = 'countersign/1';
/** What this build speaks: docs/peer-channel.md says what changed when. A change that the other side must know of is a new version. */
const MIN_VERSION = 2;
const MAX_VERSION = 2;
const MAX_FEATURES = 32;
const MAX_FEATURE_LENGTH = 64;
/** Octets drawn from the exporter of the channel a redial replaces. */
export const SUCCESSION_OCTETS = 32;

export interface PeerHello {
  /** The highest version both speak. */
  readonly version: number;
  readonly features: readonly string[];
  /** Empty, or the proof that the sender holds the channel it replaces. */
  readonly succeeds: Buffer;
}

export function encodeHello(self: NodeInfo, succeeds: Buffer): Uint8Array {
  return Hello.encode({
    minVersion: MIN_VERSION,
    maxVersion: MAX_VERSION,
    features: [],
    nodeName: self.name,
    nodeId: self.id,
    incarnation: self.incarnation,
    succeeds,
  }).finish();
}

/** What the peer says must agree with what its certificate proved (`peer`). Unknown features are passed over. */
export function readHello(body: Buffer, peer: NodeInfo): Result<PeerHello, ReasonCode> {
  let hello: Hello;
  try {
    hello = Hello.decode(body);
  } catch {
    return err('PEER_FRAME_MALFORMED');
  }
  const { features, succeeds } = hello;
  if (features.length > MAX_FEATURES || features.some((feature) => feature.length > MAX_FEATURE_LENGTH)) {
    return err('PEER_FRAME_MALFORMED');
  }
  if (succeeds.length !== 0 && succeeds.length !== SUCCESSION_OCTETS) return err('PEER_FRAME_MALFORMED');
  const version = Math.min(hello.maxVersion, MAX_VERSION);
  if (hello.minVersion > hello.maxVersion || version < Math.max(hello.minVersion, MIN_VERSION)) {
    return err('PEER_VERSION_MISMATCH');
  }
  if (hello.nodeName !== peer.name || hello.nodeId !== peer.id || hello.incarnation !== peer.incarnation) {
    return err('PEER_HELLO_MISMATCH');
  }
  return ok({ version, features, succeeds: Buffer.from(succeeds) });
}
