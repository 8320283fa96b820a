/** What agents are sent: the snapshot that a stream begins with, and what has changed since a version, as encoded messages. */
import type { SyncResponse } from '../proto/gen/countersign/server/v1/server.ts';
import type { NodeName, TrustDomain } from '../src/model/ids.ts';
import type { Change } from './feed.ts';
import { encodeRow, RowParts } from './row-parts.ts';
import type { NodeRecord } from './store.ts';
import type { SyncOptions } from './sync.ts';
import { type Merged, SyncLog } from './sync-log.ts';
import {
  bundleMessage,
  change,
  encode,
  entryMessage,
  nodeMessage,
  packed,
  packedWithMore,
  revocationMessage,
} from './sync-messages.ts';

/** What all agents get that were sent the same version last. */
interface Shared {
  readonly merged: Merged;
  readonly head: Buffer;
  readonly parts: readonly Buffer[];
}

export class SyncContent {
  readonly #options: SyncOptions;
  readonly #log: SyncLog;
  readonly #rows: RowParts;
  readonly #encodeRow: ReturnType<typeof encodeRow>;
  /** Each member, encoded. */
  readonly #nodes = new Map<NodeName, Buffer>();
  #nodeParts: readonly Buffer[] | undefined;
  /** By the version sent last; of the version that is now. */
  readonly #shared = new Map<number, Shared | undefined>();
  #snapshotHead: { readonly version: number; readonly bytes: Buffer } | undefined;

  constructor(options: SyncOptions) {
    this.#options = options;
    this.#log = new SyncLog(options.feed.version);
    this.#encodeRow = encodeRow((row) => options.signer.sign(row));
    this.#rows = new RowParts(options.registry, this.#encodeRow);
    for (const node of options.nodes.members()) this.#nodes.set(node.name, this.#encodeNode(node));
  }

  prepare(): void {
    this.#rows.all();
  }

  add(version: number, made: Change): void {
    this.#log.add(version, made);
    this.#shared.clear();
    if (made.signer === true) this.#rows.reset();
    for (const { identity } of made.rows ?? []) this.#rows.touch(identity);
    for (const identity of made.removedRows ?? []) this.#rows.touch(identity);
    for (const name of made.removedNodes ?? []) this.#nodes.delete(name);
    for (const node of made.nodes ?? []) this.#nodes.set(node.name, this.#encodeNode(node));
    if (made.nodes !== undefined || made.removedNodes !== undefined) this.#nodeParts = undefined;
  }

  /** No stream needs what came up to this version. */
  forget(version: number): void {
    this.#log.forget(version);
  }

  /** @param session the number of the stream. */
  snapshot(node: NodeName, session: number): Buffer[] {
    this.#nodeParts ??= packedWithMore(this.#nodes.values());
    const head = Buffer.concat([this.#headOfSnapshot(), encode({ session: BigInt(session) })]);
    const rows = this.#rows.all();
    const entries = this.#entriesOf(node);
    // one message where all of it is small, as it mostly is
    return change(head, [...this.#nodeParts, ...rows], entries);
  }

  /** undefined: it is too far behind. */
  since(version: number, node: NodeName): Buffer[] | undefined {
    const shared = this.#sharedSince(version);
    if (shared === undefined) return undefined;
    const own = [...(shared.merged.entries.get(node) ?? [])].map(([id, entry]) =>
      entry === undefined
        ? encode({ removedEntryIds: [id] })
        : encode({ entries: [entryMessage(entry, this.#options.nodes.spiffeIdOf(node))] }),
    );
    return change(shared.head, shared.parts, own);
  }

  #sharedSince(version: number): Shared | undefined {
    if (this.#shared.has(version)) return this.#shared.get(version);
    const merged = this.#log.since(version);
    const shared = merged === undefined ? undefined : this.#encodeMerged(merged);
    this.#shared.set(version, shared);
    return shared;
  }

  #encodeMerged(merged: Merged): Shared {
    const { feed, ca, signer } = this.#options;
    const head = encode({
      version: BigInt(feed.version),
      removedIdentities: goneOf(merged.rows),
      removedNodes: goneOf(merged.nodes),
      revocations: merged.revocations.map(revocationMessage),
      signerChain: merged.signer ? [...signer.svid.chain] : [],
      ...(merged.bundle ? { bundle: bundleMessage(ca.bundle()) } : {}),
      ...(merged.crls ? { crls: { crls: ca.crls() } } : {}),
      ...this.#federated([...merged.federatedBundles]),
    });
    const nodes = [...merged.nodes.keys()].flatMap((name) => this.#nodes.get(name) ?? []);
    if (merged.signer) return { merged, head, parts: [...packedWithMore(nodes), ...this.#rows.all()] };
    const rows = [...merged.rows.values()].flatMap((row) => (row === undefined ? [] : [this.#encodeRow(row)]));
    const [one, ...others] = packed([head, ...nodes, ...rows]);
    if (others.length === 0) return { merged, head: one!, parts: [] };
    return { merged, head, parts: packedWithMore([...nodes, ...rows]) };
  }

  /** What a snapshot begins with, but for the session. */
  #headOfSnapshot(): Buffer {
    const { feed, ca, signer, federated } = this.#options;
    const { version } = feed;
    if (this.#snapshotHead?.version !== version) {
      const bytes = encode({
        version: BigInt(version),
        snapshot: true,
        bundle: bundleMessage(ca.bundle()),
        revocations: ca.revocations().map(revocationMessage),
        signerChain: [...signer.svid.chain],
        crls: { crls: ca.crls() },
        ...this.#federated(federated?.list() ?? []),
      });
      this.#snapshotHead = { version, bytes };
    }
    return this.#snapshotHead.bytes;
  }

  #federated(names: readonly TrustDomain[]): Pick<SyncResponse, 'federatedBundles' | 'removedFederatedBundles'> {
    const { federated } = this.#options;
    const found = names.map((trustDomain) => ({ trustDomain, bundle: federated?.bundleOf(trustDomain) }));
    return {
      federatedBundles: found.filter(({ bundle }) => bundle !== undefined),
      removedFederatedBundles: found.filter(({ bundle }) => bundle === undefined).map(({ trustDomain }) => trustDomain),
    };
  }

  #entriesOf(node: NodeName): Buffer[] {
    const { registry, nodes } = this.#options;
    const parentId = nodes.spiffeIdOf(node);
    return Array.from(registry.entriesOf(node), (entry) => encode({ entries: [entryMessage(entry, parentId)] }));
  }

  #encodeNode(node: NodeRecord): Buffer {
    return encode({ nodes: [nodeMessage(node, this.#options.nodes)] });
  }
}

function goneOf<K>(map: ReadonlyMap<K, unknown>): K[] {
  return [...map].filter(([, value]) => value === undefined).map(([key]) => key);
}
