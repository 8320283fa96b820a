/** All that the server has told this node, and how one of its messages changes it. */
import type { SyncResponse } from '../../../proto/gen/countersign/server/v1/server.ts';
import type { Clock } from '../../base/clock.ts';
import type { Logger } from '../../base/log.ts';
import type { AuditSink } from '../../model/audit-event.ts';
import type { TrustBundle } from '../../model/identity.ts';
import type { SpiffeId, TrustDomain } from '../../model/ids.ts';
import { serverSpiffeId } from '../../model/spiffe-id.ts';
import { Bundles } from './bundles.ts';
import type { SyncChange } from './changes.ts';
import { verifySigner } from './identity-rows.ts';
import { Entries, IdentityRows, Nodes, Revocations } from './tables.ts';

export class SyncedState {
  readonly identities = new IdentityRows();
  readonly nodes: Nodes;
  readonly entries = new Entries();
  readonly revocations = new Revocations();
  readonly bundles: Bundles;
  readonly #self: SpiffeId;
  readonly #clock: Clock;
  readonly #log: Logger;
  readonly #audit: AuditSink;
  #signerChain: readonly Buffer[] = [];
  #version = 0n;
  #refusedItems = 0;
  #forgotten = false;

  constructor(
    trustDomain: TrustDomain,
    self: SpiffeId,
    pinned: readonly Buffer[],
    clock: Clock,
    log: Logger,
    audit: AuditSink,
  ) {
    this.nodes = new Nodes(trustDomain);
    this.#self = self;
    this.#clock = clock;
    this.#log = log;
    this.#audit = audit;
    this.bundles = new Bundles(trustDomain, pinned);
  }

  /** Of the own trust domain. */
  get bundle(): TrustBundle {
    return this.bundles.own.bundle;
  }

  get version(): bigint {
    return this.#version;
  }

  get refusedItems(): number {
    return this.#refusedItems;
  }

  /** The next snapshot is reported in full, as if nothing had been known. */
  forget(): void {
    this.#forgotten = true;
  }

  /** What there is, as a change from nothing. */
  everything(): SyncChange {
    return {
      version: this.#version,
      snapshot: true,
      entries: { changed: this.entries.list(), removed: [] },
      identities: { changed: this.identities.rows(), removed: [] },
      nodes: { changed: this.nodes.nodes(), removed: [] },
      bundle: true,
      revocations: this.revocations.list(),
    };
  }

  /** @throws Error if the message cannot be taken: a broken bundle or revocation must not be passed over. */
  apply(message: SyncResponse): SyncChange {
    try {
      return this.#apply(message);
    } catch (thrown) {
      // what was taken of it was told to nobody: the snapshot that comes next is told whole
      this.forget();
      throw thrown;
    }
  }

  #apply(message: SyncResponse): SyncChange {
    const { snapshot } = message;
    if (!snapshot && message.version <= this.#version) throw new Error('the version of the server went back');
    const refused = (what: string, why: string) => {
      this.#refusedItems += 1;
      this.#log.error({ what, why }, 'refused what the identity server sent');
      const source = { spiffeId: serverSpiffeId(this.bundle.trustDomain) };
      this.#audit.emit({ kind: 'peer.refused', reason: 'PEER_FRAME_MALFORMED', source, detail: { what, why } });
    };
    // revocations and the bundle first: what follows is judged by them
    const revocations = this.revocations.update(message.revocations);
    const bundle = this.bundles.apply(message, refused);
    if (message.signerChain.length > 0) this.#signerChain = message.signerChain;

    const signer = verifySigner(this.#signerChain, this.bundle, this.revocations, this.#clock.nowMs());
    if (!signer.ok && message.identities.length > 0) {
      this.#log.error({ reason: signer.error }, 'the signer of the identity table does not verify');
    }
    const { identities: signed, removedIdentities } = message;
    const leaf = signer.ok ? signer.value : undefined;
    const identities = this.identities.update(snapshot, signed, removedIdentities, leaf, this.bundle, refused);
    const nodes = this.nodes.update(snapshot, message.nodes, message.removedNodes, refused);
    const entries = this.entries.update(snapshot, message.entries, message.removedEntryIds, this.#self, refused);
    this.#version = message.version;
    if (this.#forgotten && snapshot) {
      this.#forgotten = false;
      const all = this.everything();
      const removed = { entries: entries.removed, identities: identities.removed, nodes: nodes.removed };
      return {
        ...all,
        entries: { ...all.entries, removed: removed.entries },
        identities: { ...all.identities, removed: removed.identities },
        nodes: { ...all.nodes, removed: removed.nodes },
      };
    }
    return { version: message.version, snapshot, entries, identities, nodes, bundle, revocations };
  }
}
