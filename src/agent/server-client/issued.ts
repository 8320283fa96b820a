/** Is what the server issued what was asked for? A certificate that fails here would fail at every peer. */
import type { KeyObject } from 'node:crypto';
import { err, ok, type Result } from '../../base/errors.ts';
import type { ReasonCode } from '../../base/registry/reason-codes.ts';
import type { Svid, TrustBundle } from '../../model/identity.ts';
import type { SpiffeId } from '../../model/ids.ts';
import type { Certificate } from '../../pki/certificate.ts';
import { publicKeyDer } from '../../pki/keys.ts';
import { verifyX509Svid } from '../../pki/verify.ts';

export interface Wanted {
  readonly spiffeId: SpiffeId;
  readonly privateKey: KeyObject;
  /** The node a workload's SVID must be bound to; undefined for a node's own. */
  readonly node: SpiffeId | undefined;
}

export interface IssuedChain {
  readonly svid: Svid;
  readonly leaf: Certificate;
  /** As VerifiedSvid.authorities. */
  readonly authorities: readonly string[];
}

export function checkIssued(
  received: readonly Buffer[],
  bundle: TrustBundle,
  wanted: Wanted,
  nowMs: number,
): Result<IssuedChain, ReasonCode> {
  // Of its own: a slice would keep the whole message that it came in.
  const chain = received.map((der) => Buffer.from(der));
  const verified = verifyX509Svid(chain, bundle, nowMs);
  if (!verified.ok) return verified;
  const { spiffeId, leaf, validUntilMs, authorities } = verified.value;
  if (spiffeId !== wanted.spiffeId) return err('AUTH_WRONG_SPIFFE_ID');
  if (leaf.nodeBinding !== wanted.node) return err('AUTH_WRONG_NODE');
  if (!publicKeyDer(wanted.privateKey).equals(publicKeyDer(leaf.publicKey))) return err('PEER_CERTIFICATE_REJECTED');
  return ok({ svid: { spiffeId, chain, privateKey: wanted.privateKey, notAfterMs: validUntilMs }, leaf, authorities });
}
