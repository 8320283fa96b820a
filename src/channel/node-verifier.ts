/** Is the other end the node it says it is? The named steps between a TLS handshake and a hello. */
import type { Clock } from '../base/clock.ts';
import { err, ok, type Result } from '../base/errors.ts';
import type { ReasonCode } from '../base/registry/reason-codes.ts';
import type { NodeInfo, NodeTable, RevocationTable, TrustBundles } from '../model/identity.ts';
import type { NodeId, SpiffeId, TrustDomain } from '../model/ids.ts';
import type { Certificate } from '../pki/certificate.ts';
import { type VerifiedSvid, verifyX509Svid } from '../pki/verify.ts';

export interface ProvenNode {
  /** As the node table has it, with the incarnation that the certificate proves. */
  readonly info: NodeInfo;
  readonly chain: readonly Buffer[];
  /** The node SVID itself. */
  readonly leaf: Certificate;
  /** Of the node SVID, Unix ms. */
  readonly validUntilMs: number;
}

export interface VerifierSources {
  readonly trustDomain: TrustDomain;
  readonly nodes: NodeTable;
  readonly bundles: TrustBundles;
  readonly revocations: RevocationTable;
  readonly clock: Pick<Clock, 'nowMs'>;
  /** BarRemembered: the highest incarnation of a node that what outlived the last agent names. Left out: nothing did. */
  readonly seenIncarnation?: (node: NodeId) => bigint | undefined;
}

export class NodeVerifier {
  readonly #sources: VerifierSources;
  /**
   * Rule BarLowerIncarnation. Highest incarnation a verified certificate has shown, per node: a lower one is a snapshot's or a
   * clone's. The node table has every incarnation that was ever issued, also after this agent's restart; this is for the
   * moment before it comes, and with `seenIncarnation` for an identity server that was set back to an old backup.
   */
  readonly #highest = new Map<SpiffeId, bigint>();

  constructor(sources: VerifierSources) {
    this.#sources = sources;
  }

  /** @param expected when dialing: the very node that was dialed. */
  verify(chain: readonly Buffer[], expected?: SpiffeId): Result<ProvenNode, ReasonCode> {
    const { trustDomain, nodes, bundles, clock } = this.#sources;
    // 1. Something was presented.
    if (chain.length === 0) return err('CERT_CHAIN_EMPTY');
    // 2. Nodes are of our own trust domain: no other bundle is even looked at.
    const bundle = bundles.bundleOf(trustDomain);
    if (bundle === undefined) return err('CERT_UNTRUSTED');
    const verified = verifyX509Svid(chain, bundle, clock.nowMs());
    if (!verified.ok) return verified;
    const { spiffeId, leaf, validUntilMs } = verified.value;
    // 3. A listed node, not a workload or the server.
    const node = nodes.bySpiffeId(spiffeId);
    if (node === undefined) return err('PEER_UNKNOWN_NODE');
    // 4. The node that was dialed.
    if (expected !== undefined && spiffeId !== expected) return err('PEER_CERTIFICATE_REJECTED');
    // 5. Not revoked, neither it nor a key above it that signed.
    if (this.#isRevoked(verified.value)) return err('AUTH_REVOKED');
    // 6. Of an incarnation not below one already seen.
    const incarnation = leaf.nodeIncarnation;
    if (incarnation === undefined) return err('PEER_CERTIFICATE_REJECTED');
    const highest = this.#highest.get(spiffeId) ?? this.#sources.seenIncarnation?.(node.id) ?? 0n;
    if (incarnation < node.incarnation || incarnation < highest) {
      return err('PEER_INCARNATION_BARRED');
    }
    this.#highest.set(spiffeId, incarnation);
    return ok({ info: { ...node, incarnation }, chain, leaf, validUntilMs });
  }

  #isRevoked({ spiffeId, leaf, authorities }: VerifiedSvid): boolean {
    const { serial, notBeforeMs } = leaf;
    return this.#sources.revocations.isRevoked({ spiffeId, serial, node: spiffeId, notBeforeMs, authorities });
  }
}
