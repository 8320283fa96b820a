/**
 * Two workloads of this node: proven against the same rules as across nodes, without a channel. In place of an authenticator,
 * the private key that this node holds must be the one that the certificate names.
 */
import { createPublicKey } from 'node:crypto';
import { err, ok, type Result } from '../base/errors.ts';
import type { ReasonCode } from '../base/registry/reason-codes.ts';
import { LOCAL_NODE, type SecurityIdentity, type SpiffeId } from '../model/ids.ts';
import type { OwnProof, OwnProofs } from './own-proof.ts';
import { type Proof, type ProofFacts, verifyChain } from './verify-proof.ts';

export interface LocalProof {
  readonly own: OwnProof;
  readonly proof: Proof;
}

/** Steps 2 to 7 of verify-proof.ts for one side of the pair. */
export function proveLocally(
  facts: ProofFacts,
  owns: OwnProofs,
  identity: SecurityIdentity,
  nodeSpiffeId: SpiffeId,
  epoch: number,
): Result<LocalProof, ReasonCode> {
  const own = owns.of(identity);
  if (!own.ok) return own;
  const claim = { identity, node: LOCAL_NODE, nodeSpiffeId, epoch };
  const proof = verifyChain(facts, claim, own.value.svid.chain);
  if (!proof.ok) return proof;
  if (!createPublicKey(own.value.svid.privateKey).equals(proof.value.leaf.publicKey)) return err('AUTH_BAD_SIGNATURE');
  return ok({ own: own.value, proof: proof.value });
}
