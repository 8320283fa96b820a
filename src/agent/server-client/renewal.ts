/** A fresh node SVID for the one that the node has, and when. A certificate's story, step 21. */
import type { RenewRequest, RenewResponse } from '../../../proto/gen/countersign/server/v1/server.ts';
import type { Clock } from '../../base/clock.ts';
import { systemTimers } from '../../base/timers.ts';
import type { IdentityTable, NodeTable, TrustBundle } from '../../model/identity.ts';
import { createCsr } from '../../pki/csr.ts';
import { generateKey } from '../../pki/keys.ts';
import { verifyX509Svid } from '../../pki/verify.ts';
import type { OwnBundle } from './bundles.ts';
import { checkIssued } from './issued.ts';
import type { NodeState } from './node-state.ts';
import { type Connection, ServerError } from './transport.ts';

const CALL_MS = 10_000;
const SOONEST_MS = 100;
const RETRY_MS = 5_000;
/** What a server needs at most for one SVID, and for a node that comes back with a new one: so that all of a cluster come at a pace it can keep. */
const PER_SVID_MS = 1;
const PER_NODE_MS = 5;
const MAX_SPREAD_MS = 300_000;

export interface Cluster {
  readonly identities: Pick<IdentityTable, 'rows'>;
  readonly nodes: Pick<NodeTable, 'nodes'>;
}

/**
 * How long this node waits before it renews what all nodes renew at once, as a signing key was tainted or taken back: at random, within
 * the time that it takes to sign all SVIDs of the cluster. Nothing to speak of in a small one.
 */
export function renewalSpreadMs({ identities, nodes }: Cluster, random = Math.random): number {
  const svids = identities.rows().reduce((sum, row) => sum + row.nodes.length, 0);
  return random() * Math.min(svids * PER_SVID_MS + nodes.nodes().length * PER_NODE_MS, MAX_SPREAD_MS);
}

/**
 * Of the same incarnation, or of a higher one: for a node that begins a new life.
 * @param connection proven with the SVID of `state`
 * @throws ServerError
 */
export async function renewNodeSvid(
  connection: Connection,
  state: NodeState,
  bundle: TrustBundle,
  nowMs: number,
  newIncarnation: boolean,
): Promise<Pick<NodeState, 'svid' | 'notBeforeMs' | 'incarnation'>> {
  const privateKey = generateKey();
  const request: RenewRequest = { csr: createCsr(privateKey), newIncarnation, session: state.session };
  const { certificateChain } = await connection.unary<RenewRequest, RenewResponse>('renew', request, CALL_MS);
  const wanted = { spiffeId: state.svid.spiffeId, privateKey, node: undefined };
  const issued = checkIssued(certificateChain, bundle, wanted, nowMs);
  const incarnation = issued.ok ? issued.value.leaf.nodeIncarnation : undefined;
  const isOurs =
    incarnation !== undefined && (newIncarnation ? incarnation > state.incarnation : incarnation === state.incarnation);
  if (!issued.ok || !isOurs) {
    const reason = issued.ok ? 'PEER_CERTIFICATE_REJECTED' : issued.error;
    throw new ServerError('internal', reason, `the server renewed to a node SVID that is not ours: ${reason}`);
  }
  const { leaf, svid } = issued.value;
  return { svid, notBeforeMs: leaf.notBeforeMs, incarnation };
}

export interface NodeRenewalOptions {
  renew(): Promise<void>;
  failed(thrown: unknown): void;
  readonly cluster: Cluster;
  readonly clock: Clock;
}

/** When the node SVID is renewed: at about half its life, not all nodes at once, and soon when the bundle lets go of who signed it. */
export class NodeRenewal {
  readonly #options: NodeRenewalOptions;
  #cancel = () => {};
  #closed = false;

  constructor(options: NodeRenewalOptions) {
    this.#options = options;
  }

  /** Anew for each node SVID and each change of the own bundle. */
  plan({ svid, notBeforeMs }: Pick<NodeState, 'svid' | 'notBeforeMs'>, { bundle, tainted }: OwnBundle): void {
    const nowMs = this.#options.clock.nowMs();
    const verified = verifyX509Svid(svid.chain, bundle, nowMs);
    const isGood = verified.ok && !verified.value.authorities.some((id) => tainted.has(id));
    const life = svid.notAfterMs - notBeforeMs;
    const dueMs = notBeforeMs + life * (0.45 + Math.random() * 0.1);
    this.#schedule(isGood ? dueMs - nowMs : renewalSpreadMs(this.#options.cluster));
  }

  close(): void {
    this.#closed = true;
    this.#cancel();
  }

  #schedule(waitMs: number): void {
    this.#cancel();
    if (this.#closed) return;
    this.#cancel = systemTimers.set(Math.max(waitMs, SOONEST_MS), () => {
      this.#options.renew().catch((thrown: unknown) => {
        this.#options.failed(thrown);
        this.#schedule(RETRY_MS * (0.5 + Math.random()));
      });
    });
  }
}
