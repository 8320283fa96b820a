/**
 * A packet's story, where a peer node's proof for a workload is judged: seven steps, in the order in which they stand in `verifyProof`.
 * The cryptographic ones are done once for each identity and channel; `checkStanding`, what may change at any moment, on every use.
 */
import { err, ok, type Result } from '../base/errors.ts';
import type { ReasonCode } from '../base/registry/reason-codes.ts';
import type { IdentityTable, RevocationSubject, RevocationTable, TrustBundles } from '../model/identity.ts';
import type { NodeId, SecurityIdentity, SpiffeId } from '../model/ids.ts';
import { trustDomainOf } from '../model/spiffe-id.ts';
import { type Certificate, lastingDer } from '../pki/certificate.ts';
import { verifyX509Svid } from '../pki/verify.ts';
import type { AuthenticatorOutcome } from './rfc9261/authenticator.ts';

/** What verification rests on besides the bytes of the peer. All of it as it is at the moment of the call. */
export interface ProofFacts {
  readonly identities: IdentityTable;
  readonly bundles: TrustBundles;
  readonly revocations: RevocationTable;
  /** Is the identity vouched for by that node, in force, now? For the own node: does an open endpoint have it? */
  isVouched(node: NodeId, identity: SecurityIdentity): boolean;
  /** Unix ms. */
  nowMs(): number;
  /** A proof counts no longer than this, ms. */
  readonly maxAgeMs: number;
}

/** What is to be proven, and by which node. */
export interface Claim {
  readonly identity: SecurityIdentity;
  readonly node: NodeId;
  readonly nodeSpiffeId: SpiffeId;
  /** The datapath's epoch when verification began: an entry that rests on this proof carries it. */
  readonly epoch: number;
}

/**
 * What is remembered of a certificate that was verified. There may be ten thousand proofs, and a certificate with its key takes ten
 * times as much: what else it says is read from the chain again.
 */
export type ProvenLeaf = Pick<Certificate, 'digest' | 'serial' | 'notBeforeMs' | 'nodeBinding'> & {
  /** As VerifiedSvid.authorities. */
  readonly authorities: readonly string[];
};

/** Who, and until when. */
export interface Proof extends Claim {
  readonly spiffeId: SpiffeId;
  readonly leaf: ProvenLeaf;
  /** Copies, so that what was parsed of them can be forgotten. */
  readonly chain: readonly Buffer[];
  /** Unix ms. */
  readonly provenAtMs: number;
  /** Unix ms: least of the path's notAfter and the proof's greatest age. */
  readonly validUntilMs: number;
}

export function verifyProof(
  facts: ProofFacts,
  claim: Claim,
  authenticator: Result<AuthenticatorOutcome, ReasonCode>,
): Result<Proof, ReasonCode> {
  // Step 1: the authenticator answers our request on this very channel.
  if (!authenticator.ok) return authenticator;
  if (authenticator.value.kind === 'refused') return err('AUTH_REFUSED');
  return verifyChain(facts, claim, authenticator.value.chain);
}

/** Steps 2 to 7, for a chain whose key holder is known: the peer of a channel, or this node itself. */
export function verifyChain(facts: ProofFacts, claim: Claim, chain: readonly Buffer[]): Result<Proof, ReasonCode> {
  const row = facts.identities.byIdentity(claim.identity);
  if (row === undefined) return err('AUTH_UNKNOWN_IDENTITY');

  // Step 2: it ends in the bundle of the trust domain that the identity belongs to, which must be the SVID's own; every SPIFFE MUST.
  const bundle = facts.bundles.bundleOf(trustDomainOf(row.spiffeId));
  if (bundle === undefined) return err('CERT_UNTRUSTED');
  const now = facts.nowMs();
  const svid = verifyX509Svid(chain, bundle, now);
  if (!svid.ok) return svid;

  const { spiffeId, leaf, validUntilMs, authorities } = svid.value;
  const proof: Proof = {
    ...claim,
    // The table's own text where it is the same: there may be ten thousand proofs.
    spiffeId: spiffeId === row.spiffeId ? row.spiffeId : spiffeId,
    leaf: {
      digest: leaf.digest,
      serial: leaf.serial,
      notBeforeMs: leaf.notBeforeMs,
      nodeBinding: leaf.nodeBinding === claim.nodeSpiffeId ? claim.nodeSpiffeId : leaf.nodeBinding,
      authorities,
    },
    chain: svid.value.chain.map(lastingDer),
    provenAtMs: now,
    validUntilMs: Math.min(validUntilMs, now + facts.maxAgeMs),
  };
  // Steps 3 to 7.
  const refusal = checkStanding(facts, proof);
  return refusal === undefined ? ok(proof) : err(refusal);
}

/** Does a proof that was verified before still stand? */
export function checkStanding(facts: ProofFacts, proof: Proof): ReasonCode | undefined {
  // Step 3: the certificate names the node that shows it.
  if (proof.leaf.nodeBinding !== proof.nodeSpiffeId) return 'AUTH_WRONG_NODE';
  // Step 4: the identity table ties this SPIFFE ID to this security identity, and lets this node prove it.
  const row = facts.identities.byIdentity(proof.identity);
  if (row === undefined) return 'AUTH_UNKNOWN_IDENTITY';
  if (row.spiffeId !== proof.spiffeId) return 'AUTH_WRONG_SPIFFE_ID';
  if (!row.nodes.includes(proof.nodeSpiffeId)) return 'AUTH_WRONG_NODE';
  // Step 5: the node vouches for it now.
  if (!facts.isVouched(proof.node, proof.identity)) return 'AUTH_NOT_VOUCHED';
  // Step 6: not revoked, neither it nor a key above it that signed.
  if (facts.revocations.isRevoked(revocationSubject(proof.leaf, proof.spiffeId))) return 'AUTH_REVOKED';
  // Step 7: not expired.
  if (facts.nowMs() >= proof.validUntilMs) return 'AUTH_EXPIRED';
  return undefined;
}

export function revocationSubject(leaf: ProvenLeaf, spiffeId: SpiffeId): RevocationSubject {
  const { serial, nodeBinding: node, notBeforeMs, authorities } = leaf;
  return { spiffeId, serial, node, notBeforeMs, authorities };
}
