/** Nodes: who may be one, ids and incarnations, and whether a node certificate is still that of the node. */
import type { CertificateAuthority } from '../ca/api.ts';
import { err, ok, type Result } from '../src/base/errors.ts';
import type { ReasonCode } from '../src/base/registry/reason-codes.ts';
import type { Prefix } from '../src/model/address.ts';
import type { NodeName } from '../src/model/ids.ts';
import { nodeNameOf, nodeSpiffeId } from '../src/model/spiffe-id.ts';
import type { VerifiedSvid } from '../src/pki/verify.ts';
import type { Feed } from './feed.ts';
import { formatPrefix } from './prefix.ts';
import type { NodeRecord, Store } from './store.ts';

export interface NodesOptions {
  readonly store: Store;
  readonly feed: Feed;
  readonly ca: CertificateAuthority;
  readonly configured: readonly { readonly name: NodeName; readonly prefixes: readonly Prefix[] }[];
}

export class Nodes {
  readonly #options: NodesOptions;
  readonly #prefixes: ReadonlyMap<string, readonly string[]>;

  constructor(options: NodesOptions) {
    this.#options = options;
    this.#prefixes = new Map(options.configured.map((node) => [node.name, node.prefixes.map(formatPrefix)]));
  }

  get names(): ReadonlySet<string> {
    return new Set(this.#prefixes.keys());
  }

  isConfigured(name: string): boolean {
    return this.#prefixes.has(name);
  }

  prefixesOf(name: NodeName): readonly string[] {
    return this.#prefixes.get(name) ?? [];
  }

  node(name: string): NodeRecord | undefined {
    return this.#options.store.node(name);
  }

  /** Those that are attested, configured and not taken back. */
  members(): NodeRecord[] {
    return this.#options.store.nodes().filter((node) => !node.evicted && this.isConfigured(node.name));
  }

  /** All that ever attested. */
  all(): NodeRecord[] {
    return this.#options.store.nodes();
  }

  /**
   * Records an attestation: the id stays a name's own for ever, the incarnation rises, so that every certificate of an
   * earlier one is barred. On disk before the certificate is made.
   */
  attest(name: NodeName, attestor: string, peerAddresses: readonly string[], nowMs: number): NodeRecord {
    const { store } = this.#options;
    return store.transaction(() => {
      const known = store.node(name);
      const incarnation = (known?.incarnation ?? 0) + 1;
      const node: NodeRecord = {
        name,
        nodeId: known?.nodeId ?? store.next('node_id'),
        incarnation,
        attestedAtMs: nowMs,
        notAfterMs: 0,
        evicted: false,
        peerAddresses,
        // The holder of an earlier certificate has no way back but a proof of its own.
        usedIncarnation: incarnation,
        // Numbers of streams are never used again: an earlier holder's cannot be the right one.
        sessionIssued: known?.sessionIssued ?? 0,
        sessionConfirmed: known?.sessionIssued ?? 0,
        attestor,
      };
      store.putNode(node);
      return node;
    });
  }

  /**
   * Rule ResetAssumesAll begins here: the next incarnation of a node that was rebooted or set back, on disk before the
   * certificate is made. If the answer is lost, the node asks again with the certificate it has, and gets one more.
   */
  newIncarnation(name: NodeName): NodeRecord {
    const { store } = this.#options;
    return store.transaction(() => {
      const known = store.node(name)!;
      const node = { ...known, incarnation: known.incarnation + 1 };
      store.putNode(node);
      return node;
    });
  }

  /** The number of a Sync stream that begins now. @param shown what `isLastSession` took. */
  beginSession(name: NodeName, shown: bigint): number {
    const node = this.node(name)!;
    const session = Math.max(node.sessionIssued, Number(shown)) + 1;
    this.#options.store.putNode({ ...node, sessionIssued: session });
    return session;
  }

  /** The node has it on disk: whoever shows an earlier one from now on is another holder of its certificate. */
  confirmSession(name: NodeName, session: number): void {
    const node = this.node(name);
    if (node !== undefined) this.#options.store.putNode({ ...node, sessionConfirmed: session });
  }

  /**
   * Is this the number of the last stream, as its node has it on disk, or of one that it had no time to confirm? One that was
   * never given is taken too, as it is this database that was set back then: it must not lock out every node.
   */
  isLastSession(name: NodeName, session: bigint): boolean {
    const node = this.node(name);
    if (node === undefined || session > BigInt(Number.MAX_SAFE_INTEGER - 1)) return false;
    return session === BigInt(node.sessionConfirmed) || session >= BigInt(node.sessionIssued);
  }

  /** The node got a certificate: it is one of the cluster from now on. */
  admit(node: NodeRecord, notAfterMs: number): void {
    const admitted = { ...(this.node(node.name) ?? node), notAfterMs };
    this.#options.store.putNode(admitted);
    // It may have been taken back while its certificate was made.
    if (!admitted.evicted) this.#options.feed.publish({ nodes: [admitted] });
  }

  setNotAfter(name: NodeName, notAfterMs: number): void {
    const node = this.node(name);
    if (node !== undefined) this.#options.store.putNode({ ...node, notAfterMs });
  }

  setPeerAddresses(name: NodeName, peerAddresses: readonly string[]): void {
    const node = this.node(name);
    if (node === undefined || JSON.stringify(node.peerAddresses) === JSON.stringify(peerAddresses)) return;
    const moved = { ...node, peerAddresses };
    this.#options.store.putNode(moved);
    this.#options.feed.publish({ nodes: [moved] });
  }

  /** Nobody may attest under this name before the ban is lifted. */
  isBanned(name: string): boolean {
    return this.#options.store.bans().some((ban) => ban.name === name);
  }

  /** Only a fresh proof lets it in again. Does not tell anyone: the revocation that follows does. */
  evict(name: NodeName): void {
    const node = this.node(name);
    if (node !== undefined) this.#options.store.putNode({ ...node, evicted: true });
  }

  /**
   * Whose certificate is this, and does the node still stand by it? Asked at every call, not once per connection.
   * @param renewing the call may be that of a node which was given a newer incarnation and did not get to know.
   */
  verify(svid: VerifiedSvid, nowMs: number, renewing = false): Result<NodeRecord, ReasonCode> {
    const { spiffeId, leaf, validUntilMs, authorities } = svid;
    const { ca } = this.#options;
    if (nowMs > validUntilMs) return err('CERT_EXPIRED');
    const name = nodeNameOf(spiffeId);
    // an SVID that is bound to a node is a workload's, whatever its name
    if (name === undefined || leaf.nodeIncarnation === undefined || leaf.nodeBinding !== undefined) {
      return err('PEER_UNKNOWN_NODE');
    }
    const node = this.node(name);
    if (node === undefined || !this.isConfigured(name)) return err('PEER_UNKNOWN_NODE');
    if (node.evicted) return err(this.isBanned(name) ? 'ATTEST_NODE_BANNED' : 'ATTEST_NODE_EVICTED');
    const subject = { spiffeId, serial: leaf.serial, node: spiffeId, notBeforeMs: leaf.notBeforeMs, authorities };
    if (ca.isRevoked(subject)) return err('AUTH_REVOKED');
    // Issued by this trust domain's CA and unknown here: this database was set back. What was issued stays issued.
    if (leaf.nodeIncarnation > BigInt(node.incarnation)) return ok(this.#adopt(node, Number(leaf.nodeIncarnation)));
    const isNewest = leaf.nodeIncarnation === BigInt(node.incarnation);
    const isInUse = leaf.nodeIncarnation === BigInt(node.usedIncarnation);
    if (!isNewest && !(renewing && isInUse)) return err('PEER_INCARNATION_BARRED');
    if (!isNewest || isInUse) return ok(node);
    const shown = { ...node, usedIncarnation: node.incarnation };
    this.#options.store.putNode(shown);
    return ok(shown);
  }

  #adopt(node: NodeRecord, incarnation: number): NodeRecord {
    const adopted = { ...node, incarnation, usedIncarnation: incarnation };
    this.#options.store.putNode(adopted);
    this.#options.feed.publish({ nodes: [adopted] });
    return adopted;
  }

  spiffeIdOf(name: NodeName) {
    return nodeSpiffeId(this.#options.ca.trustDomain, name);
  }
}
